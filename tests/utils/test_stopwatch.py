"""Seconds by activity."""

import time

import pytest

from utils.stopwatch import Stopwatch


def test_new_stopwatch_has_no_activities():
    assert Stopwatch().seconds == {}


def test_alternating_activities_accumulate(monkeypatch):
    times = iter([0.0, 1.0, 5.0, 5.5, 7.0, 9.0])
    monkeypatch.setattr(time, "perf_counter", lambda: next(times))
    stopwatch = Stopwatch()
    for activity in ("loading", "network", "loading"):
        with stopwatch.measuring(activity):
            pass
    assert stopwatch.seconds == {"loading": 3.0, "network": 0.5}
    assert list(stopwatch.seconds) == ["loading", "network"]


def test_failed_block_is_not_counted():
    stopwatch = Stopwatch()
    with pytest.raises(ZeroDivisionError), stopwatch.measuring("loading"):
        _ = 1 / 0
    assert stopwatch.seconds == {}


def test_summary_has_the_rate_and_the_shares():
    stopwatch = Stopwatch()
    stopwatch.seconds = {"loading": 0.5, "network": 1.5}
    summary = stopwatch.summary(6)
    for part in ("6 images", "2.0 s", "3.0", "loading 25%", "network 75%"):
        assert part in summary
