"""Write detections to files: annotated images and videos, COCO and YOLO files, a table, crops."""

import csv
import json
import math
import re
from collections.abc import Collection, Iterable, Sequence
from contextlib import ExitStack
from pathlib import Path, PurePath
from typing import TextIO

import numpy as np

from efficientdet.data.results import coco_results
from efficientdet.inference.sources import Frame, Source
from efficientdet.structures import Detections
from utils.errors import InputError
from utils.files import atomic_write
from utils.images import IMAGE_SUFFIXES, write_image
from utils.video import DEFAULT_RATE, VIDEO_SUFFIXES, VideoWriter
from utils.visualize import draw_boxes

SAVE_FORMATS = ("image", "json", "csv", "txt", "crops")
_COCO_FILE, _CSV_FILE = "detections.json", "detections.csv"


def annotate(image: np.ndarray, found: Detections, class_names: Sequence[str]) -> np.ndarray:
    """Return a copy of the image with its detections drawn, the best on top."""
    weakest_first = found[found.scores.argsort()]
    class_ids = weakest_first.class_ids.tolist()
    labels = [f"{class_names[n]} {score:.2f}" for n, score in zip(class_ids, weakest_first.scores.tolist())]
    return draw_boxes(image, weakest_first.boxes.numpy(), class_ids, labels)


