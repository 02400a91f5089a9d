"""Contenders take turns in processes of their own, and what each pass took is told."""

import math
import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest
import torch

from utils.errors import InputError
from utils.measuring import Rounds, Workload, measure

CPU = torch.device("cpu")
MIB = 2**20
EXACTLY_TWO = Rounds(warmup=1, least=2, most=2, seconds=math.inf)


def sleeper(name: str, journal: Path) -> Workload:
    """Writes its name down, takes 20 ms and, for that time, 64 MiB."""

    def run_once() -> float:
        with journal.open("a") as file:
            file.write(name)
        taken = bytearray(os.urandom(1)) * (64 * MIB)
        time.sleep(0.02)
        del taken
        return 0.005

    return Workload(run_once, 3, CPU)


def hungry() -> Workload:
    """Runs out of memory at its second pass."""
    passes = iter(range(10))

    def run_once() -> None:
        if next(passes) == 1:
            torch.empty(2**60, dtype=torch.uint8)

    return Workload(run_once, 1, CPU)


def killed() -> Workload:
    """As by a system that is short of memory."""
    return Workload(lambda: os.kill(os.getpid(), signal.SIGKILL), 1, CPU)


def without_room() -> Workload:
    raise MemoryError


def mistaken() -> Workload:
    raise InputError("datasets/nowhere is not there")


def broken() -> Workload:
    os._exit(7)


def test_nobody():
    measured = {}
    measure({}, EXACTLY_TWO, "nobody", measured)
    assert measured == {}


def test_contenders_take_turns_and_memory_ends_some(tmp_path):
    journal, measured = tmp_path / "journal", {}
    contenders = {
        "a": partial(sleeper, "a", journal),
        "hungry": hungry,
        "killed": killed,
        "without room": without_room,
        "b": partial(sleeper, "b", journal),
    }
    measure(contenders, EXACTLY_TWO, "five", measured)
    assert journal.read_text() == 4 * "ab"  # the first passes, the warm-up, and two that count
    assert list(measured) == list(contenders)
    for name in "ab":
        of = measured[name]
        assert (of.images, len(of.passes), of.out_of_memory) == (3, 2, False)
        for result in (of.first, *of.passes):
            assert 0.02 <= result.seconds < 2
            assert result.postprocessing_seconds == 0.005
            assert 60 * MIB < result.bytes_at_peak - result.bytes_before < 80 * MIB
    assert measured["hungry"].out_of_memory
    assert measured["hungry"].first is not None and not measured["hungry"].passes
    for name in ("killed", "without room"):
        assert measured[name].out_of_memory and measured[name].first is None


def test_a_round_beyond_the_least_needs_time(tmp_path):
    measured = {}
    rounds = Rounds(warmup=1, least=3, most=1000, seconds=0.0)
    measure({"a": partial(sleeper, "a", tmp_path / "journal")}, rounds, "slow", measured)
    assert len(measured["a"].passes) == 3
    assert (tmp_path / "journal").read_text() == 5 * "a"


def test_a_mistake_of_the_user_is_told_as_such():
    with pytest.raises(InputError, match="datasets/nowhere is not there"):
        measure({"mistaken": mistaken}, EXACTLY_TWO, "one", {})


def test_another_end_of_a_process_is_a_fault():
    with pytest.raises(RuntimeError, match="status 7"):
        measure({"broken": broken}, EXACTLY_TWO, "one", {})


def long_pass(journal: Path) -> Workload:
    """Tells the number of its process and takes a minute."""

    def run_once() -> None:
        journal.write_text(str(os.getpid()))
        time.sleep(60)

    return Workload(run_once, 1, CPU)


def test_a_process_ends_with_its_parent(tmp_path):
    journal = tmp_path / "journal"
    code = (
        "import sys; sys.path[:0] = sys.argv[2:]; from pathlib import Path; from functools import partial\n"
        "import test_measuring as t\n"
        "t.measure({'a': partial(t.long_pass, Path(sys.argv[1]))}, t.EXACTLY_TWO, 'long', {})\n"
    )
    here = Path(__file__).resolve().parent
    parent = subprocess.Popen([sys.executable, "-c", code, str(journal), str(here), str(here.parent)])
    assert eventually(lambda: journal.exists() and journal.read_text())
    parent.kill()
    parent.wait()
    child = Path("/proc", journal.read_text())
    assert eventually(lambda: not child.exists())


def eventually(happens) -> bool:
    """Whether it does, within half a minute."""
    deadline = time.monotonic() + 30
    while not happens() and time.monotonic() < deadline:
        time.sleep(0.05)
    return bool(happens())
