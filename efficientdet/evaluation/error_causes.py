"""Why average precision is lost: the six causes of TIDE (Bolya et al. 2020), and what it would gain without each.

A detection that finds nothing has one cause, the first that holds. With the IoU of the boxes that are true:
  localisation    the class is right, the box is not: IoU from 0.1 to 0.5 with an object of its class
  classification  the box is right, the class is not: IoU of 0.5 or more with an object of another class
  duplicate       right, but a surer detection has found the object already
  background      nothing is there: IoU below 0.1 with every object
  both            class and box are wrong
And an object is missed when no detection finds it, nor would with the right class or the right box.

Detections in crowd regions are no errors, as they do not count for COCO's average precision.
"""

from typing import NamedTuple

import numpy as np
import torch

from efficientdet.boxes import pairwise_iou
from efficientdet.evaluation.coco import MATCH_IOU, Details, Found, Truth

CAUSES = ("classification", "localisation", "both", "duplicate", "background", "missed")
BACKGROUND_IOU = 0.1
RECALLS = np.linspace(0, 1, 101)  # where COCO reads a precision-recall curve

_CLASSIFICATION, _LOCALISATION, _BOTH, _DUPLICATE, _BACKGROUND, _MISSED = range(len(CAUSES))


class Pairs(NamedTuple):
    """The P pairs of a detection and an object of the same image that overlap by BACKGROUND_IOU; crowds aside."""

    found: np.ndarray  # (P,) positions in Found
    truth: np.ndarray  # (P,) positions in Truth
    iou: np.ndarray  # (P,)


class Errors(NamedTuple):
    """What is wrong with D detections of G objects."""

    causes: np.ndarray  # (D,) position in CAUSES, or -1 for what is right or does not count
    repaired: np.ndarray  # (D,) position in Truth of what it would find if its class or box were right, or -1
    missed: np.ndarray  # (G,) bool


def overlapping_pairs(truth: Truth, found: Found) -> Pairs:
    """All pairs of a detection and an object that overlap."""
    by_image = np.argsort(found.images, kind="stable")
    objects_by_image = np.flatnonzero(~truth.crowd)
    objects_by_image = objects_by_image[np.argsort(truth.images[objects_by_image], kind="stable")]
    images = np.intersect1d(found.images, truth.images[objects_by_image])
    found_ends = np.searchsorted(found.images[by_image], [images, images + 1]).T
    truth_ends = np.searchsorted(truth.images[objects_by_image], [images, images + 1]).T
    parts = []
    for found_range, truth_range in zip(found_ends, truth_ends):
        a, b = by_image[slice(*found_range)], objects_by_image[slice(*truth_range)]
        iou = pairwise_iou(torch.from_numpy(found.boxes[a]), torch.from_numpy(truth.boxes[b])).numpy()
        rows, columns = np.nonzero(iou >= BACKGROUND_IOU)
        parts.append(Pairs(a[rows], b[columns], iou[rows, columns]))
    empty = Pairs(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0))
    return Pairs(*map(np.concatenate, zip(empty, *parts)))


def find_errors(truth: Truth, found: Found, pairs: Pairs, counted: np.ndarray) -> Errors:
    """The errors of the detections that are `counted` (D,) bool, and of the objects that these miss."""
    hit = hit_objects(truth, found, counted)
    same_class = found.classes[pairs.found] == truth.classes[pairs.truth]
    same_iou, same_object = _best_overlap(pairs, same_class, len(found.images))
    other_iou, other_object = _best_overlap(pairs, ~same_class, len(found.images))
    causes = np.select(
        [
            ~counted | (found.truth >= 0),
            (same_iou >= BACKGROUND_IOU) & (same_iou < MATCH_IOU),
            other_iou >= MATCH_IOU,
            same_iou >= MATCH_IOU,
            other_iou < BACKGROUND_IOU,
        ],
        [-1, _LOCALISATION, _CLASSIFICATION, _DUPLICATE, _BACKGROUND],
        _BOTH,
    )

    meant = np.select([causes == _LOCALISATION, causes == _CLASSIFICATION], [same_object, other_object], -1)
    candidates = np.flatnonzero(meant >= 0)
    candidates = candidates[~hit[meant[candidates]]]
    # An object can be found once, by the surest.
    candidates = candidates[np.argsort(-found.scores[candidates], kind="stable")]
    objects, surest = np.unique(meant[candidates], return_index=True)
    repaired = np.full(len(causes), -1)
    repaired[candidates[surest]] = objects
    missed = ~truth.crowd & ~hit
    missed[objects] = False
    return Errors(causes, repaired, missed)


