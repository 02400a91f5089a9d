"""The letterbox, the flip and the scale jitter, compared with numbers computed by hand."""

import numpy as np
import pytest
import torch

from efficientdet.data import transforms
from efficientdet.data.transforms import Letterbox, Target, horizontal_flip, random_horizontal_flip, random_scale_crop
from efficientdet.structures import Detections

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
JITTER = (0.1, 2.0)


def no_objects() -> Target:
    return Target(np.zeros((0, 4), np.float32), np.zeros(0, np.int64))


def some_objects() -> Target:
    return Target(np.array([[0, 5, 10, 20], [30.5, 1, 40, 9]], np.float32), np.array([4, 2]))


def detections(boxes: torch.Tensor) -> Detections:
    return Detections(boxes, torch.ones(len(boxes)), torch.arange(len(boxes)))


def noise(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def test_no_boxes():
    letterbox = Letterbox.fit((427, 640), (512, 512))
    assert letterbox.boxes_to_canvas(no_objects().boxes).shape == (0, 4)
    assert letterbox.detections_to_image(detections(torch.zeros(0, 4))).boxes.shape == (0, 4)
    assert horizontal_flip(noise(4, 6), no_objects())[1].boxes.shape == (0, 4)


@pytest.mark.parametrize(
    ("original", "resized"),
    [
        ((427, 640), (341, 512)),  # 427 * 512 / 640 = 341.6, truncated
        ((640, 427), (512, 341)),
        ((500, 500), (512, 512)),
        ((512, 512), (512, 512)),
        ((256, 128), (512, 256)),  # enlarged
        ((1, 1000), (1, 512)),  # 0.512 would be no pixel at all
        ((1000, 1), (512, 1)),
        ((1, 1), (512, 512)),
        ((333, 500), (340, 512)),  # 333 * 512 / 500 = 340.99, truncated
        ((1080, 1920), (288, 512)),
        ((3000, 4000), (384, 512)),
    ],
)
def test_resized_sides(original, resized):
    assert Letterbox.fit(original, (512, 512)) == Letterbox(original, resized, canvas=(512, 512))


@pytest.mark.parametrize(
    ("original", "resized"), [((100, 100), (128, 128)), ((100, 300), (85, 256)), ((100, 200), (128, 256))]
)
def test_canvas_need_not_be_square(original, resized):
    assert Letterbox.fit(original, (128, 256)).resized == resized


def test_every_size_fits_and_fills_a_side():
    rng = np.random.default_rng(0)
    for height, width in rng.integers(1, 3000, (500, 2)).tolist():
        resized = Letterbox.fit((height, width), (640, 640)).resized
        assert max(resized) == 640 and min(resized) >= 1
        if height == width:
            assert resized == (640, 640)


def test_normalization_of_known_colors():
    image = np.empty((2, 4, 3), np.uint8)
    image[:] = (255, 0, 51)
    pixels = Letterbox.fit((2, 4), (4, 4)).apply(image, MEAN, STD)
    assert pixels.dtype == np.float32 and pixels.shape == (4, 4, 3)
    # (1 - 0.485) / 0.229, (0 - 0.456) / 0.224, (0.2 - 0.406) / 0.225
    np.testing.assert_allclose(pixels[:2], np.broadcast_to([2.248908, -2.035714, -0.915556], (2, 4, 3)), rtol=1e-5)
    assert (pixels[2:] == 0).all()


def test_image_lies_top_left_on_zeros():
    image = np.full((100, 50, 3), 255, np.uint8)
    pixels = Letterbox.fit((100, 50), (64, 64)).apply(image, MEAN, STD)
    assert (pixels[:, :32] > 2).all()
    assert (pixels[:, 32:] == 0).all()


def test_image_as_large_as_the_canvas_is_not_resampled():
    image = noise(32, 32)
    pixels = Letterbox.fit((32, 32), (32, 32)).apply(image, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
    np.testing.assert_allclose(pixels, image / 255, atol=1e-6)


def test_enlarging_interpolates_linearly_between_pixel_centers():
    image = np.zeros((1, 2, 3), np.uint8)
    image[0, 1] = 200
    pixels = Letterbox.fit((1, 2), (4, 4)).apply(image, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
    # Output centers lie at -0.25, 0.25, 0.75, 1.25 of the input.
    np.testing.assert_allclose(pixels[0, :, 0] * 255, [0, 50, 150, 200], atol=2e-4)  # a gray level is 0.017


@pytest.mark.parametrize("shape", [(1, 300), (300, 1), (1, 1)])
def test_extreme_images_have_a_letterbox(shape):
    pixels = Letterbox.fit(shape, (64, 64)).apply(np.full((*shape, 3), 128, np.uint8), MEAN, STD)
    assert pixels.shape == (64, 64, 3) and np.isfinite(pixels).all() and (pixels != 0).any()


@pytest.mark.parametrize("shape", [(1000, 800), (300, 1000), (129, 100), (3000, 2)])
def test_huge_images_give_the_same_result_in_less_memory(monkeypatch, shape):
    letterbox, image = Letterbox.fit(shape, (128, 256)), noise(*shape)
    expected = letterbox.apply(image, MEAN, STD)
    monkeypatch.setattr(transforms, "_HUGE", 0)
    np.testing.assert_allclose(letterbox.apply(image, MEAN, STD), expected, atol=1e-5)


@pytest.mark.parametrize("shape", [(60, 100), (30, 20), (64, 64), (200, 100)])
def test_uint8_is_the_normalized_image_rounded(shape):
    image = noise(*shape)[:, ::-1]
    letterbox = Letterbox.fit(shape, (64, 64))
    pixels = letterbox.apply_uint8(image, (124, 116, 104))
    assert pixels.dtype == np.uint8 and pixels.shape == (64, 64, 3)
    height, width = letterbox.resized
    exact = 255 * (letterbox.apply(image, MEAN, STD) * STD + MEAN)
    assert np.abs(pixels[:height, :width] - exact[:height, :width]).max() <= 1.01
    padding = np.concatenate((pixels[height:].reshape(-1, 3), pixels[:, width:].reshape(-1, 3)))
    assert len(padding) == (64 - height) * 64 + (64 - width) * 64 and (padding == (124, 116, 104)).all()


@pytest.mark.parametrize("shape", [(1, 1), (64, 64), (128, 100), (90, 33), (30, 64), (480, 640), (3, 900)])
def test_device_computes_the_same_as_opencv(shape):
    image = np.random.default_rng(0).integers(0, 256, (*shape, 3), np.uint8)
    letterbox = Letterbox.fit(shape, (64, 96))
    expected = torch.from_numpy(letterbox.apply(image, MEAN, STD)).permute(2, 0, 1)
    mean, std = (255 * torch.tensor(values).view(3, 1, 1) for values in (MEAN, STD))
    computed = letterbox.apply_on_device(torch.from_numpy(image), mean, std)
    torch.testing.assert_close(computed, expected, rtol=0, atol=2e-4)  # a gray level is 0.017


def test_input_image_is_not_modified():
    image = noise(20, 30)
    before = image.copy()
    Letterbox.fit((20, 30), (64, 64)).apply(image, MEAN, STD)
    np.testing.assert_array_equal(image, before)


def test_mirrored_views_and_read_only_images_are_accepted():
    image = noise(20, 30)
    letterbox = Letterbox.fit((20, 30), (64, 64))
    mirrored = letterbox.apply(image[:, ::-1], MEAN, STD)
    np.testing.assert_array_equal(mirrored, letterbox.apply(image[:, ::-1].copy(), MEAN, STD))
    image.setflags(write=False)
    letterbox.apply(image, MEAN, STD)


def test_boxes_are_scaled_by_each_axis_ratio():
    letterbox = Letterbox.fit((427, 640), (512, 512))  # 512 / 640 = 0.8 across, 341 / 427 down
    box = np.array([[64.0, 427.0, 640.0, 42.7]], np.float32)
    moved = letterbox.boxes_to_canvas(box)
    np.testing.assert_allclose(moved, [[51.2, 341.0, 512.0, 34.1]], rtol=1e-6)
    assert moved.dtype == np.float32


@pytest.mark.parametrize("original", [(427, 640), (640, 427), (1, 1000), (37, 21)])
def test_boxes_to_canvas_and_back(original):
    letterbox = Letterbox.fit(original, (512, 512))
    boxes = np.array([[0, 0, 20, 37], [3.25, 1.5, 600, 400]], np.float32)
    on_canvas = detections(torch.from_numpy(letterbox.boxes_to_canvas(boxes)))
    back = letterbox.detections_to_image(on_canvas)
    assert back.boxes.dtype == torch.float32
    np.testing.assert_allclose(back.boxes, boxes, rtol=1e-5)
    assert torch.equal(back.scores, on_canvas.scores) and torch.equal(back.class_ids, on_canvas.class_ids)


def test_flip_moves_boxes_to_the_mirrored_side():
    image = noise(20, 100)
    flipped, target = horizontal_flip(image, some_objects())
    np.testing.assert_array_equal(flipped, image[:, ::-1])
    np.testing.assert_array_equal(target.boxes, [[90, 5, 100, 20], [60, 1, 69.5, 9]])
    np.testing.assert_array_equal(target.class_ids, [4, 2])


def test_flipped_box_encloses_the_flipped_object():
    image = np.zeros((10, 20, 3), np.uint8)
    image[2:5, 3:9] = 255
    flipped, target = horizontal_flip(image, Target(np.array([[3, 2, 9, 5]], np.float32), np.array([0])))
    x1, y1, x2, y2 = target.boxes[0].astype(int)
    assert (flipped[y1:y2, x1:x2] == 255).all() and flipped.sum() == image.sum()


def test_flipping_twice_is_the_identity_and_modifies_nothing():
    image, target = noise(7, 33), some_objects()
    once = horizontal_flip(image, target)
    twice = horizontal_flip(*once)
    np.testing.assert_array_equal(twice[0], image)
    np.testing.assert_array_equal(twice[1].boxes, target.boxes)
    np.testing.assert_array_equal(target.boxes, some_objects().boxes)


def test_random_flip_is_fair_and_depends_only_on_its_generator():
    image = noise(2, 3)
    rng = np.random.default_rng(1)
    flips = [random_horizontal_flip(image, no_objects(), rng)[0] is not image for _ in range(1000)]
    assert 440 < sum(flips) < 560
    rng = np.random.default_rng(1)
    assert flips == [random_horizontal_flip(image, no_objects(), rng)[0] is not image for _ in range(1000)]


def coordinates(height: int, width: int) -> np.ndarray:
    """Return an image with each pixel's row as red and column as green, so that a window reveals its position."""
    rows, columns = np.indices((height, width), dtype=np.uint8)
    return np.stack((rows, columns, columns), axis=-1)


def test_scale_crop_without_objects():
    window, target, letterbox = random_scale_crop(
        noise(40, 80), no_objects(), (64, 64), np.random.default_rng(0), JITTER
    )
    assert target.boxes.shape == (0, 4) and target.boxes.dtype == np.float32
    assert target.class_ids.shape == (0,) and target.class_ids.dtype == np.int64
    assert letterbox.original == window.shape[:2]


def test_scale_crop_computed_by_hand():
    # Twice the canvas is 128 x 128, where the image is 64 x 128: all rows fit, and half of the 80 columns.
    boxes = np.array([[30, 5, 45, 35], [0, 0, 80, 40], [65, 10, 85, 20], [0, 0, 20, 40]], np.float32)
    window, target, letterbox = random_scale_crop(
        coordinates(40, 80), Target(boxes, np.array([5, 6, 7, 8])), (64, 64), np.random.default_rng(1), (2.0, 2.0)
    )
    assert letterbox == Letterbox(original=(40, 40), resized=(64, 64), canvas=(64, 64))
    assert window[0, 0].tolist() == [0, 30, 30] and window[-1, -1].tolist() == [39, 69, 69]  # columns 30 to 70
    assert target.boxes.tolist() == [[0, 5, 15, 35], [0, 0, 40, 40], [35, 10, 40, 20]]
    assert target.class_ids.tolist() == [5, 6, 7]
    assert (target.boxes.dtype, target.class_ids.dtype) == (np.float32, np.int64)


@pytest.mark.parametrize("side", [100, 501])
def test_object_as_large_as_the_image_is_in_every_window(side):
    whole = Target(np.array([[0, 0, side, side]], np.float32), np.array([0]))
    for seed in range(100):
        rng = np.random.default_rng(seed)
        window, target, _ = random_scale_crop(noise(side, side), whole, (64, 64), rng, (1.9, 2.0))
        assert target.boxes.tolist() == [[0, 0, window.shape[1], window.shape[0]]]


@pytest.mark.parametrize(
    ("original", "canvas"), [((427, 640), (512, 512)), ((37, 21), (128, 256)), ((1, 300), (64, 64))]
)
def test_scale_of_one_is_the_letterbox(original, canvas):
    image, target = noise(*original), Target(np.array([[0, 0, 20, 1]], np.float32), np.array([3]))
    window, same, letterbox = random_scale_crop(image, target, canvas, np.random.default_rng(0), (1.0, 1.0))
    np.testing.assert_array_equal(window, image)
    np.testing.assert_array_equal(same.boxes, target.boxes)
    assert letterbox == Letterbox.fit(original, canvas)


def test_small_scale_lies_top_left_on_zeros():
    image = np.full((40, 80, 3), 255, np.uint8)
    box = Target(np.array([[20, 10, 80, 40]], np.float32), np.array([1]))
    window, target, letterbox = random_scale_crop(image, box, (64, 64), np.random.default_rng(0), (0.5, 0.5))
    assert letterbox == Letterbox(original=(40, 80), resized=(16, 32), canvas=(64, 64))
    pixels = letterbox.apply(window, MEAN, STD)
    assert (pixels[:16, :32] > 2).all() and (pixels[16:] == 0).all() and (pixels[:, 32:] == 0).all()
    np.testing.assert_allclose(letterbox.boxes_to_canvas(target.boxes), [[8, 4, 32, 16]])


def test_every_window_occurs():
    # One and a half times the canvas is 30 x 30, of which 20 x 20 are seen: 10 x 10 pixels of the image.
    image, rng = coordinates(15, 15), np.random.default_rng(0)
    corners = set()
    for _ in range(1000):
        window, _, letterbox = random_scale_crop(image, no_objects(), (20, 20), rng, (1.5, 1.5))
        assert window.shape == (10, 10, 3) and letterbox.resized == (20, 20)
        corners.add(tuple(window[0, 0, :2].tolist()))
    assert corners == {(top, left) for top in range(6) for left in range(6)}


def test_factor_is_uniform():
    rng = np.random.default_rng(0)
    letterboxes = [random_scale_crop(noise(50, 50), no_objects(), (100, 100), rng, JITTER)[2] for _ in range(2000)]
    sides = np.array([letterbox.resized[0] for letterbox in letterboxes])
    # Of factors from 0.1 to 2, 0.9 / 1.9 are below 1, and they are uniform too.
    assert 0.44 < (sides < 100).mean() < 0.51
    assert 10 <= sides.min() <= 11 and 52 < sides[sides < 100].mean() < 57
    windows = np.array([letterbox.original[0] for letterbox in letterboxes])
    assert windows.min() == 25 and windows.max() == 50


def test_scale_crop_depends_only_on_its_generator_and_modifies_nothing():
    image, target = noise(60, 90), some_objects()
    before = image.copy()
    first, again, other = (
        random_scale_crop(image, target, (64, 64), np.random.default_rng(n), JITTER) for n in (4, 4, 5)
    )
    np.testing.assert_array_equal(first[0], again[0])
    np.testing.assert_array_equal(first[1].boxes, again[1].boxes)
    assert first[2] == again[2] != other[2]
    np.testing.assert_array_equal(image, before)
    np.testing.assert_array_equal(target.boxes, some_objects().boxes)


@pytest.mark.parametrize("canvas", [(96, 96), (64, 128)])
def test_scaled_and_cropped_box_encloses_the_object(canvas):
    rng = np.random.default_rng(0)
    seen = cut = 0
    for _ in range(300):
        height, width = rng.integers(60, 200, 2)
        x1, y1 = rng.integers(0, (width - 30, height - 30))
        x2, y2 = x1 + rng.integers(20, width - x1), y1 + rng.integers(20, height - y1)
        image = np.zeros((height, width, 3), np.uint8)
        image[y1:y2, x1:x2] = 255
        drawn = Target(np.array([[x1, y1, x2, y2]], np.float32), np.array([0]))
        window, target, letterbox = random_scale_crop(image, drawn, canvas, rng, (0.4, 2.0))
        if len(target.boxes) == 0:
            continue
        pixels = letterbox.apply(window, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))[..., 0] > 0.5
        rows, columns = np.flatnonzero(pixels.any(axis=1)), np.flatnonzero(pixels.any(axis=0))
        extent = [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]
        np.testing.assert_allclose(letterbox.boxes_to_canvas(target.boxes)[0], extent, atol=1)
        seen += 1
        cut += window.shape != image.shape
    assert seen > 200 and cut > 50


def test_mostly_cut_off_objects_are_dropped():
    # The scaled image is 64 x 128, and the window 64 of its columns. Box k covers the columns from 8 k to 8 k + 8.
    edges = np.arange(0, 128, 8, dtype=np.float32)
    boxes = np.stack((edges, np.zeros(16, np.float32), edges + 8, np.full(16, 8, np.float32)), axis=1)
    image, rng = coordinates(64, 128), np.random.default_rng(0)
    remainders = set()
    for _ in range(200):
        window, target, _ = random_scale_crop(image, Target(boxes, np.arange(16)), (64, 64), rng, (2.0, 2.0))
        left = int(window[0, 0, 1])
        visible = {k: min(8 * k + 8, left + 64) - max(8 * k, left) for k in range(16)}
        assert target.class_ids.tolist() == [k for k in range(16) if visible[k] >= 2]  # a fifth of 8 is 1.6
        assert (target.boxes[:, 2] - target.boxes[:, 0]).tolist() == [visible[k] for k in target.class_ids]
        remainders |= set(visible.values())
    assert {1, 2, 3} < remainders


def test_remainders_below_a_pixel_are_dropped():
    # 20 of 24 columns are seen, from `left` on. At 3, a third of the box is left, but half a pixel wide.
    box = Target(np.array([[2, 0, 3.5, 20]], np.float32), np.array([0]))
    image, rng = coordinates(20, 24), np.random.default_rng(0)
    kept = {}
    for _ in range(100):
        window, target, _ = random_scale_crop(image, box, (20, 20), rng, (1.2, 1.2))
        kept[int(window[0, 0, 1])] = target.boxes.tolist()
    assert kept == {0: [[2, 0, 3.5, 20]], 1: [[1, 0, 2.5, 20]], 2: [[0, 0, 1.5, 20]], 3: [], 4: []}


@pytest.mark.parametrize("shape", [(1, 1000), (1000, 1), (1, 1), (3, 2000), (2, 2)])
@pytest.mark.parametrize("scale_range", [(0.001, 0.01), (0.1, 2.0), (2.0, 2.0)])
def test_extreme_images_are_scaled_and_cropped(shape, scale_range):
    image = np.full((*shape, 3), 128, np.uint8)
    whole = Target(np.array([[0, 0, shape[1], shape[0]]], np.float32), np.array([0]))
    rng = np.random.default_rng(0)
    for _ in range(20):
        window, target, letterbox = random_scale_crop(image, whole, (64, 32), rng, scale_range)
        assert window.shape[:2] == letterbox.original and min(letterbox.original) >= 1
        assert 1 <= letterbox.resized[0] <= 64 and 1 <= letterbox.resized[1] <= 32
        pixels = letterbox.apply(window, MEAN, STD)
        assert pixels.shape == (64, 32, 3) and np.isfinite(pixels).all() and (pixels != 0).any()
        for box in target.boxes.tolist():
            assert box == [0, 0, window.shape[1], window.shape[0]]
