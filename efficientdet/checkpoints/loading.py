"""Load weights files into the network, and explain why one does not fit.

A weights file is a plain state dict, as the reference writes it. A training state (`efficientdet-d0_last.state`) holds
the weights too, and their average if one is kept, and is accepted in its place.
"""

from pathlib import Path

from torch import Tensor

from efficientdet.checkpoints.effdet import EFFDET_BOX_BIAS, compound_coefs_of_pyramid
from efficientdet.checkpoints.find import find_backbone, find_weights, is_exported
from efficientdet.model.initialization import initialize_new_class_header
from efficientdet.model.network import BOX_HEADER, CLASS_HEADER, EfficientDet
from efficientnet.pretrained import convert_backbone_weights
from utils.errors import InputError
from utils.tensor_files import is_state_dict, load_tensors

_CONVERT = "convert it with python -m efficientdet.convert_weights"


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """Read weights onto the CPU, without executing code in the file. Raises InputError if it holds none."""
    if is_exported(path):
        raise InputError(f"{path} is an exported file, but weights are needed: pass the weights it was exported from")
    content = load_tensors(path)
    if path.suffix == ".state" and isinstance(content, dict):
        average = content.get("average")
        content = (average if isinstance(average, dict) else content).get("network")
    if not is_state_dict(content):
        raise InputError(f"{path} is not a plain state dict: if it is from another program, {_CONVERT}")
    return content


def load_weights(network: EfficientDet, path: Path | str, new_class_header: bool = False) -> bool:
    """Load a weights file into `network`, see `apply_weights`."""
    return apply_weights(network, read_state_dict(Path(path)), Path(path), new_class_header)


def apply_weights(
    network: EfficientDet, weights: dict[str, Tensor], path: Path, new_class_header: bool = False
) -> bool:
    """Load `weights`, read from `path`, into `network`. Every key and shape must match.

    With `new_class_header`, weights for another number of classes fit too: all but the class header are loaded, and
    that is initialized. Returns whether it was. Raises InputError with the likely cause if the weights do not fit.
    """
    expected = network.state_dict()
    misfits = [key for key in expected if key not in weights or weights[key].shape != expected[key].shape]
    unknown = [key for key in weights if key not in expected]
    class_header = {f"{CLASS_HEADER}.conv.weight", f"{CLASS_HEADER}.conv.bias"}
    other_classes = not unknown and set(misfits) == class_header and class_header <= weights.keys()
    if unknown or misfits and not (other_classes and new_class_header):
        raise InputError(f"{path} does not fit: {_guess_cause(weights, network, misfits, unknown, other_classes)}")
    if misfits:
        initialize_new_class_header(network.get_submodule(CLASS_HEADER))
        weights = {**weights, **{key: network.state_dict()[key] for key in misfits}}
    network.load_state_dict(weights, strict=True)
    return bool(misfits)


def load_backbone(network: EfficientDet, requested: str) -> None:
    """Load ImageNet weights into the backbone of `network`, and leave the rest unchanged.

    `requested` is a file of EfficientNet-PyTorch, torchvision or timm, or "imagenet" for the published file.
    Raises InputError, with the network unchanged, if the file does not fit or cannot be downloaded.
    """
    index = network.config.backbone
    path = find_backbone(index) if requested == "imagenet" else find_weights(requested)
    weights = read_state_dict(path)
    if any(key.startswith("backbone_net.") for key in weights):
        raise InputError(f"{path} holds a whole EfficientDet, not only a backbone: pass it with -w")
    if EFFDET_BOX_BIAS in weights:
        raise InputError(f"{path} holds a whole detector of effdet: {_CONVERT}, and pass it with -w")
    try:
        converted = convert_backbone_weights(weights, index, str(path))
    except ValueError as error:
        misfit = f"{path} does not fit the backbone of D{network.compound_coef}: {error}"
        raise InputError(f"{misfit}; pass another file, or imagenet to download the published one") from error
    network.backbone_net["model"].load_state_dict(converted, strict=True)


def anchors_per_cell(weights: dict[str, Tensor]) -> int:
    return weights[f"{BOX_HEADER}.conv.bias"].numel() // 4


def num_classes(weights: dict[str, Tensor]) -> int:
    return weights[f"{CLASS_HEADER}.conv.bias"].numel() // anchors_per_cell(weights)


def guess_compound_coefs(weights: dict[str, Tensor]) -> list[int]:
    """Return the coefficients that match a state dict, see `compound_coefs_of_pyramid`."""
    levels = {key.split(".")[2] for key in weights if key.startswith("regressor.bn_list.")}
    first_node = weights.get("bifpn.0.conv3_up.pointwise_conv.conv.weight", ())
    return compound_coefs_of_pyramid(len(levels), len(first_node)) if f"{BOX_HEADER}.conv.bias" in weights else []


def _guess_cause(
    weights: dict[str, Tensor], network: EfficientDet, misfits: list[str], unknown: list[str], other_classes: bool
) -> str:
    if other_classes:
        classes = f"it has {num_classes(weights)} classes, the project has {network.num_classes}"
        return f"{classes}; pass weights trained on this project"
    if weights and all(key.startswith("module.") for key in weights):
        return "its keys begin with 'module.', as saved from DataParallel; save the state dict of the wrapped module"
    if EFFDET_BOX_BIAS in weights:
        return f"it is a file of effdet; {_CONVERT}"
    expected = network.state_dict()
    coefs = guess_compound_coefs(weights)
    if coefs and network.compound_coef not in coefs:
        names = " or ".join(f"D{coef}" for coef in coefs)
        return f"this looks like {names}, you passed -c {network.compound_coef}"
    if coefs and anchors_per_cell(weights) != anchors_per_cell(expected):
        project_anchors = f"anchors_scales and anchors_ratios of the project make {anchors_per_cell(expected)}"
        return f"it has {anchors_per_cell(weights)} anchors per cell, but {project_anchors}"
    if coefs and misfits and misfits[0] in weights:
        shapes = f"{tuple(weights[misfits[0]].shape)}, not {tuple(expected[misfits[0]].shape)}"
        return f"{misfits[0]} has the shape {shapes}; the file may be damaged"
    example = f"it lacks {misfits[0]}" if misfits else f"it has {unknown[0]}"
    return f"{example}; it seems to be from another program or version"
