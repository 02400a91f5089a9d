"""ImageNet weights of EfficientNet B0 to B7 from three publishers, for `EfficientNet`.

EfficientNet-PyTorch (`efficientnet-b0-355c32eb.pth`) has our arithmetic: batch-norm epsilon 1e-3, SAME padding. Its
weights are used unchanged. (Its AdvProp files have the same keys, but were trained on pixels from -1 to 1 instead of
ImageNet's mean and std. Nothing in a file tells them apart.)

torchvision (`efficientnet_b0`) differs in two ways:
- B0 to B4 have batch-norm epsilon 1e-5. In evaluation mode, `scale * sqrt((variance + 1e-3) / (variance + 1e-5))`
  compensates exactly. In training mode a batch norm divides by the variance of the batch, so the new scale is only as
  accurate as the running variance.
- Padding is symmetric. On an even side, each stride-2 convolution therefore reads one pixel before ours: a 3x3 kernel
  is padded by (1, 1) instead of (0, 1). Weights cannot compensate; training has to adapt. On sides of 32 k + 1 pixels
  both agree. (B5 to B7 come from EfficientNet-PyTorch, trained with SAME padding: there torchvision deviates.)

timm has two networks with the same keys. `tf_efficientnet_b0` has our arithmetic; `efficientnet_b0` differs as
torchvision's B0 does, and so do its larger variants. Only a file's path can tell them apart.
"""

import re
from collections.abc import Callable, Mapping
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

from efficientnet.model import BASELINE_STAGES, BATCH_NORM, SCALING, EfficientNet, scaled_stages

_PYTORCH_EPS = 1e-5  # PyTorch's default, in the networks of torchvision and timm that differ from ours

# Layer of our MBConv block -> its name in the other program's block with expansion, and in that without.
_TORCHVISION_LAYERS = {
    "_expand_conv.conv": ("0.0", ""),
    "_bn0": ("0.1", ""),
    "_depthwise_conv.conv": ("1.0", "0.0"),
    "_bn1": ("1.1", "0.1"),
    "_se_reduce.conv": ("2.fc1", "1.fc1"),
    "_se_expand.conv": ("2.fc2", "1.fc2"),
    "_project_conv.conv": ("3.0", "2.0"),
    "_bn2": ("3.1", "2.1"),
}
_TIMM_LAYERS = {
    "_expand_conv.conv": ("conv_pw", ""),
    "_bn0": ("bn1", ""),
    "_depthwise_conv.conv": ("conv_dw", "conv_dw"),
    "_bn1": ("bn2", "bn1"),
    "_se_reduce.conv": ("se.conv_reduce", "se.conv_reduce"),
    "_se_expand.conv": ("se.conv_expand", "se.conv_expand"),
    "_project_conv.conv": ("conv_pwl", "conv_pw"),
    "_bn2": ("bn3", "bn2"),
}


class Family(NamedTuple):
    """A publisher of weights, and how its state dicts are keyed."""

    name: str
    mark: str  # a key of every file
    head: tuple[str, ...]  # prefixes of the classification head, which is not loaded
    key: Callable[[str, int], str]  # key of `EfficientNet(index)`, index -> the publisher's key


def efficientnet_pytorch_key(key: str, index: int) -> str:
    """Return EfficientNet-PyTorch's key for a key of `EfficientNet(index)`."""
    return key.replace(".conv.", ".")


def torchvision_key(key: str, index: int) -> str:
    """Return torchvision's key for a key of `EfficientNet(index)`."""
    stem = {"_conv_stem.conv": "features.0.0", "_bn0": "features.0.1"}
    return _translate(key, index, stem, "features.{next_stage}.{position}.block", _TORCHVISION_LAYERS)


def timm_key(key: str, index: int) -> str:
    """Return timm's key for a key of `EfficientNet(index)`."""
    stem = {"_conv_stem.conv": "conv_stem", "_bn0": "bn1"}
    return _translate(key, index, stem, "blocks.{stage}.{position}", _TIMM_LAYERS)


def _translate(key: str, index: int, stem: Mapping[str, str], block: str, layers: Mapping[str, tuple[str, str]]) -> str:
    layer, _, entry = key.rpartition(".")
    if layer in stem:
        return f"{stem[layer]}.{entry}"
    _, number, name = layer.split(".", 2)  # such as "_blocks", "7", "_bn2"
    stage, position = _block_positions(index)[int(number)]
    with_expansion, without_expansion = layers[name]
    name = without_expansion if BASELINE_STAGES[stage].expand_ratio == 1 else with_expansion
    return f"{block.format(stage=stage, next_stage=stage + 1, position=position)}.{name}.{entry}"


