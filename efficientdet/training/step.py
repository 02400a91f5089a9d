"""Training steps and validation passes."""

import contextlib
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from efficientdet.data.loader import Batch
from efficientdet.model.loss import DetectionLoss, Losses
from efficientdet.model.network import EfficientDet
from efficientdet.structures import Outputs
from utils.distributed import all_reduce_sum, world_size

_FP16_LEAST_SCALE = 1.0  # gradients that overflow even below this are no matter of scale


def set_training_mode(network: EfficientDet, head_only: bool = False, freeze_bn: bool = False) -> None:
    """Training mode, but for what is frozen.

    With `head_only`, backbone and BiFPN are frozen whole, their batch norms in evaluation mode; with `freeze_bn`, the
    statistics of all batch norms are, while their weights and biases are trained.
    """
    network.train()
    if head_only:
        for part in (network.backbone_net, network.bifpn):
            part.eval().requires_grad_(False)
    if freeze_bn:
        for module in network.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.eval()


@dataclass
class StepResult:
    """What one update was like."""

    losses: Losses  # means over the micro-batches of all processes
    outputs: Outputs  # of the last micro-batch, detached
    gradient_norm: float
    skipped: bool  # loss or gradient was not finite, and nothing has changed


class TrainingStep:
    """One update of `network` by one batch, or by several micro-batches whose gradients are averaged.

    Args:
        network: in the modes of `set_training_mode`, perhaps inside DistributedDataParallel.
        amp: the dtype of autocast; None computes in float32. The loss is always in float32. float16 scales the loss,
            so that small gradients do not vanish.
        clip_norm: gradients longer than this are shortened to it; 0 leaves them.

    A step whose loss or gradient is not finite is left out: parameters, optimizer and batch norm statistics are as
    before.
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
        _copy(self._statistics, self._saved_statistics)
        try:
            return self._update(micro_batches)
        except RuntimeError:  # out of memory, say: what is saved now must not hold half a step
            _copy(self._saved_statistics, self._statistics)
            raise

    def _update(self, micro_batches: Sequence[Batch]) -> StepResult:
        self.optimizer.zero_grad(set_to_none=True)
        sums = torch.zeros(2, device=self.device)
        for number, batch in enumerate(micro_batches, 1):
            with self._gradients_shared(number == len(micro_batches)):
                with autocast(self.device, self.amp):
                    outputs = self.network(batch.images)
                losses = self.loss(outputs, batch.targets)
                self.scaler.scale(losses.total / len(micro_batches)).backward()
            sums += torch.stack(losses).detach()

        self.scaler.unscale_(self.optimizer)
        norm = torch.nn.utils.clip_grad_norm_(self._parameters, self.clip_norm)
        mean_losses = all_reduce_sum(sums) / (len(micro_batches) * world_size())
        *means, norm = torch.cat((mean_losses, norm[None])).tolist()  # one look at the device for everything
        loss_is_finite = all(map(math.isfinite, means))
        scale = self.scaler.get_scale()  # 1 where nothing is scaled
        overflow = loss_is_finite and not math.isfinite(norm) and scale > _FP16_LEAST_SCALE
        skipped = not (loss_is_finite and (math.isfinite(norm) or overflow))
        if skipped:
            _copy(self._saved_statistics, self._statistics)
        elif not overflow:  # the scaler would leave it out, but fused SGD would begin with a momentum of random memory
            self.scaler.step(self.optimizer)
        self.scaler.update()  # lowers the scale after an overflow
        detached = Outputs(*(part.detach() for part in outputs))
        return StepResult(Losses(*map(torch.tensor, means)), detached, norm, skipped)

    def _gradients_shared(self, last: bool) -> contextlib.AbstractContextManager:
        """The processes exchange gradients with the last micro-batch only."""
        if isinstance(self.network, DistributedDataParallel) and not last:
            return self.network.no_sync()
        return contextlib.nullcontext()


@torch.no_grad()
def _copy(sources: list[Tensor], destinations: list[Tensor]) -> None:
    torch._foreach_copy_(destinations, sources)


def autocast(device: torch.device, amp: torch.dtype | None) -> torch.autocast:
    """Mixed precision of dtype `amp`; None switches it off."""
    return torch.autocast(device.type, dtype=amp, enabled=amp is not None)
