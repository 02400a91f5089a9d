"""What was found, written: annotated images and videos, COCO and YOLO files, tables, crops, JSON lines, text."""

import csv
import json
import math
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from pathlib import Path, PurePath
from typing import Any, TextIO

import numpy as np

from efficientdet.data.results import coco_results
from efficientdet.inference.sources import Failure, Frame, Source
from efficientdet.structures import Detections
from utils.errors import InputError
from utils.files import atomic_write
from utils.images import IMAGE_SUFFIXES, write_image
from utils.video import DEFAULT_RATE, VIDEO_SUFFIXES, VideoWriter
from utils.visualize import draw_boxes

_COCO_FILE, _CSV_FILE = "detections.json", "detections.csv"


def annotate(image: np.ndarray, found: Detections, class_names: Sequence[str]) -> np.ndarray:
    """A copy of the image with its detections drawn, the best on top."""
    weakest_first = found.scores.argsort()
    class_ids = found.class_ids[weakest_first].tolist()
    scores = found.scores[weakest_first].tolist()
    labels = [f"{class_names[class_id]} {score:.2f}" for class_id, score in zip(class_ids, scores)]
    return draw_boxes(image, found.boxes[weakest_first].numpy(), class_ids, labels)


def text_table(frame: Frame, found: Detections, class_names: Sequence[str], written: Path | None) -> str:
    """A line on the frame, and one for each object: class, score, box in pixels of the image."""
    number = "" if frame.number is None else f" frame {frame.number}"
    height, width = frame.image.shape[:2]
    objects = "1 object" if len(found) == 1 else f"{len(found)} objects"
    lines = [f"{frame.source.name}{number} ({width} x {height}): {objects}{f' -> {written}' if written else ''}"]
    for class_id, score, box in _rows(found):
        corners = " ".join(f"{value:7.1f}" for value in box)
        lines.append(f"  {class_names[class_id]:<16} {score:.2f}  x1 y1 x2 y2: {corners}")
    return "\n".join(lines)


def check_folder(folder: Path, entries: Iterable) -> None:
    """InputError when one of the files in `entries` (as of `list_sources`) might be replaced by what is written."""
    folder = folder.resolve()
    for entry in entries:
        # A link may lie there, or point there.
        if isinstance(entry, Path) and folder in (entry.parent.resolve(), entry.resolve().parent):
            raise InputError(f"{entry} lies where the results go, and might be replaced: choose another --output")


def check_json_target(target: str, folder: Path) -> None:
    """InputError when the file of JSON lines would replace an image, a video or a table in the results' `folder`."""
    path = Path(target)
    if path.suffix.lower() in IMAGE_SUFFIXES | VIDEO_SUFFIXES:
        raise InputError(
            f"--json {target} names an image or video: name a file to write, or - for stdout, after --json"
        )
    if path.resolve() in (folder.resolve() / _COCO_FILE, folder.resolve() / _CSV_FILE):
        raise InputError(f"--json {target} is where --save json or csv writes: choose another name")


class JsonLines:
    """One JSON object per line: a frame with its objects, or what failed with its error.

    Args:
        target: a file, whole or absent, or `-` for stdout, line by line.
    """

    def __init__(self, target: str, class_names: Sequence[str]):
        self._class_names = class_names
        self._stack = ExitStack()
        self._file = sys.stdout if target == "-" else _open_whole(Path(target), self._stack)

    def write(self, frame: Frame, found: Detections) -> None:
        height, width = frame.image.shape[:2]
        objects = [
            {
                "class": self._class_names[class_id],
                "class_id": class_id,
                "score": round(score, 4),
                "box": [round(value, 2) for value in box],  # x1, y1, x2, y2 in pixels of the image
            }
            for class_id, score, box in _rows(found)
        ]
        where = {"file": frame.source.name, "frame": frame.number, "width": width, "height": height}
        self._write_line({**where, "objects": objects})

    def write_failure(self, failure: Failure) -> None:
        self._write_line({"file": failure.name, "error": failure.reason})

    def close(self) -> None:
        self._stack.close()

    def _write_line(self, value: dict) -> None:
        print(json.dumps(value), file=self._file, flush=self._file is sys.stdout)


