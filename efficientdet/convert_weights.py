"""Convert weights of other programs for this project, and detectors of this project for effdet.

  python -m efficientdet.convert_weights tf_efficientdet_d0_34-f153e0cf.pth -o weights/d0.pth        # effdet's COCO
  python -m efficientdet.convert_weights output/train/birds/model_best.pth.tar -o weights/birds.pth  # effdet's, yours
  python -m efficientdet.convert_weights tf_efficientnet_b3_ns-9d44bf68.pth -o weights/b3.pth        # a backbone
  python -m efficientdet.convert_weights logs/birds/efficientdet-d2_best.pth -o birds.pth --to effdet

Files are recognized by their keys, with or without a prefix such as "model." or "module.", alone or in a training
checkpoint (whose averaged weights are preferred). No code in a file is executed.
- Detectors of effdet, tf_efficientdet_d0 to d7x (D8 here), with any number of classes, become a file for -w.
- ImageNet backbones B0 to B7 of EfficientNet-PyTorch, torchvision and timm become a file for train.py
  --backbone_weights, which also accepts the original. The path of a timm file must name the model, because its
  tf_efficientnet_b0 and efficientnet_b0 have the same keys.
weights/README.md explains what differs between effdet and this project.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from efficientdet.checkpoints.effdet import EFFDET_BOX_BIAS, effdet_name, from_effdet, to_effdet
from efficientdet.checkpoints.find import find_weights
from efficientdet.checkpoints.loading import anchors_per_cell, guess_compound_coefs, num_classes
from efficientdet.config import CONFIGS
from efficientdet.model.network import BOX_HEADER
from efficientnet import pretrained
from efficientnet.model import BATCH_NORM
from utils.cli import make_parser
from utils.errors import InputError, exit_on_input_error
from utils.tensor_files import is_state_dict, load_tensors, save_tensors

# Where training checkpoints keep their weights, in order of preference.
WEIGHT_ENTRIES = ("state_dict_ema", "state_dict", "model_state_dict", "model", "network")
# Checkpoints of effdet's own training also hold its arguments and a NumPy number, pickled under either name.
_NUMPY_SCALAR = np.float64().__reduce__()[0]
_SAFE_TYPES: list[Any] = [(_NUMPY_SCALAR, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")]
_SAFE_TYPES += [argparse.Namespace, np.dtype, *(type(np.dtype(name)) for name in ("float32", "float64", "int64"))]

EFFDET_DIFFERENCES = [
    "max-pooling in the pyramid pads with zeros here, with minus infinity in effdet; no other layer differs",
    "detections: effdet ranks every class of every anchor, this project each anchor by its best class",
    "files such as tf_efficientdet_d0_ap have the same keys, but need mean and std [0.5, 0.5, 0.5] in the YAML file",
]
OTHER_EPSILON = "batch norms have epsilon 1e-5 there, 1e-3 here: converted scales compensate for it in evaluation mode"
OTHER_PADDING = "convolutions of stride 2 are padded symmetrically there, as in TensorFlow here: training must adapt"


class Conversion(NamedTuple):
    """Converted weights, and what to print about them."""

    weights: dict[str, Tensor]
    recognized: str
    differences: list[str]
    next_step: str  # with a field {output} for the new file


def read_weights(path: Path) -> tuple[dict[str, Tensor], str]:
    """Return the state dict in a file, and the entry that holds it ("" if the file is plain), or raise InputError."""
    with torch.serialization.safe_globals(_SAFE_TYPES):
        content = load_tensors(find_weights(path))
    if is_state_dict(content):
        return content, ""
    entries = content if isinstance(content, dict) else {}
    for entry in WEIGHT_ENTRIES:
        if is_state_dict(entries.get(entry)):
            return entries[entry], entry
    raise InputError(f"{path} is not a state dict, and holds none as {', '.join(WEIGHT_ENTRIES)}")


def without_prefix(weights: dict[str, Tensor], key: str) -> dict[str, Tensor] | None:
    """Return the entries of the outermost module that has `key`, with the module's prefix removed, or None."""
    prefixes = [name.removesuffix(key) for name in weights if name == key or name.endswith(f".{key}")]
    if not prefixes:
        return None
    prefix = min(prefixes, key=len)
    return {name.removeprefix(prefix): value for name, value in weights.items() if name.startswith(prefix)}


def convert(weights: dict[str, Tensor], path: Path, to: str | None) -> Conversion:
    """Convert `weights`, read from `path`, for this project or for `to`. Raises InputError if that is impossible."""
    ours, effdets = without_prefix(weights, f"{BOX_HEADER}.conv.bias"), without_prefix(weights, EFFDET_BOX_BIAS)
    if to == "effdet" and ours is None:
        raise InputError(f"{path} is not a detector of this project, as --to effdet needs: leave that flag out")
    if to is None and ours is not None:
        raise InputError(f"{path} is a file of this project: pass it with -w, or convert it with --to effdet")
    try:
        if ours is not None:
            return convert_to_effdet(ours)
        if effdets is not None:
            return convert_from_effdet(effdets)
        for family in pretrained.FAMILIES:
            if (backbone := without_prefix(weights, family.mark)) is not None:
                return convert_backbone(backbone, family, str(path))
    except ValueError as error:
        raise InputError(f"{path} cannot be converted: {error}") from error
    found = f"its first key is {next(iter(weights))}" if weights else "it is empty"
    names = ", ".join(family.name for family in pretrained.FAMILIES)
    raise InputError(f"{path} is neither a detector of effdet nor an EfficientNet of {names} ({found})")


