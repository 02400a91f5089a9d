"""Findings as sentences and as groups."""

from pathlib import Path

from efficientdet.data.findings import Finding, format_full, format_short, group_by_kind


def finding(number: int = 1, level: str = "warning", kind: str = "odd boxes", advice: str = "look at it") -> Finding:
    return Finding(level, kind, Path("train/a.jpg"), f"annotation {number}", "is odd", advice)


def test_no_findings_have_no_groups():
    assert group_by_kind([]) == []


def test_a_finding_is_a_sentence():
    assert str(finding(7)) == "train/a.jpg: annotation 7 is odd: look at it"
    assert str(Finding("error", "", Path("a.json"), "", "is empty", "fill it")) == "a.json is empty: fill it"


def test_errors_come_first_then_kinds_in_order_of_appearance():
    first, second, error, third = finding(1), finding(2, kind="other"), finding(3, "error"), finding(4)
    assert group_by_kind([first, second, error, third]) == [[error], [first, third], [second]]


def test_findings_with_different_advice_are_different_groups():
    assert len(group_by_kind([finding(1), finding(2, advice="leave it")])) == 2


def test_short_format():
    assert format_short([finding(1)]) == "train/a.jpg: annotation 1 is odd: look at it"
    assert format_short([finding(1), finding(2)]).endswith("annotation 1 is odd: look at it (the first of 2 odd boxes)")


def test_full_format():
    group = [finding(number) for number in range(1, 1204)]
    assert list(format_full(group, 2)) == [
        "warning: odd boxes: 1,203",
        "  train/a.jpg: annotation 1 is odd",
        "  train/a.jpg: annotation 2 is odd",
        "  and 1,201 more (--all lists them)",
        "  -> look at it",
    ]
    assert len(list(format_full(group, None))) == 1205
    assert list(format_full(group[:1], 2))[1:] == ["  train/a.jpg: annotation 1 is odd", "  -> look at it"]
