"""The graph that is exported: normalisation and suppression inside."""

import pytest
import torch
from exports import SUPPRESSION, describe, images, network_that_finds

from efficientdet.export.formats import make_deployable
from efficientdet.export.graph import opaque_surviving_scores, surviving_scores
from efficientdet.model.postprocess import postprocess
from efficientdet.runtime.metadata import Suppression

BOX = [10.0, 10, 30, 30]
NEAR = [12.0, 10, 32, 30]  # IoU 360 / 440 with BOX
FAR = [60.0, 60, 90, 90]


def survivors(boxes: list, scores: list, classes: list, surviving=surviving_scores) -> list:
    arguments = torch.tensor(boxes), torch.tensor(scores), torch.tensor(classes)
    return surviving(*arguments, 3, 0.05, 0.5).tolist()


@pytest.mark.parametrize("surviving", [surviving_scores, opaque_surviving_scores])
def test_nothing_survives_where_nothing_is_above_the_threshold(surviving):
    assert survivors([[BOX, FAR]], [[0.05, 0.01]], [[0, 1]], surviving) == [[0.0, 0.0]]


def test_the_weaker_of_two_that_overlap_goes():
    assert survivors([[NEAR, BOX, FAR]], [[0.5, 0.75, 0.25]], [[0, 0, 0]]) == [[0.0, 0.75, 0.25]]


def test_classes_and_images_do_not_meet():
    assert survivors([[NEAR, BOX]], [[0.5, 0.75]], [[0, 1]]) == [[0.5, 0.75]]
    assert survivors([[BOX], [BOX]], [[0.5], [0.75]], [[2], [2]]) == [[0.5], [0.75]]
    # The first image's last class and the second one's first are neighbours.
    assert survivors([[BOX, NEAR], [BOX, NEAR]], [[0.5, 0.25], [0.75, 0.5]], [[2, 2], [0, 0]]) == [[0.5, 0], [0.75, 0]]


def test_raw_outputs_are_the_networks():
    metadata = describe(normalization="outside")
    batch = images(metadata, 2)
    with torch.no_grad():
        expected = network_that_finds()(batch)
        class_logits, box_deltas, anchors = make_deployable(network_that_finds(), metadata)(batch)
    assert (class_logits - expected.class_logits).abs().max() < 1e-4 * expected.class_logits.std()
    assert (box_deltas - expected.box_deltas).abs().max() < 1e-4 * expected.box_deltas.std()
    assert torch.equal(anchors, expected.anchors)


def test_normalisation_inside_equals_that_outside():
    pixels = images(describe(), 1)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (describe().mean, describe().std))
    with torch.no_grad():
        inside = make_deployable(network_that_finds(), describe())(pixels.permute(0, 2, 3, 1))
        outside = make_deployable(network_that_finds(), describe(normalization="outside"))((pixels / 255 - mean) / std)
    for one, other in zip(inside, outside):
        assert (one - other).abs().max() <= 1e-4 * other.std()


@pytest.mark.parametrize("dynamic", [False, True])
def test_detections_are_those_of_the_postprocessor(dynamic):
    metadata = describe(normalization="outside", suppression=SUPPRESSION, dynamic=dynamic)
    batch = images(metadata, 3)
    with torch.no_grad():
        raw = make_deployable(network_that_finds(), describe(normalization="outside"))(batch)
        boxes, scores, classes, count = make_deployable(network_that_finds(), metadata)(batch)
    expected = postprocess(raw, *metadata.image_size, 0.05, 0.5)
    for n, found in enumerate(expected):
        kept = min(100, len(found))
        assert count[n] == kept > 10
        torch.testing.assert_close(scores[n, :kept], found.scores[:kept], rtol=0, atol=1e-6)
        torch.testing.assert_close(boxes[n, :kept], found.boxes[:kept], rtol=0, atol=1e-3)
        assert torch.equal(classes[n, :kept], found.class_ids[:kept])


def test_beyond_the_count_all_is_zero():
    metadata = describe(suppression=Suppression(score_threshold=0.9999, iou_threshold=0.5, max_detections=7))
    with torch.no_grad():
        outputs = make_deployable(network_that_finds(), metadata)(images(metadata).permute(0, 2, 3, 1))
    boxes, scores, classes, count = outputs
    assert (boxes.shape, scores.shape, classes.shape) == ((1, 7, 4), (1, 7), (1, 7))
    assert count.tolist() == [0] and not any(values.any() for values in outputs)


def test_sizes_that_do_not_fit_are_refused():
    deployable = make_deployable(network_that_finds(), describe(dynamic=True))
    with pytest.raises(ValueError, match="multiples of 128"):
        deployable(torch.zeros(1, 128, 100, 3, dtype=torch.uint8))
