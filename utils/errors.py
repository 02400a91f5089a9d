"""User errors, reported in one sentence instead of a traceback."""

import io
import sys
from collections.abc import Iterator
from contextlib import contextmanager


class InputError(ValueError):
    """An unusable file, flag or value from the user. The message names what is wrong, where, and the remedy."""


@contextmanager
def exit_on_input_error() -> Iterator[None]:
    """Turn an `InputError` from a script's `main()` into one line on stderr and exit status 1.

    Characters that the terminal cannot display are printed as escape sequences.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # as on stderr
    try:
        yield
    except InputError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit(130)  # the shell's convention for Ctrl+C
