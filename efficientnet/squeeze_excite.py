"""Squeeze-and-excitation and the projection after it, with few passes over memory in training on the CPU."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from efficientnet.depthwise import autocast_to, trains_on_cpu


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
