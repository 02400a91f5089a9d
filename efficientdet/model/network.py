"""EfficientDet D0 to D7X (Tan, Pang & Le, "EfficientDet", 2020): backbone, BiFPN, heads, anchors."""

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from efficientdet.config import ANCHOR_RATIOS, ANCHOR_SCALES, check_image_size, model_config
from efficientdet.model.anchors import AnchorSpec, cached_anchors
from efficientdet.model.bifpn import BiFPNCell
from efficientdet.model.heads import PredictionHead
from efficientdet.model.initialization import (
    initialize_backbone,
    initialize_bifpn,
    initialize_class_prior,
    initialize_head,
)
from efficientdet.structures import Outputs
from efficientnet.model import EfficientNet

# The convolutions that produce the outputs; `{header}.conv.weight` and `{header}.conv.bias` in the published files.
CLASS_HEADER = "classifier.header.pointwise_conv"
BOX_HEADER = "regressor.header.pointwise_conv"


class EfficientDet(nn.Module):
    """The detection network. Its state dict has the keys and shapes of the published `efficientdet-d*.pth` files.

    Args:
        compound_coef: 0 (D0) to 7 (D7), 8 for D7X.
        num_classes: the number of scores per anchor; 90 for the published weights.
        ratios: (width, height) factors of the anchors.
        scales: anchor sizes within an octave.

    Raises ValueError for an unknown coefficient, or without any class, ratio or scale.
    """

    if TYPE_CHECKING:  # nn.Module declares no signature

        def __call__(self, images: Tensor) -> Outputs: ...

    def __init__(
        self,
        compound_coef: int = 0,
        num_classes: int = 90,
        ratios: Sequence[tuple[float, float]] = ANCHOR_RATIOS,
        scales: Sequence[float] = ANCHOR_SCALES,
    ):
        super().__init__()
        self.config = config = model_config(compound_coef)
        if num_classes < 1 or not len(ratios) or not len(scales):
            counts = f"{num_classes}, {len(ratios)} and {len(scales)}"
            raise ValueError(f"a detector needs at least one class, anchor ratio and anchor scale, not {counts}")
        self.compound_coef = compound_coef
        self.num_classes = num_classes
        anchor_scales, anchor_ratios = tuple(map(float, scales)), tuple((float(x), float(y)) for x, y in ratios)
        self.anchor_spec = AnchorSpec(config.pyramid_levels, config.anchor_scale, anchor_scales, anchor_ratios)

        backbone = EfficientNet(config.backbone)
        cell = partial(BiFPNCell, config.bifpn_channels, config.pyramid_levels, config.fast_attention)
        self.bifpn = nn.Sequential(
            cell(backbone_channels=backbone.feature_channels), *(cell() for _ in range(config.bifpn_cells - 1))
        )
        sizes = self.anchor_spec.num_per_cell, config.head_layers, len(config.pyramid_levels)
        self.regressor = PredictionHead(config.bifpn_channels, 4, *sizes)
        self.classifier = PredictionHead(config.bifpn_channels, num_classes, *sizes)
        self.backbone_net = nn.ModuleDict({"model": backbone})
        initialize_backbone(backbone)
        initialize_bifpn(self.bifpn)
        initialize_head(self.regressor)
        initialize_head(self.classifier)
        initialize_class_prior(self.get_submodule(CLASS_HEADER))

    def forward(self, images: Tensor) -> Outputs:
        """Map normalized RGB images (N, 3, H, W) to `Outputs`. Raises ValueError if H or W does not fit the pyramid."""
        return Outputs(*self.predict(images), self.anchors(images))

    def predict(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return the class logits and box deltas without the anchors: all that depends on more than the shape."""
        pyramid = self.features(images)
        return self.classifier(pyramid), self.regressor(pyramid)

    def features(self, images: Tensor) -> list[Tensor]:
        """Return the pyramid that the heads receive: (N, C, H / 2**l, W / 2**l) for each level l, finest first."""
        if images.ndim != 4 or images.shape[1] != 3:
            raise ValueError(f"the network accepts images of shape (N, 3, H, W), not {tuple(images.shape)}")
        check_image_size(self.compound_coef, *images.shape[-2:])
        return self.bifpn(self.backbone_net["model"](images))

    def anchors(self, images: Tensor) -> Tensor:
        """Return the anchors for the shape of `images`, on their device. The tensor is shared: do not modify it."""
        height, width = images.shape[-2:]
        dtype = torch.promote_types(images.dtype, torch.float32)  # half precision would be off by pixels
        return cached_anchors(height, width, self.anchor_spec, dtype, images.device)
