"""Convert weights of other programs to this project's, and detectors of this project to effdet's.

  python -m efficientdet.convert_weights tf_efficientdet_d0_34-f153e0cf.pth -o weights/d0.pth        # effdet's COCO
  python -m efficientdet.convert_weights output/train/birds/model_best.pth.tar -o weights/birds.pth  # effdet's, yours
  python -m efficientdet.convert_weights tf_efficientnet_b3_ns-9d44bf68.pth -o weights/b3.pth        # a backbone
  python -m efficientdet.convert_weights logs/birds/efficientdet-d2_best.pth -o birds.pth --to effdet

The keys tell what a file is. These are known, whatever module they were saved within ("model.", "module.", ...):
- effdet's tf_efficientdet_d0 to d7x, of any number of classes; d7x is D8 here. The file becomes one for -w.
- ImageNet backbones: EfficientNet B0 to B7 of EfficientNet-PyTorch, torchvision and timm. The file becomes one of
  EfficientNet-PyTorch without its classification head, for train.py --backbone_weights, which takes the original file
  as well. (A detector is not made of it: its other layers would be untrained.) timm's tf_efficientnet_b0 and
  efficientnet_b0 have the same keys: the path of the file must name the model.
- a training checkpoint that holds one of these as state_dict or the like; averaged weights (state_dict_ema) go first.
Nothing in a file is executed.

What differs between effdet and this project, with the same weights:
- Max-pooling in the pyramid pads with minus infinity in effdet, and with zeros here, as the published weights need it.
  With zeros in effdet, too, the outputs are the same to 1e-9 of their size in float64 (tests/test_effdet_weights.py).
  Nothing else in the network differs: classes, anchors, boxes, batch norms and convolutions are the same.
- In training, the batch norms of effdet's backbone have momentum 0.1, all of them here 0.01.
- effdet ranks every class of every anchor, this project each anchor by its best class.
- Its files for pixels from -1 to 1 (tf_efficientdet_d0_ap) have the same keys: they need mean and std
  [0.5, 0.5, 0.5] in the project's YAML file.
- effdet's efficientdet_d0 and others without tf_ pad their convolutions differently, and are refused. (Its
  efficientdet_d4 and d5 have the keys of those with tf_, and cannot be told from them; no weights are published.)
"""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from efficientdet.checkpoints.effdet import EFFDET_MARK, effdet_name, from_effdet, to_effdet
from efficientdet.checkpoints.find import find_weights
from efficientdet.checkpoints.loading import guess_compound_coefs
from efficientdet.config import CONFIGS
from efficientnet.model import BATCH_NORM
from efficientnet.pretrained import (
    FAMILIES,
    TIMM,
    TORCHVISION,
    Family,
    batch_norm_eps,
    convert_backbone_weights,
    efficientnet_pytorch_key,
    guess_index,
)
from utils.errors import InputError, exit_on_input_error
from utils.tensor_files import is_state_dict, load_tensors, save_tensors

OUR_MARK = "regressor.header.pointwise_conv.conv.bias"  # a key of every detector of this project's
# Where training checkpoints keep their weights: the first that is there is taken.
WEIGHT_ENTRIES = ("state_dict_ema", "state_dict", "model_state_dict", "model", "network")

_SCALAR: Any = np.float64().__reduce__()[0]  # what NumPy's numbers are pickled with, under two names
# Beside tensors, checkpoints of effdet's own training hold its arguments and a NumPy number. These are data, too.
_DATA_TYPES: list[Callable | tuple[Callable, str]] = [
    argparse.Namespace,
    (_SCALAR, "numpy.core.multiarray.scalar"),
    (_SCALAR, "numpy._core.multiarray.scalar"),
    np.dtype,
    *(type(np.dtype(name)) for name in ("float32", "float64", "int64")),
]

