"""BiFPN, the weighted bi-directional feature pyramid network (EfficientDet paper, section 3)."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from efficientnet.layers import SameConv2d, SameMaxPool2d
from efficientnet.model import BATCH_NORM

FUSION_EPSILON = 1e-4


class SeparableConv(nn.Module):
    """Depthwise 3x3 and pointwise 1x1 convolution, then batch norm if `norm`, without an activation."""

    def __init__(self, in_channels: int, out_channels: int, norm: bool = True):
        super().__init__()
        self.depthwise_conv = SameConv2d(in_channels, in_channels, 3, groups=in_channels, bias=False)
        self.pointwise_conv = SameConv2d(in_channels, out_channels, 1)
        self.bn = nn.BatchNorm2d(out_channels, **BATCH_NORM) if norm else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.bn(self.pointwise_conv(self.depthwise_conv(x)))


def _projection(in_channels: int, out_channels: int) -> nn.Sequential:
    """Return a 1x1 convolution and batch norm that map a backbone feature to the pyramid's channels."""
    return nn.Sequential(SameConv2d(in_channels, out_channels, 1), nn.BatchNorm2d(out_channels, **BATCH_NORM))


class BiFPNCell(nn.Module):
    """One top-down and one bottom-up pass over the pyramid.

    The first cell (`backbone_channels` given) accepts the backbone's P3, P4 and P5, and derives the coarser levels.
    The other cells accept a whole pyramid. Every cell returns a whole pyramid, finest level first.

    Attributes are named by level, as in the published weights: `conv6_up` and the fusion weights `p6_w1` produce
    level 6 of the top-down pass, `conv4_down` and `p4_w2` level 4 of the bottom-up pass.
    """

    def __init__(
        self, channels: int, pyramid_levels: Sequence[int], fast_attention: bool, backbone_channels: Sequence[int] = ()
    ):
        super().__init__()
        self.levels = tuple(pyramid_levels)
        self.fast_attention = fast_attention
        self.swish = nn.SiLU()
        self.downsample = SameMaxPool2d(3, 2)

        # Networks that fuse by plain sums never use these, but the published files contain them, for P3 to P7 only.
        nodes = {"p6_w1": 2, "p5_w1": 2, "p4_w1": 2, "p3_w1": 2, "p4_w2": 3, "p5_w2": 3, "p6_w2": 3, "p7_w2": 2}
        for name, num_inputs in nodes.items():
            self.register_parameter(name, nn.Parameter(torch.ones(num_inputs), requires_grad=fast_attention))

        # The order of creation is the order of the keys in the published files.
        names = ["conv6_up", "conv5_up", "conv4_up", "conv3_up", "conv4_down", "conv5_down", "conv6_down", "conv7_down"]
        if self.levels[-1] == 8:
            names += ["conv7_up", "conv8_down"]
        for name in names:
            self.add_module(name, SeparableConv(channels, channels))

        self.is_first = bool(backbone_channels)
        if backbone_channels:
            c3, c4, c5 = backbone_channels
            self.p5_down_channel = _projection(c5, channels)
            self.p4_down_channel = _projection(c4, channels)
            self.p3_down_channel = _projection(c3, channels)
            self.p5_to_p6 = _projection(c5, channels).append(SameMaxPool2d(3, 2))
            # The bottom-up pass has separate projections of P4 and P5.
            self.p4_down_channel_2 = _projection(c4, channels)
            self.p5_down_channel_2 = _projection(c5, channels)

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        """Map [P3, P4, P5] of the backbone (first cell) or a whole pyramid to a whole pyramid, finest level first."""
        top_down_inputs = bottom_up_inputs = dict(zip(self.levels, features))
        if self.is_first:
            c3, c4, c5 = features
            top_down_inputs = {3: self.p3_down_channel(c3), 4: self.p4_down_channel(c4), 5: self.p5_down_channel(c5)}
            top_down_inputs[6] = self.p5_to_p6(c5)
            for level in self.levels[4:]:
                top_down_inputs[level] = self.downsample(top_down_inputs[level - 1])
            bottom_up_inputs = {**top_down_inputs, 4: self.p4_down_channel_2(c4), 5: self.p5_down_channel_2(c5)}

        top = self.levels[-1]
        top_down = {top: top_down_inputs[top]}
        for level in reversed(self.levels[:-1]):
            upsampled = F.interpolate(top_down[level + 1], scale_factor=2.0, mode="nearest")
            fused = self._fuse(f"p{level}_w1", top_down_inputs[level], upsampled)
            top_down[level] = getattr(self, f"conv{level}_up")(fused)

        pyramid = [top_down[self.levels[0]]]
        for level in self.levels[1:]:
            inputs = [bottom_up_inputs[level], self.downsample(pyramid[-1])]
            if level != top:
                inputs.insert(1, top_down[level])
            pyramid.append(getattr(self, f"conv{level}_down")(self._fuse(f"p{level}_w2", *inputs)))
        return pyramid

    def fusion_weights(self, name: str) -> Tensor:
        """Return the normalized weights of a node's inputs: fast normalized fusion (paper, section 3.3)."""
        weights = getattr(self, name).relu()
        return weights / (weights.sum() + FUSION_EPSILON)

    def _fuse(self, weight_name: str, *inputs: Tensor) -> Tensor:
        """Return the swish of the sum of the inputs, weighted unless the network fuses by plain sums."""
        if self.fast_attention:
            inputs = tuple(weight * x for weight, x in zip(self.fusion_weights(weight_name).unbind(), inputs))
        return self.swish(sum(inputs[1:], start=inputs[0]))
