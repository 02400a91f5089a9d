"""Rules on annotations, classes and files. None of them decodes an image."""

import filecmp
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from efficientdet.check.objects import Objects
from efficientdet.data.annotations import AnnotatedSet
from efficientdet.data.findings import Finding, Level
from efficientdet.data.transforms import MIN_BOX_SIDE
from efficientdet.model.loss import POSITIVE_IOU
from utils.images import IMAGE_SUFFIXES

OUTSIDE_TOLERANCE = 1  # pixels that a box may exceed its image by: annotators round, and some count from 1
SMALL_SIDE = 4  # pixels of the network's input: half a cell of the finest pyramid level
MIN_COVERAGE, MIN_CLASS_COVERAGE = 0.9, 0.5  # average precision counts rare classes as much as the others


class Rule(NamedTuple):
    """A kind of fault, and what to do about it."""

    level: Level
    kind: str  # in the plural
    advice: str

    def on_file(self, file: Path, message: str, subject: str = "") -> Finding:
        return Finding(self.level, self.kind, file, subject, message, self.advice)

    def on_image(self, annotated: AnnotatedSet, index: int, message: str) -> Finding:
        return self.on_file(annotated.image_path(index), message, f"image {annotated.images[index]['id']!r}")

    def on_box(self, annotated: AnnotatedSet, row: int, message: str) -> Finding:
        index = annotated.boxes.images[row]
        subject = f"annotation {annotated.boxes.annotation_ids[row]!r} of image {annotated.images[index]['id']!r}"
        return self.on_file(annotated.image_path(index), message, subject)


NEGATIVE_BOX = Rule("error", "boxes of negative size", "not trained on; use [x, y, width, height], not two corners")
THIN_BOX = Rule("warning", "boxes thinner than a pixel", "not trained on; remove it, or convert fractions to pixels")
BOX_OUTSIDE = Rule("error", "boxes outside of their images", "use [x, y, width, height] in pixels, or remove it")
BOX_ACROSS_BORDER = Rule(
    "warning", "boxes across the border of their images", "clip it; many may be two corners, not [x, y, width, height]"
)
DUPLICATE_BOX = Rule("warning", "duplicate boxes", "one of the two counts as missed in every evaluation; remove it")
NO_CATEGORY = Rule("warning", "classes without a category", "use the same name in both files, or remove the class")
NO_BOX = Rule("warning", "classes without a box", "it is neither learned nor evaluated; add images of it")
SMALL_OBJECT = Rule(
    "warning",
    f"objects below {SMALL_SIDE} x {SMALL_SIDE} pixels at the input size",
    "it is hard to learn and costs average precision; use a larger --image_size, or cut the images into tiles",
)
LOW_COVERAGE = Rule(
    "warning",
    "sets with boxes that no anchor matches",
    "such boxes are hard to learn; use another --image_size, or other anchors_scales and anchors_ratios "
    "(python -m efficientdet.check --anchors proposes some)",
)
EMPTY_IMAGE = Rule("warning", "images without boxes", "annotate it, unless it shows no object and teaches background")
UNLISTED_IMAGE = Rule("warning", "unlisted images", "it is not used; list it (without boxes if empty) or remove it")
SAME_SET = Rule("warning", "sets that are the same", "results on training images say nothing about new ones")
IN_BOTH_SETS = Rule("error", "images in both sets", "evaluation must be on new images; remove it from one of the sets")
SAME_FILE_NAME = Rule("warning", "file names in both sets", "harmless, unless it is another version of the same image")


def annotation_findings(annotated: AnnotatedSet, objects: Objects) -> Iterator[Finding]:
    """Find faults that the annotations of a set show without its images: boxes, classes, objects at the input size."""
    yield from box_findings(annotated)
    file, counts = annotated.annotation_file, class_counts(annotated)
    for class_id, name in enumerate(annotated.project.class_names):
        if name and class_id not in annotated.category_ids:
            yield NO_CATEGORY.on_file(file, f"has no category {name!r} of obj_list in {annotated.project.path}")
        elif name and not counts[class_id] and counts.any():
            yield NO_BOX.on_file(file, f"has no box of {name!r}")
    yield from object_findings(annotated, objects)


def box_findings(annotated: AnnotatedSet) -> Iterator[Finding]:
    """Find boxes without a size, boxes outside of their images, and repetitions in the same image and class."""
    boxes = annotated.boxes
    x, y, width, height = boxes.xywh.T
    image_height, image_width = annotated.sizes[boxes.images].T
    shorter = np.minimum(width, height)
    checked = (image_height > 0) & (image_width > 0) & (shorter >= MIN_BOX_SIDE)
    excess = np.max((-x, -y, x + width - image_width, y + height - image_height), axis=0)
    outside = (x >= image_width) | (y >= image_height) | (x + width <= 0) | (y + height <= 0)
    for rule, faulty in (
        (NEGATIVE_BOX, shorter < 0),
        (THIN_BOX, (shorter >= 0) & (shorter < MIN_BOX_SIDE)),
        (BOX_OUTSIDE, checked & outside),
        (BOX_ACROSS_BORDER, checked & ~outside & (excess > OUTSIDE_TOLERANCE)),
    ):
        for row in np.flatnonzero(faulty).tolist():
            bbox = ", ".join(f"{value:g}" for value in boxes.xywh[row])
            size = f" in {image_width[row]} x {image_height[row]} pixels" if checked[row] else ""
            yield rule.on_box(annotated, row, f"has the bbox [{bbox}]{size}")
    columns = (*boxes.xywh.T, boxes.class_ids, boxes.images)
    order = np.lexsort(columns)  # stable: equal rows stay in the order of the file
    equal = np.all([column[order[1:]] == column[order[:-1]] for column in columns], axis=0)
    for row, earlier in sorted(zip(order[1:][equal].tolist(), order[:-1][equal].tolist())):
        yield DUPLICATE_BOX.on_box(annotated, row, f"repeats annotation {boxes.annotation_ids[earlier]!r}")