EFFDET_DIFFERENCES = (
    "max-pooling in the pyramid pads with zeros here, with minus infinity in effdet; no other layer differs",
    "detections: effdet ranks every class of every anchor, this project each anchor by its best class",
    "files of tf_efficientdet_d0_ap and the like look the same, but need mean and std [0.5, 0.5, 0.5] in the YAML file",
)
OTHER_EPSILON = "batch norms have epsilon 1e-5 there, 1e-3 here: other scales make up for it in evaluation mode"
OTHER_PADDING = "convolutions of stride 2 pad both sides alike there, here as in TensorFlow: training has to absorb it"


class Conversion(NamedTuple):
    """Converted weights, and what is to be said about them."""

    weights: dict[str, Tensor]
    recognised: str
    differences: tuple[str, ...]
    next_step: str  # {output} stands for the new file


def read_weights(path: Path) -> tuple[dict[str, Tensor], str]:
    """The state dict in a file, and the name of the entry that held it, which is "" for a plain one.

    InputError when there is none.
    """
    with torch.serialization.safe_globals(_DATA_TYPES):
        content = load_tensors(find_weights(path))
    if is_state_dict(content):
        return content, ""
    if isinstance(content, dict):
        for entry in WEIGHT_ENTRIES:
            if is_state_dict(content.get(entry)):
                return content[entry], entry
    raise InputError(f"{path} holds no state dict, neither by itself nor as {', '.join(WEIGHT_ENTRIES)}")


def without_prefix(weights: dict[str, Tensor], mark: str) -> dict[str, Tensor] | None:
    """The entries of the module that has the key `mark`, under their names there; None when no module has it."""
    prefixes = [key.removesuffix(mark) for key in weights if key == mark or key.endswith(f".{mark}")]
    if not prefixes:
        return None
    prefix = min(prefixes, key=len)
    return {key.removeprefix(prefix): value for key, value in weights.items() if key.startswith(prefix)}


def convert(weights: dict[str, Tensor], path: Path, to: str | None) -> Conversion:
    """`weights`, which come from `path`, for this project or for `to`. InputError when that cannot be."""
    ours, effdets = without_prefix(weights, OUR_MARK), without_prefix(weights, EFFDET_MARK)
    if to == "effdet":
        if ours is None:
            raise InputError(f"{path} holds no detector of this project's, which --to effdet takes: leave that out")
        return convert_to_effdet(ours, path)
    if ours is not None:
        raise InputError(f"{path} is this project's already: pass it with -w, or make it effdet's by --to effdet")
    if effdets is not None:
        return convert_from_effdet(effdets, path)
    for family in FAMILIES:
        if (backbone := without_prefix(weights, family.mark)) is not None:
            return convert_backbone(backbone, family, path)
    first = f"its first key is {next(iter(weights))}" if weights else "it is empty"
    raise InputError(
        f"{path} holds nothing that is known ({first}): neither a detector of effdet's "
        f"nor an EfficientNet of {', '.join(family.name for family in FAMILIES)}"
    )


def convert_from_effdet(weights: dict[str, Tensor], path: Path) -> Conversion:
    """Of a detector of effdet's, which comes from `path`. InputError when it is of another kind than ours."""
    try:
        converted = from_effdet(weights)
    except ValueError as error:
        raise InputError(f"{path} is effdet's, but none of its tf_efficientdet_d0 to d7x: {error}") from error
    coefs, classes, anchors = structure(converted)
    names = " or ".join(effdet_name(coef) for coef in coefs)
    recognised = f"effdet's {names}, {classes} classes, {anchors} anchors in each cell"
    command, hints = f"python efficientdet_test.py photo.jpg -c {coefs[0]} -w {{output}}", []
    if classes != 90:
        command += " -p my_project"
        hints.append(f"obj_list: the {classes} classes in the order of effdet's labels")
    hints += [f"or -c {coef}, as it was trained" for coef in coefs[1:]]
    next_step = f"{command}  # {'; '.join(hints)}" if hints else command
    return Conversion(converted, recognised, EFFDET_DIFFERENCES, next_step)


