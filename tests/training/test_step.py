"""Training steps: updates, skipped steps, mixed precision, and what is frozen."""

import copy
import math
from functools import partial

import pytest
import torch
from scripts import untrained
from tiny import TinyNetwork, tiny_batch
from torch import Tensor, nn

from efficientdet.data.dataset import CocoDataset
from efficientdet.data.loader import Batch, collate
from efficientdet.model.loss import DetectionLoss, Losses
from efficientdet.project import load_project
from efficientdet.runtime.modes import compile_network
from efficientdet.structures import PADDING_CLASS, Outputs, Targets
from efficientdet.training.step import StepOutcome, TrainingStep, set_training_mode

LR = 0.01


@pytest.fixture
def dataset(shapes_project):
    return CocoDataset(shapes_project.data, "train", load_project(shapes_project.yml), (128, 128))


def poisoned(value: float) -> Batch:
    batch = tiny_batch()
    batch.images[0, 0, 0, 0] = value
    return batch


def by_hand(network: nn.Module, *micro_batches: Batch) -> tuple[dict[str, Tensor], Losses]:
    """The mean gradient of each parameter and the mean losses of some batches, in float32; `network` stays as it is."""
    gradients, sums = {}, torch.zeros(2)
    twin = copy.deepcopy(network)
    for batch in micro_batches:
        twin.zero_grad()
        found = DetectionLoss()(twin(batch.images), batch.targets)
        found.total.backward()
        for name, parameter in twin.named_parameters():
            if parameter.requires_grad:
                gradients[name] = gradients.get(name, 0) + parameter.grad / len(micro_batches)
        sums += torch.stack(found).detach() / len(micro_batches)
    return gradients, Losses(*sums)


def norm_of(gradients: dict[str, Tensor]) -> float:
    return math.sqrt(sum(gradient.double().square().sum().item() for gradient in gradients.values()))


