"""What the readers of all formats share: finding files and sets, and reading text, class names and numbers."""

import math
import os
from collections.abc import Collection
from pathlib import Path

from efficientdet.convert.labels import Fault
from utils.errors import InputError
from utils.images import IMAGE_SUFFIXES

# What folders, files and columns call a set -> our name for it.
SET_NAMES = {
    "train": "train", "training": "train",
    "val": "val", "valid": "val", "validation": "val",
    "test": "test", "testing": "test",
}  # fmt: skip


def set_named_in(path: Path, root: Path) -> str | None:
    """Return the set that a folder between `root` and `path` is named after; the outermost wins."""
    folders = path.relative_to(root).parts[:-1]
    return next((SET_NAMES[name.lower()] for name in folders if name.lower() in SET_NAMES), None)


def files_below(folder: Path, suffixes: Collection[str] = IMAGE_SUFFIXES) -> list[Path]:
    """Return all files under `folder` with one of `suffixes`, sorted. Links are followed, hidden names skipped."""
    found = []
    for parent, folders, names in os.walk(folder, followlinks=True):
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [Path(parent, name) for name in names if not name.startswith(".")]
    return sorted(path for path in found if path.suffix.lower() in suffixes)


def read_text(path: Path) -> str:
    """Return the content of a UTF-8 text file. Raises InputError if it cannot be read."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"cannot read {path}: not UTF-8; save it as UTF-8 text") from error


def read_lines(path: Path) -> list[str]:
    """Return the stripped lines of `read_text`."""
    return [line.strip() for line in read_text(path).splitlines()]


def read_class_names(path: Path) -> list[str]:
    """Read class names from a text file, one per line. Raises InputError for empty lines and duplicates."""
    names = read_lines(path)
    while names and not names[-1]:
        names.pop()
    if not names:
        raise InputError(f"{path} is empty: write the class names into it, one per line")
    for line, name in enumerate(names, 1):
        if not name:
            raise InputError(f"{path}, line {line}: a class without a name; name it, as line numbers are class indices")
        if name in names[: line - 1]:
            raise InputError(f"{path}, line {line}: the class {name!r} is listed twice")
    return names


def finite_number(text: str, place: str) -> float:
    """Parse a number. Raises Fault for anything else, NaN and infinity included."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise Fault(place, "a value that is not a number", repr(text))
    return value
