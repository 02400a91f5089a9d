"""Anchors (EfficientDet paper, section 4), in the layout of the published weights."""

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor


@dataclass(frozen=True)
class AnchorSpec:
    """The anchor shapes of a network; with the input's size they determine its anchors."""

    pyramid_levels: tuple[int, ...]  # level l has stride 2 ** l
    anchor_scale: float  # side of the basic square anchor, in strides
    scales: tuple[float, ...]  # sizes within an octave
    ratios: tuple[tuple[float, float], ...]  # (width, height) factors

    @property
    def num_per_cell(self) -> int:
        return len(self.scales) * len(self.ratios)

    def half_sizes(self, level: int) -> Tensor:
        """Return half the (height, width) of each anchor in a cell of `level`: (num_per_cell, 2), float64, pixels."""
        in_strides = [(scale * y / 2, scale * x / 2) for scale in self.scales for x, y in self.ratios]
        return torch.tensor(in_strides, dtype=torch.float64) * (self.anchor_scale * 2**level)


def make_anchors(height: int, width: int, spec: AnchorSpec) -> Tensor:
    """Return all A anchors of a `height` x `width` input: (A, 4) yxyx, float64, in pixels of the input.

    They are in the order of the heads' outputs: level (finest first), row, column, scale, ratio.
    """
    levels = []
    for level in spec.pyramid_levels:
        stride = 2**level
        center_y = torch.arange(stride / 2, height, stride, dtype=torch.float64)
        center_x = torch.arange(stride / 2, width, stride, dtype=torch.float64)
        centers = torch.cartesian_prod(center_y, center_x)[:, None]  # (cells, 1, 2)
        half_sizes = spec.half_sizes(level)
        levels.append(torch.cat((centers - half_sizes, centers + half_sizes), dim=-1).reshape(-1, 4))
    return torch.cat(levels)


@lru_cache(maxsize=32)
def cached_anchors(height: int, width: int, spec: AnchorSpec, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return `make_anchors` in `dtype` on `device`, computed once. The tensor is shared: do not modify it."""
    with torch.inference_mode(False):  # a tensor created in inference mode could not be used in training later
        return make_anchors(height, width, spec).to(device=device, dtype=dtype)
