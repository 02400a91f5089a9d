"""Fine-tuning by the printed command: thirty steps teach a new class header to find objects."""

import csv
import math

from scripts import SMALL, assert_succeeded, run_main

import train
from efficientdet.checkpoints.loading import read_state_dict
from efficientdet.model.network import CLASS_HEADER
from efficientdet.project import SHAPES_WEIGHTS

PRIOR = -math.log(99)


def test_thirty_steps_from_weights_of_other_classes_find_objects(shapes_project):
    flags = ("-p", "drawn", *SMALL, "-n", "0", "--recipe", "quick", "--batch_size", "6", "--num_epochs", "30")
    run = run_main(train, *flags, "--val_interval", "30", "-w", str(SHAPES_WEIGHTS), cwd=shapes_project.root)
    assert_succeeded(run)
    assert "has other classes: new class header for 2" in run.stdout
    folder = shapes_project.root / "logs/drawn"
    bias = read_state_dict(folder / "efficientdet-d0_best.pth")[f"{CLASS_HEADER}.conv.bias"]
    assert (bias - PRIOR).abs().mean() > 0.05
    *_, last = csv.DictReader((folder / "history.csv").open())
    assert float(last["AP50"]) > 0.5