def gains(details: Details, errors: Errors) -> np.ndarray:
    """(6,): how much AP50 would rise if all errors of one cause were put right, by CAUSES; NaN without objects.

    A detection of the wrong class or with the wrong box takes the right one, if its object is not found otherwise;
    else it goes, as do those of the other causes. What was missed is taken out of the truth.
    """
    truth, found = details.truth, details.found
    objects = np.bincount(truth.classes[~truth.crowd], minlength=len(details.class_ids))
    right, kept = found.truth >= 0, ~found.ignored
    before = _mean_ap(found.classes, found.scores, right, kept, objects)
    after = []
    for cause in range(_MISSED):
        repaired = (errors.causes == cause) & (errors.repaired >= 0)
        classes = found.classes.copy()
        classes[repaired] = truth.classes[errors.repaired[repaired]]
        left = kept & ((errors.causes != cause) | repaired)
        after.append(_mean_ap(classes, found.scores, right | repaired, left, objects))
    missed = np.bincount(truth.classes[errors.missed], minlength=len(objects))
    left = objects - missed
    after.append(_mean_ap(found.classes, found.scores, right, kept, left) if left.any() else 1.0)  # nothing to find
    return np.maximum(np.array(after) - before, 0)  # reading the curve at 101 points may cost a little


def hit_objects(truth: Truth, found: Found, counted: np.ndarray) -> np.ndarray:
    """(G,) bool: which objects the `counted` (D,) detections find."""
    hit = np.zeros(len(truth.images), bool)
    hit[found.truth[counted & (found.truth >= 0)]] = True
    return hit


def _best_overlap(pairs: Pairs, chosen: np.ndarray, detections: int) -> tuple[np.ndarray, np.ndarray]:
    """(D,) the highest IoU of each detection among the `chosen` pairs, or 0, and (D,) with which object, or -1."""
    found, truth, iou = (values[chosen] for values in pairs)
    order = np.lexsort((-truth, iou))  # the last that is assigned stays: the highest, and the first of equals
    best_iou, best_object = np.zeros(detections), np.full(detections, -1)
    best_iou[found[order]] = iou[order]
    best_object[found[order]] = truth[order]
    return best_iou, best_object


def _mean_ap(
    classes: np.ndarray, scores: np.ndarray, right: np.ndarray, kept: np.ndarray, objects: np.ndarray
) -> float:
    """COCO's average precision of the detections `kept`, averaged over the classes with `objects`; NaN without any."""
    kept = np.flatnonzero(kept)
    kept = kept[np.lexsort((-scores[kept], classes[kept]))]
    parts = np.split(right[kept], np.searchsorted(classes[kept], np.arange(1, len(objects))))
    values = [_average_precision(part, count) for part, count in zip(parts, objects) if count]
    return float(np.mean(values)) if values else np.nan


def _average_precision(right: np.ndarray, objects: int) -> float:
    """Of detections in the order of falling scores."""
    found = np.cumsum(right)
    precision = found / (np.arange(1, len(right) + 1) + np.spacing(1))
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    return float(np.append(envelope, 0)[np.searchsorted(found / objects, RECALLS)].mean())
