"""From outputs to detections: thresholds, NMS within each class, clipping, order."""

import pytest
import torch
from torch import Tensor
from torchvision.ops import nms

from efficientdet.data.transforms import Letterbox
from efficientdet.model.postprocess import (
    Candidates,
    best_candidates,
    choose_detections,
    find_candidates,
    postprocess,
    suppress,
    surviving_candidates,
)
from efficientdet.structures import Detections, concatenate

# yxyx. The IoU of the first two is 0.9; the third overlaps neither.
ANCHORS = torch.tensor([[10.0, 10, 20, 20], [10, 10, 20, 19], [40, 40, 50, 60]])


NOTHING = Detections(torch.zeros(0, 4), torch.zeros(0), torch.zeros(0, dtype=torch.int64))


def outputs(*images, anchors: Tensor = ANCHORS, deltas: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """Return outputs with these class probabilities, (anchors, classes) per image, and boxes equal to the anchors."""
    logits = torch.tensor(images).logit()
    return logits, torch.zeros(len(images), len(anchors), 4) if deltas is None else deltas, anchors


def test_nothing_above_the_threshold():
    found = postprocess(outputs([[0.1, 0.2], [0.3, 0.1], [0.05, 0.3]]), 64, 64, 0.4, 0.5)
    assert len(found) == 1 and len(found[0]) == 0
    assert (found[0].boxes.shape, found[0].scores.shape, found[0].class_ids.shape) == ((0, 4), (0,), (0,))
    assert found[0].class_ids.dtype == torch.int64


def test_no_images():
    assert postprocess((torch.zeros(0, 3, 2), torch.zeros(0, 3, 4), ANCHORS), 64, 64, 0.4, 0.5) == []


@pytest.mark.parametrize(
    ("boxes", "scores", "class_ids"),
    [
        (torch.zeros(0), torch.zeros(0), torch.zeros(0)),
        (torch.zeros(2, 5), torch.zeros(2), torch.zeros(2)),
        (torch.zeros(2, 4), torch.zeros(3), torch.zeros(2)),
        (torch.zeros(2, 4), torch.zeros(2), torch.zeros(1)),
        (torch.zeros(2, 4), torch.zeros(2, 1), torch.zeros(2)),
        (torch.zeros(1, 2, 4), torch.zeros(2), torch.zeros(2)),
    ],
)
def test_inconsistent_shapes_are_refused(boxes, scores, class_ids):
    with pytest.raises(ValueError, match=r"\(K, 4\), \(K,\) and \(K,\)"):
        Detections(boxes, scores, class_ids)


def test_worse_of_two_overlapping_boxes_of_a_class_is_dropped():
    (found,) = postprocess(outputs([[0.7, 0.1], [0.9, 0.2], [0.1, 0.8]]), 64, 64, 0.4, 0.5)
    assert found.boxes.tolist() == [[10, 10, 19, 20], [40, 40, 60, 50]]
    torch.testing.assert_close(found.scores, torch.tensor([0.9, 0.8]))
    assert found.class_ids.tolist() == [0, 1]


def test_threadsping_boxes_of_two_classes_are_both_kept():
    (found,) = postprocess(outputs([[0.7, 0.1], [0.2, 0.9], [0.1, 0.1]]), 64, 64, 0.4, 0.5)
    assert found.boxes.tolist() == [[10, 10, 19, 20], [10, 10, 20, 20]]
    assert found.class_ids.tolist() == [1, 0]


def test_boxes_that_overlap_by_less_than_the_threshold_are_both_kept():
    (found,) = postprocess(outputs([[0.7], [0.9], [0.1]]), 64, 64, 0.4, 0.95)
    assert len(found) == 2


def test_anchor_counts_once_with_its_best_class():
    (found,) = postprocess(outputs([[0.7, 0.8, 0.75], [0.1, 0.1, 0.1], [0.1, 0.1, 0.1]]), 64, 64, 0.4, 0.5)
    assert found.class_ids.tolist() == [1]


def test_detections_are_ordered_by_score():
    anchors = torch.tensor([[0.0, 20 * i, 10, 20 * i + 10] for i in range(5)])
    probabilities = [[0.5, 0.1], [0.1, 0.9], [0.7, 0.1], [0.1, 0.6], [0.8, 0.1]]
    (found,) = postprocess(outputs(probabilities, anchors=anchors), 128, 128, 0.4, 0.5)
    torch.testing.assert_close(found.scores, torch.tensor([0.9, 0.8, 0.7, 0.6, 0.5]))
    assert found.boxes[:, 0].tolist() == [20, 80, 40, 60, 0]
    assert found.class_ids.tolist() == [1, 0, 0, 1, 0]


def test_boxes_are_clipped_to_the_input():
    anchors = torch.tensor([[-8.0, -6, 20, 200], [30, 20, 90, 40]])
    (found,) = postprocess(outputs([[0.9, 0.1], [0.1, 0.8]], anchors=anchors), 64, 128, 0.4, 0.5)
    assert found.boxes.tolist() == [[0, 0, 127, 20], [20, 30, 40, 63]]


def test_deltas_move_the_anchors():
    deltas = torch.zeros(1, 3, 4)
    deltas[0, 2] = torch.tensor([0.5, -0.25, 0.0, 0.0])  # (dy, dx) of an anchor 10 high and 20 wide
    (found,) = postprocess(outputs([[0.1], [0.1], [0.9]], deltas=deltas), 64, 64, 0.4, 0.5)
    assert found.boxes.tolist() == [[35, 45, 55, 55]]


def test_images_of_a_batch_are_independent():
    first, second = [[0.7], [0.1], [0.1]], [[0.1], [0.9], [0.6]]
    together = postprocess(outputs(first, second), 64, 64, 0.4, 0.5)
    alone = [postprocess(outputs(image), 64, 64, 0.4, 0.5)[0] for image in (first, second)]
    assert [len(found) for found in together] == [1, 2]
    for a, b in zip(together, alone):
        assert torch.equal(a.boxes, b.boxes) and torch.equal(a.scores, b.scores)


def test_half_precision_outputs_result_in_float32_boxes():
    logits, deltas, anchors = outputs([[0.9], [0.1], [0.8]])
    (found,) = postprocess((logits.half(), deltas.half(), anchors), 64, 64, 0.4, 0.5)
    assert found.boxes.dtype == found.scores.dtype == torch.float32
    assert found.boxes.tolist() == [[10, 10, 20, 20], [40, 40, 60, 50]]


# Back to the image: 333 x 500 in 128 x 128 becomes 85 x 128 (85.248 truncated), so the two ratios differ.
LETTERBOX = Letterbox((333, 500), (85, 128), (128, 128))


def test_no_detections_are_mapped_to_no_detections():
    found = LETTERBOX.detections_to_image(NOTHING)
    assert (found.boxes.shape, found.scores.shape, found.class_ids.shape) == ((0, 4), (0,), (0,))
    assert found.class_ids.dtype == torch.int64


def test_boxes_are_mapped_to_pixels_of_the_image():
    found = Detections(
        torch.tensor([[0.0, 0, 128, 85], [32, 17, 64, 51]]), torch.tensor([0.9, 0.5]), torch.tensor([3, 1])
    )
    back = LETTERBOX.detections_to_image(found)
    # Across 500 / 128 = 3.90625, down 333 / 85 = 3.9176...
    torch.testing.assert_close(back.boxes, torch.tensor([[0, 0, 500, 333], [125, 66.6, 250, 199.8]]))
    assert torch.equal(back.scores, found.scores) and torch.equal(back.class_ids, found.class_ids)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_mapped_detections_are_an_independent_copy(mode):
    same = Letterbox((128, 128), (128, 128), (128, 128))
    with mode():
        found = Detections(torch.ones(2, 4), torch.ones(2), torch.ones(2, dtype=torch.int64))
    back = same.detections_to_image(found)
    for result, source in ((back.boxes, found.boxes), (back.scores, found.scores), (back.class_ids, found.class_ids)):
        assert result.device.type == "cpu" and not result.is_inference() and not result.requires_grad
        result.add_(1)
        assert (result == 2).all() and (source == 1).all()


def test_max_detections_keeps_the_best():
    candidates = find_candidates(outputs([[0.7, 0.1], [0.1, 0.6], [0.1, 0.8]]), 64, 64, 0.4)
    (found,) = choose_detections(candidates, 1, 0.5, max_detections=2)
    torch.testing.assert_close(found.scores, torch.tensor([0.8, 0.7]))


def test_only_the_requested_classes_are_kept():
    candidates = find_candidates(outputs([[0.7, 0.1], [0.1, 0.6], [0.1, 0.8]]), 64, 64, 0.4)
    (found,) = choose_detections(candidates, 1, 0.5, class_ids=[0])
    assert found.class_ids.tolist() == [0]
    (found,) = choose_detections(candidates, 1, 0.5, max_detections=1, class_ids=[0])
    assert found.class_ids.tolist() == [0]
    assert len(choose_detections(candidates, 1, 0.5, class_ids=[])[0]) == 0


def test_candidates_are_the_anchors_above_the_threshold_ordered_by_image():
    none, two = [[0.1, 0.2], [0.3, 0.1], [0.2, 0.2]], [[0.1, 0.9], [0.2, 0.4], [0.8, 0.1]]
    found = find_candidates(outputs(two, none, two), 45, 64, 0.5)
    assert found.image_indices.tolist() == [0, 0, 2, 2]
    assert found.boxes.tolist() == 2 * [[10, 10, 20, 20], [40, 40, 60, 44]]  # clipped at the bottom
    torch.testing.assert_close(found.scores, torch.tensor([0.9, 0.8, 0.9, 0.8]))
    assert found.class_ids.tolist() == [1, 0, 1, 0]


def test_best_candidates_of_each_image_enter_nms():
    images = torch.tensor([0, 0, 0, 2, 2, 2, 2])
    boxes = torch.tensor([[20.0 * n, 0, 20 * n + 10, 10] for n in range(7)])
    scores = torch.tensor([0.5, 0.9, 0.7, 0.6, 0.6, 0.3, 0.8])
    candidates = Candidates(images, boxes, scores, torch.tensor([0, 0, 0, 0, 0, 1, 0]))
    assert best_candidates(candidates, 3, 7) is candidates  # ordinary images lose none
    assert all(map(torch.equal, best_candidates(candidates, 3, 4), candidates))
    best = best_candidates(candidates, 3, 2)
    assert best.image_indices.tolist() == [0, 0, 2, 2]
    assert best.scores.tolist() == pytest.approx([0.9, 0.7, 0.6, 0.8])
    assert torch.equal(best.boxes[[0, 1, 3]], boxes[[1, 2, 6]])
    assert [len(found) for found in choose_detections(candidates, 3, 0.5)] == [3, 0, 4]
    assert [len(found) for found in choose_detections(candidates, 3, 0.5, max_candidates=2)] == [2, 0, 2]
    *_, of_class = choose_detections(candidates, 3, 0.5, class_ids=[1], max_candidates=2)  # the best of these classes
    assert of_class.scores.tolist() == pytest.approx([0.3])
    assert len(best_candidates(Candidates(*(part[:0] for part in candidates)), 3, 2).scores) == 0


def test_nms_of_a_batch_equals_nms_of_each_class_of_each_image():
    generator = torch.Generator().manual_seed(0)
    count, images = 600, 3
    corners = torch.rand(count, 2, generator=generator) * 100
    boxes = torch.cat((corners, corners + 5 + 40 * torch.rand(count, 2, generator=generator)), dim=1)
    image_indices = torch.arange(count) * images // count
    candidates = Candidates(
        image_indices, boxes, torch.rand(count, generator=generator), torch.randint(4, (count,), generator=generator)
    )
    together = choose_detections(candidates, images, 0.5)
    for image, found in enumerate(together):
        alone = []
        for class_id in range(4):
            rows = (image_indices == image) & (candidates.class_ids == class_id)
            kept = nms(boxes[rows], candidates.scores[rows], 0.5)
            alone += candidates.scores[rows][kept].tolist()
        assert 100 < len(alone) < 200
        assert found.scores.tolist() == sorted(alone, reverse=True)
    # As on a GPU:
    kept = surviving_candidates(candidates, images, 0.5)
    assert kept.tolist() == sorted(kept.tolist())
    assert candidates.scores[kept].sort().values.tolist() == sorted(
        score for found in together for score in found.scores.tolist()
    )
    assert len(surviving_candidates(Candidates(*(part[:0] for part in candidates)), images, 0.5)) == 0


def test_detections_can_be_indexed_by_mask_indices_or_slice():
    found = Detections(torch.arange(12.0).view(3, 4), torch.tensor([0.9, 0.8, 0.7]), torch.tensor([0, 1, 2]))
    for chosen in (torch.tensor([True, False, True]), torch.tensor([0, 2]), slice(0, 3, 2)):
        assert found[chosen].class_ids.tolist() == [0, 2]
        assert found[chosen].boxes.tolist() == [[0, 1, 2, 3], [8, 9, 10, 11]]
    assert len(found[:0]) == 0


def test_parts_are_concatenated():
    some = Detections(torch.tensor([[0.0, 0, 9, 9]]), torch.tensor([0.5]), torch.tensor([3]))
    assert len(concatenate([NOTHING, NOTHING])) == 0
    together = concatenate([some, NOTHING, some])
    assert (together.boxes.shape, together.class_ids.tolist()) == ((2, 4), [3, 3])
    assert len(suppress(together, 0.5)) == 1
    assert len(suppress(NOTHING, 0.5)) == 0
