"""The anchors of an input shape (EfficientDet paper, section 4; the layout is the published weights')."""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from efficientdet.boxes import pairwise_iou, yxyx_to_xyxy

_CHUNK = 2**16  # boxes that `best_anchor_iou` takes at once; a few tens of megabytes


def make_anchors(
    height: int,
    width: int,
    pyramid_levels: Sequence[int],
    anchor_scale: float,
    scales: Sequence[float],
    ratios: Sequence[tuple[float, float]],
) -> Tensor:
    """All anchors of a `height` x `width` input: (A, 4), float64, (y1, x1, y2, x2) in input pixels.

    The order is the heads': level by level from the finest, then row, column, scale, (width, height) ratio.
    An anchor is anchor_scale strides wide and high, times its scale, times its ratio's two factors.
    """
    half_sizes = _half_sizes(scales, ratios)
    levels = []
    for level in pyramid_levels:
        stride = 2**level
        centre_y = torch.arange(stride / 2, height, stride, dtype=torch.float64)
        centre_x = torch.arange(stride / 2, width, stride, dtype=torch.float64)
        centres = torch.cartesian_prod(centre_y, centre_x)[:, None]  # (cells, 1, 2)
        halves = half_sizes * (anchor_scale * stride)
        levels.append(torch.cat((centres - halves, centres + halves), dim=-1).reshape(-1, 4))
    return torch.cat(levels)


def cached_anchors(*args: Any) -> Tensor:
    """`make_anchors` of its arguments, which a dtype and a device follow: made once for each of them.

    The tensor is shared: do not change it in place.
    """
    return _made_once(*args)  # a plain function around the cache, so that torch.compile can take it for a constant


@lru_cache(maxsize=32)
def _made_once(
    height: int,
    width: int,
    pyramid_levels: tuple[int, ...],
    anchor_scale: float,
    scales: tuple[float, ...],
    ratios: tuple[tuple[float, float], ...],
    dtype: torch.dtype,
    device: torch.device,
) -> Tensor:
    with torch.inference_mode(False):  # a tensor made in inference mode could not serve training later
        anchors = make_anchors(height, width, pyramid_levels, anchor_scale, scales, ratios)
        return anchors.to(device=device, dtype=dtype)


def best_anchor_iou(
    boxes_xyxy: Tensor,
    height: int,
    width: int,
    pyramid_levels: Sequence[int],
    anchor_scale: float,
    scales: Sequence[float],
    ratios: Sequence[tuple[float, float]],
) -> Tensor:
    """The IoU of each box (M, 4) with the anchor of the `height` x `width` input that overlaps it most: (M,).

    Only the anchors of one cell per level are compared, the one nearest to the box's centre. Among anchors of one size
    the IoU grows with the intersection, and that is the overlap in x times the overlap in y: each depends on the
    distance between the centres in its own axis alone, and never grows with it.

    The input's sides are multiples of the coarsest stride, as the network needs them.
    """
    half_sizes = _half_sizes(scales, ratios).to(boxes_xyxy)

    def best(boxes: Tensor) -> Tensor:
        centres_yx = ((boxes[:, :2] + boxes[:, 2:]) / 2).flip(-1)
        ious = []
        for level in pyramid_levels:
            stride = 2**level
            last_cell = centres_yx.new_tensor([height // stride - 1, width // stride - 1])
            cell = (centres_yx / stride).floor().clamp(min=0).minimum(last_cell)
            centres = ((cell + 0.5) * stride)[:, None]  # (M, 1, 2)
            halves = half_sizes * (anchor_scale * stride)
            anchors_xyxy = yxyx_to_xyxy(torch.cat((centres - halves, centres + halves), dim=-1))
            ious.append(pairwise_iou(anchors_xyxy, boxes[:, None]).amax(dim=(1, 2)))
        return torch.stack(ious).amax(dim=0)

    return torch.cat([best(boxes) for boxes in boxes_xyxy.split(_CHUNK)])


def _half_sizes(scales: Sequence[float], ratios: Sequence[tuple[float, float]]) -> Tensor:
    """(K, 2) float64: half the height and the width of each anchor shape, in strides, before the anchor scale."""
    return torch.tensor(
        [(scale * ratio_y / 2, scale * ratio_x / 2) for scale in scales for ratio_x, ratio_y in ratios],
        dtype=torch.float64,
    )
