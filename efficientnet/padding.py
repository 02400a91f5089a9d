"""Padding as in TensorFlow: as many zeros on each side of an image as SAME mode says."""

import torch.nn.functional as F
from torch import Tensor

Padding = tuple[int, int, int, int]  # zeros to the left, right, top and bottom


def same_padding(size: int, kernel_size: int, stride: int) -> tuple[int, int]:
    """Return the padding (before, after) of one dimension of `size` pixels in TensorFlow's SAME mode.

    The output has ceil(size / stride) pixels. If the total is odd, the extra pixel goes after (right, bottom).
    """
    total = max((-(-size // stride) - 1) * stride + kernel_size - size, 0)
    return total // 2, total - total // 2


def same_padding_2d(x: Tensor, kernel_size: int, stride: int) -> Padding:
    """Return the SAME padding of an (N, C, H, W) tensor."""
    height, width = x.shape[-2:]
    return *same_padding(width, kernel_size, stride), *same_padding(height, kernel_size, stride)


def padded_conv2d(x: Tensor, weight: Tensor, bias: Tensor | None, stride: int, padding: Padding, groups: int) -> Tensor:
    """Convolve with as many zeros on each side of `x` as `padding` says."""
    left, right, top, bottom = padding
    if (left, top) != (right, bottom):  # otherwise the convolution itself pads, without copying its input
        x, left, top = F.pad(x, padding), 0, 0
    return F.conv2d(x, weight, bias, stride, (top, left), groups=groups)
