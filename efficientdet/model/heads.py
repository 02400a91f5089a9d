"""The class and box prediction heads (EfficientDet paper, section 3.4 and figure 3)."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from efficientdet.model.bifpn import SeparableConv
from efficientnet.model import BATCH_NORM


class PredictionHead(nn.Module):
    """Separable convolutions shared by all pyramid levels, batch norms per level, and a header convolution.

    `outputs_per_anchor` is the number of classes, or 4 for box deltas.
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
        """Map levels (N, C, h, w), finest first, to (N, A, outputs_per_anchor) in the order of the anchors."""
        outputs = []
        for x, norms in zip(pyramid, self.bn_list):
            for conv, norm in zip(self.conv_list, norms.children()):
                x = self.swish(norm(conv(x)))
            outputs.append(flatten_anchors(self.header(x), self.outputs_per_anchor))
        return torch.cat(outputs, dim=1)


def flatten_anchors(x: Tensor, outputs_per_anchor: int) -> Tensor:
    """Reshape (N, anchors * outputs, h, w) to (N, h * w * anchors, outputs), in (row, column, anchor) order."""
    images, channels, height, width = x.shape
    anchors = height * width * channels // outputs_per_anchor
    return x.permute(0, 2, 3, 1).reshape(images, anchors, outputs_per_anchor)
