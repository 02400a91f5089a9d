"""Layers with TensorFlow's arithmetic: SAME convolution, SAME max-pooling, drop-connect."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from efficientnet.depthwise import depthwise_conv2d


def same_padding(size: int, kernel_size: int, stride: int) -> tuple[int, int]:
    """Pixels of padding (before, after) one side of length `size`, as TensorFlow's "SAME" mode counts them.

    The output has ceil(size / stride) pixels; an odd pixel of padding goes after (right, bottom).
    """
    total = max((-(-size // stride) - 1) * stride + kernel_size - size, 0)
    return total // 2, total - total // 2


def _image_padding(x: Tensor, kernel_size: int, stride: int) -> tuple[int, int, int, int]:
    """(left, right, top, bottom) SAME padding of an (N, C, H, W) tensor."""
    height, width = x.shape[-2:]
    return *same_padding(width, kernel_size, stride), *same_padding(height, kernel_size, stride)


class SameConv2d(nn.Module):
    """2-d convolution with a square kernel and SAME padding: (N, C, H, W) -> (N, out, ceil(H/s), ceil(W/s)).

    The convolution is the submodule `conv`, because that is its key in the published weights.
    """

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: int, stride: int = 1, groups: int = 1, bias: bool = True
    ):
        super().__init__()
        self.kernel_size = kernel_size
        self.stride = stride
        self.conv = nn.Conv2d(in_channels, out_channels, kernel_size, stride, groups=groups, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        left, right, top, bottom = _image_padding(x, self.kernel_size, self.stride)
        padding = (top, left)
        if (left, top) != (right, bottom):  # else the convolution pads by itself, without a copy of its input
            x = F.pad(x, (left, right, top, bottom))
            padding = (0, 0)
        conv = self.conv
        if conv.groups == conv.in_channels == conv.out_channels and conv.bias is None:
            return depthwise_conv2d(x, conv.weight, self.stride, padding)
        return F.conv2d(x, conv.weight, conv.bias, conv.stride, padding, groups=conv.groups)


class SameMaxPool2d(nn.Module):
    """Max-pooling with SAME padding by zeros, not by minus infinity: the published weights were trained with it."""

    def __init__(self, kernel_size: int, stride: int):
        super().__init__()
        self.kernel_size = kernel_size
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        padded = F.pad(x, _image_padding(x, self.kernel_size, self.stride))
        return F.max_pool2d(padded, self.kernel_size, self.stride)


def drop_connect(x: Tensor, drop_rate: float) -> Tensor:
    """Stochastic depth (Huang et al., 2016): zero whole images of an (N, C, H, W) residual, rescale the rest."""
    keep_rate = 1.0 - drop_rate
    keep = torch.rand(x.shape[0], 1, 1, 1, dtype=x.dtype, device=x.device) < keep_rate
    return x / keep_rate * keep
