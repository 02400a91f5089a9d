"""Each contender does its work once per pass."""

from pathlib import Path

import pytest
import torch
from contenders import contender
from exports import describe, network_that_finds

from efficientdet.benchmark.workloads import KINDS, forward_flops, realistic_weights
from efficientdet.export.formats import write_exported
from efficientdet.project import load_project
from utils.errors import InputError

CPU = torch.device("cpu")


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
    """Table 2 of the paper counts multiply-adds."""
    assert forward_flops(compound_coef, side) / 2e9 == pytest.approx(billions, rel=0.02)


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "d0.pth"
    torch.save(realistic_weights(contender("forward", "fused")), path)
    return path


@pytest.mark.parametrize(
    ("what", "name", "precision"),
    [
        ("forward", "plain", "bf16"),
        ("forward", "fused", "float32"),
        ("end_to_end", "plain", "bf16"),
        ("end_to_end", "fused", "float32"),
        ("train", "plain", "float32"),
        ("train", "fused", "bf16"),
        ("loss", "plain", "float32"),
        ("loss", "fused", "bf16"),
        ("postprocess", "plain", "float32"),
        ("postprocess", "fused", "float32"),
    ],
)
def test_passes_on_random_inputs(weights, what, name, precision):
    workload = KINDS[what].make(contender(what, name, precision, weights=weights))
    assert workload.images == 2
    for _ in range(2):
        workload.run_once()
    if what == "end_to_end":
        assert workload.stopwatch.seconds["post-processing"] > 0
    else:
        assert workload.stopwatch is None


@pytest.mark.parametrize("what", ["forward", "end_to_end"])
def test_passes_of_effdet(what):
    pytest.importorskip("effdet")
    workload = KINDS[what].make(contender(what, "effdet"))
    assert workload.images == 2
    workload.run_once()


@pytest.mark.parametrize(
    ("what", "name", "images"), [("loader", "fused", 8), ("prepare", "plain", 3), ("prepare", "fused", 3)]
)
def test_passes_through_a_project(shapes_project, what, name, images):
    project = load_project(shapes_project.yml)
    workload = KINDS[what].make(contender(what, name, project=project, data_path=shapes_project.data.parent))
    assert workload.images == images
    for _ in range(2):  # the loader begins another epoch
        workload.run_once()


@pytest.mark.parametrize("name", ["plain", "fused"])
def test_passes_through_a_validation_set(shapes_project, tmp_path, name):
    project = load_project(shapes_project.yml)
    torch.save(realistic_weights(contender("eval", "fused", project=project)), tmp_path / "d0.pth")
    data = {"data_path": shapes_project.data.parent, "weights": tmp_path / "d0.pth", "num_workers": 1}
    workload = KINDS["eval"].make(contender("eval", name, project=project, **data))
    assert workload.images == 3
    workload.run_once()


@pytest.fixture(scope="module")
def exported(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("exported") / "d0.pt2"
    write_exported(network_that_finds(), describe(class_names=("square", "disc", "ring")), "pt2", path)
    return path


@pytest.mark.slow
@pytest.mark.parametrize("what", ["forward", "end_to_end"])
def test_passes_of_an_exported_file(exported, what):
    workload = KINDS[what].make(contender(what, str(exported)))
    assert workload.images == 2
    workload.run_once()
    assert what == "forward" or workload.stopwatch.seconds["post-processing"] > 0


@pytest.mark.parametrize("what", ["loader", "prepare"])
def test_missing_data_are_named(tmp_path, what):
    with pytest.raises(InputError, match="coco_tiny/annotations/instances_"):
        KINDS[what].make(contender(what, "fused", project=load_project("coco_tiny"), data_path=tmp_path))
