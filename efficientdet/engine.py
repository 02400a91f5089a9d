"""Training steps and validation passes."""

import contextlib
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

from efficientdet.config import EVALUATION_IOU_THRESHOLD, EVALUATION_SCORE_THRESHOLD
from efficientdet.data.dataset import CocoDataset
from efficientdet.data.loader import Batch, BatchLoader
from efficientdet.data.results import coco_results
from efficientdet.data.transforms import in_picture
from efficientdet.evaluation.coco import Evaluation, score
from efficientdet.model.loss import DetectionLoss, Losses
from efficientdet.model.network import EfficientDet
from efficientdet.model.postprocess import postprocess
from efficientdet.structures import Detections, Outputs
from utils.device import is_out_of_memory
from utils.distributed import any_over_processes, from_rank_0, gathered, sum_over_processes, world_size
from utils.stop import StopRequest

SHOWN_PICTURES = 4
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
        mean_losses = sum_over_processes(sums) / (len(micro_batches) * world_size())
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


def fitting_batch_size(step: Callable[[Batch], object], batch: Batch) -> int:
    """The largest part of a `batch` that runs out of memory with which `step` does not: halves are tried; 0 is none."""
    images = len(batch.image_ids) // 2
    while images:
        try:
            step(batch.first(images))
            return images
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
        images //= 2
    return 0


@torch.no_grad()
def validate(
    networks: Mapping[str, nn.Module],
    loss: DetectionLoss,
    batches: Iterable[Batch],
    device: torch.device,
    amp: torch.dtype | None = None,
) -> Iterator[tuple[Batch, dict[str, tuple[Losses, list[Detections]]]]]:
    """Each batch with what each of the `networks`, put into evaluation mode, makes of it.

    That is its mean losses, and its detections in the pictures' own pixels.
    """
    for network in networks.values():
        network.eval()
    for batch in batches:
        on_device = batch.to(device)
        found = {}
        for name, network in networks.items():
            with autocast(device, amp):
                outputs = network(on_device.images)
            losses = loss(outputs, on_device.targets)
            height, width = batch.images.shape[-2:]
            detections = postprocess(outputs, height, width, EVALUATION_SCORE_THRESHOLD, EVALUATION_IOU_THRESHOLD)
            found[name] = losses, [in_picture(*pair) for pair in zip(detections, batch.letterboxes)]
        yield batch, found


class LossMean:
    """The running mean of losses over images."""

    def __init__(self, images: int = 0, classification_sum: float = 0.0, regression_sum: float = 0.0):
        self.images = images
        self.classification_sum = classification_sum
        self.regression_sum = regression_sum

    def add(self, images: int, losses: Losses) -> None:
        """Count the mean `losses` of a batch of so many images."""
        self.images += images
        self.classification_sum += images * losses.classification.item()
        self.regression_sum += images * losses.regression.item()

    @property
    def classification(self) -> float:
        return self.classification_sum / max(1, self.images)

    @property
    def regression(self) -> float:
        return self.regression_sum / max(1, self.images)

    @property
    def total(self) -> float:
        return self.classification + self.regression


class Outcome(NamedTuple):
    """What validation found out about one set of weights."""

    losses: LossMean
    evaluation: Evaluation
    shown: dict[int | str, Detections]  # of the first few images, by id


def evaluate_networks(
    networks: Mapping[str, nn.Module],
    loss: DetectionLoss,
    batches: BatchLoader,
    dataset: CocoDataset,
    device: torch.device,
    amp: torch.dtype | None,
    stop: StopRequest,
    bar: tqdm,
) -> dict[str, Outcome]:
    """The losses and the average precision of each network on the validation set, the same in all processes.

    `batches` are this process's part of it. Nothing comes back after a request to stop. `bar` counts images.
    """
    sums = {name: LossMean() for name in networks}
    results: dict[str, list[dict]] = {name: [] for name in networks}
    shown: dict[str, dict[int | str, Detections]] = {name: {} for name in networks}
    for batch, found in validate(networks, loss, batches, device, amp):
        for name, (losses, detections) in found.items():
            sums[name].add(len(batch.image_ids), losses)
            for image_id, objects in zip(batch.image_ids, detections):
                results[name] += coco_results(image_id, objects, dataset.category_ids)
                if len(shown[name]) < SHOWN_PICTURES:
                    shown[name][image_id] = objects
        bar.update(len(batch.image_ids))
        if stop.received:
            break
    (stop.received,) = any_over_processes(stop.received)
    if stop.received:
        return {}
    outcomes = {}
    for name in networks:
        mean = LossMean(*map(sum, zip(*(vars(part).values() for part in gathered(sums[name])))))
        entries = [entry for part in gathered(results[name]) for entry in part]
        outcomes[name] = Outcome(mean, from_rank_0(partial(score, dataset, entries)), shown[name])
    return outcomes
