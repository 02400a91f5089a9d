"""Frames of anything: images, folders, patterns, videos, cameras, streams, and lists of these on stdin.

What cannot be used becomes a `Failure` among the frames, so that the rest goes on.
"""

import base64
import contextlib
import glob
import http.client
import os
import re
import time
import urllib.error
import urllib.request
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from urllib.parse import SplitResult, unquote, urlsplit, urlunsplit

import numpy as np

from utils.errors import InputError
from utils.images import IMAGE_SUFFIXES, decode_image, read_image
from utils.video import VIDEO_SUFFIXES, VideoReader

_MOST_CAMERA_DIGITS = 4  # OpenCV's numbers, whose hundreds may name a driver
_MOST_DOWNLOAD = 2**28  # bytes of an image
_TIMEOUT = 10.0  # seconds that a server may be silent
_RECONNECTIONS = 2  # attempts, when something live breaks
_RECONNECTION_PAUSE = 1.0  # seconds
_STABLE_SECONDS = 60.0  # a connection that lasted so long earns new attempts
_EARLY_END = 0.05  # share of a video's frames that may be missing, as some formats only estimate their number


@dataclass(frozen=True, eq=False)
class Source:
    """One image, one video, one stream or one camera."""

    name: str  # as the user wrote it, without a password
    stem: str  # for the names of files made from it
    rate: float | None = None  # frames per second; None for a still image


@dataclass(frozen=True, eq=False)
class Frame:
    """An image, or one of a video's."""

    source: Source
    image: np.ndarray  # (H, W, 3) uint8 RGB
    number: int | None = None  # among the video's frames, from 0; None for a still image


@dataclass(frozen=True)
class Failure:
    """Something that could not be used."""

    name: str  # as Source.name
    reason: str  # a sentence


# What a user named, by its kind: a file, a camera's number or a URL.
Entry = Path | int | str


def list_sources(arguments: Iterable[str], stdin: Iterable[str] = ()) -> Iterator[Entry | Failure]:
    """What is meant by each of `arguments`; folders and patterns as their files, sorted. Nothing is opened.

    Args:
        stdin: lines, each another argument, for the argument `-`.
    """
    for argument in arguments:
        if argument == "-":
            yield from list_sources(line.strip() for line in stdin if line.strip())
        elif "://" in argument:
            yield argument
        elif os.path.isdir(argument):
            yield from _list_files(argument, os.path.join(glob.escape(argument), "*"))
        elif os.path.exists(argument):
            yield Path(argument)
        elif argument.isdecimal() and len(argument) <= _MOST_CAMERA_DIGITS:
            yield int(argument)
        elif glob.has_magic(argument):
            yield from _list_files(argument, argument)
        else:
            yield Failure(argument, f"there is no file, folder or camera {argument}")


def _list_files(argument: str, pattern: str) -> Iterator[Path | Failure]:
    """The images and videos that `pattern` matches."""
    files = [
        path
        for path in map(Path, sorted(glob.glob(pattern, recursive=True)))
        if path.suffix.lower() in IMAGE_SUFFIXES | VIDEO_SUFFIXES and path.is_file()
    ]
    suffixes = ", ".join(sorted(IMAGE_SUFFIXES | VIDEO_SUFFIXES))
    deeper = f"; {os.path.join(argument, '**')!r} searches its folders, too" if os.path.isdir(argument) else ""
    if not files:
        yield Failure(argument, f"{argument} holds no images or videos ({suffixes}){deeper}")
    yield from files


def open_sources(entries: Iterable[Entry | Failure]) -> Iterator[Path | Frame | Failure]:
    """Everything in `entries`, one after the other: frames of what moves, and files of images for `load`."""
    for entry in entries:
        if isinstance(entry, int):
            yield from _read_live(entry, f"camera {entry}", f"camera{entry}")
        elif isinstance(entry, Path) and entry.suffix.lower() in VIDEO_SUFFIXES:
            yield from _read_video(entry)
        elif isinstance(entry, str):
            yield from _read_url(entry)
        else:
            yield entry


