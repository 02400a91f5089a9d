"""The statistics of batch norms, which follow training slowly, brought up to date before validation."""

from collections.abc import Iterable

import torch
from torch import nn

from efficientdet.data.dataset import SampleKey
from efficientdet.data.loader import Batch
from efficientdet.training.step import autocast
from utils.distributed import all_reduce_sum, world_size
from utils.stop import StopRequest

STATISTICS_IMAGES = 200
# Batches of training, at once: without gradients there is room, and small batches do not show how much images differ.
STATISTICS_BATCHES = 5


def images_for_statistics(images: int, batch_size: int) -> list[SampleKey]:
    """Return at most STATISTICS_IMAGES of `images`, evenly spaced, in whole batches if there is one.

    They are augmented: the network has learned to expect the statistics of such images. A last batch of a single image
    would have no variance at a level of one pixel.
    """
    chosen = range(0, images, -(-images // STATISTICS_IMAGES))
    return [SampleKey(index, epoch=0) for index in chosen[: len(chosen) // batch_size * batch_size or None]]


@torch.no_grad()
def average_over_processes(network: nn.Module) -> None:
    """Replace the statistics of each batch norm by their mean over all processes, each of which saw other images."""
    for buffer in network.buffers():
        if world_size() > 1 and buffer.is_floating_point():
            buffer.copy_(all_reduce_sum(buffer) / world_size())


@torch.no_grad()
def estimate(
    network: nn.Module, like: nn.Module, batches: Iterable[Batch], amp: torch.dtype | None, stop: StopRequest
) -> None:
    """Replace the statistics of the batch norms of `network` by their means over `batches`.

    A moving average of weights needs statistics of its own: those that were averaged along with the weights belong to
    weights of the past. Norms that are frozen in `like`, the same network in training, keep theirs. A request to stop
    ends it early: the resumed run estimates them anew.
    """
    norms = []
    for norm, trained in zip(network.modules(), like.modules(), strict=True):
        if isinstance(norm, nn.modules.batchnorm._BatchNorm) and trained.training:
            norms.append((norm, norm.momentum))
            norm.train()
    device = next(network.parameters()).device
    for number, batch in enumerate(batches if norms else (), 1):
        for norm, _ in norms:
            norm.momentum = 1 / number
        with autocast(device, amp):
            network(batch.to(device).images)
        if stop.received:
            break
    for norm, momentum in norms:
        norm.momentum = momentum
        norm.eval()
