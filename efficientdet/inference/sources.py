"""Frames from images, folders, patterns, videos, cameras, streams. Anything unusable becomes a `Failure` among them."""

import base64
import glob
import http.client
import os
import re
import time
import urllib.error
import urllib.request
from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from urllib.parse import SplitResult, unquote, urlsplit, urlunsplit

import numpy as np

from utils.errors import InputError
from utils.images import IMAGE_SUFFIXES, decode_image, read_image
from utils.video import VIDEO_SUFFIXES, VideoReader

_SUFFIXES = IMAGE_SUFFIXES | VIDEO_SUFFIXES
_MAX_DOWNLOAD = 2**28  # bytes of an image
_TIMEOUT = 10.0  # seconds that a server may be silent
_MAX_RECONNECTIONS = 2  # in succession, when a live source breaks
_RECONNECTION_PAUSE = 1.0  # seconds
_STABLE_SECONDS = 60.0  # a connection that lasted this long is allowed new reconnections
_MAX_MISSING = 0.05  # share of a video's frames, because some formats only estimate their number


@dataclass(frozen=True, eq=False)
class Source:
    """One image, video, stream or camera."""

    name: str  # as the user wrote it, without a password
    stem: str  # for the names of files made from it
    rate: float | None = None  # frames per second; None for a still image


@dataclass(frozen=True, eq=False)
class Frame:
    """A still image, or one image of a video."""

    source: Source
    image: np.ndarray  # (H, W, 3) uint8 RGB
    number: int | None = None  # among the video's frames, from 0; None for a still image


@dataclass(frozen=True)
class Failure:
    """Something unusable."""

    name: str  # as Source.name
    reason: str  # a sentence


Entry = Path | int | str  # what a user named: a file, the number of a camera, or a URL


def list_sources(arguments: Iterable[str], stdin: Iterable[str] = ()) -> Iterator[Entry | Failure]:
    """Yield what each argument refers to, with folders and patterns as their sorted files. Opens nothing.

    The argument `-` means the lines of `stdin`.
    """
    for argument in arguments:
        if argument == "-":
            yield from list_sources(filter(None, map(str.strip, stdin)))
        elif "://" in argument:
            yield argument
        elif os.path.isdir(argument):
            yield from _list_files(argument, os.path.join(glob.escape(argument), "*"))
        elif os.path.exists(argument):
            yield Path(argument)
        elif argument.isdecimal() and len(argument) <= 4:  # OpenCV's cameras; hundreds may select a driver
            yield int(argument)
        elif glob.has_magic(argument):
            yield from _list_files(argument, argument)
        else:
            yield Failure(argument, f"no such file, folder or camera: {argument}")


def _list_files(argument: str, pattern: str) -> Iterator[Path | Failure]:
    """Yield the images and videos that match `pattern`."""
    paths = map(Path, sorted(glob.glob(pattern, recursive=True)))
    files = [path for path in paths if path.suffix.lower() in _SUFFIXES and path.is_file()]
    if not files:
        hint = f"; {os.path.join(argument, '**')!r} also searches its folders" if os.path.isdir(argument) else ""
        yield Failure(argument, f"no images or videos in {argument} ({', '.join(sorted(_SUFFIXES))}){hint}")
    yield from files


def open_sources(entries: Iterable[Entry | Failure]) -> Iterator[Path | Frame | Failure]:
    """Yield the frames of videos, cameras and URLs, and the files of images, which `load` reads."""
    for entry in entries:
        if isinstance(entry, int):
            yield from _read_video(entry, f"camera {entry}", f"camera{entry}")
        elif isinstance(entry, str):
            yield from _read_url(entry)
        elif isinstance(entry, Path) and entry.suffix.lower() in VIDEO_SUFFIXES:
            yield from _read_video(str(entry), str(entry), entry.stem, live=False)
        else:
            yield entry


def load(item: Path | Frame | Failure) -> Frame | Failure:
    """Read the frame in an image file; return frames and failures unchanged."""
    if not isinstance(item, Path):
        return item
    try:
        return Frame(Source(str(item), item.stem), read_image(item))
    except InputError as error:
        return Failure(str(item), str(error))


def _read_video(address: str | int, name: str, stem: str, live: bool = True) -> Iterator[Frame | Failure]:
    """Yield the frames of a video.

    A live one is opened again when it breaks, until _MAX_RECONNECTIONS in succession fail. A failure marks each gap.
    """
    source, frames, attempts = None, 0, 0
    while attempts <= _MAX_RECONNECTIONS:
        if attempts:
            time.sleep(_RECONNECTION_PAUSE)
        start = time.monotonic()
        attempts += 1
        try:
            reader = VideoReader(address, name)
        except InputError as error:
            if source is not None:
                continue
            yield Failure(name, str(error))
            return
        resumed = source is not None
        source = source or Source(name, stem, reader.rate)
        with closing(reader):
            for image in reader:
                if resumed:
                    yield Failure(name, f"{name} broke after {frames} frames and resumed after a gap")
                    resumed = False
                yield Frame(source, image, frames)
                frames += 1
        expected = reader.frame_count
        if not live or expected is not None:  # a URL may be of a file, too
            if frames == 0 or frames < (1 - _MAX_MISSING) * (expected or 0):
                yield Failure(name, f"{name} ends after {frames} of {expected or 'its'} frames: damaged or cut short")
            return
        if time.monotonic() - start > _STABLE_SECONDS:
            attempts = 1
    yield Failure(name, f"{name} broke after {frames} frames and did not resume; these are kept")


def _read_url(address: str) -> Iterator[Frame | Failure]:
    """Yield the frames at a URL, which is of an image or a stream."""
    name, image = address, None
    try:
        url = urlsplit(address)
        host = url.netloc.rpartition("@")[2]
        name = urlunsplit(url._replace(netloc=host))
        stem = re.sub(r"\W+", "_", PurePosixPath(url.path).stem or host)
        if url.scheme in ("http", "https"):
            image = _download_image(name, url)
    except InputError as error:
        yield Failure(name, str(error))
    except (OSError, ValueError, http.client.HTTPException) as error:
        reason = error if isinstance(error, urllib.error.HTTPError) else getattr(error, "reason", error)
        yield Failure(name, f"cannot open {name}: {reason}")
    else:
        if image is None:
            yield from _read_video(address, name, stem)
        else:
            yield Frame(Source(name, stem), image)


def _download_image(address: str, url: SplitResult) -> np.ndarray | None:
    """Return the image (H, W, 3), uint8 RGB, at `address`, or None if it is something else.

    A user and password in `url` are for HTTP's basic authentication.
    """
    request = urllib.request.Request(address)
    if url.username is not None:
        secret = f"{unquote(url.username)}:{unquote(url.password or '')}"
        request.add_header("Authorization", f"Basic {base64.b64encode(secret.encode()).decode()}")
    with urllib.request.urlopen(request, timeout=_TIMEOUT) as response:
        if response.headers.get_content_maintype() != "image":
            return None
        data = response.read(_MAX_DOWNLOAD + 1)
    if len(data) > _MAX_DOWNLOAD:
        raise InputError(f"the image {address} has more than {_MAX_DOWNLOAD} bytes: download it manually")
    return decode_image(data, address)
