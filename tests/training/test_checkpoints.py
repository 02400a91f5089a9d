"""The checkpoints of a run: which files are kept, what `last` holds, and what failures leave behind."""

import multiprocessing
import os
import random
import signal
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from scripts import untrained

from efficientdet.checkpoints.find import best_path, find_last, last_path
from efficientdet.checkpoints.loading import load_weights, read_state_dict
from efficientdet.model.network import EfficientDet
from efficientdet.training.checkpoints import Checkpoints, load_last
from utils.errors import InputError

LAST = "efficientdet-d0_last.state"

# A layer of three numbers replaces the network where its size does not matter.


def filled(value: float) -> torch.nn.Module:
    """Return a network with all tensors filled with `value`."""
    layer = torch.nn.Linear(2, 1)
    with torch.no_grad():
        for tensor in layer.state_dict().values():
            tensor.fill_(value)
    return layer


def save_steps(checkpoints: Checkpoints, *steps: int, mark: str = "") -> None:
    """Save at each of `steps`: network and state hold the number of the step, the state also holds `mark`."""
    for step in steps:
        checkpoints.save(filled(step), {"step": step, "mark": mark}, 0, step)


def assert_last(folder: Path, step: int, mark: str = "") -> None:
    """Assert that network and state of `last` are from that step."""
    state = load_last(folder, 0)
    assert (state["step"], state["mark"]) == (step, mark)
    assert {key: value.flatten().tolist() for key, value in state["network"].items()} == {
        "weight": [step, step],
        "bias": [step],
    }


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def weights_names(*steps: int) -> set[str]:
    return {f"efficientdet-d0_0_{step}.pth" for step in steps}


def assert_equal_weights(weights: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert list(weights) == list(expected)
    assert all(torch.equal(value, expected[key]) for key, value in weights.items())


def test_run_without_checkpoints_leaves_nothing(tmp_path):
    folder = tmp_path / "none"
    assert Checkpoints(folder, 0).written == []
    assert not folder.exists()
    for find in (load_last, find_last):
        with pytest.raises(InputError, match=f"d0 .*{folder}"):
            find(folder, 0)


def test_checkpoint_is_written_and_read_back(tmp_path):
    network = untrained(0, 2)
    state = {"progress": {"epoch": 3, "step": 40}, "optimizer": {"momentum": torch.arange(3.0)}, "names": ["a", 1.5]}
    folder = tmp_path / "logs" / "drawn"
    path = Checkpoints(folder, 0, keep=3).save(network, state, epoch=3, step=40)
    assert path == folder / "efficientdet-d0_3_40.pth"
    assert_equal_weights(torch.load(path, weights_only=True), network.state_dict())

    assert last_path(folder, 0) == find_last(folder, 0) == folder / LAST
    loaded = load_last(folder, 0)
    assert loaded["progress"] == state["progress"] and loaded["names"] == state["names"]
    assert torch.equal(loaded["optimizer"]["momentum"], torch.arange(3.0))
    assert_equal_weights(loaded["network"], network.state_dict())
    assert loaded["written"] == [path.name]
    assert names(folder) == {path.name, LAST}


def test_files_do_not_depend_on_the_memory_format(tmp_path):
    layer = torch.nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last)
    path = Checkpoints(tmp_path, 0).save(layer, {}, 0, 1)
    for weights in (read_state_dict(path), load_last(tmp_path, 0)["network"]):
        assert weights["weight"].is_contiguous() and torch.equal(weights["weight"], layer.weight)


def test_last_is_the_newest_checkpoint(tmp_path):
    save_steps(Checkpoints(tmp_path, 0), 9, 10)
    assert_last(tmp_path, 10)
    assert names(tmp_path) == weights_names(9, 10) | {LAST}


def test_last_needs_no_other_file(tmp_path):
    saved = untrained(0, 2)
    Checkpoints(tmp_path, 0).save(saved, {"step": 4}, 0, 4).unlink()
    assert load_last(tmp_path, 0)["step"] == 4
    network = EfficientDet(0, 2)
    load_weights(network, find_last(tmp_path, 0))
    assert_equal_weights(network.state_dict(), saved.state_dict())