def adamw(network: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(network.parameters(), LR, fused=True)


def sgd(network: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(network.parameters(), LR)


def sgd_with_momentum(network: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(network.parameters(), LR, momentum=0.9, fused=True)


def parameters(network: nn.Module) -> dict[str, Tensor]:
    return {name: parameter.detach().clone() for name, parameter in network.named_parameters()}


def everything(step: TrainingStep) -> dict:
    """A copy of all that a step could change but its scaler."""
    return copy.deepcopy({"network": step.network.state_dict(), "optimizer": step.optimizer.state_dict()["state"]})


def assert_same(actual, expected) -> None:
    torch.testing.assert_close(actual, expected, rtol=0, atol=0)


# Updates.


@pytest.mark.parametrize("objects", [0, 1])
def test_batch_without_objects_trains_the_classifier_only(objects):
    network = TinyNetwork()
    batch = tiny_batch()
    batch.targets.class_ids.fill_(PADDING_CLASS)
    batch = Batch(batch.images, Targets(*(part[:, :objects] for part in batch.targets)), batch.letterboxes, [1, 2])
    before = parameters(network)
    result = TrainingStep(network, DetectionLoss(), sgd(network))([batch])
    assert (
        result.losses.regression == 0 and 0 < result.losses.classification < 1 and result.outcome is StepOutcome.UPDATED
    )
    after = parameters(network)
    assert torch.equal(after["regressor.weight"], before["regressor.weight"])
    assert not torch.equal(after["classifier.weight"], before["classifier.weight"])


def test_sgd_update_equals_the_one_by_hand():
    network = TinyNetwork()
    before, batch = parameters(network), tiny_batch()
    gradients, expected = by_hand(network, batch)
    result = TrainingStep(network, DetectionLoss(), sgd(network))([batch])
    torch.testing.assert_close(parameters(network), {name: before[name] - LR * gradients[name] for name in before})
    torch.testing.assert_close(tuple(result.losses), tuple(expected))
    assert result.gradient_norm == pytest.approx(norm_of(gradients), rel=1e-5)
    assert result.outcome is StepOutcome.UPDATED
    assert result.outputs.class_logits.shape == (2, 16, 2)
    assert not any(part.requires_grad for part in (*result.outputs, *result.losses))


def test_first_adamw_update_equals_the_one_by_hand():
    network = TinyNetwork()
    before, batch = parameters(network), tiny_batch()
    gradients, _ = by_hand(network, batch)
    TrainingStep(network, DetectionLoss(), adamw(network))([batch])
    # Bias correction makes the first step's moments the gradient and its square.
    expected = {
        name: value * (1 - LR * 0.01) - LR * gradients[name] / (gradients[name].abs() + 1e-8)
        for name, value in before.items()
    }
    torch.testing.assert_close(parameters(network), expected)


def test_gradients_do_not_accumulate_over_steps():
    network = TinyNetwork()
    step = TrainingStep(network, DetectionLoss(), sgd(network))
    step([tiny_batch(0)])
    before, batch = parameters(network), tiny_batch(1)
    gradients, _ = by_hand(network, batch)
    step([batch])
    torch.testing.assert_close(parameters(network), {name: before[name] - LR * gradients[name] for name in before})


def test_two_micro_batches_give_the_mean_of_their_gradients_and_losses():
    network = TinyNetwork()
    before, batches = parameters(network), [tiny_batch(0), tiny_batch(1)]
    gradients, expected = by_hand(network, *batches)
    result = TrainingStep(network, DetectionLoss(), sgd(network))(batches)
    torch.testing.assert_close(parameters(network), {name: before[name] - LR * gradients[name] for name in before})
    torch.testing.assert_close(tuple(result.losses), tuple(expected))
    assert result.gradient_norm == pytest.approx(norm_of(gradients), rel=1e-5)
    assert network.norm.num_batches_tracked == 2


def test_halves_of_a_batch_make_the_step_of_the_whole_but_for_batch_norm():
    whole = tiny_batch(images=4)
    halves = [whole.first(2), Batch(whole.images[2:], whole.first(2).targets, whole.letterboxes[2:], [2, 3])]
    networks = TinyNetwork(), TinyNetwork()
    for network, batches in zip(networks, ([whole], halves)):
        network.norm.eval()
        TrainingStep(network, DetectionLoss(), sgd(network))(batches)
    torch.testing.assert_close(parameters(networks[0]), parameters(networks[1]))


@pytest.mark.parametrize(("clip_norm", "factor"), [(0.0, 1.0), (0.5, 0.5), (2.0, 1.0)])
def test_gradient_is_clipped_to_the_norm(clip_norm, factor):
    network = TinyNetwork()
    before, batch = parameters(network), tiny_batch()
    gradients, _ = by_hand(network, batch)
    norm = norm_of(gradients)
    result = TrainingStep(network, DetectionLoss(), sgd(network), clip_norm=clip_norm * norm)([batch])
    assert result.gradient_norm == pytest.approx(norm, rel=1e-5)  # as it was before
    expected = {name: before[name] - LR * factor * gradients[name] for name in before}
    torch.testing.assert_close(parameters(network), expected, rtol=1e-5, atol=1e-6)


def test_frozen_parameters_do_not_count_in_the_norm():
    network = TinyNetwork()
    network.stem.requires_grad_(False)
    batch = tiny_batch()
    gradients, _ = by_hand(network, batch)
    assert "stem.weight" not in gradients
    trainable = [parameter for parameter in network.parameters() if parameter.requires_grad]
    result = TrainingStep(network, DetectionLoss(), torch.optim.SGD(trainable, LR))([batch])
    assert result.gradient_norm == pytest.approx(norm_of(gradients), rel=1e-5)


def test_training_lowers_the_loss_of_a_batch_of_images(dataset):
    network = untrained()
    set_training_mode(network)
    step = TrainingStep(network, DetectionLoss(), torch.optim.AdamW(network.parameters(), 1e-3))
    batch = collate([dataset[0], dataset[1]])
    totals = [step([batch]).losses.total.item() for _ in range(6)]
    assert totals[-1] < 0.8 * totals[0], totals


# Skipped steps.


@pytest.mark.parametrize("amp", [None, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_first_step_with_a_non_finite_loss_changes_nothing(value, amp):
    network = TinyNetwork()
    step = TrainingStep(network, DetectionLoss(), sgd_with_momentum(network), amp)
    before = everything(step)
    result = step([poisoned(value)])
    assert result.outcome is StepOutcome.SKIPPED and not math.isfinite(result.losses.total)
    assert_same(everything(step), before)


@pytest.mark.parametrize("optimizer", [adamw, sgd_with_momentum])
def test_step_with_a_non_finite_loss_changes_nothing_and_the_next_trains(optimizer):
    steps = []
    for _ in range(2):
        network = TinyNetwork()
        steps.append(TrainingStep(network, DetectionLoss(), optimizer(network)))
    for step in steps:
        assert step([tiny_batch(0)]).outcome is StepOutcome.UPDATED
    before = everything(steps[0])
    assert steps[0]([poisoned(math.inf)]).outcome is StepOutcome.SKIPPED
    assert steps[0]([tiny_batch(2), poisoned(math.inf)]).outcome is StepOutcome.SKIPPED  # one bad micro-batch is enough
    assert steps[0]([poisoned(math.inf), tiny_batch(2)]).outcome is StepOutcome.SKIPPED
    assert_same(everything(steps[0]), before)
    for step in steps:
        assert step([tiny_batch(1)]).outcome is StepOutcome.UPDATED
    assert_same(everything(steps[0]), everything(steps[1]))


def test_finite_loss_with_an_infinite_gradient_changes_nothing():
    network = TinyNetwork()

    def root_of_zero(outputs: Outputs, targets: Targets) -> Losses:
        return Losses((outputs.class_logits.sum() * 0).sqrt(), outputs.box_deltas.sum())

    step = TrainingStep(network, root_of_zero, sgd(network), clip_norm=1.0)
    before = everything(step)
    result = step([tiny_batch()])
    assert (
        result.outcome is StepOutcome.SKIPPED
        and math.isfinite(result.losses.total)
        and not math.isfinite(result.gradient_norm)
    )
    assert_same(everything(step), before)


def test_error_in_the_network_restores_the_statistics():
    network = TinyNetwork()
    step = TrainingStep(network, DetectionLoss(), adamw(network))
    step([tiny_batch(0)])
    before = everything(step)
    network.fails = True
    with pytest.raises(RuntimeError, match="went wrong"):
        step([tiny_batch(1)])
    assert_same(everything(step), before)
    network.fails = False
    assert step([tiny_batch(1)]).outcome is StepOutcome.UPDATED
    assert network.norm.num_batches_tracked == 2


# Mixed precision.


def test_bfloat16_is_close_to_float32():
    network, batch = TinyNetwork(), tiny_batch()
    before = parameters(network)
    gradients, expected = by_hand(network, batch)
    result = TrainingStep(network, DetectionLoss(), sgd(network), torch.bfloat16)([batch])
    assert result.outputs.class_logits.dtype == torch.bfloat16
    assert {part.dtype for part in result.losses} == {torch.float32}
    assert {value.dtype for value in network.state_dict().values()} == {torch.float32, torch.int64}
    torch.testing.assert_close(tuple(result.losses), tuple(expected), rtol=0.03, atol=0.01)
    assert not torch.equal(result.losses.regression, expected.regression)
    assert result.gradient_norm == pytest.approx(norm_of(gradients), rel=0.05)
    moved = {name: value - before[name] for name, value in parameters(network).items()}
    expected_moves = {name: -LR * gradient for name, gradient in gradients.items()}
    torch.testing.assert_close(moved, expected_moves, rtol=0.1, atol=0.02 * LR * norm_of(gradients))


def test_float16_is_close_to_float32():
    network, batch = TinyNetwork(), tiny_batch()
    gradients, expected = by_hand(network, batch)
    step = TrainingStep(network, DetectionLoss(), sgd(network), torch.float16)
    set_scale(step, 128.0)
    result = step([batch])
    assert result.outputs.class_logits.dtype == torch.float16
    torch.testing.assert_close(tuple(result.losses), tuple(expected), rtol=0.01, atol=0.001)
    assert result.gradient_norm == pytest.approx(norm_of(gradients), rel=0.01)  # the scale is taken out again
    assert step.scaler.get_scale() == 128


def set_scale(step: TrainingStep, scale: float) -> None:
    step.scaler.load_state_dict({**step.scaler.state_dict(), "scale": scale})


@pytest.mark.parametrize("optimizer", [adamw, sgd_with_momentum])
def test_overflow_lowers_the_scale_and_changes_nothing_else(optimizer):
    networks = TinyNetwork(), TinyNetwork()
    scaled, plain = (TrainingStep(n, DetectionLoss(), optimizer(n), torch.float16) for n in networks)
    set_scale(plain, 128.0)
    set_scale(scaled, 2.0**20)
    before, batch, overflows = everything(scaled), tiny_batch(), 0
    while (result := scaled([batch])).outcome is StepOutcome.OVERFLOWED:
        overflows += 1
        assert math.isfinite(result.losses.total) and not math.isfinite(result.gradient_norm)
        assert scaled.scaler.get_scale() == 2.0 ** (20 - overflows)
        assert_same(everything(scaled), before)  # batch norm statistics included
    assert result.outcome is StepOutcome.UPDATED and overflows > 0
    assert networks[0].norm.num_batches_tracked == 1
    # Nothing of the overflows remains in the optimizer: it has made a single step.
    plain([batch])
    torch.testing.assert_close(parameters(networks[0]), parameters(networks[1]), rtol=0.01, atol=1e-3)


def test_overflow_at_a_scale_of_one_is_a_skipped_step():
    network = TinyNetwork()

    def endless(outputs: Outputs, targets: Targets) -> Losses:
        return Losses((outputs.class_logits.float().sum() * 0).sqrt(), outputs.box_deltas.float().sum())

    step = TrainingStep(network, endless, sgd(network), torch.float16)
    set_scale(step, 2.0)
    before = everything(step)
    assert step([tiny_batch()]).outcome is StepOutcome.OVERFLOWED
    assert step.scaler.get_scale() == 1
    assert step([tiny_batch()]).outcome is StepOutcome.SKIPPED
    assert_same(everything(step), before)


# Compilation.


@pytest.mark.slow
def test_compiled_network_trains_like_the_plain_one_and_compiles_once(dataset, recwarn, monkeypatch):
    batches = collate([dataset[0], dataset[1]]), collate([dataset[2], dataset[3]])
    plain, network = untrained(), untrained()
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))  # everything but code generation
    compiled = compile_network(network)
    steps = []
    for trained in (plain, compiled):
        set_training_mode(trained)
        steps.append(TrainingStep(trained, DetectionLoss(), sgd(trained)))
    for number, batch in enumerate(batches):
        outcomes = []
        for step in steps:
            torch.manual_seed(number)  # of drop-connect
            with torch.compiler.set_stance("fail_on_recompile" if number else "default"):
                outcomes.append(step([batch]))
        assert outcomes[1].losses.total.item() == pytest.approx(outcomes[0].losses.total.item(), rel=0.01)
        assert outcomes[1].gradient_norm == pytest.approx(outcomes[0].gradient_norm, rel=0.02)
        with torch.no_grad():  # as validation after an epoch: the network itself, with a batch of another size
            network.eval()(collate([dataset[4]]).images)
        set_training_mode(network)
    assert list(network.state_dict()) == list(plain.state_dict())
    torch.testing.assert_close(network.state_dict(), plain.state_dict(), rtol=0.02, atol=0.02)
    assert not [warning for warning in recwarn if "lru_cache" in str(warning.message)]


# Frozen parts.


def test_everything_is_trained_by_default():
    network = untrained()
    network.eval()
    set_training_mode(network)
    assert all(module.training for module in network.modules())
    assert all(parameter.requires_grad for parameter in network.parameters())


def batch_norms(module: nn.Module) -> list[nn.Module]:
    return [part for part in module.modules() if isinstance(part, nn.BatchNorm2d)]


def test_frozen_batch_norms_train_weights_but_keep_statistics():
    network = untrained()
    set_training_mode(network, freeze_bn=True)
    assert network.training and network.backbone_net.training and network.classifier.training
    norms = batch_norms(network)
    assert norms and not any(norm.training for norm in norms)
    assert all(parameter.requires_grad for parameter in network.parameters())
    set_training_mode(network)
    assert all(norm.training for norm in norms)


def test_head_only_with_frozen_batch_norms_freezes_those_of_the_heads_too():
    network = untrained()
    set_training_mode(network, head_only=True, freeze_bn=True)
    assert not any(norm.training for norm in batch_norms(network))
    trained = {name.split(".")[0] for name, parameter in network.named_parameters() if parameter.requires_grad}
    assert trained == {"regressor", "classifier"}


def test_head_only_trains_only_the_heads(dataset):
    network = untrained()
    set_training_mode(network, head_only=True)
    trainable = [parameter for parameter in network.parameters() if parameter.requires_grad]
    before = copy.deepcopy(network.state_dict())
    TrainingStep(network, DetectionLoss(), torch.optim.AdamW(trainable, 1e-2))([collate([dataset[0], dataset[1]])])
    after = network.state_dict()
    for key, value in before.items():
        in_heads = key.startswith(("regressor.", "classifier."))
        # The fourth and fifth level are single pixels and their heads see objects seldom: ask for the shared parts.
        if not in_heads:
            assert torch.equal(value, after[key]), f"{key} is frozen"
        elif "conv_list" in key or "header" in key or "num_batches_tracked" in key:
            assert not torch.equal(value, after[key]), f"{key} is trained"
