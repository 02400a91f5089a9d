"""Backbones of other publishers, with random numbers, for the tests of converted ImageNet weights."""

import re
from functools import cache

import pytest
import torch
import torchvision
from torch import Tensor, nn

from efficientnet.model import EfficientNet

_BATCH_NORM = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")


def as_efficientnet_pytorch(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return our state dict under EfficientNet-PyTorch's keys, with a classification head."""
    head = {f"_bn1.{entry}": torch.ones(1280) for entry in _BATCH_NORM}
    head |= {"_conv_head.weight": torch.ones(1280, 320, 1, 1), "_fc.weight": torch.ones(1000, 1280)}
    return {re.sub(r"\.conv\.(weight|bias)$", r".\1", key): value for key, value in state.items()} | head


@cache
def random_state(index: int) -> dict[str, Tensor]:
    """Return a state dict of our B`index` with random numbers in every entry. Do not modify it."""
    torch.manual_seed(index)
    return randomize(EfficientNet(index)).state_dict()


def randomize(network: nn.Module) -> nn.Module:
    """Fill all batch norms with random numbers, with variances for which epsilons of 1e-5 and 1e-3 differ."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.05, 0.15)
            nn.init.normal_(module.bias)
            nn.init.normal_(module.running_mean)
            nn.init.uniform_(module.running_var, 1e-4, 5e-3)
            nn.init.constant_(module.num_batches_tracked, 7)
    return network


def torchvision_network(index: int) -> nn.Module:
    torch.manual_seed(index)
    network = getattr(torchvision.models, f"efficientnet_b{index}")(weights=None)
    return randomize(network).double().eval()


def torchvision_features(network: nn.Module, images: Tensor) -> list[Tensor]:
    """Return P3, P4 and P5: the outputs of stages 3, 5 and 7. Stage 0 is the stem."""
    features = []
    for stage, layers in enumerate(network.features[:8]):
        images = layers(images)
        if stage in (3, 5, 7):
            features.append(images)
    return features


def timm_network(name: str) -> nn.Module:
    """Return a network of timm whose outputs are P3, P4 and P5."""
    torch.manual_seed(0)
    network = pytest.importorskip("timm").create_model(name, features_only=True, out_indices=(2, 3, 4))
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.normal_(module.weight, std=module.weight[0].numel() ** -0.5)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    randomize(network)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.weight.data /= 3  # otherwise activations grow from block to block
    return network.double().eval()
