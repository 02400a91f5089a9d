"""Validate a run: losses and average precision of its networks."""

from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from typing import NamedTuple

import torch
from torch import nn
from tqdm import tqdm

from efficientdet.config import EVALUATION_IOU_THRESHOLD, EVALUATION_SCORE_THRESHOLD
from efficientdet.data.dataset import CocoDataset
from efficientdet.data.loader import Batch, BatchLoader
from efficientdet.data.results import coco_results
from efficientdet.data.transforms import detections_to_image
from efficientdet.evaluation.coco import Evaluation, score
from efficientdet.model.loss import DetectionLoss, Losses
from efficientdet.model.postprocess import postprocess
from efficientdet.structures import Detections
from efficientdet.training.step import autocast
from utils.distributed import all_gather, any_rank, broadcast_from_rank0
from utils.stop import StopRequest

SHOWN_IMAGES = 4


@torch.no_grad()
def validate(
    networks: Mapping[str, nn.Module],
    loss: DetectionLoss,
    batches: Iterable[Batch],
    device: torch.device,
    amp: torch.dtype | None = None,
) -> Iterator[tuple[Batch, dict[str, tuple[Losses, list[Detections]]]]]:
    """Each batch with what each of the `networks`, put into evaluation mode, makes of it.

    That is its mean losses, and its detections in the images' own pixels.
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
            found[name] = losses, [detections_to_image(*pair) for pair in zip(detections, batch.letterboxes)]
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
                if len(shown[name]) < SHOWN_IMAGES:
                    shown[name][image_id] = objects
        bar.update(len(batch.image_ids))
        if stop.received:
            break
    (stop.received,) = any_rank(stop.received)
    if stop.received:
        return {}
    outcomes = {}
    for name in networks:
        mean = LossMean(*map(sum, zip(*(vars(part).values() for part in all_gather(sums[name])))))
        entries = [entry for part in all_gather(results[name]) for entry in part]
        outcomes[name] = Outcome(mean, broadcast_from_rank0(partial(score, dataset, entries)), shown[name])
    return outcomes
