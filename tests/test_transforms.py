"""The letterbox and the flip, against numbers computed by hand."""

import numpy as np
import pytest
import torch

from efficientdet.transforms import Letterbox, Target, horizontal_flip, random_horizontal_flip

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def no_objects() -> Target:
    return Target(np.zeros((0, 4), np.float32), np.zeros(0, np.int64))


def some_objects() -> Target:
    return Target(np.array([[0, 5, 10, 20], [30.5, 1, 40, 9]], np.float32), np.array([4, 2]))


def noise(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def test_no_boxes_stay_no_boxes():
    letterbox = Letterbox.fit((427, 640), (512, 512))
    assert letterbox.boxes_to_canvas(no_objects().boxes).shape == (0, 4)
    assert letterbox.boxes_to_picture(torch.zeros(0, 4)).shape == (0, 4)
    assert horizontal_flip(noise(4, 6), no_objects())[1].boxes.shape == (0, 4)


@pytest.mark.parametrize(
    ("picture", "resized"),
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
def test_resized_sides(picture, resized):
    letterbox = Letterbox.fit(picture, (512, 512))
    assert (letterbox.picture, letterbox.resized, letterbox.canvas) == (picture, resized, (512, 512))


@pytest.mark.parametrize(
    ("picture", "resized"), [((100, 100), (128, 128)), ((100, 300), (85, 256)), ((100, 200), (128, 256))]
)
def test_canvas_need_not_be_square(picture, resized):
    assert Letterbox.fit(picture, (128, 256)).resized == resized


def test_every_size_fits_and_fills_a_side():
    rng = np.random.default_rng(0)
    for height, width in rng.integers(1, 3000, (500, 2)).tolist():
        resized = Letterbox.fit((height, width), (640, 640)).resized
        assert max(resized) == 640 and min(resized) >= 1
        if height == width:
            assert resized == (640, 640)


def test_normalisation_of_known_colours():
    picture = np.empty((2, 4, 3), np.uint8)
    picture[:] = (255, 0, 51)
    pixels = Letterbox.fit((2, 4), (4, 4)).image(picture, MEAN, STD)
    assert pixels.dtype == np.float32 and pixels.shape == (4, 4, 3)
    # (1 - 0.485) / 0.229, (0 - 0.456) / 0.224, (0.2 - 0.406) / 0.225
    np.testing.assert_allclose(pixels[:2], np.broadcast_to([2.248908, -2.035714, -0.915556], (2, 4, 3)), rtol=1e-5)
    assert (pixels[2:] == 0).all()


def test_picture_lies_top_left_on_zeros():
    picture = np.full((100, 50, 3), 255, np.uint8)
    pixels = Letterbox.fit((100, 50), (64, 64)).image(picture, MEAN, STD)
    assert (pixels[:, :32] > 2).all()
    assert (pixels[:, 32:] == 0).all()


def test_picture_of_the_canvas_size_is_not_resampled():
    picture = noise(32, 32)
    pixels = Letterbox.fit((32, 32), (32, 32)).image(picture, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
    np.testing.assert_allclose(pixels, picture / 255, atol=1e-6)


def test_enlarging_interpolates_linearly_between_pixel_centres():
    picture = np.zeros((1, 2, 3), np.uint8)
    picture[0, 1] = 200
    pixels = Letterbox.fit((1, 2), (4, 4)).image(picture, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
    # Output centres lie at -0.25, 0.25, 0.75, 1.25 of the input.
    np.testing.assert_allclose(pixels[0, :, 0] * 255, [0, 50, 150, 200], atol=1e-4)


@pytest.mark.parametrize("shape", [(1, 300), (300, 1), (1, 1)])
def test_extreme_pictures_have_a_letterbox(shape):
    pixels = Letterbox.fit(shape, (64, 64)).image(np.full((*shape, 3), 128, np.uint8), MEAN, STD)
    assert pixels.shape == (64, 64, 3) and np.isfinite(pixels).all() and (pixels != 0).any()


def test_letterbox_leaves_its_picture_alone():
    picture = noise(20, 30)
    before = picture.copy()
    Letterbox.fit((20, 30), (64, 64)).image(picture, MEAN, STD)
    np.testing.assert_array_equal(picture, before)


def test_mirrored_view_and_read_only_pictures_are_taken():
    picture = noise(20, 30)
    letterbox = Letterbox.fit((20, 30), (64, 64))
    mirrored = letterbox.image(picture[:, ::-1], MEAN, STD)
    np.testing.assert_array_equal(mirrored, letterbox.image(picture[:, ::-1].copy(), MEAN, STD))
    picture.setflags(write=False)
    letterbox.image(picture, MEAN, STD)


def test_boxes_move_by_the_two_ratios_separately():
    letterbox = Letterbox.fit((427, 640), (512, 512))  # 512 / 640 = 0.8 across, 341 / 427 down
    box = np.array([[64.0, 427.0, 640.0, 42.7]], np.float32)
    moved = letterbox.boxes_to_canvas(box)
    np.testing.assert_allclose(moved, [[51.2, 341.0, 512.0, 34.1]], rtol=1e-6)
    assert moved.dtype == np.float32


@pytest.mark.parametrize("picture", [(427, 640), (640, 427), (1, 1000), (37, 21)])
def test_boxes_go_there_and_back(picture):
    letterbox = Letterbox.fit(picture, (512, 512))
    boxes = np.array([[0, 0, 20, 37], [3.25, 1.5, 600, 400]], np.float32)
    np.testing.assert_allclose(letterbox.boxes_to_picture(letterbox.boxes_to_canvas(boxes)), boxes, rtol=1e-5)
    tensor = torch.from_numpy(boxes)
    back = letterbox.boxes_to_picture(letterbox.boxes_to_canvas(tensor))
    assert back.dtype == torch.float32
    torch.testing.assert_close(back, tensor)


def test_flip_moves_boxes_to_the_mirrored_side():
    image = noise(20, 100)
    flipped, target = horizontal_flip(image, some_objects())
    np.testing.assert_array_equal(flipped, image[:, ::-1])
    np.testing.assert_array_equal(target.boxes, [[90, 5, 100, 20], [60, 1, 69.5, 9]])
    np.testing.assert_array_equal(target.class_ids, [4, 2])


def test_flip_carries_a_drawn_box_with_it():
    image = np.zeros((10, 20, 3), np.uint8)
    image[2:5, 3:9] = 255
    flipped, target = horizontal_flip(image, Target(np.array([[3, 2, 9, 5]], np.float32), np.array([0])))
    x1, y1, x2, y2 = target.boxes[0].astype(int)
    assert (flipped[y1:y2, x1:x2] == 255).all() and flipped.sum() == image.sum()


def test_flip_twice_is_identity_and_leaves_its_input_alone():
    image, target = noise(7, 33), some_objects()
    once = horizontal_flip(image, target)
    twice = horizontal_flip(*once)
    np.testing.assert_array_equal(twice[0], image)
    np.testing.assert_array_equal(twice[1].boxes, target.boxes)
    np.testing.assert_array_equal(target.boxes, some_objects().boxes)


def test_random_flip_flips_half_of_the_time_by_its_generator():
    image = noise(2, 3)
    rng = np.random.default_rng(1)
    flips = [random_horizontal_flip(image, no_objects(), rng)[0] is not image for _ in range(1000)]
    assert 440 < sum(flips) < 560
    rng = np.random.default_rng(1)
    assert flips == [random_horizontal_flip(image, no_objects(), rng)[0] is not image for _ in range(1000)]


@pytest.mark.parametrize(("probability", "flipped"), [(0.0, False), (1.0, True)])
def test_random_flip_with_certainty(probability, flipped):
    image, target = noise(4, 50), some_objects()
    result, _ = random_horizontal_flip(image, target, np.random.default_rng(0), probability)
    np.testing.assert_array_equal(result, image[:, ::-1] if flipped else image)
