"""Why average precision is lost: the six causes of errors of TIDE (Bolya et al. 2020), and what each costs.

Each false positive has one cause, the first that applies, by its IoU with the ground-truth boxes:
  localisation    right class, wrong box: IoU of 0.1 to 0.5 with an object of its class
  classification  right box, wrong class: IoU of at least 0.5 with an object of another class
  duplicate       right class and box, but a detection with a higher score has found the object
  background      no object: IoU below 0.1 with all of them
  both            wrong class and wrong box
An object is missed if no detection finds it, nor would find it with the right class or the right box.
Detections in crowd regions are not errors: COCO's average precision ignores them.
"""

from typing import NamedTuple

import numpy as np
import torch

from efficientdet.boxes import pairwise_iou
from efficientdet.evaluation.coco import MATCH_IOU, Details

CAUSES = ("classification", "localisation", "both", "duplicate", "background", "missed")
BACKGROUND_IOU = 0.1
RECALLS = np.linspace(0, 1, 101)  # where COCO samples a precision-recall curve

_CLASSIFICATION, _LOCALISATION, _BOTH, _DUPLICATE, _BACKGROUND, _MISSED = range(len(CAUSES))


class Pairs(NamedTuple):
    """The P pairs of a detection and an object of one image with an IoU of at least BACKGROUND_IOU, without crowds."""

    detections: np.ndarray  # (P,) positions in ScoredDetections
    objects: np.ndarray  # (P,) positions in GroundTruth
    iou: np.ndarray  # (P,)


class Errors(NamedTuple):
    """The errors of D detections of G objects."""

    causes: np.ndarray  # (D,) position in CAUSES; -1 for detections that are right or do not count
    fixed_matches: np.ndarray  # (D,) position in GroundTruth of what the right class or box would find, or -1
    missed: np.ndarray  # (G,) bool


def overlapping_pairs(details: Details) -> Pairs:
    """Return all pairs of a detection and an object that overlap."""
    ground_truth, detections = details.ground_truth, details.detections
    num_images = 1 + max(detections.images.max(initial=0), ground_truth.images.max(initial=0))

    def by_image(images: np.ndarray) -> list[np.ndarray]:
        order = np.argsort(images, kind="stable")
        return np.split(order, np.searchsorted(images[order], np.arange(1, num_images)))

    parts = []
    for a, b in zip(by_image(detections.images), by_image(ground_truth.images)):
        iou = pairwise_iou(torch.from_numpy(detections.boxes[a]), torch.from_numpy(ground_truth.boxes[b])).numpy()
        rows, columns = np.nonzero((iou >= BACKGROUND_IOU) & ~ground_truth.crowd[b])
        parts.append((a[rows], b[columns], iou[rows, columns]))
    return Pairs(*map(np.concatenate, zip(*parts)))


def find_errors(details: Details, pairs: Pairs, counted: np.ndarray) -> Errors:
    """Return the errors of the detections that the mask `counted` (D,) selects, and the objects that they miss."""
    ground_truth, detections = details.ground_truth, details.detections
    found = np.isin(np.arange(len(ground_truth.images)), detections.matches[counted])
    same_class = detections.classes[pairs.detections] == ground_truth.classes[pairs.objects]
    same_iou, same_object = _best_overlap(pairs, same_class, len(detections.images))
    other_iou, other_object = _best_overlap(pairs, ~same_class, len(detections.images))
    first_that_applies = {
        -1: ~counted | (detections.matches >= 0),
        _LOCALISATION: (same_iou >= BACKGROUND_IOU) & (same_iou < MATCH_IOU),
        _CLASSIFICATION: other_iou >= MATCH_IOU,
        _DUPLICATE: same_iou >= MATCH_IOU,
        _BACKGROUND: other_iou < BACKGROUND_IOU,
    }
    causes = np.select(list(first_that_applies.values()), list(first_that_applies), _BOTH)

    intended = np.select([causes == _LOCALISATION, causes == _CLASSIFICATION], [same_object, other_object], -1)
    candidates = np.flatnonzero(intended >= 0)
    candidates = candidates[~found[intended[candidates]]]
    # An object can be found once: by the candidate with the highest score.
    candidates = candidates[np.argsort(-detections.scores[candidates], kind="stable")]
    objects, best = np.unique(intended[candidates], return_index=True)
    fixed_matches = np.full(len(causes), -1)
    fixed_matches[candidates[best]] = objects
    missed = ~ground_truth.crowd & ~found
    missed[objects] = False
    return Errors(causes, fixed_matches, missed)


def gains(details: Details, errors: Errors) -> np.ndarray:
    """Return how much AP50 would rise if all errors of one cause were fixed: (6,), by CAUSES; NaN without objects.

    A detection of the wrong class or with the wrong box becomes right if nothing else finds its object; otherwise it
    is removed, like those of the other causes. Missed objects are removed from the ground truth.
    """
    ground_truth, detections = details.ground_truth, details.detections
    objects = np.bincount(ground_truth.classes[~ground_truth.crowd], minlength=len(details.class_ids))
    right, kept = detections.matches >= 0, ~detections.ignored
    before = _mean_ap(detections.classes, detections.scores, right, kept, objects)
    after = []
    for cause in range(_MISSED):
        fixed = (errors.causes == cause) & (errors.fixed_matches >= 0)
        classes = detections.classes.copy()
        classes[fixed] = ground_truth.classes[errors.fixed_matches[fixed]]
        remaining = kept & ((errors.causes != cause) | fixed)
        after.append(_mean_ap(classes, detections.scores, right | fixed, remaining, objects))
    objects = objects - np.bincount(ground_truth.classes[errors.missed], minlength=len(objects))
    # Without any object left to find, nothing is lost.
    after.append(_mean_ap(detections.classes, detections.scores, right, kept, objects) if objects.any() else 1.0)
    return np.maximum(np.array(after) - before, 0)  # sampling the curve at 101 points may cost a little


def _best_overlap(pairs: Pairs, selected: np.ndarray, num_detections: int) -> tuple[np.ndarray, np.ndarray]:
    """Return each detection's highest IoU among the `selected` (P,) pairs, or 0, and with which object, or -1: (D,)."""
    detections, objects, iou = (values[selected] for values in pairs)
    order = np.lexsort((-objects, iou))  # the last assignment remains: the highest IoU, of equals the first object
    best_iou, best_object = np.zeros(num_detections), np.full(num_detections, -1)
    best_iou[detections[order]], best_object[detections[order]] = iou[order], objects[order]
    return best_iou, best_object


def _mean_ap(
    classes: np.ndarray, scores: np.ndarray, right: np.ndarray, kept: np.ndarray, objects: np.ndarray
) -> float:
    """Return COCO's average precision of the detections `kept`, averaged over the classes with `objects`, or NaN."""
    kept = np.flatnonzero(kept)
    kept = kept[np.lexsort((-scores[kept], classes[kept]))]
    values = []
    for part, count in zip(np.split(right[kept], np.searchsorted(classes[kept], np.arange(1, len(objects)))), objects):
        if count:
            true_positives = np.cumsum(part)
            precision = true_positives / (np.arange(1, len(part) + 1) + np.spacing(1))
            envelope = np.maximum.accumulate(precision[::-1])[::-1]
            values.append(np.append(envelope, 0)[np.searchsorted(true_positives / count, RECALLS)].mean())
    return float(np.mean(values)) if values else np.nan
