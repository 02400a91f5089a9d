"""Weights in and out, published files, training state, and `last`.

A checkpoint `efficientdet-d{coef}_{epoch}_{step}.pth` is a plain state dict, as the reference writes it. Beside the
newest lies `efficientdet-d{coef}_last.state` with all that a run needs to go on, the weights among it: one rename moves
`last` from one complete checkpoint to the next, whatever becomes of the other files.
"""

import contextlib
import hashlib
import re
from collections.abc import Sequence
from pathlib import Path

from torch import Tensor, nn

from efficientdet.config import CONFIGS
from efficientdet.effdet_weights import EFFDET_MARK
from efficientdet.exported import is_exported
from efficientdet.model.network import EfficientDet, initialize, initialize_class_prior
from efficientdet.project import SHAPES_WEIGHTS
from efficientnet.pretrained import convert_backbone_weights
from utils.download import download
from utils.errors import InputError
from utils.tensor_files import is_state_dict, load_tensors, save_tensors

WEIGHTS_FOLDER = Path("weights")


_RELEASES = "https://github.com/zylo117/Yet-Another-Efficient-Pytorch/releases/download"


_PUBLISHED_BYTES = {0: 15_862_583}  # where known; other sizes are the server's word


_BACKBONE_RELEASE = "https://github.com/lukemelas/EfficientNet-PyTorch/releases/download/1.0"


# B0 to B7: what the sha256 of each published file begins with; its name says so, too.
_BACKBONE_SHA256 = ("355c32eb", "f1951068", "8bb594d6", "5fb5a3c3", "6ed6700e", "b6417697", "c76e70fd", "dcc49843")


_CLASS_HEADER = "classifier.header.pointwise_conv"


_CONVERT = "convert it with python -m efficientdet.convert_weights"


def published_url(compound_coef: int) -> str:
    """Where the published COCO weights of a coefficient can be downloaded."""
    release = "1.0" if compound_coef <= 6 else "1.2"
    return f"{_RELEASES}/{release}/efficientdet-d{compound_coef}.pth"


def published_path(compound_coef: int) -> Path:
    """Where the published COCO weights of a coefficient lie once downloaded."""
    return WEIGHTS_FOLDER / f"efficientdet-d{compound_coef}.pth"


def find_weights(path: Path | str) -> Path:
    """`path`, after downloading it if it is a published file's place and nothing is there yet.

    InputError when there is no such file.
    """
    path = Path(path)
    if path.is_file():
        return path
    for compound_coef in range(len(CONFIGS)):
        if path.resolve() == published_path(compound_coef).resolve():
            download(published_url(compound_coef), path, _PUBLISHED_BYTES.get(compound_coef))
            return path
    neighbours = sorted(file.name for file in path.parent.glob("*.pth"))
    hint = f"; that folder has {', '.join(neighbours[:5])}" if neighbours else ""
    raise InputError(f"there is no weights file {path}{hint}")


def chosen_weights(requested: str | None, project_name: str, compound_coef: int, saved_path: Path) -> Path:
    """The weights file to run: `requested`, or the project's checkpoint for "last" and "best".

    None stands for the published weights of the project coco, and for those that come with the project shapes.
    InputError when there are none.
    """
    folder = saved_path / project_name
    if requested == "last":
        return find_last(folder, compound_coef)
    if requested == "best":
        path = best_path(folder, compound_coef)
        if not path.is_file():
            raise InputError(f"there is no {path} yet: train until the first validation, or pass -w last or a file")
        return path
    if requested is not None:
        return Path(requested)
    if project_name == "coco":
        return published_path(compound_coef)
    if project_name == "shapes" and compound_coef == 0:
        return SHAPES_WEIGHTS
    raise InputError(
        "pass -w FILE, -w best or -w last: "
        f"no weights are published for D{compound_coef} and the project {project_name!r}"
    )


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


