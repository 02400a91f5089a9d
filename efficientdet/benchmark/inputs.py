"""Random images, weights, outputs and targets that cost as much work as real ones. They are the same in each run."""

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

IMAGE_SIZE = (480, 640)  # (height, width) in pixels
CANDIDATES = 1000  # anchors per image above the score threshold of evaluation, with random weights
NUM_CLASSES = 90
OBJECTS = 8  # per image


def random_image() -> np.ndarray:
    """Return an image (H, W, 3) uint8 RGB of smooth noise."""
    coarse = np.random.default_rng(0).integers(0, 256, (IMAGE_SIZE[0] // 40, IMAGE_SIZE[1] // 40, 3), np.uint8)
    return cv2.resize(coarse, IMAGE_SIZE[::-1], interpolation=cv2.INTER_CUBIC)


@torch.inference_mode()
def realistic_weights(compound_coef: int, side: int, project: Project, device: torch.device) -> dict[str, Tensor]:
    """Return random weights, on the CPU, with which CANDIDATES anchors of `random_image()` pass the threshold.

    With freshly initialised weights, activations would vanish layer by layer. Here batch norms keep them in scale.
    """
    torch.manual_seed(0)
    network = EfficientDet(compound_coef, project.num_classes, project.anchor_ratios, project.anchor_scales).to(device)
    pixels = Letterbox.fit(IMAGE_SIZE, (side, side)).apply(random_image(), project.mean, project.std)
    image = torch.from_numpy(pixels)[None].permute(0, 3, 1, 2).to(device)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0  # the statistics of this image alone
    network.train()(torch.cat((image, image.flip(-1))))  # two, since the top of a small pyramid is a single cell
    logits = network.eval()(image).class_logits[0].amax(dim=-1)
    threshold = math.log(EVALUATION_SCORE_THRESHOLD / (1 - EVALUATION_SCORE_THRESHOLD))
    shift = threshold - logits.sort(descending=True).values[CANDIDATES]
    network.classifier.header.get_parameter("pointwise_conv.conv.bias").add_(shift)
    return {key: tensor.cpu() for key, tensor in network.state_dict().items()}


def random_outputs(
    compound_coef: int, side: int, batch_size: int, device: torch.device, dtype: torch.dtype, mean: float, std: float
) -> Outputs:
    """Return the outputs of an imaginary network: class logits of this mean and standard deviation, and box deltas."""
    with torch.device("meta"):
        network = EfficientDet(compound_coef, NUM_CLASSES)
    anchors = network.anchors(torch.empty(1, 3, side, side, device=device))
    logits = torch.empty(batch_size, len(anchors), NUM_CLASSES, dtype=dtype, device=device).normal_(mean, std)
    deltas = torch.empty(batch_size, len(anchors), 4, dtype=dtype, device=device).normal_(0.0, 0.5)
    return Outputs(logits, deltas, anchors)


def random_targets(batch_size: int, side: int, device: torch.device) -> Targets:
    """Return boxes from 16 pixels to half the input's side, with aspect ratios of up to 2, clipped to the input."""
    shape = (batch_size, OBJECTS, 1)
    lengths = 16 * (side / 32) ** torch.rand(shape)
    stretch = 2 ** (torch.rand(shape) - 0.5)
    sizes = torch.cat((lengths * stretch, lengths / stretch), dim=-1)
    centres = side * torch.rand(batch_size, OBJECTS, 2)
    boxes = torch.cat((centres - sizes / 2, centres + sizes / 2), dim=-1).clamp(0, side)
    class_ids = torch.randint(NUM_CLASSES, (batch_size, OBJECTS))
    return Targets(boxes.to(device), class_ids.to(device))
