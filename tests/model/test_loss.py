"""The training loss: cases worked out by hand, the reference's recorded numbers, and what must not matter."""

import math

import numpy as np
import pytest
import torch
from golden_fill import normal_array, recorded
from torch import Tensor

from efficientdet.config import ANCHOR_RATIOS, ANCHOR_SCALES
from efficientdet.model.anchors import make_anchors
from efficientdet.model.loss import DetectionLoss, Losses, assign_anchors
from efficientdet.structures import Targets

LEVELS = (3, 4, 5, 6, 7)


def no_targets(batch: int) -> Targets:
    return Targets(torch.zeros(batch, 0, 4), torch.zeros(batch, 0, dtype=torch.int64))


def targets(*rows) -> Targets:
    """One image's objects, from rows (x1, y1, x2, y2, class)."""
    table = torch.tensor(rows, dtype=torch.float64).reshape(1, -1, 5)
    return Targets(table[..., :4], table[..., 4].long())


def negative_cross_entropy(probability: float) -> float:
    """Focal loss of a class that is absent, alpha 0.25 and gamma 2."""
    return 0.75 * probability**2 * -math.log(1 - probability)


def positive_cross_entropy(probability: float) -> float:
    """Focal loss of a class that is present."""
    return 0.25 * (1 - probability) ** 2 * -math.log(probability)


def logit(*probabilities: float) -> Tensor:
    return torch.tensor([[probabilities]], dtype=torch.float64).logit()


@pytest.fixture(scope="module")
def golden() -> dict[str, np.ndarray]:
    return recorded("loss.npz")


@pytest.fixture
def golden_batch(golden) -> tuple[tuple[Tensor, Tensor, Tensor], Targets]:
    """The recorded predictions, as leaves that take gradients, and their ground truth."""
    anchors = make_anchors(*map(int, golden["input_hw"]), LEVELS, 4.0, ANCHOR_SCALES, ANCHOR_RATIOS)
    logits = torch.from_numpy(normal_array("logits", (4, len(anchors), 3))) * 2 - 2
    deltas = torch.from_numpy(normal_array("regression", (4, len(anchors), 4))) * 0.3
    # The reference was given float32 numbers; what it made of them is compared in float64.
    logits, deltas, anchors = logits.double(), deltas.double(), anchors.float().double()
    annotations = torch.from_numpy(golden["annotations"])
    truth = Targets(annotations[..., :4], annotations[..., 4].long())
    return (logits.requires_grad_(), deltas.requires_grad_(), anchors), truth


def one_image(outputs: tuple[Tensor, Tensor, Tensor], truth: Targets, i: int):
    logits, deltas, anchors = outputs
    return (logits[i : i + 1], deltas[i : i + 1], anchors), Targets(truth.boxes[i : i + 1], truth.class_ids[i : i + 1])


def assert_losses_close(actual: Losses, expected: Losses, rtol: float) -> None:
    for a, b in zip(actual, expected):
        torch.testing.assert_close(a, b, rtol=rtol, atol=0)


def test_a_batch_without_any_object():
    anchors = torch.tensor([[0.0, 0, 10, 10], [0, 0, 20, 20]])
    logits = torch.zeros(2, 2, 3, requires_grad=True)
    deltas = torch.ones(2, 2, 4, requires_grad=True)
    losses = DetectionLoss()((logits, deltas, anchors), no_targets(2))
    assert losses.classification.item() == pytest.approx(6 * negative_cross_entropy(0.5) / 100)
    assert losses.regression.item() == 0
    losses.total.backward()
    assert torch.isfinite(logits.grad).all() and (logits.grad > 0).all()
    assert not deltas.grad.any()


def test_no_columns_equals_padding_alone(golden_batch):
    outputs, truth = golden_batch
    padding = Targets(torch.full_like(truth.boxes, -1.0), torch.full_like(truth.class_ids, -1))
    assert_losses_close(DetectionLoss()(outputs, no_targets(4)), DetectionLoss()(outputs, padding), rtol=1e-12)


def test_one_anchor_that_fits_its_object():
    anchors = torch.tensor([[0.0, 0, 10, 20]], dtype=torch.float64)  # (y1, x1, y2, x2)
    outputs = logit(0.1, 0.6), torch.zeros(1, 1, 4, dtype=torch.float64), anchors
    losses = DetectionLoss()(outputs, targets([0, 0, 20, 10, 1]))
    assert losses.classification.item() == pytest.approx(negative_cross_entropy(0.1) + positive_cross_entropy(0.6))
    assert losses.regression.item() == 0
    assert losses.total.item() == losses.classification.item()


