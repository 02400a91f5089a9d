"""ImageNet weights of EfficientNet B0-B7, as others publish them, for `EfficientNet`. Two families are known:

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
"""

from collections.abc import Callable

import torch
from torch import Tensor

from efficientnet.model import BASELINE_STAGES, BATCH_NORM, SCALING, EfficientNet, round_channels, round_repeats

# A key that no other network has, and the keys of the classification head, which a detector has no use for.
_EFFICIENTNET_PYTORCH_MARK = "_conv_stem.weight"
_EFFICIENTNET_PYTORCH_HEAD: tuple[str, ...] = ("_conv_head.", "_bn1.", "_fc.")
_TORCHVISION_MARK = "features.1.0.block.1.fc1.weight"  # EfficientNet V2 has no squeeze-and-excitation there
_TORCHVISION_HEAD: tuple[str, ...] = ("features.8.", "classifier.")

_TORCHVISION_EPS = (1e-5, 1e-5, 1e-5, 1e-5, 1e-5, 1e-3, 1e-3, 1e-3)  # B0 to B7
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


def convert_backbone_weights(weights: dict[str, Tensor], index: int) -> dict[str, Tensor]:
    """The state dict of `EfficientNet(index)` from one of EfficientNet-PyTorch's or torchvision's B`index`.

    The classification head is left out; a file without it will do. Missing counters of batches begin at 0. `weights`
    stays as it is.

    Raises ValueError when `weights` belong to another coefficient or another network, or lack or exceed something.
    """
    if _EFFICIENTNET_PYTORCH_MARK in weights:
        published_key, head, eps = _efficientnet_pytorch_key, _EFFICIENTNET_PYTORCH_HEAD, BATCH_NORM["eps"]
    elif _TORCHVISION_MARK in weights:
        published_key, head, eps = _torchvision_key, _TORCHVISION_HEAD, _TORCHVISION_EPS[index]
    else:
        raise ValueError(
            "it is no EfficientNet B0 to B7, neither EfficientNet-PyTorch's "
            f"(no {_EFFICIENTNET_PYTORCH_MARK}) nor torchvision's (no {_TORCHVISION_MARK})"
        )
    looks_like = _guess_index(weights, published_key)
    if looks_like not in (None, index):
        raise ValueError(f"it looks like EfficientNet B{looks_like}, B{index} is needed")

    with torch.device("meta"):  # shapes alone
        expected = EfficientNet(index).state_dict()
    sources = {key: published_key(key, index) for key in expected}
    converted = {}
    for key, source in sources.items():
        value = weights.get(source)
        if value is None and key.endswith(".num_batches_tracked"):
            value = torch.tensor(0)
        if value is None:
            raise ValueError(f"it lacks {source} of EfficientNet B{index}")
        if value.shape != expected[key].shape:
            raise ValueError(f"{source} is shaped {tuple(value.shape)}, not {tuple(expected[key].shape)}")
        converted[key] = value
    known = set(sources.values())
    unknown = [key for key in weights if key not in known and not key.startswith(head)]
    if unknown:
        raise ValueError(f"it has {unknown[0]}, which EfficientNet B{index} has not")
    return _with_our_eps(converted, eps)


def _efficientnet_pytorch_key(key: str, index: int) -> str:
    """EfficientNet-PyTorch's name of an entry of `EfficientNet(index)`."""
    return key.replace(".conv.", ".")


def _torchvision_key(key: str, index: int) -> str:
    """torchvision's name of an entry of `EfficientNet(index)`."""
    layer, _, entry = key.rpartition(".")
    if layer in _TORCHVISION_STEM:
        return f"{_TORCHVISION_STEM[layer]}.{entry}"
    _, block, layer = layer.split(".", 2)
    stage, repeat = _stage_and_repeat(int(block), index)
    place, name = _TORCHVISION_BLOCK[layer]
    if BASELINE_STAGES[stage].expand_ratio == 1:  # without the expansion, the other layers move up
        place -= 1
    return f"features.{stage + 1}.{repeat}.block.{place}.{name}.{entry}"


def _stage_and_repeat(block: int, index: int) -> tuple[int, int]:
    """Where the block of that number stands in B`index`: which stage, and its how-manieth block it is, from 0."""
    for stage, repeats in enumerate(_stage_repeats(index)):
        if block < repeats:
            return stage, block
        block -= repeats
    raise IndexError(f"EfficientNet B{index} has not so many blocks")


def _stage_repeats(index: int) -> list[int]:
    _, depth = SCALING[index]
    return [round_repeats(stage.repeats, depth) for stage in BASELINE_STAGES]


def _guess_index(weights: dict[str, Tensor], published_key: Callable[[str, int], str]) -> int | None:
    """The B-index whose last block is where and as wide as the last one of `weights`, if there is one."""
    # From the deepest down: a stage of torchvision's B1 begins as that of B0 does.
    for index in reversed(range(len(SCALING))):
        last = sum(_stage_repeats(index)) - 1
        channels = round_channels(BASELINE_STAGES[-1].out_channels, SCALING[index][0])
        bias = weights.get(published_key(f"_blocks.{last}._bn2.bias", index))
        if bias is not None and bias.shape == (channels,):
            return index
    return None


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
