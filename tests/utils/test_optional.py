"""Optional packages: required, and silenced."""

import importlib.util
import logging
import warnings

import pytest

from utils.errors import InputError
from utils.optional import quietly, require_packages


def test_no_package_is_required():
    require_packages([], "nothing")


def test_installed_packages_pass():
    require_packages(["torch", "numpy"], "this")


def test_missing_packages_are_named_with_the_command(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object() if name == "torch" else None)
    with pytest.raises(InputError, match="this .*pip install onnx nncf$"):
        require_packages(["onnx", "torch", "nncf"], "this")


def test_warnings_are_suppressed_in_the_block_only(recwarn):
    with quietly():
        warnings.warn("inside", stacklevel=1)
    assert not recwarn.list
    warnings.warn("after", stacklevel=1)
    assert [str(warning.message) for warning in recwarn.list] == ["after"]


def test_loggers_are_restored_after_a_failure(caplog):
    logger = logging.getLogger("chatty")
    logger.setLevel(logging.INFO)
    with pytest.raises(ValueError), quietly("chatty"):
        logger.critical("inside")
        raise ValueError
    logger.info("after")
    assert caplog.messages == ["after"] and logger.level == logging.INFO
