"""Contenders of the benchmark and their measurements, for its tests."""

from pathlib import Path

import torch

from efficientdet.benchmark.workloads import Contender
from efficientdet.project import load_project
from utils.measuring import Measured, Pass

NOWHERE = Path("nowhere")
MIB = 2**20


def contender(what: str, name: str, precision: str = "float32", **changes) -> Contender:
    """Return a contender of D0 at 128 x 128 with batches of two."""
    settings = {"project": load_project("coco"), "data_path": NOWHERE, "weights": NOWHERE, "num_workers": 0}
    return Contender(what, name, precision, 0, 128, 2, torch.device("cpu"), **{**settings, **changes})


def measured(*milliseconds: float, images: int = 1, share: float | None = None) -> Measured:
    """Return passes of these durations, after a first one of 2 s that took 30 MiB on top of 100."""
    first = Pass(2.0, None, 100 * MIB, 130 * MIB)
    passes = [Pass(ms / 1e3, share and share * ms / 1e3, 0, 0) for ms in milliseconds]
    return Measured(images, first, passes)
