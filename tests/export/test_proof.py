"""Detections beside detections, and a proof that can fail."""

import pytest
import torch
from exports import SUPPRESSION, describe, images, network_that_finds

from efficientdet.export.formats import make_deployable, write_exported
from efficientdet.export.proof import Difference, Matches, match, prove, time_in_turns
from efficientdet.runtime.exported import ExportedModel
from efficientdet.structures import Detections

BOX = [0.0, 0, 10, 10]


def detections(*rows: tuple[list[float], float, int]) -> Detections:
    if not rows:
        return Detections(torch.zeros(0, 4), torch.zeros(0), torch.zeros(0, dtype=torch.int64))
    boxes, scores, classes = zip(*rows)
    return Detections(torch.tensor(boxes), torch.tensor(scores), torch.tensor(classes))


def test_nothing_matches_nothing():
    assert match(detections(), detections()) == Matches()
    alone = Matches(found=1, unmatched=1, clear=1, clear_unmatched=1)
    assert match(detections((BOX, 0.5, 0)), detections()) == alone
    assert match(detections(), detections((BOX, 0.5, 0))) == alone


def test_differences_of_a_pair():
    found = match(detections((BOX, 0.5, 0)), detections(([0.0, 0, 10, 10.5], 0.75, 0)))
    assert found == Matches(found=2, clear=2, scores=0.25, boxes=0.5)


def test_other_classes_and_other_places_do_not_match():
    one = detections((BOX, 0.5, 0))
    assert match(one, detections((BOX, 0.5, 1))).unmatched == 2
    assert match(one, detections(([0.0, 0, 10, 13], 0.5, 0))).unmatched == 2


def test_a_large_box_may_differ_by_more_and_one_beyond_the_edge_matches_itself():
    large, beyond = [0.0, 0, 100, 40], [600.0, 0, 511, 40]
    assert match(detections((large, 0.5, 0)), detections(([0.0, 0, 96, 40], 0.5, 0))).unmatched == 0
    assert match(detections((beyond, 0.5, 0)), detections((beyond, 0.5, 0))).unmatched == 0


def test_each_is_matched_once_and_faint_ones_are_counted_by_themselves():
    twice = detections((BOX, 0.5, 0), (BOX, 0.125, 0))
    assert match(twice, detections((BOX, 0.5, 0))) == Matches(found=3, unmatched=1, clear=2)


def test_matches_add_up():
    total = Matches(1, 2, 0, 1, 0.5, 0.25).plus(Matches(2, 5, 1, 0, 0.125, 4.0))
    assert total == Matches(3, 7, 1, 1, 0.5, 4.0)


def test_a_difference_is_no_proof_when_it_is_too_large_or_no_number():
    assert Difference("x", 0.1, 0.1).is_proven
    assert not Difference("x", 0.2, 0.1).is_proven and not Difference("x", float("nan"), 0.1).is_proven


class Changed(ExportedModel):
    """A file of the network with one output changed."""

    def __init__(self, metadata, number: int, change):
        self.metadata = metadata
        self._deployable = make_deployable(network_that_finds(), metadata)
        self._number, self._change = number, change

    def __call__(self, images: torch.Tensor) -> tuple[torch.Tensor, ...]:
        outputs = [output.clone() for output in self._deployable(images.permute(0, 2, 3, 1))]
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
def test_the_first_raw_output_that_differs_is_named(number, change, name):
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
def test_the_first_difference_of_detections_is_named(number, change, name):
    metadata = describe(suppression=SUPPRESSION)
    changed = Changed(metadata, number, change)
    assert prove(changed, network_that_finds(), [images(metadata)]).first_failure.name == name


def test_seconds_of_all(tmp_path):
    path = tmp_path / "d0.pt2"
    write_exported(network_that_finds(), describe(), "pt2", path)
    names, seconds = zip(*time_in_turns([path], network_that_finds(), images(describe()), runs=2))
    assert names == ("PyTorch", "pt2 float32") and all(0 < value < 60 for value in seconds)
