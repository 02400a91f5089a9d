"""Optimizers, learning rates and averaged weights, by hand."""

import copy
import math

import pytest
import torch
from torch import Tensor, nn

from efficientdet.training.optimization import LearningRate, WeightAverage, make_optimizer
from efficientdet.training.recipe import Recipe, make_recipe


def reference(**changes) -> Recipe:
    return make_recipe("reference", changes)


def official(**changes) -> Recipe:
    return make_recipe("official", {"batch_size": 64, **changes})


def small_network() -> nn.Module:
    """Two kernels, three biases and a batch norm's two vectors."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 2, 3), nn.BatchNorm2d(2), nn.Conv2d(2, 2, 1), nn.Flatten(), nn.Linear(2, 1))


def one_weight(value: float = 1.0, dimensions: int = 4) -> nn.Module:
    network = nn.Module()
    network.weight = nn.Parameter(torch.full((1,) * dimensions, value))
    return network


def update(network: nn.Module, optimizer: torch.optim.Optimizer, gradient: float) -> float:
    """One step from a given gradient of the network's one weight; what becomes of it."""
    network.weight.grad = torch.full_like(network.weight, gradient)
    optimizer.step()
    return network.weight.item()


def decays(optimizer: torch.optim.Optimizer) -> dict[int, float]:
    """Weight decay by the parameter's identity."""
    return {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}


# Optimizers.


@pytest.mark.parametrize("recipe", [reference(), official()])
def test_frozen_parameters_are_left_out(recipe):
    network = small_network()
    network.requires_grad_(False)
    network[1].requires_grad_(True)
    assert decays(make_optimizer(recipe, network)).keys() == {id(network[1].weight), id(network[1].bias)}


@pytest.mark.parametrize("recipe", [reference(), official()])
def test_all_parameters_are_updated_at_once(recipe):
    assert all(group["fused"] for group in make_optimizer(recipe, small_network()).param_groups)


def test_reference_is_adamw_with_its_own_weight_decay_everywhere():
    network = small_network()
    optimizer = make_optimizer(reference(), network)
    assert isinstance(optimizer, torch.optim.AdamW)
    assert decays(optimizer) == {id(parameter): 0.01 for parameter in network.parameters()}
    assert [group["lr"] for group in optimizer.param_groups] == [1e-4]


def test_reference_with_sgd_has_no_weight_decay():
    network = small_network()
    optimizer = make_optimizer(reference(optim="sgd"), network)
    assert isinstance(optimizer, torch.optim.SGD)
    assert decays(optimizer) == {id(parameter): 0.0 for parameter in network.parameters()}


def test_official_decays_kernels_only():
    network = small_network()
    optimizer = make_optimizer(official(), network)
    assert isinstance(optimizer, torch.optim.SGD)
    kernels = {id(network[0].weight), id(network[2].weight)}
    expected = {id(parameter): 4e-5 if id(parameter) in kernels else 0.0 for parameter in network.parameters()}
    assert decays(optimizer) == expected
    assert all(group["lr"] == 0.08 for group in optimizer.param_groups)


def test_weight_decay_is_the_recipes():
    network = small_network()
    assert set(decays(make_optimizer(reference(weight_decay=0.3), network)).values()) == {0.3}
    assert set(decays(make_optimizer(reference(weight_decay=0.0), network)).values()) == {0.0}
    assert set(decays(make_optimizer(reference(decay_kernels_only=True), network)).values()) == {0.01, 0.0}


@pytest.mark.parametrize("optim", ["adamw", "sgd"])
def test_kernels_alone_without_weight_decay_of_the_recipe_have_the_optimizers_own(optim):
    network = small_network()
    values = decays(make_optimizer(reference(optim=optim, decay_kernels_only=True), network))
    own = {"adamw": 0.01, "sgd": 0.0}[optim]
    assert values[id(network[0].weight)] == own and values[id(network[0].bias)] == 0


def test_adamw_by_hand():
    network = one_weight(2.0)
    optimizer = make_optimizer(reference(lr=0.1), network)
    # Decay takes 0.1 * 0.01 of the weight; the first step's corrected moments are the gradient and its square.
    assert update(network, optimizer, 3.0) == pytest.approx(2 * 0.999 - 0.1, rel=1e-6)


