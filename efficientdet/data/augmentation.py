"""The augmentation of training images: its settings and its order, and what it does to a single image."""

from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np

from efficientdet.data.mixing import copy_paste, mixup, mosaic
from efficientdet.data.transforms import (
    AnnotatedImage,
    Letterbox,
    Target,
    random_horizontal_flip,
    random_scale_crop,
    visible_objects,
)
from utils.images import decode_image

_LUMA = np.array([0.299, 0.587, 0.114])


@dataclass(frozen=True)
class Augmentation:
    """What is done to training images, besides mirroring half of them. A scale range of (1, 1) and zeros do nothing.

    Args:
        min_scale, max_scale: limits of the random factor by which images are scaled, then cropped.
        photometric: strength of random changes of color, 0 to 1.
        vertical_flip, quarter_turns, cutout, blur, mosaic, mixup, copy_paste: probabilities.
        rotate, shear: largest angles, in degrees.
    """

    min_scale: float = 1.0
    max_scale: float = 1.0
    photometric: float = 0.0
    vertical_flip: float = 0.0
    quarter_turns: float = 0.0
    rotate: float = 0.0
    shear: float = 0.0
    cutout: float = 0.0
    blur: float = 0.0
    mosaic: float = 0.0
    mixup: float = 0.0
    copy_paste: float = 0.0

    def apply(
        self,
        image: np.ndarray,
        target: Target,
        canvas: tuple[int, int],
        rng: np.random.Generator,
        another: Callable[[], AnnotatedImage],
        fill: tuple[int, ...],
    ) -> tuple[np.ndarray, Target, Letterbox]:
        """Augment an image (H, W, 3) uint8 RGB and its objects, and return both and the letterbox for `canvas`.

        All random numbers are drawn from `rng`, none for what is off. `another` returns a random image of the set, and
        `fill` is the color where there is no image.
        """

        def chance(probability: float) -> bool:
            return probability > 0 and rng.random() < probability

        if chance(self.mosaic):
            # As large as the scale needs: larger would take time in vain, smaller would be blurred.
            size = int(canvas[0] * max(1, self.max_scale)), int(canvas[1] * max(1, self.max_scale))
            image, target = mosaic([(image, target), another(), another(), another()], size, rng)
        if chance(self.copy_paste):
            image, target = copy_paste(image, target, another(), rng)
        if chance(self.mixup):
            image, target = mixup(image, target, another(), rng)
        image, target = random_horizontal_flip(image, target, rng)
        if chance(self.vertical_flip):
            image, target = vertical_flip(image, target)
        if chance(self.quarter_turns):
            image, target = quarter_turn(image, target, int(rng.integers(1, 4)))
        if self.rotate or self.shear:
            angle, shear_x, shear_y = rng.uniform(-1, 1, 3) * (self.rotate, self.shear, self.shear)
            image, target = rotate_and_shear(image, target, angle, shear_x, shear_y, fill)
        letterbox = Letterbox.fit(image.shape[:2], canvas)
        scales = self.min_scale, self.max_scale
        if scales != (1.0, 1.0):
            image, target, letterbox = random_scale_crop(image, target, canvas, rng, scales)
        if self.photometric:
            image, target = jitter_colors(image, target, rng, self.photometric)
        if chance(self.blur):
            image, target = degrade(image, target, rng, letterbox.original[0] / letterbox.resized[0])
        if chance(self.cutout):
            image, target = cut_out(image, target, rng, fill)
        return image, target, letterbox


def vertical_flip(image: np.ndarray, target: Target) -> AnnotatedImage:
    """Turn an image and its objects upside down, as in a mirror."""
    boxes = target.boxes.copy()
    boxes[:, [1, 3]] = image.shape[0] - target.boxes[:, [3, 1]]
    return image[::-1], Target(boxes, target.class_ids)


def quarter_turn(image: np.ndarray, target: Target, turns: int) -> AnnotatedImage:
    """Rotate an image and its objects counterclockwise by `turns` times 90 degrees."""
    boxes = target.boxes
    for _ in range(turns):
        x1, y1, x2, y2 = boxes.T
        boxes = np.stack((y1, image.shape[1] - x2, y2, image.shape[1] - x1), axis=1)
        image = np.rot90(image)
    return np.ascontiguousarray(image), Target(boxes, target.class_ids)


