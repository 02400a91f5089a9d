"""Command-line types, and mistakes told in one sentence."""

import argparse
import io
import os

import pytest

from utils.cli import (
    BOOLEAN,
    boolean,
    default_workers,
    fraction,
    image_size,
    non_negative_float,
    non_negative_int,
    positive_float,
    positive_int,
)
from utils.errors import InputError, exit_on_input_error


@pytest.mark.parametrize("kind", [boolean, positive_int, non_negative_int, positive_float, fraction])
@pytest.mark.parametrize("text", ["", " ", "x", "--", "1,5"])
def test_text_that_is_no_value_is_refused(kind, text):
    with pytest.raises(ValueError):
        kind(text)


@pytest.mark.parametrize("text", ["True", "true", "TRUE", "yes", "Y", "t", "1"])
def test_true(text):
    assert boolean(text) is True


@pytest.mark.parametrize("text", ["False", "false", "FALSE", "no", "N", "f", "0"])
def test_false(text):
    assert boolean(text) is False


@pytest.mark.parametrize(
    ("args", "expected"),
    [([], None), (["--debug"], True), (["--debug", "True"], True), (["--debug", "False"], False)],
)
def test_boolean_flag_stands_alone_or_carries_its_value(args, expected):
    parser = argparse.ArgumentParser()
    parser.add_argument("--debug", **BOOLEAN)
    assert parser.parse_args(args).debug is expected


@pytest.mark.parametrize(
    ("kind", "accepted", "refused"),
    [
        (positive_int, ["1", "12"], ["0", "-1", "1.5", "inf"]),
        (non_negative_int, ["0", "12"], ["-1", "1.5"]),
        (positive_float, ["1e-4", "2", "0.5"], ["0", "-1", "inf", "nan"]),
        (non_negative_float, ["0", "0.5"], ["-0.1", "inf", "nan"]),
        (fraction, ["0", "0.2", "1"], ["-0.1", "1.1", "inf", "nan"]),
    ],
)
def test_range_of_numbers(kind, accepted, refused):
    assert [kind(text) for text in accepted] == [float(text) for text in accepted]
    for text in refused:
        with pytest.raises(ValueError):
            kind(text)


def test_refused_number_is_told_by_argparse(capsys):
    parser = argparse.ArgumentParser()
    parser.add_argument("--batch_size", type=positive_int)
    with pytest.raises(SystemExit):
        parser.parse_args(["--batch_size", "0"])
    assert "--batch_size: invalid positive_int value: '0'" in capsys.readouterr().err


def test_workers_are_no_more_than_twelve():
    assert 1 <= default_workers() <= 12


@pytest.mark.parametrize(
    ("text", "expected"), [("640", (640, 640)), ("640x384", (384, 640)), ("500X1", (1, 500)), ("100", (100, 100))]
)
def test_image_size_is_a_side_or_width_by_height(text, expected):
    assert image_size(text) == expected


@pytest.mark.parametrize("text", ["", "0", "-128", "640x", "x640", "640x0", "1x2x3", "640 x", "6.4", "640*384"])
def test_other_image_sizes_are_refused(text):
    with pytest.raises(ValueError):
        image_size(text)


def test_success_exits_with_nothing(capsys):
    with exit_on_input_error():
        pass
    assert capsys.readouterr() == ("", "")


def test_names_that_the_terminal_cannot_show_are_escaped(monkeypatch):
    shown = io.BytesIO()
    monkeypatch.setattr("sys.stdout", io.TextIOWrapper(shown, encoding="ascii", write_through=True))
    with exit_on_input_error():
        print("b\udcffd \u65e5.jpg")
    assert shown.getvalue() == rb"b\udcffd \u65e5.jpg" + os.linesep.encode()


def test_input_error_is_one_line_and_status_one():
    with pytest.raises(SystemExit) as caught, exit_on_input_error():
        raise InputError("there is no file x")
    assert caught.value.code == "error: there is no file x"  # Python prints a text to stderr and exits with 1


def test_interrupt_is_the_shells_status():
    with pytest.raises(SystemExit) as caught, exit_on_input_error():
        raise KeyboardInterrupt
    assert caught.value.code == 130


def test_other_errors_keep_their_traceback():
    with pytest.raises(ZeroDivisionError), exit_on_input_error():
        _ = 1 / 0