def convert_to_effdet(weights: dict[str, Tensor], path: Path) -> Conversion:
    """Of a detector of ours, which comes from `path`. InputError when something in it is not as it should be."""
    coefs = guess_compound_coefs(weights)
    try:
        if not coefs:
            raise ValueError("its pyramid is none of D0 to D7X")
        converted = to_effdet(weights, coefs[0])
    except ValueError as error:
        raise InputError(f"{path} is no whole detector of this project's: {error}") from error
    _, classes, anchors = structure(weights)
    names = " or ".join(f"D{coef}" for coef in coefs)
    recognised = f"this project's {names}, {classes} classes, {anchors} anchors in each cell"
    model = f'effdet.create_model("{effdet_name(coefs[0])}", num_classes={classes}, checkpoint_path="{{output}}")'
    return Conversion(converted, recognised, EFFDET_DIFFERENCES, f"python -c 'import effdet; model = {model}'")


def convert_backbone(weights: dict[str, Tensor], family: Family, path: Path) -> Conversion:
    """Of an ImageNet network of `family`, which comes from `path`. InputError when it is none of B0 to B7."""
    try:
        index = guess_index(weights, family)
        if index is None:
            raise ValueError(f"it has keys of {family.name}'s EfficientNet, but is none of B0 to B7")
        converted = convert_backbone_weights(weights, index, str(path))
    except ValueError as error:
        raise InputError(f"{path} cannot be converted: {error}") from error
    other_epsilon = batch_norm_eps(family, index, str(path)) != BATCH_NORM["eps"]
    other_padding = other_epsilon or family is TORCHVISION
    recognised = f"{family.name}'s EfficientNet B{index}"
    if family is TIMM:
        recognised += f", by its path {'efficientnet' if other_epsilon else 'tf_efficientnet'}_b{index}"
    coef = next(coef for coef, config in enumerate(CONFIGS) if config.backbone == index)
    return Conversion(
        {efficientnet_pytorch_key(key, index): value for key, value in converted.items()},
        recognised,
        (OTHER_EPSILON,) * other_epsilon + (OTHER_PADDING,) * other_padding,
        f"python train.py -p my_project -c {coef} --backbone_weights {{output}}",
    )


def structure(weights: dict[str, Tensor]) -> tuple[list[int], int, int]:
    """Of our weights: the coefficients that they may be of, classes, and anchors in a cell."""
    anchors = weights[OUR_MARK].numel() // 4
    classes = weights["classifier.header.pointwise_conv.conv.bias"].numel() // anchors
    return guess_compound_coefs(weights), classes, anchors


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("file", type=Path, metavar="FILE", help="weights to convert: .pth, .pt, .pth.tar, .safetensors, ...")
    add("-o", "--output", type=Path, required=True, metavar="OUT", help="the file to write, as PyTorch does (.pth)")
    add("--to", choices=["effdet"], help="make a detector of this project a file for effdet")
    return parser.parse_args()


def main(args: argparse.Namespace) -> None:
    if args.output.exists():
        raise InputError(f"{args.output} exists already: move or remove it, or choose another name with -o")
    if args.output.suffix == ".safetensors":
        raise InputError(f"{args.output} would be a file of PyTorch's: let its name end in .pth")
    weights, entry = read_weights(args.file)
    conversion = convert(weights, args.file, args.to)
    save_tensors(conversion.weights, args.output)

    source = f"{args.file} ({entry})" if entry else args.file
    print(f"{source}: {conversion.recognised}, {len(weights)} tensors")
    print(f"-> {args.output}: {len(conversion.weights)} tensors\n\nWhat differs:")
    for difference in conversion.differences or ("nothing",):
        print(f"  {difference}")
    print(f"\nNext:\n  {conversion.next_step.format(output=args.output)}")


if __name__ == "__main__":
    with exit_on_input_error():
        main(parse_args())
