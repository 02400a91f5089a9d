"""EfficientNet B0 to B7 without the classification head: image batches in, features of strides 8, 16 and 32 out.

Attribute names are the keys of the published weights (`_conv_stem`, `_blocks`, `_bn0`, ...).
"""

import math
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any

from torch import Tensor, nn

from efficientnet.cpu_training import excite_and_project, normalized_pointwise
from efficientnet.layers import SameConv2d, drop_connect

BATCH_NORM: dict[str, Any] = {"eps": 1e-3, "momentum": 0.01}  # PyTorch's momentum is 1 - TensorFlow's 0.99
DROP_CONNECT_RATE = 0.2
SQUEEZE_RATIO = 0.25
STEM_CHANNELS = 32


@dataclass(frozen=True)
class Stage:
    """A sequence of `repeats` MBConv blocks; the first one has the stride."""

    repeats: int
    kernel_size: int
    stride: int
    expand_ratio: int
    out_channels: int


# Stages 2 to 8 of B0 (EfficientNet paper, table 1); the first stage is the stem.
BASELINE_STAGES = (
    Stage(repeats=1, kernel_size=3, stride=1, expand_ratio=1, out_channels=16),
    Stage(repeats=2, kernel_size=3, stride=2, expand_ratio=6, out_channels=24),
    Stage(repeats=2, kernel_size=5, stride=2, expand_ratio=6, out_channels=40),
    Stage(repeats=3, kernel_size=3, stride=2, expand_ratio=6, out_channels=80),
    Stage(repeats=3, kernel_size=5, stride=1, expand_ratio=6, out_channels=112),
    Stage(repeats=4, kernel_size=5, stride=2, expand_ratio=6, out_channels=192),
    Stage(repeats=1, kernel_size=3, stride=1, expand_ratio=6, out_channels=320),
)
FEATURE_STAGES = (2, 4, 6)  # indices of the last stages at strides 8, 16 and 32

# (width, depth) coefficients of compound scaling, B0 to B7
SCALING = ((1.0, 1.0), (1.0, 1.1), (1.1, 1.2), (1.2, 1.4), (1.4, 1.8), (1.6, 2.2), (1.8, 2.6), (2.0, 3.1))


def round_channels(channels: int, width_coefficient: float) -> int:
    """Scale a number of channels and round it to a multiple of 8, but never down by more than 10 %."""
    scaled = channels * width_coefficient
    rounded = max(8, int(scaled + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * scaled else rounded


def scaled_stages(index: int) -> list[Stage]:
    """Return the stages of B`index`: those of B0 after compound scaling (EfficientNet paper, section 3.3)."""
    width, depth = SCALING[index]
    scaled = []
    for stage in BASELINE_STAGES:
        repeats, channels = math.ceil(stage.repeats * depth), round_channels(stage.out_channels, width)
        scaled.append(replace(stage, repeats=repeats, out_channels=channels))
    return scaled


class MBConvBlock(nn.Module):
    """Mobile inverted bottleneck with squeeze-and-excitation (EfficientNet paper, section 4)."""

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: int, stride: int, expand_ratio: int, drop_rate: float
    ):
        super().__init__()
        expanded = in_channels * expand_ratio
        squeezed = max(1, int(in_channels * SQUEEZE_RATIO))
        self.has_expansion = expand_ratio != 1
        self.has_identity = stride == 1 and in_channels == out_channels
        self.drop_rate = drop_rate

        if self.has_expansion:
            self._expand_conv = SameConv2d(in_channels, expanded, 1, bias=False)
            self._bn0 = nn.BatchNorm2d(expanded, **BATCH_NORM)
        self._depthwise_conv = SameConv2d(expanded, expanded, kernel_size, stride, groups=expanded, bias=False)
        self._bn1 = nn.BatchNorm2d(expanded, **BATCH_NORM)
        self._se_reduce = SameConv2d(expanded, squeezed, 1)
        self._se_expand = SameConv2d(squeezed, expanded, 1)
        self._project_conv = SameConv2d(expanded, out_channels, 1, bias=False)
        self._bn2 = nn.BatchNorm2d(out_channels, **BATCH_NORM)
        self.swish = nn.SiLU()

    def forward(self, inputs: Tensor) -> Tensor:
        x = inputs
        if self.has_expansion:
            x = self.swish(normalized_pointwise(x, self._expand_conv, self._bn0))
        x = self.swish(self._bn1(self._depthwise_conv(x)))

        x = self._bn2(excite_and_project(x, self._se_reduce, self._se_expand, self._project_conv))

        if not self.has_identity:
            return x
        if self.training and self.drop_rate > 0:
            x = drop_connect(x, self.drop_rate)
        return x + inputs


class EfficientNet(nn.Module):
    """Backbone B`index` (0 to 7). `forward` returns the outputs of `feature_blocks`, with `feature_channels`."""

    def __init__(self, index: int):
        super().__init__()
        stages = scaled_stages(index)
        ends = list(accumulate(stage.repeats for stage in stages))
        channels = round_channels(STEM_CHANNELS, SCALING[index][0])
        self._conv_stem = SameConv2d(3, channels, 3, stride=2, bias=False)
        self._bn0 = nn.BatchNorm2d(channels, **BATCH_NORM)

        blocks: list[MBConvBlock] = []
        for stage in stages:
            for repeat in range(stage.repeats):
                shape = stage.out_channels, stage.kernel_size, stage.stride if repeat == 0 else 1, stage.expand_ratio
                blocks.append(MBConvBlock(channels, *shape, DROP_CONNECT_RATE * len(blocks) / ends[-1]))
                channels = stage.out_channels
        self._blocks = nn.ModuleList(blocks)
        self.swish = nn.SiLU()

        self.feature_blocks = tuple(ends[number] - 1 for number in FEATURE_STAGES)
        self.feature_channels = tuple(stages[number].out_channels for number in FEATURE_STAGES)

    def forward(self, images: Tensor) -> list[Tensor]:
        """Return P3 (N, c3, H/8, W/8), P4 (N, c4, H/16, W/16) and P5 (N, c5, H/32, W/32) of images (N, 3, H, W)."""
        x = self.swish(self._bn0(self._conv_stem(images)))
        features = []
        for i, block in enumerate(self._blocks):
            x = block(x)
            if i in self.feature_blocks:
                features.append(x)
        return features
