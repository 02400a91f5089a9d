"""Weights in and out, published files, training state, and `last`.

A checkpoint `efficientdet-d{coef}_{epoch}_{step}.pth` is a plain state dict, as the reference writes it. Beside the
newest lies `efficientdet-d{coef}_last.state` with all that a run needs to go on, the weights among it: one rename moves
`last` from one complete checkpoint to the next, whatever becomes of the other files.
"""

from pathlib import Path

from torch import Tensor

from efficientdet.checkpoints.effdet import EFFDET_MARK
from efficientdet.checkpoints.find import _published_backbone, find_weights, is_exported
from efficientdet.config import CONFIGS
from efficientdet.model.network import EfficientDet, initialize, initialize_class_prior
from efficientnet.pretrained import convert_backbone_weights
from utils.errors import InputError
from utils.tensor_files import is_state_dict, load_tensors

_CLASS_HEADER = "classifier.header.pointwise_conv"


_CONVERT = "convert it with python -m efficientdet.convert_weights"


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """The network's tensors in a weights file or a training state, on the CPU. Nothing in the file is executed.

    InputError for any other file.
    """
    if is_exported(path):
        raise InputError(f"{path} is an exported file, and this needs weights: pass those that it was made of")
    content = load_tensors(path)
    if path.suffix == ".state" and isinstance(content, dict):
        content = content.get("network")
    if not is_state_dict(content):
        raise InputError(
            f"{path} does not hold a plain state dict: it is no weights file of EfficientDet; "
            "python -m efficientdet.convert_weights knows files of other programs"
        )
    return content


def load_weights(network: EfficientDet, path: Path | str, new_class_header: bool = False) -> bool:
    """Load a weights file into `network`, as `fit_weights` does."""
    path = Path(path)
    return fit_weights(network, read_state_dict(path), path, new_class_header)


def fit_weights(network: EfficientDet, weights: dict[str, Tensor], path: Path, new_class_header: bool = False) -> bool:
    """Put `weights`, which come from `path`, into `network`; every key and shape must fit.

    With `new_class_header`, weights for another number of classes are taken too: their class header alone is left out,
    and the network's is initialised afresh. Returns whether that happened.

    Raises InputError, with a guess at the cause, when the weights do not fit.
    """
    expected = network.state_dict()
    misfits = [key for key in expected if key not in weights or weights[key].shape != expected[key].shape]
    unknown = [key for key in weights if key not in expected]
    other_classes = (
        not unknown
        and set(misfits) == {f"{_CLASS_HEADER}.conv.weight", f"{_CLASS_HEADER}.conv.bias"}
        and all(key in weights for key in misfits)
        and _anchors_per_cell(weights) == _anchors_per_cell(expected)
    )
    if misfits and not (other_classes and new_class_header) or unknown:
        raise InputError(f"{path} does not fit: {_guess_cause(weights, network, misfits, unknown, other_classes)}")
    if misfits:
        header = network.get_submodule(_CLASS_HEADER)
        initialize(header)
        initialize_class_prior(header)
        weights = {**weights, **{key: network.state_dict()[key] for key in misfits}}
    network.load_state_dict(weights, strict=True)
    return bool(misfits)


def load_backbone(network: EfficientDet, requested: str) -> None:
    """Load ImageNet weights into the backbone of `network`; all else in it stays as it is.

    `requested` is a file of EfficientNet-PyTorch, torchvision or timm (`efficientnet.pretrained` tells what differs),
    or "imagenet": the published file of the network's backbone, which is downloaded unless it lies in `weights/`.

    Raises InputError when the file does not fit or cannot be had; the network is unchanged then.
    """
    index = network.config.backbone
    path = _published_backbone(index) if requested == "imagenet" else find_weights(requested)
    weights = read_state_dict(path)
    if any(key.startswith("backbone_net.") for key in weights):
        raise InputError(f"{path} holds a whole EfficientDet, not a backbone alone: pass it with -w")
    if EFFDET_MARK in weights:
        raise InputError(f"{path} holds a whole detector of effdet's: {_CONVERT}, and pass it with -w")
    try:
        converted = convert_backbone_weights(weights, index, str(path))
    except ValueError as error:
        raise InputError(
            f"{path} does not fit the backbone of D{network.compound_coef}: {error}; "
            "pass another file, or imagenet to download the published one"
        ) from error
    network.backbone_net["model"].load_state_dict(converted, strict=True)


def _anchors_per_cell(weights: dict[str, Tensor]) -> int:
    return weights["regressor.header.pointwise_conv.conv.bias"].numel() // 4


def _guess_cause(
    weights: dict[str, Tensor], network: EfficientDet, misfits: list[str], unknown: list[str], other_classes: bool
) -> str:
    if other_classes:
        in_file = weights[f"{_CLASS_HEADER}.conv.bias"].numel() // _anchors_per_cell(weights)
        return f"it has {in_file} classes, the project has {network.num_classes}; pass weights trained on this project"
    if weights and all(key.startswith("module.") for key in weights):
        return "its keys begin with 'module.', as DataParallel saves them; save the wrapped module's state dict instead"
    if EFFDET_MARK in weights:
        return f"it is a file of effdet's; {_CONVERT}"
    coefs = guess_compound_coefs(weights)
    if coefs and network.compound_coef not in coefs:
        names = " or ".join(f"D{coef}" for coef in coefs)
        return f"this looks like {names}, you passed -c {network.compound_coef}"
    if coefs and _anchors_per_cell(weights) != _anchors_per_cell(network.state_dict()):
        return (
            f"it has {_anchors_per_cell(weights)} anchors in each cell, the project's anchors_scales and "
            f"anchors_ratios make {_anchors_per_cell(network.state_dict())}"
        )
    if coefs and misfits and misfits[0] in weights:
        expected = tuple(network.state_dict()[misfits[0]].shape)
        return f"{misfits[0]} is shaped {tuple(weights[misfits[0]].shape)}, not {expected}; the file may be damaged"
    example = f"it lacks {misfits[0]}" if misfits else f"it has {unknown[0]}"
    return f"{example}; it seems to belong to another program or version"


def guess_compound_coefs(weights: dict[str, Tensor]) -> list[int]:
    """The coefficients whose shape a state dict has: none, one, or D6 and D7, which differ in their input only."""
    width = weights.get("bifpn.0.conv3_up.pointwise_conv.conv.weight")
    if width is None or "regressor.header.pointwise_conv.conv.bias" not in weights:
        return []
    cells = {key.split(".")[1] for key in weights if key.startswith("bifpn.")}
    levels = {key.split(".")[2] for key in weights if key.startswith("regressor.bn_list.")}
    return [
        coef
        for coef, config in enumerate(CONFIGS)
        if (config.bifpn_channels, config.bifpn_cells, len(config.pyramid_levels))
        == (len(width), len(cells), len(levels))
    ]
