"""Initial weights, those of google/automl: each part of the network draws its kernels differently.

- Backbone: normal with variance 2 / fan_out (`conv_kernel_initializer` in backbone/efficientnet_model.py).
- BiFPN: Keras's default, Glorot's uniform distribution, variance 2 / (fan_in + fan_out) (`OpAfterCombine` and
  `ResampleFeatureMap` in keras/efficientdet_keras.py).
- Heads: normal with variance 1 / fan_in, truncated at two standard deviations (`VarianceScaling()`, in `ClassNet` and
  `BoxNet` of the same file).

Fans are counted as Keras counts them, by the kernel's shape: a depthwise one is (k, k, channels, 1), so that its fan_in
is k**2 * channels and its fan_out k**2. Biases are 0, except for the class header's. Batch norms and fusion weights
begin at 1, biases of batch norms at 0.
"""

import math

import torch
from torch import nn

PRIOR_PROBABILITY = 0.01  # of an object at any anchor, before training (RetinaNet paper, section 4.1)
NEW_HEADER_STD = 0.01  # RetinaNet paper, section 4.1
# The standard deviation of a standard normal distribution that is truncated at -2 and 2.
_TRUNCATED_STD = 0.87962566103423978


def initialize_backbone(backbone: nn.Module) -> None:
    """Initialize every convolution of an EfficientNet."""
    for conv in _convolutions(backbone):
        _, fan_out = _keras_fans(conv)
        nn.init.normal_(conv.weight, std=math.sqrt(2 / fan_out))


def initialize_bifpn(bifpn: nn.Module) -> None:
    """Initialize every convolution of a BiFPN."""
    for conv in _convolutions(bifpn):
        limit = math.sqrt(6 / sum(_keras_fans(conv)))
        nn.init.uniform_(conv.weight, -limit, limit)


@torch.no_grad()
def initialize_head(head: nn.Module) -> None:
    """Initialize every convolution of a prediction head."""
    reach = math.erf(2 / math.sqrt(2))  # two standard deviations, where the distribution is truncated
    for conv in _convolutions(head):
        fan_in, _ = _keras_fans(conv)
        std = math.sqrt(1 / fan_in) / _TRUNCATED_STD
        conv.weight.uniform_(-reach, reach).erfinv_().mul_(math.sqrt(2) * std)


def initialize_class_prior(class_header: nn.Module) -> None:
    """Set the bias of the class header so that every score starts at `PRIOR_PROBABILITY`."""
    bias = -math.log((1 - PRIOR_PROBABILITY) / PRIOR_PROBABILITY)
    nn.init.constant_(class_header.get_parameter("conv.bias"), bias)


def initialize_new_class_header(class_header: nn.Module) -> None:
    """Initialize a class header on features that are trained: every score starts close to the prior.

    Larger weights would make logits of any size on these features, and losses with hardly any gradient.
    """
    nn.init.normal_(class_header.get_parameter("conv.weight"), std=NEW_HEADER_STD)
    initialize_class_prior(class_header)


def _convolutions(module: nn.Module) -> list[nn.Conv2d]:
    """Return the convolutions of `module`, their biases set to 0."""
    convolutions = [conv for conv in module.modules() if isinstance(conv, nn.Conv2d)]
    for conv in convolutions:
        if conv.bias is not None:
            nn.init.zeros_(conv.bias)
    return convolutions


def _keras_fans(conv: nn.Conv2d) -> tuple[int, int]:
    """Return (fan_in, fan_out), of a depthwise convolution as Keras counts them."""
    area = conv.kernel_size[0] * conv.kernel_size[1]
    return area * conv.in_channels, area * conv.out_channels // conv.groups