def test_official_sgd_by_hand():
    network = one_weight(1.0)
    optimizer = make_optimizer(official(weight_decay=0.5, lr=0.1), network)
    first = 1 - 0.1 * (2 + 0.5 * 1)
    assert update(network, optimizer, 2.0) == pytest.approx(first, rel=1e-6)
    momentum = 0.9 * 2.5 + (1 + 0.5 * first)
    assert update(network, optimizer, 1.0) == pytest.approx(first - 0.1 * momentum, rel=1e-6)


def test_nesterov_sgd_by_hand():
    network = one_weight(1.0)
    optimizer = make_optimizer(reference(optim="sgd", lr=0.1), network)
    first = 1 - 0.1 * (2 + 0.9 * 2)
    assert update(network, optimizer, 2.0) == pytest.approx(first, rel=1e-6)
    momentum = 0.9 * 2 + 1
    assert update(network, optimizer, 1.0) == pytest.approx(first - 0.1 * (1 + 0.9 * momentum), rel=1e-6)


def test_bias_is_not_decayed_by_the_official_recipe():
    network = one_weight(1.0, dimensions=1)
    assert update(network, make_optimizer(official(weight_decay=0.5), network), 0.0) == 1


# Learning rates.


def schedule(recipe: Recipe, num_epochs: int) -> LearningRate:
    return LearningRate(recipe, make_optimizer(recipe, small_network()), num_epochs)


def rate_at(learning_rate: LearningRate, epochs_done: float) -> float:
    learning_rate.before_step(epochs_done)
    rates = {group["lr"] for group in learning_rate.optimizer.param_groups}
    assert rates == {learning_rate.value}, "all groups have one rate"
    return learning_rate.value


def test_reference_starts_at_its_rate_and_keeps_it():
    learning_rate = schedule(reference(), 500)
    assert learning_rate.value == 1e-4
    assert rate_at(learning_rate, 0.0) == rate_at(learning_rate, 0.7) == rate_at(learning_rate, 499.9) == 1e-4


@pytest.mark.parametrize("schedule_name", ["cosine", "plateau"])
@pytest.mark.parametrize(("epochs_done", "factor"), [(0.0, 0.1), (0.5, 0.325), (1.0, 0.55), (1.5, 0.775), (2.0, 1.0)])
def test_warmup_rises_evenly_from_a_tenth(schedule_name, epochs_done, factor):
    learning_rate = schedule(official(schedule=schedule_name, warmup_epochs=2.0), 10)
    assert rate_at(learning_rate, epochs_done) == pytest.approx(0.08 * factor, rel=1e-9)


@pytest.mark.parametrize(
    ("epochs_done", "rate"),
    [
        (1.0, 0.08),
        (3.5, 0.04 * (1 + math.sqrt(0.5))),  # a quarter of the way
        (1 + 10 / 3, 0.06),  # a third: cos is 1/2
        (6.0, 0.04),
        (8.5, 0.04 * (1 - math.sqrt(0.5))),
        (11.0, 0.0),
        (11.5, 0.0),  # a later end, rounded
    ],
)
def test_cosine_after_one_epoch_of_warmup(epochs_done, rate):
    assert rate_at(schedule(official(), 11), epochs_done) == pytest.approx(rate, rel=1e-9, abs=1e-12)


@pytest.mark.parametrize(
    ("num_epochs", "epochs_done", "steps_done", "factor"),
    [(100, 0.0, 0, 0.1), (100, 1.0, 50, 0.55), (100, 2.0, 100, 1.0), (10, 0.5, 30, 0.55), (10, 1.0, 60, 1.0)],
)
def test_warmup_steps_last_a_tenth_of_the_run_at_most(num_epochs, epochs_done, steps_done, factor):
    learning_rate = schedule(reference(warmup_steps=100), num_epochs)
    learning_rate.before_step(epochs_done, steps_done)
    assert learning_rate.value == pytest.approx(1e-4 * factor)


@pytest.mark.parametrize(("share_done", "factor"), [(0.0, 1.0), (0.5, 0.5), (1.0, 0.0), (1.2, 0.0)])
def test_share_of_a_run_of_some_minutes_decides_the_cosine(share_done, factor):
    learning_rate = schedule(official(warmup_epochs=0.0), math.inf)
    learning_rate.before_step(7.3, 1000, share_done)
    assert learning_rate.value == pytest.approx(0.08 * factor, abs=1e-12)


