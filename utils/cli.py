"""Command-line parsers, argument types, and the flags that several scripts share, each declared once.

For a type's ValueError, argparse names the function: "invalid positive_int value: '0'".
"""

import argparse
import math
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

Number = TypeVar("Number", int, float)


def boolean(text: str) -> bool:
    """Parse `True`, `yes`, `1` / `False`, `no`, `0`, in any case."""
    lowered = text.lower()
    if lowered in ("true", "yes", "t", "y", "1"):
        return True
    if lowered in ("false", "no", "f", "n", "0"):
        return False
    raise ValueError(text)


# For add_argument: a flag that can stand alone (`--debug`) or carry a value (`--debug True`).
BOOLEAN: dict[str, Any] = {"type": boolean, "nargs": "?", "const": True, "metavar": "True|False"}


class _Parser(argparse.ArgumentParser):
    def parse_known_args(self, args=None, namespace=None):  # type: ignore[no-untyped-def]
        """Parse `--flag SOURCE` as a flag and a positional argument; argparse would take SOURCE for its value."""
        args = list(sys.argv[1:] if args is None else args)
        if self._get_positional_actions():
            flags = [action for action in self._get_optional_actions() if action.type is boolean and not action.default]
            switches = {spelling for flag in flags if flag.nargs == "?" for spelling in flag.option_strings}
            for i, (arg, following) in enumerate(zip(args, [*args[1:], ""])):
                if arg in switches and following.lower() not in ("true", "false"):
                    args[i] = f"{arg}=True"
        return super().parse_known_args(args, namespace)


def make_parser(description: str | None, prog: str | None = None) -> argparse.ArgumentParser:
    """Return a parser that prints `description` unwrapped and accepts no abbreviated flags.

    `prog` is the command in the usage line, for modules run by `python -m`.
    """
    layout = argparse.RawDescriptionHelpFormatter
    return _Parser(prog, description=description, formatter_class=layout, allow_abbrev=False)


def _number(name: str, kind: Callable[[str], Number], minimum: float, maximum: float) -> Callable[[str], Number]:
    def parse(text: str) -> Number:
        value = kind(text)
        if not minimum <= value <= maximum:
            raise ValueError(text)
        return value

    parse.__name__ = name
    return parse


positive_int = _number("positive_int", int, 1, math.inf)
non_negative_int = _number("non_negative_int", int, 0, math.inf)
non_negative_float = _number("non_negative_float", float, 0, sys.float_info.max)
positive_float = _number("positive_float", float, sys.float_info.min, sys.float_info.max)
fraction = _number("fraction", float, 0, 1)


def image_size(text: str) -> tuple[int, int]:
    """Parse a side, `640`, or a width and a height, `640x384`, in pixels. Return (height, width)."""
    sides = [positive_int(side) for side in text.lower().split("x")]
    if len(sides) > 2:
        raise ValueError(text)
    return sides[-1], sides[0]


def default_workers() -> int:
    """Return the reference's number of loading workers, 12, but no more than this process has CPUs."""
    return min(12, len(os.sched_getaffinity(0)))


WORKERS = default_workers()

_COEFFICIENT = "8 is D7X (default: 0)"
_WEIGHTS = "weights or exported file (default: in weights/)"
_SAVED_PATH = "where best and last are (default: logs/)"
_AMP = "less precision, more speed (default: off)"
_IMAGE_SIZE = "input size, rounded up to what the network accepts (default: the project's, else the coefficient's)"
_NUM_WORKERS = f"loading workers (default: {WORKERS})"
_SCORE_THRESHOLD = "minimum score of a detection (default: %(default)s)"
_NMS = "hard drops a box that overlaps a better one of its class, soft lowers its score (default: hard)"
IOU_THRESHOLD = "IoU above which hard NMS drops the lower-scoring of two boxes of a class (default: {})"
_COMPILE = "compile the network first, for many images: costs a minute, ten seconds when cached (needs a C++ compiler)"


def _flag(*spellings: str, **arguments: Any) -> tuple[tuple[str, ...], dict[str, Any]]:
    return spellings, arguments


_SHARED = {
    "project": _flag("-p", "--project", default="coco", help="name in projects/, or a YAML file (default: coco)"),
    "compound_coef": _flag("-c", "--compound_coef", type=int, default=0, choices=range(9), help=_COEFFICIENT),
    "weights": _flag("-w", "--weights", metavar="FILE|best|last", help=_WEIGHTS),
    "saved_path": _flag("--saved_path", type=Path, default=Path("logs"), help=_SAVED_PATH),
    "data_path": _flag("--data_path", type=Path, default=Path("datasets"), help="projects' data (default: datasets/)"),
    "image_size": _flag("--image_size", type=image_size, metavar="SIDE|WIDTHxHEIGHT", help=_IMAGE_SIZE),
    "max_images": _flag("--max_images", type=positive_int, metavar="N", help="use only the first N images per set"),
    "batch_size": _flag("--batch_size", type=positive_int),
    "num_workers": _flag("-n", "--num_workers", type=non_negative_int, default=WORKERS, help=_NUM_WORKERS),
    "seed": _flag("--seed", type=non_negative_int, default=0),
    "score_threshold": _flag("--score_threshold", "--threshold", type=fraction, help=_SCORE_THRESHOLD),
    "iou_threshold": _flag("--iou_threshold", "--nms_threshold", type=fraction),
    "nms": _flag("--nms", choices=("hard", "soft"), default="hard", help=_NMS),
    "max_detections": _flag("--max_detections", type=positive_int, metavar="N", help="best N per image (default: all)"),
    "flip": _flag("--flip", **BOOLEAN, default=False, help="also run on the mirrored image: twice the time"),
    "cuda": _flag("--cuda", **BOOLEAN, help="run on a GPU (default: if one is available)"),
    "device": _flag("--device", type=non_negative_int, default=0, help="index of the GPU (default: 0)"),
    "amp": _flag("--amp", choices=("off", "bf16", "fp16"), default="off", help=_AMP),
    "compile": _flag("--compile", **BOOLEAN, default=False, help=_COMPILE),
    "output": _flag("--output", type=Path),
}


def add_flags(parser: Any, *names: str, **changes: Mapping[str, Any]) -> None:
    """Add shared flags to a parser or an argument group, in order: those in `names` as declared here.

    `changes` replace some arguments of `add_argument`, such as `seed={"help": "..."}`.
    """
    for name, change in {**dict.fromkeys(names, {}), **changes}.items():
        spellings, arguments = _SHARED[name]
        parser.add_argument(*spellings, **{**arguments, **change})
