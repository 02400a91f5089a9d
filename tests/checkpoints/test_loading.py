"""Weights in and out: round trips, files that do not fit, files that are none, downloads, and `last`."""

import http.server
import math
import multiprocessing
import os
import pickle
import random
import re
import signal
import socket
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from scripts import untrained

from efficientdet.checkpoints import loading as checkpoint
from efficientdet.checkpoints.effdet import to_effdet
from efficientdet.checkpoints.find import best_path, chosen_weights, find_last, find_weights, last_path, published_url
from efficientdet.checkpoints.loading import guess_compound_coefs, load_weights, read_state_dict
from efficientdet.model.network import EfficientDet
from efficientdet.training.checkpoints import Checkpoints, load_last
from utils.download import download
from utils.errors import InputError

HEADER = "classifier.header.pointwise_conv.conv"


@pytest.fixture(scope="module")
def two_classes():
    """The state dict of an untrained D0 of two classes. Not to be changed."""
    return untrained(0, 2).state_dict()


@pytest.fixture
def weights_file(tmp_path, two_classes):
    path = tmp_path / "two.pth"
    torch.save(two_classes, path)
    return path


def save(path: Path, content) -> Path:
    torch.save(content, path)
    return path


def assert_unchanged(network: EfficientDet, before: dict[str, torch.Tensor]) -> None:
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())


# Reading and loading.


def test_empty_file_is_refused(tmp_path):
    (tmp_path / "empty.pth").write_bytes(b"")
    with pytest.raises(InputError, match=r"empty\.pth"):
        read_state_dict(tmp_path / "empty.pth")


def test_empty_state_dict_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"none\.pth does not fit: it lacks"):
        load_weights(EfficientDet(0, 2), save(tmp_path / "none.pth", {}))


def test_weights_come_back_as_they_were(weights_file, two_classes):
    network = EfficientDet(0, 2)
    assert load_weights(network, weights_file) is False
    assert network.state_dict().keys() == two_classes.keys()
    assert_unchanged(network, two_classes)


def test_file_of_other_classes_leaves_the_class_header_alone_fresh(weights_file, two_classes):
    network = EfficientDet(0, 5)
    with torch.no_grad():
        network.get_submodule(HEADER).weight.fill_(100.0)
    assert load_weights(network, weights_file, new_class_header=True) is True
    state = network.state_dict()
    for key, value in two_classes.items():
        if not key.startswith(HEADER):
            assert torch.equal(state[key], value), key
    assert state[f"{HEADER}.bias"].shape == (45,)
    # Every score begins at 0.01.
    torch.testing.assert_close(state[f"{HEADER}.bias"].sigmoid(), torch.full((45,), 0.01))
    weight = state[f"{HEADER}.weight"]
    assert weight.shape == (45, 64, 1, 1)
    assert weight.std().item() == pytest.approx(math.sqrt(1 / 64), rel=0.1)


def test_new_class_header_is_not_needed_when_the_classes_agree(weights_file, two_classes):
    network = EfficientDet(0, 2)
    assert load_weights(network, weights_file, new_class_header=True) is False
    assert_unchanged(network, two_classes)


def test_file_of_other_classes_is_refused_otherwise(weights_file):
    network = EfficientDet(0, 5)
    before = {key: value.clone() for key, value in network.state_dict().items()}
    with pytest.raises(InputError, match=r"two\.pth.*2 classes.*5"):
        load_weights(network, weights_file)
    assert_unchanged(network, before)


@pytest.mark.parametrize("new_class_header", [False, True])
def test_weights_of_another_coefficient_are_recognised(tmp_path, new_class_header):
    path = save(tmp_path / "one.pth", untrained(1, 2).state_dict())
    with pytest.raises(InputError, match=r"one\.pth.*looks like D1, you passed -c 0"):
        load_weights(EfficientDet(0, 2), path, new_class_header)


@pytest.mark.parametrize("new_class_header", [False, True])
def test_other_number_of_anchors_is_told(weights_file, new_class_header):
    network = EfficientDet(0, 2, scales=(1.0, 1.5))
    with pytest.raises(InputError, match=r"9 anchors in each cell.*anchors_scales.*make 6"):
        load_weights(network, weights_file, new_class_header)


