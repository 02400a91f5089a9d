"""A data set of drawn shapes, made from a seed.

The order of the random draws defines the data set: another order gives other images.
"""

import json
import math
from itertools import cycle
from pathlib import Path

import cv2
import numpy as np
from numpy.random import RandomState
from tqdm import tqdm

from efficientdet.project import Project
from utils.errors import InputError
from utils.files import atomic_folder, atomic_write, make_writable_folder
from utils.images import write_image

TRAIN_IMAGES, VAL_IMAGES = 1000, 200
IMAGE_SIZES = ((320, 320), (384, 288), (288, 384), (416, 256), (256, 416), (448, 384))  # (width, height)
MIN_SIZE, MAX_SIZE = 16, 400  # pixels: the longer side of a shape before rotation
MAX_SHAPES = 6
EMPTY_SHARE = 0.04  # of the images
MIN_CONTRAST = 180  # between two shapes, and a shape and the background: |red| + |green| + |blue|
MIN_SHAPE_VISIBLE = 0.6  # share of a shape's pixels that the border and later shapes must leave
MIN_SIDE = 12  # pixels of a visible box
_SUBPIXELS = 4  # per pixel and axis: masks are drawn at this scale for smooth edges


def draw_image(rng: RandomState) -> tuple[np.ndarray, list[dict]]:
    """Draw an image, (H, W, 3) uint8 RGB. Returns it and its objects: {"class": name, "bbox": xywh, "area": pixels}.

    A pixel shows the last shape that covers at least half of it. A box has integer coordinates and encloses exactly the
    pixels that show its object; the area is their number.
    """
    width, height = IMAGE_SIZES[rng.randint(len(IMAGE_SIZES))]
    colors = [rng.randint(40, 216, 3)]
    image = _background(rng, height, width, colors[0])
    owner = np.full((height, width), -1)  # the shape that each pixel shows
    names: list[str] = []
    sizes: list[int] = []  # pixels of each shape, including those outside the image
    visible: list[tuple[list[int], int]] = []  # box and number of the pixels that show each shape
    for _ in range(0 if rng.random_sample() < EMPTY_SHARE else rng.randint(1, MAX_SHAPES + 1)):
        name = CLASS_NAMES[rng.randint(len(CLASS_NAMES))]
        left, top, coverage = _rasterize(_random_polygons(rng, name, height, width))
        texture = _texture(rng, colors, *coverage.shape)
        # Cut off what lies outside the image.
        inside = slice(max(0, -top), max(0, height - top)), slice(max(0, -left), max(0, width - left))
        mask, texture = coverage[inside], texture[inside]
        if not mask.size:
            continue
        top, left = max(0, top), max(0, left)
        window = slice(top, top + len(mask)), slice(left, left + mask.shape[1])
        candidate = owner.copy()
        candidate[window][mask * 2 >= _SUBPIXELS**2] = len(names)
        boxes = [_box_and_area(candidate == number) for number in range(len(names) + 1)]
        size = int((coverage * 2 >= _SUBPIXELS**2).sum())
        minimum_areas = [max(1, MIN_SHAPE_VISIBLE * whole) for whole in (*sizes, size)]
        if any(area < minimum or min(box[2:]) < MIN_SIDE for (box, area), minimum in zip(boxes, minimum_areas)):
            continue
        owner, visible = candidate, boxes
        names.append(name)
        sizes.append(size)
        alpha = mask[..., None]
        image[window] = (image[window] * (_SUBPIXELS**2 - alpha) + texture * alpha) // _SUBPIXELS**2
    image += 2 * rng.randint(-1, 2, (height, width, 1))  # sensor noise
    objects = [{"class": name, "bbox": box, "area": area} for name, (box, area) in zip(names, visible)]
    return image.clip(0, 255).astype(np.uint8), objects


