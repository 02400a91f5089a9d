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
    pairs: list[tuple[str, object]] = []  # the keys and values of all objects in the graph's JSON, nested ones too
    with zipfile.ZipFile(path) as archive:
        entries = {name.partition("/")[2]: name for name in archive.namelist()}
        strange = [entry for entry in entries if not _ENTRY.fullmatch(entry)]
        if not strange:
            json.loads(archive.read(entries["models/model.json"]), object_pairs_hook=pairs.extend)
    for pair in pairs:
        match pair:
            case "guards_code", guards if guards != []:
                strange.append(str(guards))
            case "expr_str", str(text) if not _is_size(text):
                strange.append(text)
            case "target", str(text) if not _OPERATOR.fullmatch(text):
                strange.append(text)
    if strange:
        raise InputError(f"{path} contains {strange[0]!r}, which no exported detector has: not loaded")


def _is_size(text: str) -> bool:
    """Return whether `text` is arithmetic on integers and symbols such as s34, written as function calls."""
    try:
        nodes = list(ast.walk(ast.parse(text, mode="eval")))
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    for node in nodes:
        match node:
            case ast.Expression() | ast.keyword() | ast.Load() | ast.UnaryOp() | ast.USub() | ast.Call(func=ast.Name()):
                continue
            case ast.Name(id=name) if name in _SIZE_FUNCTIONS:
                continue
            case ast.Constant(value=value) if isinstance(value, int) or _SYMBOL.fullmatch(str(value)):
                continue
        return False
    return True


@contextmanager
def no_pickled_code() -> Iterator[None]:
    """Let PyTorch unpickle nothing but tensors within the block, whatever `weights_only` is."""
    variable = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"
    before = os.environ.get(variable)
    os.environ[variable] = "1"
    try:
        yield
    finally:
        del os.environ[variable]
        if before is not None:
            os.environ[variable] = before
