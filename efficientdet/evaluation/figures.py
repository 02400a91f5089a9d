"""The images of an evaluation's report: charts, and images with what was found beside the truth."""

from typing import TYPE_CHECKING

import cv2
import numpy as np

from efficientdet.data.dataset import CocoDataset
from efficientdet.evaluation.analysis import Analysis
from efficientdet.evaluation.coco import Details
from efficientdet.evaluation.error_causes import CAUSES, RECALLS
from utils.charts import BarChart, LineChart, draw_bars, draw_lines, draw_matrix
from utils.visualize import draw_boxes, side_by_side

if TYPE_CHECKING:
    from utils.charts import Figure

LONGEST_SIDE = 640  # of an image of a pair, pixels
_NAMED_CLASSES = 10  # with more, their lines are grey and have no names
_MATRIX_CLASSES = 24  # with more, the least confused are put together
_SHARE = (0, 1.02)
_SCORE_LABEL = "lowest score that counts"


def charts(analysis: Analysis) -> dict[str, "Figure"]:
    """Name -> chart."""
    return {
        "classes": _classes_chart(analysis),
        "precision_recall": _precision_recall_chart(analysis),
        "f1": _f1_chart(analysis),
        "confusion": _confusion_chart(analysis),
        "causes": _causes_chart(analysis),
        "sizes": draw_bars(
            BarChart(
                "by size of the objects",
                [f"{row.name} ({row.boxes:,})" for row in analysis.sizes],
                {name: [getattr(row, name) for row in analysis.sizes] for name in ("AP", "AP50", "AR")},
            )
        ),
    }


def beside_truth(dataset: CocoDataset, details: Details, analysis: Analysis, image_id: int | str) -> np.ndarray:
    """Two copies (H, W, 3) uint8 RGB: detections at the analysis's score threshold on the left, the truth on the right.

    Labels tell the cause where a detection is wrong, and which objects are missed.
    """
    names = dataset.project.class_names
    position = dataset.index_of[image_id]
    image = dataset.load_image(image_id)
    scale = min(1, LONGEST_SIDE / max(image.shape[:2]))
    size = [max(1, round(side * scale)) for side in image.shape[1::-1]]
    image = cv2.resize(image, size, interpolation=cv2.INTER_AREA)

    truth, found = details.truth, details.found
    shown = np.flatnonzero((found.images == position) & (found.scores >= analysis.score_threshold) & ~found.ignored)
    shown = shown[np.lexsort((found.scores[shown], analysis.errors.causes[shown] >= 0))]  # errors lie above the rest
    class_ids = details.class_ids[found.classes[shown]]
    causes = [CAUSES[cause] if cause >= 0 else "" for cause in analysis.errors.causes[shown]]
    labels = [f"{names[i]} {score:.2f} {cause}" for i, score, cause in zip(class_ids, found.scores[shown], causes)]
    left = draw_boxes(image, found.boxes[shown] * scale, class_ids, [label.strip() for label in labels])

    objects = np.flatnonzero((truth.images == position) & ~truth.crowd)
    objects = objects[np.argsort(analysis.errors.missed[objects], kind="stable")]
    class_ids = details.class_ids[truth.classes[objects]]
    missed = analysis.errors.missed[objects]
    labels = [f"{names[i]}{' missed' if flag else ''}" for i, flag in zip(class_ids, missed)]
    return side_by_side(left, draw_boxes(image, truth.boxes[objects] * scale, class_ids, labels))


def _classes_chart(analysis: Analysis) -> "Figure":
    rows = sorted((row for row in analysis.classes if row.boxes), key=lambda row: -row.AP)
    return draw_bars(
        BarChart(
            "average precision by class (boxes)",
            [f"{row.name} ({row.boxes:,})" for row in rows],
            {name: [getattr(row, name) for row in rows] for name in ("AP", "AP50")},
        )
    )


def _precision_recall_chart(analysis: Analysis) -> "Figure":
    mean = {name: list(zip(RECALLS, curve)) for name, curve in analysis.precision.items()}
    by_class = {row.name: curve for row, curve in zip(analysis.classes, analysis.class_precision) if row.boxes}
    return draw_lines(
        LineChart("mean over the classes, by IoU 0.50 and 0.75", mean, "recall", "precision", y_limits=_SHARE),
        _class_lines("by class, by IoU 0.50", RECALLS, by_class, "recall", "precision"),
    )


def _f1_chart(analysis: Analysis) -> "Figure":
    every = analysis.all_classes
    together = {"F1": every.f1, "precision": every.precision, "recall": every.recall}
    by_class = {row.name: curve.f1 for row, curve in zip(analysis.classes, analysis.class_curves) if row.boxes}
    return draw_lines(
        LineChart(
            f"all boxes: F1 is best with scores from {analysis.score_threshold:.2f}",
            {name: list(zip(every.thresholds, values)) for name, values in together.items()},
            _SCORE_LABEL,
            y_limits=_SHARE,
            mark_x=analysis.score_threshold,
        ),
        _class_lines("F1 by class", every.thresholds, by_class, _SCORE_LABEL, "F1"),
    )


def _class_lines(title: str, x: np.ndarray, curves: dict[str, np.ndarray], x_label: str, y_label: str) -> LineChart:
    """The lines of few classes with their names, or the mean of many before their lines."""
    lines = {name: list(zip(x, curve)) for name, curve in curves.items()}
    if len(lines) <= _NAMED_CLASSES:
        return LineChart(title, lines, x_label, y_label, y_limits=_SHARE)
    mean = {"mean": list(zip(x, np.mean(list(curves.values()), axis=0)))}
    return LineChart(title, mean, x_label, y_label, list(lines.values()), _SHARE)


def _confusion_chart(analysis: Analysis) -> "Figure":
    names, matrix = [row.name for row in analysis.classes], analysis.confusion
    title = f"score from {analysis.score_threshold:.2f}, IoU from 0.5"
    if len(names) > _MATRIX_CLASSES:
        between = matrix[:-1, :-1] - np.diag(np.diag(matrix)[:-1])
        order = np.argsort(-(between.sum(axis=0) + between.sum(axis=1)), kind="stable")
        shown = np.sort(order[:_MATRIX_CLASSES])
        group = np.full(len(names) + 1, _MATRIX_CLASSES)  # the others together
        group[shown], group[-1] = np.arange(_MATRIX_CLASSES), _MATRIX_CLASSES + 1
        merged = np.zeros((_MATRIX_CLASSES + 2,) * 2, np.int64)
        np.add.at(merged, (group[:, None], group[None, :]), matrix)
        title += f"; the {_MATRIX_CLASSES} most confused classes"
        names, matrix = [*(names[k] for k in shown), f"{len(names) - _MATRIX_CLASSES} others"], merged
    return draw_matrix(title, [*names, "background"], matrix, "truth", "detected as")


def _causes_chart(analysis: Analysis) -> "Figure":
    names = [row.name for row in analysis.causes]
    return draw_bars(
        BarChart("AP50 lost", names, {"gain": [row.gain for row in analysis.causes]}),
        BarChart(
            f"errors with scores from {analysis.score_threshold:.2f}",
            names,
            {"errors": [row.errors for row in analysis.causes]},
        ),
    )
