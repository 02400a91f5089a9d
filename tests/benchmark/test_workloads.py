"""What the benchmark measures."""

from pathlib import Path

import pytest
import torch
from exports import describe, network_that_finds

from efficientdet.benchmark.inputs import realistic_weights
from efficientdet.benchmark.workloads import KINDS, Contender, Material, contenders, forward_flops
from efficientdet.export.formats import write_exported
from efficientdet.project import load_project
from efficientdet.runtime.modes import MODES
from utils.errors import InputError

CPU = torch.device("cpu")


def names(what: str, *args) -> list[str]:
    return [str(contender) for contender in contenders(what, *args, 0, 128, 1)]


def test_nobody_takes_part():
    assert contenders("end_to_end", [], ["float32"], [], 0, 512, 1) == []
    assert contenders("loader", ["plain"], ["float32"], [], 0, 512, 1) == []


def test_a_contender_for_each_mode_and_precision():
    two = ["float32", "bf16"]
    assert names("forward", ["plain", "fused"], two, []) == [
        "plain float32", "plain bf16", "fused float32", "fused bf16"
    ]  # fmt: skip
    assert names("train", MODES, two, []) == [
        "plain float32", "ours float32", "ours bf16", "compiled float32", "compiled bf16"
    ]  # fmt: skip
    assert names("loss", ["plain", "fused"], ["bf16"], []) == ["plain float32", "ours bf16"]
    assert names("postprocess", ["compiled"], two, []) == []
    assert names("prepare", ["plain", "fused"], two, []) == ["plain float32", "ours float32"]


def test_peers_take_part_where_they_can():
    assert names("forward", ["fused"], ["bf16"], ["effdet", "torchvision"]) == ["fused bf16", "effdet float32"]
    assert names("end_to_end", ["fused"], ["bf16"], ["torchvision"]) == [
        "fused bf16",
        "retinanet_resnet50_fpn_v2 float32",
        "ssdlite320_mobilenet_v3_large float32",
        "fasterrcnn_mobilenet_v3_large_320_fpn float32",
    ]
    assert names("train", ["fused"], ["float32"], ["effdet"]) == ["ours float32"]


@pytest.mark.parametrize(
    ("compound_coef", "side", "billions"),
    [
        (0, 512, 2.5),
        (1, 640, 6.1),
        (2, 768, 11),
        (3, 896, 25),
        (4, 1024, 55),
        (5, 1280, 135),
        (6, 1280, 226),
        (7, 1536, 325),
    ],
)
def test_operations_are_those_of_the_paper(compound_coef, side, billions):
    """Its table 2 counts a multiplication and its addition as one."""
    assert forward_flops(compound_coef, side) / 2e9 == pytest.approx(billions, rel=0.02)


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "d0.pth"
    torch.save(realistic_weights(0, 128, load_project("coco"), CPU), path)
    return path


@pytest.mark.parametrize(
    ("what", "name", "precision"),
    [
        ("forward", "plain", "bf16"),
        ("forward", "fused", "float32"),
        ("end_to_end", "plain", "bf16"),
        ("end_to_end", "fused", "float32"),
        ("train", "plain", "float32"),
        ("train", "ours", "bf16"),
        ("loss", "plain", "float32"),
        ("loss", "ours", "bf16"),
        ("postprocess", "plain", "float32"),
        ("postprocess", "ours", "float32"),
    ],
)
def test_a_pass(weights, what, name, precision):
    material = Material(CPU, load_project("coco"), Path("datasets"), weights, 0)
    workload = KINDS[what].make(Contender(what, name, precision, 0, 128, 2), material)
    assert workload.images == 2
    for _ in range(2):
        seconds = workload.run_once()
        assert seconds is None if what != "end_to_end" else seconds > 0


@pytest.mark.parametrize(
    ("what", "name", "images"), [("loader", "ours", 8), ("prepare", "plain", 3), ("prepare", "ours", 3)]
)
def test_a_pass_through_a_project(shapes_project, what, name, images):
    project = load_project(shapes_project.yml)
    material = Material(CPU, project, shapes_project.data.parent, None, 0)
    workload = KINDS[what].make(Contender(what, name, "float32", 0, 128, 2), material)
    assert workload.images == images
    workload.run_once()


@pytest.fixture(scope="module")
def exported(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("exported") / "d0.pt2"
    write_exported(network_that_finds(), describe(class_names=("square", "disc", "ring")), "pt2", path)
    return path


def test_exported_files_take_part_where_the_network_runs():
    files = {"a.onnx": "float16"}
    assert str(contenders("forward", ["fused"], ["bf16"], [], 0, 128, 1, files)[-1]) == "a.onnx float16"
    assert len(contenders("train", ["fused"], ["float32"], [], 0, 128, 1, files)) == 1


@pytest.mark.parametrize("what", ["forward", "end_to_end"])
def test_a_pass_of_an_exported_file(exported, what):
    material = Material(CPU, load_project("coco"), Path("datasets"), None, 0)
    workload = KINDS[what].make(Contender(what, str(exported), "float32", 0, 128, 2), material)
    assert workload.images == 2
    seconds = workload.run_once()
    assert seconds is None if what == "forward" else seconds > 0


@pytest.mark.parametrize("what", ["loader", "prepare"])
def test_data_that_are_missing_are_told(tmp_path, what):
    material = Material(CPU, load_project("coco_tiny"), tmp_path, None, 0)
    with pytest.raises(InputError, match="coco_tiny/annotations/instances_"):
        KINDS[what].make(Contender(what, "ours", "float32", 0, 128, 2), material)


@pytest.mark.parametrize("name", ["plain", "fused"])
def test_a_pass_through_a_validation_set(shapes_project, tmp_path, name):
    project = load_project(shapes_project.yml)
    torch.save(realistic_weights(0, 128, project, CPU), tmp_path / "d0.pth")
    material = Material(CPU, project, shapes_project.data.parent, tmp_path / "d0.pth", 1)
    workload = KINDS["eval"].make(Contender("eval", name, "float32", 0, 128, 2), material)
    assert workload.images == 3
    assert workload.run_once() is None
