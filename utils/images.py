"""Reading and writing image files."""

from pathlib import Path

import cv2
import numpy as np

from utils.errors import InputError
from utils.files import atomic_write

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff"})

# Silence OpenCV's own warnings on stderr: our InputErrors report the same. OpenCV 4, then 5.
(cv2.setLogLevel if hasattr(cv2, "setLogLevel") else cv2.utils.logging.setLogLevel)(0)

_JPEG_START = b"\xff\xd8"
# By how many times smaller a JPEG can be decoded.
_REDUCED = {8: cv2.IMREAD_REDUCED_COLOR_8, 4: cv2.IMREAD_REDUCED_COLOR_4, 2: cv2.IMREAD_REDUCED_COLOR_2}


def read_image(
    path: Path | str, size: tuple[int, int] | None = None, needed: tuple[int, int] | None = None
) -> np.ndarray:
    """Read an image file as an image viewer shows it: (H, W, 3) uint8 RGB.

    The EXIF orientation is applied, grayscale converted to RGB, an alpha channel dropped, 16 bits reduced to 8.

    If the oriented image does not have the annotation file's `size`, (height, width), the pixels are returned as
    stored, because some annotations were drawn on those. Raises InputError if the file is missing, not an image,
    truncated, or of another size.

    With `needed`, (height, width), a JPEG of that `size` is decoded 2, 4 or 8 times smaller, in less time, if both
    sides remain at least as long as `needed`. A pixel is then about the mean of 2 x 2, 4 x 4 or 8 x 8, and sides are
    rounded up, so coordinates are divided by that factor, not multiplied by the ratio of the sides.
    """
    path = Path(path)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InputError(f"cannot read the image {path}: {error.strerror}") from error
    return decode_image(data, str(path), size, needed)


def decode_image(
    data: bytes, name: str, size: tuple[int, int] | None = None, needed: tuple[int, int] | None = None
) -> np.ndarray:
    """Decode the content of an image file as `read_image` does. Messages call it `name`."""
    stored, first_scan = _jpeg_header(data)
    # OpenCV 4 fills the missing part of a truncated JPEG with gray and only warns.
    is_truncated = data.startswith(_JPEG_START) and data.find(b"\xff\xd9", first_scan) < 0
    if size and needed and sorted(stored) == sorted(size) and not is_truncated:
        reduced = _decode_reduced(data, size, needed)
        if reduced is not None:
            return cv2.cvtColor(reduced, cv2.COLOR_BGR2RGB)
    image = None if is_truncated else _decode(data, cv2.IMREAD_COLOR)
    if image is None:
        state = "is empty" if not data else "is damaged, cut short, no image, or above OpenCV's 2**30 pixels"
        raise InputError(f"{name} {state}: replace or remove it (and its entry in the annotation file)")
    if size is not None and image.shape[:2] != tuple(size):
        height, width = image.shape[:2]
        image = _decode(data, cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION)
        if image is None or image.shape[:2] != tuple(size):
            sizes = f"{width} x {height} pixels (width x height), but {size[1]} x {size[0]} in its annotation file"
            raise InputError(f"{name} is {sizes}: the boxes would not fit; correct one of them")
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)


def write_image(path: Path, image: np.ndarray) -> None:
    """Write an (H, W, 3) uint8 RGB array in the format of `path`'s suffix. Raises InputError if that fails."""
    try:
        encoded, data = cv2.imencode(path.suffix, cv2.cvtColor(image, cv2.COLOR_RGB2BGR))
    except cv2.error:
        encoded = False
    if not encoded:
        suffix, size = path.suffix or "a name without suffix", f"{image.shape[1]} x {image.shape[0]} pixels"
        raise InputError(f"cannot write {path}: OpenCV has no encoder for {suffix}, or it cannot hold {size}")
    with atomic_write(path) as temporary:
        temporary.write_bytes(data.tobytes())


def _decode(data: bytes, flags: int) -> np.ndarray | None:
    if not data:
        return None
    try:
        return cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    except cv2.error:  # too many pixels, for instance
        return None


def _decode_reduced(data: bytes, size: tuple[int, int], needed: tuple[int, int]) -> np.ndarray | None:
    """Decode a JPEG of `size` as small as the `needed` size allows. Returns None if it cannot be reduced."""
    for factor, flags in _REDUCED.items():
        height, width = -(-size[0] // factor), -(-size[1] // factor)
        # Sides that rounding made equal would not tell whether the pixels are rotated as `size` is.
        if height >= needed[0] and width >= needed[1] and (height == width) == (size[0] == size[1]):
            for orientation in (0, cv2.IMREAD_IGNORE_ORIENTATION):
                image = _decode(data, flags | orientation)
                if image is not None and image.shape[:2] == (height, width):
                    return image
            return None
    return None


def _jpeg_header(data: bytes) -> tuple[tuple[int, int], int]:
    """Return a JPEG's (height, width) as stored, and the position of its first scan; zeros and the end if it has none.

    Earlier segments are skipped, as they may hold a thumbnail with its own size and end marker.
    """
    size, position = (0, 0), 2 if data.startswith(_JPEG_START) else len(data)
    while position + 4 <= len(data) and data[position] == 0xFF:
        marker = data[position + 1]
        if marker == 0xFF:  # a fill byte
            position += 1
        elif marker == 0xDA:  # start of scan
            return size, position
        else:
            if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):  # start of frame
                height, width = data[position + 5 : position + 7], data[position + 7 : position + 9]
                size = int.from_bytes(height, "big"), int.from_bytes(width, "big")
            position += 2 + int.from_bytes(data[position + 2 : position + 4], "big")
    return size, len(data)
