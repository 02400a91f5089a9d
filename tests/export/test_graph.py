"""The exported graph, with normalization and NMS inside."""

import pytest
import torch
from exports import SUPPRESSION, describe, images, network_that_finds

from efficientdet.export.formats import make_graph
from efficientdet.export.graph import scores_after_nms, scores_after_nms_operator
from efficientdet.model.postprocess import postprocess
from efficientdet.runtime.metadata import Suppression

BOX = [10.0, 10, 30, 30]
NEAR = [12.0, 10, 32, 30]  # IoU 360 / 440 with BOX
FAR = [60.0, 60, 90, 90]


def survivors(boxes: list, scores: list, classes: list, run_nms=scores_after_nms) -> list:
    return run_nms(torch.tensor(boxes), torch.tensor(scores), torch.tensor(classes), 3, 0.05, 0.5).tolist()


@pytest.mark.parametrize("run_nms", [scores_after_nms, scores_after_nms_operator])
def test_nothing_survives_below_the_threshold(run_nms):
    assert survivors([[BOX, FAR]], [[0.05, 0.01]], [[0, 1]], run_nms) == [[0.0, 0.0]]


def test_lower_score_of_two_overlapping_boxes_is_suppressed():
    assert survivors([[NEAR, BOX, FAR]], [[0.5, 0.75, 0.25]], [[0, 0, 0]]) == [[0.0, 0.75, 0.25]]


def test_classes_and_images_are_independent():
    assert survivors([[NEAR, BOX]], [[0.5, 0.75]], [[0, 1]]) == [[0.5, 0.75]]
    assert survivors([[BOX], [BOX]], [[0.5], [0.75]], [[2], [2]]) == [[0.5], [0.75]]
    # The last class of the first image and the first class of the second are adjacent groups.
    assert survivors([[BOX, NEAR], [BOX, NEAR]], [[0.5, 0.25], [0.75, 0.5]], [[2, 2], [0, 0]]) == [[0.5, 0], [0.75, 0]]


def test_raw_outputs_equal_those_of_the_network():
    metadata = describe(normalization="outside")
    batch = images(metadata, 2)
    with torch.no_grad():
        expected = network_that_finds()(batch)
        class_logits, box_deltas, anchors = make_graph(network_that_finds(), metadata)(batch)
    assert (class_logits - expected.class_logits).abs().max() < 1e-4 * expected.class_logits.std()
    assert (box_deltas - expected.box_deltas).abs().max() < 1e-4 * expected.box_deltas.std()
    assert torch.equal(anchors, expected.anchors)


def test_normalization_inside_equals_outside():
    pixels = images(describe(), 1)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (describe().mean, describe().std))
    with torch.no_grad():
        inside = make_graph(network_that_finds(), describe())(pixels.permute(0, 2, 3, 1))
        outside = make_graph(network_that_finds(), describe(normalization="outside"))((pixels / 255 - mean) / std)
    for one, other in zip(inside, outside):
        assert (one - other).abs().max() <= 1e-4 * other.std()


@pytest.mark.parametrize("dynamic", [False, True])
def test_detections_equal_postprocessing(dynamic):
    metadata = describe(normalization="outside", suppression=SUPPRESSION, dynamic=dynamic)
    batch = images(metadata, 3)
    with torch.no_grad():
        raw = make_graph(network_that_finds(), describe(normalization="outside"))(batch)
        boxes, scores, classes, count = make_graph(network_that_finds(), metadata)(batch)
    expected = postprocess(raw, *metadata.image_size, 0.05, 0.5)
    for n, found in enumerate(expected):
        kept = min(100, len(found))
        assert count[n] == kept > 10
        torch.testing.assert_close(scores[n, :kept], found.scores[:kept], rtol=0, atol=1e-6)
        torch.testing.assert_close(boxes[n, :kept], found.boxes[:kept], rtol=0, atol=1e-3)
        assert torch.equal(classes[n, :kept], found.class_ids[:kept])


def test_rows_beyond_the_count_are_zero():
    metadata = describe(suppression=Suppression(score_threshold=0.9999, iou_threshold=0.5, max_detections=7))
    with torch.no_grad():
        outputs = make_graph(network_that_finds(), metadata)(images(metadata).permute(0, 2, 3, 1))
    boxes, scores, classes, count = outputs
    assert (boxes.shape, scores.shape, classes.shape) == ((1, 7, 4), (1, 7), (1, 7))
    assert count.tolist() == [0] and not any(values.any() for values in outputs)


def test_sizes_that_are_not_multiples_are_rejected():
    graph = make_graph(network_that_finds(), describe(dynamic=True))
    with pytest.raises(ValueError, match="multiples of 128"):
        graph(torch.zeros(1, 128, 100, 3, dtype=torch.uint8))
