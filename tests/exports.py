"""Networks to export in tests, and the metadata of the files."""

import math
from dataclasses import replace
from functools import cache

import torch
from golden_fill import fill
from torch import Tensor, nn

from efficientdet.config import model_config
from efficientdet.model.network import EfficientDet
from efficientdet.project import Project, load_project
from efficientdet.runtime.metadata import Metadata, Suppression

CPU = torch.device("cpu")
SUPPRESSION = Suppression(score_threshold=0.05, iou_threshold=0.5, max_detections=100)
CLASS_NAMES = ("disc", "square", "Größe")


@cache
def small_project() -> Project:
    return replace(load_project("coco"), class_names=CLASS_NAMES)


@cache
def network_that_finds(compound_coef: int = 0) -> EfficientDet:
    """Return a network with 300 anchors above 0.05 in the first of `images`. It is shared: do not modify it."""
    with torch.device("meta"):
        network = EfficientDet(compound_coef, len(CLASS_NAMES))
    fill(network, torch.float32).eval()
    metadata = describe(compound_coef, normalization="outside")
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    header = network.classifier.header.pointwise_conv.conv

    with torch.no_grad():
        # Batch norm statistics of images: with others, the outputs would hardly depend on the image. Larger images,
        # because the statistics of the smallest do not fit other sizes.
        height, width = metadata.image_size
        for norm in norms:
            norm.train().momentum = 1.0
        network(images(metadata, 2, 2 * height, 2 * width))
        for norm in norms:
            norm.eval().running_var.clamp_(min=0.1)  # a smaller one would amplify rounding errors
        batch = images(metadata)
        outputs = network(batch)
        header.weight *= 2 / outputs.class_logits[0].amax(dim=-1).std()  # low and high scores
        network.regressor.header.pointwise_conv.conv.weight *= 0.3 / outputs.box_deltas.std()  # boxes inside the image
        best = network(batch).class_logits[0].amax(dim=-1)
        header.bias += math.log(0.05 / 0.95) - best.sort(descending=True).values[300]
    return network


def describe(compound_coef: int = 0, **changes: object) -> Metadata:
    """Return metadata of the smallest input, raw outputs, float32 and normalization inside, except for `changes`."""
    config, project = model_config(compound_coef), small_project()
    metadata = Metadata(
        compound_coef=compound_coef,
        class_names=project.class_names,
        mean=project.mean,
        std=project.std,
        normalization="inside",
        image_size=(config.size_divisor, config.size_divisor),
        dynamic=False,
        size_divisor=config.size_divisor,
        padding=(124, 116, 104),
        precision="float32",
        suppression=None,
        pyramid_levels=config.pyramid_levels,
        anchor_scale=config.anchor_scale,
        anchor_scales=project.anchor_scales,
        anchor_ratios=project.anchor_ratios,
    )
    return replace(metadata, **changes)


def images(metadata: Metadata, number: int = 1, height: int | None = None, width: int | None = None) -> Tensor:
    """Return smooth noise (N, 3, H, W) for the file's input, by default in its size."""
    height, width = height or metadata.image_size[0], width or metadata.image_size[1]
    coarse = torch.rand(number, 3, height // 16, width // 16, generator=torch.Generator().manual_seed(0))
    pixels = torch.nn.functional.interpolate(coarse, size=(height, width), mode="bilinear")
    if metadata.normalization == "inside":
        return (255 * pixels).to(torch.uint8)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (metadata.mean, metadata.std))
    return (pixels - mean) / std
