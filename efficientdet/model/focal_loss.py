"""Sigmoid focal loss (RetinaNet paper, equation 5), which computes loss and gradient in one pass over the logits."""

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

FOCAL_ALPHA = 0.25
_MAX_LOGIT = math.log((1 - 1e-4) / 1e-4)  # scores are clamped to [1e-4, 1 - 1e-4], as in the reference
CPU_CHUNK = 2**18  # logits processed at a time on a CPU, so that intermediate results fit into its cache


def focal_loss(logits: Tensor, class_ids: Tensor, positive: Tensor, weights: Tensor, gamma: float) -> Tensor:
    """Return the weighted sum of the focal losses of all anchors, a scalar in the dtype of `weights`.

    Autograd would take a dozen passes and store as many tensors of the size of `logits`; this stores one, the gradient.

    Args:
        logits: (N, A, C), of any floating-point dtype.
        class_ids: (N, A) int64, the classes of the positive anchors. In all other anchors every class is absent.
        positive: (N, A) bool.
        weights: (N, A), 0 for anchors to be ignored.
        gamma: the focusing exponent.
    """
    return _FocalLoss.apply(logits, class_ids, positive, weights, gamma)


class _FocalLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, class_ids: Tensor, positive: Tensor, weights: Tensor, gamma: float) -> Tensor:
        on_cpu = logits.device.type == "cpu"
        shape, dtype = logits.shape, logits.dtype
        logits, class_ids, positive, weights = (x.flatten(0, 1) for x in (logits, class_ids, positive, weights))
        gradient, needs_gradient = None, ctx.needs_input_grad[0]
        if needs_gradient:
            # float16 cannot represent small gradients before the gradient scaler has enlarged them.
            gradient = torch.empty_like(logits, dtype=torch.float32 if dtype == torch.float16 else dtype)
            ctx.save_for_backward(gradient)
            ctx.logits_shape, ctx.logits_dtype = shape, dtype

        # First as if every class were absent from every anchor.
        total = weights.new_zeros(())
        step = max(1, CPU_CHUNK // shape[2]) if on_cpu else len(logits)
        for start in range(0, len(logits), step):
            part = slice(start, start + step)
            chunk = logits[part].to(weights.dtype)
            loss, derivative = _weighted_loss(chunk, weights[part, None], gamma, False, needs_gradient)
            total += loss
            if gradient is not None:
                gradient[part] = derivative

        # Then correct the one class of each positive anchor. On a GPU that is done for all anchors, with weights of 0
        # for the others, because counting the positive ones would synchronize with the host.
        rows = positive.nonzero().squeeze(1) if on_cpu else torch.arange(len(logits), device=logits.device)
        columns, row_weights = class_ids[rows], torch.where(positive[rows], weights[rows], 0.0)
        class_logits = logits[rows, columns].to(weights.dtype)
        present, derivative = _weighted_loss(class_logits, row_weights, gamma, True, needs_gradient)
        absent, _ = _weighted_loss(class_logits, row_weights, gamma, False, False)
        total += present - absent
        if gradient is not None:
            derivative = derivative.to(gradient.dtype)
            gradient[rows, columns] = torch.where(positive[rows], derivative, gradient[rows, columns])
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = ctx.saved_tensors
        # The factor is usually 1. On a CPU it can be read for free, which saves a pass and a tensor.
        if grad_output.device.type != "cpu" or grad_output != 1:
            gradient = gradient * grad_output
        return gradient.to(ctx.logits_dtype).view(ctx.logits_shape), None, None, None, None


def _weighted_loss(
    logits: Tensor, weights: Tensor, gamma: float, present: bool, with_derivative: bool
) -> tuple[Tensor, Tensor]:
    """Return the weighted sum of the losses of present or absent classes, and (or an empty tensor) its derivative."""
    score = logits.clamp(-_MAX_LOGIT, _MAX_LOGIT).sigmoid()
    wrong, right, alpha = (1 - score, score, FOCAL_ALPHA) if present else (score, 1 - score, 1 - FOCAL_ALPHA)
    factor = wrong.pow(gamma).mul_(alpha * weights)
    log_right = right.log()
    loss = -torch.dot(factor.flatten(), log_right.flatten())
    if not with_derivative:
        return loss, logits.new_empty(0)
    derivative = torch.addcmul(wrong, right, log_right, value=-gamma).mul_(factor)
    derivative = torch.ops.aten.hardtanh_backward(derivative, logits, -_MAX_LOGIT, _MAX_LOGIT)  # 0 where clamped
    return loss, -derivative if present else derivative
