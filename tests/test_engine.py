"""Training steps, validation passes, and the wish to stop."""

import os
import signal

import pytest
import torch
from scripts import untrained

from efficientdet.dataset import BatchLoader, CocoDataset, collate
from efficientdet.engine import LossMean, StopRequest, set_training_mode, train_step, validate
from efficientdet.loss import DetectionLoss, Losses
from efficientdet.project import load_project
from utils.errors import InputError


@pytest.fixture
def dataset(shapes_project):
    return CocoDataset(shapes_project.data, "train", load_project(shapes_project.yml), (128, 128))


def copy_of(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {key: value.clone() for key, value in state.items()}


def losses(classification: float, regression: float) -> Losses:
    return Losses(torch.tensor(classification), torch.tensor(regression))


def test_training_lowers_the_loss_of_a_batch(dataset):
    network = untrained()
    set_training_mode(network, head_only=False)
    optimizer = torch.optim.AdamW(network.parameters(), 1e-3)
    batch = collate([dataset[0], dataset[1]])
    totals = []
    for _ in range(8):
        step_losses, outputs = train_step(network, DetectionLoss(), optimizer, batch)
        assert not step_losses.total.requires_grad
        assert outputs.class_logits.shape[0] == 2
        totals.append(step_losses.total.item())
    assert totals[-1] < 0.8 * totals[0], totals


def test_batch_without_objects_is_trained_on(dataset):
    network = untrained()
    set_training_mode(network, head_only=False)
    step_losses, _ = train_step(
        network, DetectionLoss(), torch.optim.SGD(network.parameters(), 1e-4), collate([dataset[2], dataset[2]])
    )
    assert step_losses.regression.item() == 0 and 0 < step_losses.classification.item() < 1e3


@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
def test_loss_that_is_not_finite_names_the_images_and_leaves_the_weights(dataset, poison):
    network = untrained()
    set_training_mode(network, head_only=False)
    optimizer = torch.optim.AdamW(network.parameters(), 1e-3)
    batch = collate([dataset[0], dataset[1]])
    batch.images[0, 0, 0, 0] = poison
    before = copy_of(dict(network.named_parameters()))
    with pytest.raises(InputError, match=r"\[11, 12\].*--lr"):
        train_step(network, DetectionLoss(), optimizer, batch)
    assert all(torch.equal(parameter, before[name]) for name, parameter in network.named_parameters())
    assert not optimizer.state


def test_head_only_trains_the_heads_alone(dataset):
    network = untrained()
    set_training_mode(network, head_only=True)
    trainable = [parameter for parameter in network.parameters() if parameter.requires_grad]
    before = copy_of(network.state_dict())
    train_step(network, DetectionLoss(), torch.optim.AdamW(trainable, 1e-2), collate([dataset[0], dataset[1]]))
    after = network.state_dict()
    for key, value in before.items():
        in_heads = key.startswith(("regressor.", "classifier."))
        # The fourth and fifth level are single pixels and their heads see objects seldom: ask for the shared parts.
        if not in_heads:
            assert torch.equal(value, after[key]), f"{key} is frozen"
        elif "conv_list" in key or "header" in key or "num_batches_tracked" in key:
            assert not torch.equal(value, after[key]), f"{key} is trained"


def test_training_mode_is_restored_after_validation(dataset):
    network = untrained()
    list(validate(network, DetectionLoss(), [collate([dataset[0]])], torch.device("cpu")))
    assert not network.training
    set_training_mode(network, head_only=True)
    assert network.regressor.training and network.classifier.training
    assert not any(module.training for part in (network.backbone_net, network.bifpn) for module in part.modules())
    set_training_mode(network, head_only=False)
    assert all(module.training for module in network.modules())


def test_validation_of_nothing_gives_nothing():
    assert list(validate(untrained(), DetectionLoss(), [], torch.device("cpu"))) == []


def test_validation_counts_every_image_and_changes_nothing(dataset):
    network = untrained()
    before = copy_of(network.state_dict())
    in_fours = list(validate(network, DetectionLoss(), BatchLoader(dataset, 4, 0), torch.device("cpu")))
    assert [images for images, _ in in_fours] == [4, 2]
    mean = LossMean()
    for images, batch_losses in in_fours:
        assert not batch_losses.total.requires_grad
        mean.add(images, batch_losses)
    assert mean.images == 6
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())

    one_by_one = LossMean()
    for images, batch_losses in validate(network, DetectionLoss(), BatchLoader(dataset, 1, 0), torch.device("cpu")):
        one_by_one.add(images, batch_losses)
    assert mean.total == pytest.approx(one_by_one.total, rel=1e-4)


def test_mean_of_no_losses_is_zero():
    assert (LossMean().classification, LossMean().regression, LossMean().total) == (0, 0, 0)


def test_mean_weighs_batches_by_their_images():
    mean = LossMean()
    mean.add(3, losses(1.0, 10.0))
    mean.add(1, losses(5.0, 2.0))
    assert (mean.images, mean.classification, mean.regression, mean.total) == (4, 2.0, 8.0, 10.0)


def test_mean_goes_on_from_its_state():
    whole, first = LossMean(), LossMean()
    for mean in (whole, first):
        mean.add(3, losses(1.25, 10.0))
    second = LossMean(**first.state())
    assert second.state() == first.state()
    for mean in (whole, second):
        mean.add(5, losses(0.3, 0.7))
    assert second.state() == pytest.approx(whole.state())


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signal_is_remembered_and_handlers_are_put_back(number):
    handlers = [signal.getsignal(other) for other in (signal.SIGINT, signal.SIGTERM)]
    with StopRequest() as stop:
        assert not stop.received
        os.kill(os.getpid(), number)
        assert stop.received
    assert [signal.getsignal(other) for other in (signal.SIGINT, signal.SIGTERM)] == handlers


def test_second_interrupt_stops_at_once():
    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt), StopRequest():
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is handler


def test_handlers_are_put_back_after_an_error():
    handler = signal.getsignal(signal.SIGTERM)
    with pytest.raises(ZeroDivisionError), StopRequest():
        _ = 1 / 0
    assert signal.getsignal(signal.SIGTERM) is handler
