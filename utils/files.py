"""Files and folders that are either whole or absent."""

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from utils.errors import InputError


@contextlib.contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yields a temporary path beside `path`; what is written there takes `path`'s place when the block succeeds.

    The bytes are on the disk before the rename, so a crash or a power loss leaves the old file or the new one.
    Folders are made as needed. InputError when the disk does not take the file (full, read-only, not allowed).
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
        if os.name == "posix":  # the rename itself must reach the disk, too
            folder = os.open(path.parent, os.O_RDONLY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)
    except OSError as error:
        reason = error.strerror or error
        raise InputError(f"cannot write {path}: {reason}; free or choose another place and run again") from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def atomic_folder(folder: Path) -> Iterator[Path]:
    """Yields a new folder beside `folder`, which must not exist; it is renamed when the block succeeds, else removed.

    InputError when the disk does not take it (full, read-only, not allowed).
    """
    unfinished = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    try:
        unfinished.mkdir(parents=True)
        yield unfinished
        os.rename(unfinished, folder)
    except OSError as error:
        reason = error.strerror or error
        raise InputError(f"cannot write {folder}: {reason}; free or choose another place and run again") from error
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def make_writable_folder(folder: Path) -> None:
    """Make `folder` and try it, so that hours of work do not end at the first file. InputError when it is unusable."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise InputError(f"cannot write into the folder {folder}: {error.strerror}; choose another") from error