def check_targets(folder: Path, formats: Collection[str], json_target: str | None, entries: Iterable[object]) -> None:
    """Raise InputError if results might replace one of `entries` (as of `list_sources`), or JSON lines another file."""
    folder = folder.resolve()
    for entry in entries if "image" in formats else ():  # no other format is named like a source
        # The file may be a symbolic link in the folder, or lie there and be linked from elsewhere.
        if isinstance(entry, Path) and folder in (entry.parent.resolve(), entry.resolve().parent):
            raise InputError(f"{entry} is in the folder of the results, and might be replaced: choose another --output")
    path = Path(json_target or "-")
    if path.suffix.lower() in IMAGE_SUFFIXES | VIDEO_SUFFIXES:
        raise InputError(f"--json {path} is an image or video: pass the name of a file to write, or - for stdout")
    if path.resolve() in (folder / _COCO_FILE, folder / _CSV_FILE):
        raise InputError(f"--json {path} is a file that --save json or csv writes: choose another name")


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

    def __init__(self, folder: Path, formats: Collection[str], class_names: Sequence[str]):
        self._folder = folder
        self._class_names = class_names
        self._category_ids = {class_id: class_id + 1 for class_id, name in enumerate(class_names) if name}
        self._source: Source | None = None  # of the latest frame
        self._name = ""  # of that source's files
        self._names: set[str] = set()  # of all sources
        writers = {
            "image": self._write_annotated,
            "json": self._write_coco,
            "csv": self._write_table,
            "txt": self._write_yolo,
            "crops": self._write_crops,
        }
        self._writers = [writers[name] for name in formats]
        with ExitStack() as stack:
            if "json" in formats:
                self._coco = open_atomically(folder / _COCO_FILE, stack)
                self._coco.write("[")
                stack.callback(self._coco.write, "\n]\n")
                self._separator = "\n"
            if "csv" in formats:
                self._table = csv.writer(open_atomically(folder / _CSV_FILE, stack), lineterminator="\n")
                self._table.writerow(("file", "frame", "class", "score", "x1", "y1", "x2", "y2"))
            self._video_stack = stack.enter_context(ExitStack())  # completes the latest video
            self._stack = stack.pop_all()

    def write(self, frame: Frame, found: Detections, drawn: np.ndarray | None = None) -> Path | None:
        """Write one frame; `drawn` is the annotated image, for the format `image`. Return its file, if any."""
        if frame.source is not self._source:
            self._video_stack.close()
            self._video: VideoWriter | None = None
            self._source, self._name, number = frame.source, frame.source.stem, 1
            while self._name in self._names:
                number += 1
                self._name = f"{frame.source.stem}_{number}"
            self._names.add(self._name)
        name = self._name if frame.number is None else f"{self._name}/{frame.number:06d}"
        try:
            paths = [write(frame, name, found, drawn) for write in self._writers]
        except OSError as error:
            raise InputError(f"cannot write into {self._folder}: {error.strerror or error}") from error
        return next((path for path in paths if path is not None), None)

    def close(self) -> None:
        self._stack.close()

    # Each of these writes one frame, to files whose names begin with `name`.

    def _write_annotated(self, frame: Frame, name: str, found: Detections, drawn: np.ndarray | None) -> Path:
        assert drawn is not None
        if frame.number is None:
            path = self._folder / f"{name}{_image_suffix(frame)}"
            write_image(path, drawn)
            return path
        if self._video is None:
            path = self._folder / f"{self._name}.mp4"
            self._video = VideoWriter(path, frame.source.rate or DEFAULT_RATE, *drawn.shape[:2])
            self._video_stack.callback(self._video.close)
        self._video.write(drawn)
        return self._video.path

    def _write_coco(self, frame: Frame, name: str, found: Detections, drawn: np.ndarray | None) -> None:
        for result in coco_results(int(name) if name.isdecimal() else name, found, self._category_ids):
            self._coco.write(self._separator + json.dumps(result))
            self._separator = ",\n"

    def _write_table(self, frame: Frame, name: str, found: Detections, drawn: np.ndarray | None) -> None:
        for class_id, score, box in rows(found):
            numbers = (f"{score:.4f}", *(f"{value:.2f}" for value in box))
            self._table.writerow((frame.source.name, frame.number, self._class_names[class_id], *numbers))

    def _write_yolo(self, frame: Frame, name: str, found: Detections, drawn: np.ndarray | None) -> None:
        height, width = frame.image.shape[:2]
        lines = []
        for class_id, score, box in rows(found):
            x1, y1, x2, y2 = np.clip(box, 0, (width, height, width, height))
            shares = (x1 + x2) / 2 / width, (y1 + y2) / 2 / height, (x2 - x1) / width, (y2 - y1) / height
            lines.append(f"{class_id} {' '.join(f'{share:.6f}' for share in shares)} {score:.4f}\n")
        with atomic_write(self._folder / f"{name}.txt") as temporary:
            temporary.write_text("".join(lines))

    def _write_crops(self, frame: Frame, name: str, found: Detections, drawn: np.ndarray | None) -> None:
        height, width = frame.image.shape[:2]
        for number, (class_id, _, (x1, y1, x2, y2)) in enumerate(rows(found), 1):
            # At least one pixel, even of a box outside the image.
            left, top = min(max(0, math.floor(x1)), width - 1), min(max(0, math.floor(y1)), height - 1)
            crop = frame.image[top : max(top + 1, math.ceil(y2)), left : max(left + 1, math.ceil(x2))]
            class_folder = re.sub(r'[\\/:*?"<>|]', "_", self._class_names[class_id]).strip(". ") or f"class_{class_id}"
            write_image(self._folder / "crops" / class_folder / f"{name}_{number}{_image_suffix(frame)}", crop)


def open_atomically(path: Path, stack: ExitStack) -> TextIO:
    """Open a text file that appears at `path`, whole, when `stack` is closed."""
    temporary = stack.enter_context(atomic_write(path))
    # File names may contain bytes that are not UTF-8; they are written unchanged.
    return stack.enter_context(open(temporary, "w", encoding="utf-8", errors="surrogateescape", newline=""))


def rows(found: Detections) -> list[tuple[int, float, list[float]]]:
    """Return (class index, score, box xyxy) of each detection."""
    return list(zip(found.class_ids.tolist(), found.scores.tolist(), found.boxes.tolist()))


def _image_suffix(frame: Frame) -> str:
    """Return the suffix for images made from this one: its own if that is an image format, else `.jpg`."""
    suffix = PurePath(frame.source.name).suffix
    return suffix if suffix.lower() in IMAGE_SUFFIXES else ".jpg"
