"""The training loss: hand-computed cases, the reference's recorded numbers, and invariances."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from losses import OFFICIAL, assert_losses_close, golden_loss, make_golden_batch, no_targets, targets
from torch import Tensor

from efficientdet.model.loss import DetectionLoss, Losses, assign_anchors
from efficientdet.structures import Targets


def absent_loss(probability: float) -> float:
    """Return the focal loss of an absent class, with alpha 0.25 and gamma 2."""
    return 0.75 * probability**2 * -math.log(1 - probability)


def present_loss(probability: float) -> float:
    """Return the focal loss of a present class."""
    return 0.25 * (1 - probability) ** 2 * -math.log(probability)


def logit(*probabilities: float) -> Tensor:
    return torch.tensor([[probabilities]], dtype=torch.float64).logit()


@pytest.fixture(scope="module")
def golden() -> dict[str, np.ndarray]:
    return golden_loss()


@pytest.fixture
def golden_batch() -> tuple[tuple[Tensor, Tensor, Tensor], Targets]:
    return make_golden_batch()


def one_image(outputs: tuple[Tensor, Tensor, Tensor], labels: Targets, i: int):
    logits, deltas, anchors = outputs
    return (logits[i : i + 1], deltas[i : i + 1], anchors), Targets(
        labels.boxes[i : i + 1], labels.class_ids[i : i + 1]
    )


def test_batch_without_objects():
    anchors = torch.tensor([[0.0, 0, 10, 10], [0, 0, 20, 20]])
    logits = torch.zeros(2, 2, 3, requires_grad=True)
    deltas = torch.ones(2, 2, 4, requires_grad=True)
    losses = DetectionLoss()((logits, deltas, anchors), no_targets(2))
    assert losses.classification.item() == pytest.approx(6 * absent_loss(0.5) / 100)
    assert losses.regression.item() == 0
    losses.total.backward()
    assert torch.isfinite(logits.grad).all() and (logits.grad > 0).all()
    assert not deltas.grad.any()


def test_targets_without_columns_equal_padding(golden_batch):
    outputs, labels = golden_batch
    padding = Targets(torch.full_like(labels.boxes, -1.0), torch.full_like(labels.class_ids, -1))
    assert_losses_close(DetectionLoss()(outputs, no_targets(4)), DetectionLoss()(outputs, padding), rtol=1e-12)


def test_anchor_identical_to_its_object():
    anchors = torch.tensor([[0.0, 0, 10, 20]], dtype=torch.float64)  # (y1, x1, y2, x2)
    outputs = logit(0.1, 0.6), torch.zeros(1, 1, 4, dtype=torch.float64), anchors
    losses = DetectionLoss()(outputs, targets([0, 0, 20, 10, 1]))
    assert losses.classification.item() == pytest.approx(absent_loss(0.1) + present_loss(0.6))
    assert losses.regression.item() == 0
    assert losses.total.item() == losses.classification.item()


def test_box_loss_of_wrong_deltas():
    anchors = torch.tensor([[0.0, 0, 10, 20]], dtype=torch.float64)
    deltas = torch.tensor([[[0.05, -0.3, 0.0, 0.0]]], dtype=torch.float64)
    losses = DetectionLoss()((logit(0.5), deltas, anchors), targets([0, 0, 20, 10, 0]))
    # Smooth L1 with beta 1/9: 0.05 is in the quadratic part, 0.3 in the linear one. Mean of four, times 50.
    expected = 50 / 4 * (0.5 * 0.05**2 * 9 + (0.3 - 0.5 / 9))
    assert losses.regression.item() == pytest.approx(expected)


def test_anchor_below_the_thresholds_is_background_and_one_between_them_is_ignored():
    square = [0.0, 0, 10, 10]
    anchors = torch.tensor([square, [0, 0, 10, 4.5], [0, 0, 10, 3.9]], dtype=torch.float64)  # IoU 1, 0.45, 0.39
    logits = torch.cat((logit(0.7), logit(0.8), logit(0.2)), dim=1)
    deltas = torch.tensor([[[0.0] * 4, [5.0] * 4, [7.0] * 4]], dtype=torch.float64)
    losses = DetectionLoss()((logits, deltas, anchors), targets([0, 0, 10, 10, 0]))
    assert losses.classification.item() == pytest.approx(present_loss(0.7) + absent_loss(0.2))
    assert losses.regression.item() == 0  # the deltas of the other two are ignored


def test_both_losses_are_means_over_positive_anchors():
    anchors = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 8]], dtype=torch.float64)  # IoU 1 and 0.8
    logits = torch.cat((logit(0.7), logit(0.6)), dim=1)
    deltas = torch.tensor([[[0.0] * 4, [0.0, 0.125, 0.0, math.log(1.25) + 1]]], dtype=torch.float64)
    losses = DetectionLoss()((logits, deltas, anchors), targets([0, 0, 10, 10, 0]))
    assert losses.classification.item() == pytest.approx((present_loss(0.7) + present_loss(0.6)) / 2)
    assert losses.regression.item() == pytest.approx(50 * (1 - 0.5 / 9) / (4 * 2))


def test_anchors_are_assigned_to_the_object_with_the_largest_iou_and_never_to_padding():
    anchors = torch.tensor([[0.0, 0, 10, 10], [0, 20, 10, 30], [50, 50, 60, 60]], dtype=torch.float64)
    labels = targets([0, 0, 10, 6, 0], [0, 0, 10, 9, 2], [20, 0, 30, 10, 1], [50, 50, 60, 60, -1])
    assigned = assign_anchors(anchors, labels)
    assert assigned.positive.tolist() == [[True, True, False]]
    assert assigned.negative.tolist() == [[False, False, True]]
    assert assigned.object_index[0, :2].tolist() == [1, 2]


def test_iou_of_exactly_0_5_is_positive_and_of_0_4_is_not_negative():
    anchors = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 8]], dtype=torch.float64)
    assigned = assign_anchors(anchors, targets([0, 0, 5, 10, 0]))
    assert assigned.positive.tolist() == [[True, True]]
    assigned = assign_anchors(anchors, targets([0, 0, 4, 10, 0]))
    assert assigned.positive.tolist() == [[False, True]]
    assert assigned.negative.tolist() == [[False, False]]


@pytest.mark.oldest
def test_reference_numbers_of_the_batch(golden, golden_batch):
    losses = DetectionLoss(empty_image_normalizer=1)(*golden_batch)
    assert losses.classification.item() == pytest.approx(float(golden["classification_loss"]), rel=1e-6)
    assert losses.regression.item() == pytest.approx(float(golden["regression_loss"]), rel=1e-6)


@pytest.mark.parametrize("image", range(4))
def test_reference_numbers_of_each_image(golden, golden_batch, image):
    losses = DetectionLoss(empty_image_normalizer=1)(*one_image(*golden_batch, image))
    assert [loss.item() for loss in losses] == pytest.approx(golden["per_image"][image].tolist(), rel=1e-6)


@pytest.mark.oldest
def test_reference_gradients(golden, golden_batch):
    outputs, labels = golden_batch
    DetectionLoss(empty_image_normalizer=1)(outputs, labels).total.backward()
    step = int(golden["step"])
    for values, expected in ((outputs[0].grad, golden["grad_logits"]), (outputs[1].grad, golden["grad_regression"])):
        error = np.abs(values[:, ::step].numpy() - expected).max() / expected.std()
        assert error <= 1e-5


@pytest.mark.parametrize(
    ("loss", "divisor"),
    [
        (DetectionLoss(), 100),
        (DetectionLoss(empty_image_normalizer=1), 1),
        (DetectionLoss(empty_image_normalizer=2.5), 2.5),
    ],
)
def test_image_without_objects_is_divided_by_the_empty_image_normalizer(golden, golden_batch, loss, divisor):
    outputs, labels = one_image(*golden_batch, 2)
    assert (labels.class_ids == -1).all()
    losses = loss(outputs, labels)
    assert losses.classification.item() == pytest.approx(golden["per_image"][2, 0] / divisor, rel=1e-6)
    assert losses.regression.item() == 0


def test_image_without_positive_anchors_is_divided_by_one(golden, golden_batch):
    outputs, labels = one_image(*golden_batch, 1)
    assert not assign_anchors(outputs[2], labels).positive.any()
    losses = DetectionLoss()(outputs, labels)
    assert losses.classification.item() == pytest.approx(golden["per_image"][1, 0], rel=1e-6)


def test_empty_image_normalizer_does_not_affect_other_images(golden_batch):
    for image in (0, 1, 3):
        alone = one_image(*golden_batch, image)
        assert_losses_close(DetectionLoss()(*alone), DetectionLoss(empty_image_normalizer=1)(*alone), rtol=1e-12)


def test_batch_equals_the_mean_of_its_images(golden_batch):
    alone = [DetectionLoss()(*one_image(*golden_batch, image)) for image in range(4)]
    expected = Losses(*(torch.stack(losses).mean() for losses in zip(*alone)))
    assert_losses_close(DetectionLoss()(*golden_batch), expected, rtol=1e-10)


def test_more_padding_changes_nothing(golden_batch):
    outputs, labels = golden_batch
    padded = Targets(
        torch.cat((labels.boxes, torch.zeros(4, 5, 4)), dim=1),
        torch.cat((labels.class_ids, torch.full((4, 5), -1)), dim=1),
    )
    assert_losses_close(DetectionLoss()(outputs, padded), DetectionLoss()(outputs, labels), rtol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_loss_is_computed_in_float32_under_autocast_and_for_half_precision(golden_batch, dtype):
    (logits, deltas, anchors), labels = golden_batch
    logits, deltas, anchors = logits.detach().to(dtype), deltas.detach().to(dtype), anchors.float()
    expected = DetectionLoss()((logits.float(), deltas.float(), anchors), labels)
    with torch.autocast("cpu", torch.bfloat16):
        losses = DetectionLoss()((logits, deltas, anchors), labels)
    assert losses.classification.dtype == losses.regression.dtype == torch.float32
    assert_losses_close(losses, expected, rtol=0)


def test_float32_agrees_with_float64(golden_batch):
    (logits, deltas, anchors), labels = golden_batch
    single = DetectionLoss()((logits.float(), deltas.float(), anchors.float()), labels)
    for a, b in zip(single, DetectionLoss()((logits, deltas, anchors), labels)):
        assert a.item() == pytest.approx(b.item(), rel=1e-5)


# Options of the official recipe.


def test_unknown_option_is_refused():
    with pytest.raises(ValueError, match="box_loss.*'l2'"):
        DetectionLoss(box_loss="l2")
    with pytest.raises(ValueError, match="normalize.*None"):
        DetectionLoss(normalize=None)


def test_recipe_defines_the_loss():
    assert DetectionLoss.from_recipe(SimpleNamespace(**OFFICIAL)) == DetectionLoss(**OFFICIAL)
    shared = DetectionLoss.from_recipe(SimpleNamespace(**OFFICIAL), num_processes=2, all_reduce_sum=torch.neg)
    assert shared == DetectionLoss(**OFFICIAL, num_processes=2, all_reduce_sum=torch.neg)


def assign_with_force(anchors_yxyx: list[list[float]], labels: Targets) -> tuple[list[bool], list[bool], list[int]]:
    """Return which anchors are positive, which negative, and the object of each positive one, for a single image."""
    assigned = assign_anchors(torch.tensor(anchors_yxyx).double(), labels, negative_iou=0.5, force_best_anchor=True)
    positive, negative, object_index = (values[0].tolist() for values in assigned)
    return positive, negative, [index for index, is_positive in zip(object_index, positive) if is_positive]


def test_only_the_best_anchor_of_an_object_is_forced():
    anchors = [[0, 0, 10, 10], [0, 0, 10, 8], [50, 50, 60, 60]]
    labels = targets([0, 0, 3, 10, 0])  # IoU 0.3, 0.375, 0
    assert assign_with_force(anchors, labels) == ([False, True, False], [True, False, True], [0])
    assert not assign_anchors(torch.tensor(anchors).double(), labels, negative_iou=0.5).positive.any()


def test_first_of_several_equal_anchors_is_forced():
    anchors = [[50, 50, 60, 60], [0, 0, 10, 10], [0, 0, 10, 10], [10, 0, 20, 10]]
    assert assign_with_force(anchors, targets([0, 6, 10, 14, 0]))[0] == [False, True, False, False]


def test_first_of_several_objects_with_the_same_best_anchor_is_assigned():
    anchors = [[0, 0, 10, 10], [50, 50, 60, 60]]
    labels = targets([50, 50, 60, 60, 0], [0, 0, 3, 10, 1], [0, 0, 4, 10, 2], [0, 0, 10, 10, 3])
    assert assign_with_force(anchors, labels) == ([True, True], [False, False], [1, 0])


def test_forced_anchor_is_taken_from_the_object_with_larger_iou():
    anchors = [[0, 0, 10, 10], [0, 0, 10, 8]]
    labels = targets(
        [0, 0, 8, 10, 0], [0, 0, 10, 10, 1]
    )  # IoU 0.8 and 1 with the first anchor, 1 and 0.8 with the second
    assert assign_with_force(anchors, labels) == ([True, True], [False, False], [1, 0])
    labels = targets([8, 0, 12, 10, 0], [0, 0, 10, 10, 1])  # the first overlaps only the first anchor, by 1/6
    assert assign_with_force(anchors, labels) == ([True, True], [False, False], [0, 1])


def test_padding_and_objects_without_overlap_force_nothing():
    anchors = [[0, 0, 10, 10], [50, 50, 60, 60]]
    labels = targets([0, 0, 3, 10, -1], [50, 50, 54, 60, 1], [100, 100, 110, 110, 0], [0, 0, 10, 10, -1])
    assert assign_with_force(anchors, labels) == ([False, True], [True, False], [1])


def positives_of_at_least(min_anchors: int, anchors_yxyx: list[list[float]], labels: Targets) -> list[int]:
    """Return the object of each positive anchor of a single image, and -1 for each negative one."""
    assigned = assign_anchors(torch.tensor(anchors_yxyx).double(), labels, negative_iou=0.5, min_anchors=min_anchors)
    assert torch.equal(assigned.negative, ~assigned.positive)
    return torch.where(assigned.positive, assigned.object_index, -1)[0].tolist()


def test_objects_are_assigned_at_least_so_many_anchors():
    anchors = [[0, 0, 10, 10], [0, 0, 10, 8], [0, 0, 10, 20], [50, 50, 60, 60]]
    labels = targets([0, 0, 3, 10, 0])  # IoU 0.3, 0.375, 0.15, 0
    expected = [[-1, -1, -1, -1], [-1, 0, -1, -1], [0, 0, -1, -1], [0, 0, 0, -1], [0, 0, 0, -1], [0, 0, 0, -1]]
    assert [positives_of_at_least(number, anchors, labels) for number in range(6)] == expected
    assert positives_of_at_least(4, anchors, targets([0, 0, 3, 10, -1])) == [-1, -1, -1, -1]  # padding


def test_all_of_several_equal_anchors_are_assigned():
    anchors = [[50, 50, 60, 60], [0, 0, 10, 10], [0, 0, 10, 10], [10, 0, 20, 10]]
    assert positives_of_at_least(1, anchors, targets([0, 6, 10, 14, 0])) == [-1, 0, 0, 0]


def test_anchors_above_the_threshold_count_among_them():
    anchors = [[0, 0, 10, 10], [0, 0, 10, 9], [0, 0, 10, 4]]
    assert positives_of_at_least(2, anchors, targets([0, 0, 10, 10, 0])) == [0, 0, -1]


def test_no_anchor_is_taken_from_an_object_that_it_overlaps_more():
    anchors = [[0, 0, 10, 10], [0, 0, 10, 8]]
    labels = targets([0, 0, 10, 10, 0], [0, 0, 3, 10, 1])  # IoU 1 and 0.8; 0.3 and 0.375
    assert positives_of_at_least(2, anchors, labels) == [0, 0]


def test_huber_loss():
    anchors = torch.tensor([[0.0, 0, 10, 20]], dtype=torch.float64)
    deltas = torch.tensor([[[0.05, -0.3, 0.0, 0.0]]], dtype=torch.float64)
    losses = DetectionLoss(box_loss="huber")((logit(0.5), deltas, anchors), targets([0, 0, 20, 10, 0]))
    # With delta 0.1 the first is in the quadratic part, the second in the linear one.
    assert losses.regression.item() == pytest.approx(50 / 4 * (0.5 * 0.05**2 + 0.1 * (0.3 - 0.05)))


def test_focal_gamma_is_the_exponent():
    anchors = torch.tensor([[0.0, 0, 10, 20]], dtype=torch.float64)
    outputs = logit(0.1, 0.6), torch.zeros(1, 1, 4, dtype=torch.float64), anchors
    losses = DetectionLoss(focal_gamma=1.5)(outputs, targets([0, 0, 20, 10, 1]))
    expected = 0.75 * 0.1**1.5 * -math.log(0.9) + 0.25 * 0.4**1.5 * -math.log(0.6)
    assert losses.classification.item() == pytest.approx(expected)


@pytest.fixture
def batch_of_three_positives() -> tuple[tuple[Tensor, Tensor, Tensor], Targets]:
    """Two anchors in four images: both positive in the first image, one if forced in the second, none in the others."""
    anchors = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 8]], dtype=torch.float64)
    logits = torch.tensor([[0.7, 0.6], [0.2, 0.1], [0.3, 0.4], [0.8, 0.5]], dtype=torch.float64).logit()[..., None]
    deltas = torch.zeros(4, 2, 4, dtype=torch.float64)
    deltas[:, :, 1] = torch.tensor([[0.0, 0.125 + 1], [1.0, 5.0], [7.0, 7.0], [7.0, 7.0]])
    deltas[0, 1, 3] = math.log(1.25)
    far = [20.0, 20, 30, 30]
    boxes = torch.tensor([[[0.0, 0, 10, 10]], [[0, 0, 24, 10]], [far], [far]])  # IoU 1, 0.8; 0.42, 0.33 in the second
    labels = Targets(boxes, torch.tensor([[0], [0], [0], [-1]]))
    return (logits.requires_grad_(), deltas.requires_grad_(), anchors), labels


def test_normalization_over_the_batch(batch_of_three_positives):
    (logits, deltas, anchors), labels = batch_of_three_positives
    losses = DetectionLoss(normalize="batch", negative_iou=0.5)((logits, deltas, anchors), labels)
    positives = [0.7, 0.6]
    background = [0.2, 0.1, 0.3, 0.4, 0.8, 0.5]
    total = sum(map(present_loss, positives)) + sum(map(absent_loss, background))
    assert losses.classification.item() == pytest.approx(total / (2 + 1))
    assert losses.regression.item() == pytest.approx(50 * (1 - 0.5 / 9) / (4 * (2 + 1)))

    losses = DetectionLoss(normalize="batch", negative_iou=0.5, force_best_anchor=True)(
        (logits, deltas, anchors), labels
    )
    total += present_loss(0.2) - absent_loss(0.2)
    assert losses.classification.item() == pytest.approx(total / (3 + 1))


def test_batch_without_objects_is_divided_by_one():
    anchors = torch.tensor([[0.0, 0, 10, 10]])
    outputs = torch.zeros(2, 1, 3), torch.ones(2, 1, 4), anchors
    losses = DetectionLoss(**OFFICIAL)(outputs, no_targets(2))
    assert losses.classification.item() == pytest.approx(2 * 3 * 0.75 * 0.5**1.5 * math.log(2))
    assert losses.regression.item() == 0


@pytest.mark.parametrize("options", [{"normalize": "batch"}, OFFICIAL], ids=["batch", "official"])
def test_mean_over_processes_equals_the_loss_of_the_whole_batch(batch_of_three_positives, options):
    (logits, deltas, anchors), labels = batch_of_three_positives
    whole = DetectionLoss(**options)((logits, deltas, anchors), labels)
    expected = torch.autograd.grad(whole.total, (logits, deltas))

    parts = (slice(0, 1), slice(1, 4))  # the image with two positive anchors, and the rest
    shares = [((logits[part], deltas[part], anchors), Targets(*(t[part] for t in labels))) for part in parts]
    counts: list[Tensor] = []
    for outputs, part_labels in shares:  # record the counts that the real function would sum over the processes
        DetectionLoss(**options, all_reduce_sum=lambda count: counts.append(count) or count)(outputs, part_labels)
    both = DetectionLoss(**options, num_processes=2, all_reduce_sum=lambda count: torch.stack(counts).sum())
    losses = [both(*share) for share in shares]
    for a, b in zip(zip(*losses), whole):
        torch.testing.assert_close(torch.stack(a).mean(), b, rtol=1e-12, atol=0)
    mean = torch.stack([part.total for part in losses]).mean()
    for a, b in zip(torch.autograd.grad(mean, (logits, deltas)), expected):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=0)
