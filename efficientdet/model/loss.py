"""The training loss (EfficientDet paper, section 5.1): anchor assignment, focal loss, box loss and normalization.

Nothing here synchronizes with the host.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from efficientdet.boxes import encode, pairwise_iou, yxyx_to_xyxy
from efficientdet.model.focal_loss import focal_loss
from efficientdet.structures import PADDING_CLASS, Targets

POSITIVE_IOU = 0.5  # the minimum IoU of a positive anchor with its object
BOX_LOSS_WEIGHT = 50.0


class Losses(NamedTuple):
    """Two scalars, weighted so that their sum is the training loss."""

    classification: Tensor
    regression: Tensor

    @property
    def total(self) -> Tensor:
        return self.classification + self.regression


class Assignment(NamedTuple):
    """The learning targets of A anchors in each of N images. Anchors neither positive nor negative are ignored."""

    positive: Tensor  # (N, A) bool: the anchor must predict an object
    negative: Tensor  # (N, A) bool: the anchor must predict background
    object_index: Tensor  # (N, A) int64: the object of each positive anchor


def assign_anchors(
    anchors_yxyx: Tensor,
    targets: Targets,
    negative_iou: float = 0.4,
    force_best_anchor: bool = False,
    min_anchors: int = 0,
) -> Assignment:
    """Match each anchor (A, 4) to the object with the largest IoU.

    Anchors with an IoU of `POSITIVE_IOU` or more are positive, those below `negative_iou` negative.

    With `force_best_anchor`, the anchor with the largest IoU with each object is also positive for that object, however
    small the IoU, unless it is 0. The first of several equal anchors is chosen. If an anchor is the best of several
    objects, it is assigned to the first of them.

    With `min_anchors`, each object has at least that many positive anchors, those with the largest IoU, however small,
    unless it is 0 or they overlap another object more. Equal anchors are assigned alike.

    `targets` must have room for at least one object per image.
    """
    anchors = yxyx_to_xyxy(anchors_yxyx).mT.contiguous().mT  # each coordinate contiguous, as it is read
    assignments = []
    # Image by image: the IoUs of a whole batch (N, M, A) would take gigabytes if one image is crowded.
    for boxes, class_ids in zip(targets.boxes, targets.class_ids):
        iou = pairwise_iou(boxes, anchors).masked_fill_((class_ids == PADDING_CLASS)[:, None], 0.0)  # (M, A)
        best_iou, object_index = iou.max(dim=0)
        positive, negative = best_iou >= POSITIVE_IOU, best_iou < negative_iou
        if min_anchors:
            needed_iou = iou.topk(min(min_anchors, len(anchors)), dim=1).values[:, -1]  # (M,)
            among_best = (best_iou >= needed_iou[object_index]) & (best_iou > 0)
            positive, negative = positive | among_best, negative & ~among_best
        if force_best_anchor:
            object_iou, best_anchor = iou.max(dim=1)
            no_object = len(boxes)
            objects = torch.where(object_iou > 0, torch.arange(no_object, device=boxes.device), no_object)
            # The smallest index wins, in whatever order a GPU writes them.
            owner = torch.full_like(object_index, no_object).scatter_reduce(0, best_anchor, objects, "amin")
            forced = owner < no_object
            positive, negative = positive | forced, negative & ~forced
            object_index = torch.where(forced, owner, object_index)
        assignments.append((positive, negative, object_index))
    return Assignment(*map(torch.stack, zip(*assignments)))


class LossRecipe(Protocol):
    """The part of a training recipe that defines the loss."""

    @property
    def focal_gamma(self) -> float: ...
    @property
    def negative_iou(self) -> float: ...
    @property
    def force_best_anchor(self) -> bool: ...
    @property
    def min_anchors(self) -> int: ...
    @property
    def box_loss(self) -> str: ...
    @property
    def normalize(self) -> str: ...


def _unchanged(value: Tensor) -> Tensor:
    return value


@dataclass(frozen=True, kw_only=True)
class DetectionLoss:
    """Focal loss for the classes, and smooth L1 or Huber loss for the boxes of positive anchors.

    The defaults are the reference's loss, in values and gradients, with one exception. The reference divides the loss
    of an image *without objects* by 1, so that it outweighs an image with objects about a hundred times. Here it is
    divided by `empty_image_normalizer`, as if the image had that many positive anchors; 1 restores the reference's.
    The recipe "official" has the loss of google/automl, except that scores are clamped.

    Args:
        focal_gamma: the focusing exponent of the focal loss.
        negative_iou, force_best_anchor, min_anchors: see `assign_anchors`.
        box_loss: "smooth_l1" with beta 1/9, or "huber" with delta 0.1; the mean over the four deltas, times 50.
        normalize: "image" divides the loss of each image by max(1, positive anchors) and averages over the batch;
            "batch" divides the loss of the batch by its number of positive anchors + 1.
        empty_image_normalizer: the divisor of images without objects if `normalize` is "image".
        num_processes, all_reduce_sum: for "batch" in distributed training; the function sums a scalar over processes.
            The loss of each process is its share times `num_processes`, as DistributedDataParallel averages gradients.

    Everything is computed in at least float32, even under autocast. Raises ValueError for another `box_loss` or
    `normalize`.
    """

    focal_gamma: float = 2.0
    negative_iou: float = 0.4
    force_best_anchor: bool = False
    min_anchors: int = 0
    box_loss: str = "smooth_l1"
    normalize: str = "image"
    # In 160 COCO images the median number of positive anchors is 110 at 512 x 512, 77 at 256, 150 at 1024.
    empty_image_normalizer: float = 100.0
    num_processes: int = 1
    all_reduce_sum: Callable[[Tensor], Tensor] = _unchanged

    def __post_init__(self) -> None:
        if self.box_loss not in ("smooth_l1", "huber"):
            raise ValueError(f"box_loss must be 'smooth_l1' or 'huber', not {self.box_loss!r}")
        if self.normalize not in ("image", "batch"):
            raise ValueError(f"normalize must be 'image' or 'batch', not {self.normalize!r}")

    @classmethod
    def from_recipe(
        cls, recipe: LossRecipe, num_processes: int = 1, all_reduce_sum: Callable[[Tensor], Tensor] = _unchanged
    ) -> "DetectionLoss":
        """Return the loss that `recipe` defines, shared by `num_processes` if its normalization spans the batch."""
        return cls(
            focal_gamma=recipe.focal_gamma,
            negative_iou=recipe.negative_iou,
            force_best_anchor=recipe.force_best_anchor,
            min_anchors=recipe.min_anchors,
            box_loss=recipe.box_loss,
            normalize=recipe.normalize,
            num_processes=num_processes,
            all_reduce_sum=all_reduce_sum,
        )

    def __call__(self, outputs: tuple[Tensor, Tensor, Tensor], targets: Targets) -> Losses:
        """Return the losses of `outputs`: class logits (N, A, C), box deltas (N, A, 4) and anchors (A, 4)."""
        class_logits, box_deltas, anchors = outputs
        with torch.autocast(class_logits.device.type, enabled=False):
            precision = torch.promote_types(class_logits.dtype, torch.float32)
            box_deltas, anchors = box_deltas.to(precision), anchors.to(precision)
            boxes, class_ids = targets.boxes.to(precision), targets.class_ids
            if class_ids.shape[1] == 0:  # indexing needs an object
                boxes = boxes.new_zeros(len(boxes), 1, 4)
                class_ids = class_ids.new_full((len(class_ids), 1), PADDING_CLASS)
            assigned = assign_anchors(
                anchors, Targets(boxes, class_ids), self.negative_iou, self.force_best_anchor, self.min_anchors
            )
            positive, object_index = assigned.positive, assigned.object_index
            image_weights = self._image_weights(positive, class_ids, precision)

            anchor_classes = class_ids.clamp(min=0).gather(1, object_index)  # (N, A)
            anchor_weights = (positive | assigned.negative) * image_weights[:, None]  # (N, A)
            classification = focal_loss(class_logits, anchor_classes, positive, anchor_weights, self.focal_gamma)

            target_deltas = encode(boxes.gather(1, object_index[..., None].expand(-1, -1, 4)), anchors)  # (N, A, 4)
            if self.box_loss == "huber":
                box_losses = F.huber_loss(box_deltas, target_deltas, reduction="none", delta=0.1)
            else:
                box_losses = F.smooth_l1_loss(box_deltas, target_deltas, reduction="none", beta=1 / 9)
            image_losses = torch.where(positive, box_losses.sum(dim=-1), 0.0).sum(dim=1)  # (N,)
            return Losses(classification, BOX_LOSS_WEIGHT / 4 * (image_losses @ image_weights))

    def _image_weights(self, positive: Tensor, class_ids: Tensor, dtype: torch.dtype) -> Tensor:
        """Return the factor of the summed losses of each image: (N,)."""
        positives = positive.sum(dim=1, dtype=dtype)
        if self.normalize == "batch":
            normalizer = self.all_reduce_sum(positives.sum()) + 1
            return (self.num_processes / normalizer).expand_as(positives)
        has_objects = (class_ids != PADDING_CLASS).any(dim=1)
        normalizers = torch.where(has_objects, positives.clamp(min=1), self.empty_image_normalizer)
        return 1 / (len(normalizers) * normalizers)
