"""Box arithmetic: pure functions of tensors `(..., 4)` in pixels. Names give the order of the coordinates."""

import torch
from torch import Tensor


def yxyx_to_xyxy(boxes: Tensor) -> Tensor:
    """Swap the axes: (y1, x1, y2, x2) to (x1, y1, x2, y2), or the inverse."""
    y1, x1, y2, x2 = boxes.unbind(-1)  # indexing by [1, 0, 3, 2] would synchronize with a GPU, and is slow on a CPU
    return torch.stack((x1, y1, x2, y2), dim=-1)


def xyxy_to_xywh(boxes: Tensor) -> Tensor:
    """Convert (x1, y1, x2, y2) to COCO's (x1, y1, width, height)."""
    return torch.cat((boxes[..., :2], boxes[..., 2:] - boxes[..., :2]), dim=-1)


def flip_boxes(boxes_xyxy: Tensor, width: int) -> Tensor:
    """Mirror boxes horizontally in an image that is `width` pixels wide."""
    left, top, right, bottom = boxes_xyxy.unbind(-1)
    return torch.stack((width - right, top, width - left, bottom), dim=-1)


def box_area(boxes_xyxy: Tensor) -> Tensor:
    """Return the areas in square pixels: (..., 4) -> (...)."""
    return (boxes_xyxy[..., 2] - boxes_xyxy[..., 0]) * (boxes_xyxy[..., 3] - boxes_xyxy[..., 1])


def pairwise_intersection(a_xyxy: Tensor, b_xyxy: Tensor) -> Tensor:
    """Return the area shared by each pair, in square pixels: (..., A, 4), (..., B, 4) -> (..., A, B)."""
    a, b = a_xyxy.unsqueeze(-2), b_xyxy.unsqueeze(-3)
    # In place: there may be millions of pairs.
    width = torch.minimum(a[..., 2], b[..., 2]).sub_(torch.maximum(a[..., 0], b[..., 0])).clamp_(min=0)
    height = torch.minimum(a[..., 3], b[..., 3]).sub_(torch.maximum(a[..., 1], b[..., 1])).clamp_(min=0)
    return width.mul_(height)


def pairwise_iou(a_xyxy: Tensor, b_xyxy: Tensor) -> Tensor:
    """Return the intersection over union of each pair, 0 for empty boxes: (..., A, 4), (..., B, 4) -> (..., A, B)."""
    intersection = pairwise_intersection(a_xyxy, b_xyxy)
    union = (box_area(a_xyxy).unsqueeze(-1) + box_area(b_xyxy).unsqueeze(-2)).sub_(intersection)
    return intersection.div_(union.clamp_(min=1e-8))


def _center_and_size(boxes_yxyx: Tensor) -> tuple[Tensor, Tensor]:
    """Return the centers (cy, cx) and sizes (h, w), each (..., 2)."""
    top_left, bottom_right = boxes_yxyx[..., :2], boxes_yxyx[..., 2:]
    return (top_left + bottom_right) / 2, bottom_right - top_left


def encode(boxes_xyxy: Tensor, anchors_yxyx: Tensor) -> Tensor:
    """Return the deltas (dy, dx, dh, dw) that turn each anchor into its box: the inverse of `decode`.

    Box sides below 1 pixel count as 1, so that the logarithm stays finite (reference behavior).
    """
    box_center, box_size = _center_and_size(yxyx_to_xyxy(boxes_xyxy))
    anchor_center, anchor_size = _center_and_size(anchors_yxyx)
    box_size = box_size.clamp(min=1)
    return torch.cat(((box_center - anchor_center) / anchor_size, (box_size / anchor_size).log()), dim=-1)


def decode(deltas: Tensor, anchors_yxyx: Tensor) -> Tensor:
    """Apply the deltas (dy, dx, dh, dw) to the anchors and return the boxes, xyxy."""
    anchor_center, anchor_size = _center_and_size(anchors_yxyx)
    center = deltas[..., :2] * anchor_size + anchor_center
    half_size = deltas[..., 2:].exp() * anchor_size / 2
    return yxyx_to_xyxy(torch.cat((center - half_size, center + half_size), dim=-1))


def clip_boxes(boxes_xyxy: Tensor, height: int, width: int) -> Tensor:
    """Clip top-left corners to at least 0 and bottom-right corners to at most (width - 1, height - 1).

    A box that lies entirely outside stays outside (reference behavior): if each corner were clipped to both limits,
    such boxes would collapse to empty ones, and a different number of them would survive NMS.
    """
    left, top, right, bottom = boxes_xyxy.unbind(-1)
    sides = left.clamp(min=0), top.clamp(min=0), right.clamp(max=width - 1), bottom.clamp(max=height - 1)
    return torch.stack(sides, dim=-1)
