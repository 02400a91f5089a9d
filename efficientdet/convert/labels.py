"""What label files of any format say: images with their boxes, and faults with file and line; and checking it."""

import math
import os
from collections.abc import Callable, Collection
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeVar

from tqdm.contrib.concurrent import thread_map

from utils.errors import InputError
from utils.images import IMAGE_SUFFIXES, read_image

ROUNDING = 1.0  # pixels that a box may reach beyond its image; it is clipped

T = TypeVar("T")

# What folders, files and columns call the three sets of a data set.
SET_NAMES = {
    "train": "train", "training": "train",
    "val": "val", "valid": "val", "validation": "val",
    "test": "test", "testing": "test",
}  # fmt: skip
MISSING_IMAGE = "an image that is not there (for VOC and CSV, --images names another folder)"


@dataclass(eq=False)
class Fault(Exception):
    """Something that cannot be converted. Readers raise it where they meet it and collect it in the image's list."""

    file: Path
    line: int | None
    problem: str  # what and what to do, in the same words for all of its kind
    detail: str = ""  # the value at fault

    def __str__(self) -> str:
        place = str(self.file) if self.line is None else f"{self.file}, line {self.line}"
        return f"{place}: {self.detail}" if self.detail else place


@dataclass(frozen=True)
class LabelledBox:
    """One object. Pixels are counted from 0: the image's corners are (0, 0) and (width, height)."""

    class_name: str
    xyxy: tuple[float, float, float, float]  # pixels, or shares of the image's sides
    line: int
    is_crowd: bool = False  # neither trained on nor evaluated


@dataclass(frozen=True)
class LabelledImage:
    """One image, as its label file describes it."""

    path: Path | None  # None when the label file does not lead to an image
    file: Path  # where the label is
    line: int | None
    set_name: str | None = None  # "train", "val", "test"; None when the labels do not say
    size: tuple[int, int] | None = None  # (height, width); None when the labels do not say
    boxes: list[LabelledBox] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)
    normalised: bool = False  # whether boxes are shares of the image's sides


@dataclass(frozen=True)
class Labels:
    """All that the label files of a data set say."""

    pictures: list[LabelledImage]
    class_names: list[str] | None = None  # in the network's order; None when the labels do not say
    notes: list[str] = field(default_factory=list)  # sentences that the user should read


def attempt(faults: list[Fault], read: Callable[..., T], *args: object) -> T | None:
    """What `read(*args)` gives; None when it raises a Fault, which then joins `faults`."""
    try:
        return read(*args)
    except Fault as fault:
        faults.append(fault)
        return None


def set_named_in(path: Path, root: Path) -> str | None:
    """The set that the first folder between `root` and `path` with such a name stands for."""
    parts = path.relative_to(root).parts[:-1]
    return next((SET_NAMES[part.lower()] for part in parts if part.lower() in SET_NAMES), None)


def files_below(folder: Path, suffixes: Collection[str] = IMAGE_SUFFIXES) -> list[Path]:
    """All files in `folder` and the folders in it, links followed, whose suffix is one of these; nothing hidden."""
    found = []
    for parent, folders, names in os.walk(folder, followlinks=True):
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [Path(parent, name) for name in names if not name.startswith(".")]
    return sorted(path for path in found if path.suffix.lower() in suffixes)


def read_lines(path: Path) -> list[str]:
    """The lines of the text file `path`, without white space at their ends. InputError when it cannot be read."""
    try:
        return [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines()]
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"cannot read {path}: it is not UTF-8 text; save it as such") from error


def read_class_names(path: Path) -> list[str]:
    """The class names in the text file `path`, one a line. InputError for an empty line or a name that occurs twice."""
    names = read_lines(path)
    while names and not names[-1]:
        names.pop()
    if not names:
        raise InputError(f"{path} is empty: it must hold the class names, one a line")
    for line, name in enumerate(names, 1):
        if not name:
            raise InputError(f"{path}, line {line}: the line is empty, but its number stands for a class: name it")
        if name in names[: line - 1]:
            raise InputError(f"{path}, line {line}: the class {name!r} is named twice")
    return names


def finite_number(text: str, file: Path, line: int) -> float:
    """`text` as a number. Fault when it is none."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise Fault(file, line, "a value that is not a number", repr(text))
    return value


def check_images(labels: Labels, clip: bool, num_threads: int) -> list[LabelledImage]:
    """The images with their true sizes and boxes in pixels within these, and a fault for whatever does not fit.

    An image's size is the one that its labels give, when it is that of the stored pixels, else that of the image as
    a person sees it. With `clip`, boxes that reach beyond their image are cut, instead of being a fault.
    """

    def key(set_name: str | None, path: Path) -> tuple[str, str]:
        return set_name or "train", os.path.abspath(path)

    first: dict[tuple[str, str], LabelledImage] = {}
    for picture in labels.pictures:
        if picture.path:
            first.setdefault(key(picture.set_name, picture.path), picture)

    def check(picture: LabelledImage) -> LabelledImage:
        if picture.path is None:
            return picture
        first_alike = first[key(picture.set_name, picture.path)]
        return _check_image(picture, picture.path, first_alike, labels.class_names, clip)

    return thread_map(
        check, labels.pictures, max_workers=num_threads, desc="checking the images", unit="img", dynamic_ncols=True
    )


def _check_image(
    picture: LabelledImage, path: Path, first: LabelledImage, class_names: list[str] | None, clip: bool
) -> LabelledImage:
    """The image at `path`, checked; `first` is the first of its set with the same path."""
    faults = list(picture.faults)

    def with_fault(problem: str, detail: str) -> LabelledImage:
        return replace(picture, faults=[*faults, Fault(picture.file, picture.line, problem, detail)])

    if first is not picture:
        return with_fault("an image that is labelled twice", f"{path} is also in {first.file}")
    if not os.path.isfile(path):  # Path's own raises for names that are too long
        return with_fault(MISSING_IMAGE, str(path))
    try:
        size = read_image(path, picture.size).shape[:2]
    except InputError as error:
        return with_fault("an image that cannot be used", str(error))
    scale = size if picture.normalised else (1, 1)
    boxes = [attempt(faults, _check_box, picture.file, box, scale, size, class_names, clip) for box in picture.boxes]
    return replace(picture, size=size, boxes=[box for box in boxes if box], faults=faults, normalised=False)


def _check_box(
    file: Path,
    box: LabelledBox,
    scale: tuple[int, int],
    size: tuple[int, int],
    class_names: list[str] | None,
    clip: bool,
) -> LabelledBox:
    """The box times the (vertical, horizontal) `scale`, clipped to the (height, width) `size` of its image."""
    if class_names is not None and box.class_name not in class_names:
        raise Fault(file, box.line, "a class that is not in the list of classes", repr(box.class_name))
    height, width = size
    x1, y1, x2, y2 = (value * side for value, side in zip(box.xyxy, scale[::-1] * 2))
    told = f"x1 y1 x2 y2 = {x1:g} {y1:g} {x2:g} {y2:g} in {width} x {height} pixels"
    if max(-x1, -y1, x2 - width, y2 - height) > ROUNDING and not clip:
        raise Fault(file, box.line, "a box that reaches beyond its image: correct it, or pass --clip", told)
    x1, y1, x2, y2 = max(x1, 0), max(y1, 0), min(x2, width), min(y2, height)
    if x1 >= x2 or y1 >= y2:
        raise Fault(file, box.line, "a box without width or height in its image", told)
    return replace(box, xyxy=(x1, y1, x2, y2))
