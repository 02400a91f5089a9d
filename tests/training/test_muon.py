"""Muon: orthogonal updates of matrices, AdamW's of everything else."""

import copy

import pytest
import torch
from torch import nn

from efficientdet.training.muon import Muon, orthogonalize
from efficientdet.training.optimization import make_optimizer
from efficientdet.training.recipe import make_recipe


def matrix(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.zeros(shape))


def groups(*matrices: nn.Parameter, others: tuple = (), weight_decay: float = 0.0) -> list[dict]:
    return [
        {"params": list(matrices), "weight_decay": weight_decay, "orthogonalize": True},
        {"params": list(others), "weight_decay": 0.0, "orthogonalize": False},
    ]


def test_step_without_gradients_changes_nothing():
    weight, bias = nn.Parameter(torch.ones(2, 3, 1, 1)), nn.Parameter(torch.ones(2))
    Muon(groups(weight, others=(bias,), weight_decay=0.1), 0.1).step()
    assert torch.equal(weight, torch.ones(2, 3, 1, 1)) and torch.equal(bias, torch.ones(2))


@pytest.mark.parametrize("shape", [(1, 4, 4), (3, 4, 9), (2, 8, 64)])
def test_singular_values_are_pulled_to_one(shape):
    torch.manual_seed(0)
    values = torch.linalg.svdvals(orthogonalize(torch.randn(shape, dtype=torch.float64)))
    assert values.min() > 0.73 and values.max() < 1.27


def test_singular_values_may_differ_a_hundredfold():
    values = torch.tensor([0.0, 0.011, 0.05, 0.2, 0.4, 1.0], dtype=torch.float64)
    given = values / values.norm()
    zero, *pulled = orthogonalize(given.diag()[None])[0].diagonal().tolist()
    assert zero == 0 and min(pulled) > 0.73 and max(pulled) < 1.27


def test_singular_vectors_stay():
    torch.manual_seed(0)
    given = torch.randn(1, 4, 9, dtype=torch.float64)
    u, _, v = torch.linalg.svd(given[0], full_matrices=False)
    middle = u.mT @ orthogonalize(given)[0] @ v.mT
    torch.testing.assert_close(middle, middle.diagonal().diag(), rtol=0, atol=1e-9)


@pytest.mark.parametrize("shape", [(4, 16, 1, 1), (16, 4, 1, 1), (16, 16, 1, 1), (4, 2, 3, 3)])
def test_first_update_points_against_the_gradient_with_a_known_size(shape):
    torch.manual_seed(0)
    weight, gradient = matrix(*shape), torch.randn(shape)
    weight.grad = gradient.clone()
    Muon(groups(weight), 0.1).step()
    assert (weight * gradient).sum() < 0
    # Singular values near 1 make the root mean square 1 / sqrt(larger side), scaled to 0.2 times the rate.
    assert weight.square().mean().sqrt().item() == pytest.approx(0.2 * 0.1, rel=0.25)


def test_update_does_not_depend_on_the_size_of_the_gradient_and_momentum_remains():
    gradient = torch.randn(6, 8, 1, 1, generator=torch.Generator().manual_seed(0))
    small, large = matrix(6, 8, 1, 1), matrix(6, 8, 1, 1)
    optimizer = Muon(groups(small, large), 0.1)
    small.grad, large.grad = 1e-3 * gradient, 1e3 * gradient
    optimizer.step()
    torch.testing.assert_close(small, large, rtol=0.02, atol=1e-4)
    before = small.detach().clone()
    small.grad = torch.zeros_like(small)
    optimizer.step()
    assert ((small - before) * gradient).sum() < 0


def test_weights_decay_before_the_update():
    weight = nn.Parameter(torch.ones(2, 2, 1, 1))
    weight.grad = torch.zeros_like(weight)
    Muon(groups(weight, weight_decay=0.5), 0.1).step()
    torch.testing.assert_close(weight, torch.full_like(weight, 0.95))


def test_other_parameters_are_updated_by_adamw():
    bias, twin = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(3))
    optimizers = Muon(groups(others=(bias,)), 0.1), torch.optim.AdamW([twin], 0.1, weight_decay=0.0)
    for gradient in (2.0, -1.0, 0.5):
        bias.grad, twin.grad = torch.full((3,), gradient), torch.full((3,), gradient)
        for optimizer in optimizers:
            optimizer.step()
    torch.testing.assert_close(bias, twin)


def test_restored_optimizer_continues_bit_for_bit():
    torch.manual_seed(0)
    gradients = torch.randn(4, 6, 8, 1, 1)
    weights = matrix(6, 8, 1, 1), matrix(6, 8, 1, 1)
    first, second = (Muon(groups(weight, others=(matrix(2),)), 0.1) for weight in weights)
    for gradient in gradients[:2]:
        weights[0].grad = gradient.clone()
        first.step()
    weights[1].data.copy_(weights[0])
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    for gradient in gradients[2:]:
        for weight, optimizer in zip(weights, (first, second)):
            weight.grad = gradient.clone()
            optimizer.step()
    assert torch.equal(*weights)


def test_recipe_orthogonalizes_kernels_of_inner_layers_only():
    network = nn.Module()
    network._conv_stem = nn.Conv2d(3, 4, 3)
    network.expand = nn.Conv2d(4, 8, 1)
    network.depthwise = nn.Conv2d(8, 8, 3, groups=8)
    network.header = nn.Conv2d(8, 2, 1)
    wrapped = nn.ModuleDict({"classifier": network})
    optimizer = make_optimizer(make_recipe("quick", {"optim": "muon"}), wrapped)
    chosen = [parameter for group in optimizer.param_groups if group["orthogonalize"] for parameter in group["params"]]
    assert [id(parameter) for parameter in chosen] == [id(network.expand.weight)]
    assert sum(len(group["params"]) for group in optimizer.param_groups) == 8
