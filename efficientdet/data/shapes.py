"""A data set of drawn shapes, made from a seed."""

import json
import math
from collections.abc import Callable
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


LONGEST, SHORTEST = 400, 16  # pixels, of a shape's longer side before it is turned


MOST_SHAPES = 6


EMPTY_SHARE = 0.04  # of the images


CONTRAST = 180  # least difference of two shapes' colours, and from the background's: |red| + |green| + |blue|


LEAST_VISIBLE = 0.6  # share of a shape's pixels that the border and later shapes must leave


LEAST_SIDE = 12  # pixels of a visible box


_SUBPIXELS = 4  # in each direction: masks are drawn so much larger, for smooth edges


def draw_image(rng: RandomState) -> tuple[np.ndarray, list[dict]]:
    """One image (H, W, 3) uint8 RGB, and its objects: {"class": name, "bbox": [x, y, width, height], "area": pixels}.

    A pixel shows the last shape that covers at least half of it. A box is integers and encloses exactly the pixels
    that show its object; the area is their number.
    """
    width, height = IMAGE_SIZES[rng.randint(len(IMAGE_SIZES))]
    colors = [rng.randint(40, 216, 3)]
    image = _background(rng, height, width, colors)
    owner = np.full((height, width), -1)  # which shape each pixel shows
    whole: list[int] = []  # pixels of each shape, with those outside the image
    names: list[str] = []
    for _ in range(0 if rng.random_sample() < EMPTY_SHARE else rng.randint(1, MOST_SHAPES + 1)):
        name = CLASS_NAMES[rng.randint(len(CLASS_NAMES))]
        polygons = _placed_outline(rng, name, height, width)
        corner, coverage = _rasterize(polygons)
        window, part = _inside(corner, coverage.shape, height, width)
        texture = _texture(rng, colors, *coverage.shape)
        if window is None:
            continue
        solid = coverage * 2 >= _SUBPIXELS**2
        candidate = owner.copy()
        candidate[window][solid[part]] = len(names)
        if not _all_visible(candidate, [*whole, int(solid.sum())]):
            continue
        owner = candidate
        whole.append(int(solid.sum()))
        names.append(name)
        alpha = coverage[part][..., None]
        blended = image[window] * (_SUBPIXELS**2 - alpha) + texture[part] * alpha
        image[window] = blended // _SUBPIXELS**2
    image += 2 * rng.randint(-1, 2, (height, width, 1))  # a sensor's noise
    objects = []
    for number, name in enumerate(names):
        bbox, area = _visible_box(owner == number)
        objects.append({"class": name, "bbox": bbox, "area": area})
    return image.clip(0, 255).astype(np.uint8), objects


def write_shapes(folder: Path, train_images: int = TRAIN_IMAGES, val_images: int = VAL_IMAGES, seed: int = 0) -> None:
    """Draw the data set into `folder`, which must not exist: `train/`, `val/` and `annotations/`, COCO format.

    The folder appears when it is complete. Image k of a set depends on the seed, the set and k alone.
    InputError when the folder exists or cannot be written, and for a seed that the generator does not take.
    """
    if seed >= 2**32:
        raise InputError(f"--seed must be below 2 ** 32, not {seed}")
    if folder.exists():
        raise InputError(f"{folder} exists already: remove it, or choose another --output")
    make_writable_folder(folder.parent)
    with atomic_folder(folder) as unfinished:
        for set_number, (set_name, pictures) in enumerate((("train", train_images), ("val", val_images))):
            _write_set(unfinished, set_name, pictures, (seed, set_number))


def draw_if_absent(project: Project, data_path: Path) -> None:
    """Draw the data of the project `shapes` when it is not there; nothing for any other project."""
    folder = data_path / project.name
    if project.name == "shapes" and not folder.exists():
        print(f"drawing the data set of the project shapes into {folder}")
        write_shapes(folder)


