"""Where weights are found, and where published weights are downloaded from."""

import hashlib
from pathlib import Path

from efficientdet.config import CONFIGS
from efficientdet.project import SHAPES_WEIGHTS
from utils.download import download
from utils.errors import InputError

EXPORT_SUFFIXES = {"onnx": ".onnx", "torchscript": ".torchscript", "pt2": ".pt2", "openvino": ".xml"}
_WEIGHTS_FOLDER = Path("weights")

_RELEASES = "https://github.com/zylo117/Yet-Another-Efficient-Pytorch/releases/download"
_BACKBONE_RELEASE = "https://github.com/lukemelas/EfficientNet-PyTorch/releases/download/1.0"
# B0 to B7: the first digits of each published file's sha256, which are also part of its name.
_BACKBONE_SHA256 = ("355c32eb", "f1951068", "8bb594d6", "5fb5a3c3", "6ed6700e", "b6417697", "c76e70fd", "dcc49843")


def is_exported(path: str | Path | None) -> bool:
    """Return whether a file name has the suffix of a format that `efficientdet.export` writes."""
    return path is not None and Path(path).suffix.lower() in EXPORT_SUFFIXES.values()


def published_path(compound_coef: int) -> Path:
    """Return where the published COCO weights are stored."""
    return _WEIGHTS_FOLDER / f"efficientdet-d{compound_coef}.pth"


def last_path(folder: Path, compound_coef: int) -> Path:
    """Return the path of the training state."""
    return folder / f"efficientdet-d{compound_coef}_last.state"


def best_path(folder: Path, compound_coef: int) -> Path:
    """Return the path of the best weights."""
    return folder / f"efficientdet-d{compound_coef}_best.pth"


def resolve_weights(requested: str | None, project_name: str, compound_coef: int, saved_path: Path) -> Path:
    """Return the weights file to run: `requested`, or the project's checkpoint for "last" and "best".

    None selects the published weights for the project coco, and the bundled weights for the project shapes.
    Raises InputError if there are none.
    """
    folder = saved_path / project_name
    if requested == "last":
        return find_last(folder, compound_coef)
    if requested == "best":
        path = best_path(folder, compound_coef)
        if not path.is_file():
            raise InputError(f"{path} does not exist: train until the first validation, or pass -w last or a file")
        return path
    if requested is not None:
        return Path(requested)
    if project_name == "coco":
        return published_path(compound_coef)
    if project_name == "shapes" and compound_coef == 0:
        return SHAPES_WEIGHTS
    missing = f"no weights are published for D{compound_coef} and the project {project_name!r}"
    raise InputError(f"pass -w FILE, -w best or -w last: {missing}")


def find_last(folder: Path, compound_coef: int) -> Path:
    """Return `last_path`. Raises InputError if it does not exist."""
    path = last_path(folder, compound_coef)
    if not path.is_file():
        others = sorted(file.name.split("_")[0].removeprefix("efficientdet-") for file in folder.glob("*_last.state"))
        hint = f"there is one of {', '.join(others)}, pass its -c" if others else "train first, or pass a file"
        raise InputError(f"no last checkpoint of d{compound_coef} in {folder}: {hint}")
    return path


def find_weights(path: Path | str) -> Path:
    """Return `path`, after downloading a published file if it is absent. Raises InputError if there is no such file."""
    path = Path(path)
    if path.is_file():
        return path
    for compound_coef in range(len(CONFIGS)):
        published = published_path(compound_coef)
        if path.resolve() == published.resolve():
            release = "1.0" if compound_coef <= 6 else "1.2"
            num_bytes = 15_862_583 if compound_coef == 0 else None  # None: as the server says
            download(f"{_RELEASES}/{release}/{published.name}", path, num_bytes)
            return path
    neighbors = sorted(file.name for file in path.parent.glob("*.pth"))
    hint = f"; that folder has {', '.join(neighbors[:5])}" if neighbors else ""
    raise InputError(f"no weights file {path}{hint}")


def find_backbone(index: int) -> Path:
    """Return the published ImageNet weights of EfficientNet B`index`, downloaded if absent, or raise InputError."""
    expected = _BACKBONE_SHA256[index]
    path = _WEIGHTS_FOLDER / f"efficientnet-b{index}-{expected}.pth"
    if not path.is_file():
        download(f"{_BACKBONE_RELEASE}/{path.name}", path)
    try:
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from error
    if not digest.startswith(expected):
        hashes = f"its sha256 begins with {digest[:8]}, not {expected}"
        remedy = "remove it to download it again, or pass its name to use it unchanged"
        raise InputError(f"{path} is not the published file: {hashes}; {remedy}")
    return path
