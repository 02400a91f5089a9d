"""What ours is measured against computes the same."""

import copy

import numpy as np
import pytest
import torch

from efficientdet.benchmark.baselines import (
    baseline_detections,
    baseline_evaluation,
    baseline_loss,
    baseline_postprocess,
    baseline_prepare,
    baseline_step,
)
from efficientdet.benchmark.inputs import random_image, random_outputs, random_targets, realistic_weights
from efficientdet.config import EVALUATION_IOU_THRESHOLD, EVALUATION_SCORE_THRESHOLD
from efficientdet.data.dataset import CocoDataset
from efficientdet.data.loader import Batch
from efficientdet.data.transforms import Letterbox
from efficientdet.inference.dataset import detect_dataset
from efficientdet.inference.detector import DetectionOptions, Detector
from efficientdet.model.loss import DetectionLoss
from efficientdet.model.network import EfficientDet
from efficientdet.model.postprocess import postprocess
from efficientdet.project import Project, load_project
from efficientdet.structures import Outputs, Targets
from efficientdet.training.optimization import make_optimizer
from efficientdet.training.recipe import RECIPES
from efficientdet.training.step import TrainingStep
from utils.stopwatch import Stopwatch

CPU = torch.device("cpu")
SIDE = 256
THRESHOLDS = EVALUATION_SCORE_THRESHOLD, EVALUATION_IOU_THRESHOLD


def finding_network(project: Project) -> EfficientDet:
    """A D0 that finds something at SIDE x SIDE."""
    network = EfficientDet(0, project.num_classes, project.anchor_ratios, project.anchor_scales).eval()
    network.load_state_dict(realistic_weights(0, SIDE, project, CPU))
    return network


@pytest.mark.parametrize("objects", [0, 3])
def test_loss(objects):
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    corners = torch.rand(500, 2, generator=generator, dtype=torch.float64) * 40
    anchors = torch.cat((corners, corners + 20), dim=1)
    logits, deltas = (3 * random(2, 500, 5) - 2).requires_grad_(), random(2, 500, 4).requires_grad_()
    boxes = torch.tensor([[10.0, 10, 28, 30], [30, 5, 52, 25], [20, 30, 40, 51]])[:objects].expand(2, -1, -1)
    truth = Targets(boxes, torch.tensor([[4, 0, 2], [1, -1, -1]])[:, :objects])
    results = []
    for loss in (DetectionLoss(empty_image_normalizer=1), baseline_loss):
        losses = loss(Outputs(logits, deltas, anchors), truth)
        gradients = torch.autograd.grad(losses.total, (logits, deltas), materialize_grads=True)
        results.append((*losses, *gradients))
    assert (results[0][1] > 0) == (objects > 0)
    for ours, baselines in zip(*results):
        torch.testing.assert_close(ours, baselines, rtol=1e-10, atol=1e-14)


def test_training_step():
    torch.manual_seed(0)
    images, targets = torch.randn(2, 3, 128, 128, dtype=torch.float64), random_targets(2, 128, CPU)
    network = EfficientDet().double().train()
    before, other = copy.deepcopy(network.state_dict()), copy.deepcopy(network)

    torch.manual_seed(1)  # which blocks are dropped
    TrainingStep(network, DetectionLoss(), make_optimizer(RECIPES["reference"], network))(
        [Batch(images, targets, letterboxes=[], image_ids=[])]
    )
    torch.manual_seed(1)
    baseline_step(other, images, targets)()
    for (name, ours), baselines in zip(network.state_dict().items(), other.state_dict().values()):
        torch.testing.assert_close(ours, baselines, rtol=1e-6, atol=1e-7, msg=name)
    key = "classifier.header.pointwise_conv.conv.weight"
    assert not torch.equal(before[key], network.state_dict()[key])


def test_prepared_image():
    project = load_project("shapes")
    rng = np.random.default_rng(0)
    for shape in ((90, 160), (300, 200)):  # enlarged, and made smaller
        picture, letterbox = rng.integers(0, 256, (*shape, 3), np.uint8), Letterbox.fit(shape, (256, 256))
        ours = letterbox.apply(picture, project.mean, project.std)
        np.testing.assert_allclose(baseline_prepare(picture, letterbox, project), ours, atol=2e-6)


@pytest.mark.parametrize("mean", [-50.0, -5.5])
def test_postprocessing(mean):
    torch.manual_seed(0)
    outputs = random_outputs(0, 128, 2, CPU, torch.float32, mean, std=1.0)
    ours = postprocess(outputs, 128, 128, *THRESHOLDS)
    for found, expected in zip(ours, baseline_postprocess(outputs, 128, 128, THRESHOLDS[0]), strict=True):
        assert (len(found) > 3) == (mean == -5.5)
        torch.testing.assert_close(found.boxes, expected.boxes)
        torch.testing.assert_close(found.scores, expected.scores)
        assert torch.equal(found.class_ids, expected.class_ids)


def test_detections():
    project, pictures = load_project("shapes"), [random_image(), random_image()[:, ::-1]]
    network, stopwatch = finding_network(project), Stopwatch()
    ours = Detector(network, project, CPU, SIDE)(pictures, *THRESHOLDS, batch_size=2)
    baselines = baseline_detections(network, pictures, (SIDE, SIDE), project, stopwatch)
    assert stopwatch.seconds.keys() == {"post-processing"}
    for found, expected in zip(ours, baselines, strict=True):
        assert len(found) > 20
        torch.testing.assert_close(found.scores[:10], expected.scores[:10], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(found.boxes[:10], expected.boxes[:10], rtol=1e-3, atol=0.01)


def test_evaluation(shapes_project):
    project = load_project(shapes_project.yml)
    dataset = CocoDataset(shapes_project.data, "val", project, (SIDE, SIDE))
    network = finding_network(project)
    options = DetectionOptions(*THRESHOLDS)
    ours = detect_dataset(Detector(network, project, CPU, SIDE), dataset, options, 2, 0, Stopwatch())
    baselines = baseline_evaluation(network, dataset, Stopwatch())
    assert len(ours) > 3
    for image_id in dataset.image_ids:
        best = [
            max((entry["score"] for entry in results if entry["image_id"] == image_id), default=0.0)
            for results in (ours, baselines)
        ]
        assert best[0] == pytest.approx(best[1], rel=1e-3)
