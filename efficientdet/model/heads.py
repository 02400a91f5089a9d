"""The prediction heads: one for classes, one for boxes, of the same build (EfficientDet paper, section 4)."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from efficientdet.model.bifpn import SeparableConv
from efficientnet.model import BATCH_NORM


class PredictionHead(nn.Module):
    """Separable convolutions shared by all pyramid levels, with batch norms of each level's own, and a header.

    `outputs_per_anchor`: the number of classes, or 4 box deltas.
    """

    def __init__(self, channels: int, outputs_per_anchor: int, num_anchors: int, num_layers: int, num_levels: int):
        super().__init__()
        self.outputs_per_anchor = outputs_per_anchor
        self.conv_list = nn.ModuleList(SeparableConv(channels, channels, norm=False) for _ in range(num_layers))
        self.bn_list = nn.ModuleList(
            nn.ModuleList(nn.BatchNorm2d(channels, **BATCH_NORM) for _ in range(num_layers)) for _ in range(num_levels)
        )
        self.header = SeparableConv(channels, num_anchors * outputs_per_anchor, norm=False)
        self.swish = nn.SiLU()

    def forward(self, pyramid: Sequence[Tensor]) -> Tensor:
        """Levels (N, C, h, w), finest first -> (N, A, outputs_per_anchor) in (level, row, column, anchor) order."""
        return torch.cat([self._level(x, norms) for x, norms in zip(pyramid, self.bn_list)], dim=1)

    def _level(self, x: Tensor, norms: nn.Module) -> Tensor:
        for conv, norm in zip(self.conv_list, norms.children()):
            x = self.swish(norm(conv(x)))
        return flatten_anchors(self.header(x), self.outputs_per_anchor)


def flatten_anchors(x: Tensor, outputs_per_anchor: int) -> Tensor:
    """(N, anchors * outputs, h, w) -> (N, h * w * anchors, outputs)."""
    images, channels, height, width = x.shape
    anchors = height * width * channels // outputs_per_anchor
    return x.permute(0, 2, 3, 1).reshape(images, anchors, outputs_per_anchor)
