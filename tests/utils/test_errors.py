"""Script exits: one line for user errors, a traceback for all others."""

import io

import pytest

from utils.errors import InputError, exit_on_input_error


def test_success_prints_nothing(capsys):
    with exit_on_input_error():
        pass
    assert capsys.readouterr() == ("", "")


def test_characters_that_the_terminal_cannot_display_are_escaped(monkeypatch):
    shown = io.BytesIO()
    monkeypatch.setattr("sys.stdout", io.TextIOWrapper(shown, encoding="ascii", write_through=True))
    with exit_on_input_error():
        print("b\udcffd \u65e5.jpg")
    assert shown.getvalue() == rb"b\udcffd \u65e5.jpg" + b"\n"


def test_input_error_is_one_line_and_status_one():
    with pytest.raises(SystemExit) as caught, exit_on_input_error():
        raise InputError("x does not exist")
    assert caught.value.code == "error: x does not exist"  # Python prints a string to stderr and exits with 1


def test_interrupt_has_the_shells_status():
    with pytest.raises(SystemExit) as caught, exit_on_input_error():
        raise KeyboardInterrupt
    assert caught.value.code == 130


def test_other_errors_keep_their_traceback():
    with pytest.raises(ZeroDivisionError), exit_on_input_error():
        _ = 1 / 0
