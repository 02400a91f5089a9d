"""`python -m efficientdet.export`, as a user runs it, and the scripts with what it has written."""

import json
import re
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from exports import network_that_finds
from scripts import REPOSITORY, assert_one_error, assert_succeeded, run_script, write_weights

from efficientdet.export.__main__ import main, parse_args, quantize_and_tell
from efficientdet.inference.detector import load_detector
from efficientdet.project import SHAPES_IMAGES, load_project
from efficientdet.runtime.exported import ExportedModel
from utils.errors import InputError

for needed in ("onnx", "onnxscript", "onnxruntime", "openvino"):
    pytest.importorskip(needed)


def export(cwd: Path, *args: str | Path) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, "-m", "efficientdet.export", *map(str, args)]
    return subprocess.run(
        line, cwd=cwd, env={"PYTHONPATH": str(REPOSITORY)}, capture_output=True, text=True, timeout=600
    )


@pytest.fixture(scope="module")
def shapes_onnx(tmp_path_factory) -> Path:
    """The weights that come with the project, with everything inside."""
    path = tmp_path_factory.mktemp("onnx") / "shapes.onnx"
    run = export(path.parent, "-p", "shapes", "--nms", "-o", path, "--max_images", "3", "--runs", "2")
    assert_succeeded(run)
    raw, with_nms = run.stdout.split("with --nms:")
    assert "class_logits" in raw and "class_logits" not in with_nms and "detections of both: " in with_nms
    assert re.search(r"an image: PyTorch [\d.]+ ms, onnx float32 [\d.]+ ms", run.stdout), run.stdout
    assert re.search(rf"-> {path} \([\d.]+ MB\)$", run.stdout.strip())
    assert [file.name for file in path.parent.iterdir()] == ["shapes.onnx"]
    return path


def test_help_needs_nothing():
    args = parse_args([])
    assert (args.format, args.nms, args.dynamic, args.half) == (["onnx"], False, False, False)


def test_metadata_can_be_read_without_the_project(shapes_onnx):
    import onnx

    texts = {entry.key: json.loads(entry.value) for entry in onnx.load(shapes_onnx).metadata_props}
    project = load_project("shapes")
    assert texts["class_names"] == list(project.class_names)
    assert texts["mean"] == [0.485, 0.456, 0.406] and texts["image_size"] == [384, 384]
    assert texts["anchor_scales"] == list(project.anchor_scales) and len(texts["anchor_ratios"]) == 3
    onnx.checker.check_model(str(shapes_onnx), full_check=True)
    operators = {(node.domain, node.op_type) for node in onnx.load(shapes_onnx).graph.node}
    assert {domain for domain, _ in operators} == {""} and ("", "NonMaxSuppression") in operators


def test_the_image_script_takes_the_file(shapes_onnx, tmp_path):
    run = run_script(
        "efficientdet_test.py", SHAPES_IMAGES, "-w", shapes_onnx, "--json", "-", "--save", "none", cwd=tmp_path
    )
    assert_succeeded(run)
    by_file = [json.loads(line) for line in run.stdout.splitlines()]
    weights = REPOSITORY / "weights" / "efficientdet-d0_shapes.pth"
    ours = load_detector(0, weights, "shapes", "cpu")(sorted(SHAPES_IMAGES.iterdir()))
    found = sum(len(picture["objects"]) for picture in by_file)
    assert len(by_file) == 6 and abs(found - sum(map(len, ours))) <= 2
    assert "speed of D0 at 384 x 384" in run.stderr


def test_the_deployment_example_needs_neither_torch_nor_the_project(shapes_onnx, tmp_path):
    example = REPOSITORY / "efficientdet" / "deployment_example.py"
    assert len(example.read_text().splitlines()) < 80
    blocked = "import sys; sys.modules.update(dict.fromkeys(('torch', 'efficientdet', 'utils', 'efficientnet')));"
    picture, output = SHAPES_IMAGES / "1.jpg", tmp_path / "found.png"
    code = f"{blocked} import runpy; sys.argv = {['x', str(shapes_onnx), str(picture), str(output)]!r};"
    code += f"runpy.run_path({str(example)!r}, run_name='__main__')"
    run = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert_succeeded(run)

    (ours,) = load_detector(weights=shapes_onnx)([picture])
    rows = [line.split() for line in run.stdout.splitlines()]
    assert len(rows) == len(ours) > 3
    for (_, score, *box), expected_score, expected_box in zip(rows, ours.scores, ours.boxes):
        assert float(score) == pytest.approx(expected_score.item(), abs=0.006)
        assert np.abs(np.array(box, float) - expected_box.numpy()).max() <= 0.51
    drawn, plain = cv2.imread(str(output)), cv2.imread(str(picture))
    assert drawn.shape == plain.shape and (drawn != plain).any(axis=2).mean() > 0.01


