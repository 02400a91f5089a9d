"""Contenders take turns, each in its own process, and the time and memory of each pass are measured."""

import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest
import torch

from utils import measuring
from utils.errors import InputError
from utils.measuring import Measured, Pass, Workload, matmul_speed, measure
from utils.stopwatch import Stopwatch

CPU = torch.device("cpu")
MIB = 2**20


def sleeper(name: str, journal: Path) -> Workload:
    """Write a name down, take 20 ms and, for that time, 64 MiB."""
    stopwatch = Stopwatch()

    def run_once() -> None:
        with journal.open("a") as file:
            file.write(name)
        taken = bytearray(os.urandom(1)) * (64 * MIB)
        with stopwatch.measuring("post-processing"):
            time.sleep(0.02)
        del taken

    return Workload(run_once, 3, CPU, stopwatch)


def hungry() -> Workload:
    """Run out of memory in the second pass."""
    passes = iter(range(10))

    def run_once() -> None:
        if next(passes) == 1:
            torch.empty(2**60, dtype=torch.uint8)

    return Workload(run_once, 1, CPU)


def killed() -> Workload:
    """End as if killed by a system that is short of memory."""
    return Workload(lambda: os.kill(os.getpid(), signal.SIGKILL), 1, CPU)


def without_room() -> Workload:
    raise MemoryError


def mistaken() -> Workload:
    raise InputError("datasets/nowhere does not exist")


def broken() -> Workload:
    os._exit(7)


def long_pass(journal: Path) -> Workload:
    """Write the number of the process down and take a minute."""

    def run_once() -> None:
        journal.write_text(str(os.getpid()))
        time.sleep(60)

    return Workload(run_once, 1, CPU)


def test_no_contenders():
    measured = {}
    measure({}, "nobody", measured)
    assert measured == {}


def test_the_median_of_no_passes_is_unknown():
    assert Measured().median is None
    assert Measured(passes=[Pass(seconds, None, 0, 0) for seconds in (1.0, 5.0, 2.0)]).median == 2.0


@pytest.mark.slow
def test_contenders_take_turns_and_drop_out_when_memory_runs_out(tmp_path):
    journal, measured = tmp_path / "journal", {}
    makers = {
        "a": partial(sleeper, "a", journal),
        "hungry": hungry,
        "killed": killed,
        "without room": without_room,
        "b": partial(sleeper, "b", journal),
    }
    measure(makers, "five", measured, runs=2)
    assert journal.read_text() == 4 * "ab"  # the first pass, the warm-up, and two that count
    assert list(measured) == list(makers)
    for found in (measured["a"], measured["b"]):
        assert (found.images, len(found.passes), found.out_of_memory) == (3, 2, False)
        for result in (found.first, *found.passes):
            assert 0.02 <= result.postprocessing_seconds < result.seconds < 2
            assert 60 * MIB < result.bytes_at_peak - result.bytes_before < 80 * MIB
    assert measured["hungry"].out_of_memory
    assert measured["hungry"].first is not None and not measured["hungry"].passes
    for name in ("killed", "without room"):
        assert measured[name].out_of_memory and measured[name].first is None


@pytest.mark.slow
def test_rounds_beyond_the_minimum_start_only_while_there_is_time(tmp_path, monkeypatch):
    monkeypatch.setattr(measuring, "MAX_SECONDS", 0.0)
    measured, journal = {}, tmp_path / "journal"
    measure({"a": partial(sleeper, "a", journal)}, "slow", measured)
    assert len(measured["a"].passes) == measuring.MIN_RUNS
    assert journal.read_text() == (2 + measuring.MIN_RUNS) * "a"


@pytest.mark.slow
def test_an_input_error_of_a_contender_is_raised():
    with pytest.raises(InputError, match="datasets/nowhere"):
        measure({"mistaken": mistaken}, "one", {})


@pytest.mark.slow
def test_any_other_death_of_a_process_is_an_error():
    with pytest.raises(RuntimeError, match="status 7"):
        measure({"broken": broken}, "one", {})


@pytest.mark.slow
def test_a_process_ends_with_its_parent(tmp_path):
    journal = tmp_path / "journal"
    code = (
        "import sys; sys.path[:0] = sys.argv[2:]; from pathlib import Path; from functools import partial\n"
        "import test_measuring as t\n"
        "t.measure({'a': partial(t.long_pass, Path(sys.argv[1]))}, 'long', {})\n"
    )
    here = Path(__file__).resolve().parent
    parent = subprocess.Popen([sys.executable, "-c", code, str(journal), str(here), str(here.parent)])
    assert eventually(lambda: journal.exists() and journal.read_text())
    parent.kill()
    parent.wait()
    child = Path("/proc", journal.read_text())
    assert eventually(lambda: not child.exists())


def eventually(condition) -> bool:
    """Return whether a condition becomes true within half a minute."""
    deadline = time.monotonic() + 30
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.05)
    return bool(condition())


def test_matrix_multiplication_has_a_plausible_speed():
    assert 1e8 < matmul_speed(CPU, torch.float32) < 1e14
