"""Mosaic, mixup and pasted objects, compared with numbers computed by hand."""

import numpy as np
import pytest

from efficientdet.data import mixing
from efficientdet.data.mixing import copy_paste, mixup, mosaic
from efficientdet.data.transforms import Target


def objects(*boxes: tuple[float, float, float, float], first_class: int = 0) -> Target:
    return Target(np.array(boxes, np.float32).reshape(-1, 4), first_class + np.arange(len(boxes)))


def flat(height: int, width: int, value: int) -> np.ndarray:
    return np.full((height, width, 3), value, np.uint8)


def whole(height: int, width: int, value: int) -> tuple[np.ndarray, Target]:
    """Return an image of one gray, which is an object of that class."""
    return flat(height, width, value), objects((0, 0, width, height), first_class=value)


def read_only(image: np.ndarray, target: Target) -> tuple[np.ndarray, Target]:
    for array in (image, *target):
        array.setflags(write=False)  # writing raises
    return image, target


def extent(mask: np.ndarray) -> list[int]:
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]


def test_images_without_objects():
    rng, empty = np.random.default_rng(0), (flat(40, 60, 10), objects())
    for image, target in (
        mosaic([empty] * 4, (64, 96), rng), mixup(*empty, empty, rng), copy_paste(*empty, empty, rng)
    ):  # fmt: skip
        assert image.dtype == np.uint8 and image.flags.c_contiguous and (image == 10).all()
        assert target.boxes.shape == (0, 4) and target.boxes.dtype == np.float32
        assert target.class_ids.shape == (0,) and target.class_ids.dtype == np.int64


@pytest.mark.parametrize("size", [(64, 96), (128, 128), (31, 40)])
def test_mosaic_of_four_grays(size):
    shapes = [(40, 60), (60, 60), (300, 400), (90, 100)]
    images = [read_only(*whole(*shape, 50 * k)) for k, shape in enumerate(shapes, 1)]
    centers = set()
    for seed in range(20):
        image, target = mosaic(images, size, np.random.default_rng(seed))
        assert image.shape == (*size, 3) and image.dtype == np.uint8
        assert target.class_ids.tolist() == [50, 100, 150, 200]
        places = [extent(image[..., 0] == gray) for gray in target.class_ids]
        np.testing.assert_allclose(target.boxes, places, rtol=1e-6)
        column, row, *_ = places[3]
        assert (image[:row, :column] == 50).all() and (image[row:, :column] == 150).all()
        assert size[0] / 4 <= row + 0.5 and row - 0.5 <= size[0] * 3 / 4
        centers.add((row, column))
    assert len(centers) > 15


def test_mosaic_scales_each_image_to_cover_its_place():
    image = flat(100, 200, 0)
    image[20:60, 80:120] = 255
    seen = 0
    for seed in range(40):
        images = [(flat(100, 200, 0), objects())] * 4
        images[seed % 4] = image, objects((80, 20, 120, 60))
        composed, target = mosaic(images, (128, 128), np.random.default_rng(seed))
        if len(target.boxes):
            np.testing.assert_allclose(target.boxes[0], extent(composed[..., 0] > 127), atol=1)
            seen += 1
    assert seen > 20


def test_mixup_is_the_mean_of_two_images_about_half_and_half():
    first, other = read_only(*whole(40, 60, 200)), read_only(*whole(80, 60, 100))
    shares = []
    for seed in range(200):
        image, target = mixup(*first, other, np.random.default_rng(seed))
        assert image.shape == (40, 60, 3) and image.dtype == np.uint8 and (image == image[0, 0]).all()
        assert target.class_ids.tolist() == [200, 100]
        assert target.boxes.tolist() == [[0, 0, 60, 40], [0, 0, 60, 40]]  # 40 of 80 rows are more than a fifth
        shares.append((int(image[0, 0, 0]) - 100) / 100)
    assert np.mean(shares) == pytest.approx(0.5, abs=0.03) and min(shares) > 0.1 and max(shares) < 0.9


