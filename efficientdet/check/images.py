"""Every image of a set, decoded: those that cannot be, those of another size than annotated, those that are equal."""

import contextlib
import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tqdm.contrib.concurrent import thread_map

from efficientdet.check.rules import on_image
from efficientdet.data.annotations import AnnotatedSet
from efficientdet.data.findings import Finding
from utils.errors import InputError
from utils.images import read_image


class ImageScan(NamedTuple):
    """What decoding has shown of an image."""

    size: tuple[int, int] = (0, 0)  # (height, width) as a person sees it; 0 when it cannot be decoded
    turned: bool = False  # its annotated size is that of the stored pixels, which the EXIF orientation turns
    digest: bytes = b""  # equal pixels have equal ones
    error: str = ""


def scan_image(path: Path, annotated_size: tuple[int, int]) -> ImageScan:
    """Decode an image. `annotated_size` is the (height, width) that it should have, (0, 0) when any will do."""
    try:
        image = read_image(path)
    except InputError as error:
        return ImageScan(error=str(error))
    size = image.shape[:2]
    digest = hashlib.blake2b(image.data, digest_size=16, key=str(size).encode()).digest()
    turned = False
    if size[::-1] == annotated_size != size:
        with contextlib.suppress(InputError):  # it is not: the size is that of neither way round
            read_image(path, annotated_size)
            turned = True
    return ImageScan(size, turned, digest)


def scan_images(annotated: AnnotatedSet, num_threads: int) -> list[ImageScan | None]:
    """`scan_image` for every image of the set; None where the image is missing.

    Threads suffice: decoding and hashing do not hold the interpreter.
    """

    def scan(index: int) -> ImageScan | None:
        if annotated.present[index]:
            return scan_image(annotated.image_path(index), tuple(annotated.sizes[index].tolist()))
        return None

    return thread_map(
        scan,
        range(len(annotated.images)),
        max_workers=num_threads,
        desc=f"decoding {annotated.name}",
        unit="img",
        dynamic_ncols=True,
    )


def with_scanned_sizes(annotated: AnnotatedSet, scans: Sequence[ImageScan | None]) -> AnnotatedSet:
    """The set with the images' own sizes where the annotation file tells none."""
    scanned = np.array([scan.size if scan else (0, 0) for scan in scans], np.int64).reshape(-1, 2)
    told = (annotated.sizes > 0).all(axis=1, keepdims=True)
    return replace(annotated, sizes=np.where(told, annotated.sizes, scanned))


def image_findings(annotated: AnnotatedSet, scans: Sequence[ImageScan | None]) -> Iterator[Finding]:
    """Images that cannot be used, or may not be what their annotations were drawn on.

    Args:
        annotated: as it was read: with the sizes of the annotation file alone.
    """
    for index, scan in enumerate(scans):
        size = tuple(annotated.sizes[index].tolist())
        if scan is None:
            continue
        if scan.error:
            message, _, advice = scan.error.removeprefix(f"{annotated.image_path(index)} ").partition(": ")
            yield on_image("error", "images that cannot be read", annotated, index, message, advice)
        elif scan.turned:
            yield on_image(
                "warning",
                "images whose annotated size is that before their EXIF rotation",
                annotated,
                index,
                f"is {_described(scan.size)} pixels as viewers show it, {_described(size)} as stored and annotated",
                "training takes it as it is stored; look with --show whether the boxes were drawn so",
            )
        elif all(size) and size != scan.size:
            yield on_image(
                "error",
                "images of another size than annotated",
                annotated,
                index,
                f"is {_described(scan.size)} pixels, but annotated as {_described(size)}",
                "the boxes would not fit; correct the entry, or put the image back that was annotated",
            )


def repeated_images(annotated: AnnotatedSet, scans: Sequence[ImageScan | None]) -> Iterator[Finding]:
    """Images that the set has twice."""
    first: dict[bytes, int] = {}
    for index, scan in enumerate(scans):
        if scan and scan.digest and first.setdefault(scan.digest, index) != index:
            earlier = first[scan.digest]
            yield on_image(
                "warning",
                "images that are there twice",
                annotated,
                index,
                f"has the pixels of image {annotated.images[earlier]['id']!r} ({annotated.image_path(earlier).name})",
                "it counts double, and boxes that one of the two lacks are taught to be background; keep one of them",
            )


def equal_images(
    train_scans: Sequence[ImageScan | None], val_scans: Sequence[ImageScan | None]
) -> list[tuple[int, int]]:
    """Pairs of positions in the two sets whose images have the same pixels."""
    index_of = {scan.digest: index for index, scan in enumerate(train_scans) if scan and scan.digest}
    return [(index_of[scan.digest], index) for index, scan in enumerate(val_scans) if scan and scan.digest in index_of]


def _described(size: tuple[int, int]) -> str:
    return f"{size[1]} x {size[0]}"
