"""Propose anchors that fit a data set: k-means on IoU, within the structure of the network's anchors.

Every pyramid level has the same scales and ratios. So the search is for a few scales and a few ratios, not for single
shapes, and boxes of all levels are folded into one octave. The distance between two shapes is 1 - IoU with their
centers aligned (Redmon and Farhadi, YOLO9000, 2017, section 2).
"""

from dataclasses import replace
from pathlib import Path

import numpy as np

from efficientdet.check.objects import Objects, best_ious
from efficientdet.model.anchors import AnchorSpec
from efficientdet.model.loss import POSITIVE_IOU

MIN_GAIN = 0.01  # of `_fitness`; less does not justify giving up the anchors of the published weights
MAX_BOXES = 3000  # that the search uses, drawn at random
_START_OCTAVES = (0.0, -0.5, -1.0, -1.5, -2.0, 0.5, 1.0)  # of the scales: k-means finds the nearest optimum only


def propose_anchors(boxes_xyxy: np.ndarray, canvas: tuple[int, int], anchors: AnchorSpec) -> AnchorSpec:
    """Return `anchors` with as many other scales and ratios, fit to boxes (K, 4), K > 0, on a (height, width) canvas.

    k-means on IoU from several starts is followed by a refinement, which moves single scales and ratios while
    `_fitness` grows. The result is rounded, and the same for the same boxes.
    """
    rng = np.random.default_rng(0)
    if len(boxes_xyxy) > MAX_BOXES:
        boxes_xyxy = boxes_xyxy[rng.choice(len(boxes_xyxy), MAX_BOXES, replace=False)]
    sides = boxes_xyxy[:, 2:] - boxes_xyxy[:, :2]
    of_unit_area = sides / np.sqrt(sides.prod(axis=1, keepdims=True))
    aspects = np.log2(_k_means(of_unit_area, len(anchors.ratios), rng)).dot((1, -1))
    levels = anchors.anchor_scale * 2.0 ** np.array(anchors.pyramid_levels)
    octaves = np.arange(len(anchors.scales)) / len(anchors.scales)

    def rounded(parameters: np.ndarray) -> AnchorSpec:
        """Turn log2 of scales and of width / height into rounded scales and ratios in ascending order."""
        scales = np.round(2 ** np.sort(parameters[: len(octaves)]), 3).tolist()
        halves = np.sort(parameters[len(octaves) :]) / 2
        ratios = zip(np.round(2**halves, 2).tolist(), np.round(2**-halves, 2).tolist())
        return replace(anchors, scales=tuple(scales), ratios=tuple(ratios))

    def fitness(parameters: np.ndarray) -> float:
        return _fitness(best_ious(boxes_xyxy, canvas, rounded(parameters)))

    starts = [_structured_k_means(sides, levels, octaves + start, aspects) for start in _START_OCTAVES]
    # Of equals the first: finer levels see more of an object.
    parameters = max(starts, key=lambda start: round(fitness(start), 3))
    value, step = fitness(parameters), 0.2  # octaves
    while step >= 0.02:
        before = value
        for move in np.concatenate((np.eye(len(parameters)), -np.eye(len(parameters)))) * step:
            moved = fitness(parameters + move)
            if moved > value:
                parameters, value = parameters + move, moved
        if value == before:
            step /= 2
    return rounded(parameters)


def anchor_report(objects_by_set: dict[str, Objects], project_file: Path) -> list[str]:
    """Return lines on the anchors that fit the first set, compared with the project's on every set."""
    train = next(iter(objects_by_set.values()))
    if not len(train.rows):
        return ["anchors: no boxes to propose them from"]
    proposed = propose_anchors(train.xyxy, train.canvas, train.anchors)
    height, width = train.canvas
    lines = [f"anchors at {width} x {height}: share of boxes at IoU {POSITIVE_IOU} or more, and mean of the best IoUs"]
    gains = []
    for name, objects in objects_by_set.items():
        before, after = objects.best_ious, best_ious(objects.xyxy, objects.canvas, proposed)
        if len(before):
            old, new = (f"{(ious >= POSITIVE_IOU).mean():.1%} and {ious.mean():.2f}" for ious in (before, after))
            lines.append(f"  {name}: {old} with the project's, {new} with the proposed")
            gains.append(_fitness(after) - _fitness(before))
    if gains[0] < MIN_GAIN:
        return [*lines, f"  the gain is too small to justify a change: keep the anchors of {project_file}"]
    return [
        *lines,
        f"to use the proposed anchors, put these lines into {project_file}:",
        f"anchors_scales: '{list(proposed.scales)}'",
        f"anchors_ratios: '{list(proposed.ratios)}'",
        "(the heads of published weights expect the default anchors: training takes longer with others)",
    ]


def _fitness(ious: np.ndarray) -> float:
    """Return how well anchors fit boxes of these best IoUs: the share that they match, and a little of the mean."""
    return float((ious >= POSITIVE_IOU).mean() + 0.1 * ious.mean())


def _centered_iou(sides: np.ndarray, shapes: np.ndarray) -> np.ndarray:
    """Return the IoU of boxes and shapes of these (width, height), centers aligned: (K, 2), (S, 2) -> (K, S)."""
    intersection = np.minimum(sides[:, :1], shapes[:, 0]) * np.minimum(sides[:, 1:], shapes[:, 1])
    return intersection / (sides.prod(axis=1)[:, None] + shapes.prod(axis=1) - intersection)


def _k_means(sides: np.ndarray, k: int, rng: np.random.Generator) -> np.ndarray:
    """Return cluster centers (k, 2) of boxes (K, 2) by the distance 1 - IoU, initialized as in k-means++."""
    centers = sides[rng.integers(len(sides))][None]
    while len(centers) < k:
        distance = 1 - _centered_iou(sides, centers).max(axis=1)
        chances = distance**2 + 1e-12  # the boxes may all be alike
        centers = np.concatenate((centers, sides[rng.choice(len(sides), p=chances / chances.sum())][None]))
    for _ in range(100):
        before, nearest = centers, _centered_iou(sides, centers).argmax(axis=1)
        groups = [sides[nearest == i] if (nearest == i).any() else centers[i : i + 1] for i in range(k)]
        centers = np.array([np.exp(np.log(group).mean(axis=0)) for group in groups])
        if np.allclose(centers, before):
            break
    return centers


def _structured_k_means(sides: np.ndarray, levels: np.ndarray, octaves: np.ndarray, aspects: np.ndarray) -> np.ndarray:
    """Assign boxes to their best anchors, then move scales and ratios to the means of their boxes, in turn."""
    size, aspect = np.log2(sides).mean(axis=1), np.log2(sides).dot((1, -1))
    shape = (len(levels), len(octaves), len(aspects))
    for _ in range(20):
        anchor_sizes = levels[:, None, None] * 2 ** octaves[:, None]
        anchors = np.stack((anchor_sizes * 2 ** (aspects / 2), anchor_sizes * 2 ** (-aspects / 2)), axis=-1)
        best = _centered_iou(sides, anchors.reshape(-1, 2)).argmax(axis=1)
        level, octave, ratio = np.unravel_index(best, shape)
        folded = size - np.log2(levels)[level]
        octaves = np.array([folded[octave == i].mean() if (octave == i).any() else octaves[i] for i in range(shape[1])])
        aspects = np.array([aspect[ratio == i].mean() if (ratio == i).any() else aspects[i] for i in range(shape[2])])
    return np.concatenate((octaves, aspects))
