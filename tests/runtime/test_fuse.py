"""The fused network computes what the network computes, and leaves that one unchanged."""

import pytest
import torch
from golden_fill import network_with_statistics, normal_array
from torch import Tensor, nn

from efficientdet.model.network import EfficientDet
from efficientdet.runtime.fuse import fuse_for_inference

CPU = torch.device("cpu")


def images(*shape: int) -> Tensor:
    return torch.from_numpy(normal_array("batch", shape)).double()


@pytest.fixture(scope="module")
def d0() -> EfficientDet:
    return network_with_statistics(0)


def assert_same_outputs(plain: EfficientDet, fast: nn.Module, batch: Tensor) -> None:
    with torch.no_grad():
        expected, outputs = plain(batch), fast(batch)
    for name in ("class_logits", "box_deltas"):
        original, fused = getattr(expected, name), getattr(outputs, name)
        assert original.std() > 1e-3, f"{name} hardly varies"
        assert ((fused - original).abs().max() / original.std()).item() < 1e-9
    assert torch.equal(outputs.anchors, expected.anchors)


@pytest.mark.parametrize(
    ("compound_coef", "size"),
    [
        pytest.param(0, 128, id="D0"),
        pytest.param(6, 128, id="D6", marks=pytest.mark.slow),
        pytest.param(8, 256, id="D8", marks=pytest.mark.slow),
    ],
)
def test_fused_equals_plain(compound_coef, size):
    plain = network_with_statistics(compound_coef)
    assert_same_outputs(plain, fuse_for_inference(plain, CPU), images(1, 3, size, size))


@pytest.mark.parametrize("compound_coef", [0, *(pytest.param(n, marks=pytest.mark.slow) for n in (6, 8))])
def test_fused_equals_plain_in_float32(compound_coef):
    plain = network_with_statistics(compound_coef).float()
    side = plain.config.size_divisor
    batch = images(1, 3, side, side).float()
    with torch.no_grad():
        expected, outputs = plain(batch), fuse_for_inference(plain, CPU)(batch)
    for name in ("class_logits", "box_deltas"):
        original, fused = getattr(expected, name), getattr(outputs, name)
        # The largest difference is 2e-5, in D6 and D8, where plain float32 differs from float64 by 1e-5.
        assert ((fused - original).abs().max() / original.std()).item() < 5e-5
        assert ((fused - original).square().mean().sqrt() / original.std()).item() < 1e-5


def test_fused_equals_plain_on_a_rectangular_batch(d0):
    assert_same_outputs(d0, fuse_for_inference(d0, CPU), images(2, 3, 128, 384))


def test_the_original_is_not_changed():
    plain = network_with_statistics(0).train()
    before = {key: value.clone() for key, value in plain.state_dict().items()}
    fused = fuse_for_inference(plain, CPU)
    with torch.no_grad():
        fused(images(1, 3, 128, 128))
    after = plain.state_dict()
    assert list(before) == list(after)
    assert all(torch.equal(before[key], after[key]) for key in before)
    assert plain.training and all(parameter.requires_grad for parameter in plain.parameters())
    assert not any(module.inplace for module in plain.modules() if isinstance(module, nn.SiLU))


def test_no_batch_norm_and_no_gradient_remain(d0):
    fused = fuse_for_inference(d0, CPU)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in fused.modules())
    assert not any(parameter.requires_grad for parameter in fused.parameters())
    assert not fused.training


def test_the_input_is_not_overwritten(d0):
    batch = images(1, 3, 128, 128)
    before = batch.clone()
    with torch.no_grad():
        fuse_for_inference(d0, CPU)(batch)
    assert torch.equal(batch, before)


def test_sizes_that_the_pyramid_does_not_accept_are_an_error(d0):
    with pytest.raises(ValueError, match="128 x 100"):
        fuse_for_inference(d0, CPU)(images(1, 3, 128, 100))
