"""Optional packages: check that they are installed before use, and silence them during use."""

import importlib.util
import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from utils.errors import InputError


def require_packages(names: Sequence[str], needed_for: str) -> None:
    """Raise InputError, with the command that installs them, if packages that `needed_for` needs are missing.

    Their names must be the same on PyPI and in `import`.
    """
    missing = [name for name in names if importlib.util.find_spec(name) is None]
    if missing:
        raise InputError(f"{needed_for} needs {' and '.join(missing)}: pip install {' '.join(missing)}")


@contextmanager
def quietly(*logger_names: str) -> Iterator[None]:
    """Suppress warnings and all messages of the named loggers, errors included: the caller reports failures."""
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
