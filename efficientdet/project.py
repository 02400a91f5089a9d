"""The project file: YAML that names a dataset, its classes, and the anchors and normalization to use."""

import ast
import difflib
import operator
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from utils.errors import InputError
from utils.yaml_file import read_yaml

# An installed package contains projects/ and weights/ (see pyproject.toml); in a checkout they lie next to it.
_PACKAGE = Path(__file__).resolve().parent
_BUNDLED = _PACKAGE if (_PACKAGE / "projects").is_dir() else _PACKAGE.parent
PROJECTS = _BUNDLED / "projects"
SHAPES_IMAGES = PROJECTS / "shapes"
SHAPES_WEIGHTS = _BUNDLED / "weights" / "efficientdet-d0_shapes.pth"

_EXAMPLE = PROJECTS / "coco.yml"
_NAMES = ("project_name", "train_set", "val_set")
_REQUIRED = (*_NAMES, "num_gpus", "mean", "std", "anchors_scales", "anchors_ratios", "obj_list")
_KEYS = (*_REQUIRED, "image_size")


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
    values = read_yaml(path, f"such as 'project_name: coco'; see {_EXAMPLE}")
    _check_keys(values, path)

    def fail(key: str, expected: str) -> NoReturn:
        raise InputError(f"{path}: {key} must be {expected}, not {values[key]!r}")

    for key in _NAMES:
        if not _is_name(values[key]) or not str(values[key]):
            fail(key, "a name")
    num_gpus, image_size = values["num_gpus"], values.get("image_size")
    if not _is_int(num_gpus) or num_gpus < 0:
        fail("num_gpus", "0 (CPU) or a number of GPUs")
    for key in ("mean", "std"):
        if not _is_numbers(values[key], length=3):
            fail(key, "three numbers (red, green, blue)")
    if min(values["std"]) <= 0:
        fail("std", "above 0")
    if image_size is not None and (not _is_int(image_size) or image_size < 1):
        fail("image_size", "a number of pixels, or omitted")
    scales = _parse_numbers(values["anchors_scales"], "anchors_scales", path)
    if not _is_numbers(scales) or min(scales) <= 0:
        fail("anchors_scales", "a list of numbers above 0, for example [1, 1.26, 1.59]")
    ratios = _parse_numbers(values["anchors_ratios"], "anchors_ratios", path)
    if not isinstance(ratios, list) or not ratios or not all(_is_numbers(r, length=2) and min(r) > 0 for r in ratios):
        fail("anchors_ratios", "a list of (width, height) pairs, for example [[1, 1], [1.4, 0.7], [0.7, 1.4]]")

    return Project(
        path=path,
        name=str(values["project_name"]),
        train_set=str(values["train_set"]),
        val_set=str(values["val_set"]),
        num_gpus=num_gpus,
        mean=tuple(map(float, values["mean"])),
        std=tuple(map(float, values["std"])),
        anchor_scales=tuple(map(float, scales)),
        anchor_ratios=tuple((float(x), float(y)) for x, y in ratios),
        class_names=_class_names(values["obj_list"], path),
        image_size=image_size,
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
    raise InputError(
        f"the project file projects/{name_or_path}.yml does not exist: write one following {_EXAMPLE}, "
        f"or choose from {', '.join(known)}"
    )


def _check_keys(values: dict, path: Path) -> None:
    missing = [key for key in _REQUIRED if key not in values]
    for key in values:
        if key not in _KEYS:
            close = difflib.get_close_matches(str(key), missing or _KEYS, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"the keys are {', '.join(_KEYS)}"
            raise InputError(f"{path}: unknown key {key!r}: {hint}")
    if missing:
        raise InputError(f"{path}: the key {missing[0]!r} is missing; see {_EXAMPLE} for an example")


def _class_names(values: object, path: Path) -> tuple[str, ...]:
    if not isinstance(values, list) or not values:
        raise InputError(f"{path}: obj_list must be a list of class names, not {values!r}")
    names: list[str] = []
    for value in values:
        if not _is_name(value):
            raise InputError(f"{path}: obj_list contains {value!r}, which is not text: put it in quotes")
        if str(value) and str(value) in names:
            raise InputError(f"{path}: obj_list contains {value!r} twice")
        names.append(str(value))
    if not any(names):
        raise InputError(f"{path}: obj_list contains only empty names")
    return tuple(names)


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_name(value: object) -> bool:
    return isinstance(value, str) or _is_int(value)


def _is_numbers(value: object, length: int | None = None) -> bool:
    return (
        isinstance(value, list)
        and len(value) > 0
        and (length is None or len(value) == length)
        and all((isinstance(v, float) or _is_int(v)) and abs(v) < 1e300 for v in value)
    )


_OPERATORS: dict[type, Callable[..., Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.Pow: operator.pow,
    ast.USub: operator.neg,
    ast.UAdd: operator.pos,
}


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
