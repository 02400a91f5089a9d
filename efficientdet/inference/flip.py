"""Test-time augmentation with the mirror image."""

from collections.abc import Sequence

from torch import Tensor

from efficientdet.boxes import clip_boxes, flip_boxes
from efficientdet.data.transforms import Letterbox
from efficientdet.model.postprocess import suppress
from efficientdet.structures import Detections, concatenate


def mirror(images: Tensor, letterboxes: Sequence[Letterbox]) -> Tensor:
    """Return a copy of a batch (N, 3, H, W) with mirrored images, which stay at the left of the canvas."""
    mirrored = images.clone()
    for image, letterbox in zip(mirrored, letterboxes):
        height, width = letterbox.resized
        image[:, :height, :width] = image[:, :height, :width].flip(-1)
    return mirrored


def join_mirrored(
    found: Detections, mirrored: Detections, letterbox: Letterbox, iou_threshold: float, max_detections: int | None
) -> Detections:
    """Join the detections in an image and in its mirror image by NMS, all in pixels of the canvas."""
    boxes = clip_boxes(flip_boxes(mirrored.boxes, letterbox.resized[1]), *letterbox.canvas)
    both = concatenate([found, Detections(boxes, mirrored.scores, mirrored.class_ids)])
    return suppress(both, iou_threshold, max_detections)