class Outputs:
    """Writes frames and their detections into `folder`, in each of `formats`. Files are whole or absent.

    `write` takes frame after frame, `close` ends the files, also where an interruption was the end. For an image
    `a.jpg`, and frame 7 of a video `b.avi`, they are

    - image: `a.jpg` with boxes drawn, and `b.mp4`
    - json: `detections.json`, COCO results. `image_id` is the number that the image's name is, else the name, here
      "a" and "b/000007". `category_id` is the class index + 1, as in COCO.
    - csv: `detections.csv` with the columns file, frame, class, score, x1, y1, x2, y2
    - txt: `a.txt`, `b/000007.txt`, YOLO's: `class cx cy width height score`, lengths as shares of the image
    - crops: `crops/{class}/a_1.jpg`, `crops/{class}/b/000007_1.jpg`, each object by itself, the best is 1

    The later of two sources of one name gets a number, `a_2`. InputError for what cannot be written.
    """

    def __init__(self, folder: Path, formats: Iterable[str], class_names: Sequence[str]):
        self.folder = folder
        self._names: set[str] = set()
        self._source: Source | None = None
        self._name = ""
        with ExitStack() as stack:
            self._writers = [_WRITERS[name](folder, class_names, stack) for name in formats]
            self._stack = stack.pop_all()

    def write(self, frame: Frame, found: Detections, drawn: np.ndarray | None = None) -> Path | None:
        """Write one frame; `drawn` is the annotated image, for the format `image`. Returns the file it goes to."""
        name = self._name_of(frame)
        try:
            paths = [writer.write(frame, name, found, drawn) for writer in self._writers]
        except OSError as error:
            raise InputError(f"cannot write into {self.folder}: {error.strerror or error}") from error
        return next((path for path in paths if path is not None), None)

    def close(self) -> None:
        self._stack.close()

    def _name_of(self, frame: Frame) -> str:
        """What the frame's files are called, without suffix; its own in this folder."""
        if frame.source is not self._source:
            self._source, stem, number = frame.source, frame.source.stem, 1
            self._name = stem
            while self._name in self._names:
                number += 1
                self._name = f"{stem}_{number}"
            self._names.add(self._name)
        return self._name if frame.number is None else f"{self._name}/{frame.number:06d}"


class _Annotated:
    """Images as images, videos as videos."""

    def __init__(self, folder: Path, class_names: Sequence[str], stack: ExitStack):
        self._folder = folder
        self._video: VideoWriter | None = None
        self._source: Source | None = None
        stack.callback(self._end_video)

    def write(self, frame: Frame, name: str, found: Detections, drawn: np.ndarray) -> Path:
        if frame.source is not self._source:
            self._end_video()
            self._source = frame.source
        if frame.number is None:
            path = self._folder / f"{name}{_image_suffix(frame)}"
            write_image(path, drawn)
            return path
        if self._video is None:
            path = self._folder / f"{PurePath(name).parent}.mp4"
            self._video = VideoWriter(path, frame.source.rate or DEFAULT_RATE, *drawn.shape[:2])
        self._video.write(drawn)
        return self._video.path

    def _end_video(self) -> None:
        if self._video is not None:
            video, self._video = self._video, None
            video.close()


class _CocoResults:
    def __init__(self, folder: Path, class_names: Sequence[str], stack: ExitStack):
        self._category_ids = {class_id: class_id + 1 for class_id, name in enumerate(class_names) if name}
        self._file = _open_whole(folder / _COCO_FILE, stack)
        self._file.write("[")
        self._separator = "\n"
        stack.callback(self._file.write, "\n]\n")

    def write(self, frame: Frame, name: str, found: Detections, drawn: np.ndarray | None) -> None:
        for result in coco_results(int(name) if name.isdecimal() else name, found, self._category_ids):
            self._file.write(self._separator + json.dumps(result))
            self._separator = ",\n"


