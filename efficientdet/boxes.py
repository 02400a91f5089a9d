"""Box arithmetic: pure tensor functions. Coordinates are in pixels, `[..., 4]`, in the order that each name says."""

import torch
from torch import Tensor


def yxyx_to_xyxy(boxes: Tensor) -> Tensor:
    """(y1, x1, y2, x2) -> (x1, y1, x2, y2), and back."""
    y1, x1, y2, x2 = boxes.unbind(-1)  # to index by [1, 0, 3, 2] would wait for a GPU, and is slow on a CPU
    return torch.stack((x1, y1, x2, y2), dim=-1)


def xyxy_to_xywh(boxes: Tensor) -> Tensor:
    """(x1, y1, x2, y2) -> (x1, y1, width, height), COCO's format."""
    return torch.cat((boxes[..., :2], boxes[..., 2:] - boxes[..., :2]), dim=-1)


def flip_boxes(boxes_xyxy: Tensor, width: int) -> Tensor:
    """Boxes (..., 4) of an image `width` pixels wide -> in its mirror image."""
    left, top, right, bottom = boxes_xyxy.unbind(-1)
    return torch.stack((width - right, top, width - left, bottom), dim=-1)


def box_area(boxes_xyxy: Tensor) -> Tensor:
    """(..., 4) -> (...), square pixels."""
    return (boxes_xyxy[..., 2] - boxes_xyxy[..., 0]) * (boxes_xyxy[..., 3] - boxes_xyxy[..., 1])


def pairwise_intersection(a_xyxy: Tensor, b_xyxy: Tensor) -> Tensor:
    """The area that every a shares with every b: (..., A, 4), (..., B, 4) -> (..., A, B), square pixels."""
    a, b = a_xyxy.unsqueeze(-2), b_xyxy.unsqueeze(-3)
    width = torch.minimum(a[..., 2], b[..., 2]) - torch.maximum(a[..., 0], b[..., 0])
    height = torch.minimum(a[..., 3], b[..., 3]) - torch.maximum(a[..., 1], b[..., 1])
    return width.clamp(min=0) * height.clamp(min=0)


def pairwise_iou(a_xyxy: Tensor, b_xyxy: Tensor) -> Tensor:
    """Intersection over union of every a with every b: (..., A, 4), (..., B, 4) -> (..., A, B). 0 for empty boxes."""
    intersection = pairwise_intersection(a_xyxy, b_xyxy)
    union = box_area(a_xyxy).unsqueeze(-1) + box_area(b_xyxy).unsqueeze(-2) - intersection
    return intersection / union.clamp(min=1e-8)


def _centre_and_size(boxes_yxyx: Tensor) -> tuple[Tensor, Tensor]:
    """(..., 4) -> centres (cy, cx) and sizes (h, w), each (..., 2)."""
    top_left, bottom_right = boxes_yxyx[..., :2], boxes_yxyx[..., 2:]
    return (top_left + bottom_right) / 2, bottom_right - top_left


def encode(boxes_xyxy: Tensor, anchors_yxyx: Tensor) -> Tensor:
    """Deltas (dy, dx, dh, dw) that turn each anchor into its box; the inverse of `decode`.

    Box sides below one pixel count as one, so that the logarithm stays finite (reference behaviour).
    """
    box_centre, box_size = _centre_and_size(yxyx_to_xyxy(boxes_xyxy))
    anchor_centre, anchor_size = _centre_and_size(anchors_yxyx)
    box_size = box_size.clamp(min=1)
    return torch.cat(((box_centre - anchor_centre) / anchor_size, (box_size / anchor_size).log()), dim=-1)


def decode(deltas: Tensor, anchors_yxyx: Tensor) -> Tensor:
    """Boxes (x1, y1, x2, y2) of the predicted deltas (dy, dx, dh, dw): both (..., 4)."""
    anchor_centre, anchor_size = _centre_and_size(anchors_yxyx)
    centre = deltas[..., :2] * anchor_size + anchor_centre
    half_size = deltas[..., 2:].exp() * anchor_size / 2
    return yxyx_to_xyxy(torch.cat((centre - half_size, centre + half_size), dim=-1))


def clip_boxes(boxes_xyxy: Tensor, height: int, width: int) -> Tensor:
    """Top-left corners clipped from below to 0, bottom-right corners from above to (width - 1, height - 1).

    A box that lies wholly outside stays outside (reference behaviour; clipping each corner to both limits would
    let such boxes of no area survive the suppression in another number).
    """
    left, top, right, bottom = boxes_xyxy.unbind(-1)
    sides = left.clamp(min=0), top.clamp(min=0), right.clamp(max=width - 1), bottom.clamp(max=height - 1)
    return torch.stack(sides, dim=-1)