def test_keys_of_dataparallel_are_recognised(tmp_path, two_classes):
    path = save(tmp_path / "wrapped.pth", {f"module.{key}": value for key, value in two_classes.items()})
    with pytest.raises(InputError, match=r"wrapped\.pth.*'module\.'"):
        load_weights(EfficientDet(0, 2), path)


def test_file_of_effdets_is_recognised(tmp_path, two_classes):
    path = save(tmp_path / "theirs.pth", to_effdet(two_classes, 0))
    with pytest.raises(InputError, match=r"theirs\.pth.*effdet's; convert it with .*efficientdet\.convert_weights"):
        load_weights(EfficientDet(0, 2), path)


@pytest.mark.parametrize("new_class_header", [False, True])
def test_missing_key_is_named(tmp_path, two_classes, new_class_header):
    key = "backbone_net.model._conv_stem.conv.weight"
    path = save(tmp_path / "less.pth", {name: value for name, value in two_classes.items() if name != key})
    with pytest.raises(InputError, match=re.escape(key)):
        load_weights(EfficientDet(0, 2), path, new_class_header)


def test_missing_class_header_is_no_other_number_of_classes(tmp_path, two_classes):
    path = save(tmp_path / "bare.pth", {name: value for name, value in two_classes.items() if HEADER not in name})
    with pytest.raises(InputError, match=re.escape(HEADER)):
        load_weights(EfficientDet(0, 2), path, new_class_header=True)


def test_unknown_key_is_named(tmp_path, two_classes):
    path = save(tmp_path / "more.pth", {**two_classes, "extra.weight": torch.zeros(1)})
    with pytest.raises(InputError, match=r"extra\.weight"):
        load_weights(EfficientDet(0, 2), path)


def test_key_of_another_shape_is_named_with_both_shapes(tmp_path, two_classes):
    key = "backbone_net.model._conv_stem.conv.weight"
    path = save(tmp_path / "odd.pth", {**two_classes, key: torch.zeros(32, 3, 5, 5)})
    with pytest.raises(InputError, match=rf"{re.escape(key)}.*\(32, 3, 5, 5\), not \(32, 3, 3, 3\)"):
        load_weights(EfficientDet(0, 2), path)


@pytest.mark.parametrize(
    "content",
    [[1, 2], torch.zeros(3), {"epoch": 3}, {"state_dict": {"a": torch.zeros(1)}}, {0: torch.zeros(1)}, "text", None],
    ids=repr,
)
def test_file_of_other_things_is_refused(tmp_path, content):
    with pytest.raises(InputError, match=r"other\.pth"):
        load_weights(EfficientDet(0, 2), save(tmp_path / "other.pth", content))


@pytest.mark.parametrize("coef", range(9))
def test_coefficient_is_guessed_from_the_shapes(coef):
    with torch.device("meta"):
        weights = EfficientDet(coef, 7).state_dict()
    assert guess_compound_coefs(weights) == ([6, 7] if coef in (6, 7) else [coef])


def test_coefficient_of_other_weights_is_not_guessed():
    assert guess_compound_coefs({}) == []
    assert guess_compound_coefs({"fc.weight": torch.zeros(2, 2)}) == []


@pytest.mark.parametrize("share", [0.01, 0.5, 0.99])
def test_cut_file_is_refused(weights_file, share):
    data = weights_file.read_bytes()
    weights_file.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(InputError, match=r"two\.pth.*damaged"):
        load_weights(EfficientDet(0, 2), weights_file)


@pytest.mark.parametrize("content", [b"not tensors\n", b"\x80", b"\x80\x04.", b"PK\x03\x04" + b"\0" * 100, bytes(1000)])
def test_garbage_is_refused(tmp_path, content):
    (tmp_path / "bad.pth").write_bytes(content)
    with pytest.raises(InputError, match=r"bad\.pth"):
        read_state_dict(tmp_path / "bad.pth")


