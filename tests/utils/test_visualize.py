"""Class colors, boxes drawn on images, and contact sheets."""

import numpy as np
import pytest

from utils import visualize
from utils.visualize import class_color, contact_sheet, draw_boxes, side_by_side

NO_BOXES, NO_CLASSES = np.zeros((0, 4), np.float32), np.zeros(0, np.int64)


def gray(height: int = 120, width: int = 160) -> np.ndarray:
    return np.full((height, width, 3), 128, np.uint8)


def test_image_without_boxes_is_copied():
    image = gray()
    drawn = draw_boxes(image, NO_BOXES, NO_CLASSES, [])
    np.testing.assert_array_equal(drawn, image)
    assert drawn is not image and not np.shares_memory(drawn, image)


def test_colors_of_five_hundred_classes_are_valid_and_reproducible():
    for class_id in range(501):
        color = class_color(class_id)
        assert len(color) == 3 and all(isinstance(c, int) and 0 <= c <= 255 for c in color)
        assert color == class_color(class_id) == class_color(np.int64(class_id))


def test_colors_of_neighboring_classes_are_far_apart():
    colors = np.array([class_color(class_id) for class_id in range(501)])
    assert np.abs(np.diff(colors, axis=0)).sum(axis=1).min() >= 60


def test_colors_of_a_hundred_classes_are_distinct():
    assert len({class_color(class_id) for class_id in range(100)}) == 100


def test_drawing_does_not_change_its_input():
    image, boxes, classes = gray(), np.array([[20, 30, 90, 100]], np.float32), np.array([0])
    before = boxes.copy()
    drawn = draw_boxes(image, boxes, classes, ["square 0.90"])
    np.testing.assert_array_equal(image, gray())
    np.testing.assert_array_equal(boxes, before)
    assert drawn.shape == image.shape and drawn.dtype == np.uint8 and (drawn != image).any()


def test_box_is_drawn_in_its_color_along_its_edges_only():
    drawn = draw_boxes(gray(), np.array([[20.4, 50, 90, 100]]), np.array([3]), [""])
    color = class_color(3)
    for x, y in ((20, 75), (90, 75), (55, 100), (20, 100), (90, 100)):
        np.testing.assert_allclose(drawn[y, x], color, atol=30)  # thin lines are blended with the image
    assert (drawn[60:95, 25:85] == 128).all()
    assert (drawn[105:] == 128).all() and (drawn[:, 95:] == 128).all()


def test_later_boxes_are_drawn_over_earlier_ones():
    boxes = np.array([[20, 50, 90, 100]] * 2)
    for first, last in ((0, 1), (1, 0)):
        drawn = draw_boxes(gray(), boxes, np.array([first, last]), ["", ""])
        np.testing.assert_allclose(drawn[75, 20], class_color(last), atol=30)


def test_lists_are_accepted_like_arrays():
    boxes = [[20, 50, 90, 100]]
    expected = draw_boxes(gray(), np.array(boxes), np.array([1]), ["a"])
    np.testing.assert_array_equal(draw_boxes(gray(), boxes, [1], ["a"]), expected)


@pytest.mark.parametrize(
    "box",
    [
        [-1e9, -1e9, 1e9, 1e9],
        [1e7, 1e7, 2e7, 2e7],
        [-5000, 10, -4000, 50],
        [np.inf, 0, np.inf, 5],
        [-np.inf, -np.inf, np.inf, np.inf],
        [50, 50, 50, 50],
        [90, 90, 20, 20],
        [158, 0, 400, 2],
    ],
)
def test_box_outside_the_image_or_without_area_is_harmless(box):
    drawn = draw_boxes(gray(), np.array([box], np.float64), np.array([2]), ["far away"])
    assert drawn.shape == (120, 160, 3)


@pytest.mark.parametrize("shape", [(1, 1), (2, 300), (300, 2), (1500, 2000)])
def test_images_of_any_size_are_drawn_on(shape):
    box = np.array([[0, 0, shape[1] - 1, shape[0] - 1]], np.float32)
    drawn = draw_boxes(gray(*shape), box, np.array([0]), ["a rather long label 0.99"])
    assert drawn.shape == (*shape, 3) and (drawn != 128).any()


def test_label_of_a_box_at_the_top_right_is_moved_inside():
    box = np.array([[150, 0, 158, 110]])
    with_label, without = (draw_boxes(gray(), box, np.array([0]), [label]) for label in ("a label", ""))
    rows, columns = np.nonzero((with_label != without).any(axis=2))
    assert columns.min() < 140  # to the left, because it is wider than the box
    background = np.abs(with_label[:5, columns.min() + 2 : 145].astype(int) - class_color(0)).sum(axis=2)
    assert (background < 10).any() and rows.max() < 30  # and below the top edge


def test_images_side_by_side():
    left, right = gray(40, 60), np.zeros((40, 30, 3), np.uint8)
    both = side_by_side(left, right)
    assert both.shape[0] == 40 and both.shape[1] > 90 and both.dtype == np.uint8
    np.testing.assert_array_equal(both[:, :60], left)
    np.testing.assert_array_equal(both[:, -30:], right)
    assert (both[:, 60:-30] == 255).all()


