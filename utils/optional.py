"""Libraries that tell of their own working, kept quiet."""

import importlib.util
import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from utils.errors import InputError


@contextmanager
def quietly(*logger_names: str) -> Iterator[None]:
    """Without warnings, and without what these loggers say, errors included: the caller tells what went wrong."""
    loggers = [logging.getLogger(name) for name in logger_names]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.CRITICAL + 1)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels):
            logger.setLevel(level)


def require_packages(names: Sequence[str], needed_for: str) -> None:
    """InputError, with the command that installs them, when some of the packages are not there.

    Args:
        names: as they are imported and installed.
        needed_for: the beginning of the sentence.
    """
    missing = [name for name in names if importlib.util.find_spec(name) is None]
    if missing:
        raise InputError(f"{needed_for} needs {' and '.join(missing)}: pip install {' '.join(missing)}")