def write_shapes(folder: Path, train_images: int = TRAIN_IMAGES, val_images: int = VAL_IMAGES, seed: int = 0) -> None:
    """Draw the data set into `folder`, which must not exist: `train/`, `val/` and `annotations/` in COCO format.

    The folder appears when it is complete. Image k of a set depends only on the seed, the set and k.
    Raises InputError if the folder exists or cannot be written, or if the seed is out of range.
    """
    if seed >= 2**32:
        raise InputError(f"--seed must be below 2 ** 32, not {seed}")
    if folder.exists():
        raise InputError(f"{folder} exists already: remove it, or choose another --output")
    make_writable_folder(folder.parent)
    with atomic_folder(folder) as unfinished:
        _write_set(unfinished, "train", train_images, (seed, 0))
        _write_set(unfinished, "val", val_images, (seed, 1))


def draw_if_absent(project: Project, data_path: Path) -> None:
    """Draw the data of the project `shapes` if it does not exist. Other projects are left alone."""
    folder = data_path / project.name
    if project.name == "shapes" and not folder.exists():
        print(f"drawing the data set of the project shapes into {folder}")
        write_shapes(folder)


def _write_set(folder: Path, set_name: str, num_images: int, seed: tuple[int, int]) -> None:
    images: list[dict] = []
    annotations: list[dict] = []
    for number in tqdm(range(num_images), desc=f"drawing {set_name}", unit="img", dynamic_ncols=True):
        image, objects = draw_image(RandomState((*seed, number)))
        file_name, image_id = f"{number:06d}.png", number + 1
        write_image(folder / set_name / file_name, image)
        images.append({"id": image_id, "file_name": file_name, "width": image.shape[1], "height": image.shape[0]})
        for found in objects:
            category_id = CLASS_NAMES.index(found["class"]) + 1
            ids = {"id": len(annotations) + 1, "image_id": image_id, "category_id": category_id}
            annotations.append({**ids, "bbox": found["bbox"], "area": found["area"], "iscrowd": 0})
    categories = [{"id": number, "name": name} for number, name in enumerate(CLASS_NAMES, 1)]
    content = {"images": images, "annotations": annotations, "categories": categories}
    with atomic_write(folder / "annotations" / f"instances_{set_name}.json") as path:
        path.write_text(json.dumps(content))


def _regular(corners: int, *radii: float) -> list[tuple[float, float]]:
    """Return points at equal angles, the first one at the top, and in turn at each of the radii."""
    angles = [2 * math.pi * number / corners - math.pi / 2 for number in range(corners)]
    return [(radius * math.cos(angle), radius * math.sin(angle)) for angle, radius in zip(angles, cycle(radii))]


# Lists of polygons of (x, y) in the square from -1 to 1; a polygon inside another is a hole.
_ARM = 0.32  # half the width of a cross's arm
_HALF_CROSS = [(_ARM, -_ARM), (1, -_ARM), (1, _ARM), (_ARM, _ARM), (_ARM, 1), (-_ARM, 1)]
_OUTLINES: dict[str, list[list[tuple[float, float]]]] = {
    "ellipse": [_regular(90, 1)],
    "rectangle": [[(-1, -1), (1, -1), (1, 1), (-1, 1)]],
    "triangle": [_regular(3, 1)],
    "star": [_regular(10, 1, 0.45)],
    "cross": [_HALF_CROSS + [(-x, -y) for x, y in _HALF_CROSS]],
    "ring": [_regular(90, 1), _regular(90, 0.55)],
}
CLASS_NAMES = tuple(_OUTLINES)


