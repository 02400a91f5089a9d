"""Processes that wait for each other."""

import os
import subprocess
import sys

import pytest
from scripts import REPOSITORY

SCRIPT = """
import pathlib, sys, time, torch
from utils import distributed

with distributed.process_group(torch.device("cpu")):
    file = pathlib.Path(sys.argv[1])
    if distributed.rank() == 0:
        time.sleep(0.5)
        file.touch()
    assert distributed.any_rank() == []
    assert file.exists()
    assert distributed.any_rank(distributed.rank() == 1, False) == [True, False]
"""


@pytest.mark.slow
def test_processes_wait_for_each_other_even_without_flags(tmp_path):
    (tmp_path / "script.py").write_text(SCRIPT)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    run = subprocess.run(
        [*launcher, tmp_path / "script.py", tmp_path / "file"],
        env={**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert run.returncode == 0, run.stderr
