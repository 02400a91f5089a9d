"""Line charts: what is drawn, and where.

A chart is 640 x 400 pixels. Its axes begin at (x, y) = (76, 360) and end at (624, 40).
"""

import math

import numpy as np
import pytest

from utils.curves import draw_charts

FIRST, SECOND = (191, 51, 0), (22, 108, 191)  # three quarters of orangered and dodgerblue
LEGEND = slice(440, 640)  # columns


def chart(**lines) -> np.ndarray:
    picture = draw_charts({"title": lines})
    assert picture.shape == (400, 640, 3) and picture.dtype == np.uint8
    return picture


def of_color(picture: np.ndarray, color: tuple[int, int, int]) -> np.ndarray:
    """(H, W) bool: pixels of exactly this colour, the legend aside."""
    found = (picture == np.array(color, np.uint8)).all(axis=2)
    found[:80, LEGEND] = False
    return found


def centre(found: np.ndarray) -> tuple[float, float]:
    """The mean (x, y) of some pixels."""
    rows, columns = found.nonzero()
    return columns.mean(), rows.mean()


@pytest.mark.parametrize("lines", [{}, {"a": []}, {"a": [(1, math.nan)]}, {"a": [], "b": [(math.inf, 1.0)]}])
def test_chart_without_points_holds_its_title_alone(lines):
    picture = chart(**lines)
    assert (picture[:40] != 255).any()
    assert (picture[40:] == 255).all()


def test_line_runs_from_corner_to_corner():
    picture = chart(loss=[(0, 0.0), (10, 10.0)])
    found = of_color(picture, FIRST)
    assert found[360, 76] and found[200, 350]
    assert (picture[40, 624] == FIRST).all()
    rows, columns = found.nonzero()
    np.testing.assert_allclose(rows, 360 - (columns - 76) * 320 / 548, atol=2)


def test_line_is_drawn_between_ticks_that_enclose_it():
    # Epochs 1 to 5 in steps of 1; losses 0.3 to 1.9 in steps of 0.5, from 0 to 2.
    found = of_color(chart(loss=[(1, 1.9), (3, 1.0), (5, 0.3)]), FIRST)
    rows, columns = found.nonzero()
    assert columns.min() == pytest.approx(76, abs=2) and columns.max() == pytest.approx(624, abs=2)
    assert rows.min() == pytest.approx(360 - 320 * 1.9 / 2, abs=2)
    assert rows.max() == pytest.approx(360 - 320 * 0.3 / 2, abs=2)
    middle = columns == 350
    assert rows[middle].mean() == pytest.approx(200, abs=1)


@pytest.mark.parametrize("value", [1.0, 0.0, -3.0, 1e-4, 1e-14, 1e30, 12345678.0])
def test_one_point_is_a_dot_about_the_middle(value):
    picture = chart(loss=[(1, value)])
    found = of_color(picture, FIRST)
    x, y = centre(found)
    assert 10 < found.sum() < 60
    assert x == pytest.approx(350, abs=0.6)
    assert y == pytest.approx(200, abs=60)  # round ticks may reach further on one side


@pytest.mark.parametrize("value", [1.0, 0.0, 1e-4, 1e17])
def test_constant_values_are_a_level_line(value):
    found = of_color(chart(lr=[(0, value), (5, value), (10, value)]), FIRST)
    rows, columns = found.nonzero()
    assert rows.max() - rows.min() <= 3 and columns.min() <= 78 and columns.max() >= 622
    assert 40 < rows.mean() < 360


@pytest.mark.parametrize("low", [0.5, 1e-4, 1e17])
def test_values_that_floats_hardly_tell_apart_are_a_level_line(low):
    found = of_color(chart(loss=[(1, low), (2, np.nextafter(low, 2 * low)), (3, low * (1 + 1e-13))]), FIRST)
    rows, _ = found.nonzero()
    assert rows.max() - rows.min() <= 3


@pytest.mark.parametrize("size", [1e-15, 1e-6, 1e-3, 7.0, 1e6, 1e30])
def test_values_of_any_size_fill_the_chart_alike(size):
    found = of_color(chart(loss=[(0, 0.0), (10, size)]), FIRST)
    rows, columns = found.nonzero()
    assert rows.max() == pytest.approx(360, abs=2) and columns.min() == pytest.approx(76, abs=2)
    assert rows.min() < 200


@pytest.mark.parametrize("gap", [math.nan, math.inf, -math.inf])
def test_values_that_are_not_finite_are_left_out(gap):
    without = chart(loss=[(0, 0.0), (10, 1.0)])
    np.testing.assert_array_equal(chart(loss=[(0, 0.0), (5, gap), (10, 1.0)]), without)


def test_line_without_a_finite_value_does_not_keep_others_from_being_drawn():
    picture = chart(train=[(1, 2.0), (2, 1.0)], val=[(1, math.nan), (2, math.inf)])
    assert of_color(picture, FIRST).any() and not of_color(picture, SECOND).any()


def test_lines_share_their_axes_and_have_colors_and_names_of_their_own():
    picture = chart(train=[(0, 0.0), (10, 0.0)], val=[(0, 10.0), (4, 10.0)])
    first, second = of_color(picture, FIRST), of_color(picture, SECOND)
    assert centre(first) == pytest.approx((350, 360), abs=1)
    assert centre(second) == pytest.approx((76 + 548 * 0.2, 40), abs=1)
    legend = picture[:80, LEGEND]
    for color, row in ((FIRST, 48), (SECOND, 68)):
        assert (legend[row, 20] == color).all()
        assert (legend[row - 8 : row + 8, 42:].min(axis=2) < 100).any(), "its name"


def test_more_lines_than_named_colors_are_drawn():
    picture = chart(**{f"line{number}": [(0, number), (1, number)] for number in range(20)})
    assert len({tuple(pixel) for pixel in picture[40:360, 300]}) > 20


def test_charts_stand_side_by_side():
    lines = {"a": [(0, 1.0), (1, 2.0)]}
    one, other = draw_charts({"one": lines}), draw_charts({"other": {}})
    np.testing.assert_array_equal(draw_charts({"one": lines, "other": {}}), np.concatenate([one, other], axis=1))
