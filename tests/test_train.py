"""train.py as users run it: progress, checkpoints, resuming, stopping."""

import contextlib
import csv
import fcntl
import os
import pty
import re
import signal
import struct
import subprocess
import termios
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from scripts import (
    TRAIN,
    assert_one_error,
    assert_succeeded,
    command,
    edit_annotations,
    run_main,
    run_script,
    untrained,
    write_shapes_project,
    write_weights,
)

import train
from utils.images import read_image

FLAGS = TRAIN[1:]
REPEATED = 40  # how often the long epoch has each image


def read(path: Path) -> dict:
    return torch.load(path, weights_only=True)


def checkpoints(project: SimpleNamespace) -> set[str]:
    return {path.name for path in (project.root / "logs" / "drawn").glob("*.pth")}


def last_state(project: SimpleNamespace) -> dict:
    return read(project.root / "logs" / "drawn" / "efficientdet-d0_last.state")


def adam_steps(state: dict) -> set[int]:
    """How many updates the optimizer has counted, over all parameters."""
    return {int(moments["step"]) for moments in state["optimizer"]["state"].values()}


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> SimpleNamespace:
    """A project whose training ran for two epochs of three steps, with debug images, then was resumed for a third."""
    project = write_shapes_project(tmp_path_factory.mktemp("finished"))
    first = run_script(*TRAIN, "--num_epochs", "2", "--save_interval", "2", "--keep", "0", "--debug", cwd=project.root)
    first_state = last_state(project)
    second = run_main(train, *FLAGS, "--num_epochs", "3", "-n", "1", "--keep", "0", "-w", "last", cwd=project.root)
    return SimpleNamespace(project=project, first=first, first_state=first_state, second=second)


def test_training_prints_steps_losses_learning_rate_and_image_rate(finished):
    assert_succeeded(finished.first)
    assert re.search(
        r"epoch 2/2 100% +\d+\.\d+img/s, step 6, class \d+\.\d+, box \d+\.\d+, lr 0\.0001", finished.first.stderr
    )
    for epoch in (1, 2):
        assert re.search(rf"^epoch {epoch}: train loss \d.*; validation loss \d", finished.first.stdout, re.MULTILINE)


def test_training_begins_with_a_report_of_data_anchors_and_settings(finished):
    shown = finished.first.stdout
    assert "train: 6 images (" in shown and "val: 3 images (" in shown
    assert re.search(r"^  square \d+, disc \d+$", shown, re.MULTILINE)
    assert re.search(r"% of the boxes .* at 128 x 128", shown)
    assert re.search(r"^D0 at 128 x 128 on cpu, b?float(32|16): 3,8", shown, re.MULTILINE)
    assert "trainable parameters, 2 images per step" in shown
    assert "recipe reference, adamw with lr 0.0001" in shown
    assert "logs/drawn/history.csv" in shown and "tensorboard --logdir logs/drawn" in shown


