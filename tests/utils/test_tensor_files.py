"""Files of tensors. What a damaged or dangerous one does is in `test_checkpoint.py`."""

import sys

import pytest
import torch

from efficientdet.checkpoints.loading import read_state_dict
from utils.errors import InputError
from utils.tensor_files import is_state_dict, load_tensors, save_tensors

CONTENT = {"weight": torch.arange(6.0).reshape(2, 3), "steps": torch.tensor(7)}


def test_nothing_is_a_state_dict_of_nothing():
    assert is_state_dict({})
    assert not any(map(is_state_dict, (None, [], {"epoch": 3}, {0: torch.zeros(1)})))


def test_what_is_saved_comes_back(tmp_path):
    save_tensors({**CONTENT, "epochs": [1, 2]}, tmp_path / "a.pth")
    loaded = load_tensors(tmp_path / "a.pth")
    assert loaded["epochs"] == [1, 2]
    assert all(torch.equal(loaded[key], value) for key, value in CONTENT.items())
    assert [file.name for file in tmp_path.iterdir()] == ["a.pth"]


def test_a_disk_that_does_not_take_it_is_told(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"cannot write .*a\.pth"):
        save_tensors(CONTENT, tmp_path / "file" / "a.pth")


def test_safetensors_are_read(tmp_path):
    pytest.importorskip("safetensors.torch").save_file(CONTENT, tmp_path / "a.safetensors")
    loaded = read_state_dict(tmp_path / "a.safetensors")
    assert loaded.keys() == CONTENT.keys()
    assert all(torch.equal(loaded[key], value) for key, value in CONTENT.items())


def test_damaged_safetensors_are_told(tmp_path):
    pytest.importorskip("safetensors")
    (tmp_path / "a.safetensors").write_bytes(b"\xff" * 100)
    with pytest.raises(InputError, match=r"a\.safetensors cannot be read as a file of tensors"):
        load_tensors(tmp_path / "a.safetensors")


def test_safetensors_without_their_package_say_how_to_get_it(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "safetensors.torch", None)
    with pytest.raises(InputError, match=r"reading a\.safetensors needs the package .*pip install safetensors$"):
        load_tensors(type(tmp_path)("a.safetensors"))
