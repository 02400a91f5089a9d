"""What makes readable data bad data: rules on boxes, classes and files that need no look at the pixels."""

import filecmp
import os
from collections.abc import Iterator, Sequence

import numpy as np

from efficientdet.check.objects import Objects
from efficientdet.data.annotations import AnnotatedSet
from efficientdet.data.findings import Finding, Level
from efficientdet.data.transforms import MIN_BOX_SIDE
from efficientdet.model.loss import POSITIVE_IOU
from utils.images import IMAGE_SUFFIXES

OUTSIDE_TOLERANCE = 1  # pixels by which a box may reach out of its image: annotators round, some count from 1


SMALL_SIDE = 4  # pixels of the network's input; half a cell of the finest pyramid level


LEAST_COVERAGE = 0.9


def quick_findings(annotated: AnnotatedSet, objects: Objects) -> Iterator[Finding]:
    """What the annotations alone tell of a set."""
    yield from box_findings(annotated)
    yield from repeated_boxes(annotated)
    yield from class_findings(annotated)
    yield from small_objects(annotated, objects)
    yield from coverage_findings(annotated, objects)


def box_findings(annotated: AnnotatedSet) -> Iterator[Finding]:
    """Boxes that are none, and boxes outside of their images."""
    boxes = annotated.boxes
    x, y, width, height = boxes.xywh.T
    image_height, image_width = annotated.sizes[boxes.images].T
    least = np.minimum(width, height)
    sized = (image_height > 0) & (image_width > 0) & (least >= MIN_BOX_SIDE)
    beyond = np.max((-x, -y, x + width - image_width, y + height - image_height), axis=0)
    outside = (x >= image_width) | (y >= image_height) | (x + width <= 0) | (y + height <= 0)
    rules: Sequence[tuple[Level, str, np.ndarray, str]] = (
        (
            "error",
            "boxes of negative width or height",
            least < 0,
            "training leaves it out; it must be [x, y, width, height], not two corners",
        ),
        (
            "warning",
            "boxes narrower or lower than a pixel",
            (least >= 0) & (least < MIN_BOX_SIDE),
            "training leaves it out; remove it, or write it in pixels if it is in parts of the image",
        ),
        (
            "error",
            "boxes outside of their images",
            sized & outside,
            "it must be [x, y, width, height] in pixels of the image; correct or remove it",
        ),
        (
            "warning",
            "boxes that reach out of their images",
            sized & ~outside & (beyond > OUTSIDE_TOLERANCE),
            "detections end at the border, so cut it there; "
            "if there are many, make sure that they are [x, y, width, height], not two corners",
        ),
    )
    for level, kind, faulty, advice in rules:
        for row in np.flatnonzero(faulty).tolist():
            bbox = ", ".join(f"{value:g}" for value in boxes.xywh[row])
            size = f" in {image_width[row]} x {image_height[row]} pixels" if sized[row] else ""
            yield _on_box(level, kind, annotated, row, f"has the bbox [{bbox}]{size}", advice)


def repeated_boxes(annotated: AnnotatedSet) -> Iterator[Finding]:
    """Boxes that their image has twice, with the same class."""
    boxes = annotated.boxes
    columns = (*boxes.xywh.T, boxes.class_ids, boxes.images)
    order = np.lexsort(columns)  # stable: of equal rows the first comes first
    equal = np.all([column[order[1:]] == column[order[:-1]] for column in columns], axis=0)
    pairs = zip(order[1:][equal].tolist(), order[:-1][equal].tolist())
    for row, earlier in sorted(pairs):
        message = f"repeats annotation {boxes.annotation_ids[earlier]!r}"
        yield _on_box(
            "warning",
            "boxes that are there twice",
            annotated,
            row,
            message,
            "one of the two counts as missed in every evaluation; remove it",
        )


def class_findings(annotated: AnnotatedSet) -> Iterator[Finding]:
    """Classes that the set cannot teach."""
    counts = class_counts(annotated)
    for class_id, name in enumerate(annotated.project.class_names):
        if name and class_id not in annotated.category_ids:
            yield Finding(
                "warning",
                "classes without a category",
                annotated.annotation_file,
                "",
                f"has no category {name!r}, which obj_list of {annotated.project.path} names",
                "write the category's name the same in both, or take the class out",
            )
        elif name and not counts[class_id] and counts.any():
            yield Finding(
                "warning",
                "classes without a box",
                annotated.annotation_file,
                "",
                f"has no box of {name!r}",
                "what is not shown is not learnt, nor measured; add images of it",
            )


def class_counts(annotated: AnnotatedSet) -> np.ndarray:
    """The number of learnable boxes of each class: (C,)."""
    class_ids = annotated.boxes.class_ids[annotated.boxes.learnable]
    return np.bincount(class_ids[class_ids >= 0], minlength=annotated.project.num_classes)