def test_overwriting_a_weights_file_leaves_last_unchanged(tmp_path):
    save_steps(Checkpoints(tmp_path, 0), 5)
    torch.save({}, tmp_path / "efficientdet-d0_0_5.pth")
    assert_last(tmp_path, 5)


@pytest.mark.parametrize(
    ("keep", "kept"), [(0, [1, 2, 3, 4]), (1, [4]), (2, [3, 4]), (4, [1, 2, 3, 4]), (9, [1, 2, 3, 4])]
)
def test_newest_are_kept(tmp_path, keep, kept):
    save_steps(Checkpoints(tmp_path, 0, keep), 1, 2, 3, 4)
    assert names(tmp_path) == weights_names(*kept) | {LAST}
    assert load_last(tmp_path, 0)["written"] == [f"efficientdet-d0_0_{step}.pth" for step in kept]
    for step in kept:
        assert read_state_dict(tmp_path / f"efficientdet-d0_0_{step}.pth")["bias"].item() == step


def test_step_saved_twice_is_one_file(tmp_path):
    checkpoints = Checkpoints(tmp_path, 0, keep=2)
    save_steps(checkpoints, 1, 2, 2, 2)
    assert names(tmp_path) == weights_names(1, 2) | {LAST}
    save_steps(checkpoints, 1, 3)  # saved again, the first is the newer of the two
    assert names(tmp_path) == weights_names(1, 3) | {LAST}


def test_other_files_are_never_removed(tmp_path):
    foreign = {
        "efficientdet-d0_0_0.pth",
        "efficientdet-d0.pth",
        "efficientdet-d1_0_1.pth",
        "efficientdet-d1_last.state",
    }
    foreign |= {"efficientdet-d0_best.pth", "mine.pth", "notes.txt", ".hidden.tmp"}
    for name in foreign:
        (tmp_path / name).write_text("kept")
    save_steps(Checkpoints(tmp_path, 0, keep=1), 1, 2, 3)
    assert names(tmp_path) == foreign | weights_names(3) | {LAST}
    assert all((tmp_path / name).read_text() == "kept" for name in foreign)


def test_new_run_leaves_the_files_of_an_older_one(tmp_path):
    save_steps(Checkpoints(tmp_path, 0), 1, 2)
    save_steps(Checkpoints(tmp_path, 0, keep=1), 3, 4)
    assert names(tmp_path) == weights_names(1, 2, 4) | {LAST}


@pytest.mark.parametrize(("before", "after", "kept"), [(2, 2, [2, 3]), (0, 1, [3]), (1, 3, [2, 3]), (2, 0, [1, 2, 3])])
def test_resumed_run_knows_its_older_files(tmp_path, before, after, kept):
    save_steps(Checkpoints(tmp_path, 0, before), 1, 2)
    save_steps(Checkpoints(tmp_path, 0, after, load_last(tmp_path, 0)["written"]), 3)
    assert names(tmp_path) == weights_names(*kept) | {LAST}


def test_missing_older_files_do_not_matter(tmp_path):
    checkpoints = Checkpoints(tmp_path, 0, keep=1)
    save_steps(checkpoints, 1)
    (tmp_path / "efficientdet-d0_0_1.pth").unlink()
    save_steps(checkpoints, 2)
    assert names(tmp_path) == weights_names(2) | {LAST}


def test_best_is_kept_in_addition_to_the_newest(tmp_path):
    checkpoints = Checkpoints(tmp_path, 0, keep=1)
    save_steps(checkpoints, 1)
    path = checkpoints.save_best(filled(1.5))
    assert path == best_path(tmp_path, 0) == tmp_path / "efficientdet-d0_best.pth"
    assert_last(tmp_path, 1)
    save_steps(checkpoints, 2, 3)
    assert names(tmp_path) == weights_names(3) | {LAST, path.name}
    assert torch.load(path, weights_only=True)["weight"].tolist() == [[1.5, 1.5]]
    checkpoints.save_best(filled(3.5))
    assert torch.load(path, weights_only=True)["weight"].tolist() == [[3.5, 3.5]]
    assert_last(tmp_path, 3)