def rotate_and_shear(
    image: np.ndarray, target: Target, degrees: float, shear_x: float, shear_y: float, fill: tuple[int, ...]
) -> AnnotatedImage:
    """Rotate an image counterclockwise about its center, after a shear by angles along x and y; its size remains.

    A box becomes that of its inscribed ellipse, rotated and sheared. The hull of its corners would be right for an
    object that fills them; for a disc, at 10 degrees, it would be a third too large.
    """
    turn, x, y = np.radians((degrees, shear_x, shear_y))
    rotation = np.array([[np.cos(turn), np.sin(turn)], [-np.sin(turn), np.cos(turn)]])  # y points down
    matrix = rotation @ [[1, np.tan(x)], [np.tan(y), 1]]
    size = np.array(image.shape[1::-1])
    middle = (size - 1) / 2  # OpenCV places the center of the first pixel at (0, 0), boxes place its corner there
    shift = middle - matrix @ middle
    affine = np.column_stack((matrix, shift))
    warped = cv2.warpAffine(np.ascontiguousarray(image), affine, size.tolist(), borderValue=fill)

    corners = target.boxes.reshape(-1, 2, 2)
    centers = (corners.mean(axis=1) - size / 2) @ matrix.T + size / 2
    radii = np.sqrt(((corners[:, 1] - corners[:, 0]) / 2) ** 2 @ (matrix.T**2))
    boxes = np.concatenate((centers - radii, centers + radii), axis=1).astype(np.float32)
    return warped, visible_objects(Target(boxes, target.class_ids), image.shape[:2])


def cut_out(image: np.ndarray, target: Target, rng: np.random.Generator, fill: tuple[int, ...]) -> AnnotatedImage:
    """Fill one to three random rectangles, with sides of 0.1 to 0.4 times the image's, and drop what they hide."""
    size = np.array(image.shape[:2])
    image, hidden = image.copy(), np.zeros(size, bool)
    for _ in range(rng.integers(1, 4)):
        height, width = np.maximum(1, size * rng.uniform(0.1, 0.4, 2)).astype(int)
        top, left = rng.integers(0, size - (height, width) + 1)
        image[top : top + height, left : left + width] = fill
        hidden[top : top + height, left : left + width] = True
    edges = np.rint(target.boxes.clip(0)).astype(int).tolist()
    areas = np.array([hidden[y1:y2, x1:x2].sum() for x1, y1, x2, y2 in edges])
    return image, visible_objects(target, image.shape[:2], areas)


def jitter_colors(image: np.ndarray, target: Target, rng: np.random.Generator, strength: float) -> AnnotatedImage:
    """Change brightness, contrast and saturation by up to half, and the hue by up to 36 degrees, times `strength`.

    Together these are one linear map of a pixel's red, green and blue, and so one pass over the image.
    """
    brightness, contrast, saturation = 1 + strength * rng.uniform(-0.5, 0.5, 3)
    hue = strength * rng.uniform(-np.pi / 5, np.pi / 5)
    rotation = cv2.Rodrigues(np.full(3, hue / np.sqrt(3)))[0]  # about the axis of grays
    gray = np.tile(_LUMA, (3, 1))
    colors = gray + saturation * (np.eye(3) - gray) @ rotation
    image = np.ascontiguousarray(image)
    mean_gray = _LUMA @ cv2.mean(image)[:3]
    affine = brightness * np.column_stack((contrast * colors, np.full(3, (1 - contrast) * mean_gray)))
    return cv2.transform(image, affine), target


def degrade(image: np.ndarray, target: Target, rng: np.random.Generator, pixel: float) -> AnnotatedImage:
    """Blur an image or compress it as a JPEG of low quality, one as often as the other.

    `pixel` is the size of the network's pixels in those of the image. If it is larger, the image is degraded at the
    network's resolution: what happens to smaller pixels would not be seen.
    """
    height, width = image.shape[:2]
    small = np.ascontiguousarray(image)
    if pixel > 1:
        small = cv2.resize(small, (max(1, round(width / pixel)), max(1, round(height / pixel))))
    if rng.random() < 0.5:
        degraded = cv2.GaussianBlur(small, (0, 0), rng.uniform(0.5, 2))
    else:
        quality = cv2.IMWRITE_JPEG_QUALITY, int(rng.integers(10, 60))
        _, data = cv2.imencode(".jpg", cv2.cvtColor(small, cv2.COLOR_RGB2BGR), quality)
        degraded = decode_image(data.tobytes(), "an augmented image")
    return cv2.resize(degraded, (width, height)), target
