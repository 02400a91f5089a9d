"""What lies behind the twelve numbers: classes, sizes, thresholds, confusions, causes of errors, the worst images."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from efficientdet.evaluation.coco import MATCH_IOU, Details, Found
from efficientdet.evaluation.error_causes import (
    CAUSES,
    Errors,
    Pairs,
    find_errors,
    gains,
    hit_objects,
    overlapping_pairs,
)

SIZES = {"small": (0, 32**2), "medium": (32**2, 96**2), "large": (96**2, 1e10)}  # of an object's area, pixels (COCO)
_AP50, _AP75 = 0, 5  # positions in COCO's IoU thresholds


class ThresholdCurve(NamedTuple):
    """How many detections are right (find an object by IoU 0.5), and how many wrong, when weaker ones are left out."""

    thresholds: np.ndarray  # (T,) ascending; detections with at least this score count
    right: np.ndarray  # (T,)
    wrong: np.ndarray  # (T,)
    boxes: int  # how many objects there are

    @property
    def precision(self) -> np.ndarray:
        """(T,): the share of the detections that is right; NaN without detections."""
        return _ratio(self.right, self.right + self.wrong)

    @property
    def recall(self) -> np.ndarray:
        """(T,): the share of the objects that is found; NaN without objects."""
        return _ratio(self.right, np.full_like(self.right, self.boxes))

    @property
    def f1(self) -> np.ndarray:
        """(T,): the harmonic mean of precision and recall; NaN without objects and detections."""
        return _ratio(2 * self.right, self.right + self.wrong + self.boxes)

    @property
    def best(self) -> int:
        """The position of the best F1: the middle of the thresholds that reach it one after the other."""
        f1 = np.nan_to_num(self.f1)
        first = int(f1.argmax())
        others = np.flatnonzero(f1[first:] != f1[first])
        return first + ((int(others[0]) if len(others) else len(f1) - first) - 1) // 2


class ClassResult(NamedTuple):
    """One class. Undefined numbers are NaN."""

    name: str
    boxes: int  # crowds aside
    AP: float
    AP50: float
    AR: float  # with up to 100 detections per image
    F1: float  # the best over the score thresholds of the curves
    threshold: float  # where F1 is best; NaN, as the next two, if it is 0
    precision: float  # there
    recall: float  # there


class SizeResult(NamedTuple):
    """The objects of one size. Undefined numbers are NaN."""

    name: str
    boxes: int
    AP: float
    AP50: float
    AR: float


class CauseResult(NamedTuple):
    """One cause of errors."""

    name: str
    errors: int  # at the score threshold of the analysis
    all_errors: int  # with all detections, down to the lowest score
    gain: float  # of AP50 if there were none of `all_errors`; NaN without objects


class ImageResult(NamedTuple):
    """One image at the score threshold of the analysis."""

    image_id: int | str
    right: int
    errors: dict[str, int]  # by cause; only those that occur


@dataclass(frozen=True)
class Analysis:
    """Everything for a report. K classes, T score thresholds, matches by IoU 0.5."""

    score_threshold: float  # where all classes together have the best F1; what is counted below is counted there
    all_classes: ThresholdCurve
    class_curves: list[ThresholdCurve]  # K
    classes: list[ClassResult]  # K
    sizes: list[SizeResult]
    precision: dict[str, np.ndarray]  # "AP50" and "AP75": (101,) at recall 0, 0.01 ... 1, averaged over the classes
    class_precision: np.ndarray  # (K, 101) by IoU 0.5; NaN for a class without objects
    confusion: np.ndarray  # (K + 1, K + 1): objects of a class (row) detected as a class (column); background is last
    causes: list[CauseResult]
    errors: Errors  # of each detection and object of the details
    images: list[ImageResult]  # the worst first: the most errors, of equals the fewest that are right


def analyse(details: Details, class_names: Sequence[str], image_ids: Sequence[int | str]) -> Analysis:
    """All that can be told of a set's detections.

    Args:
        class_names: by class index, as `Project.class_names`.
        image_ids: as `CocoDataset.image_ids`.
    """
    truth, found = details.truth, details.found
    names = [class_names[class_id] for class_id in details.class_ids]
    boxes = np.bincount(truth.classes[~truth.crowd], minlength=len(names))
    thresholds = np.linspace(found.scores.min(initial=0), found.scores.max(initial=1), 101)
    all_classes = threshold_curve(found, np.full(len(found.scores), True), int(boxes.sum()), thresholds)
    curves = [threshold_curve(found, found.classes == k, int(boxes[k]), thresholds) for k in range(len(names))]
    score_threshold = float(thresholds[all_classes.best])
    sure = ~found.ignored & (found.scores >= score_threshold)
    pairs = overlapping_pairs(truth, found)
    errors, all_errors = (find_errors(truth, found, pairs, counted) for counted in (sure, ~found.ignored))
    class_precision = np.where(details.precision >= 0, details.precision, np.nan)[..., 0]
    return Analysis(
        score_threshold,
        all_classes,
        curves,
        [_class_result(details, k, name, curve) for k, (name, curve) in enumerate(zip(names, curves))],
        [_size_result(details, number, name) for number, name in enumerate(SIZES, 1)],
        {name: _mean_curve(class_precision[iou]) for name, iou in (("AP50", _AP50), ("AP75", _AP75))},
        class_precision[_AP50].T,
        confusion_matrix(details, pairs, sure),
        [
            CauseResult(name, *counts, gain)
            for name, counts, gain in zip(
                CAUSES, zip(_counts(errors), _counts(all_errors)), gains(details, all_errors).tolist()
            )
        ],
        errors,
        _image_results(details, errors, sure, image_ids),
    )


def threshold_curve(found: Found, chosen: np.ndarray, boxes: int, thresholds: np.ndarray) -> ThresholdCurve:
    """Of the detections that the mask `chosen` (D,) names, for the `boxes` objects that they should find."""
    right = chosen & (found.truth >= 0)
    wrong = chosen & (found.truth < 0) & ~found.ignored
    rights, wrongs = (mask.sum() - np.searchsorted(np.sort(found.scores[mask]), thresholds) for mask in (right, wrong))
    return ThresholdCurve(thresholds, rights, wrongs, boxes)


def confusion_matrix(details: Details, pairs: Pairs, sure: np.ndarray) -> np.ndarray:
    """(K + 1, K + 1) int64: objects of each class (rows) that the detections `sure` (D,) bool take for each (columns).

    The diagonal is what COCO counts as found. Objects and detections that are left go together by falling IoU, down to
    0.5. What then is left goes to the last column (missed) or the last row (nothing, or something found already).
    """
    truth, found = details.truth, details.found
    background = len(details.class_ids)
    hit = hit_objects(truth, found, sure)
    taken = ~sure | (found.truth >= 0)
    matrix = np.zeros((background + 1, background + 1), np.int64)
    right = found.classes[sure & (found.truth >= 0)]
    np.add.at(matrix, (right, right), 1)
    left = (pairs.iou >= MATCH_IOU) & ~taken[pairs.found] & ~hit[pairs.truth]
    for pair in np.flatnonzero(left)[np.argsort(-pairs.iou[left], kind="stable")]:
        i, j = pairs.found[pair], pairs.truth[pair]
        if not taken[i] and not hit[j]:
            taken[i] = hit[j] = True
            matrix[truth.classes[j], found.classes[i]] += 1
    np.add.at(matrix[background], found.classes[~taken], 1)
    np.add.at(matrix[:, background], truth.classes[~hit & ~truth.crowd], 1)
    return matrix


def class_table(classes: Sequence[ClassResult]) -> str:
    """A line for each class with boxes, the best AP first."""
    shown = sorted((row for row in classes if row.boxes), key=lambda row: -row.AP)
    width = max([len("class"), *(len(row.name) for row in shown)])
    lines = [f"{'class':{width}}   boxes     AP   AP50     AR     F1  at score  precision  recall"]
    for row in shown:
        at_best = f"{row.threshold:9.2f} {row.precision:10.3f} {row.recall:7.3f}" if row.F1 else ""
        lines.append(
            f"{row.name:{width}} {row.boxes:7,} {row.AP:6.3f} {row.AP50:6.3f} {row.AR:6.3f} {row.F1:6.3f} {at_best}"
        )
    without = len(classes) - len(shown)
    return "\n".join([*lines, *([f"({without} classes have no boxes in this set)"] if without else [])])


def _class_result(details: Details, k: int, name: str, curve: ThresholdCurve) -> ClassResult:
    at_best = [0.0 if curve.boxes else np.nan, np.nan, np.nan, np.nan]
    if curve.boxes and curve.right[0]:
        at_best = [float(values[curve.best]) for values in (curve.f1, curve.thresholds, curve.precision, curve.recall)]
    AP, AP50, AR = _averages(details.precision[:, :, k, 0], details.recall[:, k, 0])
    return ClassResult(name, curve.boxes, AP, AP50, AR, *at_best)


def _size_result(details: Details, number: int, name: str) -> SizeResult:
    least, most = SIZES[name]
    areas = details.truth.areas[~details.truth.crowd]
    boxes = int(((areas >= least) & (areas <= most)).sum())  # as COCO counts: a border belongs to both
    return SizeResult(name, boxes, *_averages(details.precision[..., number], details.recall[..., number]))


def _image_results(
    details: Details, errors: Errors, sure: np.ndarray, image_ids: Sequence[int | str]
) -> list[ImageResult]:
    truth, found = details.truth, details.found
    counts = np.zeros((len(image_ids), len(CAUSES)), np.int64)
    wrong = errors.causes >= 0
    np.add.at(counts, (found.images[wrong], errors.causes[wrong]), 1)
    np.add.at(counts, (truth.images[errors.missed], CAUSES.index("missed")), 1)
    right = np.bincount(found.images[sure & (found.truth >= 0)], minlength=len(image_ids))
    return [
        ImageResult(image_ids[i], int(right[i]), {name: int(count) for name, count in zip(CAUSES, counts[i]) if count})
        for i in np.lexsort((right, -counts.sum(axis=1)))
    ]


def _counts(errors: Errors) -> list[int]:
    """By CAUSES."""
    found = np.bincount(errors.causes[errors.causes >= 0], minlength=len(CAUSES))
    return [*found[:-1].tolist(), int(errors.missed.sum())]


def _averages(precision: np.ndarray, recall: np.ndarray) -> tuple[float, float, float]:
    """AP, AP50 and AR of a part of COCO's tables, IoU thresholds first."""
    AP, AP50, AR = (
        float(values[values >= 0].mean()) if (values >= 0).any() else np.nan
        for values in (precision, precision[_AP50], recall)
    )
    return AP, AP50, AR


def _mean_curve(curves: np.ndarray) -> np.ndarray:
    """(101, K) -> (101,), over the classes that have one; NaN if none has."""
    defined = ~np.isnan(curves[0])
    return curves[:, defined].mean(axis=1) if defined.any() else np.full(len(curves), np.nan)


def _ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    return np.divide(part, whole, out=np.full(len(part), np.nan), where=whole > 0)