def test_one_anchor_that_is_off_its_object():
    anchors = torch.tensor([[0.0, 0, 10, 20]], dtype=torch.float64)
    deltas = torch.tensor([[[0.05, -0.3, 0.0, 0.0]]], dtype=torch.float64)
    losses = DetectionLoss()((logit(0.5), deltas, anchors), targets([0, 0, 20, 10, 0]))
    # Smooth L1 with beta 1/9: 0.05 lies in the quadratic part, 0.3 in the linear one. Mean of four, times 50.
    expected = 50 / 4 * (0.5 * 0.05**2 * 9 + (0.3 - 0.5 / 9))
    assert losses.regression.item() == pytest.approx(expected)


def test_a_distant_anchor_is_background_and_one_between_the_thresholds_counts_for_neither():
    square = [0.0, 0, 10, 10]
    anchors = torch.tensor([square, [0, 0, 10, 4.5], [0, 0, 10, 3.9]], dtype=torch.float64)  # IoU 1, 0.45, 0.39
    logits = torch.cat((logit(0.7), logit(0.8), logit(0.2)), dim=1)
    deltas = torch.tensor([[[0.0] * 4, [5.0] * 4, [7.0] * 4]], dtype=torch.float64)
    losses = DetectionLoss()((logits, deltas, anchors), targets([0, 0, 10, 10, 0]))
    assert losses.classification.item() == pytest.approx(positive_cross_entropy(0.7) + negative_cross_entropy(0.2))
    assert losses.regression.item() == 0  # the deltas of the two others do not count


def test_both_losses_are_means_over_positive_anchors():
    anchors = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 8]], dtype=torch.float64)  # IoU 1 and 0.8
    logits = torch.cat((logit(0.7), logit(0.6)), dim=1)
    deltas = torch.tensor([[[0.0] * 4, [0.0, 0.125, 0.0, math.log(1.25) + 1]]], dtype=torch.float64)
    losses = DetectionLoss()((logits, deltas, anchors), targets([0, 0, 10, 10, 0]))
    assert losses.classification.item() == pytest.approx(
        (positive_cross_entropy(0.7) + positive_cross_entropy(0.6)) / 2
    )
    assert losses.regression.item() == pytest.approx(50 * (1 - 0.5 / 9) / (4 * 2))


def test_assignment_takes_the_object_that_overlaps_most_and_never_padding():
    anchors = torch.tensor([[0.0, 0, 10, 10], [0, 20, 10, 30], [50, 50, 60, 60]], dtype=torch.float64)
    truth = targets([0, 0, 10, 6, 0], [0, 0, 10, 9, 2], [20, 0, 30, 10, 1], [50, 50, 60, 60, -1])
    assigned = assign_anchors(anchors, truth)
    assert assigned.positive.tolist() == [[True, True, False]]
    assert assigned.negative.tolist() == [[False, False, True]]
    assert assigned.object_index[0, :2].tolist() == [1, 2]


def test_overlap_of_exactly_a_half_is_positive_and_of_four_tenths_is_not_negative():
    anchors = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 8]], dtype=torch.float64)
    assigned = assign_anchors(anchors, targets([0, 0, 5, 10, 0]))
    assert assigned.positive.tolist() == [[True, True]]
    assigned = assign_anchors(anchors, targets([0, 0, 4, 10, 0]))
    assert assigned.positive.tolist() == [[False, True]]
    assert assigned.negative.tolist() == [[False, False]]


def test_reference_numbers_of_the_batch(golden, golden_batch):
    losses = DetectionLoss(empty_image_normalizer=1)(*golden_batch)
    assert losses.classification.item() == pytest.approx(float(golden["classification_loss"]), rel=1e-6)
    assert losses.regression.item() == pytest.approx(float(golden["regression_loss"]), rel=1e-6)


@pytest.mark.parametrize("image", range(4))
def test_reference_numbers_of_each_image(golden, golden_batch, image):
    losses = DetectionLoss(empty_image_normalizer=1)(*one_image(*golden_batch, image))
    assert [loss.item() for loss in losses] == pytest.approx(golden["per_image"][image].tolist(), rel=1e-6)


