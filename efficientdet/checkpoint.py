"""Weights in and out, published files, training state, and `last`.

A checkpoint `efficientdet-d{coef}_{epoch}_{step}.pth` is a plain state dict, as the reference writes it. What else a
run needs to go on lies beside the newest one in `efficientdet-d{coef}_last.state`, which names its weights file: one
rename moves `last` from one complete checkpoint to the next.
"""

import http.client
import io
import re
import urllib.error
import urllib.request
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from efficientdet.config import CONFIGS
from efficientdet.model import EfficientDet, initialize, initialize_class_prior
from utils.errors import InputError
from utils.files import written_whole

WEIGHTS_FOLDER = Path("weights")
_RELEASES = "https://github.com/zylo117/Yet-Another-Efficient-Pytorch/releases/download"
_PUBLISHED_BYTES = {0: 15_862_583}  # where known; other sizes are the server's word
_TIMEOUT_SECONDS = 30
_CLASS_HEADER = "classifier.header.pointwise_conv"


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
    """The weights file to run: `requested`, the project's newest checkpoint for "last", the published one for None.

    InputError when None is asked for a project that no weights are published for.
    """
    if requested == "last":
        return load_last(saved_path / project_name, compound_coef)[0]
    if requested is not None:
        return Path(requested)
    if project_name != "coco":
        raise InputError(f"pass -w FILE or -w last: no weights are published for the project {project_name!r}")
    return published_path(compound_coef)


def download(url: str, path: Path, expected_bytes: int | None = None) -> None:
    """Fetch `url` into `path`, with a progress bar, going on where an earlier attempt stopped.

    The bytes gather in `{path}.part`, which takes its place when complete. InputError when the network, the server
    or the size disappoints, with the URL to fetch by hand.
    """
    part = path.with_name(path.name + ".part")
    try:
        part.parent.mkdir(parents=True, exist_ok=True)
        total = _fetch(url, part)
    except (OSError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", None) or error
        raise InputError(f"cannot download {url} ({reason}): fetch it by other means and put it at {path}") from error
    size = part.stat().st_size
    for wanted in (total, expected_bytes):
        if wanted is not None and size != wanted:
            if size > wanted:
                part.unlink()
            raise InputError(
                f"{url} gave {size} of {wanted} bytes: run again to go on, or fetch it by other means to {path}"
            )
    part.replace(path)


def _fetch(url: str, part: Path) -> int | None:
    """Append to `part` what it lacks of `url`; the whole size as the server tells it."""
    have = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    try:
        response = urllib.request.urlopen(request, timeout=_TIMEOUT_SECONDS)
    except urllib.error.HTTPError as error:
        if error.code != 416:  # range not satisfiable: `part` holds all there is, or something else
            raise
        part.unlink()
        return _fetch(url, part)
    with response:
        resumed = response.status == 206
        length = response.headers.get("Content-Length")
        total = None if length is None else int(length) + (have if resumed else 0)
        with (
            open(part, "ab" if resumed else "wb") as file,
            tqdm(
                desc=f"downloading {url.rsplit('/', 1)[-1]}",
                initial=have if resumed else 0,
                total=total,
                unit="B",
                unit_scale=True,
            ) as progress,
        ):
            while chunk := response.read(1 << 16):
                file.write(chunk)
                progress.update(len(chunk))
    return total


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """The tensors of a weights file, on the CPU. Nothing in the file is executed. InputError for any other file."""
    content = _load(path)
    if not isinstance(content, dict) or not all(
        isinstance(key, str) and isinstance(value, Tensor) for key, value in content.items()
    ):
        raise InputError(f"{path} does not hold a plain state dict: it is no weights file of EfficientDet")
    return content


def load_weights(network: EfficientDet, path: Path, new_class_header: bool = False) -> bool:
    """Load a weights file into `network`; every key and shape must fit.

    With `new_class_header`, a file for another number of classes is taken too: its class header alone is left out,
    and the network's is initialised afresh. Returns whether that happened.

    Raises InputError, with a guess at the cause, when the weights do not fit.
    """
    weights = read_state_dict(path)
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


def save_checkpoint(network: EfficientDet, state: dict, folder: Path, epoch: int, step: int) -> Path:
    """Write weights and training state into `folder` and make them `last`. Returns the weights file's path.

    `state` holds tensors, numbers, texts, lists and dicts only.
    """
    prefix = f"efficientdet-d{network.compound_coef}"
    path = folder / f"{prefix}_{epoch}_{step}.pth"
    _save({key: value.cpu().contiguous() for key, value in network.state_dict().items()}, path)
    _save({**state, "weights": path.name}, folder / f"{prefix}_last.state")
    return path


def load_last(folder: Path, compound_coef: int) -> tuple[Path, dict]:
    """The newest checkpoint in `folder`: its weights file and the training state beside it."""
    state_path = folder / f"efficientdet-d{compound_coef}_last.state"
    if not state_path.is_file():
        others = sorted(file.name.split("_")[0].removeprefix("efficientdet-") for file in folder.glob("*_last.state"))
        hint = f"; there is one of {', '.join(others)}: pass its -c" if others else ": train first or pass a file"
        raise InputError(f"'last' finds no checkpoint of d{compound_coef} in {folder}{hint}")
    state = _load(state_path)
    if not isinstance(state, dict) or not re.fullmatch(r"efficientdet-d\d_\d+_\d+\.pth", str(state.get("weights"))):
        raise InputError(f"{state_path} is no training state of this program: remove it and pass a weights file")
    weights = folder / state["weights"]
    if not weights.is_file():
        raise InputError(f"{state_path} belongs to {weights}, which is gone: put it back, or pass a weights file")
    return weights, state


def _save(content: dict, path: Path) -> None:
    # Through memory, because torch.save tells of a full disk by a RuntimeError among others.
    buffer = io.BytesIO()
    torch.save(content, buffer)
    with written_whole(path) as temporary:
        temporary.write_bytes(buffer.getbuffer())


def _load(path: Path):
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file makes the unpickler raise nearly anything
        raise InputError(
            f"{path} cannot be read as a PyTorch file of tensors: it is damaged, incomplete or something else"
        ) from error
