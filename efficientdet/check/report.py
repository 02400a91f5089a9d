"""What there is to learn, and whether the anchors can: told before training begins, and by the data check."""

from collections.abc import Iterable

import numpy as np

from efficientdet.check.objects import Objects, objects_on_canvas
from efficientdet.check.rules import SMALL_SIDE, class_counts, equal_files, overlap_findings, quick_findings
from efficientdet.config import ModelConfig
from efficientdet.data.annotations import AnnotatedSet
from efficientdet.data.dataset import CocoDataset
from efficientdet.data.findings import Finding, by_kind, in_short
from efficientdet.model.loss import POSITIVE_IOU

_SHARES = (0, 5, 25, 50, 75, 95, 100)  # percent


def report_before_training(train_set: CocoDataset, val_set: CocoDataset, config: ModelConfig) -> str:
    """`data_report` of both sets, what they have in common, and where to learn more if there is a warning."""
    train, val = train_set.annotated, val_set.annotated
    lines = [data_report(train_set, config), data_report(val_set, config)]
    lines += _warnings(overlap_findings(train, val, equal_files(train, val)))
    if any("warning: " in line for line in lines):
        lines.append(f"python -m efficientdet.check -p {train.project.path} tells more, and looks at the images, too")
    return "\n".join(lines)


def data_report(dataset: CocoDataset, config: ModelConfig) -> str:
    """Lines on a set's images, its boxes per class, how many of them some anchor reaches, and what is wrong."""
    annotated = dataset.annotated
    objects = objects_on_canvas(annotated, dataset.canvas, config)
    counts = zip(dataset.project.class_names, class_counts(annotated))
    lines = [headline(annotated), f"  {', '.join(f'{name} {count:,}' for name, count in counts if name)}"]
    if len(objects.rows):
        coverage = (objects.best_ious >= POSITIVE_IOU).mean()
        height, width = objects.canvas
        lines.append(f"  {coverage:.1%} of the boxes overlap some anchor by IoU {POSITIVE_IOU} at {width} x {height}")
    return "\n".join(lines + _warnings(quick_findings(annotated, objects)))


def headline(annotated: AnnotatedSet) -> str:
    """A set's images and boxes in a line."""
    learnable = annotated.boxes.learnable
    empty = len(annotated.images) - len(np.unique(annotated.boxes.images[learnable]))
    images = f"{len(annotated.images):,} images ({empty:,} without objects)"
    return f"{annotated.name}: {images}, {learnable.sum():,} boxes"


def class_table(annotated: AnnotatedSet, objects: Objects) -> list[str]:
    """For each class that has boxes: their number, that of their images, and how well the anchors reach them."""
    class_ids, images = annotated.boxes.class_ids[objects.rows], annotated.boxes.images[objects.rows]
    names = {class_id: annotated.project.class_names[class_id] for class_id in np.unique(class_ids[class_ids >= 0])}
    column = max(map(len, ("class", *names.values())))
    lines = [f"{'class':<{column}}    boxes   images  IoU >= {POSITIVE_IOU}  mean IoU"]
    for class_id, name in names.items():
        of_class = class_ids == class_id
        ious = objects.best_ious[of_class]
        lines.append(
            f"{name:<{column}} {len(ious):8,} {len(np.unique(images[of_class])):8,} "
            f"{(ious >= POSITIVE_IOU).mean():10.1%} {ious.mean():9.2f}"
        )
    return lines


def size_table(objects: Objects) -> list[str]:
    """How large and how long the boxes are at the input's size: the values below which a share of them lies."""
    height, width = objects.canvas
    titles = ("least", *(f"{share} %" for share in _SHARES[1:-1]), "most")
    lines = [f"{f'boxes at {width} x {height}':<24}" + "".join(f"{title:>8}" for title in titles)]
    for title, values in (
        ("side, sqrt(w h), pixels", np.sqrt(objects.sides.prod(axis=1))),
        ("width / height", objects.sides[:, 0] / objects.sides[:, 1]),
    ):
        lines.append(f"{title:<24}" + "".join(f"{value:8.3g}" for value in np.percentile(values, _SHARES)))
    small = (objects.sides.prod(axis=1) < SMALL_SIDE**2).mean()
    return [*lines, f"{small:.1%} of the boxes have less than {SMALL_SIDE} x {SMALL_SIDE} pixels"]


def _warnings(findings: Iterable[Finding]) -> list[str]:
    return [f"  warning: {in_short(group)}" for group in by_kind(findings)]
