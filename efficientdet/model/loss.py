"""Anchor assignment, focal loss and box loss of a batch, from logits, without host synchronisation."""

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from efficientdet.boxes import encode, pairwise_iou, yxyx_to_xyxy
from efficientdet.model.focal_loss import _FocalLoss
from efficientdet.structures import PADDING_CLASS, Targets

POSITIVE_IOU = 0.5  # anchors that overlap an object at least so much must find it


SMOOTH_L1_BETA = 1 / 9


HUBER_DELTA = 0.1


BOX_LOSS_WEIGHT = 50.0


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
    object_index: Tensor  # (N, A) int64: which object the anchor is to find if it is positive


def assign_anchors(
    anchors_yxyx: Tensor, targets: Targets, negative_iou: float = 0.4, force_best_anchor: bool = False
) -> Assignment:
    """Match anchors (A, 4) to the objects that they overlap most. `targets` must have room for one object at least.

    Anchors that overlap every object by less than `negative_iou` are negative. With `force_best_anchor` each object
    also gets the anchor that overlaps it most, however little; the first of them, where several overlap it equally.
    Of objects with the same best anchor the first gets it. An object that overlaps no anchor forces none.
    """
    anchors = yxyx_to_xyxy(anchors_yxyx).mT.contiguous().mT  # each coordinate by itself in memory, as it is read
    # One image at a time: the overlaps of a whole batch (N, M, A) would take gigabytes when one image is crowded.
    assignments = [_assign_anchors(anchors, *image, negative_iou, force_best_anchor) for image in zip(*targets)]
    return Assignment(*map(torch.stack, zip(*assignments)))


def _assign_anchors(
    anchors_xyxy: Tensor, boxes: Tensor, class_ids: Tensor, negative_iou: float, force_best_anchor: bool
) -> Assignment:
    """The assignment in one image with the objects `boxes` (M, 4) and `class_ids` (M,): tensors (A,)."""
    iou = pairwise_iou(boxes, anchors_xyxy).masked_fill((class_ids == PADDING_CLASS)[:, None], 0.0)  # (M, A)
    best_iou, object_index = iou.max(dim=0)
    positive, negative = best_iou >= POSITIVE_IOU, best_iou < negative_iou
    if force_best_anchor:
        object_iou, best_anchor = iou.max(dim=1)
        nobody = len(boxes)
        candidates = torch.where(object_iou > 0, torch.arange(nobody, device=boxes.device), nobody)
        # Where anchors are shared the smallest index wins, in whatever order a GPU writes them.
        owner = torch.full_like(object_index, nobody).scatter_reduce(0, best_anchor, candidates, "amin")
        forced = owner < nobody
        positive, negative = positive | forced, negative & ~forced
        object_index = torch.where(forced, owner, object_index)
    return Assignment(positive, negative, object_index)


def _one_process(value: Tensor) -> Tensor:
    """The sum over the processes when there is but one."""
    return value