class _MakesAFile:
    """Unpickled without restriction it would create a file."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.parametrize("write", [torch.save, lambda content, path: path.write_bytes(pickle.dumps(content))])
def test_code_in_a_file_is_never_executed(tmp_path, write):
    made = tmp_path / "made"
    path = tmp_path / "evil.pth"
    write({"weight": _MakesAFile(made)}, path)
    pickle.loads(pickle.dumps(_MakesAFile(made)))  # it would work
    assert made.exists()
    made.unlink()

    with pytest.raises(InputError, match=r"evil\.pth"):
        read_state_dict(path)
    assert not made.exists()
    path.rename(tmp_path / "efficientdet-d0_last.state")
    with pytest.raises(InputError, match=r"last\.state"):
        load_last(tmp_path, 0)
    assert not made.exists()


# Checkpoints and `last`. A layer of three numbers stands for the network where its size does not matter.


def filled(value: float) -> torch.nn.Module:
    """A network all of whose tensors hold `value`."""
    layer = torch.nn.Linear(2, 1)
    with torch.no_grad():
        for tensor in layer.state_dict().values():
            tensor.fill_(value)
    return layer


def save_steps(checkpoints: Checkpoints, *steps: int, mark: str = "") -> None:
    """Save at each of `steps`; network and state hold the number of the step, the state `mark`, too."""
    for step in steps:
        checkpoints.save(filled(step), {"step": step, "mark": mark}, 0, step)


def assert_last(folder: Path, step: int, mark: str = "") -> None:
    """`last` is whole, and of that step: the network and the state."""
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


LAST = "efficientdet-d0_last.state"


def test_run_without_checkpoints_leaves_nothing(tmp_path):
    folder = tmp_path / "none"
    assert Checkpoints(folder, 0).written == []
    assert not folder.exists()
    for find in (load_last, find_last):
        with pytest.raises(InputError, match="no checkpoint of d0 in .*none: train first"):
            find(folder, 0)


def test_checkpoint_is_written_and_found_again(tmp_path, two_classes):
    network = untrained(0, 2)
    state = {"progress": {"epoch": 3, "step": 40}, "optimizer": {"momentum": torch.arange(3.0)}, "names": ["a", 1.5]}
    folder = tmp_path / "logs" / "drawn"
    path = Checkpoints(folder, 0, keep=3).save(network, state, epoch=3, step=40)
    assert path == folder / "efficientdet-d0_3_40.pth"
    plain = torch.load(path, weights_only=True)
    assert list(plain) == list(network.state_dict())
    assert_unchanged(network, plain)

    assert last_path(folder, 0) == find_last(folder, 0) == folder / LAST
    loaded = load_last(folder, 0)
    assert loaded["progress"] == state["progress"] and loaded["names"] == state["names"]
    assert torch.equal(loaded["optimizer"]["momentum"], torch.arange(3.0))
    assert list(loaded["network"]) == list(network.state_dict())
    assert_unchanged(network, loaded["network"])
    assert loaded["written"] == [path.name]
    assert names(folder) == {path.name, LAST}


def test_order_of_the_networks_memory_does_not_reach_the_files(tmp_path):
    layer = torch.nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last)
    path = Checkpoints(tmp_path, 0).save(layer, {}, 0, 1)
    for weights in (read_state_dict(path), load_last(tmp_path, 0)["network"]):
        assert weights["weight"].is_contiguous() and torch.equal(weights["weight"], layer.weight)


def test_last_is_the_newest_checkpoint(tmp_path):
    save_steps(Checkpoints(tmp_path, 0), 9, 10)
    assert_last(tmp_path, 10)
    assert names(tmp_path) == weights_names(9, 10) | {LAST}


def test_last_needs_no_other_file(tmp_path, two_classes):
    Checkpoints(tmp_path, 0).save(untrained(0, 2), {"step": 4}, 0, 4).unlink()
    assert load_last(tmp_path, 0)["step"] == 4
    network = EfficientDet(0, 2)
    load_weights(network, find_last(tmp_path, 0))
    assert_unchanged(network, two_classes)


def test_file_that_is_written_over_leaves_last_as_it_was(tmp_path):
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


def test_step_that_is_saved_twice_is_one_file(tmp_path):
    checkpoints = Checkpoints(tmp_path, 0, keep=2)
    save_steps(checkpoints, 1, 2, 2, 2)
    assert names(tmp_path) == weights_names(1, 2) | {LAST}
    save_steps(checkpoints, 1, 3)  # saved once more, the first is the newer of the two
    assert names(tmp_path) == weights_names(1, 3) | {LAST}


def test_files_of_others_are_never_removed(tmp_path):
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


def test_run_that_begins_anew_leaves_the_files_of_an_older_one(tmp_path):
    save_steps(Checkpoints(tmp_path, 0), 1, 2)
    save_steps(Checkpoints(tmp_path, 0, keep=1), 3, 4)
    assert names(tmp_path) == weights_names(1, 2, 4) | {LAST}


@pytest.mark.parametrize(("before", "after", "kept"), [(2, 2, [2, 3]), (0, 1, [3]), (1, 3, [2, 3]), (2, 0, [1, 2, 3])])
def test_run_that_goes_on_knows_its_older_files(tmp_path, before, after, kept):
    save_steps(Checkpoints(tmp_path, 0, before), 1, 2)
    save_steps(Checkpoints(tmp_path, 0, after, load_last(tmp_path, 0)["written"]), 3)
    assert names(tmp_path) == weights_names(*kept) | {LAST}


def test_older_files_that_are_gone_are_no_matter(tmp_path):
    checkpoints = Checkpoints(tmp_path, 0, keep=1)
    save_steps(checkpoints, 1)
    (tmp_path / "efficientdet-d0_0_1.pth").unlink()
    save_steps(checkpoints, 2)
    assert names(tmp_path) == weights_names(2) | {LAST}


def test_best_is_kept_beside_the_newest(tmp_path):
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
    """A function after which files whose names hold a text are written by half only: the disk is full then."""

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
def test_full_disk_leaves_the_checkpoint_before_as_it_was(tmp_path, fill_disk, monkeypatch, failing, keep):
    checkpoints = Checkpoints(tmp_path, 0, keep)
    save_steps(checkpoints, 1)
    fill_disk(failing)
    with pytest.raises(InputError, match=rf"cannot write .*{failing}: No space left on device"):
        save_steps(checkpoints, 2)
    assert_last(tmp_path, 1)
    assert load_last(tmp_path, 0)["written"] == ["efficientdet-d0_0_1.pth"]
    assert read_state_dict(tmp_path / "efficientdet-d0_0_1.pth")["bias"].item() == 1
    assert names(tmp_path) - weights_names(2) == weights_names(1) | {LAST}  # the second may be there, but whole
    assert all(read_state_dict(path)["bias"].item() == 2 for path in tmp_path.glob("*_2.pth"))

    monkeypatch.undo()
    save_steps(checkpoints, 2)
    assert_last(tmp_path, 2)
    assert names(tmp_path) == (weights_names(2) if keep else weights_names(1, 2)) | {LAST}


def test_full_disk_leaves_the_best_as_it_was(tmp_path, fill_disk):
    checkpoints = Checkpoints(tmp_path, 0)
    checkpoints.save_best(filled(1))
    fill_disk("best")
    with pytest.raises(InputError, match="No space left"):
        checkpoints.save_best(filled(2))
    assert read_state_dict(best_path(tmp_path, 0))["bias"].item() == 1
    assert names(tmp_path) == {"efficientdet-d0_best.pth"}


def test_two_runs_that_give_a_file_the_same_name_do_not_mix(tmp_path, fill_disk):
    save_steps(Checkpoints(tmp_path, 0), 5, mark="older run")
    newer = Checkpoints(tmp_path, 0)
    fill_disk(".state")
    with pytest.raises(InputError):
        newer.save(filled(-5), {"step": 5, "mark": "newer run"}, 0, 5)
    assert read_state_dict(tmp_path / "efficientdet-d0_0_5.pth")["bias"].item() == -5
    assert_last(tmp_path, 5, "older run")


def test_leftovers_of_killed_processes_are_removed_by_the_next_run(tmp_path):
    save_steps(Checkpoints(tmp_path, 0), 1)
    leftovers = {".efficientdet-d0_0_2.pth.77.tmp", f".{LAST}.77.tmp", ".efficientdet-d0_best.pth.77.tmp"}
    others = {".efficientdet-d1_0_2.pth.77.tmp", ".curves.png.77.tmp", "efficientdet-d0_0_2.tmp"}
    for name in leftovers | others:
        (tmp_path / name).write_text("half")
    Checkpoints(tmp_path, 0)
    assert names(tmp_path) == weights_names(1) | {LAST} | others
    assert_last(tmp_path, 1)


def test_what_cannot_be_removed_ends_no_run(tmp_path):
    leftover, older = tmp_path / ".efficientdet-d0_0_2.pth.77.tmp", tmp_path / "efficientdet-d0_0_1.pth"
    for folder in (leftover, older):  # a file's place taken by a folder
        folder.mkdir()
    save_steps(Checkpoints(tmp_path, 0, keep=1, written=[older.name]), 3)
    assert names(tmp_path) == weights_names(1, 3) | {LAST, leftover.name}


def test_last_of_another_coefficient_is_pointed_out(tmp_path):
    Checkpoints(tmp_path, 0).save(filled(1), {}, 0, 1)
    with pytest.raises(InputError, match="no checkpoint of d2 .*one of d0: pass its -c"):
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
        {"network": WEIGHTS, "written": ["../efficientdet-d0_0_1.pth"]},  # would be removed one day
        {"network": WEIGHTS, "written": ["efficientdet-d1_0_1.pth"]},
    ],
)
def test_state_of_something_else_is_refused(tmp_path, content):
    torch.save(content, tmp_path / LAST)
    with pytest.raises(InputError, match=r"last\.state is no training state"):
        load_last(tmp_path, 0)


@pytest.mark.parametrize("content", [[], {}, {"weights": "efficientdet-d0_0_1.pth"}, {"network": 3}])
def test_state_of_something_else_is_no_weights_file(tmp_path, content):
    torch.save(content, tmp_path / LAST)
    with pytest.raises(InputError, match=r"last\.state does not hold a plain state dict"):
        load_weights(EfficientDet(0, 1), find_last(tmp_path, 0))


@pytest.mark.parametrize("share", [0, 0.01, 0.5, 0.99])
def test_damaged_state_is_refused(tmp_path, share):
    save_steps(Checkpoints(tmp_path, 0), 1)
    data = (tmp_path / LAST).read_bytes()
    (tmp_path / LAST).write_bytes(data[: int(len(data) * share)])
    for read in (lambda: load_last(tmp_path, 0), lambda: read_state_dict(tmp_path / LAST)):
        with pytest.raises(InputError, match=r"last\.state .*damaged"):
            read()


# A process that is killed while it saves.

KILLS = 50


def kill_savers(folder: Path, kills: int, seed: int) -> SimpleNamespace:
    """Fork processes that save over and over, kill each at some moment, and check what it left. What happened.

    All tensors of network and optimizer hold the number of the step. They are as large as D0's, but fewer, to be
    loaded quickly.
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
        # One in two gets a checkpoint done, however fast the disk is just now.
        longest *= 0.9 if last["step"] > before["step"] else 1.1
    return SimpleNamespace(last_step=last["step"], leftovers=leftovers)


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
def test_process_that_is_killed_while_it_saves_leaves_a_whole_last(tmp_path):
    # Forked from a fresh process: one that has computed with several threads cannot go on computing in its fork.
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        happened = pool.apply(kill_savers, (tmp_path, KILLS, 0))
    # The kills hit: some in the middle of a file, some after a whole checkpoint.
    assert len(happened.leftovers) >= KILLS // 10, happened
    assert happened.last_step >= KILLS // 10, happened