def _write_set(folder: Path, set_name: str, pictures: int, seed: tuple[int, int]) -> None:
    images: list[dict] = []
    annotations: list[dict] = []
    for number in tqdm(range(pictures), desc=f"drawing {set_name}", unit="img", dynamic_ncols=True):
        image, objects = draw_image(RandomState((*seed, number)))
        file_name = f"{number:06d}.png"
        write_image(folder / set_name / file_name, image)
        height, width = image.shape[:2]
        images.append({"id": number + 1, "file_name": file_name, "width": width, "height": height})
        annotations += [
            {
                "id": len(annotations) + position,
                "image_id": number + 1,
                "category_id": CLASS_NAMES.index(found["class"]) + 1,
                "bbox": found["bbox"],
                "area": found["area"],
                "iscrowd": 0,
            }
            for position, found in enumerate(objects, 1)
        ]
    categories = [{"id": number, "name": name} for number, name in enumerate(CLASS_NAMES, 1)]
    content = {"images": images, "annotations": annotations, "categories": categories}
    with atomic_write(folder / "annotations" / f"instances_{set_name}.json") as path:
        path.write_text(json.dumps(content))


# Outlines in the square from -1 to 1, as lists of (x, y) polygons; a polygon inside another is a hole.


def _regular(corners: int, radii: tuple[float, ...] = (1.0,)) -> list[tuple[float, float]]:
    angles = [2 * math.pi * number / corners - math.pi / 2 for number in range(corners)]
    return [
        (radii[number % len(radii)] * math.cos(angle), radii[number % len(radii)] * math.sin(angle))
        for number, angle in enumerate(angles)
    ]


def _cross(arm: float) -> list[tuple[float, float]]:
    quarter = [(arm, -arm), (1, -arm), (1, arm), (arm, arm), (arm, 1), (-arm, 1)]
    return quarter + [(-x, -y) for x, y in quarter]


_OUTLINES: dict[str, list[list[tuple[float, float]]]] = {
    "ellipse": [_regular(90)],
    "rectangle": [[(-1, -1), (1, -1), (1, 1), (-1, 1)]],
    "triangle": [_regular(3)],
    "star": [_regular(10, (1.0, 0.45))],
    "cross": [_cross(0.32)],
    "ring": [_regular(90), _regular(90, (0.55,))],
}


CLASS_NAMES = tuple(_OUTLINES)


def _placed_outline(rng: RandomState, name: str, height: int, width: int) -> list[np.ndarray]:
    """The polygons of a shape of random size, stretch, turn and place: (K, 2) int32 (x, y) in sub-pixels."""
    # The mean of uniform numbers: middling sizes on a logarithmic scale are the most frequent.
    size = SHORTEST * (LONGEST / SHORTEST) ** rng.random_sample(3).mean()
    stretch = 1 - 0.45 * rng.random_sample()
    turn = 2 * math.pi * rng.random_sample()
    centre = rng.random_sample(2) * (width, height)
    scale = np.array([1, stretch]) * size / 2
    rotation = np.array([[math.cos(turn), math.sin(turn)], [-math.sin(turn), math.cos(turn)]])
    return [
        np.rint(((np.array(polygon) * scale) @ rotation + centre) * _SUBPIXELS).astype(np.int32)
        for polygon in _OUTLINES[name]
    ]


def _rasterize(polygons: list[np.ndarray]) -> tuple[tuple[int, int], np.ndarray]:
    """The pixel (x, y) of the top left corner, and from there how many sub-pixels of each pixel the polygons cover."""
    points = np.concatenate(polygons)
    left, top = points.min(axis=0) // _SUBPIXELS
    right, bottom = points.max(axis=0) // _SUBPIXELS + 1
    mask = np.zeros(((bottom - top) * _SUBPIXELS, (right - left) * _SUBPIXELS), np.uint8)
    offset = np.array([left, top]) * _SUBPIXELS
    cv2.fillPoly(mask, [(polygon - offset).astype(np.int32) for polygon in polygons], 1)  # even-odd
    blocks = mask.reshape(bottom - top, _SUBPIXELS, right - left, _SUBPIXELS)
    return (int(left), int(top)), blocks.sum(axis=(1, 3), dtype=np.int32)


