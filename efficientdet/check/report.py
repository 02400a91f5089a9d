"""Describe a data set in text: its images, boxes and anchors, for the data check and before training."""

from collections.abc import Iterable

import numpy as np

from efficientdet.check.objects import Objects, objects_on_canvas
from efficientdet.check.rules import SMALL_SIDE, annotation_findings, class_counts, same_files, shared_images
from efficientdet.config import ModelConfig
from efficientdet.data.annotations import AnnotatedSet
from efficientdet.data.dataset import CocoDataset
from efficientdet.data.findings import Finding, format_short, group_by_kind
from efficientdet.model.loss import POSITIVE_IOU

_PERCENTILES = {"min": 0, "5 %": 5, "25 %": 25, "50 %": 50, "75 %": 75, "95 %": 95, "max": 100}


def report_before_training(train_set: CocoDataset, val_set: CocoDataset, config: ModelConfig) -> str:
    """Return `data_report` of both sets, the images they share, and the command for more if there is a warning."""
    train, val = train_set.annotated, val_set.annotated
    lines = [data_report(train_set, config), data_report(val_set, config)]
    lines += _warnings(shared_images(train, val, same_files(train, val)))
    if any("warning: " in line for line in lines):
        lines.append(f"python -m efficientdet.check -p {train.project.path} says more, and checks the images, too")
    return "\n".join(lines)


def data_report(dataset: CocoDataset, config: ModelConfig) -> str:
    """Return lines on a set's images, boxes per class, the share of boxes that an anchor matches, and warnings."""
    annotated = dataset.annotated
    objects = objects_on_canvas(annotated, dataset.canvas, config)
    counts = zip(dataset.project.class_names, class_counts(annotated))
    lines = [headline(annotated), f"  {', '.join(f'{name} {count:,}' for name, count in counts if name)}"]
    if len(objects.rows):
        coverage = (objects.best_ious >= POSITIVE_IOU).mean()
        height, width = objects.canvas
        lines.append(f"  {coverage:.1%} of the boxes match an anchor (IoU >= {POSITIVE_IOU}) at {width} x {height}")
    return "\n".join(lines + _warnings(annotation_findings(annotated, objects)))


def headline(annotated: AnnotatedSet) -> str:
    """Return a line with the numbers of images and boxes of a set."""
    learnable = annotated.boxes.learnable
    empty = len(annotated.images) - len(np.unique(annotated.boxes.images[learnable]))
    return f"{annotated.name}: {len(annotated.images):,} images ({empty:,} without objects), {learnable.sum():,} boxes"


def box_tables(annotated: AnnotatedSet, objects: Objects) -> list[str]:
    """Return tables of the boxes by class, with how well the anchors match them, and of their sizes in percentiles."""
    if not len(objects.rows):
        return []
    class_ids, images = annotated.boxes.class_ids[objects.rows], annotated.boxes.images[objects.rows]
    names = {class_id: annotated.project.class_names[class_id] for class_id in np.unique(class_ids[class_ids >= 0])}
    column = max(map(len, ("class", *names.values())))
    lines = [f"  {'class':<{column}}    boxes   images  IoU >= {POSITIVE_IOU}  mean IoU"]
    for class_id, name in names.items():
        of_class = class_ids == class_id
        ious, num_images = objects.best_ious[of_class], len(np.unique(images[of_class]))
        match = f"{(ious >= POSITIVE_IOU).mean():10.1%} {ious.mean():9.2f}"
        lines.append(f"  {name:<{column}} {len(ious):8,} {num_images:8,} {match}")
    area, aspect = objects.sides.prod(axis=1), objects.sides[:, 0] / objects.sides[:, 1]
    title = "boxes at {1} x {0}".format(*objects.canvas)
    lines.append(f"  {title:<24}{''.join(f'{heading:>8}' for heading in _PERCENTILES)}")
    for title, values in (("side, sqrt(w h), pixels", np.sqrt(area)), ("width / height", aspect)):
        percentiles = np.percentile(values, list(_PERCENTILES.values()))
        lines.append(f"  {title:<24}{''.join(f'{value:8.3g}' for value in percentiles)}")
    return [*lines, f"  {(area < SMALL_SIDE**2).mean():.1%} of the boxes are below {SMALL_SIDE} x {SMALL_SIDE} pixels"]


def _warnings(findings: Iterable[Finding]) -> list[str]:
    return [f"  warning: {format_short(group)}" for group in group_by_kind(findings)]
