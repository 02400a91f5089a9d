"""The anchors of an input shape (EfficientDet paper, section 4; the layout is the published weights')."""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor


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


def _half_sizes(scales: Sequence[float], ratios: Sequence[tuple[float, float]]) -> Tensor:
    """(K, 2) float64: half the height and the width of each anchor shape, in strides, before the anchor scale."""
    return torch.tensor(
        [(scale * ratio_y / 2, scale * ratio_x / 2) for scale in scales for ratio_x, ratio_y in ratios],
        dtype=torch.float64,
    )
