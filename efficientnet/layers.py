"""Layers with TensorFlow's arithmetic: convolution and max-pooling with SAME padding, and drop-connect."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from efficientnet.depthwise import depthwise_conv2d
from efficientnet.padding import padded_conv2d, same_padding_2d


class SameConv2d(nn.Module):
    """2D convolution with a square kernel and SAME padding: (N, C, H, W) -> (N, out, ceil(H/s), ceil(W/s)).

    The convolution is the submodule `conv`, as in the published weights' keys.
    """

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: int, stride: int = 1, groups: int = 1, bias: bool = True
    ):
        super().__init__()
        self.kernel_size, self.stride = kernel_size, stride
        self.conv = nn.Conv2d(in_channels, out_channels, kernel_size, stride, groups=groups, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        padding = same_padding_2d(x, self.kernel_size, self.stride)
        conv = self.conv
        if conv.groups == conv.in_channels == conv.out_channels and conv.bias is None:
            return depthwise_conv2d(x, conv.weight, self.stride, padding)
        return padded_conv2d(x, conv.weight, conv.bias, self.stride, padding, conv.groups)


class SameMaxPool2d(nn.Module):
    """Max-pooling with SAME padding by zeros, as in training the published weights, not by minus infinity."""

    def __init__(self, kernel_size: int, stride: int):
        super().__init__()
        self.kernel_size, self.stride = kernel_size, stride

    def forward(self, x: Tensor) -> Tensor:
        padded = F.pad(x, same_padding_2d(x, self.kernel_size, self.stride))
        return F.max_pool2d(padded, self.kernel_size, self.stride)


def drop_connect(x: Tensor, drop_rate: float) -> Tensor:
    """Zero random samples of a residual (N, C, H, W) and rescale the others (stochastic depth, Huang et al., 2016)."""
    keep_rate = 1.0 - drop_rate
    keep = torch.rand(x.shape[0], 1, 1, 1, dtype=x.dtype, device=x.device) < keep_rate
    return x / keep_rate * keep
