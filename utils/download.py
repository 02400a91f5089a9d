"""Download a file, resuming where an earlier attempt stopped."""

import http.client
import urllib.error
import urllib.request
from pathlib import Path

from tqdm import tqdm

from utils.errors import InputError

_TIMEOUT_SECONDS = 30


def download(url: str, path: Path, expected_bytes: int | None = None) -> None:
    """Fetch `url` into `path`, with a progress bar, going on where an earlier attempt stopped.

    The bytes gather in `{path}.part`, which takes its place when complete. InputError when the network, the server
    or the size disappoints, with the URL to fetch by hand.
    """
    part = path.with_name(path.name + ".part")
    try:
        part.parent.mkdir(parents=True, exist_ok=True)
        total = _fetch(url, part)
    except (OSError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", None) or error
        raise InputError(f"cannot download {url} ({reason}): fetch it by other means and put it at {path}") from error
    size = part.stat().st_size
    for wanted in (total, expected_bytes):
        if wanted is not None and size != wanted:
            if size > wanted:
                part.unlink()
            raise InputError(
                f"{url} gave {size} of {wanted} bytes: run again to go on, or fetch it by other means to {path}"
            )
    part.replace(path)


def _fetch(url: str, part: Path) -> int | None:
    """Append to `part` what it lacks of `url`; the whole size as the server tells it."""
    have = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    try:
        response = urllib.request.urlopen(request, timeout=_TIMEOUT_SECONDS)
    except urllib.error.HTTPError as error:
        if error.code != 416:  # range not satisfiable: `part` holds all there is, or something else
            raise
        part.unlink()
        return _fetch(url, part)
    with response:
        resumed = response.status == 206
        length = response.headers.get("Content-Length")
        total = None if length is None else int(length) + (have if resumed else 0)
        with (
            open(part, "ab" if resumed else "wb") as file,
            tqdm(
                desc=f"downloading {url.rsplit('/', 1)[-1]}",
                initial=have if resumed else 0,
                total=total,
                unit="B",
                unit_scale=True,
            ) as progress,
        ):
            while chunk := response.read(1 << 16):
                file.write(chunk)
                progress.update(len(chunk))
    return total
