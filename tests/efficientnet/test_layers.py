"""SAME convolution and pooling pad like TensorFlow; drop-connect drops whole samples."""

import pytest
import torch
import torch.nn.functional as F

from efficientnet.layers import SameConv2d, SameMaxPool2d, drop_connect
from efficientnet.padding import same_padding


@pytest.mark.parametrize(
    ("size", "kernel_size", "stride", "expected"),
    [
        (8, 1, 1, (0, 0)),
        (8, 3, 1, (1, 1)),
        (7, 3, 1, (1, 1)),
        (8, 5, 1, (2, 2)),
        (8, 3, 2, (0, 1)),  # 4 outputs cover 9 pixels: the extra one goes after
        (7, 3, 2, (1, 1)),
        (8, 5, 2, (1, 2)),
        (7, 5, 2, (2, 2)),
        (1, 3, 2, (1, 1)),
        (2, 3, 2, (0, 1)),
        (7, 1, 2, (0, 0)),
        (8, 1, 2, (0, 0)),  # the last pixel is skipped: no padding, no cropping
        (9, 2, 3, (0, 0)),
        (10, 3, 4, (0, 1)),
    ],
)
def test_same_padding_by_hand(size, kernel_size, stride, expected):
    assert same_padding(size, kernel_size, stride) == expected


@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("kernel_size", [1, 3, 5])
@pytest.mark.parametrize(("height", "width"), [(8, 8), (7, 8), (8, 5), (9, 7), (1, 2)])
def test_convolution_output_is_size_over_stride_rounded_up(height, width, kernel_size, stride):
    conv = SameConv2d(2, 3, kernel_size, stride)
    assert conv(torch.zeros(1, 2, height, width)).shape == (1, 3, -(-height // stride), -(-width // stride))


@pytest.mark.parametrize(
    ("kernel_size", "stride", "height", "width", "left_right_top_bottom"),
    [
        (3, 1, 6, 5, (1, 1, 1, 1)),
        (3, 2, 6, 5, (1, 1, 0, 1)),
        (3, 2, 5, 6, (0, 1, 1, 1)),
        (5, 2, 6, 8, (1, 2, 1, 2)),
        (5, 2, 7, 7, (2, 2, 2, 2)),
        (1, 1, 4, 4, (0, 0, 0, 0)),
    ],
)
def test_convolution_equals_one_with_explicit_padding(kernel_size, stride, height, width, left_right_top_bottom):
    conv = SameConv2d(4, 6, kernel_size, stride, groups=2).double()
    x = torch.randn(2, 4, height, width, dtype=torch.float64)
    expected = F.conv2d(F.pad(x, left_right_top_bottom), conv.conv.weight, conv.conv.bias, stride, groups=2)
    torch.testing.assert_close(conv(x), expected, rtol=1e-12, atol=1e-12)


def test_odd_padding_goes_right_and_bottom():
    conv = SameConv2d(1, 1, 3, stride=2, bias=False)
    torch.nn.init.ones_(conv.conv.weight)
    x = torch.arange(16.0).reshape(1, 1, 4, 4)
    # Windows start at rows and columns 0 and 2; the last ones include one row or column of zeros.
    expected = torch.tensor(
        [[0 + 1 + 2 + 4 + 5 + 6 + 8 + 9 + 10, 2 + 3 + 6 + 7 + 10 + 11.0], [8 + 9 + 10 + 12 + 13 + 14, 50]]
    )
    torch.testing.assert_close(conv(x)[0, 0], expected)


def test_convolution_without_bias_has_none():
    assert SameConv2d(1, 1, 3, bias=False).conv.bias is None
    assert SameConv2d(1, 1, 3).conv.bias is not None


def test_max_pool_by_hand():
    x = torch.arange(16.0).reshape(1, 1, 4, 4)
    assert SameMaxPool2d(3, 2)(x).tolist() == [[[[10, 11], [14, 15]]]]


def test_max_pool_pads_with_zeros_not_minus_infinity():
    x = torch.full((1, 1, 4, 4), -5.0)
    # Only the top left window contains no padding.
    assert SameMaxPool2d(3, 2)(x).tolist() == [[[[-5, 0], [0, 0]]]]


@pytest.mark.parametrize(("size", "pooled"), [(1, 1), (2, 1), (5, 3), (8, 4)])
def test_max_pool_halves_and_rounds_up(size, pooled):
    assert SameMaxPool2d(3, 2)(torch.zeros(1, 2, size, 8)).shape == (1, 2, pooled, 4)


def test_drop_connect_of_an_empty_batch():
    assert drop_connect(torch.zeros(0, 3, 2, 2), 0.2).shape == (0, 3, 2, 2)


def test_drop_connect_at_rate_zero_changes_nothing():
    x = torch.randn(4, 3, 2, 2)
    torch.testing.assert_close(drop_connect(x, 0.0), x)


def test_drop_connect_zeroes_whole_samples_and_rescales_the_others():
    torch.manual_seed(0)
    x = torch.rand(64, 3, 2, 2) + 0.5
    dropped = drop_connect(x, 0.2)
    zeroed = (dropped == 0).flatten(1).all(dim=1)
    assert 0 < zeroed.sum() < 64
    torch.testing.assert_close(dropped[~zeroed], x[~zeroed] / 0.8)


def test_drop_connect_keeps_the_mean():
    torch.manual_seed(0)
    mean = drop_connect(torch.ones(20_000, 1, 1, 1), 0.2).mean().item()
    assert mean == pytest.approx(1.0, abs=0.015)  # standard error 0.0035
