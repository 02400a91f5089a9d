"""One training step: forward, loss, backward, update. Nothing changes when loss or gradient is not finite."""

import contextlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from efficientdet.data.loader import Batch
from efficientdet.model.loss import DetectionLoss, Losses
from efficientdet.model.network import EfficientDet
from efficientdet.structures import Outputs
from efficientnet.model import DROP_CONNECT_RATE
from utils.distributed import all_reduce_sum, world_size

SYNC_BN_BELOW = 4  # images per GPU
_MIN_FP16_SCALE = 1.0  # gradients that overflow at a lower scale do so because of the network, not of the scale


def set_training_mode(network: EfficientDet, head_only: bool = False, freeze_bn: bool = False) -> None:
    """Put `network` into training mode, except for its frozen parts.

    `head_only` freezes backbone and BiFPN entirely, with their batch norms in evaluation mode. `freeze_bn` freezes the
    running statistics of all batch norms, while their weights and biases are trained.
    """
    network.train()
    if head_only:
        for part in (network.backbone_net, network.bifpn):
            part.eval().requires_grad_(False)
    if freeze_bn:
        for module in network.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.eval()


def set_drop_connect(network: EfficientDet, rate: float | None) -> None:
    """Let training skip block i of n of the backbone for a share `rate` * i / n of the samples.

    None is google/automl's: 0 for D0, DROP_CONNECT_RATE for the others.
    """
    if rate is None:
        rate = 0.0 if network.compound_coef == 0 else DROP_CONNECT_RATE
    blocks: Any = list(network.backbone_net["model"].get_submodule("_blocks").children())
    for i, block in enumerate(blocks):
        block.drop_rate = rate * i / len(blocks)


def in_parallel(network: nn.Module, device: torch.device, images_per_process: int, sync_bn: bool | None) -> nn.Module:
    """Return `network` wrapped for training by several processes, which average gradients; unchanged for one process.

    Args:
        sync_bn: whether batch norms on GPUs use the statistics of all processes; None: below SYNC_BN_BELOW images per
            process.
    """
    if world_size() == 1:
        return network
    if sync_bn is None:
        sync_bn = images_per_process < SYNC_BN_BELOW
    if sync_bn and device.type == "cuda":
        nn.SyncBatchNorm.convert_sync_batchnorm(network)
    device_ids = [device] if device.type == "cuda" else None
    # Each process keeps its own statistics: they are averaged before validation (norm_statistics.py).
    return DistributedDataParallel(network, device_ids=device_ids, broadcast_buffers=False)


class StepOutcome(Enum):
    """What a step did. Parameters, optimizer and batch norm statistics change in UPDATED alone."""

    UPDATED = "updated"
    OVERFLOWED = "overflowed"  # float16 gradients, whose scale is lowered for the next step
    SKIPPED = "skipped"  # loss or gradient not finite


@dataclass
class StepResult:
    """Outcome and figures of a step."""

    outcome: StepOutcome
    images: int  # of all processes
    losses: Losses  # means over the micro-batches of all processes
    outputs: Outputs  # of the last micro-batch, detached
    gradient_norm: float


class TrainingStep:
    """An update of `network` by one batch, or by several micro-batches whose gradients are averaged.

    Args:
        network: in the modes of `set_training_mode`; may be wrapped by `in_parallel`.
        amp: dtype of autocast; None computes in float32. The loss is always in float32. For float16 the loss is scaled,
            so that small gradients do not vanish.
        clip_norm: maximum norm of the gradient; 0 does not clip.
    """

    def __init__(
        self,
        network: nn.Module,
        loss: DetectionLoss,
        optimizer: torch.optim.Optimizer,
        amp: torch.dtype | None = None,
        clip_norm: float = 0.0,
    ):
        self.network = network
        self.loss = loss
        self.optimizer = optimizer
        self.amp = amp
        self.clip_norm = clip_norm or math.inf
        self.device = next(network.parameters()).device
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=amp == torch.float16)
        self._parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        self._statistics = list(network.buffers())
        self._saved_statistics = [statistic.clone() for statistic in self._statistics]

    def __call__(self, micro_batches: Sequence[Batch]) -> StepResult:
        """Train on `micro_batches`, on the network's device. An exception leaves batch norm statistics unchanged."""
        _copy(self._statistics, self._saved_statistics)
        try:
            result = self._step(micro_batches)
        except RuntimeError:  # out of memory, for example: a checkpoint saved now must not hold half a step
            _copy(self._saved_statistics, self._statistics)
            raise
        if result.outcome is not StepOutcome.UPDATED:
            _copy(self._saved_statistics, self._statistics)
        return result

    def _step(self, micro_batches: Sequence[Batch]) -> StepResult:
        self.optimizer.zero_grad(set_to_none=True)
        sums = torch.zeros(2, device=self.device)
        for number, batch in enumerate(micro_batches, 1):
            with self._gradient_exchange(is_last=number == len(micro_batches)):
                with autocast(self.device, self.amp):
                    outputs = self.network(batch.images)
                losses = self.loss(outputs, batch.targets)
                self.scaler.scale(losses.total / len(micro_batches)).backward()
            sums += torch.stack(losses).detach()

        self.scaler.unscale_(self.optimizer)
        gradients = [parameter.grad for parameter in self._parameters if parameter.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients)
        mean_losses = all_reduce_sum(sums) / (len(micro_batches) * world_size())
        *means, gradient_norm = torch.cat((mean_losses, norm[None])).tolist()  # a single host-device sync
        if gradient_norm > self.clip_norm:
            torch.nn.utils.clip_grads_with_norm_(self._parameters, self.clip_norm, norm)
        outcome = self._outcome(all(map(math.isfinite, means)), math.isfinite(gradient_norm))
        # GradScaler.step would skip an overflow too, but only after fused SGD has made a momentum of random memory.
        if outcome is StepOutcome.UPDATED:
            self.scaler.step(self.optimizer)
        self.scaler.update()  # lowers the scale after an overflow
        return StepResult(
            outcome,
            sum(len(batch.image_ids) for batch in micro_batches) * world_size(),
            Losses(*map(torch.tensor, means)),
            Outputs(*(part.detach() for part in outputs)),
            gradient_norm,
        )

    def _outcome(self, loss_is_finite: bool, gradient_is_finite: bool) -> StepOutcome:
        if loss_is_finite and gradient_is_finite:
            return StepOutcome.UPDATED
        if loss_is_finite and self.scaler.get_scale() > _MIN_FP16_SCALE:  # the scale is 1 without float16
            return StepOutcome.OVERFLOWED
        return StepOutcome.SKIPPED

    def _gradient_exchange(self, is_last: bool) -> contextlib.AbstractContextManager:
        """Let the processes exchange gradients with the last micro-batch only."""
        if isinstance(self.network, DistributedDataParallel) and not is_last:
            return self.network.no_sync()
        return contextlib.nullcontext()


@torch.no_grad()
def _copy(sources: list[Tensor], destinations: list[Tensor]) -> None:
    torch._foreach_copy_(destinations, sources)


def autocast(device: torch.device, amp: torch.dtype | None) -> torch.autocast:
    """Return the context of mixed precision in `amp`; None disables it."""
    return torch.autocast(device.type, dtype=amp, enabled=amp is not None)