def test_cosine_without_warmup_begins_at_its_rate():
    learning_rate = schedule(official(warmup_epochs=0.0), 4)
    assert rate_at(learning_rate, 0.0) == 0.08
    assert rate_at(learning_rate, 2.0) == pytest.approx(0.04)


def test_run_shorter_than_its_warmup_reaches_the_full_rate_at_its_end():
    learning_rate = schedule(official(warmup_epochs=5.0), 1)
    assert rate_at(learning_rate, 0.0) == pytest.approx(0.008)
    assert rate_at(learning_rate, 0.5) == pytest.approx(0.044)
    assert rate_at(learning_rate, 1.0) == pytest.approx(0.08)


def test_cosine_does_not_look_at_losses():
    learning_rate = schedule(official(lr_patience=0), 11)
    for epoch in range(1, 6):
        learning_rate.after_epoch(epoch, 1.0)
    assert rate_at(learning_rate, 6.0) == pytest.approx(0.04)


LOSSES = [5.0, 4.0, 4.0, 3.99999, 4.5, math.inf, 3.0, 3.0, math.nan, 3.1, 3.0, 3.0, 2.0, 2.0, 2.0, 2.0, 2.0, 2.0]


@pytest.mark.parametrize("patience", [0, 1, 3])
def test_plateau_falls_when_torchs_does(patience):
    learning_rate = schedule(reference(lr_patience=patience), 100)
    theirs = torch.optim.SGD(one_weight().parameters(), 1e-4)
    plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(theirs, patience=patience)
    for epoch, loss in enumerate(LOSSES):
        for part in (0.0, 0.5):
            assert rate_at(learning_rate, epoch + part) == theirs.param_groups[0]["lr"]
        learning_rate.after_epoch(epoch + 1, loss)
        plateau.step(loss)
    assert learning_rate.base == theirs.param_groups[0]["lr"] < 1e-4


def test_plateau_waits_for_more_epochs_than_its_patience():
    learning_rate = schedule(reference(lr_patience=2), 100)
    for epoch, rate in enumerate([1e-4, 1e-4, 1e-4, 1e-5], 1):  # the first epoch is the best, three are no better
        learning_rate.after_epoch(epoch, 1.0)
        assert rate_at(learning_rate, epoch) == pytest.approx(rate)


def test_plateau_does_not_count_the_epochs_of_warmup():
    learning_rate = schedule(reference(lr_patience=0, warmup_epochs=2.0), 100)
    learning_rate.after_epoch(1, 1.0)
    learning_rate.after_epoch(2, 1.5)
    assert rate_at(learning_rate, 2.0) == pytest.approx(1e-4)
    learning_rate.after_epoch(3, 2.0)  # the first that counts
    assert rate_at(learning_rate, 3.0) == pytest.approx(1e-4)
    learning_rate.after_epoch(4, 2.5)
    assert rate_at(learning_rate, 4.0) == pytest.approx(1e-5)


def test_epoch_that_ends_its_last_step_within_warmup_does_not_lower_the_rate():
    learning_rate = schedule(reference(warmup_epochs=1.5), 100)
    assert rate_at(learning_rate, 1.0) == pytest.approx(0.7e-4)  # the only step of the second epoch
    learning_rate.after_epoch(2, 1.0)
    assert rate_at(learning_rate, 2.0) == 1e-4


def saved(state: object, folder) -> object:
    """The state as a checkpoint gives it back."""
    torch.save(state, folder / "state.pth")
    return torch.load(folder / "state.pth", weights_only=True)


@pytest.mark.parametrize("stop", [0, 1, 3, 7, 10])
@pytest.mark.parametrize("recipe", [reference(lr_patience=1, warmup_epochs=0.5), official()])
def test_rate_goes_on_from_its_state_as_if_it_had_not_been_saved(recipe, stop, tmp_path):
    whole, first, second = (schedule(recipe, len(LOSSES)) for _ in range(3))

    def run(learning_rate: LearningRate, epochs: range) -> list[float]:
        rates = []
        for epoch in epochs:
            rates += [rate_at(learning_rate, epoch + part) for part in (0.0, 0.5)]
            learning_rate.after_epoch(epoch + 1, LOSSES[epoch])
        return rates

    expected = run(whole, range(len(LOSSES)))
    rates = run(first, range(stop))
    second.load_state_dict(saved(first.state_dict(), tmp_path))
    assert rates + run(second, range(stop, len(LOSSES))) == expected