def test_reference_gradients(golden, golden_batch):
    outputs, truth = golden_batch
    DetectionLoss(empty_image_normalizer=1)(outputs, truth).total.backward()
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
def test_an_image_without_objects_is_divided_by_its_own_normalizer(golden, golden_batch, loss, divisor):
    outputs, truth = one_image(*golden_batch, 2)
    assert (truth.class_ids == -1).all()
    losses = loss(outputs, truth)
    assert losses.classification.item() == pytest.approx(golden["per_image"][2, 0] / divisor, rel=1e-6)
    assert losses.regression.item() == 0


def test_an_object_that_no_anchor_reaches_divides_by_one(golden, golden_batch):
    outputs, truth = one_image(*golden_batch, 1)
    assert not assign_anchors(outputs[2], truth).positive.any()
    losses = DetectionLoss()(outputs, truth)
    assert losses.classification.item() == pytest.approx(golden["per_image"][1, 0], rel=1e-6)


def test_the_weight_of_empty_images_leaves_the_others_alone(golden_batch):
    for image in (0, 1, 3):
        alone = one_image(*golden_batch, image)
        assert_losses_close(DetectionLoss()(*alone), DetectionLoss(empty_image_normalizer=1)(*alone), rtol=1e-12)


def test_one_batch_equals_the_mean_of_its_images(golden_batch):
    alone = [DetectionLoss()(*one_image(*golden_batch, image)) for image in range(4)]
    expected = Losses(*(torch.stack(losses).mean() for losses in zip(*alone)))
    assert_losses_close(DetectionLoss()(*golden_batch), expected, rtol=1e-10)


def test_more_padding_changes_nothing(golden_batch):
    outputs, truth = golden_batch
    padded = Targets(
        torch.cat((truth.boxes, torch.zeros(4, 5, 4)), dim=1),
        torch.cat((truth.class_ids, torch.full((4, 5), -1)), dim=1),
    )
    assert_losses_close(DetectionLoss()(outputs, padded), DetectionLoss()(outputs, truth), rtol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_autocast_and_half_logits_are_computed_in_float32(golden_batch, dtype):
    (logits, deltas, anchors), truth = golden_batch
    logits, deltas, anchors = logits.detach().to(dtype), deltas.detach().to(dtype), anchors.float()
    expected = DetectionLoss()((logits.float(), deltas.float(), anchors), truth)
    with torch.autocast("cpu", torch.bfloat16):
        losses = DetectionLoss()((logits, deltas, anchors), truth)
    assert losses.classification.dtype == losses.regression.dtype == torch.float32
    assert_losses_close(losses, expected, rtol=0)


def test_float32_agrees_with_float64(golden_batch):
    (logits, deltas, anchors), truth = golden_batch
    single = DetectionLoss()((logits.float(), deltas.float(), anchors.float()), truth)
    for a, b in zip(single, DetectionLoss()((logits, deltas, anchors), truth)):
        assert a.item() == pytest.approx(b.item(), rel=1e-5)


@pytest.mark.parametrize("extreme", [-1e4, -100.0, 100.0, 1e4])
def test_extreme_logits_give_a_finite_loss_and_no_gradient(extreme):
    anchors = torch.tensor([[0.0, 0, 10, 10]])
    logits = torch.full((1, 1, 2), extreme, requires_grad=True)
    losses = DetectionLoss()((logits, torch.zeros(1, 1, 4), anchors), targets([0, 0, 10, 10, 0]))
    losses.classification.backward()
    assert torch.isfinite(losses.classification)
    assert not logits.grad.any()


@pytest.mark.parametrize("extreme", [-20.0, 20.0])
def test_clamped_logits_have_no_gradient_beside_others_that_have(extreme):
    anchors = torch.tensor([[0.0, 0, 10, 10], [50, 50, 60, 60]])
    logits = torch.tensor([[[extreme, 0.5, extreme], [-2.0, extreme, 3.0]]], requires_grad=True)
    losses = DetectionLoss()((logits, torch.zeros(1, 2, 4), anchors), targets([0, 0, 10, 10, 0]))
    losses.classification.backward()
    assert (logits.grad != 0).tolist() == [[[False, True, False], [True, False, True]]]


# What computes the focal loss in one pass: as differentiable as if autograd did it.


@pytest.fixture
def two_images() -> tuple[tuple[Tensor, Tensor, Tensor], Targets]:
    """Predictions of 3 classes for 4 anchors: a good one, one between the thresholds, one off, one far away."""
    anchors = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 4.5], [0, 0, 10, 8], [50, 50, 60, 60]], dtype=torch.float64)
    logits = torch.from_numpy(normal_array("two logits", (2, 4, 3))).double().requires_grad_()
    deltas = torch.from_numpy(normal_array("two deltas", (2, 4, 4))).double().requires_grad_()
    boxes = torch.tensor([[[0.0, 0, 10, 10]], [[0, 0, 0, 0]]])  # none in the second image
    return (logits, deltas, anchors), Targets(boxes, torch.tensor([[2], [-1]]))


