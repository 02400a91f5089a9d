"""A `.pt2` file with code in it is an error before PyTorch loads it."""

import json
import os
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from exports import CPU, describe, network_that_finds

from efficientdet.export.formats import write_exported
from efficientdet.runtime.exported import ExportedModel
from efficientdet.runtime.pt2_safety import check_pt2, no_pickled_code
from utils.errors import InputError

pytestmark = pytest.mark.slow  # exports and loads a file


@pytest.fixture(scope="module")
def valid(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("pt2") / "model.pt2"
    write_exported(network_that_finds(), describe(), "pt2", path)
    return path


def edited(path: Path, copy: Path, edit: Callable[[str], str] = str, extra: dict[str, bytes] | None = None) -> Path:
    """Return a copy with `edit` applied to the graph's JSON, and with `extra` entries."""
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(copy, "w") as new:
        for name in old.namelist():
            content = old.read(name)
            new.writestr(name, edit(content.decode()) if name.endswith("models/model.json") else content)
        for name, content in (extra or {}).items():
            new.writestr(f"model/{name}", content)
    return copy


def test_exported_file_is_accepted(valid, tmp_path):
    check_pt2(valid)
    assert ExportedModel(edited(valid, tmp_path / "copy.pt2"), CPU).compound_coef == 0


@pytest.mark.parametrize("entry", ["data/constants/opaque_obj_0", "data/aotinductor/model/a.so", "code/x.py"])
def test_other_entries_are_an_error(valid, tmp_path, entry):
    with pytest.raises(InputError, match=entry):
        ExportedModel(edited(valid, tmp_path / "bad.pt2", extra={entry: b"cos\nsystem\n(S'true'\ntR."}), CPU)


def test_sizes_that_are_programs_are_an_error(valid, tmp_path):
    trace = tmp_path / "was_here"
    program = f"__import__('pathlib').Path('{trace}').touch() or Symbol('s34', positive=True, integer=True)"

    def infect(graph: str) -> str:
        size = '"expr_str": "Symbol('
        start = graph.index(size)
        end = graph.index('"', start + len(size))
        return f'{graph[:start]}"expr_str": {json.dumps(program)}{graph[end + 1 :]}'

    with pytest.raises(InputError, match="__import__"):
        ExportedModel(edited(valid, tmp_path / "bad.pt2", infect), CPU)
    assert not trace.exists()


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"guards_code": []', '"guards_code": ["print(1)"]'),
        ('"torch.ops.aten.conv2d.default"', '"torch.os.system"'),
        ("Symbol('s34'", "Symbol('x.y'"),
    ],
)
def test_guards_other_operators_and_symbols_are_an_error(valid, tmp_path, old, new):
    def infect(graph: str) -> str:
        assert old in graph
        return graph.replace(old, new)

    with pytest.raises(InputError, match=r"bad\.pt2"):
        ExportedModel(edited(valid, tmp_path / "bad.pt2", infect), CPU)


def test_pickled_code_is_an_error_within_the_block_alone(tmp_path):
    torch.save(Path("x"), tmp_path / "object.pt")
    with no_pickled_code(), pytest.raises(Exception, match="[Ww]eights"):
        torch.load(tmp_path / "object.pt", weights_only=False)
    assert "TORCH_FORCE_WEIGHTS_ONLY_LOAD" not in os.environ
