"""Libraries kept quiet, and heard again afterwards."""

import logging
import warnings

import pytest

from utils.optional import quietly


def test_without_loggers_warnings_are_quiet(recwarn):
    with quietly():
        warnings.warn("once", stacklevel=1)
    assert not recwarn.list
    warnings.warn("again", stacklevel=1)
    assert [str(warning.message) for warning in recwarn.list] == ["again"]


def test_loggers_are_quiet_until_the_end_even_of_a_failure(caplog):
    logger = logging.getLogger("chatty")
    logger.setLevel(logging.INFO)
    with pytest.raises(ValueError), quietly("chatty"):
        logger.critical("one")
        raise ValueError
    logger.info("two")
    assert caplog.messages == ["two"] and logger.level == logging.INFO