def _published_backbone(index: int) -> Path:
    """The published ImageNet weights of EfficientNet B`index`, downloaded if need be. InputError for other bytes."""
    expected = _BACKBONE_SHA256[index]
    path = WEIGHTS_FOLDER / f"efficientnet-b{index}-{expected}.pth"
    if not path.is_file():
        download(f"{_BACKBONE_RELEASE}/{path.name}", path)
    try:
        found = hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from error
    if not found.startswith(expected):
        raise InputError(
            f"{path} is not the published file: its sha256 begins with {found[: len(expected)]}, not {expected}; "
            "remove it and run again to download it anew, or pass its name to use it as it is"
        )
    return path


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


class Checkpoints:
    """The checkpoints that one run writes into `folder`; it keeps the newest `keep` of them (0: all), and the best."""

    def __init__(self, folder: Path, compound_coef: int, keep: int = 0, written: Sequence[str] = ()):
        self.folder = folder
        self.keep = keep
        self.written = list(written)  # names of the run's weights files, the oldest first
        self._coef = compound_coef
        for leftover in folder.glob(f".efficientdet-d{compound_coef}_*.tmp"):  # of a process killed while it saved
            _remove(leftover)

    def save(self, network: EfficientDet, state: dict, epoch: int, step: int) -> Path:
        """Write the weights, make them and the training `state` `last`, remove what is too old. The weights' path.

        `state` holds tensors, numbers, texts, lists and dicts only.
        """
        weights = _cpu_tensors(network)
        path = self.folder / f"efficientdet-d{self._coef}_{epoch}_{step}.pth"
        save_tensors(weights, path)
        written = [name for name in self.written if name != path.name] + [path.name]
        kept = written[-self.keep :]
        save_tensors({**state, "network": weights, "written": kept}, last_path(self.folder, self._coef))
        self.written = kept
        for name in set(written) - set(kept):
            _remove(self.folder / name)
        return path

    def save_best(self, network: nn.Module) -> Path:
        """Write the weights as the best."""
        path = best_path(self.folder, self._coef)
        save_tensors(_cpu_tensors(network), path)
        return path


def last_path(folder: Path, compound_coef: int) -> Path:
    """Where `folder` keeps the state of the last run."""
    return folder / f"efficientdet-d{compound_coef}_last.state"


def best_path(folder: Path, compound_coef: int) -> Path:
    """Where `folder` keeps the best weights."""
    return folder / f"efficientdet-d{compound_coef}_best.pth"


def find_last(folder: Path, compound_coef: int) -> Path:
    """`last_path`; InputError when nothing is there."""
    path = last_path(folder, compound_coef)
    if not path.is_file():
        others = sorted(file.name.split("_")[0].removeprefix("efficientdet-") for file in folder.glob("*_last.state"))
        hint = f"; there is one of {', '.join(others)}: pass its -c" if others else ": train first or pass a file"
        raise InputError(f"'last' finds no checkpoint of d{compound_coef} in {folder}{hint}")
    return path


def load_last(folder: Path, compound_coef: int) -> dict:
    """The training state of the last run in `folder`, as `Checkpoints.save` wrote it."""
    path = find_last(folder, compound_coef)
    state = load_tensors(path)
    # The names are those of files to be removed one day.
    name = re.compile(rf"efficientdet-d{compound_coef}_\d+_\d+\.pth")
    if (
        not isinstance(state, dict)
        or not is_state_dict(state.get("network"))
        or not isinstance(written := state.get("written"), list)
        or not all(isinstance(entry, str) and name.fullmatch(entry) for entry in written)
    ):
        raise InputError(f"{path} is no training state of this version: remove it and pass a weights file")
    return state


def _remove(path: Path) -> None:
    """Without a word where that is not possible: a file too many is no reason to end a run."""
    with contextlib.suppress(OSError):
        path.unlink()


def _cpu_tensors(network: nn.Module) -> dict[str, Tensor]:
    return {key: value.cpu().contiguous() for key, value in network.state_dict().items()}
