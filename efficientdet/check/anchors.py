"""Anchors that suit a data set: k-means on IoU, in the structure that the network gives its anchors.

A network's anchor shapes are the products of pyramid levels, scales and ratios: the same scales and ratios on every
level. So the boxes of all levels share their cluster centres, folded into one octave, and what is searched is a few
scales and a few ratios, not so many shapes. The distance of two shapes is 1 - IoU with the centres put together
(Redmon and Farhadi, YOLO9000, 2017, section 2).
"""

import numpy as np

from efficientdet.check.objects import Objects, best_ious
from efficientdet.config import ModelConfig
from efficientdet.model.loss import POSITIVE_IOU
from efficientdet.project import Project

LEAST_GAIN = 0.01  # of `_fitness`; less is not worth giving up the anchors that published weights have learnt
MOST_BOXES = 3000  # that the search looks at: a random draw of all
_START_OCTAVES = (0.0, -0.5, -1.0, -1.5, -2.0, 0.5, 1.0)  # where the scales may begin; k-means finds near centres only
_FIRST_STEP, _LAST_STEP = 0.2, 0.02  # of the refinement, in octaves


def propose_anchors(
    boxes_xyxy: np.ndarray, canvas: tuple[int, int], config: ModelConfig, num_scales: int, num_ratios: int
) -> tuple[tuple[float, ...], tuple[tuple[float, float], ...]]:
    """Scales and (width, height) ratios for boxes (K, 4) on a canvas of (height, width) pixels. K must not be 0.

    k-means on IoU comes first, from several starts; then scales and ratios are moved one by one as long as `_fitness`
    grows. The same boxes give the same numbers, which are rounded as one writes them.
    """
    rng = np.random.default_rng(0)
    if len(boxes_xyxy) > MOST_BOXES:
        boxes_xyxy = boxes_xyxy[rng.choice(len(boxes_xyxy), MOST_BOXES, replace=False)]
    sides = boxes_xyxy[:, 2:] - boxes_xyxy[:, :2]
    of_unit_area = sides / np.sqrt(sides.prod(axis=1, keepdims=True))
    aspects = np.log2(_k_means(of_unit_area, num_ratios, rng)).dot((1, -1))

    def fitness(octaves: np.ndarray, aspects: np.ndarray) -> float:
        return _fitness(best_ious(boxes_xyxy, canvas, config, *_written(octaves, aspects)))

    levels = config.anchor_scale * 2.0 ** np.array(config.pyramid_levels)
    starts = [
        _alternated(sides, levels, start + np.arange(num_scales) / num_scales, aspects) for start in _START_OCTAVES
    ]
    # Of equals the first: the finer levels see more of an object.
    octaves, aspects = max(starts, key=lambda start: round(fitness(*start), 3))
    parameters, value, step = np.concatenate((octaves, aspects)), fitness(octaves, aspects), _FIRST_STEP
    while step >= _LAST_STEP:
        before = value
        for move in np.concatenate((np.eye(len(parameters)), -np.eye(len(parameters)))) * step:
            moved = fitness(*np.split(parameters + move, [num_scales]))
            if moved > value:
                parameters, value = parameters + move, moved
        if value == before:
            step /= 2
    return _written(*np.split(parameters, [num_scales]))


def anchor_report(named_objects: dict[str, Objects], project: Project, config: ModelConfig) -> list[str]:
    """Lines on the anchors that suit the first of some sets, beside those of the project, for each set by its name."""
    train = next(iter(named_objects.values()))
    if not len(train.rows):
        return ["anchors: there are no boxes to propose any from"]
    present = project.anchor_scales, project.anchor_ratios
    proposed = propose_anchors(train.xyxy, train.canvas, config, *map(len, present))
    height, width = train.canvas
    lines = [f"anchors at {width} x {height}: share of boxes reached by IoU {POSITIVE_IOU}, and mean of the best IoUs"]
    gains = []
    for name, objects in named_objects.items():
        before, after = objects.best_ious, best_ious(objects.xyxy, objects.canvas, config, *proposed)
        if len(before):
            lines.append(
                f"  {name}: {(before >= POSITIVE_IOU).mean():.1%} and {before.mean():.2f} with the project's, "
                f"{(after >= POSITIVE_IOU).mean():.1%} and {after.mean():.2f} with those proposed"
            )
            gains.append(_fitness(after) - _fitness(before))
    if gains[0] < LEAST_GAIN:
        return [*lines, f"  the gain is too small to give up the anchors of {project.path}: keep them"]
    return [
        *lines,
        f"to use those proposed, put these lines into {project.path}:",
        f"anchors_scales: '{list(proposed[0])}'",
        f"anchors_ratios: '{list(proposed[1])}'",
        "(published weights expect the default anchors: with others their heads have to adapt, so give training time)",
    ]