def _random_polygons(rng: RandomState, name: str, height: int, width: int) -> list[np.ndarray]:
    """Return a shape at a random size, aspect, rotation and place: polygons (K, 2) int32 (x, y) in sub-pixels."""
    # The mean of uniform numbers makes medium sizes on a logarithmic scale the most frequent.
    size = MIN_SIZE * (MAX_SIZE / MIN_SIZE) ** rng.random_sample(3).mean()
    aspect = 1 - 0.45 * rng.random_sample()
    angle = 2 * math.pi * rng.random_sample()
    center = rng.random_sample(2) * (width, height)
    scale = np.array([1, aspect]) * size / 2
    rotation = np.array([[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]])
    polygons = [(np.array(polygon) * scale) @ rotation + center for polygon in _OUTLINES[name]]
    return [np.rint(polygon * _SUBPIXELS).astype(np.int32) for polygon in polygons]


def _rasterize(polygons: list[np.ndarray]) -> tuple[int, int, np.ndarray]:
    """Return the left and top pixel of a shape, and from there how many sub-pixels of each pixel it covers."""
    points = np.concatenate(polygons)
    left, top = points.min(axis=0) // _SUBPIXELS
    right, bottom = points.max(axis=0) // _SUBPIXELS + 1
    mask = np.zeros(((bottom - top) * _SUBPIXELS, (right - left) * _SUBPIXELS), np.uint8)
    offset = np.array([left, top]) * _SUBPIXELS
    cv2.fillPoly(mask, [(polygon - offset).astype(np.int32) for polygon in polygons], 1)  # even-odd
    blocks = mask.reshape(bottom - top, _SUBPIXELS, right - left, _SUBPIXELS)
    return int(left), int(top), blocks.sum(axis=(1, 3), dtype=np.int32)


def _box_and_area(visible: np.ndarray) -> tuple[list[int], int]:
    """Return [x, y, width, height] around the True pixels, and their number."""
    return list(cv2.boundingRect(visible.astype(np.uint8))), int(visible.sum())


def _background(rng: RandomState, height: int, width: int, color: np.ndarray) -> np.ndarray:
    """Draw blotches, a pattern, and thin lines as distractors: (H, W, 3) int32."""
    cells = rng.randint(2, 24)
    grid = (color + rng.randint(-45, 46, (cells, cells, 3))).clip(0, 255).astype(np.uint8)
    image = cv2.resize(grid, (width, height), interpolation=cv2.INTER_LINEAR_EXACT).astype(np.int32)
    image += _random_pattern(rng, height, width) * rng.randint(-20, 21, 3)
    for _ in range(rng.randint(0, 7)):
        ends = rng.randint(0, (width, height), (2, 2))
        mask = np.zeros((height, width), np.uint8)
        cv2.line(mask, ends[0].tolist(), ends[1].tolist(), 1, int(rng.randint(1, 4)))
        image[mask > 0] = rng.randint(0, 256, 3)
    return image


def _texture(rng: RandomState, colors: list[np.ndarray], height: int, width: int) -> np.ndarray:
    """Draw a pattern in a color that contrasts with `colors`, and append that color: (H, W, 3) int32."""
    for _ in range(30):
        color = rng.randint(0, 256, 3)
        if min(int(np.abs(color - other).sum()) for other in colors) >= MIN_CONTRAST:
            break
    colors.append(color)
    return color + _random_pattern(rng, height, width) * rng.randint(-35, 36, 3)


def _random_pattern(rng: RandomState, height: int, width: int) -> np.ndarray:
    """Draw nothing, stripes, checks or grain: (H, W, 1) int32 of 0 and 1."""
    kind = rng.randint(4)
    y, x = np.indices((height, width, 1), dtype=np.int32)[:2]
    if kind == 0:
        return np.zeros_like(x)
    if kind == 1:
        along_y, along_x, period = rng.randint(-3, 4), rng.randint(1, 4), rng.randint(6, 30)
        return (along_y * y + along_x * x) // period % 2
    if kind == 2:
        side = rng.randint(4, 24)
        return (y // side + x // side) % 2
    side = rng.randint(2, 6)
    grains = rng.randint(0, 2, (height // side + 1, width // side + 1)).astype(np.int32)
    return grains[y // side, x // side]
