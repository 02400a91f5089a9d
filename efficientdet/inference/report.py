"""What a run reports: text, JSON lines, files and a window for its results, and a summary."""

import json
import sys
import time
from collections import Counter
from collections.abc import Collection, Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from typing import TextIO

import numpy as np

from efficientdet.inference.pipeline import FrameResult
from efficientdet.inference.sources import Failure, Frame
from efficientdet.inference.writers import ResultWriters, annotate, open_atomically, rows
from efficientdet.structures import Detections
from utils.video import Window


class DetectionReport:
    """Prints, writes, shows and counts results. `close` completes its files.

    `json_target` is a file, whole or absent, or `-` for stdout, which then receives nothing else. Each line is one JSON
    object: a frame with its objects (boxes xyxy in pixels), or a failure with its error.
    """

    def __init__(
        self, class_names: Sequence[str], folder: Path, formats: Collection[str], json_target: str | None, show: bool
    ):
        self.messages = sys.stderr if json_target == "-" else sys.stdout
        self.counts: Counter[str] = Counter()
        self.frame: Frame | None = None  # the latest one
        self._drawn: np.ndarray | None = None  # the same, annotated, until it is shown
        self._class_names = class_names
        self._formats = formats
        self._start = time.perf_counter()
        self._json: TextIO | None = None
        with ExitStack() as stack:
            self._window = stack.enter_context(closing(Window("EfficientDet"))) if show else None
            self._writers = stack.enter_context(closing(ResultWriters(folder, formats, class_names)))
            if json_target:
                self._json = sys.stdout if json_target == "-" else open_atomically(Path(json_target), stack)
            self._stack = stack.pop_all()

    def close(self) -> None:
        self._stack.close()

    def add(self, result: FrameResult, quiet: bool = False) -> None:
        """Write and count a result. Print it, unless it is a frame and `quiet` is set."""
        if isinstance(result, Failure):
            self.counts["failure"] += 1
            print(f"error: {result.reason}", file=sys.stderr)
            self._write_json(result.name, error=result.reason)
            return
        self.frame, found = result
        self.counts["image" if self.frame.number is None else "video frame"] += 1
        self.counts["object"] += len(found)
        if self._window is not None or "image" in self._formats:
            self._drawn = annotate(self.frame.image, found, self._class_names)
        path = self._writers.write(self.frame, found, self._drawn)
        height, width = self.frame.image.shape[:2]
        objects = [
            {"class": self._class_names[n], "class_id": n, "score": round(score, 4), "box": [round(x, 2) for x in xyxy]}
            for n, score, xyxy in rows(found)
        ]
        facts = {"frame": self.frame.number, "width": width, "height": height, "objects": objects}
        self._write_json(self.frame.source.name, **facts)
        if not quiet:
            print(text_table(self.frame, found, self._class_names, path), file=self.messages, flush=True)

    def _write_json(self, name: str, **facts: object) -> None:
        if self._json is not None:
            print(json.dumps({"file": name, **facts}), file=self._json, flush=self._json is sys.stdout)

    def show(self) -> bool:
        """Show the latest frame, once, if there is a window. Return False if the user closed it."""
        drawn, self._drawn = self._drawn, None
        if drawn is None or self._window is None or self.frame is None:
            return True
        return self._window.show(drawn, wait=self.frame.number is None)

    def summary(self) -> str:
        """Return one line with the number of results and the images per second."""
        seconds = time.perf_counter() - self._start
        parts = [plural(self.counts[noun], noun) for noun in ("image", "video frame", "object", "failure")]
        rate = (self.counts["image"] + self.counts["video frame"]) / seconds
        return f"{', '.join(parts)} in {seconds:.1f} s ({rate:.1f} images and frames a second)"


def text_table(frame: Frame, found: Detections, class_names: Sequence[str], written: Path | None) -> str:
    """Return a line for the frame, and one for each detection: class, score, box in pixels of the image."""
    number = "" if frame.number is None else f" frame {frame.number}"
    height, width = frame.image.shape[:2]
    target = f" -> {written}" if written else ""
    lines = [f"{frame.source.name}{number} ({width} x {height}): {plural(len(found), 'object')}{target}"]
    for class_id, score, box in rows(found):
        corners = " ".join(f"{value:7.1f}" for value in box)
        lines.append(f"  {class_names[class_id]:<16} {score:.2f}  x1 y1 x2 y2: {corners}")
    return "\n".join(lines)


def plural(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
