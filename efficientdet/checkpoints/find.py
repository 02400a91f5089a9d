"""Where weights are, and how to download those that are published."""

import hashlib
from pathlib import Path

from efficientdet.config import CONFIGS
from efficientdet.project import SHAPES_WEIGHTS
from utils.download import download
from utils.errors import InputError

FORMATS = {"onnx": ".onnx", "torchscript": ".torchscript", "pt2": ".pt2", "openvino": ".xml"}


def is_exported(path: str | Path | None) -> bool:
    """Whether a file is of a format that `efficientdet.export` writes, by its name."""
    return path is not None and Path(path).suffix.lower() in FORMATS.values()


WEIGHTS_FOLDER = Path("weights")


_RELEASES = "https://github.com/zylo117/Yet-Another-Efficient-Pytorch/releases/download"


_PUBLISHED_BYTES = {0: 15_862_583}  # where known; other sizes are the server's word


_BACKBONE_RELEASE = "https://github.com/lukemelas/EfficientNet-PyTorch/releases/download/1.0"


# B0 to B7: what the sha256 of each published file begins with; its name says so, too.
_BACKBONE_SHA256 = ("355c32eb", "f1951068", "8bb594d6", "5fb5a3c3", "6ed6700e", "b6417697", "c76e70fd", "dcc49843")


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
