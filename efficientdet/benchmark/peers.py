"""Detectors of other packages, which ours is measured against: with random weights, in the way of their own users."""

import importlib.util
import warnings
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from efficientdet.checkpoints.effdet import effdet_name
from efficientdet.data.transforms import Letterbox
from efficientdet.project import Project
from utils.errors import InputError

PEERS = ("effdet", "torchvision")
# What each makes of an image of 640 x 480 pixels by itself: (height, width) of its input.
TORCHVISION_MODELS = {
    "retinanet_resnet50_fpn_v2": (800, 1066),
    "ssdlite320_mobilenet_v3_large": (320, 320),
    "fasterrcnn_mobilenet_v3_large_320_fpn": (320, 426),
}


def require_peer(name: str) -> None:
    """InputError when the package `name` is not installed."""
    if importlib.util.find_spec(name) is None:
        raise InputError(f"--compare {name} needs that package: pip install {name}")


def effdet_network(compound_coef: int, side: int, device: torch.device, bench_task: str = "") -> nn.Module:
    """The same coefficient; `bench_task` "predict" adds the post-processing."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of its scripted functions, which torch is about to drop
        from effdet import create_model

    name = effdet_name(compound_coef)
    model = create_model(
        name, bench_task=bench_task, pretrained=False, pretrained_backbone=False, image_size=(side, side)
    )
    return model.eval().to(device)


@torch.inference_mode()
def effdet_detections(model: nn.Module, pictures: Sequence[np.ndarray], side: int, project: Project) -> Tensor:
    """Images (H, W, 3) uint8 RGB -> (N, 100, 6): x1, y1, x2, y2 in their pixels, score, class."""
    device = next(model.parameters()).device
    letterboxes = [Letterbox.fit(picture.shape[:2], (side, side)) for picture in pictures]
    pixels = [box.apply(picture, project.mean, project.std) for picture, box in zip(pictures, letterboxes)]
    images = torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2).contiguous().to(device)
    scales = [max(box.original) / max(box.resized) for box in letterboxes]
    sizes = [picture.shape[1::-1] for picture in pictures]  # (width, height)
    info = {"img_scale": torch.tensor(scales, device=device), "img_size": torch.tensor(sizes, device=device)}
    return model(images, info).cpu()


def torchvision_detector(name: str, device: torch.device) -> Callable[[Sequence[np.ndarray]], object]:
    """Images (H, W, 3) uint8 RGB -> their detections, by one of TORCHVISION_MODELS."""
    from torchvision.models import detection

    model = getattr(detection, name)(weights=None, weights_backbone=None).eval().to(device)

    @torch.inference_mode()
    def detect(pictures: Sequence[np.ndarray]) -> list[dict[str, Tensor]]:
        images = [torch.from_numpy(picture).permute(2, 0, 1).to(device).float() / 255 for picture in pictures]
        return [{key: value.cpu() for key, value in found.items()} for found in model(images)]

    return detect
