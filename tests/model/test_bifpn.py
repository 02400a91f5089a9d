"""The feature pyramid: shapes, fusion of constant maps, and which input influences which level."""

import math

import pytest
import torch
from torch import Tensor, nn

from efficientdet.model.bifpn import BiFPNCell, SeparableConv

LEVELS = (3, 4, 5, 6, 7)


def features(channels: tuple[int, ...], height: int, width: int) -> list[Tensor]:
    """Return a random feature per entry of `channels`, each half as high and wide as the previous one."""
    generator = torch.Generator().manual_seed(0)
    return [
        torch.randn(1, c, height >> i, width >> i, generator=generator, dtype=torch.float64)
        for i, c in enumerate(channels)
    ]


def make_identity(cell: BiFPNCell) -> BiFPNCell:
    """Make every node of a cell return its fused input unchanged (batch norm in evaluation mode divides by 1)."""
    for module in cell.modules():
        if isinstance(module, SeparableConv):
            nn.init.dirac_(module.depthwise_conv.conv.weight, groups=module.depthwise_conv.conv.groups)
            nn.init.dirac_(module.pointwise_conv.conv.weight)
            nn.init.zeros_(module.pointwise_conv.conv.bias)
        if isinstance(module, nn.BatchNorm2d):
            module.running_var.fill_(1 - module.eps)
    return cell.eval()


def swish(x: float) -> float:
    return x / (1 + math.exp(-x))


@pytest.mark.parametrize(
    ("levels", "fast_attention", "sizes"),
    [
        ((3, 4, 5, 6, 7), True, [(16, 32), (8, 16), (4, 8), (2, 4), (1, 2)]),
        ((3, 4, 5, 6, 7), False, [(32, 16), (16, 8), (8, 4), (4, 2), (2, 1)]),
        ((3, 4, 5, 6, 7, 8), False, [(32, 64), (16, 32), (8, 16), (4, 8), (2, 4), (1, 2)]),
    ],
)
def test_shapes(levels, fast_attention, sizes):
    first = BiFPNCell(8, levels, fast_attention, backbone_channels=(3, 5, 7)).double()
    pyramid = first(features((3, 5, 7), *sizes[0]))
    assert [tuple(level.shape) for level in pyramid] == [(1, 8, *size) for size in sizes]
    again = BiFPNCell(8, levels, fast_attention).double()(pyramid)
    assert [tuple(level.shape) for level in again] == [(1, 8, *size) for size in sizes]


def constant_pyramid(values: list[float]) -> list[Tensor]:
    return [torch.full((1, 1, 16 >> i, 16 >> i), v, dtype=torch.float64) for i, v in enumerate(values)]


def test_plain_sum_of_constant_maps_computed_by_hand():
    cell = make_identity(BiFPNCell(1, LEVELS, fast_attention=False).double())
    pyramid = cell(constant_pyramid([0.1, 0.2, 0.3, 0.4, 0.5]))
    down6 = swish(0.4 + 0.5)
    down5 = swish(0.3 + down6)
    down4 = swish(0.2 + down5)
    p3 = swish(0.1 + down4)
    p4 = swish(0.2 + down4 + p3)
    p5 = swish(0.3 + down5 + p4)
    p6 = swish(0.4 + down6 + p5)
    p7 = swish(0.5 + p6)
    for level, expected in zip(pyramid, (p3, p4, p5, p6, p7)):
        torch.testing.assert_close(level, torch.full_like(level, expected))


def test_fast_attention_divides_by_the_sum_of_the_weights():
    cell = make_identity(BiFPNCell(1, LEVELS, fast_attention=True).double())
    with torch.no_grad():
        cell.p6_w1.copy_(torch.tensor([1.0, 3.0]))
        cell.p7_w2.copy_(torch.tensor([0.5, 0.0]))
    pyramid = cell(constant_pyramid([0.0, 0.0, 0.0, 0.4, 0.8]))
    down6 = swish((1 * 0.4 + 3 * 0.8) / 4.0001)
    down5 = swish(down6 / 2.0001)
    down4 = swish(down5 / 2.0001)
    p3 = swish(down4 / 2.0001)
    torch.testing.assert_close(pyramid[0], torch.full_like(pyramid[0], p3))
    p4 = swish((down4 + p3) / 3.0001)
    torch.testing.assert_close(pyramid[1], torch.full_like(pyramid[1], p4))
    torch.testing.assert_close(pyramid[4], torch.full_like(pyramid[4], swish(0.5 * 0.8 / 0.5001)))


def test_negative_fusion_weight_counts_as_zero():
    cell = make_identity(BiFPNCell(1, LEVELS, fast_attention=True).double())
    with torch.no_grad():
        cell.p3_w1.copy_(torch.tensor([2.0, -5.0]))
    p3 = cell(constant_pyramid([0.7, 9.0, 9.0, 9.0, 9.0]))[0]
    torch.testing.assert_close(p3, torch.full_like(p3, swish(2 * 0.7 / 2.0001)))


def test_plain_sum_has_fusion_weights_but_never_uses_them():
    cell = BiFPNCell(4, LEVELS, fast_attention=False).double().eval()
    inputs = features((4,) * 5, 16, 16)
    before = cell(inputs)
    with torch.no_grad():
        for name, parameter in cell.named_parameters():
            if name.endswith(("_w1", "_w2")):
                assert not parameter.requires_grad
                parameter.fill_(7.0)
    assert all(torch.equal(a, b) for a, b in zip(before, cell(inputs)))


def test_upsampling_is_nearest_neighbor():
    cell = make_identity(BiFPNCell(1, LEVELS, fast_attention=False).double())
    inputs = constant_pyramid([0.0, 0.0, 0.0, 0.0, 0.0])
    inputs[3] = torch.tensor([[[[1.0, 2.0], [3.0, 4.0]]]], dtype=torch.float64)
    p3 = cell(inputs)[0]
    value = [swish(swish(swish(swish(x)))) for x in (1.0, 2.0, 3.0, 4.0)]
    expected = torch.tensor(value, dtype=torch.float64).reshape(2, 2).repeat_interleave(8, 0).repeat_interleave(8, 1)
    torch.testing.assert_close(p3[0, 0], expected)


@pytest.mark.parametrize(
    ("projection", "changed"),
    [
        ("p3_down_channel", [True] * 5),
        ("p4_down_channel", [True] * 5),
        ("p4_down_channel_2", [False, True, True, True, True]),
        ("p5_down_channel_2", [False, False, True, True, True]),
        ("p5_to_p6", [True] * 5),
    ],
)
def test_second_projections_feed_the_bottom_up_pass_only(projection, changed):
    torch.manual_seed(0)
    cell = BiFPNCell(4, LEVELS, True, backbone_channels=(3, 5, 7)).double().eval()
    inputs = features((3, 5, 7), 16, 16)
    before = cell(inputs)
    with torch.no_grad():
        getattr(cell, projection)[0].conv.weight.mul_(3)
    assert [not torch.equal(a, b) for a, b in zip(before, cell(inputs))] == changed


def test_separable_convolution_has_one_bias_and_an_optional_norm():
    assert set(SeparableConv(4, 6, norm=False).state_dict()) == {
        "depthwise_conv.conv.weight",
        "pointwise_conv.conv.weight",
        "pointwise_conv.conv.bias",
    }
    norm = SeparableConv(4, 6).bn
    assert (norm.num_features, norm.eps, norm.momentum) == (6, 1e-3, 0.01)
