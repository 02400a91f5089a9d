"""BiFPN, the weighted bi-directional feature pyramid (EfficientDet paper, section 3)."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from efficientnet.layers import SameConv2d, SameMaxPool2d
from efficientnet.model import BATCH_NORM

FUSION_EPSILON = 1e-4


class SeparableConv(nn.Module):
    """Depthwise 3x3 convolution, pointwise 1x1 convolution with bias, and batch norm when `norm`; no activation."""

    def __init__(self, in_channels: int, out_channels: int, norm: bool = True):
        super().__init__()
        self.depthwise_conv = SameConv2d(in_channels, in_channels, 3, groups=in_channels, bias=False)
        self.pointwise_conv = SameConv2d(in_channels, out_channels, 1)
        self.bn = nn.BatchNorm2d(out_channels, **BATCH_NORM) if norm else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.bn(self.pointwise_conv(self.depthwise_conv(x)))


def _project(in_channels: int, out_channels: int, *, then_pool: bool = False) -> nn.Sequential:
    """1x1 convolution and batch norm that bring a backbone feature to the pyramid's width."""
    layers: list[nn.Module] = [SameConv2d(in_channels, out_channels, 1), nn.BatchNorm2d(out_channels, **BATCH_NORM)]
    if then_pool:
        layers.append(SameMaxPool2d(3, 2))
    return nn.Sequential(*layers)


class BiFPNCell(nn.Module):
    """One top-down and bottom-up pass over the pyramid.

    The first cell (`backbone_channels` given) takes the backbone's P3, P4, P5 and makes the coarser levels itself;
    the others take a whole pyramid. Each cell returns a whole pyramid, finest level first.

    The published weights name their tensors by level: `conv6_up` makes level 6 on the way down from the top
    with the fusion weights `p6_w1`; `conv4_down` makes level 4 on the way back with `p4_w2`.
    """

    def __init__(
        self,
        channels: int,
        pyramid_levels: Sequence[int],
        fast_attention: bool,
        backbone_channels: Sequence[int] | None = None,
    ):
        super().__init__()
        self.levels = tuple(pyramid_levels)
        self.fast_attention = fast_attention
        self.swish = nn.SiLU()
        self.downsample = SameMaxPool2d(3, 2)

        # Plain-sum networks never use these, but their published files hold them, for P3 to P7 only.
        for level, inputs in ((6, 2), (5, 2), (4, 2), (3, 2)):
            self._add_fusion_weight(f"p{level}_w1", inputs)
        for level, inputs in ((4, 3), (5, 3), (6, 3), (7, 2)):
            self._add_fusion_weight(f"p{level}_w2", inputs)

        # The order of creation is the order of the keys in the published files.
        for level in (6, 5, 4, 3):
            self.add_module(f"conv{level}_up", SeparableConv(channels, channels))
        for level in (4, 5, 6, 7):
            self.add_module(f"conv{level}_down", SeparableConv(channels, channels))
        if self.levels[-1] == 8:
            self.conv7_up = SeparableConv(channels, channels)
            self.conv8_down = SeparableConv(channels, channels)

        self.is_first = backbone_channels is not None
        if backbone_channels is not None:
            c3, c4, c5 = backbone_channels
            self.p5_down_channel = _project(c5, channels)
            self.p4_down_channel = _project(c4, channels)
            self.p3_down_channel = _project(c3, channels)
            self.p5_to_p6 = _project(c5, channels, then_pool=True)
            # P4 and P5 enter the way back through projections of their own.
            self.p4_down_channel_2 = _project(c4, channels)
            self.p5_down_channel_2 = _project(c5, channels)

    def _add_fusion_weight(self, name: str, inputs: int) -> None:
        self.register_parameter(name, nn.Parameter(torch.ones(inputs), requires_grad=self.fast_attention))

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        """[P3, P4, P5] of the backbone (first cell) or a whole pyramid -> a whole pyramid, finest level first."""
        top_down_inputs, bottom_up_inputs = self._inputs(features)
        bottom, *middle, top = self.levels

        way_down = {top: top_down_inputs[top]}
        for level in (*reversed(middle), bottom):
            upsampled = F.interpolate(way_down[level + 1], scale_factor=2.0, mode="nearest")
            fused = self._fuse(f"p{level}_w1", top_down_inputs[level], upsampled)
            way_down[level] = getattr(self, f"conv{level}_up")(fused)

        pyramid = [way_down[bottom]]
        for level in (*middle, top):
            inputs = [bottom_up_inputs[level], self.downsample(pyramid[-1])]
            if level != top:
                inputs.insert(1, way_down[level])
            pyramid.append(getattr(self, f"conv{level}_down")(self._fuse(f"p{level}_w2", *inputs)))
        return pyramid

    def _inputs(self, features: Sequence[Tensor]) -> tuple[dict[int, Tensor], dict[int, Tensor]]:
        """Each level's input to the way down, and to the way back."""
        if not self.is_first:
            pyramid = dict(zip(self.levels, features))
            return pyramid, pyramid
        c3, c4, c5 = features
        pyramid = {
            3: self.p3_down_channel(c3),
            4: self.p4_down_channel(c4),
            5: self.p5_down_channel(c5),
            6: self.p5_to_p6(c5),
        }
        for level in self.levels[4:]:
            pyramid[level] = self.downsample(pyramid[level - 1])
        return pyramid, {**pyramid, 4: self.p4_down_channel_2(c4), 5: self.p5_down_channel_2(c5)}

    def fusion_weights(self, name: str) -> Tensor:
        """The normalised weights of a node's inputs: fast normalised fusion (paper, section 3.3)."""
        weights = getattr(self, name).relu()
        return weights / (weights.sum() + FUSION_EPSILON)

    def _fuse(self, weight_name: str, *inputs: Tensor) -> Tensor:
        """Swish of the inputs' sum, which is weighted unless the network fuses by plain sums."""
        if self.fast_attention:
            inputs = tuple(weight * x for weight, x in zip(self.fusion_weights(weight_name).unbind(), inputs))
        total = inputs[0] + inputs[1]
        for x in inputs[2:]:
            total = total + x
        return self.swish(total)
