"""Resumable downloads."""

import http.client
import shutil
import urllib.error
import urllib.request
from pathlib import Path

from tqdm import tqdm

from utils.errors import InputError


def download(url: str, path: Path, expected_bytes: int | None = None) -> None:
    """Download `url` to `path` with a progress bar, resuming an interrupted download.

    Bytes are appended to `{path}.part`, which is renamed to `path` when complete. Raises InputError, with instructions
    for a manual download, on a network or server error or an unexpected size.
    """
    part = path.with_name(path.name + ".part")
    try:
        part.parent.mkdir(parents=True, exist_ok=True)
        total = _fetch(url, part)
    except (OSError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", None) or error
        raise InputError(f"cannot download {url} ({reason}): download it manually to {path}") from error
    size = part.stat().st_size
    for expected in (total, expected_bytes):
        if expected is not None and size != expected:
            if size > expected:
                part.unlink()
            remedy = f"run again to resume, or download it manually to {path}"
            raise InputError(f"{url} sent {size} of {expected} bytes: {remedy}")
    part.replace(path)


def _fetch(url: str, part: Path) -> int | None:
    """Append to `part` the bytes of `url` that it lacks. Return the total size, if the server reports it."""
    offset = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={offset}-"} if offset else {})
    try:
        response = urllib.request.urlopen(request, timeout=30)
    except urllib.error.HTTPError as error:
        if error.code != 416:  # range not satisfiable: `part` is complete already, or something else
            raise
        part.unlink()
        return _fetch(url, part)
    with response:
        if response.status != 206:  # the whole file, instead of the rest
            offset = 0
        length = response.headers.get("Content-Length")
        total = None if length is None else int(length) + offset
        title = f"downloading {url.rsplit('/', 1)[-1]}"
        bar = tqdm.wrapattr(response, "read", total=total, initial=offset, desc=title)
        with bar as body, open(part, "ab" if offset else "wb") as file:
            shutil.copyfileobj(body, file)
    return total