def test_patience_may_change_between_two_parts_of_a_run():
    first, second = schedule(reference(lr_patience=3), 100), schedule(reference(lr_patience=1), 100)
    first.after_epoch(1, 1.0)
    first.after_epoch(2, 1.0)
    second.load_state_dict(first.state_dict())
    second.after_epoch(3, 1.0)
    assert rate_at(second, 3.0) == pytest.approx(1e-5)
    first.after_epoch(3, 1.0)
    assert rate_at(first, 3.0) == pytest.approx(1e-4)


# Averaged weights.


def normed(weight: float, mean: float, seen: int = 0) -> nn.BatchNorm2d:
    """A batch norm with these values."""
    network = nn.BatchNorm2d(1)
    nn.init.constant_(network.weight, weight)
    network.running_mean.fill_(mean)
    network.num_batches_tracked.fill_(seen)
    return network


def numbers(network: nn.BatchNorm2d) -> tuple[float, float]:
    return network.weight.item(), network.running_mean.item()


def test_average_of_nothing_is_the_network_itself():
    network = normed(2.0, 3.0)
    average = WeightAverage(network, 0.9)
    assert average.updates == 0 and average.network is not network
    assert numbers(average.network) == (2.0, 3.0)
    assert not any(parameter.requires_grad for parameter in average.network.parameters())
    assert all(parameter.requires_grad for parameter in network.parameters())


def test_first_updates_by_hand():
    average = WeightAverage(normed(0.0, 0.0), 0.9998)
    average.update(normed(11.0, 22.0))  # decay 2/11
    assert numbers(average.network) == pytest.approx((9.0, 18.0))
    average.update(normed(5.0, 6.0))  # decay 3/12
    assert numbers(average.network) == pytest.approx((6.0, 9.0))
    average.update(normed(19.0, 35.0))  # decay 4/13
    assert numbers(average.network) == pytest.approx((15.0, 27.0))
    assert average.updates == 3


def test_decay_rises_no_higher_than_the_one_given():
    average = WeightAverage(normed(0.0, 0.0), 0.2)
    average.update(normed(11.0, 22.0))  # 2/11 is below 0.2
    average.update(normed(5.0, 6.0))  # 3/12 is not
    assert numbers(average.network) == pytest.approx((0.2 * 9 + 0.8 * 5, 0.2 * 18 + 0.8 * 6))


def test_decay_after_many_updates_is_the_one_given():
    average = WeightAverage(normed(0.0, 0.0), 0.9998)
    average.updates = 10**6
    average.update(normed(1.0, 2.0))
    assert numbers(average.network) == pytest.approx((2e-4, 4e-4), rel=1e-3)


def test_network_and_counters_are_left_alone():
    average = WeightAverage(normed(0.0, 0.0, seen=7), 0.9)
    network = normed(11.0, 22.0, seen=8)
    average.update(network)
    assert average.network.num_batches_tracked == 7
    assert numbers(network) == (11.0, 22.0) and network.num_batches_tracked == 8
    assert network.weight.grad is None and network.weight.requires_grad


def test_average_of_parameters_that_are_trained_takes_no_part_in_it():
    network = small_network()
    average = WeightAverage(network, 0.9)
    optimizer = torch.optim.SGD(network.parameters(), 0.1)
    for _ in range(2):
        network(torch.ones(2, 3, 3, 3)).sum().backward()
        optimizer.step()
        average.update(network)
    assert all(parameter.grad is None for parameter in average.network.parameters())


def tensors(average: WeightAverage) -> dict[str, Tensor]:
    return average.network.state_dict()


def test_average_goes_on_from_its_state_as_if_it_had_not_been_saved(tmp_path):
    whole, first = (WeightAverage(small_network(), 0.9998) for _ in range(2))
    networks = [small_network() for _ in range(4)]
    for factor, network in enumerate(networks):
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.mul_(factor)
    for network in networks:
        whole.update(network)
    for network in networks[:2]:
        first.update(network)
    second = WeightAverage(copy.deepcopy(networks[3]), 0.9998)
    second.load_state_dict(saved(first.state_dict(), tmp_path))
    for network in networks[2:]:
        second.update(network)
    assert second.updates == whole.updates == 4
    torch.testing.assert_close(tensors(second), tensors(whole), rtol=0, atol=0)
