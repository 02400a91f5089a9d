"""Depthwise convolution with fast half-precision gradients on the CPU."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from efficientnet.cpu_training import autocast_to, trains_on_cpu
from efficientnet.padding import Padding, padded_conv2d

_FAST_KERNEL = 3  # the kernel size for which oneDNN computes the weight gradient fast


def depthwise_conv2d(x: Tensor, weight: Tensor, stride: int, padding: Padding) -> Tensor:
    """Convolve each channel of `x` (N, C, H, W) with its own kernel of `weight` (C, 1, K, K); no side is padded by K.

    In half precision on the CPU (by the dtype of `x` or by autocast), gradients are composed of convolutions that
    oneDNN computes fast. Its own gradients take up to a hundred times as long.
    """
    if trains_on_cpu(x):
        x, weight = autocast_to(x), autocast_to(weight)
        if x.dtype in (torch.bfloat16, torch.float16):
            return _HalfPrecisionDepthwise.apply(x, weight, stride, padding)
    return padded_conv2d(x, weight, None, stride, padding, len(weight))


class _HalfPrecisionDepthwise(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, stride: int, padding: Padding) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.stride, ctx.padding = stride, padding
        left, right, top, bottom = padding
        if (right, bottom) == (left + 1, top + 1):
            # With a first row and column of zeros in the kernel, padding is the same on both sides.
            return F.conv2d(x, F.pad(weight, (1, 0, 1, 0)), None, stride, (bottom, right), groups=len(weight))
        return padded_conv2d(x, weight, None, stride, padding, len(weight))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (x, weight), geometry = ctx.saved_tensors, (ctx.stride, ctx.padding)
        x_grad = _input_gradient(grad, x, weight, *geometry) if ctx.needs_input_grad[0] else None
        weight_grad = _weight_gradient(grad, x, weight, *geometry) if ctx.needs_input_grad[1] else None
        return x_grad, weight_grad, None, None


def _input_gradient(grad: Tensor, x: Tensor, weight: Tensor, stride: int, padding: Padding) -> Tensor:
    """Convolve `grad`, with zeros between its pixels if there is a stride, with the mirrored kernel."""
    mirrored, reach = weight.flip(2, 3), weight.shape[2] - 1
    if stride == 1:
        left, right, top, bottom = (reach - side for side in padding)
        return padded_conv2d(grad, mirrored, None, 1, (left, right, top, bottom), len(weight))
    left, _, top, _ = (reach - side for side in padding)
    images, channels, height, width = x.shape
    spread = grad.new_zeros(images, height + reach, width + reach, channels).permute(0, 3, 1, 2)
    rows, columns = (stride * length for length in grad.shape[2:])
    spread[:, :, top : top + rows : stride, left : left + columns : stride] = grad
    return F.conv2d(spread, mirrored, groups=channels)


def _weight_gradient(grad: Tensor, x: Tensor, weight: Tensor, stride: int, padding: Padding) -> Tensor:
    """Compose the gradient of 3 x 3 blocks. Each is the gradient of a smaller kernel in a shifted window of `x`."""
    size = weight.shape[2]
    left, right, top, bottom = padding
    if size <= _FAST_KERNEL and (left, top) == (right, bottom):
        return _fast_weight_gradient(grad, x, weight, stride, (top, left))
    x = F.pad(x, padding)
    if size <= _FAST_KERNEL:
        return _fast_weight_gradient(grad, x, weight, stride)
    rows, columns = (stride * (length - 1) + _FAST_KERNEL for length in grad.shape[2:])
    # If the size is not a multiple of 3, the last block overlaps the one before.
    corners = [*range(0, size - _FAST_KERNEL, _FAST_KERNEL), size - _FAST_KERNEL]
    kernel = weight[:, :, :_FAST_KERNEL, :_FAST_KERNEL].contiguous()  # only its shape matters
    result = torch.empty_like(weight)
    for row in corners:
        for column in corners:
            window = x[:, :, row : row + rows, column : column + columns]
            block = _fast_weight_gradient(grad, window, kernel, stride)
            result[:, :, row : row + _FAST_KERNEL, column : column + _FAST_KERNEL] = block
    return result


def _fast_weight_gradient(
    grad: Tensor, x: Tensor, weight: Tensor, stride: int, padding: tuple[int, int] = (0, 0)
) -> Tensor:
    """Return PyTorch's own gradient of the weight."""
    geometry = [stride, stride], list(padding), [1, 1], False, [0, 0], len(weight)  # no dilation, not transposed
    return torch.ops.aten.convolution_backward(grad, x, weight, None, *geometry, [False, True, False])[1]