class _Csv:
    def __init__(self, folder: Path, class_names: Sequence[str], stack: ExitStack):
        self._class_names = class_names
        self._table = csv.writer(_open_whole(folder / _CSV_FILE, stack), lineterminator="\n")
        self._table.writerow(("file", "frame", "class", "score", "x1", "y1", "x2", "y2"))

    def write(self, frame: Frame, name: str, found: Detections, drawn: np.ndarray | None) -> None:
        for class_id, score, box in _rows(found):
            corners = (f"{value:.2f}" for value in box)
            self._table.writerow(
                (frame.source.name, frame.number, self._class_names[class_id], f"{score:.4f}", *corners)
            )


class _YoloText:
    def __init__(self, folder: Path, class_names: Sequence[str], stack: ExitStack):
        self._folder = folder

    def write(self, frame: Frame, name: str, found: Detections, drawn: np.ndarray | None) -> None:
        height, width = frame.image.shape[:2]
        lines = []
        for class_id, score, box in _rows(found):
            x1, y1, x2, y2 = np.clip(box, 0, (width, height, width, height))
            shares = (x1 + x2) / 2 / width, (y1 + y2) / 2 / height, (x2 - x1) / width, (y2 - y1) / height
            lines.append(f"{class_id} {' '.join(f'{share:.6f}' for share in shares)} {score:.4f}\n")
        with atomic_write(self._folder / f"{name}.txt") as temporary:
            temporary.write_text("".join(lines))


class _Crops:
    def __init__(self, folder: Path, class_names: Sequence[str], stack: ExitStack):
        self._folders = [
            folder / "crops" / (re.sub(r'[\\/:*?"<>|]', "_", name).strip(". ") or f"class_{class_id}")
            for class_id, name in enumerate(class_names)
        ]

    def write(self, frame: Frame, name: str, found: Detections, drawn: np.ndarray | None) -> None:
        height, width = frame.image.shape[:2]
        for number, (class_id, _, (x1, y1, x2, y2)) in enumerate(_rows(found), 1):
            # At least one pixel, also of a box that reaches over the image's edge.
            left, top = min(max(0, math.floor(x1)), width - 1), min(max(0, math.floor(y1)), height - 1)
            crop = frame.image[top : max(top + 1, math.ceil(y2)), left : max(left + 1, math.ceil(x2))]
            write_image(self._folders[class_id] / f"{name}_{number}{_image_suffix(frame)}", crop)


_WRITERS: dict[str, Callable[..., Any]] = {
    "image": _Annotated,
    "json": _CocoResults,
    "csv": _Csv,
    "txt": _YoloText,
    "crops": _Crops,
}
FORMATS = tuple(_WRITERS)


def _open_whole(path: Path, stack: ExitStack) -> TextIO:
    """A text file that grows beside `path` and takes its place, whole, when `stack` is closed."""
    temporary = stack.enter_context(atomic_write(path))
    # Names of files may hold bytes that are no UTF-8; they are written as they are.
    return stack.enter_context(open(temporary, "w", encoding="utf-8", errors="surrogateescape", newline=""))


def _image_suffix(frame: Frame) -> str:
    """The format of images made from this one: its own, where that can be told from its name."""
    suffix = PurePath(frame.source.name).suffix
    return suffix if suffix.lower() in IMAGE_SUFFIXES else ".jpg"


def _rows(found: Detections) -> list[tuple[int, float, list[float]]]:
    """(class index, score, box xyxy) of each object."""
    return list(zip(found.class_ids.tolist(), found.scores.tolist(), found.boxes.tolist()))
