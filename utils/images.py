"""Reading and writing image files."""

from pathlib import Path

import cv2
import numpy as np

from utils.errors import InputError
from utils.files import atomic_write

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff"})

# Silence OpenCV's own warnings on stderr: our InputErrors report the same. OpenCV 4, then 5.
(cv2.setLogLevel if hasattr(cv2, "setLogLevel") else cv2.utils.logging.setLogLevel)(0)


def read_image(path: Path | str, size: tuple[int, int] | None = None) -> np.ndarray:
    """Read an image file as an image viewer shows it: (H, W, 3) uint8 RGB.

    The EXIF orientation is applied, grayscale converted to RGB, an alpha channel dropped, 16 bits reduced to 8.

    If the oriented image does not have the annotation file's `size`, (height, width), the pixels are returned as
    stored, because some annotations were drawn on those. Raises InputError if the file is missing, not an image,
    truncated, or of another size.
    """
    path = Path(path)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InputError(f"cannot read the image {path}: {error.strerror}") from error
    return decode_image(data, str(path), size)


def decode_image(data: bytes, name: str, size: tuple[int, int] | None = None) -> np.ndarray:
    """Decode the content of an image file as `read_image` does. Messages call it `name`."""
    # OpenCV 4 fills the missing part of a truncated JPEG with gray and only warns.
    image = None if _is_truncated_jpeg(data) else _decode(data, cv2.IMREAD_COLOR)
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


def _is_truncated_jpeg(data: bytes) -> bool:
    """Return whether a JPEG has no end-of-image marker after the start of its first scan."""
    if not data.startswith(b"\xff\xd8"):
        return False
    position = 2
    while position + 4 <= len(data) and data[position] == 0xFF:
        marker = data[position + 1]
        if marker == 0xFF:  # a fill byte
            position += 1
        elif marker == 0xDA:  # start of scan; an earlier segment may hold a thumbnail with its own end marker
            return data.find(b"\xff\xd9", position) < 0
        else:
            position += 2 + int.from_bytes(data[position + 2 : position + 4], "big")
    return True