@pytest.mark.slow
def test_average_precision_through_the_file(shapes_onnx, tmp_path):
    """On 60 images, by ONNX Runtime and by PyTorch."""
    found = {}
    for weights in (shapes_onnx, REPOSITORY / "weights" / "efficientdet-d0_shapes.pth"):
        run = run_script("coco_eval.py", "-p", "shapes", "-w", weights, "--max_images", "60", cwd=tmp_path)
        assert_succeeded(run)
        found[weights.suffix] = float(re.search(r"IoU=0.50:0.95 \| area=   all .* = ([\d.]+)", run.stdout)[1])
    assert found[".pth"] > 0.8
    assert found[".onnx"] == pytest.approx(found[".pth"], abs=0.0011)  # three digits are printed


def test_the_benchmark_times_the_file(shapes_onnx, tmp_path):
    run = run_script(
        "benchmark.py", "--what", "end_to_end", "-w", shapes_onnx, "--mode", "fused", "--runs", "1", cwd=tmp_path
    )
    assert_succeeded(run)
    assert "end_to_end: D0 at 384 x 384" in run.stdout and str(shapes_onnx) in run.stdout


@pytest.fixture
def weights(tmp_path) -> Path:
    """Of three classes, with a project for them."""
    torch.save(network_that_finds().state_dict(), tmp_path / "d0[1].pth")  # as browsers name what is there already
    text = (REPOSITORY / "projects" / "shapes.yml").read_text()
    (tmp_path / "three.yml").write_text(re.sub(r"obj_list: \[[^]]*\]", "obj_list: [a, b, c]", text))
    return tmp_path / "d0[1].pth"


def test_several_formats_beside_the_weights(weights, tmp_path):
    line = ("-p", "three.yml", "-w", weights, "--image_size", "128", "--max_images", "1", "--runs", "0")
    run = export(tmp_path, *line, "--format", "pt2", "torchscript")
    assert_succeeded(run)
    assert {"d0[1].pt2", "d0[1].torchscript"} <= {file.name for file in tmp_path.iterdir()}
    names = load_detector(weights=tmp_path / "d0[1].pt2").project.class_names
    assert names == ("a", "b", "c")


@pytest.mark.slow
def test_int8_tells_what_it_costs_and_is_not_kept_when_that_is_too_much(shapes_project):
    pytest.importorskip("nncf")
    root = shapes_project.root
    write_weights(root / "d0.pth")
    line = ("-p", shapes_project.yml, "-w", "d0.pth", "--image_size", "128", "--format", "openvino", "--int8")
    line += ("--data_path", shapes_project.data.parent, "--runs", "1")
    run = export(root, *line, "--max_ap_loss", "1")
    assert_succeeded(run)
    assert re.search(r"AP on the 3 images of val: float32 [\d.]+, INT8 [\d.]+", run.stdout), run.stdout
    assert re.search(r"PyTorch [\d.]+ ms, xml float32 [\d.]+ ms, xml int8 [\d.]+ ms", run.stdout)
    assert ExportedModel(root / "d0.xml", torch.device("cpu")).metadata.precision == "int8"


def test_int8_that_costs_too_much_is_refused(tmp_path, monkeypatch):
    found = {"float": 0.9, "int8": 0.88}
    monkeypatch.setattr("efficientdet.export.__main__.average_precision", lambda path, *_: found[path.parent.name])
    monkeypatch.setattr("efficientdet.export.quantize", lambda *_: None)
    monkeypatch.setattr("efficientdet.export.__main__.network_inputs", lambda *_: [])
    monkeypatch.setattr("efficientdet.export.ExportedModel", lambda *_: None)
    (tmp_path / "float").mkdir()
    args = parse_args(["--max_ap_loss", "0.01", "--data_path", str(tmp_path)])

    class Dataset(tuple):
        set_name = "val"

    with pytest.raises(InputError, match="loses 0.0200 AP by --int8"):
        quantize_and_tell(args, tmp_path / "float" / "x.xml", load_project("shapes"), Dataset("abc"))


def test_a_mistake_is_told_in_one_sentence(tmp_path):
    assert_one_error(export(tmp_path, "-p", "shapes", "--images", "nowhere"), "no file, folder or camera nowhere")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("args", "told"),
    [
        (["--format", "pt2", "--dynamic"], "--format pt2 has a fixed height and width: leave --dynamic out"),
        (["--score_threshold", "0.3"], "--score_threshold counts with --nms alone: add that, or leave it out"),
        (["--max_ap_loss", "0.02"], "--max_ap_loss counts with --int8 alone"),
        (["--format", "pt2", "onnx", "-o", "x.onnx"], "--output names one file"),
        (["-o", "model.pth"], "--output model.pth must end with .onnx"),
        (["-p", "shapes", "-w", "absent.pth"], "there is no weights file absent.pth"),
    ],
)
def test_what_cannot_be_exported_is_told_at_once(args, told):
    with pytest.raises(InputError, match=told):
        main(parse_args(args))
