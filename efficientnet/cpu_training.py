"""MBConv's expansion and squeeze-and-excitation, with few passes over memory in training on the CPU."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

_WORTHWHILE = 12  # pixels per input channel, above which folding a batch norm is faster


def trains_on_cpu(x: Tensor) -> bool:
    """Return whether gradients of `x` are to be computed on the CPU, op by op: the compiler has its own ways."""
    return x.device.type == "cpu" and torch.is_grad_enabled() and not torch.compiler.is_compiling()


def autocast_to(x: Tensor) -> Tensor:
    """Return `x`, on the CPU, in the dtype in which autocast computes convolutions."""
    if torch.is_autocast_enabled("cpu") and x.dtype != torch.float64:
        return x.to(torch.get_autocast_dtype("cpu"))
    return x


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


def excite_and_project(x: Tensor, reduce: Any, expand: Any, project: Any) -> Tensor:
    """Multiply each channel of `x` (N, C, H, W) by its gate, then project: (N, C, H, W) -> (N, out, H, W).

    The gates are sigmoid(expand(swish(reduce(the channels' means)))). All are 1x1 convolutions, `project` without bias.
    In training on the CPU the gates multiply the weights of the projection, image by image, instead of activations,
    unless there are fewer of these.
    """
    if project.training and trains_on_cpu(x) and x.shape[2] * x.shape[3] > project.conv.out_channels:
        convs = reduce.conv, expand.conv
        parameters = *(parameter for conv in convs for parameter in (conv.weight, conv.bias)), project.conv.weight
        return _ExciteAndProject.apply(*map(autocast_to, (x, *parameters)))
    gate = expand(F.silu(reduce(F.adaptive_avg_pool2d(x, 1)))).sigmoid()
    return project(gate * x)


class _ExciteAndProject(torch.autograd.Function):
    """Treats `x` as rows of pixels (N, H * W, C), a view if it is channels-last, and kernels as matrices."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, reduce: Tensor, reduce_bias: Tensor, expand: Tensor, expand_bias: Tensor, project: Tensor
    ) -> Tensor:
        pixels = x.permute(0, 2, 3, 1).flatten(1, 2)
        means = pixels.mean(dim=1)
        hidden = F.linear(means, reduce.flatten(1), reduce_bias)
        gate = F.linear(F.silu(hidden), expand.flatten(1), expand_bias).sigmoid()
        gated_weights = gate[:, None] * project.flatten(1)  # (N, out, C)
        ctx.save_for_backward(x, means, hidden, gate, gated_weights, reduce, expand, project)
        return torch.bmm(pixels, gated_weights.mT).unflatten(1, x.shape[2:]).permute(0, 3, 1, 2)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, ...]:
        x, means, hidden, gate, gated_weights, reduce, expand, project = ctx.saved_tensors
        pixels, grad = (tensor.permute(0, 2, 3, 1).flatten(1, 2) for tensor in (x, grad))
        gated_weights_grad = torch.bmm(grad.mT, pixels)  # (N, out, C)
        project_grad = (gated_weights_grad * gate[:, None]).sum(dim=0)
        gate_grad = (gated_weights_grad * project.flatten(1)).sum(dim=1) * gate * (1 - gate)
        hidden_grad = torch.ops.aten.silu_backward(gate_grad @ expand.flatten(1), hidden)
        means_grad = hidden_grad @ reduce.flatten(1) / pixels.shape[1]
        # The means' share is the same for all pixels: a channel of ones adds it in the same pass.
        grad = torch.cat((grad, grad.new_ones(*grad.shape[:2], 1)), dim=2)
        x_grad = torch.bmm(grad, torch.cat((gated_weights, means_grad[:, None]), dim=1))
        return (
            x_grad.unflatten(1, x.shape[2:]).permute(0, 3, 1, 2),
            (hidden_grad.mT @ means).view_as(reduce),
            hidden_grad.sum(dim=0),
            (gate_grad.mT @ F.silu(hidden)).view_as(expand),
            gate_grad.sum(dim=0),
            project_grad.view_as(project),
        )