# Which file to take.


RELEASES = "https://github.com/zylo117/Yet-Another-Efficient-Pytorch/releases/download"


@pytest.mark.parametrize("coef", range(9))
def test_published_url(coef):
    release = "1.0" if coef < 7 else "1.2"
    assert published_url(coef) == f"{RELEASES}/{release}/efficientdet-d{coef}.pth"


def test_weights_file_that_does_not_exist_is_told_with_its_neighbours(tmp_path):
    (tmp_path / "b.pth").touch()
    (tmp_path / "notes.txt").touch()
    with pytest.raises(InputError, match=r"no weights file .*a\.pth; that folder has b\.pth$"):
        find_weights(tmp_path / "a.pth")
    with pytest.raises(InputError, match=r"no weights file .*none/a\.pth$"):
        find_weights(tmp_path / "none" / "a.pth")


def test_folder_is_no_weights_file(tmp_path):
    with pytest.raises(InputError, match="no weights file"):
        find_weights(tmp_path)


def test_file_that_exists_is_taken(tmp_path):
    (tmp_path / "a.pth").touch()
    assert find_weights(str(tmp_path / "a.pth")) == tmp_path / "a.pth"


def test_published_file_that_lies_there_is_not_fetched(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(checkpoint, "download", None)
    Path("weights").mkdir()
    Path("weights/efficientdet-d3.pth").touch()
    assert find_weights("weights/efficientdet-d3.pth") == Path("weights/efficientdet-d3.pth")


def test_weights_of_a_projects_default_or_the_flag(tmp_path):
    assert chosen_weights("mine.pth", "drawn", 0, tmp_path) == Path("mine.pth")
    assert chosen_weights("mine.pth", "shapes", 0, tmp_path) == Path("mine.pth")
    assert chosen_weights(None, "coco", 4, tmp_path) == Path("weights/efficientdet-d4.pth")
    shipped = Path(__file__).parents[2] / "weights/efficientdet-d0_shapes.pth"
    assert chosen_weights(None, "shapes", 0, tmp_path) == shipped


@pytest.mark.parametrize(("project", "coefficient"), [("drawn", 0), ("shapes", 1)])
def test_project_without_published_weights_needs_the_flag(tmp_path, project, coefficient):
    with pytest.raises(InputError, match=f"pass -w .*D{coefficient} and the project '{project}'"):
        chosen_weights(None, project, coefficient, tmp_path)


@pytest.mark.parametrize("project", ["drawn", "shapes", "coco"])
def test_last_and_best_are_the_projects_own(tmp_path, project):
    folder = tmp_path / project
    with pytest.raises(InputError, match=f"no checkpoint of d0 in {folder}"):
        chosen_weights("last", project, 0, tmp_path)
    with pytest.raises(InputError, match=rf"no {folder}/efficientdet-d0_best\.pth yet: .*-w last"):
        chosen_weights("best", project, 0, tmp_path)

    checkpoints = Checkpoints(folder, 0)
    checkpoints.save(filled(1), {}, 0, 1)
    checkpoints.save_best(filled(2))
    last, best = (chosen_weights(name, project, 0, tmp_path) for name in ("last", "best"))
    assert (last, best) == (last_path(folder, 0), best_path(folder, 0))
    assert read_state_dict(last)["bias"].item() == 1
    assert read_state_dict(best)["bias"].item() == 2


# Downloads, from a server of this machine.

CONTENT = bytes(range(256)) * 1000


class _Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        server = self.server
        wanted = self.headers.get("Range")
        server.ranges.append(wanted)
        if self.path == "/missing.pth":
            return self.send_error(404)
        start = int(wanted.removeprefix("bytes=").removesuffix("-")) if wanted and server.honours_range else 0
        if start >= len(CONTENT):
            return self.send_error(416)
        body = CONTENT[start:]
        self.send_response(206 if wanted and server.honours_range else 200)
        if server.tells_length:
            self.send_header("Content-Length", str(len(body)))
        if wanted and server.honours_range:
            self.send_header("Content-Range", f"bytes {start}-{len(CONTENT) - 1}/{len(CONTENT)}")
        self.end_headers()
        self.wfile.write(body[: server.breaks_after])

    def log_message(self, *_):
        pass


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Handler) as server:
        server.honours_range, server.tells_length, server.breaks_after, server.ranges = True, True, None, []
        server.url = f"http://127.0.0.1:{server.server_port}/weights.pth"
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.mark.parametrize("tells_length", [True, False])
def test_whole_file_is_downloaded(tmp_path, server, tells_length):
    server.tells_length = tells_length
    path = tmp_path / "new" / "weights.pth"
    download(server.url, path, len(CONTENT))
    assert path.read_bytes() == CONTENT
    assert list(path.parent.iterdir()) == [path]
    assert server.ranges == [None]