OFFICIAL = {
    "focal_gamma": 1.5,
    "negative_iou": 0.5,
    "force_best_anchor": True,
    "box_loss": "huber",
    "normalize": "batch",
}


@pytest.mark.parametrize("options", [{}, OFFICIAL, {"focal_gamma": 1.0}], ids=["reference", "official", "gamma 1"])
def test_gradients_are_the_slopes(two_images, options):
    (logits, deltas, anchors), truth = two_images
    loss = DetectionLoss(**options)
    assert torch.autograd.gradcheck(lambda *values: loss((*values, anchors), truth).total, (logits, deltas))
    assert torch.autograd.gradcheck(
        lambda *values: loss((*values, anchors), no_targets(2)).classification, (logits, deltas)
    )


def test_an_anchor_that_counts_for_neither_has_no_gradient(two_images):
    (logits, deltas, anchors), truth = two_images
    DetectionLoss()((logits, deltas, anchors), truth).total.backward()
    assert not logits.grad[0, 1].any() and not deltas.grad[0, 1].any()
    assert logits.grad[0, 0].all() and logits.grad[1, 1].all()


def test_chunks_change_nothing(golden_batch, monkeypatch):
    (logits, deltas, anchors), truth = golden_batch

    def loss_and_gradient() -> tuple[Tensor, Tensor]:
        loss = DetectionLoss()((logits, deltas, anchors), truth).total
        return loss.detach(), torch.autograd.grad(loss, logits)[0]

    whole = loss_and_gradient()
    for logits_at_once in (1, 1000):  # an anchor at a time; 333 anchors and a remainder
        monkeypatch.setattr("efficientdet.model.focal_loss.CPU_CHUNK", logits_at_once)
        for a, b in zip(loss_and_gradient(), whole):
            torch.testing.assert_close(a, b, rtol=1e-12, atol=0)


def test_logits_may_lie_in_memory_in_any_order(golden_batch):
    (logits, deltas, anchors), truth = golden_batch
    DetectionLoss()((logits, deltas, anchors), truth).total.backward()
    turned = logits.detach().mT.contiguous().mT.requires_grad_()
    DetectionLoss()((turned, deltas, anchors), truth).total.backward()
    torch.testing.assert_close(turned.grad, logits.grad, rtol=1e-12, atol=0)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 2**-8), (torch.float16, 2**-11)])
def test_half_logits_have_the_rounded_gradients_of_float32(golden_batch, dtype, tolerance):
    (logits, deltas, anchors), truth = golden_batch
    half = logits.detach().to(dtype).requires_grad_()
    single = half.detach().float().requires_grad_()
    scale = 2.0**16  # as a gradient scaler does for float16; without it most gradients are below its least number
    for values in (half, single):
        (DetectionLoss()((values, deltas.float(), anchors.float()), truth).classification * scale).backward()
    assert half.grad.dtype == dtype
    torch.testing.assert_close(half.grad.float(), single.grad, rtol=tolerance, atol=2**-24)


def test_the_gradient_scales_with_the_loss_and_can_be_taken_twice(golden_batch):
    (logits, deltas, anchors), truth = golden_batch
    loss = DetectionLoss()((logits, deltas, anchors), truth).classification
    (once,) = torch.autograd.grad(loss, logits, retain_graph=True)
    (thrice,) = torch.autograd.grad(3 * loss, logits, retain_graph=True)
    torch.testing.assert_close(thrice, 3 * once)
    torch.testing.assert_close(torch.autograd.grad(loss, logits)[0], once, rtol=0, atol=0)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_without_gradients_the_loss_is_the_same(golden_batch, mode):
    outputs, truth = golden_batch
    expected = DetectionLoss()(outputs, truth)
    with mode():
        for values in (outputs, [part.detach() for part in outputs]):
            losses = DetectionLoss()(values, truth)
            assert not losses.total.requires_grad
            assert_losses_close(losses, expected, rtol=0)
        assert DetectionLoss()(outputs, no_targets(4)).regression.item() == 0


