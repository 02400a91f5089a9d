"""Depthwise convolution with fast half-precision gradients on the CPU."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

_FAST_KERNEL = 3  # the kernel size for which oneDNN computes the weight gradient fast


def depthwise_conv2d(x: Tensor, weight: Tensor, stride: int, padding: tuple[int, int]) -> Tensor:
    """Convolve each channel of `x` (N, C, H, W) with its own kernel of `weight` (C, 1, K, K), padding with zeros.

    In half precision on the CPU (by the dtype of `x` or by autocast), gradients are composed of convolutions that
    oneDNN computes fast. Its own gradients take up to a hundred times as long.
    """
    autocast = x.device.type == "cpu" and torch.is_autocast_enabled("cpu")
    dtype = torch.get_autocast_dtype("cpu") if autocast and x.dtype != torch.float64 else x.dtype
    if x.device.type == "cpu" and dtype in (torch.bfloat16, torch.float16) and torch.is_grad_enabled():
        return _HalfPrecisionDepthwise.apply(x.to(dtype), weight.to(dtype), stride, padding)
    return F.conv2d(x, weight, None, stride, padding, groups=weight.shape[0])


class _HalfPrecisionDepthwise(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, stride: int, padding: tuple[int, int]) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.stride, ctx.padding = stride, padding
        return F.conv2d(x, weight, None, stride, padding, groups=weight.shape[0])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (x, weight), geometry = ctx.saved_tensors, (ctx.stride, ctx.padding)
        x_grad = weight_grad = None
        if ctx.needs_input_grad[0] and ctx.stride == 1:
            x_grad = _gradient(grad, x, weight, *geometry, of_weight=False)
        elif ctx.needs_input_grad[0]:  # with a stride, only float32 is fast; only the input's shape and layout matter
            like_x = torch.empty_like(x, dtype=torch.float32)
            x_grad = _gradient(grad.float(), like_x, weight.float(), *geometry, of_weight=False).to(x.dtype)
        if ctx.needs_input_grad[1]:
            weight_grad = _weight_gradient(grad, x, weight, *geometry)
        return x_grad, weight_grad, None, None


def _weight_gradient(grad: Tensor, x: Tensor, weight: Tensor, stride: int, padding: tuple[int, int]) -> Tensor:
    """Compose the gradient of 3 x 3 blocks. Each is the gradient of a smaller kernel in a shifted window of `x`."""
    size = weight.shape[2]
    if size <= _FAST_KERNEL:
        return _gradient(grad, x, weight, stride, padding, of_weight=True)
    vertical, horizontal = padding
    x = F.pad(x, (horizontal, horizontal, vertical, vertical))
    rows, columns = (stride * (length - 1) + _FAST_KERNEL for length in grad.shape[2:])
    # If the size is not a multiple of 3, the last block overlaps the one before.
    corners = [*range(0, size - _FAST_KERNEL, _FAST_KERNEL), size - _FAST_KERNEL]
    kernel = weight[:, :, :_FAST_KERNEL, :_FAST_KERNEL].contiguous()  # only its shape matters
    result = torch.empty_like(weight)
    for top in corners:
        for left in corners:
            window = x[:, :, top : top + rows, left : left + columns]
            block = _gradient(grad, window, kernel, stride, (0, 0), of_weight=True)
            result[:, :, top : top + _FAST_KERNEL, left : left + _FAST_KERNEL] = block
    return result


def _gradient(
    grad: Tensor, x: Tensor, weight: Tensor, stride: int, padding: tuple[int, int], of_weight: bool
) -> Tensor:
    """Return PyTorch's own gradient of the weight, or of the input."""
    geometry = [stride, stride], list(padding), [1, 1], False, [0, 0], weight.shape[0]  # no dilation, not transposed
    output_mask = [not of_weight, of_weight, False]
    return torch.ops.aten.convolution_backward(grad, x, weight, None, *geometry, output_mask)[of_weight]
