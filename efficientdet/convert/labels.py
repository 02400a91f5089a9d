"""What every label format is read into: images with boxes, classes and faults; and how these are checked."""

import math
import os
from collections.abc import Callable, Collection
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeVar

from tqdm.contrib.concurrent import thread_map

from utils.errors import InputError
from utils.images import IMAGE_SUFFIXES, read_image

PIXEL_TOLERANCE = 1.0  # a box may reach this far beyond its image and is clipped: rounding explains it
MISSING_IMAGE = "an image that does not exist (VOC, CSV: --images names another folder)"
# What folders, files and columns call a set -> our name for it.
SET_NAMES = {
    "train": "train", "training": "train",
    "val": "val", "valid": "val", "validation": "val",
    "test": "test", "testing": "test",
}  # fmt: skip

T = TypeVar("T")


@dataclass(eq=False)
class Fault(Exception):
    """Something that cannot be converted. Readers raise it on the spot; it is collected with its image."""

    file: Path
    line: int | None
    problem: str  # what is wrong and the remedy, in the same words for all faults of a kind
    detail: str = ""  # the offending value

    def __str__(self) -> str:
        place = str(self.file) if self.line is None else f"{self.file}, line {self.line}"
        return f"{place}: {self.detail}" if self.detail else place


@dataclass(frozen=True)
class LabelledBox:
    """One object. Coordinates count from 0: the image's corners are (0, 0) and (width, height)."""

    class_name: str
    xyxy: tuple[float, float, float, float]  # pixels, or fractions of the image's sides
    line: int
    is_crowd: bool = False  # neither trained on nor evaluated


@dataclass(frozen=True)
class LabelledImage:
    """One image as its label file describes it."""

    path: Path | None  # None if the label file does not lead to an image
    file: Path  # the label file
    line: int | None
    set_name: str | None = None  # "train", "val" or "test"; None if unspecified
    size: tuple[int, int] | None = None  # (height, width); None if unspecified
    boxes: list[LabelledBox] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)
    normalised: bool = False  # whether the boxes are fractions of the image's sides


@dataclass(frozen=True)
class Labels:
    """The content of a data set's label files."""

    images: list[LabelledImage]
    class_names: list[str] | None = None  # in the order of the network's outputs; None if unspecified
    notes: list[str] = field(default_factory=list)  # sentences to print


def call_or_record(faults: list[Fault], function: Callable[..., T], *args: object) -> T | None:
    """Return `function(*args)`. If it raises a Fault, append that to `faults` and return None."""
    try:
        return function(*args)
    except Fault as fault:
        faults.append(fault)
        return None


def set_named_in(path: Path, root: Path) -> str | None:
    """Return the set that a folder between `root` and `path` is named after; the outermost wins."""
    folders = path.relative_to(root).parts[:-1]
    return next((SET_NAMES[name.lower()] for name in folders if name.lower() in SET_NAMES), None)


def files_below(folder: Path, suffixes: Collection[str] = IMAGE_SUFFIXES) -> list[Path]:
    """Return all files under `folder` with one of `suffixes`, sorted. Links are followed, hidden names skipped."""
    found = []
    for parent, folders, names in os.walk(folder, followlinks=True):
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [Path(parent, name) for name in names if not name.startswith(".")]
    return sorted(path for path in found if path.suffix.lower() in suffixes)


def read_text(path: Path) -> str:
    """Return the content of a UTF-8 text file. Raises InputError if it cannot be read."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"cannot read {path}: not UTF-8; save it as UTF-8 text") from error


def read_lines(path: Path) -> list[str]:
    """Return the stripped lines of `read_text`."""
    return [line.strip() for line in read_text(path).splitlines()]


def read_class_names(path: Path) -> list[str]:
    """Read class names from a text file, one per line. Raises InputError for empty lines and duplicates."""
    names = read_lines(path)
    while names and not names[-1]:
        names.pop()
    if not names:
        raise InputError(f"{path} is empty: write the class names into it, one per line")
    for line, name in enumerate(names, 1):
        if not name:
            raise InputError(f"{path}, line {line}: a class without a name; name it, as line numbers are class indices")
        if name in names[: line - 1]:
            raise InputError(f"{path}, line {line}: the class {name!r} is listed twice")
    return names


def finite_number(text: str, file: Path, line: int) -> float:
    """Parse a number. Raises Fault for anything else, NaN and infinity included."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise Fault(file, line, "a value that is not a number", repr(text))
    return value


def check_images(labels: Labels, clip: bool, num_threads: int) -> list[LabelledImage]:
    """Open every image and check its boxes. Returns the images with true sizes, boxes in pixels, and all faults.

    An image's size is the one in its labels if the stored pixels have that size, else its size with the EXIF
    orientation applied.

    Args:
        clip: clip boxes that reach beyond their image instead of reporting them as faults.
    """
    first: dict[tuple[str, str], LabelledImage] = {}  # of those with the same set and path
    for image in labels.images:
        first.setdefault(_key(image), image)

    def check(image: LabelledImage) -> LabelledImage:
        if image.path is None:
            return image
        faults = list(image.faults)
        size = call_or_record(faults, _true_size, image, image.path, first[_key(image)])
        if size is None:
            return replace(image, faults=faults)
        boxes = [call_or_record(faults, _check_box, image, box, size, labels.class_names, clip) for box in image.boxes]
        return replace(image, size=size, boxes=[box for box in boxes if box], faults=faults, normalised=False)

    return thread_map(
        check, labels.images, max_workers=num_threads, desc="checking images", unit="img", dynamic_ncols=True
    )


def _key(image: LabelledImage) -> tuple[str, str]:
    return image.set_name or "train", os.path.abspath(image.path) if image.path else ""


def _true_size(image: LabelledImage, path: Path, first: LabelledImage) -> tuple[int, int]:
    """Return the (height, width) of the image at `path`. Raises Fault if it is unusable or not the `first`."""
    if first is not image:
        raise Fault(image.file, image.line, "an image that is labelled twice", f"{path} is also in {first.file}")
    if not os.path.isfile(path):  # Path.is_file raises for names that are too long
        raise Fault(image.file, image.line, MISSING_IMAGE, str(path))
    try:
        height, width, _ = read_image(path, image.size).shape
    except InputError as error:
        raise Fault(image.file, image.line, "an unusable image", str(error)) from error
    return height, width


def _check_box(
    image: LabelledImage, box: LabelledBox, size: tuple[int, int], class_names: list[str] | None, clip: bool
) -> LabelledBox:
    """Return a box in pixels, clipped to the (height, width) `size` of its image."""
    if class_names is not None and box.class_name not in class_names:
        raise Fault(image.file, box.line, "a class that is not in the list of classes", repr(box.class_name))
    height, width = size
    x1, y1, x2, y2 = box.xyxy
    if image.normalised:
        x1, y1, x2, y2 = x1 * width, y1 * height, x2 * width, y2 * height
    shown = f"x1 y1 x2 y2 = {x1:g} {y1:g} {x2:g} {y2:g} in {width} x {height} pixels"
    if max(-x1, -y1, x2 - width, y2 - height) > PIXEL_TOLERANCE and not clip:
        raise Fault(image.file, box.line, "a box that reaches beyond its image: correct it, or pass --clip", shown)
    x1, y1, x2, y2 = max(x1, 0), max(y1, 0), min(x2, width), min(y2, height)
    if x1 >= x2 or y1 >= y2:
        raise Fault(image.file, box.line, "a box without width or height inside its image", shown)
    return replace(box, xyxy=(x1, y1, x2, y2))