@pytest.mark.parametrize(("number", "rows", "columns"), [(1, 1, 1), (2, 1, 2), (3, 2, 2), (5, 2, 3), (9, 3, 3)])
def test_contact_sheet_shows_every_image_completely(number, rows, columns):
    images = [np.full((100, 200, 3), (20 * (i + 1), 0, 255), np.uint8) for i in range(number)]
    sheet = contact_sheet(images, [f"image {i}" for i in range(number)])
    assert 100 * rows < sheet.shape[0] < 140 * rows and 200 * columns < sheet.shape[1] < 220 * columns
    corners = []
    for image in images:
        y, x = np.nonzero((sheet == image[0, 0]).all(axis=2))
        inside = sheet[y.max() - 99 : y.max() + 1, x.max() - 199 : x.max() + 1]
        np.testing.assert_array_equal(inside, image)
        corners.append((y.max(), x.max()))
    assert corners == sorted(corners)  # row by row


def test_captions_are_above_their_images_and_fit():
    white = np.full((100, 200, 3), 255, np.uint8)
    short, long = (contact_sheet([white], [caption]) for caption in ("a", 40 * "long "))
    assert contact_sheet([white], [""]).min() == 255
    for sheet in (short, long):
        y, x = np.nonzero(sheet.min(axis=2) < 128)
        assert y.max() < sheet.shape[0] - 100 and x.max() < sheet.shape[1] - 1


def label_area(label: str, box, image: np.ndarray, class_id: int = 0) -> tuple[int, int, int, int]:
    """The area of a label, xyxy."""
    drawn, without = (draw_boxes(image, [box], [class_id], [text]) for text in (label, ""))
    rows, columns = np.nonzero((drawn != without).any(axis=2))
    return columns.min(), rows.min(), columns.max() + 1, rows.max() + 1


def test_labels_of_coinciding_boxes_do_not_hide_each_other():
    image, box = gray(480, 640), [200, 200, 320, 300]
    labels = ["person 0.50", "person 0.60", "person 0.70"]
    drawn = draw_boxes(image, [box] * 3, [0, 1, 2], labels)
    left, top, right, bottom = label_area(labels[0], box, image)
    area = (right - left) * (bottom - top)
    for class_id in range(3):  # each label shows its color, except where the letters are
        assert (drawn == class_color(class_id)).all(axis=2).sum() > 0.5 * area


def test_best_label_is_directly_above_the_box():
    image, box = gray(480, 640), [200, 200, 320, 300]
    drawn = draw_boxes(image, [box] * 2, [0, 1], ["person 0.50", "person 0.60"])
    assert (drawn[190:198, 202:300] == class_color(1)).all(axis=2).mean() > 0.3


@pytest.mark.parametrize("shape", [(300, 300), (2000, 300), (300, 4000), (3000, 4000)])
def test_font_size_follows_the_image_size(shape):
    _, top, _, bottom = label_area("Ag", [shape[1] // 3, shape[0] // 2, 0.9 * shape[1], 0.9 * shape[0]], gray(*shape))
    assert 0.02 < (bottom - top) / np.sqrt(shape[0] * shape[1]) < 0.07


def test_label_wider_than_the_image_gets_smaller_letters():
    box, image = [100, 200, 300, 300], gray(480, 640)
    usual, long = (label_area(text, box, image) for text in ("person 0.50", 8 * "a long name " + "0.50"))
    assert long[2] - long[0] <= 640
    assert long[3] - long[1] < usual[3] - usual[1]


@pytest.mark.parametrize("unicode_font", [False, True])
def test_names_that_are_not_ascii_are_drawn(monkeypatch, unicode_font):
    if unicode_font and not visualize._UNICODE_FONT:
        pytest.skip("OpenCV 4 draws ASCII only")
    monkeypatch.setattr(visualize, "_UNICODE_FONT", unicode_font)
    image, box = gray(480, 640), [100, 200, 300, 300]

    def drawn(label: str) -> np.ndarray:
        return draw_boxes(image, [box], [0], [label])

    assert (drawn("café") != drawn("caf?")).any() and (drawn("caf") != drawn("café")).any()
    np.testing.assert_array_equal((drawn("café") == drawn("cafe")).all(), not unicode_font)
    assert (drawn("猫") != drawn("")).any()


def test_labels_of_small_boxes_in_large_images_do_not_hide_the_boxes():
    image = gray(3000, 4000)
    boxes = np.array([[x, y, x + 60, y + 60] for y in range(200, 1400, 200) for x in range(200, 1400, 200)])
    drawn = draw_boxes(image, boxes, [0] * len(boxes), ["person 0.50"] * len(boxes))
    for left, top, right, bottom in boxes:
        assert (drawn[top + 5 : bottom - 5, left + 5 : right - 5] == 128).all()
    small, large = (label_area("person 0.50", box, image) for box in ([200, 200, 260, 260], [200, 200, 2600, 2600]))
    assert small[3] - small[1] < 40 < 100 < large[3] - large[1]
