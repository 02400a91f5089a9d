"""A recipe's optimizer, learning-rate schedule, and moving average of the weights."""

import copy
import math

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import ReduceLROnPlateau

from efficientdet.training.muon import Muon
from efficientdet.training.recipe import Recipe

SGD_MOMENTUM = 0.9
WARMUP_START = 0.1  # of the learning rate
MAX_WARMUP_SHARE = 0.1  # of the run: a short one has fewer `warmup_steps`


def make_optimizer(recipe: Recipe, network: nn.Module, amp: torch.dtype | None = None) -> torch.optim.Optimizer:
    """Return the recipe's optimizer for the parameters of `network` that require gradients.

    Muon orthogonalizes in bfloat16 if `amp` says that the hardware has it.
    """
    if recipe.optim == "muon":
        return Muon(_muon_groups(network, recipe.weight_decay or 0.0), recipe.lr, amp or torch.float32)
    decay = {} if recipe.weight_decay is None else {"weight_decay": recipe.weight_decay}
    trainable = [parameter for parameter in network.parameters() if parameter.requires_grad]
    groups = [{"params": trainable, **decay}]
    if recipe.decay_kernels_only:
        kernels = [parameter for parameter in trainable if parameter.ndim == 4]
        others = [parameter for parameter in trainable if parameter.ndim != 4]
        groups = [{"params": kernels, **decay}, {"params": others, "weight_decay": 0.0}]
    if recipe.optim == "adamw":
        return torch.optim.AdamW(groups, recipe.lr, fused=True)
    return torch.optim.SGD(groups, recipe.lr, momentum=SGD_MOMENTUM, nesterov=recipe.nesterov, fused=True)


def _muon_groups(network: nn.Module, weight_decay: float) -> list[dict]:
    """Return Muon's parameter groups: the kernels of inner layers, all other kernels, and vectors without decay."""
    groups: dict[str, list] = {"matrices": [], "kernels": [], "vectors": []}
    for name, parameter in network.named_parameters():
        if not parameter.requires_grad:
            continue
        is_matrix = parameter.ndim == 4 and parameter.shape[1] > 1
        is_inner = not any(part in name for part in ("_conv_stem", "_se_", ".header."))
        groups["matrices" if is_matrix and is_inner else "kernels" if parameter.ndim == 4 else "vectors"].append(
            parameter
        )
    decays = {"matrices": weight_decay, "kernels": weight_decay, "vectors": 0.0}
    return [
        {"params": params, "weight_decay": decays[kind], "orthogonalize": kind == "matrices"}
        for kind, params in groups.items()
    ]


class LearningRate:
    """The learning rate of an optimizer: linear warm-up, then cosine decay or steps at plateaus.

    Time is counted in fractional epochs, so that the schedule does not depend on the batch size. `num_epochs` is
    infinite if the run ends after some minutes instead.
    """

    def __init__(self, recipe: Recipe, optimizer: torch.optim.Optimizer, num_epochs: float):
        self.recipe = recipe
        self.optimizer = optimizer
        self.num_epochs = num_epochs
        self.base = recipe.lr  # reached by warm-up, lowered at plateaus
        self._plateau = ReduceLROnPlateau(optimizer, patience=recipe.lr_patience)

    @property
    def value(self) -> float:
        """The learning rate of the current step."""
        return self.optimizer.param_groups[0]["lr"]

    def before_step(self, epochs_done: float, steps_done: int = 0, share_done: float | None = None) -> None:
        """Set the rate for the step that follows `epochs_done` epochs and `steps_done` steps.

        `share_done`: of the whole run; None derives it from the epochs, without those of warm-up.
        """
        warmup = min(self.recipe.warmup_epochs, self.num_epochs)
        if epochs_done < warmup:
            self._set(self.base * _ramp(epochs_done / warmup))
            return
        if share_done is None:
            share_done = (epochs_done - warmup) / max(self.num_epochs - warmup, 1e-9)
        rate = self.base
        if self.recipe.schedule == "cosine":
            rate = self.base * (1 + math.cos(math.pi * min(1.0, share_done))) / 2
        if steps_done < self.recipe.warmup_steps:
            rate *= _ramp(min(1.0, max(steps_done / self.recipe.warmup_steps, share_done / MAX_WARMUP_SHARE)))
        self._set(rate)

    def after_epoch(self, epochs_done: int, training_loss: float) -> None:
        """Lower the rate if the mean `training_loss` of the epochs has reached a plateau."""
        if self.recipe.schedule == "plateau" and epochs_done > self.recipe.warmup_epochs:
            self._set(self.base)
            self._plateau.step(training_loss)
            self.base = self.value

    def state_dict(self) -> dict:
        return {"base": self.base, "plateau": self._plateau.state_dict()}

    def load_state_dict(self, state: dict) -> None:
        self.base = state["base"]
        patience = self._plateau.patience
        self._plateau.load_state_dict(state["plateau"])
        self._plateau.patience = patience  # --lr_patience may change on resuming

    def _set(self, rate: float) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = rate


def _ramp(share: float) -> float:
    """Return the factor of the learning rate after a `share` of warm-up."""
    return WARMUP_START + (1 - WARMUP_START) * share


class WeightAverage:
    """An exponential moving average of a network's weights and batch norm statistics.

    After n updates the decay is min(decay, (1 + n) / (10 + n)), so that the initial weights soon lose their influence
    (google/automl). torch's AveragedModel has no such ramp for the first update, which it copies.
    """

    def __init__(self, network: nn.Module, decay: float):
        self.network = copy.deepcopy(network).requires_grad_(False)
        self.decay = decay
        self.updates = 0

    @torch.no_grad()
    def update(self, network: nn.Module) -> None:
        """Add the current weights of `network` to the average."""
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        averages, values = _tensors(self.network), _tensors(network)
        torch._foreach_lerp_(averages, values, 1 - decay)

    def state_dict(self) -> dict:
        return {"updates": self.updates, "network": self.network.state_dict()}

    def load_state_dict(self, state: dict) -> None:
        self.updates = state["updates"]
        self.network.load_state_dict(state["network"])


def _tensors(network: nn.Module) -> list[Tensor]:
    """Return what is averaged: everything but the batch norms' counters, which nothing reads."""
    return [tensor for tensor in (*network.parameters(), *network.buffers()) if tensor.is_floating_point()]