def test_history_and_curves_cover_both_parts_of_the_run(finished):
    with open(finished.project.root / "logs/drawn/history.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["epoch"], row["step"]) for row in rows] == [("1", "3"), ("2", "6"), ("3", "9")]
    for row in rows:
        assert float(row["train_loss"]) == pytest.approx(float(row["train_class"]) + float(row["train_box"]))
        assert 0 <= float(row["AP"]) <= 1
    assert read_image(finished.project.root / "logs/drawn/curves.png").shape[2] == 3


def test_the_best_by_average_precision_is_kept(finished):
    best = read(finished.project.root / "logs/drawn/efficientdet-d0_best.pth")
    untrained().load_state_dict(best, strict=True)
    assert "best AP so far" in finished.first.stdout


@pytest.mark.slow
def test_a_terminal_of_80_columns_shows_steps_losses_learning_rate_and_image_rate(shapes_project):
    master, terminal = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    training = subprocess.Popen(
        command(*TRAIN, "--num_epochs", "1"), cwd=shapes_project.root, stdout=subprocess.DEVNULL, stderr=terminal
    )
    os.close(terminal)
    shown = b""
    with contextlib.suppress(OSError):  # how Linux reports that the last writer has closed the terminal
        while part := os.read(master, 4096):
            shown += part
    os.close(master)
    assert training.wait() == 0, shown
    lines = re.split(r"[\r\n]+", shown.decode())
    assert max(map(len, lines)) <= 80
    pattern = r"epoch 1/1 100% +\d+\.\d+img/s, step 3, class \d+\.\d+, box \d+\.\d+, lr 0\.0001 "
    assert any(re.match(pattern, line) for line in lines), lines


def test_checkpoint_is_a_plain_state_dict_that_loads_strictly(finished):
    assert "efficientdet-d0_2_6.pth" in checkpoints(finished.project)
    weights = read(finished.project.root / "logs/drawn/efficientdet-d0_2_6.pth")
    untrained().load_state_dict(weights, strict=True)
    assert all(torch.isfinite(value).all() for value in weights.values())


def test_save_interval_counts_steps(finished):
    assert {"efficientdet-d0_0_2.pth", "efficientdet-d0_1_4.pth"} <= checkpoints(finished.project)


def test_training_changes_the_weights_and_the_batch_norm_statistics(finished):
    before, after = untrained().state_dict(), read(finished.project.root / "logs/drawn/efficientdet-d0_2_6.pth")
    for key in ("backbone_net.model._conv_stem.conv.weight", "backbone_net.model._bn0.running_mean"):
        assert not torch.equal(before[key], after[key])


def test_tensorboard_files_are_written(finished):
    events = list((finished.project.root / "logs" / "drawn").rglob("events.out.tfevents.*"))
    assert events and all(file.stat().st_size > 100 for file in events)


def test_debug_draws_every_training_image(finished):
    drawn = {path.name for path in (finished.project.root / "test").iterdir()}
    assert drawn == {f"drawn_{image_id}.jpg" for image_id in finished.project.train_ids}


def test_training_leaves_no_temporary_files(finished):
    assert not list(finished.project.root.rglob("*.tmp"))


@pytest.mark.oldest
def test_last_resumes_epoch_step_optimizer_and_schedule(finished):
    assert_succeeded(finished.second)
    assert re.search(r"resuming logs/drawn/efficientdet-d0_last\.state: epoch 3, step 6", finished.second.stdout)
    assert re.search(r"epoch 3/3 .*step 9,", finished.second.stderr)
    assert "epoch 1/3" not in finished.second.stderr
    assert "efficientdet-d0_3_9.pth" in checkpoints(finished.project)

    assert adam_steps(finished.first_state) == {6}
    assert finished.first_state["learning_rate"]["plateau"]["last_epoch"] == 2
    state = last_state(finished.project)
    assert adam_steps(state) == {9}
    assert state["learning_rate"]["plateau"]["last_epoch"] == 3
    assert (state["progress"]["epoch"], state["progress"]["step"], state["progress"]["images_in_epoch"]) == (3, 9, 0)
    assert state["progress"]["best_score"] >= finished.first_state["progress"]["best_score"]


def test_last_with_all_epochs_done_asks_for_more(finished):
    run = run_main(train, *FLAGS, "--num_epochs", "3", "-w", "last", cwd=finished.project.root)
    assert_one_error(run, "3 epochs", "--num_epochs")


def test_last_with_another_optimizer_is_refused(finished):
    run = run_main(train, *FLAGS, "--num_epochs", "9", "-w", "last", "--optim", "sgd", cwd=finished.project.root)
    assert_one_error(run, "--optim adamw")


def run_until_step(project: SimpleNamespace, args: tuple, more_than: int, stop) -> subprocess.CompletedProcess[str]:
    """Train in a process group of its own, as a terminal starts it; `stop(process)` once the step is past a number."""
    process = subprocess.Popen(
        command(*args),
        cwd=project.root,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    stderr = b""
    try:
        os.set_blocking(process.stderr.fileno(), False)
        deadline = time.monotonic() + 200
        while not any(int(step) > more_than for step in re.findall(rb", step (\d+),", stderr)):
            assert process.poll() is None and time.monotonic() < deadline, stderr.decode()
            stderr += process.stderr.read() or b""
            time.sleep(0.02)
        os.set_blocking(process.stderr.fileno(), True)
        stop(process)
        stdout, rest = process.communicate(timeout=100)
    finally:
        process.kill()
    return subprocess.CompletedProcess(process.args, process.returncode, stdout.decode(), (stderr + rest).decode())


def repeat_images(content: dict) -> None:
    """Make an epoch long enough to be interrupted: every image under many ids."""
    images, annotations = content["images"], content["annotations"]
    content["images"] = [{**image, "id": image["id"] + 1000 * n} for n in range(REPEATED) for image in images]
    content["annotations"] = [
        {**annotation, "id": None, "image_id": annotation["image_id"] + 1000 * n}
        for n in range(REPEATED)
        for annotation in annotations
    ]


@pytest.fixture(scope="module")
def interrupted(tmp_path_factory) -> SimpleNamespace:
    """Training that Ctrl+C stopped within its first epoch, then SIGTERM, then SIGTERM to workers too.

    Each time it was resumed from `last`. `states` are the training states left behind.
    """
    project = write_shapes_project(tmp_path_factory.mktemp("interrupted"))
    edit_annotations(project.data, "train", repeat_images)
    args = (*TRAIN, "-n", "2", "--debug")
    runs, states, step = [], [], 2
    for number, stop in enumerate(
        (
            lambda process: os.killpg(process.pid, signal.SIGINT),  # the terminal's Ctrl+C reaches the workers too
            lambda process: process.send_signal(signal.SIGTERM),
            lambda process: os.killpg(process.pid, signal.SIGTERM),  # as `timeout` and job schedulers do
        )
    ):
        runs.append(run_until_step(project, (*args, "-w", "last") if number else args, step, stop))
        states.append(last_state(project))
        step = states[-1]["progress"]["step"]
    return SimpleNamespace(project=project, runs=runs, states=states)


@pytest.mark.slow
@pytest.mark.parametrize("number", [0, 1, 2], ids=["Ctrl+C", "SIGTERM", "SIGTERM-to-the-group"])
def test_signal_saves_and_says_how_to_resume(interrupted, number):
    run, state = interrupted.runs[number], interrupted.states[number]
    assert_succeeded(run)
    assert "error" not in run.stderr.lower()
    step = state["progress"]["step"]
    assert f"saved logs/drawn/efficientdet-d0_0_{step}.pth" in run.stdout
    assert "--load_weights last" in run.stdout.splitlines()[-1]
    assert f"efficientdet-d0_0_{step}.pth" in checkpoints(interrupted.project)
    assert state["progress"]["epoch"] == 0
    assert 0 < state["progress"]["images_in_epoch"] == 2 * step < 6 * REPEATED
    assert adam_steps(state) == {step}


@pytest.mark.slow
def test_resuming_within_an_epoch_takes_the_remaining_images(interrupted):
    for number in (1, 2):
        before, after = (interrupted.states[n]["progress"] for n in (number - 1, number))
        assert f"efficientdet-d0_last.state: epoch 1, step {before['step']}\n" in interrupted.runs[number].stdout
        assert after["step"] > before["step"]
        left = 6 * REPEATED - before["images_in_epoch"]
        assert re.search(rf"epoch 1/500 .*/{left} ", interrupted.runs[number].stderr)
    # --debug draws each image that a step sees: as many files as images in the epoch means that none came twice.
    drawn = list((interrupted.project.root / "test").iterdir())
    assert len(drawn) == interrupted.states[-1]["progress"]["images_in_epoch"]


@pytest.mark.slow
def test_checkpointed_activations_train_the_same_weights_bit_for_bit(finished, shapes_project):
    args = (*TRAIN, "--save_interval", "2", "--keep", "0", "--checkpoint_activations")
    assert_succeeded(run_script(*args, "--num_epochs", "1", cwd=shapes_project.root))
    assert_succeeded(run_script(*args, "--num_epochs", "2", "-w", "last", cwd=shapes_project.root))
    weights = "logs/drawn/efficientdet-d0_2_6.pth"
    expected = read(finished.project.root / weights)
    torch.testing.assert_close(read(shapes_project.root / weights), expected, rtol=0, atol=0)


def test_head_only_leaves_backbone_and_bifpn_unchanged(shapes_project):
    weights = write_weights(shapes_project.root / "start.pth")
    args = ("--num_epochs", "1", "--head_only", "True", "--lr", "1e-2", "-w", weights)
    assert_succeeded(run_main(train, *FLAGS, *args, cwd=shapes_project.root))
    before, after = read(weights), read(shapes_project.root / "logs/drawn/efficientdet-d0_1_3.pth")
    changed = {key for key in before if not torch.equal(before[key], after[key])}
    assert changed and {key.split(".")[0] for key in changed} == {"regressor", "classifier"}
    assert any(key.endswith("running_mean") for key in changed)


def test_head_only_false_and_sgd(shapes_project):
    args = ("--num_epochs", "1", "--head_only", "False", "--optim", "sgd", "--max_images", "2")
    assert_succeeded(run_main(train, *FLAGS, *args, cwd=shapes_project.root))
    state = last_state(shapes_project)
    assert state["settings"] == {"optim": "sgd", "decay_kernels_only": False, "head_only": False}
    moments = state["optimizer"]["state"]
    assert len(moments) == len(list(untrained().parameters()))
    assert all(set(moment) == {"momentum_buffer"} for moment in moments.values())


def test_weights_with_other_classes_get_a_new_class_header(shapes_project):
    weights = write_weights(shapes_project.root / "start.pth", num_classes=90)
    args = ("--num_epochs", "1", "-w", weights, "--max_images", "2", "--head_only")
    run = run_main(train, *FLAGS, *args, cwd=shapes_project.root)
    assert_succeeded(run)
    assert f"{weights} has other classes" in run.stdout
    (first_loss,) = re.findall(r"step 1, class (\d+\.\d+)", run.stderr)[:1]
    assert float(first_loss) < 10  # with a header that is not initialized for rare objects: hundreds
    assert last_state(shapes_project)["settings"]["head_only"] is True


@pytest.mark.slow
def test_early_stopping(shapes_project):
    args = ("--num_epochs", "9", "--es_patience", "1", "--es_min_delta", "1000", "--max_images", "2")
    run = run_main(train, *FLAGS, *args, cwd=shapes_project.root)
    assert_succeeded(run)
    assert "stopped early" in run.stdout and "epoch 3:" in run.stdout and "epoch 4:" not in run.stdout
    assert "efficientdet-d0_3_3.pth" in checkpoints(shapes_project)


@pytest.mark.slow
def test_early_stopping_waits_for_a_validation(shapes_project):
    args = ("--num_epochs", "4", "--val_interval", "4", "--es_patience", "1", "--max_images", "2")
    run = run_main(train, *FLAGS, *args, cwd=shapes_project.root)
    assert_succeeded(run)
    assert "epoch 4: train loss" in run.stdout and "stopped early" not in run.stdout


def test_more_gpus_than_there_are_is_one_clear_sentence(shapes_project):
    shapes_project.yml.write_text(shapes_project.yml.read_text().replace("num_gpus: 0", "num_gpus: 99"))
    run = run_main(train, *FLAGS, cwd=shapes_project.root)
    assert_one_error(run, "drawn.yml", "num_gpus: 99", f"finds {torch.cuda.device_count()} here")


@pytest.mark.parametrize(("flags", "named"), [((), "on a CPU"), (("--checkpoint_activations",), "activations")])
def test_useless_compilation_is_refused(shapes_project, flags, named):
    run = run_main(train, *FLAGS, "--compile", *flags, cwd=shapes_project.root)
    assert_one_error(run, "--compile", named)


@pytest.mark.slow
def test_official_recipe_with_accumulation_keeps_the_average_too(shapes_project):
    args = ("--num_epochs", "2", "--recipe", "official", "--accumulate", "3", "--freeze_bn", "--amp", "bf16")
    run = run_main(train, *FLAGS, *args, cwd=shapes_project.root)
    assert_succeeded(run)
    assert "bfloat16" in run.stdout
    assert "2 images x 3 batches per step, 2 steps (2 epochs), recipe official, sgd with lr 0.0075" in run.stdout
    state = last_state(shapes_project)
    assert state["progress"]["step"] == 2 and state["average"]["updates"] == 2
    name = "backbone_net.model._bn0.running_mean"
    assert not torch.any(state["network"][name])  # frozen where it began
    average = state["average"]["network"]
    assert any(not torch.equal(value, average[key]) for key, value in state["network"].items())


def test_a_loss_that_is_never_finite_stops_the_run(shapes_project):
    edit_annotations(shapes_project.data, "train", repeat_images)
    run = run_main(train, *FLAGS, "--num_epochs", "1", "--lr", "1e30", cwd=shapes_project.root)
    assert_one_error(run, "10 steps in a row", "images [", "--lr", "--warmup_epochs", "--clip_norm")
    assert len(re.findall(r"^step \d+ skipped", run.stdout, re.MULTILINE)) == 10
    assert ", 9 skipped" in run.stderr


def test_backbone_weights_are_loaded(shapes_project):
    backbone = untrained().backbone_net["model"].state_dict()
    published = {key.replace(".conv.", "."): value for key, value in backbone.items()}
    published |= {"_fc.weight": torch.zeros(1000, 1280), "_fc.bias": torch.zeros(1000)}
    published["_blocks.0._bn1.running_var"] += 1
    torch.save(published, shapes_project.root / "b0.pth")
    args = ("--num_epochs", "1", "--max_images", "2", "--lr", "1e-9", "--freeze_bn", "--backbone_weights", "b0.pth")
    run = run_main(train, *FLAGS, *args, cwd=shapes_project.root)
    assert_succeeded(run)
    loaded = last_state(shapes_project)["network"]["backbone_net.model._blocks.0._bn1.running_var"]
    assert torch.equal(loaded, published["_blocks.0._bn1.running_var"])


@pytest.mark.slow
def test_a_dead_worker_keeps_the_steps_made(shapes_project):
    edit_annotations(shapes_project.data, "train", repeat_images)

    def kill_the_workers(process: subprocess.Popen) -> None:
        for children in Path(f"/proc/{process.pid}/task").glob("*/children"):
            for child in map(int, children.read_text().split()):
                if "train.py" in Path(f"/proc/{child}/cmdline").read_text():
                    os.kill(child, signal.SIGKILL)

    run = run_until_step(shapes_project, (*TRAIN, "-n", "1"), 2, kill_the_workers)
    assert_one_error(run, "-n")
    assert last_state(shapes_project)["progress"]["step"] > 2