def test_without_gradients_none_are_computed(golden_batch, monkeypatch):
    (logits, deltas, anchors), truth = golden_batch
    monkeypatch.setattr("torch.addcmul", None)  # the derivative's
    DetectionLoss()((logits.detach(), deltas.detach(), anchors), truth)
    with pytest.raises(TypeError):
        DetectionLoss()((logits, deltas, anchors), truth)


# The official recipe's options.


def test_another_word_is_refused():
    with pytest.raises(ValueError, match="box_loss must be 'smooth_l1' or 'huber', not 'l2'"):
        DetectionLoss(box_loss="l2")
    with pytest.raises(ValueError, match="normalize must be 'image' or 'batch', not None"):
        DetectionLoss(normalize=None)


def assigned_by_force(anchors_yxyx: list[list[float]], truth: Targets) -> tuple[list[bool], list[bool], list[int]]:
    """The only image's positive, negative and object of each positive anchor."""
    assigned = assign_anchors(torch.tensor(anchors_yxyx).double(), truth, negative_iou=0.5, force_best_anchor=True)
    positive, negative, object_index = (values[0].tolist() for values in assigned)
    return positive, negative, [index for index, is_positive in zip(object_index, positive) if is_positive]


def test_an_objects_best_anchor_is_forced_and_no_other():
    anchors = [[0, 0, 10, 10], [0, 0, 10, 8], [50, 50, 60, 60]]
    truth = targets([0, 0, 3, 10, 0])  # IoU 0.3, 0.375, 0
    assert assigned_by_force(anchors, truth) == ([False, True, False], [True, False, True], [0])
    assert not assign_anchors(torch.tensor(anchors).double(), truth, negative_iou=0.5).positive.any()


def test_of_anchors_that_overlap_an_object_equally_the_first_is_forced():
    anchors = [[50, 50, 60, 60], [0, 0, 10, 10], [0, 0, 10, 10], [10, 0, 20, 10]]
    assert assigned_by_force(anchors, targets([0, 6, 10, 14, 0]))[0] == [False, True, False, False]


def test_of_objects_with_the_same_best_anchor_the_first_gets_it():
    anchors = [[0, 0, 10, 10], [50, 50, 60, 60]]
    truth = targets([50, 50, 60, 60, 0], [0, 0, 3, 10, 1], [0, 0, 4, 10, 2], [0, 0, 10, 10, 3])
    assert assigned_by_force(anchors, truth) == ([True, True], [False, False], [1, 0])


def test_a_forced_anchor_leaves_the_object_that_it_overlaps_more():
    anchors = [[0, 0, 10, 10], [0, 0, 10, 8]]
    truth = targets([0, 0, 8, 10, 0], [0, 0, 10, 10, 1])  # IoU 0.8 and 1 with the first, 1 and 0.8 with the other
    assert assigned_by_force(anchors, truth) == ([True, True], [False, False], [1, 0])
    truth = targets([8, 0, 12, 10, 0], [0, 0, 10, 10, 1])  # the first overlaps the first anchor alone, by 1/6
    assert assigned_by_force(anchors, truth) == ([True, True], [False, False], [0, 1])


def test_padding_and_objects_beyond_all_anchors_force_nothing():
    anchors = [[0, 0, 10, 10], [50, 50, 60, 60]]
    truth = targets([0, 0, 3, 10, -1], [50, 50, 54, 60, 1], [100, 100, 110, 110, 0], [0, 0, 10, 10, -1])
    assert assigned_by_force(anchors, truth) == ([False, True], [True, False], [1])


def test_huber_loss():
    anchors = torch.tensor([[0.0, 0, 10, 20]], dtype=torch.float64)
    deltas = torch.tensor([[[0.05, -0.3, 0.0, 0.0]]], dtype=torch.float64)
    losses = DetectionLoss(box_loss="huber")((logit(0.5), deltas, anchors), targets([0, 0, 20, 10, 0]))
    # With delta 0.1 the first lies in the quadratic part, the second in the linear one.
    assert losses.regression.item() == pytest.approx(50 / 4 * (0.5 * 0.05**2 + 0.1 * (0.3 - 0.05)))


