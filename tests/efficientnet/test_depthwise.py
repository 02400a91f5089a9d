"""Half-precision depthwise convolution on the CPU: PyTorch's output, and the gradients of exact arithmetic."""

import pytest
import torch
import torch.nn.functional as F

from efficientnet.depthwise import depthwise_conv2d

HALVES = (torch.bfloat16, torch.float16)


def gradients(convolution, x, weight, factors):
    x, weight = x.clone().requires_grad_(), weight.clone().requires_grad_()
    output = convolution(x, weight)
    (output * factors.to(output.dtype)).sum().backward()
    return output.detach(), x.grad, weight.grad


@pytest.mark.parametrize("dtype", HALVES)
def test_gradient_of_an_empty_batch_is_zero(dtype):
    x = torch.zeros(0, 3, 8, 8, dtype=dtype, requires_grad=True)
    weight = torch.ones(3, 1, 5, 5, dtype=dtype, requires_grad=True)
    depthwise_conv2d(x, weight, 1, (2, 2, 2, 2)).sum().backward()
    assert x.grad.shape == x.shape
    assert torch.equal(weight.grad, torch.zeros(3, 1, 5, 5, dtype=dtype))


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("kernel_size", [3, 4, 5, 7])
@pytest.mark.parametrize("padding", [(0, 0, 0, 0), (0, 1, 0, 1), (1, 2, 1, 2), (2, 2, 1, 1), (1, 0, 2, 0)])
@pytest.mark.parametrize("size", [(11, 9), (12, 10)])
def test_gradients_are_those_of_float64(dtype, stride, kernel_size, padding, size):
    generator = torch.Generator().manual_seed(0)
    # Sums of small integers are exact in half precision, too.
    x = torch.randint(-2, 3, (2, 6, *size), generator=generator).to(memory_format=torch.channels_last)
    weight = torch.randint(-1, 2, (6, 1, kernel_size, kernel_size), generator=generator)

    def ours(x, weight):
        return depthwise_conv2d(x, weight, stride, padding)

    def exact(x, weight):
        return F.conv2d(F.pad(x, padding), weight, None, stride, groups=6)

    shape = exact(x.double(), weight.double()).shape
    factors = torch.randint(-1, 2, shape, generator=generator)
    expected = gradients(exact, x.double(), weight.double(), factors)
    found = gradients(ours, x.to(dtype), weight.to(dtype), factors)
    for value, expected_value in zip(found, expected, strict=True):
        assert value.dtype == dtype
        torch.testing.assert_close(value.double(), expected_value, rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_float32_and_float64_are_computed_by_pytorch(dtype):
    x, weight, factors = torch.randn(2, 4, 9, 9, dtype=dtype), torch.randn(4, 1, 5, 5, dtype=dtype), torch.ones(1)
    expected = gradients(lambda x, w: F.conv2d(x, w, None, 2, 1, groups=4), x, weight, factors)
    found = gradients(lambda x, w: depthwise_conv2d(x, w, 2, (1, 1, 1, 1)), x, weight, factors)
    for value, expected_value in zip(found, expected, strict=True):
        assert torch.equal(value, expected_value)


def test_autocast_computes_in_its_dtype_with_gradients_in_float32():
    x, weight = torch.ones(1, 2, 5, 5, requires_grad=True), torch.ones(2, 1, 5, 5, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        output = depthwise_conv2d(x, weight, 1, (2, 2, 2, 2))
    output.float().sum().backward()
    assert output.dtype == torch.bfloat16
    assert x.grad.dtype == weight.grad.dtype == torch.float32
    assert output[0, 0].tolist()[2] == [15, 20, 25, 20, 15]  # number of the window's pixels inside the image
    assert weight.grad[0, 0].tolist()[2] == [15, 20, 25, 20, 15]


def test_autocast_does_not_change_float64():
    x = torch.ones(1, 2, 5, 5, dtype=torch.float64)
    with torch.autocast("cpu", torch.bfloat16):
        assert depthwise_conv2d(x, torch.ones(2, 1, 3, 3, dtype=torch.float64), 1, (1, 1, 1, 1)).dtype == torch.float64
