"""The history of a run: its table, its curves, and the line of an epoch."""

import csv
import math
from collections.abc import Callable
from pathlib import Path

import pytest

from efficientdet.training import monitor
from efficientdet.training.monitor import HISTORY_COLUMNS, write_history
from utils.charts import write_chart
from utils.images import read_image

ROW = {
    "epoch": 1, "step": 63, "lr": 0.02, "train_loss": 2.5, "train_class": 1.5, "train_box": 1.0, "skipped": 0,
    "val_loss": 2.25, "val_class": 1.25, "val_box": 1.0, "AP": 0.125, "AP50": 0.25, "AP75": 0.1,
}  # fmt: skip


def read_table(folder: Path) -> list[dict[str, str]]:
    with open(folder / "history.csv", newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture
def drawn(monkeypatch) -> Callable[[], list[list[str]]]:
    """A function that gives the names of the lines in each of the three charts that were written last."""
    figures = []
    monkeypatch.setattr(
        monitor, "write_chart", lambda path, figure: (figures.append(figure), write_chart(path, figure))
    )

    def names() -> list[list[str]]:
        assert [axes.get_title() for axes in figures[-1].axes] == list(monitor._CHARTS)
        return [
            [text.get_text() for text in axes.get_legend().get_texts()] if axes.lines else []
            for axes in figures[-1].axes
        ]

    return names


def test_history_of_no_epochs_is_the_columns_names(tmp_path, drawn):
    write_history([], tmp_path / "logs" / "coco")  # folders are made
    assert (tmp_path / "logs" / "coco" / "history.csv").read_text() == (
        "epoch,step,lr,train_loss,train_class,train_box,skipped,val_loss,val_class,val_box,AP,AP50,AP75\n"
    )
    assert drawn() == [[], [], []]
    assert read_image(tmp_path / "logs" / "coco" / "curves.png").ndim == 3


def test_every_column_is_written_in_lines_as_the_system_ends_them(tmp_path, drawn):
    write_history([ROW, ROW | {"epoch": 2, "step": 126, "AP": -1.0}], tmp_path)
    lines = (tmp_path / "history.csv").read_bytes().decode().split("\n")
    assert lines[1:] == [
        "1,63,0.02,2.5,1.5,1.0,0,2.25,1.25,1.0,0.125,0.25,0.1",
        "2,126,0.02,2.5,1.5,1.0,0,2.25,1.25,1.0,-1.0,0.25,0.1",
        "",
    ]
    assert drawn() == [["train_loss", "val_loss"], ["AP", "AP50", "AP75"], ["lr"]]


def test_epoch_without_validation_leaves_its_columns_empty(tmp_path, drawn):
    training = {key: value for key, value in ROW.items() if key in HISTORY_COLUMNS[:7]}
    write_history([training], tmp_path)
    (row,) = read_table(tmp_path)
    assert [row[column] for column in HISTORY_COLUMNS] == ["1", "63", "0.02", "2.5", "1.5", "1.0", "0"] + [""] * 6
    assert drawn() == [["train_loss"], [], ["lr"]]


def test_column_of_nothing_is_empty_and_not_drawn(tmp_path, drawn):
    write_history([{"epoch": 1, "AP": None, "lr": 0.1}], tmp_path)
    assert read_table(tmp_path)[0]["AP"] == ""
    assert drawn() == [[], [], ["lr"]]


@pytest.mark.parametrize(("value", "text"), [(math.nan, "nan"), (math.inf, "inf"), (-math.inf, "-inf")])
def test_values_that_are_not_finite_are_written_and_not_drawn(tmp_path, drawn, value, text):
    row = ROW | {"val_loss": value, "AP": value, "AP50": value, "AP75": value}
    write_history([row], tmp_path)
    assert read_table(tmp_path)[0]["val_loss"] == text
    assert drawn() == [["train_loss"], [], ["lr"]]


def test_numbers_are_read_back_as_they_were(tmp_path):
    row = ROW | {"lr": 0.1 + 0.2, "train_loss": 1 / 3, "AP": 1e-17}
    write_history([row], tmp_path)
    assert {key: float(value) for key, value in read_table(tmp_path)[0].items()} == row


def test_later_history_takes_the_place_of_the_earlier(tmp_path):
    write_history([ROW, ROW | {"epoch": 2}], tmp_path)
    write_history([ROW], tmp_path)
    assert len(read_table(tmp_path)) == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["curves.png", "history.csv"]
