"""EfficientDet D0 to D7X (Tan, Pang & Le, "EfficientDet", 2020): backbone, BiFPN, heads, anchors."""

import math
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from efficientdet.config import ANCHOR_RATIOS, ANCHOR_SCALES, check_image_size, model_config
from efficientdet.model.anchors import cached_anchors
from efficientdet.model.bifpn import BiFPNCell
from efficientdet.model.heads import PredictionHead
from efficientdet.structures import Outputs
from efficientnet.model import EfficientNet

PRIOR_PROBABILITY = 0.01  # of an object at any anchor, before training (RetinaNet paper, section 4.1)


class EfficientDet(nn.Module):
    """The detector network.

    State-dict keys and shapes are those of the published `efficientdet-d{compound_coef}.pth` files.

    Args:
        compound_coef: 0 (D0) to 7 (D7), 8 for D7X.
        num_classes: scores per anchor; 90 for the published weights.
        ratios: (width, height) factors of the anchors.
        scales: anchor sizes within an octave.

    Raises ValueError for arguments that make no network.
    """

    if TYPE_CHECKING:  # which knows no more of a module than that it can be called

        def __call__(self, images: Tensor) -> Outputs: ...

    def __init__(
        self,
        compound_coef: int = 0,
        num_classes: int = 90,
        ratios: Sequence[tuple[float, float]] = ANCHOR_RATIOS,
        scales: Sequence[float] = ANCHOR_SCALES,
    ):
        super().__init__()
        config = model_config(compound_coef)
        if num_classes < 1 or not len(ratios) or not len(scales):
            raise ValueError(
                f"a detector needs at least one class, anchor ratio and anchor scale, "
                f"not {num_classes}, {len(ratios)} and {len(scales)}"
            )
        self.compound_coef = compound_coef
        self.num_classes = num_classes
        self.config = config
        self.ratios = tuple((float(x), float(y)) for x, y in ratios)
        self.scales = tuple(float(scale) for scale in scales)

        backbone = EfficientNet(config.backbone)
        cell = partial(BiFPNCell, config.bifpn_channels, config.pyramid_levels, config.fast_attention)
        self.bifpn = nn.Sequential(
            cell(backbone_channels=backbone.feature_channels),
            *(cell() for _ in range(config.bifpn_cells - 1)),
        )
        head = partial(
            PredictionHead,
            channels=config.bifpn_channels,
            num_anchors=len(self.ratios) * len(self.scales),
            num_layers=config.head_layers,
            num_levels=len(config.pyramid_levels),
        )
        self.regressor = head(outputs_per_anchor=4)
        self.classifier = head(outputs_per_anchor=num_classes)
        self.backbone_net = nn.ModuleDict({"model": backbone})
        initialize(self)
        initialize_class_prior(self.classifier.header.pointwise_conv)

    def forward(self, images: Tensor) -> Outputs:
        """(N, 3, H, W) normalised RGB -> `Outputs`. ValueError when H or W does not suit the pyramid."""
        pyramid = self.features(images)
        return Outputs(
            class_logits=self.classifier(pyramid),  # (N, A, num_classes)
            box_deltas=self.regressor(pyramid),  # (N, A, 4)
            anchors=self.anchors(images),  # (A, 4)
        )

    def features(self, images: Tensor) -> list[Tensor]:
        """The pyramid that the heads see: (N, C, H / 2**l, W / 2**l) for each level l, finest first."""
        if images.ndim != 4 or images.shape[1] != 3:
            raise ValueError(f"the network takes images of shape (N, 3, H, W), not {tuple(images.shape)}")
        check_image_size(self.compound_coef, *images.shape[-2:])
        return self.bifpn(self.backbone_net["model"](images))

    def anchors(self, images: Tensor) -> Tensor:
        """The anchors of `images`' shape, on its device."""
        return cached_anchors(
            *images.shape[-2:],
            self.config.pyramid_levels,
            self.config.anchor_scale,
            self.scales,
            self.ratios,
            # Half precision would move the anchors of a large input by pixels.
            torch.promote_types(images.dtype, torch.float32),
            images.device,
        )


def initialize(module: nn.Module) -> None:
    """Fresh weights for every convolution inside `module`: normal with std sqrt(1 / fan_in), biases 0."""
    for conv in module.modules():
        if isinstance(conv, nn.Conv2d):
            fan_in = conv.weight[0].numel()
            nn.init.normal_(conv.weight, std=math.sqrt(1 / fan_in))
            if conv.bias is not None:
                nn.init.zeros_(conv.bias)


def initialize_class_prior(class_header: nn.Module) -> None:
    """Set the class header's bias so that every score begins at `PRIOR_PROBABILITY`."""
    bias = -math.log((1 - PRIOR_PROBABILITY) / PRIOR_PROBABILITY)
    nn.init.constant_(class_header.get_parameter("conv.bias"), bias)
