"""From the network's outputs to detections."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torchvision.ops import batched_nms

from efficientdet.boxes import clip_boxes, decode


@dataclass(frozen=True)
class Detections:
    """The objects found in one image, best score first. Without objects the shapes are (0, 4), (0,) and (0,)."""

    boxes: Tensor  # (K, 4) float, (x1, y1, x2, y2) in pixels
    scores: Tensor  # (K,) float in [0, 1]
    class_ids: Tensor  # (K,) int64, index into the project's class names

    def __post_init__(self):
        count = len(self.boxes)
        shapes = tuple(self.boxes.shape), tuple(self.scores.shape), tuple(self.class_ids.shape)
        if shapes != ((count, 4), (count,), (count,)):
            raise ValueError(
                f"boxes, scores and class_ids must be shaped (K, 4), (K,) and (K,), not {shapes[0]}, {shapes[1]} "
                f"and {shapes[2]}"
            )

    @classmethod
    def empty(cls) -> "Detections":
        return cls(torch.zeros(0, 4), torch.zeros(0), torch.zeros(0, dtype=torch.int64))

    def __len__(self) -> int:
        return len(self.boxes)

    def __getitem__(self, chosen: Tensor | slice) -> "Detections":
        """Those that a slice, a mask (K,) or a tensor of indices chooses."""
        return Detections(self.boxes[chosen], self.scores[chosen], self.class_ids[chosen])


def postprocess(
    outputs: tuple[Tensor, Tensor, Tensor],
    height: int,
    width: int,
    score_threshold: float,
    iou_threshold: float,
    max_detections: int | None = None,
    class_ids: Sequence[int] | None = None,
) -> list[Detections]:
    """Detections of each image of a batch, boxes in the pixels of the network's `height` x `width` input.

    An anchor's score is its best class's. Anchors above `score_threshold` are decoded, clipped to the input, and
    thinned by non-maximum suppression within each class at `iou_threshold` (reference behaviour).

    Args:
        outputs: class logits (N, A, C), box deltas (N, A, 4) and anchors (A, 4), as the network returns them.
        max_detections: of each image, the best; None gives all.
        class_ids: objects of other classes are left out; None gives all.
    """
    class_logits, box_deltas, anchors = outputs
    best_scores = class_logits.amax(dim=-1).to(anchors.dtype).sigmoid()
    wanted = None if class_ids is None else torch.tensor(class_ids, device=class_logits.device)

    detections = []
    for image_best_scores, image_logits, image_deltas in zip(best_scores, class_logits, box_deltas):
        candidates = (image_best_scores > score_threshold).nonzero().squeeze(1)
        # The best class of scores, not of logits: where several saturate at 1 the first wins, as in the reference.
        scores, classes = image_logits[candidates].to(anchors.dtype).sigmoid().max(dim=-1)
        boxes = decode(image_deltas[candidates].to(anchors.dtype), anchors[candidates])
        found = Detections(clip_boxes(boxes, height, width), scores, classes)
        if wanted is not None:
            found = found[torch.isin(classes, wanted)]
        detections.append(suppress(found, iou_threshold, max_detections))
    return detections


def suppress(found: Detections, iou_threshold: float, max_detections: int | None = None) -> Detections:
    """Non-maximum suppression within each class: the best first, at most `max_detections`."""
    kept = batched_nms(found.boxes, found.scores, found.class_ids, iou_threshold)
    return found[kept[:max_detections]]


def concatenate(parts: Sequence[Detections]) -> Detections:
    """All of them, one part after the other."""
    return Detections(
        *(torch.cat([getattr(part, name) for part in parts]) for name in ("boxes", "scores", "class_ids"))
    )


def in_picture(found: Detections, letterbox) -> Detections:
    """Detections on the network's input -> on the CPU, boxes in the pixels of the picture that `letterbox` put there.

    The tensors are ordinary ones, which the caller may change, even those made in inference mode.
    """
    boxes = letterbox.boxes_to_picture(found.boxes.cpu())
    return Detections(boxes, found.scores.cpu().clone(), found.class_ids.cpu().clone())
