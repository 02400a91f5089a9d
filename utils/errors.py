"""Mistakes in what the user gave, told in one sentence instead of a traceback."""

import io
import sys
from collections.abc import Iterator
from contextlib import contextmanager


class InputError(ValueError):
    """A file, a flag or a value from the user that cannot be used. The message says what, where, and what to do."""


@contextmanager
def exit_on_input_error() -> Iterator[None]:
    """Around a script's `main()`: an `InputError` becomes one line on stderr and exit status 1.

    What the terminal cannot show of a name is printed as an escape sequence.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # as stderr does
    try:
        yield
    except InputError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit(130)  # the shell's convention for Ctrl+C
