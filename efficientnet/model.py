"""EfficientNet B0-B7 without its classification head: an image batch in, the features of strides 8, 16 and 32 out.

Attribute names are the keys of the published weights (`_conv_stem`, `_blocks`, `_bn0`, ...).
"""

import math
from dataclasses import dataclass
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from efficientnet.layers import SameConv2d, drop_connect

BATCH_NORM: dict[str, Any] = {"eps": 1e-3, "momentum": 0.01}  # PyTorch's momentum is 1 - TensorFlow's 0.99
DROP_CONNECT_RATE = 0.2
SQUEEZE_RATIO = 0.25
STEM_CHANNELS = 32


@dataclass(frozen=True)
class Stage:
    """One row of the baseline network B0."""

    repeats: int
    kernel_size: int
    stride: int
    expand_ratio: int
    in_channels: int
    out_channels: int


# EfficientNet paper, table 1
BASELINE_STAGES = (
    Stage(repeats=1, kernel_size=3, stride=1, expand_ratio=1, in_channels=32, out_channels=16),
    Stage(repeats=2, kernel_size=3, stride=2, expand_ratio=6, in_channels=16, out_channels=24),
    Stage(repeats=2, kernel_size=5, stride=2, expand_ratio=6, in_channels=24, out_channels=40),
    Stage(repeats=3, kernel_size=3, stride=2, expand_ratio=6, in_channels=40, out_channels=80),
    Stage(repeats=3, kernel_size=5, stride=1, expand_ratio=6, in_channels=80, out_channels=112),
    Stage(repeats=4, kernel_size=5, stride=2, expand_ratio=6, in_channels=112, out_channels=192),
    Stage(repeats=1, kernel_size=3, stride=1, expand_ratio=6, in_channels=192, out_channels=320),
)

# (width, depth) coefficients of compound scaling, B0 to B7
SCALING = ((1.0, 1.0), (1.0, 1.1), (1.1, 1.2), (1.2, 1.4), (1.4, 1.8), (1.6, 2.2), (1.8, 2.6), (2.0, 3.1))


def round_channels(channels: int, width_coefficient: float) -> int:
    """Scaled channels, rounded to a multiple of 8 but never down by more than 10 %."""
    scaled = channels * width_coefficient
    rounded = max(8, int(scaled + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * scaled else rounded


def round_repeats(repeats: int, depth_coefficient: float) -> int:
    """Scaled number of blocks in a stage, rounded up."""
    return math.ceil(repeats * depth_coefficient)


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
            x = self.swish(self._bn0(self._expand_conv(x)))
        x = self.swish(self._bn1(self._depthwise_conv(x)))

        squeezed = F.adaptive_avg_pool2d(x, 1)
        gate = self._se_expand(self.swish(self._se_reduce(squeezed))).sigmoid()
        x = self._bn2(self._project_conv(gate * x))

        if not self.has_identity:
            return x
        if self.training and self.drop_rate > 0:
            x = drop_connect(x, self.drop_rate)
        return x + inputs


class EfficientNet(nn.Module):
    """Backbone B`index` (0 to 7).

    `feature_channels` holds the channels of the three features that `forward` returns.
    """

    def __init__(self, index: int):
        super().__init__()
        width, depth = SCALING[index]
        stem_channels = round_channels(STEM_CHANNELS, width)
        self._conv_stem = SameConv2d(3, stem_channels, 3, stride=2, bias=False)
        self._bn0 = nn.BatchNorm2d(stem_channels, **BATCH_NORM)

        repeats = [round_repeats(stage.repeats, depth) for stage in BASELINE_STAGES]
        blocks: list[MBConvBlock] = []
        for stage, stage_repeats in zip(BASELINE_STAGES, repeats):
            out_channels = round_channels(stage.out_channels, width)
            for repeat in range(stage_repeats):
                blocks.append(
                    MBConvBlock(
                        in_channels=round_channels(stage.in_channels, width) if repeat == 0 else out_channels,
                        out_channels=out_channels,
                        kernel_size=stage.kernel_size,
                        stride=stage.stride if repeat == 0 else 1,
                        expand_ratio=stage.expand_ratio,
                        drop_rate=DROP_CONNECT_RATE * len(blocks) / sum(repeats),
                    )
                )
        self._blocks = nn.ModuleList(blocks)
        self.swish = nn.SiLU()

        # A feature is the output of the last block before the resolution halves again, and of the very last block.
        ends = [sum(repeats[: i + 1]) - 1 for i in range(len(repeats))]
        self.feature_blocks = (ends[2], ends[4], ends[6])
        self.feature_channels = tuple(round_channels(BASELINE_STAGES[i].out_channels, width) for i in (2, 4, 6))

    def forward(self, images: Tensor) -> list[Tensor]:
        """(N, 3, H, W) -> [P3 (N, c3, H/8, W/8), P4 (N, c4, H/16, W/16), P5 (N, c5, H/32, W/32)]."""
        x = self.swish(self._bn0(self._conv_stem(images)))
        features = []
        for i, block in enumerate(self._blocks):
            x = block(x)
            if i in self.feature_blocks:
                features.append(x)
        return features
