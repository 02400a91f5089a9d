"""Explain an evaluation: by class, by size, by score threshold, confusions, causes of errors, the worst images."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from efficientdet.evaluation.coco import MATCH_IOU, Details
from efficientdet.evaluation.error_causes import CAUSES, Errors, Pairs, find_errors, gains, overlapping_pairs

SIZES = {"small": (0, 32**2), "medium": (32**2, 96**2), "large": (96**2, 1e10)}  # COCO's, of areas in pixels
_AP50, _AP75 = 0, 5  # positions in COCO's IoU thresholds


class ThresholdCurve(NamedTuple):
    """True and false positives over the score threshold, matched at IoU 0.5; ratios of zero to zero are NaN."""

    thresholds: np.ndarray  # (T,) ascending; detections with at least this score count
    true_positives: np.ndarray  # (T,)
    false_positives: np.ndarray  # (T,)
    objects: int

    @property
    def precision(self) -> np.ndarray:
        return _ratio(self.true_positives, self.true_positives + self.false_positives)

    @property
    def recall(self) -> np.ndarray:
        return _ratio(self.true_positives, self.objects)

    @property
    def f1(self) -> np.ndarray:
        return _ratio(2 * self.true_positives, self.true_positives + self.false_positives + self.objects)

    @property
    def best(self) -> int:
        """The index of the highest F1: the middle of the first run of thresholds that reach it."""
        f1 = np.nan_to_num(self.f1)
        first = int(f1.argmax())
        length = int(np.append(f1[first:] == f1[first], False).argmin())
        return first + (length - 1) // 2


class ClassResult(NamedTuple):
    """The results of one class. The fields of this and the other results are keys of report.json; NaN: undefined."""

    name: str
    boxes: int  # without crowd regions
    AP: float
    AP50: float
    AR: float  # with up to 100 detections per image
    F1: float  # the highest over the score thresholds
    threshold: float  # where F1 is highest; NaN, like precision and recall, if F1 is 0
    precision: float  # at `threshold`
    recall: float  # at `threshold`


class SizeResult(NamedTuple):
    """The results for the objects of one size, as in `ClassResult`."""

    name: str
    boxes: int
    AP: float
    AP50: float
    AR: float


class CauseResult(NamedTuple):
    """What one cause of errors costs."""

    name: str
    errors: int  # at the score threshold of the analysis
    all_errors: int  # among all detections, down to the lowest score
    gain: float  # of AP50, if all of `all_errors` were fixed; NaN without objects


class ImageResult(NamedTuple):
    """The detections of one image at the score threshold of the analysis."""

    image_id: int | str
    right: int
    errors: dict[str, int]  # by cause; only causes that occur


@dataclass(frozen=True)
class Analysis:
    """All content of a report. K classes, T score thresholds, matches at IoU 0.5."""

    score_threshold: float  # with the best F1 of all classes together; everything below is counted at it
    all_classes: ThresholdCurve
    class_curves: list[ThresholdCurve]  # K
    classes: list[ClassResult]  # K
    sizes: list[SizeResult]
    precision: dict[str, np.ndarray]  # "AP50" and "AP75": (101,) at recall 0, 0.01 ... 1, the mean over the classes
    class_precision: np.ndarray  # (K, 101) at IoU 0.5; NaN for a class without objects
    confusion: np.ndarray  # (K + 1, K + 1): see `confusion_matrix`
    causes: list[CauseResult]
    errors: Errors
    images: list[ImageResult]  # the worst first: most errors, then fewest right detections

    @property
    def class_confusion(self) -> np.ndarray:  # (K, K): without the diagonal and the background
        matrix = self.confusion[:-1, :-1]
        return matrix - np.diag(np.diag(matrix))


def analyze(details: Details, class_names: Sequence[str], image_ids: Sequence[int | str]) -> Analysis:
    """Return the analysis of a scored set. Names are by class index, ids in the order of the data set."""
    ground_truth, detections = details.ground_truth, details.detections
    names = [class_names[class_id] for class_id in details.class_ids]
    objects = np.bincount(ground_truth.classes[~ground_truth.crowd], minlength=len(names)).tolist()
    thresholds = np.linspace(detections.scores.min(initial=0), detections.scores.max(initial=1), 101)
    all_classes = _threshold_curve(details, np.full(len(detections.scores), True), sum(objects), thresholds)
    curves = [_threshold_curve(details, detections.classes == k, count, thresholds) for k, count in enumerate(objects)]
    score_threshold = float(thresholds[all_classes.best])
    confident = ~detections.ignored & (detections.scores >= score_threshold)
    pairs = overlapping_pairs(details)
    errors, all_errors = (find_errors(details, pairs, counted) for counted in (confident, ~detections.ignored))
    counts, all_counts = (_count_errors(details, part, len(image_ids)) for part in (errors, all_errors))
    totals, all_totals = counts.sum(axis=0).tolist(), all_counts.sum(axis=0).tolist()
    right = np.bincount(detections.images[confident & (detections.matches >= 0)], minlength=len(image_ids))
    class_precision = np.where(details.precision >= 0, details.precision, np.nan)[..., 0]
    defined = ~np.isnan(class_precision[_AP50, 0])
    return Analysis(
        score_threshold=score_threshold,
        all_classes=all_classes,
        class_curves=curves,
        classes=[_class_result(details, k, name, curve) for k, (name, curve) in enumerate(zip(names, curves))],
        sizes=[_size_result(details, number, name) for number, name in enumerate(SIZES, 1)],
        precision={
            name: class_precision[threshold][:, defined].mean(axis=1) if defined.any() else np.full(101, np.nan)
            for name, threshold in (("AP50", _AP50), ("AP75", _AP75))
        },
        class_precision=class_precision[_AP50].T,
        confusion=confusion_matrix(details, pairs, confident),
        causes=list(map(CauseResult, CAUSES, totals, all_totals, gains(details, all_errors).tolist())),
        errors=errors,
        images=[
            ImageResult(image_ids[i], int(right[i]), {name: n for name, n in zip(CAUSES, counts[i].tolist()) if n})
            for i in np.lexsort((right, -counts.sum(axis=1)))
        ],
    )


def confusion_matrix(details: Details, pairs: Pairs, counted: np.ndarray) -> np.ndarray:
    """Return how often objects of each class (rows) are detected as each class (columns): (K + 1, K + 1) int64.

    Of the detections that the mask `counted` (D,) selects, the diagonal holds COCO's matches. Remaining objects and
    detections are matched by descending IoU, down to 0.5, whatever their classes. What still remains is in the last
    column (missed objects) or the last row (detections of background, or of an object that is found already).
    """
    ground_truth, detections = details.ground_truth, details.detections
    background = len(details.class_ids)
    found = np.isin(np.arange(len(ground_truth.images)), detections.matches[counted])
    used = ~counted | (detections.matches >= 0)
    right = detections.classes[counted & (detections.matches >= 0)]
    matrix = np.diag(np.bincount(right, minlength=background + 1))
    free = (pairs.iou >= MATCH_IOU) & ~used[pairs.detections] & ~found[pairs.objects]
    for pair in np.flatnonzero(free)[np.argsort(-pairs.iou[free], kind="stable")]:
        i, j = pairs.detections[pair], pairs.objects[pair]
        if not used[i] and not found[j]:
            used[i] = found[j] = True
            matrix[ground_truth.classes[j], detections.classes[i]] += 1
    np.add.at(matrix[background], detections.classes[~used], 1)
    np.add.at(matrix[:, background], ground_truth.classes[~found & ~ground_truth.crowd], 1)
    return matrix


def best_first(classes: Iterable[ClassResult]) -> list[ClassResult]:
    """Return the classes that have boxes, by descending AP."""
    return sorted((row for row in classes if row.boxes), key=lambda row: -row.AP)


def class_table(classes: Sequence[ClassResult]) -> str:
    """Return a text table with a line for each class that has boxes, the best AP first."""
    rows = best_first(classes)
    width = max([len("class"), *(len(row.name) for row in rows)])
    lines = [f"{'class':{width}}   boxes     AP   AP50     AR     F1  at score  precision  recall"]
    for row in rows:
        averages = f"{row.AP:6.3f} {row.AP50:6.3f} {row.AR:6.3f} {row.F1:6.3f}"
        at_best = f"{row.threshold:9.2f} {row.precision:10.3f} {row.recall:7.3f}" if row.F1 else ""
        lines.append(f"{row.name:{width}} {row.boxes:7,} {averages} {at_best}")
    if len(rows) < len(classes):
        lines.append(f"({len(classes) - len(rows)} classes have no boxes in this set)")
    return "\n".join(lines)


def _threshold_curve(details: Details, selected: np.ndarray, objects: int, thresholds: np.ndarray) -> ThresholdCurve:
    """Count the detections that the mask `selected` (D,) contains, of which each should find one of the `objects`."""
    detections = details.detections
    right = detections.matches >= 0
    masks = (selected & right, selected & ~right & ~detections.ignored)
    true, false = (mask.sum() - np.searchsorted(np.sort(detections.scores[mask]), thresholds) for mask in masks)
    return ThresholdCurve(thresholds, true, false, objects)


def _class_result(details: Details, k: int, name: str, curve: ThresholdCurve) -> ClassResult:
    at_best = [0.0 if curve.objects else np.nan, np.nan, np.nan, np.nan]
    if curve.objects and curve.true_positives[0]:
        at_best = [float(values[curve.best]) for values in (curve.f1, curve.thresholds, curve.precision, curve.recall)]
    averages = _averages(details.precision[:, :, k, 0], details.recall[:, k, 0])
    return ClassResult(name, curve.objects, *averages, *at_best)


def _size_result(details: Details, number: int, name: str) -> SizeResult:
    smallest, largest = SIZES[name]
    areas = details.ground_truth.areas[~details.ground_truth.crowd]
    boxes = int(((areas >= smallest) & (areas <= largest)).sum())  # a border belongs to both sizes, as in COCO
    return SizeResult(name, boxes, *_averages(details.precision[..., number], details.recall[..., number]))


def _count_errors(details: Details, errors: Errors, num_images: int) -> np.ndarray:
    """Return the number of errors in each image, by CAUSES: (num_images, 6) int64."""
    counts = np.zeros((num_images, len(CAUSES)), np.int64)
    wrong = errors.causes >= 0
    np.add.at(counts, (details.detections.images[wrong], errors.causes[wrong]), 1)
    np.add.at(counts, (details.ground_truth.images[errors.missed], CAUSES.index("missed")), 1)
    return counts


def _averages(precision: np.ndarray, recall: np.ndarray) -> list[float]:
    """Return AP, AP50 and AR of a part of COCO's tables, whose first axis is the IoU threshold."""
    return [
        float(values[values >= 0].mean()) if (values >= 0).any() else np.nan
        for values in (precision, precision[_AP50], recall)
    ]


def _ratio(part: np.ndarray, whole: np.ndarray | int) -> np.ndarray:
    return np.divide(part, whole, out=np.full(len(part), np.nan), where=np.greater(whole, 0))
