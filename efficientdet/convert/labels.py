"""What every label format is read into: images with boxes, classes and faults; and how these are checked."""

import os
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeVar

from tqdm.contrib.concurrent import thread_map

from utils.errors import InputError
from utils.images import read_image

PIXEL_TOLERANCE = 1.0  # a box may reach this far beyond its image and is clipped: rounding explains it
MISSING_IMAGE = "an image that does not exist (VOC, CSV: --images names another folder)"
T = TypeVar("T")


@dataclass(eq=False)
class Fault(Exception):
    """Something that cannot be converted. Readers raise it on the spot; it is recorded with its image."""

    place: str  # file and line
    problem: str  # what is wrong and the remedy, in the same words for all faults of a kind
    detail: str = ""  # the offending value

    def __str__(self) -> str:
        return f"{self.place}: {self.detail}" if self.detail else self.place


@dataclass(frozen=True)
class LabeledBox:
    """One object. Coordinates count from 0: the image's corners are (0, 0) and (width, height)."""

    class_name: str
    xyxy: tuple[float, float, float, float]  # pixels, or fractions of the image's sides
    place: str  # file and line
    is_crowd: bool = False  # neither trained on nor evaluated


@dataclass(frozen=True)
class LabeledImage:
    """One image as its label file describes it."""

    path: Path | None  # None if the label file does not lead to an image
    place: str  # label file and line
    set_name: str | None = None  # "train", "val" or "test"; None if unspecified
    size: tuple[int, int] | None = None  # (height, width); None if unspecified
    boxes: list[LabeledBox] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)
    normalized: bool = False  # whether the boxes are fractions of the image's sides


@dataclass(frozen=True)
class Labels:
    """The content of a data set's label files."""

    images: list[LabeledImage]
    class_names: list[str] | None = None  # in the order of the network's outputs; None if unspecified
    notes: list[str] = field(default_factory=list)  # sentences to print


def call_or_record(faults: list[Fault], function: Callable[..., T], *args: object) -> T | None:
    """Return `function(*args)`. If it raises a Fault, append that to `faults` and return None."""
    try:
        return function(*args)
    except Fault as fault:
        faults.append(fault)
        return None


def check_images(labels: Labels, clip: bool, num_threads: int) -> list[LabeledImage]:
    """Open every image and check its boxes. Returns the images with true sizes, boxes in pixels, and all faults.

    An image's size is the one in its labels if the stored pixels have that size, else its size with the EXIF
    orientation applied. With `clip`, boxes that reach beyond their image are clipped instead of reported.
    """
    by_key: dict[tuple[str, str], LabeledImage] = {}  # the first of those with the same set and path
    keys = [(image.set_name or "train", os.path.abspath(image.path) if image.path else "") for image in labels.images]
    first = [by_key.setdefault(key, image) for key, image in zip(keys, labels.images)]

    def check(image: LabeledImage, first: LabeledImage) -> LabeledImage:
        if image.path is None:
            return image
        faults = list(image.faults)
        size = call_or_record(faults, _true_size, image, image.path, first)
        if size is None:
            return replace(image, faults=faults)
        boxes = [call_or_record(faults, _check_box, image, box, size, labels.class_names, clip) for box in image.boxes]
        return replace(image, size=size, boxes=[*filter(None, boxes)], faults=faults, normalized=False)

    bar = {"desc": "checking images", "unit": "img", "dynamic_ncols": True}
    return thread_map(check, labels.images, first, max_workers=num_threads, **bar)


def _true_size(image: LabeledImage, path: Path, first: LabeledImage) -> tuple[int, int]:
    """Return the (height, width) of the image at `path`. Raises Fault if it is unusable or not the `first`."""
    if first is not image:
        raise Fault(image.place, "an image that is labeled twice", f"{path} is also in {first.place}")
    if not os.path.isfile(path):  # Path.is_file raises for names that are too long
        raise Fault(image.place, MISSING_IMAGE, str(path))
    try:
        height, width, _ = read_image(path, image.size).shape
    except InputError as error:
        raise Fault(image.place, "an unusable image", str(error)) from error
    return height, width


def _check_box(
    image: LabeledImage, box: LabeledBox, size: tuple[int, int], class_names: list[str] | None, clip: bool
) -> LabeledBox:
    """Return a box in pixels, clipped to the (height, width) `size` of its image."""
    if class_names is not None and box.class_name not in class_names:
        raise Fault(box.place, "a class that is not in the list of classes", repr(box.class_name))
    height, width = size
    x1, y1, x2, y2 = box.xyxy
    if image.normalized:
        x1, y1, x2, y2 = x1 * width, y1 * height, x2 * width, y2 * height
    shown = f"x1 y1 x2 y2 = {x1:g} {y1:g} {x2:g} {y2:g} in {width} x {height} pixels"
    if max(-x1, -y1, x2 - width, y2 - height) > PIXEL_TOLERANCE and not clip:
        raise Fault(box.place, "a box that reaches beyond its image: correct it, or pass --clip", shown)
    x1, y1, x2, y2 = max(x1, 0), max(y1, 0), min(x2, width), min(y2, height)
    if x1 >= x2 or y1 >= y2:
        raise Fault(box.place, "a box without width or height inside its image", shown)
    return replace(box, xyxy=(x1, y1, x2, y2))