def test_pasted_object_has_a_box():
    source = flat(100, 100, 50)
    source[30:50, 20:60] = 255
    sizes = []
    for seed in range(20):
        first, other = read_only(flat(200, 150, 0), objects()), read_only(source, objects((20, 30, 60, 50)))
        image, target = copy_paste(*first, other, np.random.default_rng(seed))
        assert target.class_ids.tolist() == [0] and target.boxes.tolist() == [extent(image[..., 0] > 127)]
        assert not (image == 50).any()  # nothing of its surroundings
        sizes.append(target.boxes[0, 2:] - target.boxes[0, :2])
    # The image is twice as large as the other: 40 x 20 pixels are 80 x 40, times 0.5 to 1.5.
    assert np.min(sizes, axis=0)[0] >= 40 and np.max(sizes, axis=0)[0] <= 120
    np.testing.assert_allclose(np.divide(*np.transpose(sizes)), 2, rtol=0.05)


def test_fractions_of_a_pixel_are_kept():
    first, other = (flat(100, 100, 0), objects()), (flat(100, 100, 50), objects((20.25, 30.5, 59.75, 50)))
    image, target = copy_paste(*first, other, np.random.default_rng(0))
    x1, y1, x2, y2 = extent(image[..., 0] == 50)  # 40 x 20 pixels of the source
    across, down = (x2 - x1) / 40, (y2 - y1) / 20
    np.testing.assert_allclose(target.boxes, [[x1 + across / 4, y1 + down / 2, x2 - across / 4, y2]], rtol=1e-5)


def test_objects_within_a_pasted_one_come_with_it():
    source = flat(100, 100, 50)
    whole_ones = 0
    for seed in range(10):
        inner, beside = (30, 40, 40, 50), (58, 30, 98, 50)  # beside: a twentieth of it is in the crop
        other = source, objects((20, 30, 60, 50), inner, beside, first_class=5)
        _, target = copy_paste(flat(400, 400, 0), objects(), other, np.random.default_rng(seed))
        for outer in target.boxes[target.class_ids == 5]:
            whole_ones += 1
            size = outer[2:] - outer[:2]
            place = np.tile(outer[:2], 2) + np.tile(size / (40, 20), 2) * (np.array(inner) - (20, 30, 20, 30))
            assert np.abs(target.boxes[target.class_ids == 6] - place).sum(axis=1).min() < 0.1
    assert whole_ones > 5


def test_pasted_objects_cover_little_of_others(monkeypatch):
    monkeypatch.setattr(mixing, "MAX_PASTED", 100)
    boxes = [(x, y, x + 30, y + 30) for x in range(0, 120, 40) for y in range(0, 120, 40)]
    other = flat(120, 120, 255), objects(*boxes)
    pasted = []
    for seed in range(20):
        image, target = copy_paste(flat(120, 120, 0), objects(*boxes), other, np.random.default_rng(seed))
        assert target.boxes[:9].tolist() == [list(box) for box in boxes]
        covered = [(image[y1:y2, x1:x2, 0] > 0).mean() for x1, y1, x2, y2 in boxes]
        assert max(covered) <= 0.3
        pasted.append(len(target.boxes) - 9)
    assert 0 < np.mean(pasted) < 9


def test_object_larger_than_the_image_is_not_pasted():
    image, target = copy_paste(
        flat(20, 100, 7), objects(), (flat(100, 100, 255), objects((0, 0, 100, 100))), np.random.default_rng(0)
    )
    assert (image == 7).all() and len(target.boxes) == 0


def test_boxes_beyond_their_image_and_boxes_without_area_are_pasted_as_far_as_they_go():
    beyond, outside, thin = (-20, 10, 20, 30), (200, 10, 220, 20), (50, 50, 50, 60)
    other = flat(100, 100, 255), objects(beyond, outside, thin)
    image, target = copy_paste(flat(100, 100, 0), objects(), other, np.random.default_rng(0))
    assert target.class_ids.tolist() == [0] and target.boxes.tolist() == [extent(image[..., 0] > 0)]
