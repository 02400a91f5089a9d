"""The project file: YAML that names a dataset, its classes, and the anchors and normalization to use."""

import ast
import difflib
from collections.abc import Callable
from dataclasses import dataclass
from operator import add, mul, neg, pos, sub, truediv
from pathlib import Path
from typing import Any, TypeGuard

from utils.errors import InputError
from utils.yaml_file import read_yaml

# An installed package contains projects/ and weights/ (see pyproject.toml); in a checkout they lie next to it.
_PACKAGE = Path(__file__).resolve().parent
_BUNDLED = _PACKAGE if (_PACKAGE / "projects").is_dir() else _PACKAGE.parent
PROJECTS = _BUNDLED / "projects"
SHAPES_IMAGES = PROJECTS / "shapes"
SHAPES_WEIGHTS = _BUNDLED / "weights" / "efficientdet-d0_shapes.pth"

_EXAMPLE = PROJECTS / "coco.yml"

# Whether the value of each key is valid, and what it must be. Only image_size may be omitted.
_KEYS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "project_name": (lambda value: _is_name(value) and value != "", "a name"),
    "train_set": (lambda value: _is_name(value) and value != "", "a name"),
    "val_set": (lambda value: _is_name(value) and value != "", "a name"),
    "num_gpus": (lambda value: _is_int(value) and value >= 0, "0 (CPU) or a number of GPUs"),
    "mean": (lambda value: _is_list(value, _is_number, 3), "three numbers (red, green, blue)"),
    "std": (lambda value: _is_list(value, _is_positive, 3), "three numbers above 0 (red, green, blue)"),
    "anchors_scales": (lambda value: _is_list(value, _is_positive), "a list of numbers above 0, like [1, 1.26, 1.59]"),
    "anchors_ratios": (
        lambda value: _is_list(value, lambda pair: _is_list(pair, _is_positive, 2)),
        "a list of (width, height) pairs, like [[1, 1], [1.4, 0.7], [0.7, 1.4]]",
    ),
    "obj_list": (lambda value: isinstance(value, list) and any(name != "" for name in value), "a list of class names"),
    "image_size": (lambda value: value is None or _is_int(value) and value > 0, "a number of pixels, or omitted"),
}


@dataclass(frozen=True)
class Project:
    """The validated contents of `projects/{name}.yml`."""

    path: Path
    name: str  # of the dataset's folder in datasets/ and of the results' folder in logs/
    train_set: str
    val_set: str
    num_gpus: int  # 0 selects the CPU
    mean: tuple[float, ...]  # of red, green and blue in [0, 1]
    std: tuple[float, ...]
    anchor_scales: tuple[float, ...]
    anchor_ratios: tuple[tuple[float, float], ...]  # (width, height) factors
    class_names: tuple[str, ...]  # by class index; empty for an index that no category uses
    image_size: int | None = None  # side of the input in pixels; None selects the network's default

    @property
    def num_classes(self) -> int:
        return len(self.class_names)


