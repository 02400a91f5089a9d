"""Anchor assignment, focal loss and box loss: one batched computation, from logits, without host synchronisation."""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from efficientdet.boxes import encode, pairwise_iou, yxyx_to_xyxy

POSITIVE_IOU = 0.5  # anchors that overlap an object at least so much must find it
NEGATIVE_IOU = 0.4  # anchors that overlap less are background; those between count for neither
FOCAL_ALPHA = 0.25
FOCAL_GAMMA = 2.0
SMOOTH_L1_BETA = 1 / 9
BOX_LOSS_WEIGHT = 50.0
MIN_PROBABILITY = 1e-4  # scores are clamped to [1e-4, 1 - 1e-4] in the focal loss
PADDING_CLASS = -1


class Targets(NamedTuple):
    """The ground truth of a batch of N images, each padded to M objects."""

    boxes: Tensor  # (N, M, 4) float, (x1, y1, x2, y2) in input pixels
    class_ids: Tensor  # (N, M) int64, PADDING_CLASS where there is no object


class Losses(NamedTuple):
    """Two scalars, weighted as they are to be added."""

    classification: Tensor
    regression: Tensor

    @property
    def total(self) -> Tensor:
        return self.classification + self.regression


class Assignment(NamedTuple):
    """What each of A anchors is to learn in each of N images."""

    positive: Tensor  # (N, A) bool: the anchor must find an object
    negative: Tensor  # (N, A) bool: the anchor must find nothing; an anchor that is neither is left out
    object_index: Tensor  # (N, A) int64: which object the anchor overlaps most


def assign_anchors(anchors_yxyx: Tensor, targets: Targets) -> Assignment:
    """Match anchors (A, 4) to the objects that they overlap most. `targets` must have room for one object at least."""
    iou = pairwise_iou(targets.boxes, yxyx_to_xyxy(anchors_yxyx))  # (N, M, A)
    iou = iou.masked_fill((targets.class_ids == PADDING_CLASS)[..., None], 0.0)
    best_iou, object_index = iou.max(dim=1)
    return Assignment(best_iou >= POSITIVE_IOU, best_iou < NEGATIVE_IOU, object_index)


class DetectionLoss:
    """The reference's training loss: focal loss for classes, smooth L1 for the boxes of positive anchors.

    Both are summed over an image's anchors, divided by its number of positive anchors (the box loss by four times
    that), averaged over the batch; the box loss is weighted by 50. Values and gradients equal the reference's, which
    clamps scores to [1e-4, 1 - 1e-4] and so gives no gradient outside, with one exception. The reference divides the
    loss of an image *without objects* by 1, so that it outweighs a picture with objects a hundred times; here it is
    divided by `empty_image_normalizer`, as if it had that many positive anchors. 1 restores the reference's numbers.

    Everything is computed in float32 at least, whatever the autocast.
    """

    # Of 160 COCO photographs the median has 110 positive anchors at 512 x 512, 77 at 256, 150 at 1024.
    def __init__(self, empty_image_normalizer: float = 100.0):
        self.empty_image_normalizer = empty_image_normalizer

    def __call__(self, outputs: tuple[Tensor, Tensor, Tensor], targets: Targets) -> Losses:
        """`outputs`: class logits (N, A, C), box deltas (N, A, 4), anchors (A, 4), as the network returns them."""
        class_logits, box_deltas, anchors = outputs
        with torch.autocast(class_logits.device.type, enabled=False):
            precision = torch.promote_types(class_logits.dtype, torch.float32)
            return self._losses(class_logits.to(precision), box_deltas.to(precision), anchors.to(precision), targets)

    def _losses(self, class_logits: Tensor, box_deltas: Tensor, anchors: Tensor, targets: Targets) -> Losses:
        targets = _with_room_for_an_object(targets, class_logits.dtype)
        assigned = assign_anchors(anchors, targets)
        object_classes = targets.class_ids.clamp(min=0).gather(1, assigned.object_index)  # (N, A)
        object_boxes = targets.boxes.gather(1, assigned.object_index[..., None].expand(-1, -1, 4))  # (N, A, 4)

        positives = assigned.positive.sum(dim=1)  # (N,)
        has_objects = (targets.class_ids != PADDING_CLASS).any(dim=1)
        normalizer = torch.where(has_objects, positives.clamp(min=1), self.empty_image_normalizer)

        classification = _focal_loss(class_logits, object_classes, assigned) / normalizer
        distances = F.smooth_l1_loss(
            box_deltas, encode(object_boxes, anchors), reduction="none", beta=SMOOTH_L1_BETA
        ).sum(dim=-1)
        regression = torch.where(assigned.positive, distances, 0.0).sum(dim=1) / (4 * positives.clamp(min=1))
        return Losses(classification.mean(), BOX_LOSS_WEIGHT * regression.mean())


def _focal_loss(class_logits: Tensor, object_classes: Tensor, assigned: Assignment) -> Tensor:
    """Sigmoid focal loss (RetinaNet paper, equation 5) summed over each image's anchors and classes: (N,)."""
    limit = math.log((1 - MIN_PROBABILITY) / MIN_PROBABILITY)
    logits = class_logits.clamp(-limit, limit)

    def absent(logits: Tensor) -> Tensor:
        return (1 - FOCAL_ALPHA) * logits.sigmoid().pow(FOCAL_GAMMA) * F.softplus(logits)

    def present(logits: Tensor) -> Tensor:
        return FOCAL_ALPHA * (-logits).sigmoid().pow(FOCAL_GAMMA) * F.softplus(-logits)

    # Every class of every anchor counts as absent; a positive anchor's own class is then exchanged. That spares
    # a one-hot target as large as the logits.
    counted = assigned.positive | assigned.negative
    background = torch.where(counted, absent(logits).sum(dim=-1), 0.0)
    own_logit = logits.gather(2, object_classes[..., None]).squeeze(-1)
    exchange = torch.where(assigned.positive, present(own_logit) - absent(own_logit), 0.0)
    return (background + exchange).sum(dim=1)


def _with_room_for_an_object(targets: Targets, dtype: torch.dtype) -> Targets:
    """`targets` in the loss's precision, padded so that a batch without any object has something to index."""
    boxes, class_ids = targets.boxes.to(dtype), targets.class_ids
    if class_ids.shape[1] == 0:
        boxes = boxes.new_zeros(len(boxes), 1, 4)
        class_ids = class_ids.new_full((len(class_ids), 1), PADDING_CLASS)
    return Targets(boxes, class_ids)