@cache
def _block_positions(index: int) -> list[tuple[int, int]]:
    """Return (stage, position in the stage) of each block of B`index`."""
    return [(number, i) for number, stage in enumerate(scaled_stages(index)) for i in range(stage.repeats)]


EFFICIENTNET_PYTORCH = Family(
    "EfficientNet-PyTorch", "_conv_stem.weight", ("_conv_head.", "_bn1.", "_fc."), efficientnet_pytorch_key
)
# The mark excludes EfficientNet V2, which has no squeeze-and-excitation in its first block.
TORCHVISION = Family("torchvision", "features.1.0.block.1.fc1.weight", ("features.8.", "classifier."), torchvision_key)
TIMM = Family("timm", "blocks.0.0.se.conv_reduce.weight", ("conv_head.", "bn2.", "classifier."), timm_key)
FAMILIES = (EFFICIENTNET_PYTORCH, TORCHVISION, TIMM)


def guess_index(weights: Mapping[str, Tensor], family: Family) -> int | None:
    """Return the index whose last block has the position and width of that in `weights`, or None."""
    # In descending order, because a stage of B1 begins like that of B0.
    for index in reversed(range(len(SCALING))):
        last = len(_block_positions(index)) - 1
        bias = weights.get(family.key(f"_blocks.{last}._bn2.bias", index))
        if bias is not None and bias.shape == (scaled_stages(index)[-1].out_channels,):
            return index
    return None


def convert_backbone_weights(weights: Mapping[str, Tensor], index: int, path: str = "") -> dict[str, Tensor]:
    """Return a state dict of `EfficientNet(index)` from the published `weights`, without their classification head.

    The file's `path` distinguishes timm's two networks. Raises ValueError if the weights are of another index or
    network, or if keys are missing or unexpected.
    """
    family = next((family for family in FAMILIES if family.mark in weights), None)
    if family is None:
        marks = ", ".join(f"{family.name} (no {family.mark})" for family in FAMILIES)
        raise ValueError(f"it is no EfficientNet B0 to B7 of {marks}")
    guess = guess_index(weights, family)
    if guess not in (None, index):
        raise ValueError(f"it looks like EfficientNet B{guess}, B{index} is needed")
    eps = batch_norm_eps(family, index, path)

    with torch.device("meta"):  # shapes only
        expected = EfficientNet(index).state_dict()
    body = {key: value for key, value in weights.items() if not key.startswith(family.head)}
    sources = {key: family.key(key, index) for key in expected}
    state = rename_keys(body, sources, expected, f"EfficientNet B{index}")
    if eps != BATCH_NORM["eps"]:  # rescale batch norms, to have the same output in evaluation mode
        for key in [key for key in state if key.endswith(".running_var")]:
            variance, scale_key = state[key].double(), key.removesuffix("running_var") + "weight"
            ratio = ((variance + BATCH_NORM["eps"]) / (variance + eps)).sqrt()
            state[scale_key] = (state[scale_key].double() * ratio).to(state[scale_key].dtype)
    return state


def batch_norm_eps(family: Family, index: int, path: str) -> float:
    """Return the batch-norm epsilon of a family's B`index`. Raises ValueError if timm's `path` is ambiguous."""
    if family is TORCHVISION and index <= 4:
        return _PYTORCH_EPS
    if family is TIMM:
        prefixes = re.findall(r"(tf_)?efficientnet_b\d", path)
        if not prefixes:
            names = f"tf_efficientnet_b{index} or efficientnet_b{index}, which have the same keys but not the same"
            raise ValueError(f"it is timm's {names} arithmetic: rename the file or its folder after the model")
        if not prefixes[-1]:
            return _PYTORCH_EPS
    return BATCH_NORM["eps"]


def rename_keys(
    weights: Mapping[str, Tensor], sources: Mapping[str, str], expected: Mapping[str, Tensor], network: str
) -> dict[str, Tensor]:
    """Return `weights` under other keys. Missing `num_batches_tracked` counters start at 0.

    `sources` maps each new key to its key in `weights`, `expected` to a tensor of its shape. Raises ValueError, which
    calls the network `network`, if keys are missing or unexpected, or if a shape differs.
    """
    result = {}
    for key, source in sources.items():
        value = weights.get(source, torch.tensor(0) if key.endswith(".num_batches_tracked") else None)
        if value is None:
            raise ValueError(f"it lacks {source} of {network}")
        if value.shape != expected[key].shape:
            raise ValueError(f"{source} is shaped {tuple(value.shape)}, not {tuple(expected[key].shape)}")
        result[key] = value
    known = set(sources.values())
    unknown = [key for key in weights if key not in known]
    if unknown:
        raise ValueError(f"it has {unknown[0]}, which {network} has not")
    return result