def test_gamma_is_the_exponent():
    anchors = torch.tensor([[0.0, 0, 10, 20]], dtype=torch.float64)
    outputs = logit(0.1, 0.6), torch.zeros(1, 1, 4, dtype=torch.float64), anchors
    losses = DetectionLoss(focal_gamma=1.5)(outputs, targets([0, 0, 20, 10, 1]))
    expected = 0.75 * 0.1**1.5 * -math.log(0.9) + 0.25 * 0.4**1.5 * -math.log(0.6)
    assert losses.classification.item() == pytest.approx(expected)


@pytest.fixture
def batch_of_three_positives() -> tuple[tuple[Tensor, Tensor, Tensor], Targets]:
    """Two anchors in four images: two positive ones in the first image, one in the second, none in the others."""
    anchors = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 8]], dtype=torch.float64)
    logits = torch.tensor([[0.7, 0.6], [0.2, 0.1], [0.3, 0.4], [0.8, 0.5]], dtype=torch.float64).logit()[..., None]
    deltas = torch.zeros(4, 2, 4, dtype=torch.float64)
    deltas[:, :, 1] = torch.tensor([[0.0, 0.125 + 1], [1.0, 5.0], [7.0, 7.0], [7.0, 7.0]])
    deltas[0, 1, 3] = math.log(1.25)
    far = [20.0, 20, 30, 30]
    boxes = torch.tensor([[[0.0, 0, 10, 10]], [[0, 0, 24, 10]], [far], [far]])  # IoU 1, 0.8; 0.42, 0.33 in the second
    truth = Targets(boxes, torch.tensor([[0], [0], [0], [-1]]))
    return (logits.requires_grad_(), deltas.requires_grad_(), anchors), truth


def test_normalization_by_the_batch(batch_of_three_positives):
    (logits, deltas, anchors), truth = batch_of_three_positives
    losses = DetectionLoss(normalize="batch", negative_iou=0.5)((logits, deltas, anchors), truth)
    positives = [0.7, 0.6]
    background = [0.2, 0.1, 0.3, 0.4, 0.8, 0.5]
    total = sum(map(positive_cross_entropy, positives)) + sum(map(negative_cross_entropy, background))
    assert losses.classification.item() == pytest.approx(total / (2 + 1))
    assert losses.regression.item() == pytest.approx(50 * (1 - 0.5 / 9) / (4 * (2 + 1)))

    losses = DetectionLoss(normalize="batch", negative_iou=0.5, force_best_anchor=True)(
        (logits, deltas, anchors), truth
    )
    total += positive_cross_entropy(0.2) - negative_cross_entropy(0.2)
    assert losses.classification.item() == pytest.approx(total / (3 + 1))


def test_a_batch_without_any_object_is_divided_by_one():
    anchors = torch.tensor([[0.0, 0, 10, 10]])
    outputs = torch.zeros(2, 1, 3), torch.ones(2, 1, 4), anchors
    losses = DetectionLoss(**OFFICIAL)(outputs, no_targets(2))
    assert losses.classification.item() == pytest.approx(2 * 3 * 0.75 * 0.5**1.5 * math.log(2))
    assert losses.regression.item() == 0


@pytest.mark.parametrize("options", [{"normalize": "batch"}, OFFICIAL], ids=["by the batch", "official"])
def test_processes_that_share_a_batch_average_to_one_with_the_whole(batch_of_three_positives, options):
    (logits, deltas, anchors), truth = batch_of_three_positives
    whole = DetectionLoss(**options)((logits, deltas, anchors), truth)
    expected = torch.autograd.grad(whole.total, (logits, deltas))

    parts = (slice(0, 1), slice(1, 4))  # the one with all the positives, and the rest
    shares = [((logits[part], deltas[part], anchors), Targets(*(t[part] for t in truth))) for part in parts]
    counts: list[Tensor] = []
    for outputs, part_truth in shares:  # the processes' counts, which the real function adds up by communication
        DetectionLoss(**options, all_reduce_sum=lambda count: counts.append(count) or count)(outputs, part_truth)
    both = DetectionLoss(**options, num_processes=2, all_reduce_sum=lambda count: torch.stack(counts).sum())
    losses = [both(*share) for share in shares]
    for a, b in zip(zip(*losses), whole):
        torch.testing.assert_close(torch.stack(a).mean(), b, rtol=1e-12, atol=0)
    mean = torch.stack([part.total for part in losses]).mean()
    for a, b in zip(torch.autograd.grad(mean, (logits, deltas)), expected):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=0)