def load(item: Path | Frame | Failure) -> Frame | Failure:
    """The frame in an image's file; frames and failures stay as they are."""
    if not isinstance(item, Path):
        return item
    try:
        return Frame(Source(str(item), item.stem), read_image(item))
    except InputError as error:
        return Failure(str(item), str(error))


def _read_video(path: Path) -> Iterator[Frame | Failure]:
    name = str(path)
    try:
        reader = VideoReader(name, name)
    except InputError as error:
        yield Failure(name, str(error))
        return
    source, frames = Source(name, path.stem, reader.rate), 0
    with contextlib.closing(reader):
        for image in reader:
            yield Frame(source, image, frames)
            frames += 1
    yield from _early_end(name, frames, reader.frame_count)


def _early_end(name: str, frames: int, expected: int | None) -> Iterator[Failure]:
    """A failure when a video gave too few frames."""
    if frames == 0 or (expected is not None and frames < (1 - _EARLY_END) * expected):
        yield Failure(name, f"{name} ends after {frames} of {expected or 'its'} frames: it is damaged or cut short")


def _read_live(address: str | int, name: str, stem: str) -> Iterator[Frame | Failure]:
    """Frames of a camera or a stream. When it breaks it is opened again, and that is a failure, too.

    A URL may also be of a video that simply ends.
    """
    source, frames, attempts = None, 0, _RECONNECTIONS
    broken = False
    while True:
        opened = time.monotonic()
        try:
            reader = VideoReader(address, name)
        except InputError as error:
            if source is None:
                yield Failure(name, str(error))
                return
        else:
            with contextlib.closing(reader):
                source = source or Source(name, stem, reader.rate)
                for image in reader:
                    if broken:
                        yield Failure(name, f"{name} broke after {frames} frames, and goes on after a gap")
                        broken = False
                    yield Frame(source, image, frames)
                    frames += 1
            if reader.frame_count is not None:
                yield from _early_end(name, frames, reader.frame_count)
                return
            if time.monotonic() - opened > _STABLE_SECONDS:
                attempts = _RECONNECTIONS
        if not attempts:
            yield Failure(name, f"{name} broke after {frames} frames, and does not come back; these are kept")
            return
        broken, attempts = True, attempts - 1
        time.sleep(_RECONNECTION_PAUSE)


def _read_url(address: str) -> Iterator[Frame | Failure]:
    """What a URL gives: one image or a stream."""
    try:
        url = urlsplit(address)
    except ValueError as error:
        yield Failure(address, f"cannot open {address}: {error}")
        return
    host = url.netloc.rpartition("@")[2]
    name = urlunsplit(url._replace(netloc=host))
    stem = re.sub(r"\W+", "_", PurePosixPath(url.path).stem or host)
    if url.scheme in ("http", "https"):
        try:
            picture = _download_image(name, _authorization(url))
        except InputError as error:
            yield Failure(name, str(error))
            return
        if picture is not None:
            yield Frame(Source(name, stem), picture)
            return
    yield from _read_live(address, name, stem)


def _download_image(address: str, headers: dict[str, str]) -> np.ndarray | None:
    """The image (H, W, 3) uint8 RGB at `address`; None when something else is there."""
    try:
        with urllib.request.urlopen(urllib.request.Request(address, headers=headers), timeout=_TIMEOUT) as response:
            if response.headers.get_content_maintype() != "image":
                return None
            data = response.read(_MOST_DOWNLOAD + 1)
    except (OSError, ValueError, http.client.HTTPException) as error:
        reason = error if isinstance(error, urllib.error.HTTPError) else getattr(error, "reason", error)
        raise InputError(f"cannot open {address}: {reason}") from error
    if len(data) > _MOST_DOWNLOAD:
        raise InputError(f"the image {address} has more than {_MOST_DOWNLOAD} bytes: download it by other means")
    return decode_image(data, address)


def _authorization(url: SplitResult) -> dict[str, str]:
    """The HTTP header that carries a URL's user and password."""
    if url.username is None:
        return {}
    secret = f"{unquote(url.username)}:{unquote(url.password or '')}"
    return {"Authorization": f"Basic {base64.b64encode(secret.encode()).decode()}"}
