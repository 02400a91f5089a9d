"""ImageNet weights of EfficientNet B0-B7, as others publish them, for `EfficientNet`. Three families are known:

EfficientNet-PyTorch (`efficientnet-b0-355c32eb.pth`) computes as we do: batch-norm epsilon 1e-3, SAME padding. Its
weights are taken as they are. (Its AdvProp files have the same keys, but were trained on pixels from -1 to 1 instead of
ImageNet's mean and std; nothing in a file tells.)

torchvision (`efficientnet_b0`) differs in two points:
- Its B0-B4 have batch-norm epsilon 1e-5. `scale * sqrt((variance + 1e-3) / (variance + 1e-5))` makes up for it exactly
  in evaluation mode. In training mode a batch norm divides by the batch's own variance, which no weight can know: there
  the new scale is right only as far as that variance is the running one.
- It pads both sides alike. On an even side, each of its stride-2 convolutions reads one pixel before ours: it pads a
  3x3 kernel by (1, 1), we by (0, 1). No weight can make up for that; training has to absorb it. On sides of 32 k + 1
  pixels the two agree. (torchvision's B5-B7 are EfficientNet-PyTorch's, which were trained with SAME padding: for them
  it is torchvision that deviates.)

timm has two networks under the same keys. `tf_efficientnet_b0` computes as we do; `efficientnet_b0` differs as
torchvision's B0 does, and so do its larger ones. Only the path of a file can tell them apart.
"""

import re
from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from efficientnet.model import BASELINE_STAGES, BATCH_NORM, SCALING, EfficientNet, round_channels, round_repeats

_OTHER_EPS = 1e-5  # PyTorch's own default, in the networks of torchvision and timm that differ from ours
_TORCHVISION_WITH_OTHER_EPS = range(5)  # B0 to B4

_TORCHVISION_STEM = {"_conv_stem.conv": "features.0.0", "_bn0": "features.0.1"}
# Layer of our block: place in torchvision's list of a block's layers, and the name there.
_TORCHVISION_BLOCK = {
    "_expand_conv.conv": (0, "0"),
    "_bn0": (0, "1"),
    "_depthwise_conv.conv": (1, "0"),
    "_bn1": (1, "1"),
    "_se_reduce.conv": (2, "fc1"),
    "_se_expand.conv": (2, "fc2"),
    "_project_conv.conv": (3, "0"),
    "_bn2": (3, "1"),
}
_TIMM_STEM = {"_conv_stem.conv": "conv_stem", "_bn0": "bn1"}
# Layer of our block: its name in timm's block, and in timm's block without expansion.
_TIMM_BLOCK = {
    "_expand_conv.conv": ("conv_pw", None),
    "_bn0": ("bn1", None),
    "_depthwise_conv.conv": ("conv_dw", "conv_dw"),
    "_bn1": ("bn2", "bn1"),
    "_se_reduce.conv": ("se.conv_reduce", "se.conv_reduce"),
    "_se_expand.conv": ("se.conv_expand", "se.conv_expand"),
    "_project_conv.conv": ("conv_pwl", "conv_pw"),
    "_bn2": ("bn3", "bn2"),
}


class Family(NamedTuple):
    """Who publishes weights, and how their files look."""

    name: str
    mark: str  # a key of every file
    head: tuple[str, ...]  # how the keys of the classification head begin, which a detector has no use for
    key: Callable[[str, int], str]  # its name of an entry of `EfficientNet(index)`


def find_family(weights: Mapping[str, Tensor]) -> Family | None:
    """Whose keys a state dict has."""
    return next((family for family in FAMILIES if family.mark in weights), None)


def guess_index(weights: Mapping[str, Tensor], family: Family) -> int | None:
    """The B-index whose last block is where and as wide as the last one of `weights`, if there is one."""
    # From the deepest down: a stage of B1 begins as that of B0 does.
    for index in reversed(range(len(SCALING))):
        last = sum(_stage_repeats(index)) - 1
        channels = round_channels(BASELINE_STAGES[-1].out_channels, SCALING[index][0])
        bias = weights.get(family.key(f"_blocks.{last}._bn2.bias", index))
        if bias is not None and bias.shape == (channels,):
            return index
    return None


def convert_backbone_weights(weights: Mapping[str, Tensor], index: int, path: str = "") -> dict[str, Tensor]:
    """The state dict of `EfficientNet(index)` from one of B`index` of any family.

    The classification head is left out; a file without it will do. Missing counters of batches begin at 0. `weights`
    stays as it is. `path` is where they come from: it matters for timm's alone.

    Raises ValueError when `weights` belong to another coefficient or another network, or lack or exceed something.
    """
    family = find_family(weights)
    if family is None:
        marks = ", ".join(f"{family.name} (no {family.mark})" for family in FAMILIES)
        raise ValueError(f"it is no EfficientNet B0 to B7 of {marks}")
    looks_like = guess_index(weights, family)
    if looks_like not in (None, index):
        raise ValueError(f"it looks like EfficientNet B{looks_like}, B{index} is needed")
    eps = batch_norm_eps(family, index, path)

    with torch.device("meta"):  # shapes alone
        expected = EfficientNet(index).state_dict()
    body = {key: value for key, value in weights.items() if not key.startswith(family.head)}
    sources = {key: family.key(key, index) for key in expected}
    return _with_our_eps(renamed(body, sources, expected, f"EfficientNet B{index}"), eps)


