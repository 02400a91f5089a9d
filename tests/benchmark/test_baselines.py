"""The baselines compute the same as ours; the peers detect in pixels of the images."""

import copy
from functools import partial

import numpy as np
import pytest
import torch
from contenders import contender
from torchvision.models import get_model

from efficientdet.benchmark.baselines import (
    PEERS,
    baseline_detections,
    baseline_evaluation,
    baseline_image,
    baseline_loss,
    baseline_postprocess,
    baseline_step,
    effdet_detections,
    effdet_network,
    torchvision_detections,
    torchvision_network,
)
from efficientdet.benchmark.workloads import IMAGE_SIZE, random_image, random_outputs, random_targets, realistic_weights
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
SIDE = 128
THRESHOLDS = EVALUATION_SCORE_THRESHOLD, EVALUATION_IOU_THRESHOLD


def network_with_detections(project: Project) -> EfficientDet:
    """Return a D0 that detects something at SIDE x SIDE."""
    network = EfficientDet(0, project.num_classes, project.anchor_ratios, project.anchor_scales).eval()
    network.load_state_dict(realistic_weights(contender("eval", "fused", project=project)))
    return network


@pytest.mark.parametrize("objects", [0, 3])
def test_loss_and_gradients_are_equal(objects):
    random = partial(torch.randn, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    corners = random(500, 2).abs() * 20
    anchors = torch.cat((corners, corners + 20), dim=1)
    logits, deltas = (3 * random(2, 500, 5) - 2).requires_grad_(), random(2, 500, 4).requires_grad_()
    boxes = torch.tensor([[10.0, 10, 28, 30], [30, 5, 52, 25], [20, 30, 40, 51]])[:objects].expand(2, -1, -1)
    targets = Targets(boxes, torch.tensor([[4, 0, 2], [1, -1, -1]])[:, :objects])
    results = []
    for loss in (DetectionLoss(empty_image_normalizer=1), baseline_loss):
        losses = loss(Outputs(logits, deltas, anchors), targets)
        gradients = torch.autograd.grad(losses.total, (logits, deltas), materialize_grads=True)
        results.append((*losses, *gradients))
    assert (results[0][1] > 0) == (objects > 0)
    for ours, baselines in zip(*results):
        torch.testing.assert_close(ours, baselines, rtol=1e-10, atol=1e-14)


@pytest.mark.slow
def test_a_training_step_updates_the_network_equally():
    torch.manual_seed(0)
    images, targets = torch.randn(2, 3, SIDE, SIDE, dtype=torch.float64), random_targets(contender("train", "plain"))
    batch = Batch(images, targets, letterboxes=[], image_ids=[])
    network = EfficientDet().double().train()
    before, other = copy.deepcopy(network.state_dict()), copy.deepcopy(network)

    torch.manual_seed(1)  # for drop-connect
    TrainingStep(network, DetectionLoss(), make_optimizer(RECIPES["reference"], network))([batch])
    torch.manual_seed(1)
    baseline_step(other, torch.optim.AdamW(other.parameters(), lr=1e-4), batch)
    for (name, ours), baselines in zip(network.state_dict().items(), other.state_dict().values()):
        torch.testing.assert_close(ours, baselines, rtol=1e-6, atol=1e-7, msg=name)
    key = "classifier.header.pointwise_conv.conv.weight"
    assert not torch.equal(before[key], network.state_dict()[key])


@pytest.mark.parametrize("shape", [(90, 160), (300, 200)])  # enlarged, and shrunk
def test_prepared_images_are_equal(shape):
    project = load_project("shapes")
    image = np.random.default_rng(0).integers(0, 256, (*shape, 3), np.uint8)
    arguments = Letterbox.fit(shape, (256, 256)), image, project.mean, project.std
    np.testing.assert_allclose(baseline_image(*arguments), Letterbox.apply(*arguments), atol=2e-6)


@pytest.mark.parametrize("mean", [-50.0, -5.5])
def test_detections_in_outputs_are_equal(mean):
    torch.manual_seed(0)
    outputs = random_outputs(contender("postprocess", "plain"), mean, std=1.0)
    ours, baselines = postprocess(outputs, SIDE, SIDE, *THRESHOLDS), baseline_postprocess(outputs, SIDE)
    for found, expected in zip(ours, baselines, strict=True):
        assert (len(found) > 3) == (mean == -5.5)
        torch.testing.assert_close(found.boxes, expected.boxes)
        torch.testing.assert_close(found.scores, expected.scores)
        assert torch.equal(found.class_ids, expected.class_ids)


def test_detections_in_images_are_equal():
    project, images = load_project("shapes"), [random_image(), random_image()[:, ::-1]]
    network, stopwatch = network_with_detections(project), Stopwatch()
    ours = Detector(network, project, CPU, SIDE)(images, *THRESHOLDS, batch_size=2)
    baselines = baseline_detections(network, images, SIDE, project, stopwatch)
    assert stopwatch.seconds.keys() == {"post-processing"}
    for found, expected in zip(ours, baselines, strict=True):
        assert len(found) > 20
        torch.testing.assert_close(found.scores[:10], expected.scores[:10], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(found.boxes[:10], expected.boxes[:10], rtol=1e-3, atol=0.01)


def test_best_scores_in_a_data_set_are_equal(shapes_project):
    project = load_project(shapes_project.yml)
    dataset = CocoDataset(shapes_project.data, "val", project, (SIDE, SIDE))
    network = network_with_detections(project)
    detector = Detector(network, project, CPU, SIDE)
    ours = detect_dataset(detector, dataset, DetectionOptions(*THRESHOLDS), 2, 0, Stopwatch())
    baselines = baseline_evaluation(network, dataset)
    assert len(ours) > 3
    for image_id in dataset.image_ids:
        best = [
            max((entry["score"] for entry in results if entry["image_id"] == image_id), default=0.0)
            for results in (ours, baselines)
        ]
        assert best[0] == pytest.approx(best[1], rel=1e-3)


@pytest.mark.parametrize("name", PEERS["torchvision"])
def test_torchvision_resizes_to_the_size_in_its_name(name):
    model = get_model(name.split()[0], weights=None, weights_backbone=None)
    images, _ = model.transform([torch.zeros(3, *IMAGE_SIZE)])
    ((height, width),) = images.image_sizes
    assert name.endswith(f"({width} x {height})")


def test_torchvision_detects():
    network = torchvision_network("ssdlite320_mobilenet_v3_large (320 x 320)", CPU)
    (found,) = torchvision_detections(network, [random_image()])
    assert found["boxes"].shape == (len(found["scores"]), 4)


def test_effdet_detects_in_pixels_of_the_image():
    pytest.importorskip("effdet")
    network = effdet_network(0, SIDE, CPU, "predict")
    found = effdet_detections(network, [random_image()] * 2, SIDE, load_project("coco"))
    assert found.shape == (2, 100, 6)
    corners = found[..., :4].reshape(-1, 2).amax(dim=0)
    assert 600 < corners[0] <= 640 and 450 < corners[1] <= 480  # reaches the border of the image, not of the input
