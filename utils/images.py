"""Image files in and out."""

from pathlib import Path

import cv2
import numpy as np

from utils.errors import InputError
from utils.files import atomic_write


def silence_opencv() -> None:
    """No warnings of OpenCV's own on stderr, in this process: what it warns about, our InputErrors say."""
    set_level = cv2.setLogLevel if hasattr(cv2, "setLogLevel") else cv2.utils.logging.setLogLevel
    set_level(0)


silence_opencv()


IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff"})


def read_image(path: Path | str, size: tuple[int, int] | None = None) -> np.ndarray:
    """The image as a person sees it: (H, W, 3) uint8 RGB.

    The EXIF orientation is applied, grey becomes RGB, an alpha channel is dropped, 16 bits become 8.

    Args:
        size: the (height, width) that an annotation file gives the image. The orientation is then the one that
            agrees with it, as annotations may have been drawn on the stored pixels.

    Raises InputError for a file that is missing, not an image, cut short, or of another size.
    """
    path = Path(path)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InputError(f"cannot read the image {path}: {error.strerror}") from error
    return decode_image(data, str(path), size)


def decode_image(data: bytes, name: str, size: tuple[int, int] | None = None) -> np.ndarray:
    """As `read_image`, for a file's content; `name` is what messages call it."""
    # OpenCV 4 fills the missing rest of a cut JPEG with grey and only warns.
    image = None if _is_cut_jpeg(data) else _decode(data, cv2.IMREAD_COLOR)
    if image is None:
        state = "is empty" if not data else "is damaged, cut short, no image, or above OpenCV's 2**30 pixels"
        raise InputError(f"{name} {state}: replace or remove it (and its entry in the annotation file)")
    if size is not None and image.shape[:2] != tuple(size):
        shown = image.shape[:2]
        image = _decode(data, cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION)
        if image is None or image.shape[:2] != tuple(size):
            raise InputError(
                f"{name} is {shown[1]} x {shown[0]} pixels (width x height), but its annotation file says "
                f"{size[1]} x {size[0]}: the boxes would not fit; correct one of them"
            )
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)


def write_image(path: Path, image: np.ndarray) -> None:
    """Write an (H, W, 3) uint8 RGB array in the format that `path`'s suffix names."""
    try:
        encoded, data = cv2.imencode(path.suffix, cv2.cvtColor(image, cv2.COLOR_RGB2BGR))
    except cv2.error:
        encoded = False
    if not encoded:
        raise InputError(
            f"cannot write {path}: OpenCV has no encoder for {path.suffix or 'a name without suffix'}, "
            f"or the format cannot hold {image.shape[1]} x {image.shape[0]} pixels"
        )
    with atomic_write(path) as temporary:
        temporary.write_bytes(data.tobytes())


def _decode(data: bytes, flags: int) -> np.ndarray | None:
    if not data:
        return None
    try:
        return cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    except cv2.error:  # more pixels than OpenCV accepts, for instance
        return None


def _is_cut_jpeg(data: bytes) -> bool:
    """Whether `data` begins as a JPEG but has no end-of-image marker after its first scan begins."""
    if not data.startswith(b"\xff\xd8"):
        return False
    position = 2
    while position + 4 <= len(data) and data[position] == 0xFF:
        marker = data[position + 1]
        if marker == 0xFF:  # a fill byte
            position += 1
        elif marker == 0xDA:  # start of scan; segments before it may hold a thumbnail with an end marker of its own
            return data.find(b"\xff\xd9", position) < 0
        else:
            position += 2 + int.from_bytes(data[position + 2 : position + 4], "big")
    return True
