"""python -m efficientdet.convert_weights: what it recognizes, writes, prints and refuses.

`test_effdet.py` and `test_pretrained.py` compare the numbers.
"""

import argparse
import shlex
import subprocess
import sys
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from scripts import REPOSITORY, assert_succeeded, untrained
from torch import Tensor

from efficientdet.checkpoints.effdet import to_effdet
from efficientdet.checkpoints.loading import load_backbone, read_state_dict
from efficientdet.convert_weights import convert, main, parse_args
from efficientdet.model.network import EfficientDet
from utils.errors import InputError


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Return a function that runs the command in this process, in an empty folder; it writes `out.pth`."""
    monkeypatch.chdir(tmp_path)

    def run(*args: str) -> None:
        main(parse_args([*args, *(() if "-o" in args else ("-o", "out.pth"))]))

    return run


@cache
def ours(coef: int = 0, num_classes: int = 2) -> dict[str, Tensor]:
    """Return the weights of `untrained`. Must not be modified."""
    return untrained(coef, num_classes).state_dict()


def effdets(coef: int = 0, num_classes: int = 2) -> dict[str, Tensor]:
    """Return effdet's weights with the numbers of `ours`."""
    return to_effdet(ours(coef, num_classes), coef)


def in_module(name: str, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    return {f"{name}.{key}": value for key, value in weights.items()}


def assert_is_ours(path: str, coef: int = 0, num_classes: int = 2) -> None:
    """Assert that the file holds the numbers of `ours`."""
    weights = read_state_dict(Path(path))
    assert list(weights) == list(ours(coef, num_classes))
    for key, value in ours(coef, num_classes).items():
        assert torch.equal(weights[key], value), key


# What is recognized.


@pytest.mark.parametrize(
    ("content", "source"),
    [
        (effdets, "in.pth: "),
        (lambda: {"state_dict": effdets(), "epoch": 3}, "in.pth (state_dict): "),
        (lambda: {"state_dict": {}, "state_dict_ema": effdets()}, "in.pth (state_dict_ema): "),
        (lambda: {"state_dict_ema": None, "state_dict": effdets()}, "in.pth (state_dict): "),
        (lambda: {"model_state_dict": effdets(), "best_summary_loss": np.float32(0.3)}, "in.pth (model_state_dict): "),
        (lambda: in_module("module", effdets()), "in.pth: "),
        (lambda: {**in_module("model", effdets()), "anchors.boxes": torch.zeros(3, 4)}, "in.pth: "),
        (lambda: {"state_dict": in_module("module.model", effdets())}, "in.pth (state_dict): "),
    ],
    ids=["plain", "entry", "averaged", "not averaged", "model_state_dict", "parallel", "bench", "bench in parallel"],
)
def test_effdet_weights_wherever_a_file_holds_them(run, capsys, content, source):
    torch.save(content(), "in.pth")
    run("in.pth")
    assert_is_ours("out.pth")
    assert capsys.readouterr().out.startswith(f"{source}effdet's tf_efficientdet_d0, 2 classes, 9 anchors per cell")


def test_checkpoint_of_effdet_training(run):
    effdet = pytest.importorskip("effdet")
    from timm.utils import CheckpointSaver

    model = effdet.create_model("tf_efficientdet_d0", bench_task="train", num_classes=2, pretrained_backbone=False)
    model.model.load_state_dict(effdets())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    saver = CheckpointSaver(
        model, optimizer, args=argparse.Namespace(model="d0"), checkpoint_dir=".", unwrap_fn=effdet.unwrap_bench
    )
    saver.save_checkpoint(epoch=1, metric=np.float64(0.3))
    run("model_best.pth.tar")
    assert_is_ours("out.pth")


def test_safetensors(run):
    pytest.importorskip("safetensors.torch").save_file(effdets(), "in.safetensors")
    run("in.safetensors")
    assert_is_ours("out.pth")


def test_conversion_to_effdet_and_back(run, capsys):
    torch.save(ours(0, 5), "ours.pth")
    run("ours.pth", "--to", "effdet", "-o", "theirs.pth")
    printed = capsys.readouterr().out
    assert printed.startswith("ours.pth: this project's D0, 5 classes, 9 anchors per cell")
    run("theirs.pth")
    assert_is_ours("out.pth", 0, 5)
    python, flag, code = shlex.split(printed.splitlines()[-1])
    assert (python, flag) == ("python", "-c")
    pytest.importorskip("effdet")
    exec(code, variables := {})
    assert torch.equal(
        variables["model"].backbone.conv_stem.weight, ours(0, 5)["backbone_net.model._conv_stem.conv.weight"]
    )


def test_other_number_of_anchors(run, capsys):
    torch.save(EfficientDet(0, 3, scales=(1.0,), ratios=((1.0, 1.0), (2.0, 0.5))).state_dict(), "ours.pth")
    run("ours.pth", "--to", "effdet", "-o", "theirs.pth")
    run("theirs.pth")
    assert "effdet's tf_efficientdet_d0, 3 classes, 2 anchors per cell" in capsys.readouterr().out


def test_converted_backbone_is_accepted_by_training(run, capsys):
    torch.manual_seed(0)
    weights = torchvision.models.efficientnet_b1(weights=None).state_dict()
    torch.save(in_module("module", weights), "in.pth")
    run("in.pth")
    torch.save(weights, "plain.pth")
    converted, direct = EfficientDet(1, 2), EfficientDet(1, 2)
    load_backbone(converted, "out.pth")
    load_backbone(direct, "plain.pth")
    states = (network.backbone_net.state_dict().values() for network in (converted, direct))
    assert all(torch.equal(a, b) for a, b in zip(*states))
    printed = capsys.readouterr().out
    assert printed.startswith("in.pth: torchvision's EfficientNet B1, 508 tensors\n-> out.pth: 500 tensors\n")
    assert "epsilon 1e-5" in printed and "convolutions of stride 2" in printed
    assert printed.endswith("\n  python train.py -p my_project -c 1 --backbone_weights out.pth\n")


def test_timm_backbones_are_distinguished_by_their_path(run, capsys):
    timm = pytest.importorskip("timm")
    weights = timm.create_model("efficientnet_b0").state_dict()
    printed, scales = [], []
    for model in ("tf_efficientnet_b0", "efficientnet_b0"):
        torch.save(weights, f"{model}.pth")
        run(f"{model}.pth", "-o", f"{model}_out.pth")
        printed.append(capsys.readouterr().out)
        scales.append(read_state_dict(Path(f"{model}_out.pth"))["_bn0.weight"])
        assert f"timm's EfficientNet B0, by its path {model}" in printed[-1]
    assert "\nWhat differs:\n  nothing\n" in printed[0] and "\nWhat differs:\n  batch norms" in printed[1]
    torch.testing.assert_close(scales[1], scales[0] * 1.000494752)  # sqrt((1 + 1e-3) / (1 + 1e-5)), as variances are 1


# What is printed.


@pytest.mark.parametrize(
    ("coef", "num_classes", "command"),
    [
        (1, 90, "photo.jpg -c 1 -w {output}"),
        (0, 2, "photo.jpg -c 0 -w {output} -p my_project  # obj_list: the 2 classes in the order of effdet's labels"),
        (6, 90, "photo.jpg -c 6 -w {output}  # or -c 7, as it was trained"),
    ],
)
def test_next_command(coef, num_classes, command):
    with torch.device("meta"):
        network = EfficientDet(coef, num_classes)
    conversion = convert(to_effdet(network.state_dict(), coef), Path("in.pth"), to=None)
    assert conversion.next_step == f"python efficientdet_test.py {command}"


def test_differences_and_next_command_are_printed(run, capsys):
    torch.save(effdets(), "in.pth")
    run("in.pth")
    printed = capsys.readouterr().out
    assert "max-pooling" in printed and "Next:\n  python efficientdet_test.py photo.jpg -c 0 -w out.pth" in printed


# What is refused, without writing anything.


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (lambda: {}, r"in\.pth .*empty"),
        (
            lambda: torchvision.models.mobilenet_v3_small(weights=None).state_dict(),
            r"in\.pth .*features\.0\.0\.weight",
        ),
        (ours, r"in\.pth .*-w"),
        (
            lambda: {"epoch": 3, "optimizer": effdets()},
            r"in\.pth .*state_dict_ema, state_dict",
        ),
        (lambda: [torch.zeros(1)], r"in\.pth .*state_dict"),
        (
            lambda: {key: value for key, value in effdets().items() if "edge_weights" not in key},
            r"in\.pth .*fpn\.cell\.0\.fnode\.0\.combine\.edge_weights of tf_efficientdet_d0",
        ),
        (
            lambda: {"_conv_stem.weight": torch.zeros(1)},
            r"in\.pth .*EfficientNet-PyTorch.* B0 to B7",
        ),
        (lambda: {"path": Path()}, r"in\.pth "),
    ],
    ids=["empty", "other network", "ours", "entry", "list", "effdet's lite", "part of a backbone", "object"],
)
def test_file_that_cannot_be_converted(run, content, message):
    torch.save(content(), "in.pth")
    with pytest.raises(InputError, match=message):
        run("in.pth")
    assert not Path("out.pth").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (effdets, r"in\.pth .*--to effdet"),
        (lambda: {**ours(), "more": torch.zeros(1)}, r"in\.pth .* more.* D0"),
        (
            lambda: {"regressor.header.pointwise_conv.conv.bias": torch.zeros(36)},
            r"in\.pth .* D0 to D7X",
        ),
    ],
    ids=["effdet's", "too much", "too little"],
)
def test_file_that_cannot_be_converted_for_effdet(run, content, message):
    torch.save(content(), "in.pth")
    with pytest.raises(InputError, match=message):
        run("in.pth", "--to", "effdet")
    assert not Path("out.pth").exists()


def test_output_that_exists_or_has_the_wrong_suffix_and_missing_input(run):
    torch.save(effdets(), "in.pth")
    with pytest.raises(InputError, match=r"in\.pth"):
        run("in.pth", "-o", "in.pth")
    with pytest.raises(InputError, match=r"out\.safetensors"):
        run("in.pth", "-o", "out.safetensors")
    with pytest.raises(InputError, match=r"none\.pth.* in\.pth"):
        run("none.pth")


@pytest.mark.slow
def test_command_as_a_user_runs_it(tmp_path):
    torch.save(effdets(), tmp_path / "in.pth")
    command = [sys.executable, "-m", "efficientdet.convert_weights", tmp_path / "in.pth", "-o", tmp_path / "out.pth"]
    assert_succeeded(subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True))
    assert_is_ours(str(tmp_path / "out.pth"))