class DetectionLoss:
    """The training loss: focal loss for classes, smooth L1 or Huber loss for the boxes of positive anchors.

    By default it is the reference's, in values and gradients (which vanish where it clamps scores to
    [1e-4, 1 - 1e-4]), with one exception. The reference divides the loss of an image *without objects* by 1, so that
    it outweighs an image with objects a hundred times; here it is divided by `empty_image_normalizer`, as if it had
    that many positive anchors. 1 restores the reference's numbers.

    That of google/automl, but for the clamp, is `DetectionLoss(focal_gamma=1.5, negative_iou=0.5,
    force_best_anchor=True, box_loss="huber", normalize="batch")`.

    Args:
        focal_gamma: the focal loss's exponent.
        negative_iou, force_best_anchor: as in `assign_anchors`.
        box_loss: "smooth_l1" with beta 1/9 or "huber" with delta 0.1; the mean of the four deltas', times 50.
        normalize: "image" divides the losses of each image by its number of positive anchors, or by 1, and averages
            over the batch; "batch" divides those of the batch by its number of positive anchors + 1.
        empty_image_normalizer: what "image" divides by in an image without objects.
        num_processes, all_reduce_sum: for "batch", when each process has a part of the batch. The function must
            add a scalar up over the processes. A process's loss is its part of the whole batch's, times
            `num_processes`: DistributedDataParallel averages gradients.

    Everything is computed in float32 at least, whatever the autocast. ValueError when `box_loss` or `normalize` is
    another word.
    """

    def __init__(
        self,
        *,
        focal_gamma: float = 2.0,
        negative_iou: float = 0.4,
        force_best_anchor: bool = False,
        box_loss: str = "smooth_l1",
        normalize: str = "image",
        # Of 160 COCO photographs the median has 110 positive anchors at 512 x 512, 77 at 256, 150 at 1024.
        empty_image_normalizer: float = 100.0,
        num_processes: int = 1,
        all_reduce_sum: Callable[[Tensor], Tensor] = _one_process,
    ):
        if box_loss not in ("smooth_l1", "huber"):
            raise ValueError(f"box_loss must be 'smooth_l1' or 'huber', not {box_loss!r}")
        if normalize not in ("image", "batch"):
            raise ValueError(f"normalize must be 'image' or 'batch', not {normalize!r}")
        self.focal_gamma = focal_gamma
        self.negative_iou = negative_iou
        self.force_best_anchor = force_best_anchor
        self.box_loss = box_loss
        self.normalize = normalize
        self.empty_image_normalizer = empty_image_normalizer
        self.num_processes = num_processes
        self.all_reduce_sum = all_reduce_sum

    def __call__(self, outputs: tuple[Tensor, Tensor, Tensor], targets: Targets) -> Losses:
        """`outputs`: class logits (N, A, C), box deltas (N, A, 4), anchors (A, 4), as the network returns them."""
        class_logits, box_deltas, anchors = outputs
        with torch.autocast(class_logits.device.type, enabled=False):
            precision = torch.promote_types(class_logits.dtype, torch.float32)
            return self._losses(class_logits, box_deltas.to(precision), anchors.to(precision), targets)

    def _losses(self, class_logits: Tensor, box_deltas: Tensor, anchors: Tensor, targets: Targets) -> Losses:
        targets = _with_room_for_an_object(targets, anchors.dtype)
        assigned = assign_anchors(anchors, targets, self.negative_iou, self.force_best_anchor)
        object_classes = targets.class_ids.clamp(min=0).gather(1, assigned.object_index)  # (N, A)
        object_boxes = targets.boxes.gather(1, assigned.object_index[..., None].expand(-1, -1, 4))  # (N, A, 4)
        image_weights = self._image_weights(assigned, targets)  # (N,)

        anchor_weights = (assigned.positive | assigned.negative) * image_weights[:, None]  # (N, A)
        classification = _FocalLoss.apply(
            class_logits, object_classes, assigned.positive, anchor_weights, self.focal_gamma
        )
        distances = self._box_distances(box_deltas, encode(object_boxes, anchors)).sum(dim=-1)
        regression = torch.where(assigned.positive, distances, 0.0).sum(dim=1) @ image_weights
        return Losses(classification, BOX_LOSS_WEIGHT / 4 * regression)

    def _image_weights(self, assigned: Assignment, targets: Targets) -> Tensor:
        """What the sum of each image's losses is multiplied by: (N,)."""
        positives = assigned.positive.sum(dim=1, dtype=targets.boxes.dtype)
        if self.normalize == "batch":
            normalizer = self.all_reduce_sum(positives.sum()) + 1
            return (self.num_processes / normalizer).expand_as(positives)
        has_objects = (targets.class_ids != PADDING_CLASS).any(dim=1)
        normalizers = torch.where(has_objects, positives.clamp(min=1), self.empty_image_normalizer)
        return 1 / (len(normalizers) * normalizers)

    def _box_distances(self, deltas: Tensor, target_deltas: Tensor) -> Tensor:
        if self.box_loss == "huber":
            return F.huber_loss(deltas, target_deltas, reduction="none", delta=HUBER_DELTA)
        return F.smooth_l1_loss(deltas, target_deltas, reduction="none", beta=SMOOTH_L1_BETA)


def _with_room_for_an_object(targets: Targets, dtype: torch.dtype) -> Targets:
    """`targets` in the loss's precision, padded so that a batch without any object has something to index."""
    boxes, class_ids = targets.boxes.to(dtype), targets.class_ids
    if class_ids.shape[1] == 0:
        boxes = boxes.new_zeros(len(boxes), 1, 4)
        class_ids = class_ids.new_full((len(class_ids), 1), PADDING_CLASS)
    return Targets(boxes, class_ids)
