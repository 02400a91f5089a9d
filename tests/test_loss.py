"""The training loss: cases worked out by hand, the reference's recorded numbers, and what must not matter."""

import math

import numpy as np
import pytest
import torch
from golden_fill import normal_array, recorded
from torch import Tensor

from efficientdet.anchors import make_anchors
from efficientdet.config import ANCHOR_RATIOS, ANCHOR_SCALES
from efficientdet.loss import DetectionLoss, Losses, Targets, assign_anchors

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
    [(DetectionLoss(), 100), (DetectionLoss(1), 1), (DetectionLoss(empty_image_normalizer=2.5), 2.5)],
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