def class_counts(annotated: AnnotatedSet) -> np.ndarray:
    """Return the number of boxes to learn of each class: (C,)."""
    class_ids = annotated.boxes.class_ids[annotated.boxes.learnable]
    return np.bincount(class_ids[class_ids >= 0], minlength=annotated.project.num_classes)


def object_findings(annotated: AnnotatedSet, objects: Objects) -> Iterator[Finding]:
    """Find objects of only a few pixels at the input size, and sets or classes with boxes that no anchor matches."""
    input_size = f"{objects.canvas[1]} x {objects.canvas[0]}"
    areas = objects.sides.prod(axis=1)
    small = areas < SMALL_SIDE**2
    for row, (width, height) in zip(objects.rows[small], objects.sides[small]):
        yield SMALL_OBJECT.on_box(annotated, row, f"is {width:.1f} x {height:.1f} pixels at {input_size}")
    matched, class_ids = objects.best_ious >= POSITIVE_IOU, annotated.boxes.class_ids[objects.rows]
    groups = [("its boxes", np.ones_like(matched), MIN_COVERAGE)]
    for class_id in np.unique(class_ids[class_ids >= 0]):
        groups.append((f"its {annotated.project.class_names[class_id]}", class_ids == class_id, MIN_CLASS_COVERAGE))
    for name, members, minimum in groups:
        if members.any() and matched[members].mean() < minimum:
            share = f"{1 - matched[members].mean():.1%} of {name} below IoU {POSITIVE_IOU}"
            side = f"{np.median(np.sqrt(areas[members & ~matched])):.0f} pixels at {input_size}"
            message = f"has {share} with every anchor of {annotated.project.path}; their median size is {side}"
            yield LOW_COVERAGE.on_file(annotated.annotation_file, message)


def empty_images(annotated: AnnotatedSet) -> Iterator[Finding]:
    """Find images without a box to learn."""
    filled = np.unique(annotated.boxes.images[annotated.boxes.learnable])
    for index in np.setdiff1d(np.arange(len(annotated.images)), filled).tolist():
        yield EMPTY_IMAGE.on_image(annotated, index, "has no box")


def unlisted_images(sets: Sequence[AnnotatedSet]) -> Iterator[Finding]:
    """Find images in the folders of the sets that none of their annotation files lists."""
    listed: dict[Path, set[str]] = {}
    for annotated in sets:
        listed.setdefault(annotated.image_folder.resolve(), set()).update(map(os.path.normpath, annotated.listed))
    for folder in {annotated.image_folder.resolve(): annotated.image_folder for annotated in sets}.values():
        present = {
            os.path.relpath(os.path.join(root, name), folder)
            for root, _, names in os.walk(folder)
            for name in names
            if os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES
        }
        for name in sorted(present - listed[folder.resolve()]):
            yield UNLISTED_IMAGE.on_file(folder / name, "is in no annotation file")


def same_files(train: AnnotatedSet, val: AnnotatedSet) -> list[tuple[int, int]]:
    """Return the pairs of positions in two sets whose image files have the same name and the same bytes."""
    index_of = {image["file_name"]: index for index, image in enumerate(train.images) if train.present[index]}
    names = [(image["file_name"], index) for index, image in enumerate(val.images) if val.present[index]]
    pairs = [(index_of[name], index) for name, index in names if name in index_of]
    return [(i, j) for i, j in pairs if filecmp.cmp(train.image_path(i), val.image_path(j), shallow=False)]


def shared_images(train: AnnotatedSet, val: AnnotatedSet, pairs: Sequence[tuple[int, int]]) -> Iterator[Finding]:
    """Find validation images that are also trained on. `pairs` are positions of equal images in the two sets."""
    if train.annotation_file == val.annotation_file:
        yield SAME_SET.on_file(train.project.path, f"has {train.name!r} as train_set and as val_set")
        return
    for train_index, val_index in pairs:
        yield IN_BOTH_SETS.on_image(val, val_index, f"is the same image as {train.image_path(train_index)}")


def shared_file_names(train: AnnotatedSet, val: AnnotatedSet, pairs: Sequence[tuple[int, int]]) -> Iterator[Finding]:
    """Find validation images with the file name of a different training image. `pairs` as in `shared_images`."""
    equal = {val_index for _, val_index in pairs}
    names = {image["file_name"] for image in train.images}
    for index, image in enumerate(val.images):
        if image["file_name"] in names and index not in equal:
            yield SAME_FILE_NAME.on_image(val, index, f"has the name of another image in {train.image_folder}")
