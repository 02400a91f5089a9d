"""Packages that only some commands need."""

import importlib.util
from collections.abc import Sequence

from utils.errors import InputError


def require_packages(names: Sequence[str], needed_for: str) -> None:
    """InputError, with the command that installs them, when some of the packages are not there.

    Args:
        names: as they are imported and installed.
        needed_for: the beginning of the sentence.
    """
    missing = [name for name in names if importlib.util.find_spec(name) is None]
    if missing:
        raise InputError(f"{needed_for} needs {' and '.join(missing)}: pip install {' '.join(missing)}")
