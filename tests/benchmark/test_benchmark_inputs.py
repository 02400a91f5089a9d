"""Random images, weights, outputs and targets resemble real ones."""

import numpy as np
import torch
from contenders import contender

from efficientdet.benchmark.workloads import (
    CANDIDATES,
    IMAGE_SIZE,
    OBJECTS,
    random_image,
    random_outputs,
    random_targets,
    realistic_weights,
)
from efficientdet.config import EVALUATION_SCORE_THRESHOLD
from efficientdet.data.transforms import Letterbox
from efficientdet.model.network import EfficientDet
from efficientdet.project import load_project

CPU = torch.device("cpu")


def test_image_is_smooth_and_always_the_same():
    image = random_image()
    assert (image.shape, image.dtype) == ((*IMAGE_SIZE, 3), np.uint8)
    assert np.array_equal(image, random_image())
    assert image.std() > 50
    assert np.abs(np.diff(image.astype(int), axis=1)).mean() < 5


def test_weights_let_a_thousand_anchors_pass_the_threshold():
    project = load_project("coco")
    network = EfficientDet().eval()
    network.load_state_dict(realistic_weights(contender("forward", "fused")))
    pixels = Letterbox.fit(IMAGE_SIZE, (128, 128)).apply(random_image(), project.mean, project.std)
    images = torch.from_numpy(pixels)[None].permute(0, 3, 1, 2)
    with torch.no_grad():
        logits, deltas, _ = network(images)
        coarse = network.bfloat16()(images.bfloat16())
    passed = (logits.sigmoid().amax(dim=-1) > EVALUATION_SCORE_THRESHOLD).sum().item()
    assert abs(passed - CANDIDATES) <= 2
    assert 0.01 < logits.std() < 10 and 0.01 < deltas.std() < 10
    passed = (coarse.class_logits.sigmoid().amax(dim=-1) > EVALUATION_SCORE_THRESHOLD).sum().item()
    assert abs(passed - CANDIDATES) < CANDIDATES / 4  # about as much work in half precision


def test_outputs_match_the_anchors_of_the_network():
    outputs = random_outputs(contender("loss", "fused", "bf16"), mean=-3.0, std=0.5)
    anchors = 9 * (16**2 + 8**2 + 4**2 + 2**2 + 1)
    assert outputs.class_logits.shape == (2, anchors, 90)
    assert outputs.box_deltas.shape == (2, anchors, 4)
    assert outputs.anchors.shape == (anchors, 4)
    assert outputs.class_logits.dtype == torch.bfloat16
    assert abs(outputs.class_logits.float().mean() + 3) < 0.01


def test_targets_lie_within_the_input():
    boxes, class_ids = random_targets(contender("loss", "fused"))
    assert boxes.shape == (2, OBJECTS, 4) and class_ids.shape == (2, OBJECTS)
    assert boxes.min() >= 0 and boxes.max() <= 128
    assert (boxes[..., 2:] > boxes[..., :2]).all()
    assert class_ids.min() >= 0 and class_ids.max() < 90