def load_project(name_or_path: str | Path) -> Project:
    """Load `projects/{name}.yml`, or a YAML file by its path.

    A name is searched in the current folder's `projects/` first, then among the bundled projects. Raises InputError,
    which names the file and the key, if the project does not exist or is invalid.
    """
    path = _find_project(name_or_path)
    values: dict[str, Any] = {"image_size": None, **read_yaml(path, f"such as 'project_name: coco'; see {_EXAMPLE}")}
    missing = [key for key in _KEYS if key not in values]
    for key in values:
        if key not in _KEYS:
            close = difflib.get_close_matches(str(key), missing or _KEYS, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"the keys are {', '.join(_KEYS)}"
            raise InputError(f"{path}: unknown key {key!r}: {hint}")
    if missing:
        raise InputError(f"{path}: the key {missing[0]!r} is missing; see {_EXAMPLE} for an example")
    for key in ("anchors_scales", "anchors_ratios"):
        values[key] = _parse_numbers(values[key], key, path)
    for key, (is_valid, expected) in _KEYS.items():
        if not is_valid(values[key]):
            raise InputError(f"{path}: {key} must be {expected}, not {values[key]!r}")

    class_names = tuple(map(str, values["obj_list"]))
    for name in values["obj_list"]:
        if not _is_name(name):
            raise InputError(f"{path}: obj_list contains {name!r}, which is not text: put it in quotes")
        if name != "" and class_names.count(str(name)) > 1:
            raise InputError(f"{path}: obj_list contains {name!r} twice")
    return Project(
        path=path,
        name=str(values["project_name"]),
        train_set=str(values["train_set"]),
        val_set=str(values["val_set"]),
        num_gpus=values["num_gpus"],
        mean=tuple(map(float, values["mean"])),
        std=tuple(map(float, values["std"])),
        anchor_scales=tuple(map(float, values["anchors_scales"])),
        anchor_ratios=tuple((float(x), float(y)) for x, y in values["anchors_ratios"]),
        class_names=class_names,
        image_size=values["image_size"],
    )


def _find_project(name_or_path: str | Path) -> Path:
    if str(name_or_path).endswith((".yml", ".yaml")):
        path = Path(name_or_path)
        if not path.is_file():
            raise InputError(f"the project file {path} does not exist")
        return path
    folders = (Path("projects"), PROJECTS)
    for folder in folders:
        path = folder / f"{name_or_path}.yml"
        if path.is_file():
            return path
    known = sorted({file.stem for folder in folders for file in folder.glob("*.yml")})
    remedy = f"write one following {_EXAMPLE}, or choose from {', '.join(known)}"
    raise InputError(f"the project file projects/{name_or_path}.yml does not exist: {remedy}")


def _is_int(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_name(value: object) -> bool:
    return isinstance(value, str) or _is_int(value)


def _is_number(value: object) -> TypeGuard[float]:
    return (isinstance(value, float) or _is_int(value)) and abs(value) < 1e300


def _is_positive(value: object) -> bool:
    return _is_number(value) and value > 0


def _is_list(value: object, is_valid: Callable[[object], bool], length: int | None = None) -> bool:
    return isinstance(value, list) and len(value) > 0 and length in (None, len(value)) and all(map(is_valid, value))


_OPERATORS: dict[type, Callable[..., Any]] = {
    ast.Add: add, ast.Sub: sub, ast.Mult: mul, ast.Div: truediv, ast.Pow: pow, ast.USub: neg, ast.UAdd: pos
}  # fmt: skip


def _parse_numbers(value: object, key: str, path: Path) -> Any:
    """Evaluate text such as '[2 ** 0, 2 ** (1.0 / 3.0)]' to lists of numbers; return other values unchanged."""
    if not isinstance(value, str):
        return value
    try:
        return _evaluate(ast.parse(value.strip(), mode="eval").body)
    except (SyntaxError, ValueError, ArithmeticError, RecursionError, MemoryError) as error:
        raise InputError(f"{path}: cannot parse {key} {value!r} as lists of numbers: {error}") from error


def _evaluate(node: ast.expr) -> object:
    """Evaluate a syntax tree of lists, tuples (as lists), numbers and + - * / **. Raises ValueError for others."""
    match node:
        case ast.Constant(value=int() | float() as value) if not isinstance(value, bool):
            return float(value)
        case ast.List(elts=elements) | ast.Tuple(elts=elements):
            return [_evaluate(element) for element in elements]
        case ast.UnaryOp(op=op, operand=operand) if type(op) in _OPERATORS:
            return _OPERATORS[type(op)](_as_number(_evaluate(operand)))
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _OPERATORS:
            return _as_number(_OPERATORS[type(op)](_as_number(_evaluate(left)), _as_number(_evaluate(right))))
    raise ValueError(f"{ast.unparse(node)!r} is neither a number nor arithmetic")


def _as_number(value: object) -> float:
    if not isinstance(value, float):  # a list, or the complex root of a negative number
        raise ValueError(f"{value!r} is not a number")
    return value
