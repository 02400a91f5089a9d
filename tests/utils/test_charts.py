"""Charts: what the figures contain, and that they become images."""

import math
import warnings

import numpy as np
import pytest

from utils.charts import BarChart, LineChart, draw_bars, draw_lines, draw_matrix, write_chart
from utils.images import read_image


def axes_of(figure):
    (axes,) = figure.axes
    return axes


def rendered(figure, tmp_path) -> np.ndarray:
    write_chart(tmp_path / "chart.png", figure)
    return read_image(tmp_path / "chart.png")


# Lines.


@pytest.mark.parametrize("lines", [{}, {"a": []}, {"a": [(1, math.nan)]}, {"a": [], "b": [(math.inf, 1.0)]}])
def test_chart_without_points_has_its_title_only(lines, tmp_path):
    figure = draw_lines(LineChart("empty", lines))
    axes = axes_of(figure)
    assert axes.get_title() == "empty" and not axes.lines and not axes.axison
    image = rendered(figure, tmp_path)
    assert (image[:40] != 255).any() and (image[40:] == 255).all()


def test_lines_have_their_points_and_names():
    axes = axes_of(draw_lines(LineChart("loss", {"train": [(1, 2.0), (2, 1.0)], "_val": [(2, 3.0)]}, "epoch", "nats")))
    assert [line.get_xydata().tolist() for line in axes.lines] == [[[1, 2], [2, 1]], [[2, 3]]]
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["train", "_val"]
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("epoch", "nats")


@pytest.mark.parametrize("gap", [math.nan, math.inf, -math.inf])
def test_points_that_are_not_finite_are_omitted(gap):
    axes = axes_of(draw_lines(LineChart("loss", {"a": [(0, 0.0), (5, gap), (10, 1.0)], "b": [(0, gap)]})))
    assert [line.get_xydata().tolist() for line in axes.lines] == [[[0, 0], [10, 1]]]


@pytest.mark.parametrize("value", [0.0, -3.0, 1e-14, 1e30])
def test_single_point_is_a_dot(value, tmp_path):
    figure = draw_lines(LineChart("loss", {"a": [(1, value)]}))
    assert axes_of(figure).lines[0].get_marker() == "o"
    assert (rendered(figure, tmp_path) != 255).any()


def test_many_points_are_a_plain_line():
    axes = axes_of(draw_lines(LineChart("loss", {"a": [(i, i) for i in range(100)]})))
    assert axes.lines[0].get_marker() == "None"


def test_ticks_of_epochs_are_integers(tmp_path):
    figure = draw_lines(LineChart("loss", {"a": [(1, 0.5), (3, 0.25)]}))
    rendered(figure, tmp_path)
    assert all(float(label.get_text()).is_integer() for label in axes_of(figure).get_xticklabels())


def test_pale_lines_limits_and_mark():
    axes = axes_of(draw_lines(LineChart("f1", {"mean": [(0, 1), (1, 0)]}, "", "", [[(0, 1), (1, 1)]], (0, 2), 0.25)))
    pale, mean, mark = axes.lines
    assert pale.get_linewidth() < mean.get_linewidth()
    assert axes.get_ylim() == (0, 2) and set(mark.get_xdata()) == {0.25}
    assert len(axes.get_legend().get_texts()) == 1


def test_charts_are_drawn_side_by_side(tmp_path):
    figure = draw_lines(LineChart("one", {"a": [(0, 1.0)]}), LineChart("other", {}))
    assert [axes.get_title() for axes in figure.axes] == ["one", "other"]
    alone = rendered(draw_lines(LineChart("one", {})), tmp_path)
    assert rendered(figure, tmp_path).shape == (alone.shape[0], 2 * alone.shape[1], 3)


# Bars.


def test_chart_without_bars_has_its_title_only(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        image = rendered(draw_bars(BarChart("empty", [], {"AP": []})), tmp_path)
    assert (image[:40] != 255).any() and (image[40:] == 255).all()


def test_bars_go_from_top_to_bottom_with_their_values():
    axes = axes_of(draw_bars(BarChart("AP", ["cat", "dog"], {"AP": [0.5, math.nan], "boxes": [1200, 3]})))
    assert [bar.get_width() for bar in axes.patches] == [0.5, 0, 1200, 3]
    cat, dog = (bar.get_y() for bar in axes.patches[:2])
    assert cat < dog and axes.yaxis_inverted()
    assert [text.get_text() for text in axes.texts] == ["0.500", "", "1,200", "3"]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["cat", "dog"]
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["AP", "boxes"]


def test_more_bars_make_a_taller_image(tmp_path):
    few, many = (rendered(draw_bars(BarChart("", ["x"] * n, {"AP": [0.5] * n})), tmp_path) for n in (3, 80))
    assert many.shape[0] > 80 * 12 > few.shape[0] and many.shape[1] == few.shape[1]


# Matrices.


@pytest.mark.parametrize("size", [1, 26])
def test_matrix_shows_nonzero_counts(size, tmp_path):
    cells = np.diag(np.arange(size) + 1)
    figure = draw_matrix("confusions", [f"name {i}" for i in range(size)], cells, "ground truth", "detected as")
    assert [text.get_text() for text in axes_of(figure).texts] == [str(i + 1) for i in range(size)]
    assert rendered(figure, tmp_path).ndim == 3


def test_cells_are_shaded_by_their_share_of_the_row():
    axes = axes_of(draw_matrix("", ["a", "b"], np.array([[3, 1], [0, 0]]), "", ""))
    np.testing.assert_array_equal(axes.images[0].get_array(), [[0.75, 0.25], [0, 0]])


# Names.


@pytest.mark.parametrize("name", ["$5 and $", "$", "_hidden", "{x} %s \\alpha", "猫", "a\nb"])
def test_any_name_can_be_drawn(name, tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figures = (
            draw_lines(LineChart(name, {name: [(0, 1)]}, name)),
            draw_bars(BarChart(name, [name], {name: [1.0], "other": [0.5]}, name)),
            draw_matrix(name, [name], np.eye(1, dtype=int), name, name),
        )
        for figure in figures:
            rendered(figure, tmp_path)
    assert axes_of(figures[0]).get_legend().get_texts()[0].get_text() == name