def small_objects(annotated: AnnotatedSet, objects: Objects) -> Iterator[Finding]:
    """Objects of which the network sees a few pixels only."""
    small = objects.sides.prod(axis=1) < SMALL_SIDE**2
    height, width = objects.canvas
    for row, sides in zip(objects.rows[small], objects.sides[small]):
        yield _on_box(
            "warning",
            f"objects of less than {SMALL_SIDE} x {SMALL_SIDE} pixels at the input's size",
            annotated,
            row,
            f"is {sides[0]:.1f} x {sides[1]:.1f} pixels at {width} x {height}",
            "it is hardly learnt, and costs average precision; take a larger --image_size, or cut the images up",
        )


def coverage_findings(annotated: AnnotatedSet, objects: Objects) -> Iterator[Finding]:
    """Whether the project's anchors reach the boxes."""
    reached = objects.best_ious >= POSITIVE_IOU
    if len(reached) and reached.mean() < LEAST_COVERAGE:
        side = np.median(np.sqrt(objects.sides[~reached].prod(axis=1)))
        height, width = objects.canvas
        yield Finding(
            "warning",
            "sets with boxes that no anchor reaches",
            annotated.annotation_file,
            "",
            f"has {1 - reached.mean():.1%} of boxes that overlap no anchor by IoU {POSITIVE_IOU}; their median size is "
            f"{side:.0f} pixels at {width} x {height}",
            "such boxes are hardly learnt; take another --image_size, or other anchors_scales and anchors_ratios in "
            f"{annotated.project.path} (python -m efficientdet.check --anchors proposes some)",
        )


def empty_images(annotated: AnnotatedSet) -> Iterator[Finding]:
    """Images without anything to learn."""
    filled = set(annotated.boxes.images[annotated.boxes.learnable].tolist())
    for index in range(len(annotated.images)):
        if index not in filled:
            yield on_image(
                "warning",
                "images without boxes",
                annotated,
                index,
                "has no box",
                "well so if nothing of obj_list is in it: training learns from it what is no object; else annotate it",
            )


def unlisted_images(sets: Sequence[AnnotatedSet]) -> Iterator[Finding]:
    """Images that no annotation file of the sets lists, though they lie in a set's folder."""
    folders = {annotated.image_folder.resolve(): annotated.image_folder for annotated in sets}
    for real_folder, folder in folders.items():
        listed = {
            os.path.normpath(name)
            for annotated in sets
            if annotated.image_folder.resolve() == real_folder
            for name in annotated.listed
        }
        present = {
            os.path.relpath(os.path.join(root, name), folder)
            for root, _, names in os.walk(folder)
            for name in names
            if os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES
        }
        for name in sorted(present - listed):
            yield Finding(
                "warning",
                "images that no annotation file lists",
                folder / name,
                "",
                "is in no annotation file",
                "it is not used; add its entry (without boxes if nothing is in it), or remove the image",
            )


def equal_files(train: AnnotatedSet, val: AnnotatedSet) -> list[tuple[int, int]]:
    """Pairs of images, one of each set, whose images have the same file name and the same bytes."""
    index_of = {image["file_name"]: index for index, image in enumerate(train.images) if train.present[index]}
    pairs = [
        (index_of[image["file_name"]], index)
        for index, image in enumerate(val.images)
        if val.present[index] and image["file_name"] in index_of
    ]
    return [(i, j) for i, j in pairs if filecmp.cmp(train.image_path(i), val.image_path(j), shallow=False)]


def overlap_findings(
    train: AnnotatedSet, val: AnnotatedSet, equal_images: Sequence[tuple[int, int]]
) -> Iterator[Finding]:
    """Images to validate on that are trained on, too. `equal_images` are their positions in the two sets."""
    if train.annotation_file == val.annotation_file:
        yield Finding(
            "warning",
            "sets that are the same",
            train.project.path,
            "",
            f"has {train.name!r} as train_set and as val_set",
            "what is measured on it says nothing about new images",
        )
        return
    for train_index, val_index in equal_images:
        yield on_image(
            "error",
            "images that are trained on and validated on",
            val,
            val_index,
            f"is the same image as {train.image_path(train_index)}",
            "what is measured on it says nothing about new images; take it out of one of the sets",
        )


def shared_names(train: AnnotatedSet, val: AnnotatedSet, equal_images: Sequence[tuple[int, int]]) -> Iterator[Finding]:
    """Images to validate on that have the file name of another image to train on."""
    equal = {val_index for _, val_index in equal_images}
    names = {image["file_name"] for image in train.images}
    for index, image in enumerate(val.images):
        if image["file_name"] in names and index not in equal:
            yield on_image(
                "warning",
                "file names that both sets have, for different images",
                val,
                index,
                f"has the name of another image in {train.image_folder}",
                "harmless while the folders stay apart; make sure that it is no other version of the same image",
            )


def on_image(level: Level, kind: str, annotated: AnnotatedSet, index: int, message: str, advice: str) -> Finding:
    """A finding on an image of a set."""
    subject = f"image {annotated.images[index]['id']!r}"
    return Finding(level, kind, annotated.image_path(index), subject, message, advice)


def _on_box(level: Level, kind: str, annotated: AnnotatedSet, row: int, message: str, advice: str) -> Finding:
    index = annotated.boxes.images[row]
    subject = f"annotation {annotated.boxes.annotation_ids[row]!r} of image {annotated.images[index]['id']!r}"
    return Finding(level, kind, annotated.image_path(index), subject, message, advice)
