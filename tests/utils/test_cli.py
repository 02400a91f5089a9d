"""Parsers, argument types and shared flags."""

import argparse
from pathlib import Path

import pytest

from utils import cli
from utils.cli import (
    BOOLEAN,
    add_flags,
    boolean,
    default_workers,
    fraction,
    image_size,
    make_parser,
    non_negative_float,
    non_negative_int,
    positive_int,
)


@pytest.mark.parametrize("kind", [boolean, positive_int, non_negative_int, non_negative_float, fraction])
@pytest.mark.parametrize("text", ["", " ", "x", "--", "1,5"])
def test_malformed_value_is_refused(kind, text):
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
    parser = make_parser(None)
    parser.add_argument("--debug", **BOOLEAN)
    assert parser.parse_args(args).debug is expected


@pytest.mark.parametrize(
    ("kind", "accepted", "refused"),
    [
        (positive_int, ["1", "12"], ["0", "-1", "1.5", "inf"]),
        (non_negative_int, ["0", "12"], ["-1", "1.5"]),
        (non_negative_float, ["0", "0.5", "1e-4"], ["-0.1", "inf", "nan"]),
        (fraction, ["0", "0.2", "1"], ["-0.1", "1.1", "inf", "nan"]),
    ],
)
def test_range_of_numbers(kind, accepted, refused):
    assert [kind(text) for text in accepted] == [float(text) for text in accepted]
    for text in refused:
        with pytest.raises(ValueError):
            kind(text)


def test_argparse_reports_a_refused_number_with_its_flag_and_type(capsys):
    parser = make_parser(None)
    parser.add_argument("--batch_size", type=positive_int)
    with pytest.raises(SystemExit):
        parser.parse_args(["--batch_size", "0"])
    assert "--batch_size: invalid positive_int value: '0'" in capsys.readouterr().err


def test_default_workers_are_at_most_twelve():
    assert 1 <= default_workers() <= 12


@pytest.mark.parametrize(
    ("text", "expected"), [("640", (640, 640)), ("640x384", (384, 640)), ("500X1", (1, 500)), ("100", (100, 100))]
)
def test_image_size_is_a_side_or_width_by_height(text, expected):
    assert image_size(text) == expected


@pytest.mark.parametrize("text", ["", "0", "-128", "640x", "x640", "640x0", "1x2x3", "640 x", "6.4", "640*384"])
def test_malformed_image_size_is_refused(text):
    with pytest.raises(ValueError):
        image_size(text)


def test_abbreviated_flags_are_refused(capsys):
    parser = make_parser(None)
    parser.add_argument("--score_threshold")
    with pytest.raises(SystemExit):
        parser.parse_args(["--score", "0.5"])
    assert "--score" in capsys.readouterr().err


def test_help_shows_the_command_and_the_description_unwrapped():
    text = make_parser("Do it.\n\n  one\n  two", "python -m efficientdet.it").format_help()
    assert "usage: python -m efficientdet.it" in text and "Do it.\n\n  one\n  two\n" in text


@pytest.mark.parametrize("name", cli._SHARED)
def test_each_shared_flag_is_stored_under_its_name(name):
    parser = make_parser(None)
    add_flags(parser, name)
    assert list(vars(parser.parse_args([]))) == [name]


@pytest.mark.parametrize(
    ("spelling", "name"), [("--threshold", "score_threshold"), ("--nms_threshold", "iou_threshold")]
)
def test_spellings_of_the_reference_are_accepted(spelling, name):
    parser = make_parser(None)
    add_flags(parser, name)
    assert vars(parser.parse_args([spelling, "0.3"])) == {name: 0.3}


def test_flags_are_added_to_a_group_with_changed_arguments():
    parser = make_parser(None)
    add_flags(parser.add_argument_group("data"), "data_path", seed={"default": 7, "help": "seed of the split"})
    assert vars(parser.parse_args([])) == {"data_path": Path("datasets"), "seed": 7}
    assert "seed of the split" in parser.format_help()
    args = parser.parse_args(["--seed", "3", "--data_path", "d"])
    assert (args.seed, args.data_path) == (3, Path("d"))


def test_a_change_does_not_affect_other_parsers():
    add_flags(argparse.ArgumentParser(), seed={"default": 7})
    parser = make_parser(None)
    add_flags(parser, "seed")
    assert parser.parse_args([]).seed == 0


def test_unknown_shared_flag_is_a_programming_error():
    with pytest.raises(KeyError):
        add_flags(make_parser(None), "sede")


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        ([], (False, [])),
        (["--debug", "a.jpg"], (True, ["a.jpg"])),
        (["a.jpg", "--debug", "0"], (True, ["a.jpg", "0"])),
        (["--debug", "False", "a.jpg"], (False, ["a.jpg"])),
        (["--debug=no", "a.jpg"], (False, ["a.jpg"])),
    ],
)
def test_boolean_flag_leaves_positional_arguments_alone(args, expected):
    parser = make_parser(None)
    parser.add_argument("sources", nargs="*")
    parser.add_argument("--debug", **BOOLEAN, default=False)
    parsed = parser.parse_intermixed_args(args) if args[:1] == ["a.jpg"] else parser.parse_args(args)
    assert (parsed.debug, parsed.sources) == expected