@pytest.fixture
def fill_disk(monkeypatch):
    """Return a function after whose call the disk is full: files whose names contain a text are half written."""

    def fill(text: str) -> None:
        write_bytes = Path.write_bytes

        def write_half(path: Path, content) -> None:
            if text not in path.name:
                return write_bytes(path, content)
            write_bytes(path, content[: len(content) // 2])
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(Path, "write_bytes", write_half)

    return fill


@pytest.mark.parametrize("failing", [".pth", ".state"])
@pytest.mark.parametrize("keep", [0, 1])
def test_full_disk_leaves_the_previous_checkpoint_unchanged(tmp_path, fill_disk, monkeypatch, failing, keep):
    checkpoints = Checkpoints(tmp_path, 0, keep)
    save_steps(checkpoints, 1)
    fill_disk(failing)
    with pytest.raises(InputError, match=rf"{failing}.*No space left on device"):
        save_steps(checkpoints, 2)
    assert_last(tmp_path, 1)
    assert load_last(tmp_path, 0)["written"] == ["efficientdet-d0_0_1.pth"]
    assert read_state_dict(tmp_path / "efficientdet-d0_0_1.pth")["bias"].item() == 1
    assert names(tmp_path) - weights_names(2) == weights_names(1) | {LAST}  # the second may exist, but complete
    assert all(read_state_dict(path)["bias"].item() == 2 for path in tmp_path.glob("*_2.pth"))

    monkeypatch.undo()
    save_steps(checkpoints, 2)
    assert_last(tmp_path, 2)
    assert names(tmp_path) == (weights_names(2) if keep else weights_names(1, 2)) | {LAST}


def test_full_disk_leaves_the_best_unchanged(tmp_path, fill_disk):
    checkpoints = Checkpoints(tmp_path, 0)
    checkpoints.save_best(filled(1))
    fill_disk("best")
    with pytest.raises(InputError, match="No space left"):
        checkpoints.save_best(filled(2))
    assert read_state_dict(best_path(tmp_path, 0))["bias"].item() == 1
    assert names(tmp_path) == {"efficientdet-d0_best.pth"}


def test_runs_that_write_the_same_file_name_do_not_mix(tmp_path, fill_disk):
    save_steps(Checkpoints(tmp_path, 0), 5, mark="older run")
    newer = Checkpoints(tmp_path, 0)
    fill_disk(".state")
    with pytest.raises(InputError):
        newer.save(filled(-5), {"step": 5, "mark": "newer run"}, 0, 5)
    assert read_state_dict(tmp_path / "efficientdet-d0_0_5.pth")["bias"].item() == -5
    assert_last(tmp_path, 5, "older run")


def test_next_run_removes_the_leftovers_of_killed_processes(tmp_path):
    save_steps(Checkpoints(tmp_path, 0), 1)
    leftovers = {".efficientdet-d0_0_2.pth.77.tmp", f".{LAST}.77.tmp", ".efficientdet-d0_best.pth.77.tmp"}
    others = {".efficientdet-d1_0_2.pth.77.tmp", ".curves.png.77.tmp", "efficientdet-d0_0_2.tmp"}
    for name in leftovers | others:
        (tmp_path / name).write_text("half")
    Checkpoints(tmp_path, 0)
    assert names(tmp_path) == weights_names(1) | {LAST} | others
    assert_last(tmp_path, 1)


def test_files_that_cannot_be_removed_do_not_end_the_run(tmp_path):
    leftover, older = tmp_path / ".efficientdet-d0_0_2.pth.77.tmp", tmp_path / "efficientdet-d0_0_1.pth"
    for folder in (leftover, older):  # folders cannot be unlinked
        folder.mkdir()
    save_steps(Checkpoints(tmp_path, 0, keep=1, written=[older.name]), 3)
    assert names(tmp_path) == weights_names(1, 3) | {LAST, leftover.name}


def test_last_of_another_coefficient_is_mentioned(tmp_path):
    Checkpoints(tmp_path, 0).save(filled(1), {}, 0, 1)
    with pytest.raises(InputError, match="d2 .*d0"):
        load_last(tmp_path, 2)


WEIGHTS = {"a": torch.zeros(1)}


@pytest.mark.parametrize(
    "content",
    [
        [],
        {},
        {"weights": "efficientdet-d0_0_1.pth", "progress": {"epoch": 0}},  # of the first version
        WEIGHTS,
        {"network": WEIGHTS},
        {"network": 3, "written": []},
        {"network": {"a": 1.0}, "written": []},
        {"network": WEIGHTS, "written": None},
        {"network": WEIGHTS, "written": "efficientdet-d0_0_1.pth"},
        {"network": WEIGHTS, "written": [3]},
        {"network": WEIGHTS, "written": ["notes.txt"]},
        {"network": WEIGHTS, "written": ["../efficientdet-d0_0_1.pth"]},  # would be removed eventually
        {"network": WEIGHTS, "written": ["efficientdet-d1_0_1.pth"]},
    ],
)
def test_file_that_is_not_a_training_state_is_refused(tmp_path, content):
    torch.save(content, tmp_path / LAST)
    with pytest.raises(InputError, match=r"last\.state"):
        load_last(tmp_path, 0)


@pytest.mark.parametrize("share", [0, 0.01, 0.5, 0.99])
def test_damaged_state_is_refused(tmp_path, share):
    save_steps(Checkpoints(tmp_path, 0), 1)
    data = (tmp_path / LAST).read_bytes()
    (tmp_path / LAST).write_bytes(data[: int(len(data) * share)])
    for read in (lambda: load_last(tmp_path, 0), lambda: read_state_dict(tmp_path / LAST)):
        with pytest.raises(InputError, match=r"last\.state"):
            read()


# A process killed while saving.

KILLS = 50


def kill_savers(folder: Path, kills: int, seed: int) -> SimpleNamespace:
    """Fork processes that save in a loop, kill each at a random moment, and check the files. Returns what happened.

    All tensors of network and optimizer hold the number of the step. Their size is D0's, but they are fewer, for
    quick loading.
    """
    torch.set_num_threads(1)
    rng = random.Random(seed)
    network = torch.nn.Sequential(*[torch.nn.Linear(360, 360) for _ in range(30)])
    momentum = {key: torch.empty_like(value) for key, value in network.named_parameters()}

    def save(checkpoints: Checkpoints, step: int) -> None:
        for tensor in (*network.state_dict().values(), *momentum.values()):
            tensor.fill_(step)
        checkpoints.save(network, {"step": step, "optimizer": momentum}, 0, step)

    def assert_uniform(tensors: dict[str, torch.Tensor], step: int) -> None:
        assert len(tensors) == 60 and all((tensor == step).all() for tensor in tensors.values())

    start = time.monotonic()
    save(Checkpoints(folder, 0, keep=2), 1)
    longest = 2 * (time.monotonic() - start)
    last = load_last(folder, 0)
    leftovers = []
    for _ in range(kills):
        checkpoints = Checkpoints(folder, 0, 2, last["written"])
        assert not list(folder.glob(".*"))
        process = os.fork()
        if not process:
            try:
                step = last["step"]
                while True:
                    step += 1
                    save(checkpoints, step)
            finally:
                os._exit(1)
        time.sleep(rng.uniform(0, longest))
        os.kill(process, signal.SIGKILL)
        assert os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == -signal.SIGKILL

        leftovers += [path.name for path in folder.glob(".*.tmp")]
        before, last = last, load_last(folder, 0)
        assert last["step"] >= before["step"]
        assert_uniform(last["network"], last["step"])
        assert_uniform(last["optimizer"], last["step"])
        files = {path.name: int(path.stem.split("_")[-1]) for path in folder.glob("*.pth")}
        assert files.keys() >= set(last["written"])
        for name, step in files.items():
            if step > before["step"]:
                assert_uniform(read_state_dict(folder / name), step)
        # Half of the processes complete a checkpoint, however fast the disk is at the moment.
        longest *= 0.9 if last["step"] > before["step"] else 1.1
    return SimpleNamespace(last_step=last["step"], leftovers=leftovers)


@pytest.mark.slow
def test_process_killed_while_saving_leaves_a_complete_last(tmp_path):
    # Forked from a fresh process: after computing with several threads, a process cannot compute in its fork.
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        happened = pool.apply(kill_savers, (tmp_path, KILLS, 0))
    # Some kills hit in the middle of a file, some after a complete checkpoint.
    assert len(happened.leftovers) >= KILLS // 10, happened
    assert happened.last_step >= KILLS // 10, happened
