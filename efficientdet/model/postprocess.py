"""From the network's outputs to detections."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from efficientdet.boxes import clip_boxes, decode
from efficientdet.structures import Detections

if TYPE_CHECKING:
    pass


_MOST_AT_ONCE = 2**16  # boxes; their comparisons take half a gigabyte of a GPU


class Candidates(NamedTuple):
    """The anchors of a batch that may have found an object, K in all, image by image."""

    image_indices: Tensor  # (K,) int64, index into the batch
    boxes: Tensor  # (K, 4) float, (x1, y1, x2, y2) in pixels of the network's input
    scores: Tensor  # (K,) float in [0, 1]
    class_ids: Tensor  # (K,) int64


def find_candidates(
    outputs: tuple[Tensor, Tensor, Tensor], height: int, width: int, score_threshold: float
) -> Candidates:
    """The anchors with a score above `score_threshold`, which is their best class's (reference behaviour).

    Their boxes are clipped to the network's `height` x `width` input.

    Args:
        outputs: class logits (N, A, C), box deltas (N, A, 4) and anchors (A, 4), as the network returns them.
    """
    class_logits, box_deltas, anchors = outputs
    best_scores = class_logits.amax(dim=-1).to(anchors.dtype).sigmoid()
    image_indices, anchor_ids = (best_scores > score_threshold).nonzero(as_tuple=True)
    # The best class of scores, not of logits: where several saturate at 1 the first wins, as in the reference.
    scores, class_ids = class_logits[image_indices, anchor_ids].to(anchors.dtype).sigmoid().max(dim=-1)
    boxes = decode(box_deltas[image_indices, anchor_ids].to(anchors.dtype), anchors[anchor_ids])
    return Candidates(image_indices, clip_boxes(boxes, height, width), scores, class_ids)


def choose_detections(
    candidates: Candidates,
    num_images: int,
    iou_threshold: float,
    max_detections: int | None = None,
    class_ids: Sequence[int] | None = None,
) -> list[Detections]:
    """The detections of each of `num_images` images, on the CPU, best first: non-maximum suppression within each class.

    Args:
        iou_threshold: IoU above which the weaker of two boxes of a class goes.
        max_detections: of each image, the best; None gives all.
        class_ids: objects of other classes are left out; None gives all.
    """
    if class_ids is not None:
        wanted = torch.isin(candidates.class_ids, torch.tensor(class_ids, device=candidates.class_ids.device))
        candidates = Candidates(*(part[wanted] for part in candidates))
    on_gpu = candidates.boxes.device.type != "cpu"
    if on_gpu:
        kept = _survivors_of_batch(candidates, num_images, iou_threshold)
        candidates = Candidates(*(part[kept].cpu() for part in candidates))
    sizes = candidates.image_indices.bincount(minlength=num_images).tolist()
    images = [Detections(*parts) for parts in zip(*(part.split(sizes) for part in candidates[1:]))]
    if on_gpu:
        return [found[found.scores.argsort(descending=True)[:max_detections]] for found in images]
    # One call for the batch would compare the boxes of all images, and take six times as long.
    return [suppress(found, iou_threshold, max_detections) for found in images]


def _survivors_of_batch(candidates: Candidates, num_images: int, iou_threshold: float) -> Tensor:
    """The indices of the candidates that non-maximum suppression leaves, in their order, by one call."""
    groups = candidates.class_ids * num_images + candidates.image_indices  # a class of an image is one of its own
    boxes, scores = candidates.boxes.double(), candidates.scores.double()  # float32 is coarse far from the origin
    if not 0 < len(boxes) <= _MOST_AT_ONCE:
        return batched_nms(boxes, scores, groups, iou_threshold).sort().values  # group after group
    apart = groups[:, None] * (boxes.max() + 1)  # each group in a place of its own
    return nms(boxes + apart, scores, iou_threshold).sort().values


def postprocess(
    outputs: tuple[Tensor, Tensor, Tensor], height: int, width: int, score_threshold: float, iou_threshold: float
) -> list[Detections]:
    """`find_candidates`, then `choose_detections`: boxes in pixels of the network's `height` x `width` input."""
    candidates = find_candidates(outputs, height, width, score_threshold)
    return choose_detections(candidates, len(outputs[0]), iou_threshold)


def suppress(found: Detections, iou_threshold: float, max_detections: int | None = None) -> Detections:
    """Non-maximum suppression within each class: the best first, at most `max_detections`."""
    return found[batched_nms(found.boxes, found.scores, found.class_ids, iou_threshold)[:max_detections]]


def nms(boxes_xyxy: Tensor, scores: Tensor, iou_threshold: float) -> Tensor:
    """The indices (M,) of those of K boxes (K, 4) that no better one overlaps by more, best first."""
    from torchvision import ops

    return ops.nms(boxes_xyxy, scores, iou_threshold)


def batched_nms(boxes_xyxy: Tensor, scores: Tensor, groups: Tensor, iou_threshold: float) -> Tensor:
    """The same, where only boxes of one group (K,) compete."""
    from torchvision import ops

    return ops.batched_nms(boxes_xyxy, scores, groups, iou_threshold)