def batch_norm_eps(family: Family, index: int, path: str) -> float:
    """The epsilon of a family's B`index`. ValueError when the `path` of a file of timm's tells too little."""
    if family is TORCHVISION and index in _TORCHVISION_WITH_OTHER_EPS:
        return _OTHER_EPS
    if family is TIMM:
        models = re.findall(r"(tf_)?efficientnet_b\d", path)
        if not models:
            raise ValueError(
                f"it is timm's tf_efficientnet_b{index} or efficientnet_b{index}, which have the same keys but not the "
                "same arithmetic: rename the file or its folder after the model"
            )
        return BATCH_NORM["eps"] if models[-1] else _OTHER_EPS
    return BATCH_NORM["eps"]


def renamed(
    weights: Mapping[str, Tensor], sources: Mapping[str, str], expected: Mapping[str, Tensor], network: str
) -> dict[str, Tensor]:
    """`weights` under other names.

    Args:
        sources: new name -> name in `weights`.
        expected: new name -> a tensor of the shape it must have.
        network: whose weights these are, for the messages.

    Missing counters of batches begin at 0. Raises ValueError when `weights` lack or exceed something.
    """
    result = {}
    for key, source in sources.items():
        value = weights.get(source)
        if value is None and key.endswith(".num_batches_tracked"):
            value = torch.tensor(0)
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


def efficientnet_pytorch_key(key: str, index: int) -> str:
    """EfficientNet-PyTorch's name of an entry of `EfficientNet(index)`."""
    return key.replace(".conv.", ".")


def torchvision_key(key: str, index: int) -> str:
    """torchvision's name of an entry of `EfficientNet(index)`."""
    layer, _, entry = key.rpartition(".")
    if layer in _TORCHVISION_STEM:
        return f"{_TORCHVISION_STEM[layer]}.{entry}"
    stage, repeat, layer = _stage_repeat_layer(layer, index)
    place, name = _TORCHVISION_BLOCK[layer]
    if BASELINE_STAGES[stage].expand_ratio == 1:  # without the expansion, the other layers move up
        place -= 1
    return f"features.{stage + 1}.{repeat}.block.{place}.{name}.{entry}"


def timm_key(key: str, index: int) -> str:
    """timm's name of an entry of `EfficientNet(index)`."""
    layer, _, entry = key.rpartition(".")
    if layer in _TIMM_STEM:
        return f"{_TIMM_STEM[layer]}.{entry}"
    stage, repeat, layer = _stage_repeat_layer(layer, index)
    name = _TIMM_BLOCK[layer][BASELINE_STAGES[stage].expand_ratio == 1]
    return f"blocks.{stage}.{repeat}.{name}.{entry}"


EFFICIENTNET_PYTORCH = Family(
    "EfficientNet-PyTorch", "_conv_stem.weight", ("_conv_head.", "_bn1.", "_fc."), efficientnet_pytorch_key
)
# EfficientNet V2 has no squeeze-and-excitation in its first block.
TORCHVISION = Family("torchvision", "features.1.0.block.1.fc1.weight", ("features.8.", "classifier."), torchvision_key)
TIMM = Family("timm", "blocks.0.0.se.conv_reduce.weight", ("conv_head.", "bn2.", "classifier."), timm_key)
FAMILIES = (EFFICIENTNET_PYTORCH, TORCHVISION, TIMM)


def _stage_repeat_layer(layer: str, index: int) -> tuple[int, int, str]:
    """Where the layer "_blocks.7._bn2" stands in B`index`: its stage, the block's number there from 0, and "_bn2"."""
    _, number, layer = layer.split(".", 2)
    block = int(number)
    for stage, repeats in enumerate(_stage_repeats(index)):
        if block < repeats:
            return stage, block, layer
        block -= repeats
    raise IndexError(f"EfficientNet B{index} has not so many blocks")


def _stage_repeats(index: int) -> list[int]:
    _, depth = SCALING[index]
    return [round_repeats(stage.repeats, depth) for stage in BASELINE_STAGES]


def _with_our_eps(state: dict[str, Tensor], eps: float) -> dict[str, Tensor]:
    """Batch norms of epsilon `eps` with the scales that give the same output in evaluation mode with our epsilon."""
    if eps == BATCH_NORM["eps"]:
        return state
    scaled = dict(state)
    for key, variance in state.items():
        if key.endswith(".running_var"):
            scale_key = key.removesuffix("running_var") + "weight"
            scale, variance = state[scale_key], variance.double()
            ratio = ((variance + BATCH_NORM["eps"]) / (variance + eps)).sqrt()
            scaled[scale_key] = (scale.double() * ratio).to(scale.dtype)
    return scaled
