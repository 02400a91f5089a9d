"""train.py with the recipe quick: runs of some steps or minutes, and the averaged weights that they leave."""

import csv
import re
from types import SimpleNamespace

import pytest
import torch
from scripts import TRAIN, assert_one_error, assert_succeeded, run_main, write_shapes_project

import coco_eval
import train
from efficientdet.checkpoints.loading import read_state_dict

QUICK = (*TRAIN[1:], "--recipe", "quick", "--amp", "off")


def history(project: SimpleNamespace) -> list[dict[str, str]]:
    with (project.root / "logs/drawn/history.csv").open() as file:
        return list(csv.DictReader(file))


def state_of(project: SimpleNamespace) -> dict:
    return torch.load(project.root / "logs/drawn/efficientdet-d0_last.state", weights_only=True)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A project trained for seven steps: three epochs of three steps, validated after the last alone."""
    project = write_shapes_project(tmp_path_factory.mktemp("quick"))
    run = run_main(train, *QUICK, "--num_steps", "7", "--val_interval", "2", cwd=project.root)
    assert_succeeded(run)
    return SimpleNamespace(project=project, run=run)


def test_steps_become_epochs(finished):
    assert "9 steps (3 epochs)" in finished.run.stdout and "recipe quick, muon" in finished.run.stdout
    progress = state_of(finished.project)["progress"]
    assert (progress["epoch"], progress["step"]) == (3, 9)


def test_last_epoch_is_validated(finished):
    assert [bool(row["val_loss"]) for row in history(finished.project)] == [False, True, True]


def test_weights_files_hold_the_average(finished):
    state, folder = state_of(finished.project), finished.project.root / "logs/drawn"
    average = state["average"]["network"]
    key = "classifier.header.pointwise_conv.conv.weight"
    assert not torch.equal(state["network"][key], average[key])
    saved = read_state_dict(folder / "efficientdet-d0_3_9.pth")
    from_state = read_state_dict(folder / "efficientdet-d0_last.state")
    assert saved.keys() == from_state.keys() == average.keys()
    for name, value in average.items():
        assert torch.equal(saved[name], value) and torch.equal(from_state[name], value), name


def test_statistics_of_the_average_are_its_own(finished):
    average = state_of(finished.project)["average"]["network"]
    # After nine updates a moving average of statistics with momentum 0.01 would still be close to where it began.
    assert (average["backbone_net.model._bn0.running_var"] - 1).abs().mean() > 0.2


def test_finished_run_is_over(finished):
    run = run_main(train, *QUICK, "--num_steps", "7", "-w", "last", cwd=finished.project.root)
    assert_one_error(run, "3 epochs", "--num_epochs")


def test_last_is_evaluated(finished):
    args = (*TRAIN[1:3], "--image_size", "128", "-n", "0", "-w", "last")
    assert_succeeded(run_main(coco_eval, *args, cwd=finished.project.root))


@pytest.mark.slow
def test_minutes_end_a_run_within_an_epoch_and_more_minutes_resume_it(shapes_project):
    first = run_main(train, *QUICK, "--minutes", "0.01", cwd=shapes_project.root)
    assert_succeeded(first)
    assert "0.01 minutes" in first.stdout
    progress = state_of(shapes_project)["progress"]
    assert progress["seconds"] >= 0.6 and progress["epoch"] >= 1
    assert_one_error(
        run_main(train, *QUICK, "--minutes", "0.01", "-w", "last", cwd=shapes_project.root), "0.01 minutes", "--minutes"
    )
    minutes = f"{progress['seconds'] / 60 + 0.1:.3f}"
    second = run_main(train, *QUICK, "--minutes", minutes, "-w", "last", cwd=shapes_project.root)
    assert_succeeded(second)
    assert state_of(shapes_project)["progress"]["step"] > progress["step"]
    assert len(history(shapes_project)) > progress["epoch"]
    rates = [float(rate) for rate in re.findall(r"lr ([\d.e-]+)", second.stderr)]
    assert rates[-1] < 0.3 * max(rates)
