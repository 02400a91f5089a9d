"""What torch.export would run of a `.pt2` file, looked at before it does.

A `.pt2` file is an archive of a graph in JSON and of tensors. Reading it, torch.export evaluates symbolic sizes and
guards as Python, unpickles tensors of unusual kinds without restriction, and loads compiled libraries. The files of
`efficientdet.export` hold none of these but simple symbolic sizes.
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
_SIZES = {"Symbol", "Integer", "Add", "Mul", "GreaterThan"}  # the functions in them


def check_pt2(path: Path) -> None:
    """InputError for a file with anything in it that would be run, other than the graph's own operators."""
    with zipfile.ZipFile(path) as archive:
        entries = {name.partition("/")[2]: name for name in archive.namelist()}
        strange = [repr(entry) for entry in entries if not _ENTRY.fullmatch(entry)]
        graph = json.loads(archive.read(entries["models/model.json"])) if not strange else {}
    strange += [repr(guard) for guard in graph.get("guards_code", [])]
    for key, value in _texts(graph):
        if key == "expr_str" and not _is_size(value) or key == "target" and not _OPERATOR.fullmatch(value):
            strange.append(repr(value))
    if strange:
        raise InputError(f"{path} holds {strange[0]}, which is no part of an exported detector: it is not used")


def _texts(content: object) -> Iterator[tuple[str, str]]:
    """The texts in decoded JSON with their keys."""
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
    """Whether it is arithmetic of integers and of symbols such as s34, spelled as calls."""
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
            case ast.Name(id=name) if name in _SIZES:
                pass
            case ast.Constant(value=value) if isinstance(value, int) or _SYMBOL.fullmatch(str(value)):
                pass
            case _:
                return False
    return True


@contextmanager
def no_pickled_code() -> Iterator[None]:
    """Within the block, PyTorch unpickles tensors only, whatever is asked of it."""
    variable = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"
    before = os.environ.get(variable)
    os.environ[variable] = "1"
    try:
        yield
    finally:
        del os.environ[variable]
        if before is not None:
            os.environ[variable] = before
