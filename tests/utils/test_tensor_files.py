"""Files of tensors. Damaged and dangerous ones are tested with the checkpoints and the weights converter."""

import sys

import pytest
import torch

from utils.errors import InputError
from utils.tensor_files import is_state_dict, load_tensors, save_tensors

CONTENT = {"weight": torch.arange(6.0).reshape(2, 3), "steps": torch.tensor(7)}


def test_empty_dict_is_a_state_dict():
    assert is_state_dict({})
    assert not any(map(is_state_dict, (None, [], {"epoch": 3}, {0: torch.zeros(1)})))


def test_saved_content_is_loaded_again(tmp_path):
    save_tensors({**CONTENT, "epochs": [1, 2]}, tmp_path / "a.pth")
    loaded = load_tensors(tmp_path / "a.pth")
    assert loaded["epochs"] == [1, 2]
    assert all(torch.equal(loaded[key], value) for key, value in CONTENT.items())
    assert [file.name for file in tmp_path.iterdir()] == ["a.pth"]


def test_unwritable_path_is_reported(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"a\.pth"):
        save_tensors(CONTENT, tmp_path / "file" / "a.pth")


def test_safetensors_are_read(tmp_path):
    pytest.importorskip("safetensors.torch").save_file(CONTENT, tmp_path / "a.safetensors")
    loaded = load_tensors(tmp_path / "a.safetensors")
    assert loaded.keys() == CONTENT.keys()
    assert all(torch.equal(loaded[key], value) for key, value in CONTENT.items())


def test_damaged_safetensors_are_reported(tmp_path):
    pytest.importorskip("safetensors")
    (tmp_path / "a.safetensors").write_bytes(b"\xff" * 100)
    with pytest.raises(InputError, match=r"a\.safetensors"):
        load_tensors(tmp_path / "a.safetensors")


def test_missing_safetensors_package_is_reported_with_the_command(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "safetensors.torch", None)
    with pytest.raises(InputError, match=r"a\.safetensors .*pip install safetensors$"):
        load_tensors(tmp_path / "a.safetensors")
