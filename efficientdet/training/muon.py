"""Muon (Jordan et al., 2024): momentum SGD whose update of each weight matrix is orthogonalized."""

from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

MOMENTUM = 0.95
# Of the iteration x -> a x + b x^3 + c x^5, which takes singular values from 0.01 to 1 to between 0.73 and 1.27. Each
# step has the polynomial closest to 1 on what the one before has left (Amsel et al., "The Polar Express", 2025).
_POLYNOMIALS = ((8.0934, -23.6205, 17.4462), (3.6366, -2.7219, 0.5365), (2.6613, -1.9772, 0.4526))


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
            updates = orthogonalize(matrices.to(self._dtype))
            for (parameter, _, is_tall), update in zip(entries, updates):
                update = (update.mT if is_tall else update).reshape_as(parameter)
                parameter.add_(update, alpha=-0.2 * columns**0.5 * lr)


def orthogonalize(matrices: Tensor) -> Tensor:
    """Return the semi-orthogonal matrices closest to `matrices` (B, rows, columns), about; rows <= columns."""
    x = matrices / (matrices.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for a, b, c in _POLYNOMIALS:
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x
