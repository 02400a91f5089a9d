"""Write detections: annotated images and videos, COCO and YOLO files, tables, crops, JSON lines, text."""

import csv
import json
import math
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from pathlib import Path, PurePath
from typing import TextIO

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

# Writes a frame under a name without suffix, with its detections and the annotated image. Returns the file, if any.
FrameWriter = Callable[[Frame, str, Detections, np.ndarray | None], Path | None]


def annotate(image: np.ndarray, found: Detections, class_names: Sequence[str]) -> np.ndarray:
    """Return a copy of the image with its detections drawn, the best on top."""
    weakest_first = found[found.scores.argsort()]
    class_ids = weakest_first.class_ids.tolist()
    labels = [f"{class_names[n]} {score:.2f}" for n, score in zip(class_ids, weakest_first.scores.tolist())]
    return draw_boxes(image, weakest_first.boxes.numpy(), class_ids, labels)


def text_table(frame: Frame, found: Detections, class_names: Sequence[str], written: Path | None) -> str:
    """Return a line for the frame, and one for each detection: class, score, box in pixels of the image."""
    number = "" if frame.number is None else f" frame {frame.number}"
    height, width = frame.image.shape[:2]
    objects = "1 object" if len(found) == 1 else f"{len(found)} objects"
    lines = [f"{frame.source.name}{number} ({width} x {height}): {objects}{f' -> {written}' if written else ''}"]
    for class_id, score, box in _rows(found):
        corners = " ".join(f"{value:7.1f}" for value in box)
        lines.append(f"  {class_names[class_id]:<16} {score:.2f}  x1 y1 x2 y2: {corners}")
    return "\n".join(lines)


def check_folder(folder: Path, entries: Iterable) -> None:
    """Raise InputError if results in `folder` might replace one of the files in `entries`, as of `list_sources`."""
    folder = folder.resolve()
    for entry in entries:
        # The file may be a symbolic link in the folder, or lie there and be linked from elsewhere.
        if isinstance(entry, Path) and folder in (entry.parent.resolve(), entry.resolve().parent):
            raise InputError(f"{entry} is in the folder of the results, and might be replaced: choose another --output")


def check_json_target(target: str, folder: Path) -> None:
    """Raise InputError if the file of JSON lines would replace an image, a video or a table in `folder`."""
    path = Path(target)
    if path.suffix.lower() in IMAGE_SUFFIXES | VIDEO_SUFFIXES:
        raise InputError(f"--json {target} is an image or video: pass the name of a file to write, or - for stdout")
    if path.resolve() in (folder.resolve() / _COCO_FILE, folder.resolve() / _CSV_FILE):
        raise InputError(f"--json {target} is a file that --save json or csv writes: choose another name")


class JsonLines:
    """One JSON object per line: a frame with its objects (boxes xyxy in pixels), or a failure with its error.

    Args:
        target: a file, which is whole or absent, or `-` for stdout, line by line.
    """

    def __init__(self, target: str, class_names: Sequence[str]):
        self._class_names = class_names
        self._stack = ExitStack()
        self._file = sys.stdout if target == "-" else _open_atomically(Path(target), self._stack)

    def write(self, frame: Frame, found: Detections) -> None:
        height, width = frame.image.shape[:2]
        objects = [
            {"class": self._class_names[n], "class_id": n, "score": round(score, 4), "box": [round(x, 2) for x in xyxy]}
            for n, score, xyxy in _rows(found)
        ]
        where = {"file": frame.source.name, "frame": frame.number, "width": width, "height": height}
        self._write_line({**where, "objects": objects})

    def write_failure(self, failure: Failure) -> None:
        self._write_line({"file": failure.name, "error": failure.reason})

    def close(self) -> None:
        self._stack.close()

    def _write_line(self, value: dict) -> None:
        print(json.dumps(value), file=self._file, flush=self._file is sys.stdout)


class ResultWriters:
    """Writes frames and their detections into `folder`, in each of `formats`.

    Files are whole or absent: `close` completes them, after an interruption as well. For an image `a.jpg`, and frame 7
    of a video `b.avi`, they are

    - image: `a.jpg` with boxes drawn, and `b.mp4`
    - json: `detections.json`, COCO results. `image_id` is the image's name, here "a" and "b/000007", or the number
      that the name consists of. `category_id` is the class index + 1, as in COCO.
    - csv: `detections.csv` with the columns file, frame, class, score, x1, y1, x2, y2
    - txt: `a.txt`, `b/000007.txt`, in YOLO's format: `class cx cy width height score`, as shares of the image
    - crops: `crops/{class}/a_1.jpg`, `crops/{class}/b/000007_1.jpg`, one per detection; the best is 1

    If two sources have the same name, the second becomes `a_2`. Raises InputError for unwritable files.
    """

    def __init__(self, folder: Path, formats: Iterable[str], class_names: Sequence[str]):
        self.folder = folder
        self._names: set[str] = set()
        self._source: Source | None = None
        self._name = ""
        with ExitStack() as stack:
            self._writers = [_OPENERS[name](folder, class_names, stack) for name in formats]
            self._stack = stack.pop_all()

    def write(self, frame: Frame, found: Detections, drawn: np.ndarray | None = None) -> Path | None:
        """Write one frame; `drawn` is the annotated image, for the format `image`. Return its file, if any."""
        name = self._unique_name(frame)
        try:
            paths = [write(frame, name, found, drawn) for write in self._writers]
        except OSError as error:
            raise InputError(f"cannot write into {self.folder}: {error.strerror or error}") from error
        return next((path for path in paths if path is not None), None)

    def close(self) -> None:
        self._stack.close()

    def _unique_name(self, frame: Frame) -> str:
        """Return the name of the frame's files, without suffix; each source has its own."""
        if frame.source is not self._source:
            self._source, stem, number = frame.source, frame.source.stem, 1
            self._name = stem
            while self._name in self._names:
                number += 1
                self._name = f"{stem}_{number}"
            self._names.add(self._name)
        return self._name if frame.number is None else f"{self._name}/{frame.number:06d}"


