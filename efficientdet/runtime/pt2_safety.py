"""Check a `.pt2` file for code before torch.export loads it.

A `.pt2` file is an archive of a graph, in JSON, and of tensors. While loading it, torch.export evaluates symbolic sizes
and guards as Python, unpickles unusual tensors without restriction, and loads compiled libraries. The files of
`efficientdet.export` contain none of these except simple symbolic sizes.
"""

import ast
import json
import os
import re
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from utils.errors import InputError

_ENTRY = re.compile(
    r"models/model\.json|data/(weights|constants)/((weight|tensor)_\d+|model_(weights|constants)_config\.json)"
    r"|data/sample_inputs/model\.pt|extra/efficientdet\.json|archive_(format|version)|byteorder|version|\.data/\w+"
)
_OPERATOR = re.compile(r"torch\.ops\.(aten|torchvision)\.\w+(\.\w+)?|_operator\.\w+|")
_SYMBOL = re.compile(r"[su]\d+")
_SIZE_FUNCTIONS = {"Symbol", "Integer", "Add", "Mul", "GreaterThan"}


def check_pt2(path: Path) -> None:
    """Raise InputError if loading or running the file would execute anything but the operators of a detector."""
    with zipfile.ZipFile(path) as archive:
        entries = {name.partition("/")[2]: name for name in archive.namelist()}
        strange = [repr(entry) for entry in entries if not _ENTRY.fullmatch(entry)]
        graph = json.loads(archive.read(entries["models/model.json"])) if not strange else {}
    strange += [repr(guard) for guard in graph.get("guards_code", [])]
    for key, value in _texts(graph):
        if key == "expr_str" and not _is_size(value) or key == "target" and not _OPERATOR.fullmatch(value):
            strange.append(repr(value))
    if strange:
        raise InputError(f"{path} contains {strange[0]}, which no exported detector has: not loaded")


def _texts(content: object) -> Iterator[tuple[str, str]]:
    """Yield the strings in decoded JSON with their keys."""
    if isinstance(content, dict):
        for key, value in content.items():
            if isinstance(value, str):
                yield key, value
            else:
                yield from _texts(value)
    elif isinstance(content, list):
        for value in content:
            yield from _texts(value)


def _is_size(text: str) -> bool:
    """Return whether `text` is arithmetic on integers and symbols such as s34, written as function calls."""
    try:
        nodes = list(ast.walk(ast.parse(text, mode="eval")))
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    for node in nodes:
        match node:
            case ast.Expression() | ast.keyword() | ast.Load() | ast.UnaryOp() | ast.USub():
                pass
            case ast.Call(func=ast.Name()):
                pass
            case ast.Name(id=name) if name in _SIZE_FUNCTIONS:
                pass
            case ast.Constant(value=value) if isinstance(value, int) or _SYMBOL.fullmatch(str(value)):
                pass
            case _:
                return False
    return True


@contextmanager
def no_pickled_code() -> Iterator[None]:
    """Let PyTorch unpickle nothing but tensors within the block, even where it is told to."""
    variable = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"
    before = os.environ.get(variable)
    os.environ[variable] = "1"
    try:
        yield
    finally:
        del os.environ[variable]
        if before is not None:
            os.environ[variable] = before
