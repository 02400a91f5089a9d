"""Matching detections, and a proof that can fail."""

import pytest
import torch
from exports import SUPPRESSION, describe, images, network_that_finds

from efficientdet.export.formats import make_graph
from efficientdet.export.proof import Difference, Matches, Proof, prove
from efficientdet.runtime.exported import ExportedModel
from efficientdet.structures import Detections

BOX = [0.0, 0, 10, 10]


def detections(*rows: tuple[list[float], float, int]) -> Detections:
    if not rows:
        return Detections(torch.zeros(0, 4), torch.zeros(0), torch.zeros(0, dtype=torch.int64))
    boxes, scores, classes = zip(*rows)
    return Detections(torch.tensor(boxes), torch.tensor(scores), torch.tensor(classes))


def match(*pairs: tuple[Detections, Detections]) -> Matches:
    matches = Matches()
    for expected, got in pairs:
        matches.add(expected, got)
    return matches


def test_no_detections_match():
    assert match((detections(), detections())) == Matches()
    alone = Matches(found=1, clear=1)
    assert match((detections((BOX, 0.5, 0)), detections())) == alone
    assert match((detections(), detections((BOX, 0.5, 0)))) == alone


def test_differences_of_a_pair():
    found = match((detections((BOX, 0.5, 0)), detections(([0.0, 0, 10, 10.5], 0.75, 0))))
    assert found == Matches(found=2, matched=2, clear=2, clear_matched=2, scores=0.25, boxes=0.5)


def test_other_classes_and_other_places_do_not_match():
    one = detections((BOX, 0.5, 0))
    assert match((one, detections((BOX, 0.5, 1)))).matched == 0
    assert match((one, detections(([0.0, 0, 10, 13], 0.5, 0)))).matched == 0


def test_large_boxes_may_differ_by_more_and_boxes_beyond_the_edge_match_themselves():
    large, beyond = [0.0, 0, 100, 40], [600.0, 0, 511, 40]
    assert match((detections((large, 0.5, 0)), detections(([0.0, 0, 96, 40], 0.5, 0)))).matched == 2
    assert match((detections((beyond, 0.5, 0)), detections((beyond, 0.5, 0)))).matched == 2


def test_each_detection_matches_once_and_faint_ones_count_separately():
    twice = detections((BOX, 0.5, 0), (BOX, 0.125, 0))
    assert match((twice, detections((BOX, 0.5, 0)))) == Matches(found=3, matched=2, clear=2, clear_matched=2)


def test_matches_add_up():
    near = detections((BOX, 0.5, 0)), detections(([0.0, 0, 10, 10.5], 0.75, 0))
    far = detections((BOX, 0.5, 0)), detections(([0.0, 0, 10, 11], 0.625, 0))
    alone = detections(), detections((BOX, 0.125, 0))
    assert match(near, far, alone) == Matches(5, 4, 4, 4, scores=0.25, boxes=1.0)


def test_differences_that_are_too_large_or_nan_are_failures():
    equal, large, nan = (Difference("x", value, 0.1) for value in (0.1, 0.2, float("nan")))
    assert Proof([equal], Matches()).first_failure is None
    assert Proof([equal, large], Matches()).first_failure is large
    assert Proof([equal, nan], Matches()).first_failure is nan


class Changed(ExportedModel):
    """An exported file with one output changed."""

    def __init__(self, metadata, number: int, change):
        self.metadata, self.input_dtype = metadata, torch.uint8
        self._graph = make_graph(network_that_finds(), metadata)
        self._number, self._change = number, change

    def __call__(self, images: torch.Tensor) -> tuple[torch.Tensor, ...]:
        outputs = [output.clone() for output in self._graph(images.permute(0, 2, 3, 1))]
        self._change(outputs[self._number])
        return tuple(outputs)


@pytest.mark.parametrize(
    ("number", "change", "name"),
    [
        (0, lambda logits: logits[0, 7, 1].add_(1), "class_logits"),
        (1, lambda deltas: deltas[0, 7, 1].fill_(float("nan")), "box_deltas"),
        (2, lambda anchors: anchors.add_(1), "anchors"),
    ],
)
def test_first_raw_output_that_differs_is_named(number, change, name):
    metadata = describe()
    changed = Changed(metadata, number, change)
    assert prove(changed, network_that_finds(), [images(metadata)]).first_failure.name == name
    same = Changed(metadata, number, lambda output: None)
    assert prove(same, network_that_finds(), [images(metadata)] * 2).first_failure is None


@pytest.mark.parametrize(
    ("number", "change", "name"),
    [
        (0, lambda boxes: boxes.add_(0.1), "boxes of detections (pixels)"),
        (1, lambda scores: scores.sub_(0.01), "scores of detections"),
        (2, lambda classes: classes.add_(1), "share of detections unmatched"),
        (3, lambda count: count.zero_(), "share of detections unmatched"),
    ],
)
def test_first_difference_of_detections_is_named(number, change, name):
    metadata = describe(suppression=SUPPRESSION)
    changed = Changed(metadata, number, change)
    assert prove(changed, network_that_finds(), [images(metadata)]).first_failure.name == name