def test_interrupted_download_goes_on_where_it_stopped(tmp_path, server):
    server.breaks_after = 100_000
    path = tmp_path / "weights.pth"
    with pytest.raises(InputError, match=f"{re.escape(server.url)} gave 100000 of 256000 bytes"):
        download(server.url, path)
    assert not path.exists()
    server.breaks_after = None
    download(server.url, path)
    assert path.read_bytes() == CONTENT
    assert server.ranges == [None, "bytes=100000-"]
    assert list(tmp_path.iterdir()) == [path]


def test_server_that_ignores_the_range_starts_from_the_beginning(tmp_path, server):
    server.honours_range = False
    (tmp_path / "weights.pth.part").write_bytes(CONTENT[:1000])
    download(server.url, tmp_path / "weights.pth", len(CONTENT))
    assert (tmp_path / "weights.pth").read_bytes() == CONTENT


@pytest.mark.parametrize("part", [CONTENT, CONTENT + b"more"])
def test_part_with_nothing_left_to_fetch_still_ends_in_the_right_file(tmp_path, server, part):
    (tmp_path / "weights.pth.part").write_bytes(part)
    download(server.url, tmp_path / "weights.pth", len(CONTENT))
    assert (tmp_path / "weights.pth").read_bytes() == CONTENT


