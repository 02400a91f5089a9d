"""Squeeze-and-excitation with gated weights computes what it does with gated activations."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from efficientnet.cpu_training import excite_and_project
from efficientnet.layers import SameConv2d


def convolutions(channels: int, out_channels: int, dtype: torch.dtype = torch.float64) -> nn.ModuleList:
    torch.manual_seed(0)
    parts = (SameConv2d(channels, 3, 1), SameConv2d(3, channels, 1), SameConv2d(channels, out_channels, 1, bias=False))
    return nn.ModuleList(parts).to(dtype)


def plain(x, reduce, expand, project):
    gate = expand(F.silu(reduce(x.mean(dim=(2, 3), keepdim=True)))).sigmoid()
    return project(gate * x)


def outputs_and_gradients(function, x, convs):
    x = x.detach().requires_grad_()
    output = function(x, *convs)
    factors = torch.linspace(-1, 1, output.numel(), dtype=output.dtype).view_as(output)
    return output, *torch.autograd.grad((output * factors).sum(), (x, *convs.parameters()))


def test_empty_batch_has_gradients_of_zero():
    convs = convolutions(8, 4)
    output, *gradients = outputs_and_gradients(excite_and_project, torch.zeros(0, 8, 5, 5, dtype=torch.float64), convs)
    assert output.shape == (0, 4, 5, 5)
    assert not any(gradient.any() for gradient in gradients)


@pytest.mark.parametrize("size", [(6, 5), (2, 1)])  # more pixels than output channels, and fewer
@pytest.mark.parametrize("memory_format", [torch.channels_last, torch.contiguous_format])
def test_outputs_and_gradients_are_those_of_the_definition(size, memory_format):
    convs = convolutions(8, 4)
    x = torch.randn(3, 8, *size, dtype=torch.float64).to(memory_format=memory_format)
    expected = outputs_and_gradients(plain, x, convs)
    for value, expected_value in zip(outputs_and_gradients(excite_and_project, x, convs), expected, strict=True):
        torch.testing.assert_close(value, expected_value, rtol=1e-12, atol=1e-12)


def test_it_is_the_same_without_gradients():
    convs = convolutions(8, 4)
    x = torch.randn(2, 8, 6, 6, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(excite_and_project(x, *convs), plain(x, *convs), rtol=1e-12, atol=1e-12)


def test_autocast_computes_in_its_dtype_with_gradients_in_float32():
    convs = convolutions(8, 4, torch.float32)
    x = torch.randn(2, 8, 6, 6).to(memory_format=torch.channels_last).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        output = excite_and_project(x, *convs)
    output.float().sum().backward()
    assert output.dtype == torch.bfloat16 and output.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(output.float(), plain(x, *convs), rtol=0.05, atol=0.05)
    assert {parameter.grad.dtype for parameter in (x, *convs.parameters())} == {torch.float32}
