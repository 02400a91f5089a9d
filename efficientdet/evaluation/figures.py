"""The images of an evaluation report: charts, and detections drawn next to the ground truth."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import cv2
import numpy as np

from efficientdet.data.dataset import CocoDataset
from efficientdet.evaluation.analysis import Analysis, ClassResult, SizeResult, best_first
from efficientdet.evaluation.coco import Details
from efficientdet.evaluation.error_causes import CAUSES, RECALLS
from utils.charts import BarChart, LineChart, draw_bars, draw_lines, draw_matrix
from utils.visualize import draw_boxes, side_by_side

if TYPE_CHECKING:
    from utils.charts import Figure

LONGEST_SIDE = 640  # of each image of a pair, pixels
_MAX_NAMED_CLASSES = 10  # of more, the curves are gray and have no names
_MAX_MATRIX_CLASSES = 24  # of more, the least confused are merged
_Y_LIMITS = (0, 1.02)


def charts(analysis: Analysis) -> dict[str, "Figure"]:
    """Return the charts of a report by name."""
    causes = [row.name for row in analysis.causes]
    gains = BarChart("AP50 lost", causes, {"gain": [row.gain for row in analysis.causes]})
    title = f"errors at score threshold {analysis.score_threshold:.2f}"
    errors = BarChart(title, causes, {"errors": [row.errors for row in analysis.causes]})
    return {
        "classes": _ap_chart("average precision by class (boxes)", best_first(analysis.classes)),
        "precision_recall": _precision_recall_chart(analysis),
        "f1": _f1_chart(analysis),
        "confusion": _confusion_chart(analysis),
        "causes": draw_bars(gains, errors),
        "sizes": _ap_chart("by size of the objects (boxes)", analysis.sizes, AR=[row.AR for row in analysis.sizes]),
    }


def draw_errors(dataset: CocoDataset, details: Details, analysis: Analysis, image_id: int | str) -> np.ndarray:
    """Return an image twice, (H, W, 3) uint8 RGB: with its detections on the left, its ground truth on the right.

    Detections are those at the score threshold of the analysis. Labels name causes of errors, and missed objects.
    """
    names = dataset.project.class_names
    position = dataset.index_of[image_id]
    image = dataset.load_image(image_id)
    scale = min(1, LONGEST_SIDE / max(image.shape[:2]))
    size = [max(1, round(side * scale)) for side in image.shape[1::-1]]
    image = cv2.resize(image, size, interpolation=cv2.INTER_AREA)

    detections, errors = details.detections, analysis.errors
    confident = (detections.scores >= analysis.score_threshold) & ~detections.ignored
    shown = np.flatnonzero((detections.images == position) & confident)
    shown = shown[np.lexsort((detections.scores[shown], errors.causes[shown] >= 0))]  # errors on top
    class_ids = details.class_ids[detections.classes[shown]]
    causes = [CAUSES[cause] if cause >= 0 else "" for cause in errors.causes[shown]]
    labels = [f"{names[i]} {score:.2f} {cause}" for i, score, cause in zip(class_ids, detections.scores[shown], causes)]
    left = draw_boxes(image, detections.boxes[shown] * scale, class_ids, [label.strip() for label in labels])

    ground_truth = details.ground_truth
    objects = np.flatnonzero((ground_truth.images == position) & ~ground_truth.crowd)
    objects = objects[np.argsort(errors.missed[objects], kind="stable")]
    class_ids = details.class_ids[ground_truth.classes[objects]]
    labels = [f"{names[i]}{' missed' if missed else ''}" for i, missed in zip(class_ids, errors.missed[objects])]
    return side_by_side(left, draw_boxes(image, ground_truth.boxes[objects] * scale, class_ids, labels))


def _ap_chart(title: str, rows: Sequence[ClassResult] | Sequence[SizeResult], **more: list[float]) -> "Figure":
    numbers = {"AP": [row.AP for row in rows], "AP50": [row.AP50 for row in rows], **more}
    return draw_bars(BarChart(title, [f"{row.name} ({row.boxes:,})" for row in rows], numbers))


def _precision_recall_chart(analysis: Analysis) -> "Figure":
    mean = {name: list(zip(RECALLS, curve)) for name, curve in analysis.precision.items()}
    by_class = {row.name: curve for row, curve in zip(analysis.classes, analysis.class_precision) if row.boxes}
    return draw_lines(
        LineChart("mean over the classes, at IoU 0.50 and 0.75", mean, "recall", "precision", y_limits=_Y_LIMITS),
        _class_lines("by class, at IoU 0.50", RECALLS, by_class, "recall", "precision"),
    )


def _f1_chart(analysis: Analysis) -> "Figure":
    curve = analysis.all_classes
    by_class = {row.name: curve.f1 for row, curve in zip(analysis.classes, analysis.class_curves) if row.boxes}
    curves = {"F1": curve.f1, "precision": curve.precision, "recall": curve.recall}
    lines = {name: list(zip(curve.thresholds, values)) for name, values in curves.items()}
    title = f"all classes: F1 is best at {analysis.score_threshold:.2f}"
    return draw_lines(
        LineChart(title, lines, "score threshold", y_limits=_Y_LIMITS, mark_x=analysis.score_threshold),
        _class_lines("F1 by class", curve.thresholds, by_class, "score threshold", "F1"),
    )


def _class_lines(title: str, x: np.ndarray, curves: dict[str, np.ndarray], x_label: str, y_label: str) -> LineChart:
    """Return the named curves of a few classes, or the mean of many over their unnamed curves."""
    lines = {name: list(zip(x, curve)) for name, curve in curves.items()}
    if len(lines) <= _MAX_NAMED_CLASSES:
        return LineChart(title, lines, x_label, y_label, y_limits=_Y_LIMITS)
    mean = {"mean": list(zip(x, np.mean(list(curves.values()), axis=0)))}
    return LineChart(title, mean, x_label, y_label, list(lines.values()), _Y_LIMITS)


def _confusion_chart(analysis: Analysis) -> "Figure":
    names, matrix = [row.name for row in analysis.classes], analysis.confusion
    title = f"score threshold {analysis.score_threshold:.2f},\nIoU threshold 0.50"
    if len(names) > _MAX_MATRIX_CLASSES:
        confusion = analysis.class_confusion
        order = np.argsort(-(confusion.sum(axis=0) + confusion.sum(axis=1)), kind="stable")
        shown = np.sort(order[:_MAX_MATRIX_CLASSES])
        cell = np.full(len(names) + 1, _MAX_MATRIX_CLASSES)  # class -> row and column; first the merged ones'
        cell[shown], cell[-1] = np.arange(_MAX_MATRIX_CLASSES), _MAX_MATRIX_CLASSES + 1
        matrix = np.zeros((_MAX_MATRIX_CLASSES + 2,) * 2, np.int64)
        np.add.at(matrix, (cell[:, None], cell[None, :]), analysis.confusion)
        title += f"; the {_MAX_MATRIX_CLASSES} most confused classes"
        names = [*(names[k] for k in shown), f"{len(names) - _MAX_MATRIX_CLASSES} others"]
    return draw_matrix(title, [*names, "background"], matrix, "ground truth", "detected as")
