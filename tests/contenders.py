"""Contenders of the benchmark, for its tests."""

from pathlib import Path

import torch

from efficientdet.benchmark.workloads import Contender
from efficientdet.project import load_project

NOWHERE = Path("nowhere")


def contender(what: str, name: str, precision: str = "float32", **changes) -> Contender:
    """Return a contender of D0 at 128 x 128 with batches of two."""
    settings = {"project": load_project("coco"), "data_path": NOWHERE, "weights": NOWHERE, "num_workers": 0}
    return Contender(what, name, precision, 0, 128, 2, torch.device("cpu"), **{**settings, **changes})
