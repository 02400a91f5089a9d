"""Validation: losses and average precision on the validation set."""

from collections.abc import Iterable
from functools import partial
from typing import NamedTuple

import torch
from torch import nn
from tqdm import tqdm

from efficientdet.config import EVALUATION_IOU_THRESHOLD, EVALUATION_SCORE_THRESHOLD
from efficientdet.data.dataset import CocoDataset
from efficientdet.data.loader import Batch
from efficientdet.data.results import coco_results
from efficientdet.evaluation.coco import Evaluation, score
from efficientdet.model.loss import DetectionLoss, Losses
from efficientdet.model.postprocess import MAX_CANDIDATES, postprocess
from efficientdet.structures import Detections
from efficientdet.training.step import autocast
from utils.distributed import all_gather, any_rank, broadcast_from_rank0
from utils.stop import StopRequest

_SHOWN_IMAGES = 4


class LossMean:
    """The running mean of losses over images."""

    def __init__(self, images: int = 0, classification_sum: float = 0.0, regression_sum: float = 0.0):
        self.images = images
        self.classification_sum = classification_sum
        self.regression_sum = regression_sum

    @classmethod
    def merged(cls, parts: Iterable["LossMean"]) -> "LossMean":
        """Return the mean over the images of all `parts`."""
        whole = cls()
        for part in parts:
            whole.images += part.images
            whole.classification_sum += part.classification_sum
            whole.regression_sum += part.regression_sum
        return whole

    def add(self, images: int, losses: Losses) -> None:
        """Add the mean `losses` of a batch of `images` images."""
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


class Validated(NamedTuple):
    """What validation found out about a network."""

    losses: LossMean
    evaluation: Evaluation
    shown: dict[int | str, Detections]  # of the first few images, by id

    @property
    def ap(self) -> float:
        """COCO's average precision; -1 if the set has no objects."""
        return self.evaluation.numbers[0].item()


def validate(
    network: nn.Module,
    loss: DetectionLoss,
    batches: Iterable[Batch],
    dataset: CocoDataset,
    device: torch.device,
    amp: torch.dtype | None,
    stop: StopRequest,
    bar: tqdm,
) -> Validated | None:
    """Return what `network`, put into evaluation mode, makes of the validation set; the same on all ranks.

    Args:
        batches: this process's part of `dataset`.
        stop: a request to stop ends validation, on all ranks, without a result.
        bar: counts images.
    """
    network.eval()
    losses = LossMean()
    results: list[dict] = []
    shown: dict[int | str, Detections] = {}
    for batch in batches:
        batch_losses, detections = _predict(network, loss, batch.to(device), amp)
        losses.add(len(batch.image_ids), batch_losses)
        for image_id, found in zip(batch.image_ids, detections):
            results += coco_results(image_id, found, dataset.category_ids)
            if len(shown) < _SHOWN_IMAGES:
                shown[image_id] = found
        bar.update(len(batch.image_ids))
        if stop.received:
            break
    (stop.agreed,) = any_rank(stop.received)
    if stop.agreed:
        return None
    mean = LossMean.merged(all_gather(losses))
    entries = [entry for part in all_gather(results) for entry in part]
    return Validated(mean, broadcast_from_rank0(partial(score, dataset, entries)), shown)


@torch.no_grad()
def _predict(
    network: nn.Module, loss: DetectionLoss, batch: Batch, amp: torch.dtype | None
) -> tuple[Losses, list[Detections]]:
    """Return the mean losses of `batch`, and its detections in the images' own pixels."""
    with autocast(batch.images.device, amp):
        outputs = network(batch.images)
    height, width = batch.images.shape[-2:]
    thresholds = EVALUATION_SCORE_THRESHOLD, EVALUATION_IOU_THRESHOLD
    detections = postprocess(outputs, height, width, *thresholds, MAX_CANDIDATES)
    pairs = zip(batch.letterboxes, detections)
    return loss(outputs, batch.targets), [letterbox.detections_to_image(raw) for letterbox, raw in pairs]
