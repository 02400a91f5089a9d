"""Post-processing: from the network's outputs to detections."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from efficientdet.boxes import clip_boxes, decode, pairwise_iou
from efficientdet.structures import Detections, concatenate

MAX_CANDIDATES = 5000  # of an image, as in google/automl: bounds NMS where a network fires everywhere
MAX_BOXES_PER_NMS = 2**16  # comparing so many takes half a gigabyte on a GPU
SOFT_NMS_SIGMA = 0.5  # of the Gaussian, as in the paper and in google/automl


class Candidates(NamedTuple):
    """The K anchors, or (anchor, class) pairs, of a batch that score above the threshold, ordered by image."""

    image_indices: Tensor  # (K,) int64, index into the batch
    boxes: Tensor  # (K, 4) xyxy, float, in pixels of the input
    scores: Tensor  # (K,) float in [0, 1]
    class_ids: Tensor  # (K,) int64


def find_candidates(
    outputs: tuple[Tensor, Tensor, Tensor],
    height: int,
    width: int,
    score_threshold: float | Tensor,
    multi_label: bool = False,
) -> Candidates:
    """Select the anchors whose best class scores above `score_threshold` (reference behavior) and decode their boxes.

    `outputs` are class logits (N, A, C), box deltas (N, A, 4) and anchors (A, 4) of a `height` x `width` input, to
    which the boxes are clipped. With `multi_label`, candidates are instead the MAX_CANDIDATES (anchor, class) pairs of
    each image with the highest logits, if they score above the threshold (google/automl's evaluation).
    """
    class_logits, box_deltas, anchors = outputs
    if multi_label:
        logits = class_logits.flatten(1)
        best_logits, pairs = logits.topk(min(MAX_CANDIDATES, logits.shape[1]))
        best_scores = best_logits.to(anchors.dtype).sigmoid()
        image_indices, ranks = (best_scores > score_threshold).nonzero(as_tuple=True)
        scores, pairs = best_scores[image_indices, ranks], pairs[image_indices, ranks]
        anchor_ids, class_ids = pairs // class_logits.shape[2], pairs % class_logits.shape[2]
    else:
        best_scores = class_logits.amax(dim=-1).to(anchors.dtype).sigmoid()
        image_indices, anchor_ids = (best_scores > score_threshold).nonzero(as_tuple=True)
        # The maximum of scores, not logits: if several scores saturate at 1, the first class wins, as in the reference.
        scores, class_ids = class_logits[image_indices, anchor_ids].to(anchors.dtype).sigmoid().max(dim=-1)
    boxes = decode(box_deltas[image_indices, anchor_ids].to(anchors.dtype), anchors[anchor_ids])
    return Candidates(image_indices, clip_boxes(boxes, height, width), scores, class_ids)


def choose_detections(
    candidates: Candidates,
    num_images: int,
    iou_threshold: float,
    max_detections: int | None = None,
    class_ids: Sequence[int] | None = None,
    max_candidates: int | None = None,
    soft_score_threshold: float | None = None,
) -> list[Detections]:
    """Apply NMS within each class and return the detections of each image, on the CPU, highest score first.

    Args:
        iou_threshold: of two boxes of a class with a larger IoU, the one with the lower score is dropped.
        max_detections: the maximum number per image; None keeps all.
        class_ids: the classes to keep; None keeps all.
        max_candidates: how many, the best of each image, enter NMS; None means all (reference behavior).
        soft_score_threshold: apply `soft_nms` with this score threshold, and without an IoU threshold; None applies
            hard NMS.
    """
    if class_ids is not None:
        selected = torch.isin(candidates.class_ids, torch.tensor(class_ids, device=candidates.class_ids.device))
        candidates = Candidates(*(part[selected] for part in candidates))
    if max_candidates is not None:
        candidates = best_candidates(candidates, num_images, max_candidates)
    done_on_gpu = candidates.boxes.device.type != "cpu" and soft_score_threshold is None
    if done_on_gpu:
        kept = surviving_candidates(candidates, num_images, iou_threshold)
        candidates = Candidates(*(part[kept] for part in candidates))
    candidates = Candidates(*(part.cpu() for part in candidates))
    sizes = candidates.image_indices.bincount(minlength=num_images).tolist()
    images = [Detections(*parts) for parts in zip(*(part.split(sizes) for part in candidates[1:]))]
    if soft_score_threshold is not None:
        return [soft_nms(found, soft_score_threshold, max_detections) for found in images]
    if done_on_gpu:
        return [found[found.scores.argsort(descending=True)[:max_detections]] for found in images]
    # On a CPU a single call would compare the boxes of all images, which takes six times as long.
    return [suppress(found, iou_threshold, max_detections) for found in images]


def best_candidates(candidates: Candidates, num_images: int, count: int) -> Candidates:
    """Return the `count` candidates of each image with the highest scores, in the given order."""
    scores = candidates.scores
    if len(scores) <= count:
        return candidates
    sizes = candidates.image_indices.bincount(minlength=num_images).tolist()
    images = zip(torch.arange(len(scores), device=scores.device).split(sizes), scores.split(sizes))
    kept = torch.cat([rows[of_image.topk(min(count, len(rows))).indices] for rows, of_image in images]).sort().values
    return Candidates(*(part[kept] for part in candidates))


def surviving_candidates(candidates: Candidates, num_images: int, iou_threshold: float) -> Tensor:
    """Return the indices of the candidates that survive NMS within each class and image, ascending, in one call."""
    groups = candidates.class_ids * num_images + candidates.image_indices  # one per class and image
    boxes, scores = candidates.boxes.double(), candidates.scores.double()  # float32 is coarse far from the origin
    if not 0 < len(boxes) <= MAX_BOXES_PER_NMS:
        return batched_nms(boxes, scores, groups, iou_threshold).sort().values  # group by group
    offsets = groups[:, None] * (boxes.max() + 1)  # separate the groups in space
    return nms(boxes + offsets, scores, iou_threshold).sort().values


def postprocess(
    outputs: tuple[Tensor, Tensor, Tensor],
    height: int,
    width: int,
    score_threshold: float,
    iou_threshold: float,
    max_candidates: int | None = None,
) -> list[Detections]:
    """Return the detections of each image, with boxes in pixels of the network's `height` x `width` input."""
    candidates = find_candidates(outputs, height, width, score_threshold)
    return choose_detections(candidates, len(outputs[0]), iou_threshold, max_candidates=max_candidates)


def suppress(found: Detections, iou_threshold: float, max_detections: int | None = None) -> Detections:
    """Apply NMS within each class and return at most `max_detections` detections, highest score first."""
    return found[batched_nms(found.boxes, found.scores, found.class_ids, iou_threshold)[:max_detections]]


def soft_nms(found: Detections, score_threshold: float, max_detections: int | None = None) -> Detections:
    """Apply Gaussian soft-NMS within each class and return at most `max_detections` detections, highest score first.

    The best box is kept, and the scores of the others of its class are multiplied by exp(-IoU^2 / SOFT_NMS_SIGMA); then
    the best of the others is, and so on, as long as one scores above `score_threshold` (Bodla et al. 2017). There is no
    IoU threshold: google/automl sets one, but TensorFlow's NonMaxSuppressionV5 ignores it if soft_nms_sigma > 0.
    """
    kept, scores = [found[:0]], found.scores
    for _ in range(len(found))[:max_detections]:
        row = int(scores.argmax())
        if scores[row] <= score_threshold:
            break
        best = Detections(found.boxes, scores, found.class_ids)[row : row + 1]
        kept.append(best)
        iou = pairwise_iou(best.boxes, found.boxes)[0] * (found.class_ids == best.class_ids)
        scores = scores * torch.exp(-iou.square() / SOFT_NMS_SIGMA)
        scores[row] = 0
    return concatenate(kept)


def nms(boxes_xyxy: Tensor, scores: Tensor, iou_threshold: float) -> Tensor:
    """Return the indices (M,) of the boxes (K, 4) that survive non-maximum suppression, highest score first."""
    from torchvision import ops  # imported late: it slows the start of every script

    return ops.nms(boxes_xyxy, scores, iou_threshold)


def batched_nms(boxes_xyxy: Tensor, scores: Tensor, groups: Tensor, iou_threshold: float) -> Tensor:
    """Return the same as `nms`, but let only boxes of the same group (K,) suppress each other."""
    from torchvision import ops

    return ops.batched_nms(boxes_xyxy, scores, groups, iou_threshold)