def _inside(
    corner: tuple[int, int], shape: tuple[int, int], height: int, width: int
) -> tuple[tuple[slice, slice] | None, tuple[slice, slice] | None]:
    """The rows and columns of the image that a mask at `corner` reaches, and those of the mask; None when none."""
    left, top = corner
    rows = slice(max(0, top), min(height, top + shape[0]))
    columns = slice(max(0, left), min(width, left + shape[1]))
    if rows.start >= rows.stop or columns.start >= columns.stop:
        return None, None
    part = slice(rows.start - top, rows.stop - top), slice(columns.start - left, columns.stop - left)
    return (rows, columns), part


def _all_visible(owner: np.ndarray, whole: list[int]) -> bool:
    """Whether enough is left of every shape."""
    for number, pixels in enumerate(whole):
        visible = owner == number
        if visible.sum() < max(1, LEAST_VISIBLE * pixels):
            return False
        if min(_visible_box(visible)[0][2:]) < LEAST_SIDE:
            return False
    return True


def _visible_box(visible: np.ndarray) -> tuple[list[int], int]:
    """[x, y, width, height] around the True pixels, and their number."""
    columns, rows = np.flatnonzero(visible.any(axis=0)), np.flatnonzero(visible.any(axis=1))
    x, y = int(columns[0]), int(rows[0])
    return [x, y, int(columns[-1]) + 1 - x, int(rows[-1]) + 1 - y], int(visible.sum())


def _background(rng: RandomState, height: int, width: int, colors: list[np.ndarray]) -> np.ndarray:
    """(H, W, 3) int32: blotches, a texture, and thin lines to be confused by."""
    cells = rng.randint(2, 24)
    grid = (colors[0] + rng.randint(-45, 46, (cells, cells, 3))).clip(0, 255).astype(np.uint8)
    image = cv2.resize(grid, (width, height), interpolation=cv2.INTER_LINEAR_EXACT).astype(np.int32)
    pattern = _PATTERNS[rng.randint(len(_PATTERNS))]
    image += pattern(rng, height, width)[..., None] * rng.randint(-20, 21, 3)
    for _ in range(rng.randint(0, 7)):
        ends = rng.randint(0, (width, height), (2, 2))
        mask = np.zeros((height, width), np.uint8)
        cv2.line(mask, ends[0].tolist(), ends[1].tolist(), 1, int(rng.randint(1, 4)))
        image[mask > 0] = rng.randint(0, 256, 3)
    return image


def _texture(rng: RandomState, colors: list[np.ndarray], height: int, width: int) -> np.ndarray:
    """(H, W, 3) int32 in a colour that stands out from `colors`, to which it is added."""
    for _ in range(30):
        color = rng.randint(0, 256, 3)
        if min(int(np.abs(color - other).sum()) for other in colors) >= CONTRAST:
            break
    colors.append(color)
    pattern = _PATTERNS[rng.randint(len(_PATTERNS))]
    return color + pattern(rng, height, width)[..., None] * rng.randint(-35, 36, 3)


# Patterns: (H, W) int32 of 0 and 1.


def _even(rng: RandomState, height: int, width: int) -> np.ndarray:
    return np.zeros((height, width), np.int32)


def _stripes(rng: RandomState, height: int, width: int) -> np.ndarray:
    along_y, along_x, period = rng.randint(-3, 4), rng.randint(1, 4), rng.randint(6, 30)
    y, x = np.indices((height, width), dtype=np.int32)
    return (along_y * y + along_x * x) // period % 2


def _checks(rng: RandomState, height: int, width: int) -> np.ndarray:
    side = rng.randint(4, 24)
    y, x = np.indices((height, width), dtype=np.int32)
    return (y // side + x // side) % 2


def _grain(rng: RandomState, height: int, width: int) -> np.ndarray:
    side = rng.randint(2, 6)
    grains = rng.randint(0, 2, (height // side + 1, width // side + 1)).astype(np.int32)
    return grains.repeat(side, axis=0).repeat(side, axis=1)[:height, :width]


_PATTERNS: tuple[Callable[[RandomState, int, int], np.ndarray], ...] = (_even, _stripes, _checks, _grain)
