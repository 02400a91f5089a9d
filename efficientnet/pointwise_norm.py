"""A 1x1 convolution to more channels and its batch norm, with few passes over memory in training on the CPU."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from efficientnet.depthwise import trains_on_cpu

_WORTHWHILE = 12  # pixels per input channel, above which folding is faster


def normalized_pointwise(x: Tensor, conv: Any, norm: Any) -> Tensor:
    """Return norm(conv(x)) for a 1x1 convolution without bias and a batch norm: (N, C, H, W) -> (N, out, H, W).

    In training on the CPU the mean and variance of the outputs are derived from the mean and covariance of the inputs,
    of which there are fewer. The convolution, scaled and shifted, then returns normalized values at once.
    """
    pixels = x.numel() // x.shape[1]
    folds = trains_on_cpu(x) and type(norm) is nn.BatchNorm2d and norm.training
    if not folds or pixels < _WORTHWHILE * x.shape[1]:
        return norm(conv(x))
    with torch.autocast("cpu", enabled=False):
        input_mean, covariance = _Moments.apply(x)
        weight = conv.conv.weight.flatten(1)
        mean = weight @ input_mean
        variance = (weight @ covariance * weight).sum(dim=1)
        with torch.no_grad():
            norm.num_batches_tracked += 1
            norm.running_mean.lerp_(mean, norm.momentum)
            norm.running_var.lerp_(variance * (pixels / (pixels - 1)), norm.momentum)
        scale = norm.weight * (variance + norm.eps).rsqrt()
        weight, bias = (scale[:, None] * weight).view_as(conv.conv.weight), norm.bias - scale * mean
    return F.conv2d(x, weight, bias)


class _Moments(torch.autograd.Function):
    """Mean (C,) and covariance (C, C) of the pixels of `x` (N, C, H, W), in at least float32."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> tuple[Tensor, Tensor]:
        pixels = x.permute(0, 2, 3, 1).flatten(0, 2)
        centered = pixels.to(torch.promote_types(x.dtype, torch.float32))
        mean = centered.mean(dim=0)
        centered = centered - mean
        ctx.save_for_backward(pixels, mean)
        ctx.shape = x.shape
        return mean, centered.mT @ centered / len(pixels)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, mean_grad: Tensor, covariance_grad: Tensor) -> Tensor:
        pixels, mean = ctx.saved_tensors
        slope = (covariance_grad + covariance_grad.mT) / len(pixels)
        offset = mean_grad / len(pixels) - mean @ slope
        grad = torch.addmm(offset.to(pixels.dtype), pixels, slope.to(pixels.dtype))
        images, _, height, width = ctx.shape
        return grad.view(images, height, width, -1).permute(0, 3, 1, 2)
