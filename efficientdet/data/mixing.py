"""Augmentations that combine images: mosaic, mixup, and pasted objects. Images are (H, W, 3) uint8 RGB."""

from collections.abc import Sequence

import cv2
import numpy as np

from efficientdet.data.transforms import AnnotatedImage, Letterbox, Target, random_scale_crop, visible_objects

MAX_PASTED = 8  # objects per image
MAX_COVERED = 0.3  # share of an object that pasted ones may cover


def mosaic(images: Sequence[AnnotatedImage], size: tuple[int, int], rng: np.random.Generator) -> AnnotatedImage:
    """Return four images in one of `size` (height, width), around a random point in its middle half.

    Each fills its quarter: scaled down (or up) to that size at once, the longer side cropped at random.
    """
    row, column = (round(side * part) for side, part in zip(size, rng.uniform(0.25, 0.75, 2)))
    corners = (0, 0), (0, column), (row, 0), (row, column)
    composed, targets = np.empty((*size, 3), np.uint8), []
    for image, (top, left) in zip(images, corners, strict=True):
        bottom, right = size[0] if top else row, size[1] if left else column
        composed[top:bottom, left:right], target = _fill(image, (bottom - top, right - left), rng)
        targets.append(_shift(target, left, top))
    return composed, _join(*targets)


def mixup(image: np.ndarray, target: Target, other: AnnotatedImage, rng: np.random.Generator) -> AnnotatedImage:
    """Blend an image about half and half with another, scaled and cropped to its size. It has the objects of both."""
    pixels, objects = _fill(other, image.shape[:2], rng)
    share = rng.beta(8, 8)
    return cv2.addWeighted(image, share, pixels, 1 - share, 0), _join(target, objects)


def copy_paste(image: np.ndarray, target: Target, other: AnnotatedImage, rng: np.random.Generator) -> AnnotatedImage:
    """Paste the box crops of up to MAX_PASTED objects of another image at random places and 0.5 to 1.5 times the size.

    The size is relative to the image's. A crop that would cover more than MAX_COVERED of an object, or does not fit, is
    left out. Whatever else a crop shows of the other image's objects comes with it.
    """
    source, objects = other
    image, covered = image.copy(), np.zeros(len(target.boxes), np.float32)
    limits = np.tile(source.shape[1::-1], 2)
    edges = np.concatenate((np.floor(objects.boxes[:, :2]), np.ceil(objects.boxes[:, 2:])), axis=1).clip(0, limits)
    for x1, y1, x2, y2 in rng.permutation(edges.astype(int))[:MAX_PASTED].tolist():
        scale = rng.uniform(0.5, 1.5) * max(image.shape) / max(source.shape)
        height, width = (max(1, round(side * scale)) for side in (y2 - y1, x2 - x1))
        if min(y2 - y1, x2 - x1) < 1 or height > image.shape[0] or width > image.shape[1]:
            continue
        top, left = rng.integers(0, (image.shape[0] - height + 1, image.shape[1] - width + 1)).tolist()
        place = _shift(target, -left, -top).boxes.clip(0, np.array([width, height] * 2, np.float32))
        newly_covered = covered + (place[:, 2:] - place[:, :2]).prod(axis=1)
        if (newly_covered > MAX_COVERED * (target.boxes[:, 2:] - target.boxes[:, :2]).prod(axis=1)).any():
            continue
        crop = source[y1:y2, x1:x2], visible_objects(_shift(objects, -x1, -y1), (y2 - y1, x2 - x1))
        image[top : top + height, left : left + width], pasted = _resize(crop, (height, width))
        target = _join(target, _shift(pasted, left, top))
        covered = np.concatenate((newly_covered, np.zeros(len(pasted.boxes), np.float32)))
    return image, target


def _fill(annotated: AnnotatedImage, size: tuple[int, int], rng: np.random.Generator) -> AnnotatedImage:
    """Scale an image to the smallest that covers `size`, its aspect ratio kept, and return a random window of it."""
    image, target = annotated
    ratios = size[0] / image.shape[0], size[1] / image.shape[1]
    factor = max(ratios) / min(ratios)  # of the image that fits into `size`
    window, objects, _ = random_scale_crop(image, target, size, rng, (factor, factor))
    return _resize((window, objects), size)


def _resize(annotated: AnnotatedImage, size: tuple[int, int]) -> AnnotatedImage:
    """Resize an image as the letterbox does, so that it looks the same to the network."""
    image, target = annotated
    boxes = Letterbox(image.shape[:2], size, size).boxes_to_canvas(target.boxes)
    return cv2.resize(image, size[::-1]), visible_objects(Target(boxes, target.class_ids), size)


def _shift(target: Target, x: int, y: int) -> Target:
    return Target(target.boxes + np.array([x, y, x, y], np.float32), target.class_ids)


def _join(*targets: Target) -> Target:
    boxes, class_ids = zip(*targets)
    return Target(np.concatenate(boxes), np.concatenate(class_ids))
