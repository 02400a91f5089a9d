"""Sigmoid focal loss (RetinaNet paper, section 3)."""

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

FOCAL_ALPHA = 0.25


MIN_PROBABILITY = 1e-4  # scores are clamped to [1e-4, 1 - 1e-4] in the focal loss


_LIMIT = math.log((1 - MIN_PROBABILITY) / MIN_PROBABILITY)  # where the logits are clamped, therefore


CPU_CHUNK = 2**18  # logits that the focal loss takes at a time, so that what it makes of them stays in the CPU's cache


class _FocalLoss(torch.autograd.Function):
    """The focal losses of all anchors, each anchor's with a weight, added up: a scalar.

    Loss and gradient come out of one pass over the logits, in chunks. Autograd would need a dozen passes, and keep as
    many tensors of the logits' size; this keeps one, the gradient.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, classes: Tensor, positive: Tensor, weights: Tensor, gamma: float) -> Tensor:
        """`logits` (N, A, C); `classes` (N, A), of which those of `positive` anchors count; `weights` (N, A)."""
        on_cpu = logits.device.type == "cpu"
        shape, dtype = logits.shape, logits.dtype
        logits, classes, positive, weights = (x.flatten(0, 1) for x in (logits, classes, positive, weights))
        gradient = None
        if ctx.needs_input_grad[0]:
            # float16 cannot hold what a gradient scaler has yet to enlarge.
            gradient = torch.empty_like(logits, dtype=torch.float32 if dtype == torch.float16 else dtype)
            ctx.save_for_backward(gradient)
            ctx.logits_shape, ctx.logits_dtype = shape, dtype

        # As if all classes were absent everywhere.
        total = weights.new_zeros(())
        step = max(1, CPU_CHUNK // shape[2]) if on_cpu else len(logits)
        for start in range(0, len(logits), step):
            part = slice(start, start + step)
            chunk = logits[part].to(weights.dtype)
            loss, derivative = _absent(chunk, weights[part, None], gamma, with_derivative=gradient is not None)
            total += loss
            if gradient is not None and derivative is not None:  # both or none
                gradient[part] = derivative

        # Positive anchors have one class each. A GPU looks at all anchors, as it does not stop to count them.
        rows = positive.nonzero().squeeze(1) if on_cpu else torch.arange(len(logits), device=logits.device)
        columns, own_weights = classes[rows], torch.where(positive[rows], weights[rows], 0.0)
        own_logits = logits[rows, columns].to(weights.dtype)
        present_loss, derivative = _present(own_logits, own_weights, gamma, with_derivative=gradient is not None)
        total += present_loss - _absent(own_logits, own_weights, gamma, with_derivative=False)[0]
        if gradient is not None and derivative is not None:
            derivative = torch.where(positive[rows], derivative.to(gradient.dtype), gradient[rows, columns])
            gradient[rows, columns] = derivative
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = ctx.saved_tensors
        # The factor is nearly always 1. A CPU can look without waiting, and then spares a pass and a tensor.
        if grad_output.device.type != "cpu" or grad_output != 1:
            gradient = gradient * grad_output
        return gradient.to(ctx.logits_dtype).view(ctx.logits_shape), None, None, None, None


# Sigmoid focal loss (RetinaNet paper, equation 5): the weighted sum over logits `x` of a class that is absent, or
# present, and its derivative by each logit.


def _absent(x: Tensor, weights: Tensor, gamma: float, with_derivative: bool) -> tuple[Tensor, Tensor | None]:
    score = x.clamp(-_LIMIT, _LIMIT).sigmoid()
    return _focal_term(x, score, 1 - score, (1 - FOCAL_ALPHA) * weights, gamma, with_derivative)


def _present(x: Tensor, weights: Tensor, gamma: float, with_derivative: bool) -> tuple[Tensor, Tensor | None]:
    score = x.clamp(-_LIMIT, _LIMIT).sigmoid()
    loss, derivative = _focal_term(x, 1 - score, score, FOCAL_ALPHA * weights, gamma, with_derivative)
    return loss, None if derivative is None else -derivative


def _focal_term(
    x: Tensor, wrong: Tensor, right: Tensor, weights: Tensor, gamma: float, with_derivative: bool
) -> tuple[Tensor, Tensor | None]:
    """Sum of weights * wrong ** gamma * -log(right), where wrong + right = 1, and its derivative by wrong's logit."""
    factor = wrong.pow(gamma).mul_(weights)
    log_right = right.log()
    loss = -torch.dot(factor.flatten(), log_right.flatten())
    if not with_derivative:
        return loss, None
    derivative = torch.addcmul(wrong, right, log_right, value=-gamma).mul_(factor)
    # None where x was clamped.
    return loss, torch.ops.aten.hardtanh_backward(derivative, x, -_LIMIT, _LIMIT)
