"""Muon (Jordan et al., 2024): momentum SGD whose update of each weight matrix is orthogonalized."""

from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

MOMENTUM = 0.95
# Of the quintic iteration that pulls all singular values of a matrix to about 1 (between 0.7 and 1.2) in five steps.
_A, _B, _C, _STEPS = 3.4445, -4.7750, 2.0315, 5


class Muon(torch.optim.AdamW):
    """Muon for groups with `orthogonalize`, AdamW for the others.

    Convolution kernels (out, in, k, k) count as matrices (out, in * k * k); depthwise kernels and vectors are none and
    belong to AdamW. The root mean square of an update is 0.2 times the learning rate, about that of AdamW's, so that
    one rate suits both (Liu et al., "Muon is Scalable for LLM Training", 2025).

    Args:
        groups: dicts of `params`, `weight_decay` and `orthogonalize`.
        dtype: of the iteration; bfloat16 where the hardware multiplies it fast.
    """

    def __init__(self, groups: Iterable[dict[str, Any]], lr: float, dtype: torch.dtype = torch.float32):
        super().__init__(groups, lr, fused=True)
        self._dtype = dtype

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            parameters = [parameter for parameter in group["params"] if parameter.grad is not None]
            if group["orthogonalize"] and parameters:
                self._update_matrices(parameters, group["lr"], group["weight_decay"])
        super().step()

    def _update_matrices(self, parameters: list[Tensor], lr: float, weight_decay: float) -> None:
        gradients: list[Any] = [parameter.grad for parameter in parameters]
        for parameter in parameters:
            if not self.state[parameter]:  # AdamW expects the number of steps in every state that it loads
                self.state[parameter] = {"step": torch.tensor(0.0), "momentum": torch.zeros_like(parameter)}
            parameter.grad = None  # so that AdamW skips it
        momenta = [self.state[parameter]["momentum"] for parameter in parameters]
        torch._foreach_lerp_(momenta, gradients, 1 - MOMENTUM)
        torch._foreach_lerp_(gradients, momenta, MOMENTUM)  # Nesterov
        if weight_decay:
            torch._foreach_mul_(parameters, 1 - lr * weight_decay)

        by_shape = defaultdict(list)  # matrices of one shape are multiplied together
        for parameter, gradient in zip(parameters, gradients):
            matrix = gradient.flatten(1)
            is_tall = matrix.shape[0] > matrix.shape[1]
            by_shape[matrix.mT.shape if is_tall else matrix.shape].append((parameter, matrix, is_tall))
        for (_, columns), entries in by_shape.items():
            matrices = torch.stack([matrix.mT if is_tall else matrix for _, matrix, is_tall in entries])
            updates = orthogonalize(matrices.to(self._dtype)).float() * columns**0.5
            for (parameter, _, is_tall), update in zip(entries, updates):
                parameter.add_((update.mT if is_tall else update).reshape_as(parameter), alpha=-0.2 * lr)


def orthogonalize(matrices: Tensor) -> Tensor:
    """Return the semi-orthogonal matrices closest to `matrices` (B, rows, columns), about; rows <= columns."""
    x = matrices / (matrices.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(_STEPS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=_B, alpha=_C), x, beta=_A)
    return x