def convert_from_effdet(weights: dict[str, Tensor]) -> Conversion:
    """Convert a detector of effdet. Raises ValueError if it is none of tf_efficientdet_d0 to d7x."""
    converted = from_effdet(weights)
    coefs, classes, anchors = guess_compound_coefs(converted), num_classes(converted), anchors_per_cell(converted)
    recognized = f"effdet's {' or '.join(map(effdet_name, coefs))}, {classes} classes, {anchors} anchors per cell"
    command, hints = f"python efficientdet_test.py photo.jpg -c {coefs[0]} -w {{output}}", []
    if classes != 90:
        command += " -p my_project"
        hints.append(f"obj_list: the {classes} classes in the order of effdet's labels")
    hints += [f"or -c {coef}, as it was trained" for coef in coefs[1:]]
    next_step = f"{command}  # {'; '.join(hints)}" if hints else command
    return Conversion(converted, recognized, EFFDET_DIFFERENCES, next_step)


def convert_to_effdet(weights: dict[str, Tensor]) -> Conversion:
    """Convert a detector of this project. Raises ValueError if it is incomplete or unknown."""
    coefs = guess_compound_coefs(weights)
    if not coefs:
        raise ValueError("its pyramid is none of D0 to D7X")
    converted, classes, anchors = to_effdet(weights, coefs[0]), num_classes(weights), anchors_per_cell(weights)
    names = " or ".join(f"D{coef}" for coef in coefs)
    recognized = f"this project's {names}, {classes} classes, {anchors} anchors per cell"
    model = f'effdet.create_model("{effdet_name(coefs[0])}", num_classes={classes}, checkpoint_path="{{output}}")'
    return Conversion(converted, recognized, EFFDET_DIFFERENCES, f"python -c 'import effdet; model = {model}'")


def convert_backbone(weights: dict[str, Tensor], family: pretrained.Family, path: str) -> Conversion:
    """Convert an ImageNet network of `family`. Raises ValueError if it is none of B0 to B7."""
    index = pretrained.guess_index(weights, family)
    if index is None:
        raise ValueError(f"it has keys of {family.name}'s EfficientNet, but is none of B0 to B7")
    converted = pretrained.convert_backbone_weights(weights, index, path)
    other_epsilon = pretrained.batch_norm_eps(family, index, path) != BATCH_NORM["eps"]
    differences = [OTHER_EPSILON] if other_epsilon else []
    if other_epsilon or family is pretrained.TORCHVISION:
        differences.append(OTHER_PADDING)
    recognized = f"{family.name}'s EfficientNet B{index}"
    if family is pretrained.TIMM:
        recognized += f", by its path {'efficientnet' if other_epsilon else 'tf_efficientnet'}_b{index}"
    renamed = {pretrained.efficientnet_pytorch_key(key, index): value for key, value in converted.items()}
    coef = next(coef for coef, config in enumerate(CONFIGS) if config.backbone == index)
    next_step = f"python train.py -p my_project -c {coef} --backbone_weights {{output}}"
    return Conversion(renamed, recognized, differences, next_step)


def parse_args(args: Sequence[str] | None = None) -> argparse.Namespace:
    parser = make_parser(__doc__, prog="python -m efficientdet.convert_weights")
    add = parser.add_argument
    add("file", type=Path, metavar="FILE", help="weights to convert: .pth, .pt, .pth.tar, .safetensors, ...")
    add("-o", "--output", type=Path, required=True, metavar="OUT", help="the PyTorch file to write (.pth)")
    add("--to", choices=["effdet"], help="convert a detector of this project for effdet")
    return parser.parse_args(args)


def main(args: argparse.Namespace) -> None:
    if args.output.exists():
        raise InputError(f"{args.output} exists already: move or remove it, or choose another name with -o")
    if args.output.suffix == ".safetensors":
        raise InputError(f"{args.output} would be a PyTorch file: choose a name that ends in .pth")
    weights, entry = read_weights(args.file)
    conversion = convert(weights, args.file, args.to)
    save_tensors(conversion.weights, args.output)

    source = f"{args.file} ({entry})" if entry else args.file
    print(f"{source}: {conversion.recognized}, {len(weights)} tensors")
    print(f"-> {args.output}: {len(conversion.weights)} tensors\n\nWhat differs:")
    print(*(f"  {difference}" for difference in conversion.differences or ["nothing"]), sep="\n")
    print(f"\nNext:\n  {conversion.next_step.format(output=args.output)}")


if __name__ == "__main__":
    with exit_on_input_error():
        main(parse_args())
