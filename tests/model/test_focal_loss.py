"""The focal loss and its hand-written gradient."""

import pytest
import torch
from golden_fill import normal_array
from losses import OFFICIAL, assert_losses_close, make_golden_batch, no_targets, targets
from torch import Tensor

from efficientdet.model.loss import DetectionLoss
from efficientdet.structures import Targets


@pytest.fixture
def golden_batch() -> tuple[tuple[Tensor, Tensor, Tensor], Targets]:
    return make_golden_batch()


@pytest.mark.parametrize("extreme", [-1e4, -100.0, 100.0, 1e4])
def test_extreme_logits_have_a_finite_loss_and_no_gradient(extreme):
    anchors = torch.tensor([[0.0, 0, 10, 10]])
    logits = torch.full((1, 1, 2), extreme, requires_grad=True)
    losses = DetectionLoss()((logits, torch.zeros(1, 1, 4), anchors), targets([0, 0, 10, 10, 0]))
    losses.classification.backward()
    assert torch.isfinite(losses.classification)
    assert not logits.grad.any()


@pytest.mark.parametrize("extreme", [-20.0, 20.0])
def test_only_clamped_logits_have_no_gradient(extreme):
    anchors = torch.tensor([[0.0, 0, 10, 10], [50, 50, 60, 60]])
    logits = torch.tensor([[[extreme, 0.5, extreme], [-2.0, extreme, 3.0]]], requires_grad=True)
    losses = DetectionLoss()((logits, torch.zeros(1, 2, 4), anchors), targets([0, 0, 10, 10, 0]))
    losses.classification.backward()
    assert (logits.grad != 0).tolist() == [[[False, True, False], [True, False, True]]]


@pytest.fixture
def two_images() -> tuple[tuple[Tensor, Tensor, Tensor], Targets]:
    """Predictions of 3 classes for 4 anchors with IoUs of 1, 0.45, 0.8 and 0."""
    anchors = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 4.5], [0, 0, 10, 8], [50, 50, 60, 60]], dtype=torch.float64)
    logits = torch.from_numpy(normal_array("two logits", (2, 4, 3))).double().requires_grad_()
    deltas = torch.from_numpy(normal_array("two deltas", (2, 4, 4))).double().requires_grad_()
    boxes = torch.tensor([[[0.0, 0, 10, 10]], [[0, 0, 0, 0]]])  # padding in the second image
    return (logits, deltas, anchors), Targets(boxes, torch.tensor([[2], [-1]]))


@pytest.mark.parametrize("options", [{}, OFFICIAL, {"focal_gamma": 1.0}], ids=["reference", "official", "gamma 1"])
def test_gradients_equal_finite_differences(two_images, options):
    (logits, deltas, anchors), labels = two_images
    loss = DetectionLoss(**options)
    assert torch.autograd.gradcheck(lambda *values: loss((*values, anchors), labels).total, (logits, deltas))
    assert torch.autograd.gradcheck(
        lambda *values: loss((*values, anchors), no_targets(2)).classification, (logits, deltas)
    )


def test_ignored_anchor_has_no_gradient(two_images):
    (logits, deltas, anchors), labels = two_images
    DetectionLoss()((logits, deltas, anchors), labels).total.backward()
    assert not logits.grad[0, 1].any() and not deltas.grad[0, 1].any()
    assert logits.grad[0, 0].all() and logits.grad[1, 1].all()


def test_chunk_size_does_not_change_the_result(golden_batch, monkeypatch):
    (logits, deltas, anchors), labels = golden_batch

    def loss_and_gradient() -> tuple[Tensor, Tensor]:
        loss = DetectionLoss()((logits, deltas, anchors), labels).total
        return loss.detach(), torch.autograd.grad(loss, logits)[0]

    whole = loss_and_gradient()
    for logits_at_once in (1, 1000):  # one anchor at a time; 333 anchors and a remainder
        monkeypatch.setattr("efficientdet.model.focal_loss.CPU_CHUNK", logits_at_once)
        for a, b in zip(loss_and_gradient(), whole):
            torch.testing.assert_close(a, b, rtol=1e-12, atol=0)


def test_logits_may_be_non_contiguous(golden_batch):
    (logits, deltas, anchors), labels = golden_batch
    DetectionLoss()((logits, deltas, anchors), labels).total.backward()
    transposed = logits.detach().mT.contiguous().mT.requires_grad_()
    DetectionLoss()((transposed, deltas, anchors), labels).total.backward()
    torch.testing.assert_close(transposed.grad, logits.grad, rtol=1e-12, atol=0)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 2**-8), (torch.float16, 2**-11)])
def test_half_precision_gradients_are_the_rounded_gradients_of_float32(golden_batch, dtype, tolerance):
    (logits, deltas, anchors), labels = golden_batch
    half = logits.detach().to(dtype).requires_grad_()
    single = half.detach().float().requires_grad_()
    scale = 2.0**16  # like a gradient scaler; otherwise most gradients would underflow in float16
    for values in (half, single):
        (DetectionLoss()((values, deltas.float(), anchors.float()), labels).classification * scale).backward()
    assert half.grad.dtype == dtype
    torch.testing.assert_close(half.grad.float(), single.grad, rtol=tolerance, atol=2**-24)


def test_gradient_scales_with_the_loss_and_can_be_computed_twice(golden_batch):
    (logits, deltas, anchors), labels = golden_batch
    loss = DetectionLoss()((logits, deltas, anchors), labels).classification
    (once,) = torch.autograd.grad(loss, logits, retain_graph=True)
    (thrice,) = torch.autograd.grad(3 * loss, logits, retain_graph=True)
    torch.testing.assert_close(thrice, 3 * once)
    torch.testing.assert_close(torch.autograd.grad(loss, logits)[0], once, rtol=0, atol=0)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_loss_is_the_same_without_gradients(golden_batch, mode):
    outputs, labels = golden_batch
    expected = DetectionLoss()(outputs, labels)
    with mode():
        for values in (outputs, [part.detach() for part in outputs]):
            losses = DetectionLoss()(values, labels)
            assert not losses.total.requires_grad
            assert_losses_close(losses, expected, rtol=0)
        assert DetectionLoss()(outputs, no_targets(4)).regression.item() == 0


def test_no_derivative_is_computed_without_gradients(golden_batch, monkeypatch):
    (logits, deltas, anchors), labels = golden_batch
    monkeypatch.setattr("torch.addcmul", None)  # used for the derivative only
    DetectionLoss()((logits.detach(), deltas.detach(), anchors), labels)
    with pytest.raises(TypeError):
        DetectionLoss()((logits, deltas, anchors), labels)
