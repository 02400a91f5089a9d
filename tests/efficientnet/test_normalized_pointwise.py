"""A convolution folded into the batch norm after it trains like the two in turn."""

import copy

import pytest
import torch
from torch import nn

from efficientnet import cpu_training
from efficientnet.cpu_training import normalized_pointwise
from efficientnet.layers import SameConv2d
from efficientnet.model import BATCH_NORM


def layers(channels: int, out_channels: int) -> nn.ModuleList:
    torch.manual_seed(0)
    pair = nn.ModuleList(
        (SameConv2d(channels, out_channels, 1, bias=False), nn.BatchNorm2d(out_channels, **BATCH_NORM))
    )
    nn.init.normal_(pair[1].weight)
    nn.init.normal_(pair[1].bias)
    return pair.double()


def outputs_and_gradients(function, x, pair):
    x = x.detach().requires_grad_()
    output = function(x, *pair)
    factors = torch.linspace(-1, 1, output.numel(), dtype=output.dtype).view_as(output)
    return output, *torch.autograd.grad((output * factors).sum(), (x, *pair.parameters()))


@pytest.mark.parametrize("size", [(9, 8), (2, 2)])  # enough pixels to fold, and too few
@pytest.mark.parametrize("memory_format", [torch.channels_last, torch.contiguous_format])
def test_outputs_gradients_and_statistics_are_those_of_the_two_layers(size, memory_format):
    pair = layers(4, 10)
    plain = copy.deepcopy(pair)
    x = (3 + 2 * torch.randn(3, 4, *size, dtype=torch.float64)).to(memory_format=memory_format)
    found = outputs_and_gradients(normalized_pointwise, x, pair)
    expected = outputs_and_gradients(lambda x, conv, norm: norm(conv(x)), x, plain)
    for value, expected_value in zip((*found, *pair.buffers()), (*expected, *plain.buffers()), strict=True):
        torch.testing.assert_close(value, expected_value, rtol=1e-9, atol=1e-9)


def test_statistics_of_a_constant_channel_are_finite():
    pair = layers(4, 10)
    output, *gradients = outputs_and_gradients(normalized_pointwise, torch.ones(3, 4, 9, 9, dtype=torch.float64), pair)
    torch.testing.assert_close(output[0, :, 0, 0], pair[1].bias, rtol=1e-9, atol=1e-9)
    assert all(gradient.isfinite().all() for gradient in gradients)


@pytest.mark.parametrize("frozen", [True, False])
def test_folding_happens_in_training_only(frozen, monkeypatch):
    folded = []
    moments = cpu_training._Moments.apply
    monkeypatch.setattr(cpu_training._Moments, "apply", lambda x: folded.append(x) or moments(x))
    pair = layers(4, 10).train(not frozen)
    x = torch.randn(2, 4, 9, 9, dtype=torch.float64)
    normalized_pointwise(x, *pair)
    with torch.no_grad():
        normalized_pointwise(x, *pair)
    assert len(folded) == (not frozen)
