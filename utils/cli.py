"""Command-line types and defaults that the scripts share.

argparse reports a type's ValueError by the function's name: "invalid positive_int value: '0'".
"""

import os
from typing import Any


def boolean(text: str) -> bool:
    """`True`, `yes`, `1` / `False`, `no`, `0`, in any case."""
    lowered = text.lower()
    if lowered in ("true", "yes", "t", "y", "1"):
        return True
    if lowered in ("false", "no", "f", "n", "0"):
        return False
    raise ValueError(text)


# For add_argument: a flag that may stand alone (`--debug`) or carry its value (`--debug True`).
BOOLEAN: dict[str, Any] = {"type": boolean, "nargs": "?", "const": True, "metavar": "True|False"}


def positive_int(text: str) -> int:
    value = int(text)
    if value < 1:
        raise ValueError(text)
    return value


def non_negative_int(text: str) -> int:
    value = int(text)
    if value < 0:
        raise ValueError(text)
    return value


def positive_float(text: str) -> float:
    value = float(text)
    if not 0 < value < float("inf"):
        raise ValueError(text)
    return value


def non_negative_float(text: str) -> float:
    value = float(text)
    if not 0 <= value < float("inf"):
        raise ValueError(text)
    return value


def fraction(text: str) -> float:
    """A number from 0 to 1."""
    value = float(text)
    if not 0 <= value <= 1:
        raise ValueError(text)
    return value


def default_workers() -> int:
    """Loader processes when the user does not say: the reference's 12, but no more than there are CPUs for us."""
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(12, cpus)


def image_size(text: str) -> tuple[int, int]:
    """`640`, or `640x384` for another width than height -> (height, width) in pixels."""
    sides = [positive_int(side) for side in text.lower().split("x")]
    if len(sides) > 2:
        raise ValueError(text)
    return sides[-1], sides[0]
