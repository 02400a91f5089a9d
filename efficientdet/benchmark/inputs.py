"""Random images, weights, outputs and targets that take as much work as real ones. The same each time."""

import math

import cv2
import numpy as np
import torch
from torch import Tensor, nn

from efficientdet.config import EVALUATION_SCORE_THRESHOLD
from efficientdet.data.transforms import Letterbox
from efficientdet.model.network import EfficientDet
from efficientdet.project import Project
from efficientdet.structures import Outputs, Targets

IMAGE = (480, 640)  # height and width, pixels
CANDIDATES = 1000  # anchors of an image that random weights let pass the threshold of evaluation
NUM_CLASSES = 90
OBJECTS = 8  # per image


@torch.inference_mode()
def realistic_weights(compound_coef: int, side: int, project: Project, device: torch.device) -> dict[str, Tensor]:
    """Random weights of a network that finds CANDIDATES anchors in `random_image()`, on the CPU.

    Fresh weights would let the activations vanish from layer to layer. Here the batch norms keep them in scale.
    """
    torch.manual_seed(0)
    network = EfficientDet(compound_coef, project.num_classes, project.anchor_ratios, project.anchor_scales)
    picture = random_image()
    pixels = Letterbox.fit(picture.shape[:2], (side, side)).apply(picture, project.mean, project.std)
    image = torch.from_numpy(pixels)[None].permute(0, 3, 1, 2).to(device)
    network.to(device)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0  # of this very image
    network.train()(torch.cat((image, image.flip(-1))))  # two, since the top of a small pyramid is a single cell
    logits = network.eval()(image).class_logits[0].amax(dim=-1)
    least = logits.sort(descending=True).values[CANDIDATES]
    threshold = math.log(EVALUATION_SCORE_THRESHOLD / (1 - EVALUATION_SCORE_THRESHOLD))
    network.classifier.header.get_parameter("pointwise_conv.conv.bias").add_(threshold - least)
    return {key: tensor.cpu() for key, tensor in network.state_dict().items()}


def random_image() -> np.ndarray:
    """An image (H, W, 3) uint8 RGB of smooth noise, the same each time."""
    coarse = np.random.default_rng(0).integers(0, 256, (IMAGE[0] // 40, IMAGE[1] // 40, 3), np.uint8)
    return cv2.resize(coarse, IMAGE[::-1], interpolation=cv2.INTER_CUBIC)


def random_outputs(
    compound_coef: int,
    side: int,
    batch_size: int,
    device: torch.device,
    dtype: torch.dtype,
    mean: float,
    std: float,
) -> Outputs:
    """What a network might say of a batch: normal class logits of this mean and deviation, and box deltas."""
    with torch.device("meta"):
        network = EfficientDet(compound_coef, NUM_CLASSES)
    anchors = network.anchors(torch.empty(1, 3, side, side, device=device))
    shape = (batch_size, len(anchors))
    logits = torch.empty(*shape, NUM_CLASSES, dtype=dtype, device=device).normal_(mean, std)
    return Outputs(logits, torch.empty(*shape, 4, dtype=dtype, device=device).normal_(0.0, 0.5), anchors)


def random_targets(batch_size: int, side: int, device: torch.device) -> Targets:
    """Boxes from 16 pixels to half the input long, up to twice as long as wide or high, cut at the border."""
    shape = (batch_size, OBJECTS, 1)
    lengths = 16 * (side / 32) ** torch.rand(shape)
    stretch = 2 ** (torch.rand(shape) - 0.5)
    sizes = torch.cat((lengths * stretch, lengths / stretch), dim=-1)
    centres = side * torch.rand(batch_size, OBJECTS, 2)
    boxes = torch.cat((centres - sizes / 2, centres + sizes / 2), dim=-1).clamp(0, side)
    class_ids = torch.randint(NUM_CLASSES, (batch_size, OBJECTS))
    return Targets(boxes.to(device), class_ids.to(device))
