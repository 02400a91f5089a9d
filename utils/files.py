"""Atomic writes: files and folders that are either complete or absent."""

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from utils.errors import InputError


@contextlib.contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yield a temporary path in the same folder; what is written there replaces `path` when the block succeeds.

    The content reaches the disk before the rename, so that a crash or power loss leaves either the old file or the new
    one. Missing parent folders are created. Raises InputError if the file cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with _report_os_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            yield temporary
            _sync_to_disk(temporary)
            os.replace(temporary, path)
            _sync_to_disk(path.parent)  # the rename itself
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def atomic_folder(folder: Path) -> Iterator[Path]:
    """Yield a new temporary folder, renamed to `folder` when the block succeeds and removed otherwise.

    Raises InputError if the folder cannot be written, or if `folder` exists and is not empty.
    """
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    try:
        with _report_os_errors(folder):
            temporary.mkdir(parents=True)
            yield temporary
            os.rename(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def make_writable_folder(folder: Path) -> None:
    """Create `folder` if needed and write a test file. Raises InputError if that fails."""
    with _report_os_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()


def make_folder_for(path: Path) -> None:
    """Create the folder of a file to write. Raises InputError now rather than after hours of work."""
    if path.is_dir():
        raise InputError(f"{path} is a folder: name a file in it")
    make_writable_folder(path.parent)


@contextlib.contextmanager
def _report_os_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        reason = error.strerror or error
        raise InputError(f"cannot write {path}: {reason}; free up space or choose another place") from error


def _sync_to_disk(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