@pytest.mark.parametrize("difference", [-1, 1])
def test_file_of_another_size_than_published_is_refused(tmp_path, server, difference):
    path = tmp_path / "weights.pth"
    expected = len(CONTENT) + difference
    for _ in range(2):
        with pytest.raises(InputError, match=f"{re.escape(server.url)} gave 256000 of {expected} bytes"):
            download(server.url, path, expected)
        assert not path.exists()


def test_file_that_the_server_lacks_is_told_with_its_url(tmp_path, server):
    url = server.url.replace("weights", "missing")
    with pytest.raises(InputError) as caught:
        download(url, tmp_path / "weights.pth")
    assert url in str(caught.value) and str(tmp_path / "weights.pth") in str(caught.value)


def test_dead_server_is_told_with_the_url(tmp_path, monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{probe.getsockname()[1]}/weights.pth"
    with pytest.raises(InputError, match=re.escape(url)):
        download(url, tmp_path / "weights.pth")


@pytest.mark.parametrize(
    "answer",
    [b"", b"this is no HTTP\r\n\r\n", b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nab"],
    ids=["nothing", "garbage", "broken chunk"],
)
def test_server_that_answers_nonsense_is_told_with_the_url(tmp_path, monkeypatch, answer):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve():
            connection, _ = listener.accept()
            with connection:
                connection.recv(4096)
                connection.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/weights.pth"
        try:
            with pytest.raises(InputError, match=re.escape(url)):
                download(url, tmp_path / "weights.pth")
        finally:
            thread.join()
    assert not (tmp_path / "weights.pth").exists()


def test_place_that_cannot_be_written_is_told(tmp_path, server):
    (tmp_path / "blocked").touch()
    with pytest.raises(InputError, match="blocked"):
        download(server.url, tmp_path / "blocked" / "weights.pth")


def test_published_weights_are_fetched_on_first_use(tmp_path, server, monkeypatch):
    monkeypatch.chdir(tmp_path)
    fetched = []
    monkeypatch.setattr(checkpoint, "published_url", lambda coef: fetched.append(coef) or server.url)
    assert find_weights("weights/efficientdet-d2.pth") == Path("weights/efficientdet-d2.pth")
    assert Path("weights/efficientdet-d2.pth").read_bytes() == CONTENT
    assert fetched == [2]
    # The size of D0's file is known, and this is another.
    with pytest.raises(InputError, match="256000 of 15862583 bytes"):
        find_weights(tmp_path / "weights" / "efficientdet-d0.pth")
