"""Validation passes, and means of losses."""

import copy
import math

import pytest
import torch
from scripts import untrained
from tiny import TinyNetwork, tiny_batch
from torch import Tensor, nn
from tqdm import tqdm

from efficientdet.data.dataset import CocoDataset
from efficientdet.data.loader import Batch, collate
from efficientdet.data.transforms import Letterbox
from efficientdet.model.loss import DetectionLoss, Losses
from efficientdet.project import load_project
from efficientdet.structures import PADDING_CLASS, Outputs, Targets
from efficientdet.training.step import set_training_mode
from efficientdet.training.validation import LossMean, _predict, validate
from utils.stop import StopRequest

CPU = torch.device("cpu")


class FixedNetwork(nn.Module):
    """Predicts the same for every image: one anchor (0, 0, 64, 32) with an object of class 1 at `logit`."""

    def __init__(self, logit: float):
        super().__init__()
        self.class_logits = torch.tensor([[[-20.0, logit]]])

    def forward(self, images: Tensor) -> Outputs:
        anchors = torch.tensor([[0.0, 0.0, 32.0, 64.0]])  # yxyx
        return Outputs(self.class_logits.expand(len(images), -1, -1), torch.zeros(len(images), 1, 4), anchors)


@pytest.fixture
def dataset(shapes_project):
    return CocoDataset(shapes_project.data, "train", load_project(shapes_project.yml), (128, 128))


@pytest.fixture
def evaluate(dataset):
    """A function that validates a network on batches of `dataset`'s images: `evaluate(network, batches)`."""

    def evaluate(network, batches, amp=None, stop=None):
        bar = tqdm(disable=True)
        return validate(network, DetectionLoss(), batches, dataset, CPU, amp, stop or StopRequest(), bar)

    return evaluate


def losses(classification: float, regression: float) -> Losses:
    return Losses(torch.tensor(classification), torch.tensor(regression))


# Validation.


def test_validation_of_nothing(evaluate):
    validated = evaluate(TinyNetwork(), [])
    assert validated.losses.images == 0 and validated.shown == {}
    assert validated.ap == 0  # the set has objects, and none was found


def test_losses_and_detections_by_hand():
    # 101 x 256 pixels become 50 x 128 at the top left of 128 x 128; the second image is the input itself.
    letterboxes = [Letterbox.fit((101, 256), (128, 128)), Letterbox.fit((128, 128), (128, 128))]
    objects = Targets(torch.tensor([[[0.0, 0.0, 64.0, 32.0]]]).repeat(2, 1, 1), torch.tensor([[1], [PADDING_CLASS]]))
    batch = Batch(torch.zeros(2, 3, 128, 128), objects, letterboxes, [5, 6])
    loss = DetectionLoss(empty_image_normalizer=2.0)

    # The object is found at 0.25 * (1 - p) ** 2 * -log p; in the empty image 0.75 * p ** 2 * -log(1 - p), divided by 2.
    # A score of 1e-4 or less counts as 1e-4 and costs 7.5e-13.
    even, detections = _predict(FixedNetwork(0.0), loss, batch, None)
    expected = (0.25 * 0.25 * math.log(2) + 0.75 * 0.25 * math.log(2) / 2) / 2
    assert even.classification.item() == pytest.approx(expected, rel=1e-5)
    assert even.regression == 0
    assert [len(found) for found in detections] == [1, 1]
    torch.testing.assert_close(detections[0].boxes, torch.tensor([[0.0, 0.0, 128.0, 32 * 101 / 50]]))
    torch.testing.assert_close(detections[1].boxes, torch.tensor([[0.0, 0.0, 64.0, 32.0]]))
    assert all(found.class_ids.tolist() == [1] and found.scores.tolist() == [0.5] for found in detections)

    # A score of 0.03 is below the evaluation's threshold.
    unsure, detections = _predict(FixedNetwork(-3.5), loss, batch, None)
    assert unsure.classification > even.classification
    assert [len(found) for found in detections] == [0, 0]


def test_first_images_are_shown(dataset, evaluate):
    validated = evaluate(FixedNetwork(0.0), [collate([dataset[0], dataset[1]]), collate([dataset[2]])])
    assert validated.losses.images == 3
    assert list(validated.shown) == dataset.image_ids[:3]
    assert [len(found) for found in validated.shown.values()] == [1, 1, 1]


def test_network_is_left_unchanged_in_evaluation_mode(dataset, evaluate):
    network = TinyNetwork()
    before = copy.deepcopy(network.state_dict())
    evaluate(network, [collate([dataset[0], dataset[1]])])
    torch.testing.assert_close(network.state_dict(), before, rtol=0, atol=0)
    assert not network.training and not network.norm.training
    assert torch.is_grad_enabled()
    set_training_mode(network)
    assert network.norm.training


def test_a_request_to_stop_ends_validation_without_a_result(dataset, evaluate):
    stop = StopRequest()
    stop.received = True
    assert evaluate(TinyNetwork(), [collate([dataset[0]])], stop=stop) is None


def test_losses_do_not_depend_on_the_batch_size(evaluate):
    whole = tiny_batch(images=3)
    parts = [whole.first(2), Batch(whole.images[2:], whole.first(1).targets, whole.letterboxes[2:], [2])]
    network = TinyNetwork()
    means = []
    for batches in ([whole], parts):
        mean = LossMean()
        for batch in batches:
            mean.add(len(batch.image_ids), _predict(network.eval(), DetectionLoss(), batch, None)[0])
        means.append(mean)
    assert means[0].images == means[1].images == 3
    assert means[0].total == pytest.approx(means[1].total, rel=1e-5)


def test_bfloat16_is_close_to_float32():
    network = TinyNetwork().eval()
    exact, near = (_predict(network, DetectionLoss(), tiny_batch(), amp)[0].total for amp in (None, torch.bfloat16))
    assert near.dtype == torch.float32 and near != exact and not exact.requires_grad
    assert near.item() == pytest.approx(exact.item(), rel=0.03)


def test_validation_with_the_real_network(dataset, evaluate):
    validated = evaluate(untrained(), [collate([dataset[2]])])
    assert math.isfinite(validated.losses.total)
    assert [len(found) for found in validated.shown.values()] == [0]  # initial scores are about 0.01


# Means of losses.


def test_mean_of_no_losses_is_zero():
    assert (LossMean().classification, LossMean().regression, LossMean().total) == (0, 0, 0)
    assert vars(LossMean.merged([])) == vars(LossMean())


def test_mean_weighs_batches_by_their_images():
    mean = LossMean()
    mean.add(3, losses(1.0, 10.0))
    mean.add(1, losses(5.0, 2.0))
    assert (mean.images, mean.classification_sum, mean.regression_sum) == (4, 8.0, 32.0)
    assert (mean.classification, mean.regression, mean.total) == (2.0, 8.0, 10.0)


def test_merged_means_weigh_every_image_alike():
    merged = LossMean.merged([LossMean(3, 3.0, 30.0), LossMean(), LossMean(1, 5.0, 2.0)])
    assert (merged.images, merged.classification, merged.regression) == (4, 2.0, 8.0)


def test_mean_continues_from_its_saved_attributes():
    whole, first = LossMean(), LossMean()
    for mean in (whole, first):
        mean.add(3, losses(1.25, 10.1))
    second = LossMean(**vars(first))
    for mean in (whole, second):
        mean.add(5, losses(0.3, 0.7))
    assert vars(second) == vars(whole)
