"""Decode every image of a set: find unreadable ones, wrong sizes and duplicates."""

import contextlib
import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tqdm.contrib.concurrent import thread_map

from efficientdet.check.rules import Rule
from efficientdet.data.annotations import AnnotatedSet
from efficientdet.data.findings import Finding
from utils.errors import InputError
from utils.images import read_image

EXIF_IGNORED = Rule("warning", "images annotated without their EXIF rotation", "training ignores it, too: see --show")
WRONG_SIZE = Rule("error", "images of another size than annotated", "its boxes would not fit; correct entry or image")
DUPLICATE_IMAGE = Rule("warning", "duplicate images", "keep one; objects annotated in only one become background")


class ImageScan(NamedTuple):
    """The result of decoding an image. The defaults mean a missing image."""

    size: tuple[int, int] = (0, 0)  # (height, width) after the EXIF rotation; 0 if it cannot be decoded
    exif_ignored: bool = False  # the annotated size is that before the EXIF rotation
    digest: bytes = b""  # equal for images with equal pixels
    error: str = ""


def scan_image(path: Path, annotated_size: tuple[int, int]) -> ImageScan:
    """Decode an image whose annotated (height, width) is `annotated_size`, or (0, 0) if unknown."""
    try:
        image = read_image(path)
    except InputError as error:
        return ImageScan(error=str(error))
    size = image.shape[:2]
    digest = hashlib.blake2b(image.data, digest_size=16, key=str(size).encode()).digest()
    if size[::-1] == annotated_size != size:
        with contextlib.suppress(InputError):  # not the size of the stored pixels, either
            read_image(path, annotated_size)
            return ImageScan(size, True, digest)
    return ImageScan(size, False, digest)


def scan_images(annotated: AnnotatedSet, num_threads: int) -> list[ImageScan]:
    """Decode every image of a set, in threads: decoding and hashing release the GIL."""

    def scan(index: int) -> ImageScan:
        path, size = annotated.image_path(index), tuple(annotated.sizes[index].tolist())
        return scan_image(path, size) if annotated.present[index] else ImageScan()

    progress = {"desc": f"decoding {annotated.name}", "unit": "image", "dynamic_ncols": True}
    return thread_map(scan, range(len(annotated.images)), max_workers=num_threads, **progress)


def with_scanned_sizes(annotated: AnnotatedSet, scans: Sequence[ImageScan]) -> AnnotatedSet:
    """Return the set with the decoded sizes where the annotation file has none."""
    scanned = np.array([scan.size for scan in scans], np.int64).reshape(-1, 2)
    known = (annotated.sizes > 0).all(axis=1, keepdims=True)
    return replace(annotated, sizes=np.where(known, annotated.sizes, scanned))


def image_findings(annotated: AnnotatedSet, scans: Sequence[ImageScan]) -> Iterator[Finding]:
    """Find images that cannot be read, differ from their annotated size, or have the pixels of an earlier image."""
    for index, scan in enumerate(scans):
        height, width = annotated.sizes[index].tolist()
        decoded = f"{scan.size[1]} x {scan.size[0]}"
        if scan.error:
            message, _, advice = scan.error.removeprefix(f"{annotated.image_path(index)} ").partition(": ")
            yield Rule("error", "images that cannot be read", advice).on_image(annotated, index, message)
        elif scan.exif_ignored:
            message = f"is {decoded} pixels as viewers show it, {width} x {height} as stored and annotated"
            yield EXIF_IGNORED.on_image(annotated, index, message)
        elif scan.digest and height and width and (height, width) != scan.size:
            message = f"is {decoded} pixels, but annotated as {width} x {height}"
            yield WRONG_SIZE.on_image(annotated, index, message)
    first: dict[bytes, int] = {}
    for index, scan in enumerate(scans):
        if scan.digest and first.setdefault(scan.digest, index) != index:
            earlier = first[scan.digest]
            original = f"image {annotated.images[earlier]['id']!r} ({annotated.image_path(earlier).name})"
            yield DUPLICATE_IMAGE.on_image(annotated, index, f"has the pixels of {original}")


def same_pixels(train: Sequence[ImageScan], val: Sequence[ImageScan]) -> list[tuple[int, int]]:
    """Return the pairs of positions in two sets whose images have the same pixels."""
    index_of = {scan.digest: index for index, scan in enumerate(train) if scan.digest}
    return [(index_of[scan.digest], index) for index, scan in enumerate(val) if scan.digest in index_of]