# For each format, a function that opens what is needed, leaves its closing to `stack`, and returns a FrameWriter.


def _open_annotated(folder: Path, class_names: Sequence[str], stack: ExitStack) -> FrameWriter:
    source: Source | None = None
    videos = stack.enter_context(ExitStack())  # closes the current video
    video: VideoWriter | None = None

    def write(frame: Frame, name: str, found: Detections, drawn: np.ndarray | None) -> Path:
        nonlocal source, video
        assert drawn is not None
        if frame.source is not source:
            videos.close()
            source, video = frame.source, None
        if frame.number is None:
            path = folder / f"{name}{_image_suffix(frame)}"
            write_image(path, drawn)
            return path
        if video is None:
            path = folder / f"{PurePath(name).parent}.mp4"
            video = VideoWriter(path, frame.source.rate or DEFAULT_RATE, *drawn.shape[:2])
            videos.callback(video.close)
        video.write(drawn)
        return video.path

    return write


def _open_coco(folder: Path, class_names: Sequence[str], stack: ExitStack) -> FrameWriter:
    category_ids = {class_id: class_id + 1 for class_id, name in enumerate(class_names) if name}
    file = _open_atomically(folder / _COCO_FILE, stack)
    file.write("[")
    stack.callback(file.write, "\n]\n")
    separator = "\n"

    def write(frame: Frame, name: str, found: Detections, drawn: np.ndarray | None) -> None:
        nonlocal separator
        for result in coco_results(int(name) if name.isdecimal() else name, found, category_ids):
            file.write(separator + json.dumps(result))
            separator = ",\n"

    return write


def _open_csv(folder: Path, class_names: Sequence[str], stack: ExitStack) -> FrameWriter:
    table = csv.writer(_open_atomically(folder / _CSV_FILE, stack), lineterminator="\n")
    table.writerow(("file", "frame", "class", "score", "x1", "y1", "x2", "y2"))

    def write(frame: Frame, name: str, found: Detections, drawn: np.ndarray | None) -> None:
        for class_id, score, box in _rows(found):
            corners = (f"{value:.2f}" for value in box)
            table.writerow((frame.source.name, frame.number, class_names[class_id], f"{score:.4f}", *corners))

    return write


def _open_yolo(folder: Path, class_names: Sequence[str], stack: ExitStack) -> FrameWriter:
    def write(frame: Frame, name: str, found: Detections, drawn: np.ndarray | None) -> None:
        height, width = frame.image.shape[:2]
        lines = []
        for class_id, score, box in _rows(found):
            x1, y1, x2, y2 = np.clip(box, 0, (width, height, width, height))
            shares = (x1 + x2) / 2 / width, (y1 + y2) / 2 / height, (x2 - x1) / width, (y2 - y1) / height
            lines.append(f"{class_id} {' '.join(f'{share:.6f}' for share in shares)} {score:.4f}\n")
        with atomic_write(folder / f"{name}.txt") as temporary:
            temporary.write_text("".join(lines))

    return write


def _open_crops(folder: Path, class_names: Sequence[str], stack: ExitStack) -> FrameWriter:
    def write(frame: Frame, name: str, found: Detections, drawn: np.ndarray | None) -> None:
        height, width = frame.image.shape[:2]
        for number, (class_id, _, (x1, y1, x2, y2)) in enumerate(_rows(found), 1):
            # At least one pixel, even of a box outside the image.
            left, top = min(max(0, math.floor(x1)), width - 1), min(max(0, math.floor(y1)), height - 1)
            crop = frame.image[top : max(top + 1, math.ceil(y2)), left : max(left + 1, math.ceil(x2))]
            class_folder = re.sub(r'[\\/:*?"<>|]', "_", class_names[class_id]).strip(". ") or f"class_{class_id}"
            write_image(folder / "crops" / class_folder / f"{name}_{number}{_image_suffix(frame)}", crop)

    return write


_OPENERS: dict[str, Callable[[Path, Sequence[str], ExitStack], FrameWriter]] = {
    "image": _open_annotated,
    "json": _open_coco,
    "csv": _open_csv,
    "txt": _open_yolo,
    "crops": _open_crops,
}
SAVE_FORMATS = tuple(_OPENERS)


def _open_atomically(path: Path, stack: ExitStack) -> TextIO:
    """Open a text file that appears at `path`, whole, when `stack` is closed."""
    temporary = stack.enter_context(atomic_write(path))
    # File names may contain bytes that are not UTF-8; they are written unchanged.
    return stack.enter_context(open(temporary, "w", encoding="utf-8", errors="surrogateescape", newline=""))


def _image_suffix(frame: Frame) -> str:
    """Return the suffix for images made from this one: its own if that is an image format, else `.jpg`."""
    suffix = PurePath(frame.source.name).suffix
    return suffix if suffix.lower() in IMAGE_SUFFIXES else ".jpg"


def _rows(found: Detections) -> list[tuple[int, float, list[float]]]:
    """Return (class index, score, box xyxy) of each detection."""
    return list(zip(found.class_ids.tolist(), found.scores.tolist(), found.boxes.tolist()))
