"""Every network of the family reproduces the reference's recorded outputs, anchors, pyramid and detections.

`python -m pytest tests/model/test_golden.py -s` prints the largest errors of each network: those of outputs and anchors
relative to the standard deviation of the recorded array, those of the pyramid's means and of the detections' scores
relative to the recorded number, and those of the detections' boxes relative to the largest coordinate of the box.
"""

from typing import NamedTuple

import numpy as np
import pytest
import torch
from golden_fill import fill, normal_array, recorded

from efficientdet.model.network import EfficientDet
from efficientdet.model.postprocess import postprocess
from efficientdet.structures import Detections, Outputs
from efficientnet.model import MBConvBlock

TOLERANCE = 1e-5


class Case(NamedTuple):
    """The recorded and the computed numbers of one network."""

    recorded: dict[str, np.ndarray]
    train_outputs: Outputs
    outputs: Outputs
    pyramid: list[torch.Tensor]
    detections: Detections


# D0 and D8 differ most, and also run under the oldest PyTorch.
OLDEST = {0: pytest.mark.oldest, 8: pytest.mark.oldest}
COEFFICIENTS = [pytest.param(coef, marks=OLDEST.get(coef, ()), id=f"D{coef}") for coef in range(9)]


@pytest.fixture(scope="module", params=COEFFICIENTS)
def case(request) -> Case:
    numbers = recorded(f"forward_d{request.param}.npz")
    height, width = map(int, numbers["input_hw"])
    with torch.device("meta"):
        network = EfficientDet(request.param, num_classes=3)
    fill(network)
    for module in network.modules():
        if isinstance(module, MBConvBlock):
            module.drop_rate = 0.0
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = 1.0

    images = torch.from_numpy(normal_array("batch", (2, 3, height, width))).double()
    with torch.no_grad():
        train_outputs = network.train()(images)
        network.eval()
        pyramid = network.features(images[:1])
        outputs = Outputs(network.classifier(pyramid), network.regressor(pyramid), network.anchors(images))
    found = postprocess(outputs, height, width, score_threshold=0.5, iou_threshold=0.5)[0]
    result = Case(numbers, train_outputs, outputs, pyramid, found)
    print(f"\nD{request.param}:", ", ".join(f"{name} {error:.1e}" for name, error in errors(result).items()))
    return result


def errors(case: Case) -> dict[str, float]:
    """Return the largest error of each recorded array, in the units given at the top of this file."""
    numbers, step = case.recorded, int(case.recorded["step"])
    every_anchor = {
        "train_regression": case.train_outputs.box_deltas,
        "train_classification": case.train_outputs.class_logits.sigmoid(),
        "regression": case.outputs.box_deltas,
        "classification": case.outputs.class_logits.sigmoid(),
        "anchors": case.outputs.anchors[None],
    }
    result = {}
    for name, values in every_anchor.items():
        expected = numbers[name]
        computed = values[:, ::step].numpy().reshape(expected.shape)
        result[name] = np.abs(computed - expected).max() / expected.std()

    means = np.array([level.abs().mean().item() for level in case.pyramid])
    result["feature_mean_abs"] = np.abs(means / numbers["feature_mean_abs"] - 1).max()

    count = len(numbers["det_scores"])
    scores, boxes = case.detections.scores[:count].numpy(), case.detections.boxes[:count].numpy()
    result["det_scores"] = np.abs(scores / numbers["det_scores"] - 1).max()
    box_scale = np.abs(numbers["det_boxes"]).max(axis=1, keepdims=True)  # some reach 1e5 pixels
    result["det_boxes"] = (np.abs(boxes - numbers["det_boxes"]) / box_scale).max()
    return result


def test_numbers_equal_the_recorded_ones(case):
    assert {name: error for name, error in errors(case).items() if not error <= TOLERANCE} == {}


def test_number_of_anchors_and_outputs_equals_the_recorded_one(case):
    count = int(case.recorded["num_anchors"])
    assert case.outputs.anchors.shape == (count, 4)
    assert case.outputs.box_deltas.shape == (1, count, 4)
    assert case.train_outputs.class_logits.shape == (2, count, 3)


def test_number_of_detections_equals_the_recorded_one(case):
    assert len(case.detections) == int(case.recorded["detections"])


def test_detected_classes_equal_the_recorded_ones(case):
    expected = case.recorded["det_classes"]
    np.testing.assert_array_equal(case.detections.class_ids[: len(expected)].numpy(), expected)
