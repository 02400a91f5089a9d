"""Training steps, validation passes, and the wish to stop."""

import copy
import math
from collections.abc import Callable
from functools import partial

import pytest
import torch
from scripts import untrained
from torch import Tensor, nn

from efficientdet.data.dataset import CocoDataset
from efficientdet.data.loader import Batch, collate
from efficientdet.data.transforms import Letterbox
from efficientdet.model.anchors import AnchorSpec, make_anchors
from efficientdet.model.loss import DetectionLoss, Losses
from efficientdet.project import load_project
from efficientdet.runtime.modes import compile_network
from efficientdet.structures import PADDING_CLASS, Outputs, Targets
from efficientdet.training.failures import fitting_batch_size
from efficientdet.training.step import TrainingStep, set_training_mode
from efficientdet.training.validation import LossMean, validate

CPU = torch.device("cpu")
LR = 0.01


class TinyNetwork(nn.Module):
    """A convolution over cells of 8 x 8 pixels, and two headers: one anchor per cell, of its size."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Conv2d(3, 8, 8, stride=8, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.classifier = nn.Conv2d(8, 2, 1)
        self.regressor = nn.Conv2d(8, 4, 1)
        self.fails = False

    def forward(self, images: Tensor) -> Outputs:
        features = self.norm(self.stem(images)).relu()
        if self.fails:
            raise RuntimeError("something went wrong in a layer")
        anchors = make_anchors(*images.shape[-2:], AnchorSpec((3,), 1.0, (1.0,), ((1.0, 1.0),))).float()
        return Outputs(self.classifier(features).flatten(2).mT, self.regressor(features).flatten(2).mT, anchors)


class FixedNetwork(nn.Module):
    """Says the same of every image: one anchor (0, 0, 64, 32), which holds an object of class 1 by `logit`."""

    def __init__(self, logit: float):
        super().__init__()
        self.class_logits = torch.tensor([[[-20.0, logit]]])

    def forward(self, images: Tensor) -> Outputs:
        anchors = torch.tensor([[0.0, 0.0, 32.0, 64.0]])  # yxyx
        return Outputs(self.class_logits.expand(len(images), -1, -1), torch.zeros(len(images), 1, 4), anchors)


@pytest.fixture
def dataset(shapes_project):
    return CocoDataset(shapes_project.data, "train", load_project(shapes_project.yml), (128, 128))


def tiny_batch(seed: int = 0, images: int = 2, objects: int = 1) -> Batch:
    """Noise of 32 x 32 pixels; the object overlaps the anchor of one cell by 64 / 81."""
    pixels = torch.randn(images, 3, 32, 32, generator=torch.Generator().manual_seed(seed))
    boxes = torch.tensor([8.0, 8.0, 17.0, 17.0]).repeat(images, objects, 1)
    truth = Targets(boxes, torch.ones(images, objects, dtype=torch.int64))
    return Batch(pixels, truth, [Letterbox.fit((32, 32), (32, 32))] * images, list(range(images)))


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


def losses(classification: float, regression: float) -> Losses:
    return Losses(torch.tensor(classification), torch.tensor(regression))


# One update.


@pytest.mark.parametrize("objects", [0, 1])
def test_batch_without_objects_is_trained_on_by_its_classes_alone(objects):
    network = TinyNetwork()
    batch = tiny_batch()
    batch.targets.class_ids.fill_(PADDING_CLASS)
    batch = Batch(batch.images, Targets(*(part[:, :objects] for part in batch.targets)), batch.letterboxes, [1, 2])
    before = parameters(network)
    result = TrainingStep(network, DetectionLoss(), sgd(network))([batch])
    assert result.losses.regression == 0 and 0 < result.losses.classification < 1 and not result.skipped
    after = parameters(network)
    assert torch.equal(after["regressor.weight"], before["regressor.weight"])
    assert not torch.equal(after["classifier.weight"], before["classifier.weight"])


def test_update_by_sgd_is_the_one_by_hand():
    network = TinyNetwork()
    before, batch = parameters(network), tiny_batch()
    gradients, expected = by_hand(network, batch)
    result = TrainingStep(network, DetectionLoss(), sgd(network))([batch])
    torch.testing.assert_close(parameters(network), {name: before[name] - LR * gradients[name] for name in before})
    torch.testing.assert_close(tuple(result.losses), tuple(expected))
    assert result.gradient_norm == pytest.approx(norm_of(gradients), rel=1e-5)
    assert not result.skipped
    assert result.outputs.class_logits.shape == (2, 16, 2)
    assert not any(part.requires_grad for part in (*result.outputs, *result.losses))


def test_first_update_by_adamw_is_the_one_by_hand():
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


def test_gradients_of_one_step_do_not_stay_for_the_next():
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
def test_gradient_longer_than_the_clip_norm_is_shortened_to_it(clip_norm, factor):
    network = TinyNetwork()
    before, batch = parameters(network), tiny_batch()
    gradients, _ = by_hand(network, batch)
    norm = norm_of(gradients)
    result = TrainingStep(network, DetectionLoss(), sgd(network), clip_norm=clip_norm * norm)([batch])
    assert result.gradient_norm == pytest.approx(norm, rel=1e-5)  # as it was before
    expected = {name: before[name] - LR * factor * gradients[name] for name in before}
    torch.testing.assert_close(parameters(network), expected, rtol=1e-5, atol=1e-6)


def test_frozen_parameters_have_no_part_in_the_norm():
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


# Steps that are left out.


@pytest.mark.parametrize("amp", [None, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_first_step_of_all_without_a_finite_loss_changes_nothing(value, amp):
    network = TinyNetwork()
    step = TrainingStep(network, DetectionLoss(), sgd_with_momentum(network), amp)
    before = everything(step)
    result = step([poisoned(value)])
    assert result.skipped and not math.isfinite(result.losses.total)
    assert_same(everything(step), before)


@pytest.mark.parametrize("optimizer", [adamw, sgd_with_momentum])
def test_step_without_a_finite_loss_changes_nothing_and_the_next_goes_on(optimizer):
    steps = []
    for _ in range(2):
        network = TinyNetwork()
        steps.append(TrainingStep(network, DetectionLoss(), optimizer(network)))
    for step in steps:
        assert not step([tiny_batch(0)]).skipped
    before = everything(steps[0])
    assert steps[0]([poisoned(math.inf)]).skipped
    assert steps[0]([tiny_batch(2), poisoned(math.inf)]).skipped  # a good micro-batch does not save it
    assert steps[0]([poisoned(math.inf), tiny_batch(2)]).skipped
    assert_same(everything(steps[0]), before)
    for step in steps:
        assert not step([tiny_batch(1)]).skipped
    assert_same(everything(steps[0]), everything(steps[1]))


def test_finite_loss_with_an_infinite_gradient_changes_nothing():
    network = TinyNetwork()

    def root_of_zero(outputs: Outputs, targets: Targets) -> Losses:
        return Losses((outputs.class_logits.sum() * 0).sqrt(), outputs.box_deltas.sum())

    step = TrainingStep(network, root_of_zero, sgd(network), clip_norm=1.0)
    before = everything(step)
    result = step([tiny_batch()])
    assert result.skipped and math.isfinite(result.losses.total) and not math.isfinite(result.gradient_norm)
    assert_same(everything(step), before)


def test_error_in_the_network_leaves_the_statistics_of_the_step_before():
    network = TinyNetwork()
    step = TrainingStep(network, DetectionLoss(), adamw(network))
    step([tiny_batch(0)])
    before = everything(step)
    network.fails = True
    with pytest.raises(RuntimeError, match="went wrong"):
        step([tiny_batch(1)])
    assert_same(everything(step), before)
    network.fails = False
    assert not step([tiny_batch(1)]).skipped
    assert network.norm.num_batches_tracked == 2


# Mixed precision.


def test_bfloat16_gives_nearly_the_losses_and_the_update_of_float32():
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


def test_float16_gives_nearly_the_losses_and_the_gradient_of_float32():
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
def test_overflow_of_scaled_gradients_lowers_the_scale_and_is_no_skipped_step(optimizer):
    networks = TinyNetwork(), TinyNetwork()
    scaled, plain = (TrainingStep(n, DetectionLoss(), optimizer(n), torch.float16) for n in networks)
    set_scale(plain, 128.0)
    set_scale(scaled, 2.0**20)
    before, batch, overflows = parameters(networks[0]), tiny_batch(), 0
    while scaled.scaler.get_scale() > 128:
        result = scaled([batch])
        assert not result.skipped and math.isfinite(result.losses.total)
        if not math.isfinite(result.gradient_norm):
            overflows += 1
            assert scaled.scaler.get_scale() == 2.0 ** (20 - overflows)
            assert_same(parameters(networks[0]), before)
        else:
            set_scale(scaled, 128.0)  # far enough
            assert overflows > 0
            assert not torch.equal(networks[0].stem.weight, before["stem.weight"])
    # Nothing of the overflows is left in the optimizer: it has made one step.
    plain([batch])
    torch.testing.assert_close(parameters(networks[0]), parameters(networks[1]), rtol=0.01, atol=1e-3)


def test_gradients_that_overflow_without_a_scale_are_a_skipped_step():
    network = TinyNetwork()

    def endless(outputs: Outputs, targets: Targets) -> Losses:
        return Losses((outputs.class_logits.float().sum() * 0).sqrt(), outputs.box_deltas.float().sum())

    step = TrainingStep(network, endless, sgd(network), torch.float16)
    set_scale(step, 2.0)
    before = everything(step)
    assert not step([tiny_batch()]).skipped
    assert step.scaler.get_scale() == 1
    assert_same(parameters(network), {name: before["network"][name] for name in parameters(network)})
    before = everything(step)
    assert step([tiny_batch()]).skipped
    assert_same(everything(step), before)


# Compiled.


@pytest.mark.slow
def test_compiled_network_trains_as_the_plain_one_and_compiles_once(dataset, recwarn, monkeypatch):
    batches = collate([dataset[0], dataset[1]]), collate([dataset[2], dataset[3]])
    plain, network = untrained(), untrained()
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))  # everything but code generation
    compiled = compile_network(network)
    steps = []
    for trained in (plain, compiled):
        set_training_mode(trained)
        steps.append(TrainingStep(trained, DetectionLoss(), sgd(trained), torch.bfloat16))
    for number, batch in enumerate(batches):
        outcomes = []
        for step in steps:
            torch.manual_seed(number)  # of drop-connect
            with torch.compiler.set_stance("fail_on_recompile" if number else "default"):
                outcomes.append(step([batch]))
        assert outcomes[1].losses.total.item() == pytest.approx(outcomes[0].losses.total.item(), rel=1e-3)
        assert outcomes[1].gradient_norm == pytest.approx(outcomes[0].gradient_norm, rel=0.02)
        # As after an epoch: the network itself, with a batch of another size.
        list(validate({"": network}, DetectionLoss(), [collate([dataset[4]])], CPU))
        set_training_mode(network)
    assert list(network.state_dict()) == list(plain.state_dict())
    torch.testing.assert_close(network.state_dict(), plain.state_dict(), rtol=0.02, atol=0.02)
    assert not [warning for warning in recwarn if "lru_cache" in str(warning.message)]


# What is trained.


def test_all_is_trained_by_default():
    network = untrained()
    network.eval()
    set_training_mode(network)
    assert all(module.training for module in network.modules())
    assert all(parameter.requires_grad for parameter in network.parameters())


def batch_norms(module: nn.Module) -> list[nn.Module]:
    return [part for part in module.modules() if isinstance(part, nn.BatchNorm2d)]


def test_frozen_batch_norms_train_their_weights_but_keep_their_statistics():
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


def test_head_only_trains_the_heads_alone(dataset):
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


# Memory.


def memory_for(most: int, tried: list[int]) -> Callable[[Batch], None]:
    """A step that notes the number of images, and runs out of memory with more than `most`."""

    def step(batch: Batch) -> None:
        assert len(batch.images) == len(batch.targets.boxes) == len(batch.targets.class_ids) == len(batch.letterboxes)
        tried.append(len(batch.image_ids))
        if len(batch.image_ids) > most:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    return step


@pytest.mark.parametrize(
    ("images", "most", "fitting", "tries"),
    [
        (1, 1, 0, []),  # a single image did not fit: there is nothing to try
        (12, 0, 0, [6, 3, 1]),
        (12, 2, 1, [6, 3, 1]),
        (12, 5, 3, [6, 3]),
        (12, 11, 6, [6]),
        (16, 4, 4, [8, 4]),
    ],
)
def test_largest_half_that_fits(images, most, fitting, tries):
    tried = []
    assert fitting_batch_size(memory_for(most, tried), tiny_batch(images=images)) == fitting
    assert tried == tries


@pytest.mark.parametrize("error", [RuntimeError("shapes do not match"), ValueError("no"), KeyboardInterrupt()])
def test_other_errors_than_of_memory_pass_through(error):
    def step(batch: Batch) -> None:
        raise error

    with pytest.raises(type(error)) as caught:
        fitting_batch_size(step, tiny_batch(images=4))
    assert caught.value is error


# Validation.


def test_validation_of_nothing_gives_nothing():
    network = TinyNetwork()
    assert list(validate({}, DetectionLoss(), [], CPU)) == []
    assert list(validate({"": network}, DetectionLoss(), [], CPU)) == []
    assert list(validate({}, DetectionLoss(), [tiny_batch()], CPU))[0][1] == {}


def test_validation_tells_losses_and_detections_in_the_images_pixels_for_each_network():
    # 101 x 256 pixels become 50 x 128 at the top left of 128 x 128; the second image is the input itself.
    letterboxes = [Letterbox.fit((101, 256), (128, 128)), Letterbox.fit((128, 128), (128, 128))]
    truth = Targets(torch.tensor([[[0.0, 0.0, 64.0, 32.0]]]).repeat(2, 1, 1), torch.tensor([[1], [PADDING_CLASS]]))
    batch = Batch(torch.zeros(2, 3, 128, 128), truth, letterboxes, [5, 6])
    networks = {"": FixedNetwork(0.0), "average": FixedNetwork(-3.5)}
    for network in networks.values():
        network.train()
    (given, found), *rest = validate(networks, DetectionLoss(empty_image_normalizer=2.0), [batch], CPU)
    assert given is batch and not rest
    assert list(found) == ["", "average"]
    assert not any(network.training for network in networks.values())

    # By hand: the object is found at 0.25 * (1 - p) ** 2 * -log p; in the empty image 0.75 * p ** 2 * -log(1 - p),
    # divided by 2. A score of 1e-4 or less counts as 1e-4 and costs 7.5e-13.
    validation_losses, detections = found[""]
    expected = (0.25 * 0.25 * math.log(2) + 0.75 * 0.25 * math.log(2) / 2) / 2
    assert validation_losses.classification.item() == pytest.approx(expected, rel=1e-5)
    assert validation_losses.regression == 0
    assert [len(one) for one in detections] == [1, 1]
    torch.testing.assert_close(detections[0].boxes, torch.tensor([[0.0, 0.0, 128.0, 32 * 101 / 50]]))
    torch.testing.assert_close(detections[1].boxes, torch.tensor([[0.0, 0.0, 64.0, 32.0]]))
    assert all(one.class_ids.tolist() == [1] and one.scores.tolist() == [0.5] for one in detections)

    # A score of 0.03 is below the evaluation's threshold.
    average_losses, detections = found["average"]
    assert average_losses.classification > validation_losses.classification
    assert [len(one) for one in detections] == [0, 0]


def test_validation_changes_nothing_but_the_mode_and_leaves_gradients_on():
    network = TinyNetwork()
    before = copy.deepcopy(network.state_dict())
    for _, found in validate({"": network}, DetectionLoss(), [tiny_batch(0), tiny_batch(1)], CPU):
        assert torch.is_grad_enabled()
        assert not found[""][0].total.requires_grad
    assert_same(network.state_dict(), before)
    assert not network.training
    set_training_mode(network)
    assert network.norm.training


def test_validation_does_not_depend_on_the_size_of_its_batches():
    network, whole = TinyNetwork(), tiny_batch(images=3)
    parts = [whole.first(2), Batch(whole.images[2:], whole.first(1).targets, whole.letterboxes[2:], [2])]
    means = []
    for batches in ([whole], parts):
        mean = LossMean()
        for batch, found in validate({"": network}, DetectionLoss(), batches, CPU):
            mean.add(len(batch.image_ids), found[""][0])
        means.append(mean)
    assert means[0].images == means[1].images == 3
    assert means[0].total == pytest.approx(means[1].total, rel=1e-5)


def test_validation_in_bfloat16_is_near_that_in_float32():
    network = TinyNetwork()
    exact, near = (
        next(validate({"": network}, DetectionLoss(), [tiny_batch()], CPU, amp))[1][""][0].total
        for amp in (None, torch.bfloat16)
    )
    assert near.dtype == torch.float32 and near != exact
    assert near.item() == pytest.approx(exact.item(), rel=0.03)


def test_validation_of_images_with_the_real_network(dataset):
    network = untrained()
    ((batch, found),) = validate({"": network}, DetectionLoss(), [collate([dataset[2]])], CPU)
    assert batch.image_ids == [15] and math.isfinite(found[""][0].total)
    assert [len(one) for one in found[""][1]] == [0]  # scores begin at 0.01


# Means of losses.


def test_mean_of_no_losses_is_zero():
    assert (LossMean().classification, LossMean().regression, LossMean().total) == (0, 0, 0)


def test_mean_weighs_batches_by_their_images():
    mean = LossMean()
    mean.add(3, losses(1.0, 10.0))
    mean.add(1, losses(5.0, 2.0))
    assert (mean.images, mean.classification_sum, mean.regression_sum) == (4, 8.0, 32.0)
    assert (mean.classification, mean.regression, mean.total) == (2.0, 8.0, 10.0)


def test_mean_goes_on_from_its_attributes_as_if_it_had_not_been_saved():
    whole, first = LossMean(), LossMean()
    for mean in (whole, first):
        mean.add(3, losses(1.25, 10.1))
    second = LossMean(**vars(first))
    for mean in (whole, second):
        mean.add(5, losses(0.3, 0.7))
    assert vars(second) == vars(whole)