def _fitness(ious: np.ndarray) -> float:
    """How well anchors suit boxes, from each box's best IoU: the share that is reached, and a little of the mean."""
    return float((ious >= POSITIVE_IOU).mean() + 0.1 * ious.mean())


def _written(octaves: np.ndarray, aspects: np.ndarray) -> tuple[tuple[float, ...], tuple[tuple[float, float], ...]]:
    """Scales and ratios in rising order, rounded, from log2 of the scales and log2 of width / height."""
    halves = np.sort(aspects) / 2
    scales = np.round(2 ** np.sort(octaves), 3).tolist()
    return tuple(scales), tuple(zip(np.round(2**halves, 2).tolist(), np.round(2**-halves, 2).tolist()))


def _centred_iou(sides: np.ndarray, shapes: np.ndarray) -> np.ndarray:
    """The IoU of boxes and shapes of these (width, height), centres put together: (K, 2), (S, 2) -> (K, S)."""
    intersection = np.minimum(sides[:, :1], shapes[:, 0]) * np.minimum(sides[:, 1:], shapes[:, 1])
    return intersection / (sides.prod(axis=1)[:, None] + shapes.prod(axis=1) - intersection)


def _k_means(sides: np.ndarray, k: int, rng: np.random.Generator) -> np.ndarray:
    """Cluster centres (k, 2) of boxes (K, 2) by the distance 1 - IoU, begun as k-means++ begins."""
    centres = sides[rng.integers(len(sides))][None]
    while len(centres) < k:
        distance = 1 - _centred_iou(sides, centres).max(axis=1)
        chances = distance**2 + 1e-12  # all boxes may be alike
        centres = np.concatenate((centres, sides[rng.choice(len(sides), p=chances / chances.sum())][None]))
    for _ in range(100):
        before, nearest = centres, _centred_iou(sides, centres).argmax(axis=1)
        groups = [sides[nearest == i] if (nearest == i).any() else centres[i : i + 1] for i in range(k)]
        centres = np.array([np.exp(np.log(group).mean(axis=0)) for group in groups])
        if np.allclose(centres, before):
            break
    return centres


def _shapes(levels: np.ndarray, octaves: np.ndarray, aspects: np.ndarray) -> np.ndarray:
    """(L * S * R, 2): widths and heights of all anchors."""
    sizes = levels[:, None, None] * 2 ** octaves[:, None]
    return np.stack((sizes * 2 ** (aspects / 2), sizes * 2 ** (-aspects / 2)), axis=-1).reshape(-1, 2)


def _alternated(
    sides: np.ndarray, levels: np.ndarray, octaves: np.ndarray, aspects: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """k-means with the anchors' structure: boxes go to their best anchor, then scales and ratios to their boxes."""
    size, aspect = np.log2(sides).mean(axis=1), np.log2(sides).dot((1, -1))
    shape = (len(levels), len(octaves), len(aspects))
    for _ in range(20):
        level, octave, ratio = np.unravel_index(
            _centred_iou(sides, _shapes(levels, octaves, aspects)).argmax(axis=1), shape
        )
        folded = size - np.log2(levels)[level]
        octaves = np.array([folded[octave == i].mean() if (octave == i).any() else octaves[i] for i in range(shape[1])])
        aspects = np.array([aspect[ratio == i].mean() if (ratio == i).any() else aspects[i] for i in range(shape[2])])
    return octaves, aspects
