"""Training steps and validation passes."""

import math
import signal
from collections.abc import Iterable, Iterator

import torch
from torch import nn

from efficientdet.dataset import Batch
from efficientdet.loss import DetectionLoss, Losses
from efficientdet.model import EfficientDet, Outputs
from utils.errors import InputError


class NonFiniteLossError(InputError):
    """The loss became infinite or not a number."""


def set_training_mode(network: EfficientDet, head_only: bool) -> None:
    """Training mode; with `head_only`, backbone and BiFPN stay frozen, their batch norms in evaluation mode."""
    network.train()
    for part in (network.backbone_net, network.bifpn):
        part.train(not head_only)
        if head_only:
            part.requires_grad_(False)


def train_step(
    network: EfficientDet, loss: DetectionLoss, optimizer: torch.optim.Optimizer, batch: Batch
) -> tuple[Losses, Outputs]:
    """One update of `network` by one batch, which is on the network's device.

    NonFiniteLossError when the loss is not finite; the parameters are then as they were before the step.
    """
    outputs = network(batch.images)
    losses = loss(outputs, batch.targets)
    if not math.isfinite(losses.total.item()):
        raise NonFiniteLossError(
            f"the loss became {losses.total.item()} on images {batch.image_ids}: go on with -w last and a lower --lr, "
            "and look at the boxes of those images"
        )
    optimizer.zero_grad(set_to_none=True)
    losses.total.backward()
    optimizer.step()
    return Losses(*(part.detach() for part in losses)), outputs


@torch.no_grad()
def validate(
    network: nn.Module, loss: DetectionLoss, batches: Iterable[Batch], device: torch.device
) -> Iterator[tuple[int, Losses]]:
    """Number of images and mean losses of each batch, in evaluation mode."""
    network.eval()
    for batch in batches:
        batch = batch.to(device)
        yield len(batch.image_ids), loss(network(batch.images), batch.targets)


class LossMean:
    """The running mean of losses over images."""

    def __init__(self, images: int = 0, classification: float = 0.0, regression: float = 0.0):
        self.images = images
        self._classification_sum = classification * images
        self._regression_sum = regression * images

    def state(self) -> dict[str, float]:
        """The arguments that make this mean again."""
        return {"images": self.images, "classification": self.classification, "regression": self.regression}

    def add(self, images: int, losses: Losses) -> None:
        """Count the mean `losses` of a batch of so many images."""
        self.images += images
        self._classification_sum += images * losses.classification.item()
        self._regression_sum += images * losses.regression.item()

    @property
    def classification(self) -> float:
        return self._classification_sum / max(1, self.images)

    @property
    def regression(self) -> float:
        return self._regression_sum / max(1, self.images)

    @property
    def total(self) -> float:
        return self.classification + self.regression


class StopRequest:
    """Ctrl+C or SIGTERM, remembered until the step in progress is done. A second Ctrl+C interrupts at once.

    A context manager; outside its block the signals do what they did before.
    """

    def __init__(self):
        self.received = False

    def __enter__(self) -> "StopRequest":
        self._previous = {number: signal.signal(number, self._handle) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame) -> None:
        if self.received:
            raise KeyboardInterrupt
        self.received = True
