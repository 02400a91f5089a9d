"""Initial weights are those of google/automl: variances by hand, part by part."""

import math

import pytest
import torch
from torch import nn

from efficientdet.model.initialization import initialize_backbone, initialize_bifpn, initialize_head
from efficientdet.model.network import CLASS_HEADER, EfficientDet


@pytest.fixture(scope="module")
def network() -> EfficientDet:
    torch.manual_seed(0)
    return EfficientDet(0, num_classes=90)


def kernel(network: nn.Module, name: str) -> torch.Tensor:
    return network.get_parameter(f"{name}.conv.weight").detach()


@pytest.mark.parametrize("initialize", [initialize_backbone, initialize_bifpn, initialize_head])
def test_module_without_convolutions_is_left_alone(initialize):
    linear = nn.Linear(2, 2)
    before = linear.weight.clone()
    initialize(linear)
    assert torch.equal(linear.weight, before)


@pytest.mark.parametrize(
    ("name", "variance"),
    [
        ("backbone_net.model._conv_stem", 2 / (9 * 32)),
        ("backbone_net.model._blocks.12._expand_conv", 2 / 1152),
        ("backbone_net.model._blocks.12._project_conv", 2 / 192),
        ("backbone_net.model._blocks.12._depthwise_conv", 2 / 25),
        ("backbone_net.model._blocks.12._se_expand", 2 / 1152),
        ("bifpn.0.p5_down_channel.0", 2 / (320 + 64)),
        ("bifpn.1.conv4_up.pointwise_conv", 2 / (64 + 64)),
        ("bifpn.1.conv4_up.depthwise_conv", 2 / (9 * 64 + 9)),
        ("regressor.conv_list.0.pointwise_conv", 1 / 64),
        ("classifier.conv_list.0.depthwise_conv", 1 / (9 * 64)),
        ("classifier.header.pointwise_conv", 1 / 64),
    ],
)
def test_variance(network, name, variance):
    weight = kernel(network, name)
    tolerance = 4 * math.sqrt(2 / weight.numel())  # four standard errors of a normal distribution's variance
    assert weight.var().item() == pytest.approx(variance, rel=tolerance)


def test_bifpn_is_uniform_and_heads_are_truncated(network):
    uniform = kernel(network, "bifpn.1.conv4_up.pointwise_conv")
    limit = math.sqrt(6 / 128)
    assert 0.99 * limit < uniform.abs().max() <= limit
    truncated = kernel(network, "classifier.header.pointwise_conv")
    bound = 2 * math.sqrt(1 / 64) / 0.8796
    assert 0.99 * bound < truncated.abs().max() <= 1.0001 * bound


def test_biases_are_zero_but_the_class_prior(network):
    for name, module in network.named_modules():
        if isinstance(module, nn.Conv2d) and module.bias is not None and name != f"{CLASS_HEADER}.conv":
            assert not module.bias.any(), name
    prior = network.get_submodule(CLASS_HEADER).conv.bias.sigmoid()
    torch.testing.assert_close(prior, torch.full_like(prior, 0.01))
