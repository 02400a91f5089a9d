"""Soft-NMS: scores that decay, instead of boxes that are dropped."""

import math

import pytest
import torch
from torchvision.ops import box_iou

from efficientdet.model.postprocess import Candidates, choose_detections, find_candidates, soft_nms
from efficientdet.structures import Detections

# The IoU of the first two is 1/3, so that the decay is exp(-(1/3)^2 / 0.5); the third overlaps neither.
BOXES = [[0.0, 0, 2, 2], [1.0, 0, 3, 2], [8.0, 8, 9, 9]]
DECAY = math.exp(-2 / 9)


def detections(boxes, scores, class_ids) -> Detections:
    return Detections(torch.tensor(boxes).view(-1, 4), torch.tensor(scores), torch.tensor(class_ids, dtype=torch.int64))


def random_detections(count: int, num_classes: int, seed: int = 0) -> Detections:
    generator = torch.Generator().manual_seed(seed)
    corners = torch.rand(count, 2, generator=generator) * 100
    boxes = torch.cat((corners, corners + 5 + 40 * torch.rand(count, 2, generator=generator)), dim=1)
    classes = torch.randint(num_classes, (count,), generator=generator)
    return Detections(boxes, torch.rand(count, generator=generator), classes)


def test_nothing():
    found = soft_nms(detections([], [], []), 0.001)
    assert (found.boxes.shape, found.scores.shape, found.class_ids.shape) == ((0, 4), (0,), (0,))
    assert found.class_ids.dtype == torch.int64
    none = Candidates(torch.zeros(0, dtype=torch.int64), found.boxes, found.scores, found.class_ids)
    assert [len(image) for image in choose_detections(none, 2, 0.5, soft_score_threshold=0.001)] == [0, 0]


def test_score_decays_with_the_overlap_with_a_better_box_of_the_class():
    found = soft_nms(detections(BOXES, [0.6, 0.9, 0.7], [4, 4, 4]), 0.001)
    assert found.boxes.tolist() == [BOXES[1], BOXES[2], BOXES[0]]
    torch.testing.assert_close(found.scores, torch.tensor([0.9, 0.7, 0.6 * DECAY]))
    assert found.class_ids.tolist() == [4, 4, 4]


def test_boxes_of_other_classes_and_boxes_without_area_do_not_decay():
    found = soft_nms(detections(BOXES, [0.6, 0.9, 0.7], [0, 1, 1]), 0.001)
    assert found.scores.tolist() == pytest.approx([0.9, 0.7, 0.6])
    found = soft_nms(detections([[1.0, 1, 1, 1]] * 2, [0.6, 0.9], [0, 0]), 0.001)
    assert found.scores.tolist() == pytest.approx([0.9, 0.6])


def test_order_of_decayed_scores_decides_what_comes_next():
    same = detections([BOXES[0], BOXES[0], BOXES[2]], [0.9, 0.8, 0.2], [0, 0, 0])
    found = soft_nms(same, 0.001)
    assert found.boxes.tolist() == [BOXES[0], BOXES[2], BOXES[0]]
    torch.testing.assert_close(found.scores, torch.tensor([0.9, 0.2, 0.8 * math.exp(-2)]))
    assert len(soft_nms(same, 0.001, max_detections=2)) == 2
    assert soft_nms(same, 0.15).scores.tolist() == pytest.approx([0.9, 0.2])  # the third has decayed to 0.11


@pytest.mark.parametrize(("count", "max_detections"), [(1, None), (300, None), (300, 20), (300, 1000)])
def test_same_as_a_plain_loop(count, max_detections):
    given = random_detections(count, num_classes=3)
    boxes, scores, class_ids = given.boxes.double(), given.scores.tolist(), given.class_ids.tolist()
    iou = box_iou(boxes, boxes).tolist()
    waiting, order, kept_scores = list(range(count)), [], []
    while waiting and len(order) != max_detections:
        best = max(waiting, key=lambda n: scores[n])
        waiting.remove(best)
        order.append(best)
        kept_scores.append(scores[best])
        for n in waiting:
            if class_ids[n] == class_ids[best]:
                scores[n] *= math.exp(-(iou[n][best] ** 2) / 0.5)
        waiting = [n for n in waiting if scores[n] > 0.05]
    found = soft_nms(given, 0.05, max_detections)
    assert torch.equal(found.boxes, given.boxes[order])
    assert found.class_ids.tolist() == given.class_ids[order].tolist()
    torch.testing.assert_close(found.scores, torch.tensor(kept_scores))
    assert count == 1 or len(order) == 20 or 200 < len(order) < count


def test_images_of_a_batch_are_independent():
    first, second = random_detections(50, 2, seed=1), random_detections(70, 2, seed=2)
    parts = zip(*((found.boxes, found.scores, found.class_ids) for found in (first, second)))
    candidates = Candidates(torch.tensor([0] * 50 + [1] * 70), *map(torch.cat, parts))
    together = choose_detections(candidates, 2, iou_threshold=0.5, max_detections=30, soft_score_threshold=0.05)
    for found, alone in zip(together, (soft_nms(first, 0.05, 30), soft_nms(second, 0.05, 30)), strict=True):
        assert torch.equal(found.boxes, alone.boxes) and torch.equal(found.scores, alone.scores)


# Candidates of google/automl's evaluation: pairs of an anchor and a class.

ANCHORS = torch.tensor([[10.0, 10, 20, 20], [30.0, 30, 60, 50]])  # yxyx


def test_no_pair_above_the_threshold():
    found = find_candidates((torch.zeros(2, 2, 3), torch.zeros(2, 2, 4), ANCHORS), 64, 64, 0.5, multi_label=True)
    assert [part.shape for part in found] == [(0,), (0, 4), (0,), (0,)]


@pytest.mark.parametrize(("most", "count"), [(5000, 4), (2, 3)])
def test_pairs_with_the_highest_scores_of_each_image(monkeypatch, most, count):
    monkeypatch.setattr("efficientdet.model.postprocess.MAX_CANDIDATES", most)
    probabilities = torch.tensor([[[0.1, 0.7, 0.8], [0.1, 0.9, 0.1]], [[0.1, 0.1, 0.1], [0.1, 0.1, 0.6]]])
    found = find_candidates((probabilities.logit(), torch.zeros(2, 2, 4), ANCHORS), 64, 64, 0.5, multi_label=True)
    expected = [(0, 0.9, 1, 30), (0, 0.8, 2, 10), (0, 0.7, 1, 10), (1, 0.6, 2, 30)]
    expected = expected if count == 4 else [expected[0], expected[1], expected[3]]
    assert found.image_indices.tolist() == [image for image, *_ in expected]
    assert found.scores.tolist() == pytest.approx([score for _, score, *_ in expected])
    assert found.class_ids.tolist() == [class_id for *_, class_id, _ in expected]
    assert found.boxes[:, 0].tolist() == [left for *_, left in expected]
