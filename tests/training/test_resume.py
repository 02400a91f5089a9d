"""An interrupted run, continued with `--load_weights last`, equals the run that was never interrupted, bit for bit."""

import hashlib
import os
import signal
import struct
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from scripts import TRAIN, assert_succeeded, command, edit_annotations, run_script, write_shapes_project
from tensorboardX.proto.event_pb2 import Event

# Everything that holds state at once: optimizer moments, averaged weights, a schedule, two workers, accumulation,
# drop-connect, random scales.
RUN = (
    *(*TRAIN, "-n", "2", "--num_epochs", "2", "--save_interval", "2", "--keep", "0"),
    *("--recipe", "official", "--optim", "adamw", "--accumulate", "2"),
)
WHOLE = (*RUN, "--amp", "bf16")
LOSS_SCALE = (*RUN, "--amp", "fp16", "--head_only")  # whole networks take a minute in float16 on a CPU
REPEATED = 4


def repeat_images(content: dict) -> None:
    """Six images under four ids each: six steps of four in an epoch."""
    images, annotations = content["images"], content["annotations"]
    content["images"] = [{**image, "id": image["id"] + 1000 * n} for n in range(REPEATED) for image in images]
    content["annotations"] = [
        {**annotation, "id": 1000 * n + annotation["id"], "image_id": annotation["image_id"] + 1000 * n}
        for n in range(REPEATED)
        for annotation in annotations
    ]


def digest(value: object) -> str:
    """A hash of nested dicts and lists of tensors and plain values, bit for bit."""
    sha = hashlib.sha256()

    def add(value: object) -> None:
        if isinstance(value, torch.Tensor):
            sha.update(f"{value.dtype}{tuple(value.shape)}".encode())
            sha.update(value.contiguous().view(-1).view(torch.uint8).numpy().tobytes() if value.numel() else b"")
        elif isinstance(value, dict):
            for key in value:
                add(key)
                add(value[key])
        elif isinstance(value, list | tuple):
            for entry in value:
                add(entry)
        else:
            sha.update(repr(value).encode())

    add(value)
    return sha.hexdigest()


def scalars(folder: Path) -> dict[tuple[str, int], list[float]]:
    """Tag and step -> what the TensorBoard files of a run say, in the order of writing."""
    found: dict[tuple[str, int], list[float]] = {}
    for path in sorted(folder.glob("events.out.tfevents.*"), key=lambda path: path.stat().st_mtime):
        for event in events(path):
            for value in event.summary.value:
                if value.HasField("simple_value"):
                    found.setdefault((value.tag, event.step), []).append(value.simple_value)
    return found


def events(path: Path) -> Iterator[Event]:
    """The records of an event file; one cut short by a kill ends it."""
    data, position = path.read_bytes(), 0
    while position + 12 <= len(data):
        (length,) = struct.unpack_from("<Q", data, position)
        if position + 16 + length > len(data):
            return
        yield Event.FromString(data[position + 12 : position + 12 + length])
        position += 16 + length


def outcome(root: Path) -> SimpleNamespace:
    logs = root / "logs" / "drawn"
    state = torch.load(logs / "efficientdet-d0_last.state", weights_only=True)
    return SimpleNamespace(
        updates=state["average"]["updates"],
        digests={key: digest(value) for key, value in state.items() if key != "written"},
        history=(logs / "history.csv").read_text(),
        curves=scalars(logs / "tensorboard"),
        weights=digest(torch.load(logs / "efficientdet-d0_2_12.pth", weights_only=True)),
    )


def start(folder: Path) -> SimpleNamespace:
    project = write_shapes_project(folder)
    edit_annotations(project.data, "train", repeat_images)
    return project


def interrupt(root: Path, checkpoint: str, how: int, args: tuple) -> None:
    """Start the run and send it the signal `how` as soon as the weights file `checkpoint` is there."""
    process = subprocess.Popen(
        command(*args), cwd=root, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    try:
        deadline = time.monotonic() + 300
        while not (root / "logs/drawn" / checkpoint).is_file():
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.005)
        if how == signal.SIGKILL:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait(timeout=100)
        else:
            process.send_signal(how)
            assert process.wait(timeout=100) == 0
    finally:
        process.kill()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("flags", "interruptions"),
    [
        (LOSS_SCALE, [("efficientdet-d0_0_2.pth", signal.SIGINT)]),
        (WHOLE, [("efficientdet-d0_0_4.pth", signal.SIGKILL), ("efficientdet-d0_1_8.pth", signal.SIGTERM)]),
    ],
    ids=["Ctrl+C in the first epoch", "kill -9, then SIGTERM in the second epoch"],
)
def test_an_interrupted_run_equals_an_uninterrupted_one(tmp_path, flags, interruptions):
    whole = start(tmp_path / "uninterrupted")
    assert_succeeded(run_script(*flags, cwd=whole.root))
    uninterrupted = outcome(whole.root)
    # In float16, the first of the twelve steps overflow until the loss scale is low enough.
    assert (0 < uninterrupted.updates <= 12) if flags == LOSS_SCALE else (uninterrupted.updates == 12)

    project = start(tmp_path / "interrupted")
    args = flags
    for checkpoint, how in interruptions:
        interrupt(project.root, checkpoint, how, args)
        args = (*flags, "-w", "last")
        state = torch.load(project.root / "logs/drawn/efficientdet-d0_last.state", weights_only=True)
        assert state["progress"]["step"] < 12  # it was interrupted before its end
    assert_succeeded(run_script(*args, cwd=project.root))

    resumed = outcome(project.root)
    assert resumed.digests == uninterrupted.digests
    assert resumed.weights == uninterrupted.weights
    assert resumed.history == uninterrupted.history
    # Steps after the last save before a kill are made twice, with the same figures.
    assert resumed.curves.keys() == uninterrupted.curves.keys()
    for key, values in resumed.curves.items():
        assert {repr(value) for value in values} == {repr(value) for value in uninterrupted.curves[key]}, key


def test_the_digest_sees_a_single_bit():
    state = {"weights": torch.zeros(3), "steps": [1, 2]}
    assert digest(state) == digest({"weights": torch.zeros(3), "steps": [1, 2]})
    assert digest(state) != digest({"weights": torch.tensor([0.0, -0.0, 0.0]), "steps": [1, 2]})
    assert digest(state) != digest({"weights": torch.zeros(3), "steps": [1, 3]})
