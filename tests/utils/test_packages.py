"""Packages that only some commands need."""

import importlib.util

import pytest

from utils.errors import InputError
from utils.optional import require_packages


def test_nothing_is_needed():
    require_packages([], "nothing")


def test_packages_that_are_there():
    require_packages(["torch", "numpy"], "this")


def test_missing_ones_are_named_with_the_command(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object() if name == "torch" else None)
    with pytest.raises(InputError, match="^this needs onnx and nncf: pip install onnx nncf$"):
        require_packages(["onnx", "torch", "nncf"], "this")
