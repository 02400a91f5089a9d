"""Proposed anchors: known shapes are recovered, and anchors that fit are kept."""

import numpy as np
import pytest

from efficientdet.check.anchors import anchor_report, propose_anchors
from efficientdet.check.objects import Objects, best_ious
from efficientdet.config import ANCHOR_RATIOS, ANCHOR_SCALES, model_config
from efficientdet.model.anchors import AnchorSpec, make_anchors
from efficientdet.model.loss import POSITIVE_IOU
from efficientdet.project import load_project

CONFIG, CANVAS = model_config(0), (256, 256)


def spec(scales, ratios) -> AnchorSpec:
    return AnchorSpec(CONFIG.pyramid_levels, CONFIG.anchor_scale, tuple(scales), tuple(ratios))


def boxes_of(scales, ratios, number: int = 600, noise: float = 0.0) -> np.ndarray:
    """Return random anchors of the canvas, (K, 4) xyxy, their sides multiplied by factors of mean 1 and std `noise`."""
    rng = np.random.default_rng(3)
    anchors = make_anchors(*CANVAS, spec(scales, ratios)).numpy()
    sides = anchors[:, [3, 2]] - anchors[:, [1, 0]]
    anchors = anchors[np.log2(sides).max(axis=1) < 8]
    y1, x1, y2, x2 = anchors[rng.choice(len(anchors), number)].T
    width, height = (np.stack((x2 - x1, y2 - y1)) * rng.normal(1, noise, (2, number))) / 2
    x, y = (x1 + x2) / 2, (y1 + y2) / 2
    return np.stack((x - width, y - height, x + width, y + height), axis=1)


def objects_of(boxes: np.ndarray, project) -> Objects:
    anchors = spec(project.anchor_scales, project.anchor_ratios)
    return Objects(CANVAS, anchors, np.arange(len(boxes)), boxes, best_ious(boxes, CANVAS, anchors))


def coverage(boxes, anchors: AnchorSpec) -> tuple[float, float]:
    ious = best_ious(boxes, CANVAS, anchors)
    return (ious >= POSITIVE_IOU).mean(), ious.mean()


def test_no_boxes_give_no_proposal(make_project):
    project = make_project()
    (line,) = anchor_report({"train": objects_of(np.zeros((0, 4)), project)}, project.path)
    assert "no boxes" in line


@pytest.mark.parametrize(
    ("scales", "ratios"),
    [
        ((1.0,), ((1.0, 1.0),)),
        ((0.8,), ((0.5, 2.0), (2.0, 0.5))),
        ((0.7, 1.0), ((1.0, 1.0), (2.0, 0.5))),
    ],
)
def test_shapes_of_the_boxes_are_recovered(scales, ratios):
    boxes = boxes_of(scales, ratios, noise=0.02)
    proposed = propose_anchors(boxes, CANVAS, spec(ANCHOR_SCALES[: len(scales)], ANCHOR_RATIOS[: len(ratios)]))
    np.testing.assert_allclose(proposed.scales, scales, rtol=0.08)
    np.testing.assert_allclose(proposed.ratios, ratios, rtol=0.08)
    assert coverage(boxes, proposed) > (0.999, 0.9)


def test_proposal_is_deterministic():
    anchors = spec((0.5, 0.7), ((0.5, 2.0), (1.0, 1.0)))
    boxes = boxes_of(anchors.scales, anchors.ratios, number=4000, noise=0.2)
    assert propose_anchors(boxes, CANVAS, anchors) == propose_anchors(boxes, CANVAS, anchors)


@pytest.mark.parametrize("boxes", [[[10, 10, 40, 30]], [[10, 10, 40, 30]] * 5])
def test_there_may_be_fewer_shapes_than_anchors(boxes):
    proposed = propose_anchors(np.array(boxes, float), CANVAS, spec(ANCHOR_SCALES, ANCHOR_RATIOS))
    assert len(proposed.scales) == len(proposed.ratios) == 3
    assert min(proposed.scales) > 0 and np.min(proposed.ratios) > 0


def test_proposed_anchors_match_more_boxes_and_can_be_pasted(make_project):
    project = make_project()
    boxes = boxes_of((0.3, 0.4), ((0.4, 2.5), (0.6, 1.7)), noise=0.1)
    sets = {"train": objects_of(boxes, project), "val": objects_of(boxes[:50], project)}
    lines = anchor_report(sets, project.path)
    scales, ratios = (line for line in lines if line.startswith("anchors_"))
    path = project.path.with_name("pasted.yml")
    kept = [line for line in project.path.read_text().splitlines() if not line.startswith("anchors_")]
    path.write_text("\n".join([*kept, scales, ratios]))

    pasted = load_project(path)
    assert len(pasted.anchor_scales) == 3 and len(pasted.anchor_ratios) == 3
    before = coverage(boxes, spec(ANCHOR_SCALES, ANCHOR_RATIOS))
    after = coverage(boxes, spec(pasted.anchor_scales, pasted.anchor_ratios))
    assert before[0] < 0.5 and after[0] > 0.9
    assert lines[1] == (
        f"  train: {before[0]:.1%} and {before[1]:.2f} with the project's, "
        f"{after[0]:.1%} and {after[1]:.2f} with the proposed"
    )
    assert lines[2].startswith("  val: ")
    assert "anchors_" not in lines[-1]


def test_anchors_that_fit_are_kept(make_project):
    project = make_project()
    lines = anchor_report({"train": objects_of(boxes_of(ANCHOR_SCALES, ANCHOR_RATIOS), project)}, project.path)
    assert "keep the anchors" in lines[-1] and not any(line.startswith("anchors_") for line in lines)
