"""`python -m efficientdet.export`: what it writes, proves and rejects, and what runs the files."""

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
from scripts import REPOSITORY, assert_succeeded, write_weights

from efficientdet.data.dataset import CocoDataset
from efficientdet.data.shapes import write_shapes
from efficientdet.evaluation.coco import score
from efficientdet.export import __main__ as export
from efficientdet.export.__main__ import average_precision, main, parse_args, quantize_within_loss
from efficientdet.inference.dataset import detect_dataset
from efficientdet.inference.detector import DetectionOptions, load_detector
from efficientdet.project import SHAPES_IMAGES, SHAPES_WEIGHTS, load_project
from efficientdet.runtime.exported import ExportedModel
from utils.errors import InputError
from utils.stopwatch import Stopwatch

for package in ("onnx", "onnxscript", "onnxruntime", "openvino"):
    pytest.importorskip(package)
EXAMPLE = REPOSITORY / "efficientdet" / "export" / "example.py"


@pytest.fixture(scope="module")
def shapes_onnx(tmp_path_factory) -> Path:
    """The weights that come with the project, exported with --nms by the command as a user runs it."""
    path = tmp_path_factory.mktemp("onnx") / "shapes.onnx"
    command = [sys.executable, "-m", "efficientdet.export", "-p", "shapes", "--nms", "-o", str(path)]
    command += ["--max_images", "3", "--runs", "1"]
    completed = subprocess.run(
        command, cwd=path.parent, env={"PYTHONPATH": str(REPOSITORY)}, capture_output=True, text=True, timeout=600
    )
    assert_succeeded(completed)
    raw, with_nms = completed.stdout.split("with --nms:")
    assert "class_logits" in raw and "class_logits" not in with_nms and "detections of both: " in with_nms
    assert re.search(r"per image: PyTorch [\d.]+ ms, onnx float32 [\d.]+ ms", completed.stdout), completed.stdout
    assert re.search(rf"-> {path} \([\d.]+ MB\)$", completed.stdout.strip())
    assert [file.name for file in path.parent.iterdir()] == ["shapes.onnx"]
    return path


def test_defaults():
    args = parse_args([])
    assert (args.format, args.nms, args.dynamic, args.half) == (["onnx"], False, False, False)


def test_every_spelling_of_the_flags():
    args = parse_args(["--pictures", "a.jpg", "--num_pictures", "2", "--half", "--nms", "True", "--int8", "no"])
    assert (args.images, args.max_images, args.half, args.nms, args.int8) == ("a.jpg", 2, True, True, False)


@pytest.mark.parametrize(
    ("args", "named"),
    [
        (["--format", "pt2", "--dynamic"], "--format pt2 .*--dynamic"),
        (["--score_threshold", "0.05"], "--score_threshold needs --nms"),
        (["--iou_threshold", "0.3"], "--iou_threshold needs --nms"),
        (["--max_detections", "9"], "--max_detections needs --nms"),
        (["--max_ap_loss", "0.02"], "--max_ap_loss needs --int8"),
        (["--int8"], "--int8"),
        (["--int8", "--format", "openvino", "--half"], "--half"),
        (["--format", "pt2", "onnx", "-o", "x.onnx"], "--output"),
        (["-o", "model.pth"], "--output model.pth .*.onnx"),
        (["-p", "shapes", "-w", "absent.pth"], "absent.pth"),
        (["-p", "shapes", "--images", "nowhere"], "nowhere"),
    ],
)
def test_unusable_input_is_rejected_before_any_export(args, named, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=named):
        main(parse_args(args))
    assert not list(tmp_path.iterdir())


def test_missing_packages_are_named(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name.startswith("onnx") else object())
    with pytest.raises(InputError, match="--format onnx .*pip install onnx onnxscript onnxruntime"):
        main(parse_args([]))
    with pytest.raises(InputError, match="absent.pth"):
        main(parse_args(["-w", "absent.pth", "--format", "pt2"]))


@pytest.mark.slow
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


@pytest.mark.slow
def test_example_needs_neither_torch_nor_the_project(shapes_onnx, tmp_path):
    assert len(EXAMPLE.read_text().splitlines()) < 80
    photo, output = SHAPES_IMAGES / "1.jpg", tmp_path / "found.png"
    code = "import sys; sys.modules.update(dict.fromkeys(('torch', 'efficientdet', 'utils', 'efficientnet')));"
    code += f"import runpy; sys.argv = {['x', str(shapes_onnx), str(photo), str(output)]!r};"
    code += f"runpy.run_path({str(EXAMPLE)!r}, run_name='__main__')"
    completed = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert_succeeded(completed)

    (detections,) = load_detector(weights=shapes_onnx)([photo])
    rows = [line.split() for line in completed.stdout.splitlines()]
    assert len(rows) == len(detections) > 3
    for (_, printed_score, *box), expected_score, expected_box in zip(rows, detections.scores, detections.boxes):
        assert float(printed_score) == pytest.approx(expected_score.item(), abs=0.006)
        assert np.abs(np.array(box, float) - expected_box.numpy()).max() <= 0.51
    drawn, plain = cv2.imread(str(output)), cv2.imread(str(photo))
    assert drawn.shape == plain.shape and (drawn != plain).any(axis=2).mean() > 0.01


@pytest.mark.slow
def test_average_precision_of_the_file_is_that_of_the_weights(shapes_onnx, tmp_path):
    write_shapes(tmp_path / "shapes", train_images=1, val_images=20)
    project = load_project("shapes")
    dataset = CocoDataset(tmp_path / "shapes", "val", project, (384, 384))
    detector = load_detector(0, SHAPES_WEIGHTS, project, "cpu")
    results = detect_dataset(detector, dataset, DetectionOptions(0.05, 0.5), 1, 0, Stopwatch())
    expected = score(dataset, results).numbers[0]
    assert expected > 0.8
    assert average_precision(shapes_onnx, project, dataset) == pytest.approx(expected, abs=0.001)


@pytest.mark.slow
def test_several_formats_next_to_the_weights(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    weights = tmp_path / "d0[1].pth"  # as browsers name a second download
    torch.save(network_that_finds().state_dict(), weights)
    text = (REPOSITORY / "projects" / "shapes.yml").read_text()
    Path("three.yml").write_text(re.sub(r"obj_list: \[[^]]*\]", "obj_list: [a, b, c]", text))
    args = ["-p", "three.yml", "-w", str(weights), "--image_size", "128", "--max_images", "1", "--runs", "0"]
    main(parse_args([*args, "--format", "pt2", "torchscript"]))
    assert {file.name for file in tmp_path.iterdir()} == {
        "three.yml",
        *(f"d0[1].{s}" for s in ("pth", "pt2", "torchscript")),
    }
    assert load_detector(weights=tmp_path / "d0[1].pt2").project.class_names == ("a", "b", "c")
    assert "per image:" not in capsys.readouterr().out


@pytest.mark.slow
def test_int8_reports_its_cost(shapes_project, monkeypatch, capsys):
    pytest.importorskip("nncf")
    monkeypatch.chdir(shapes_project.root)
    weights = write_weights(Path("d0.pth"))
    args = ["-p", str(shapes_project.yml), "-w", str(weights), "--image_size", "128", "--format", "openvino", "--int8"]
    main(parse_args([*args, "--data_path", str(shapes_project.data.parent), "--runs", "0", "--max_ap_loss", "1"]))
    printed = capsys.readouterr().out
    assert re.search(r"AP on the 3 images of val: float32 [\d.]+, INT8 [\d.]+", printed), printed
    assert ExportedModel("d0.xml", torch.device("cpu")).metadata.precision == "int8"


def test_int8_that_costs_too_much_is_rejected(tmp_path, monkeypatch):
    found = {"float": 0.9, "int8": 0.88}
    monkeypatch.setattr(export, "average_precision", lambda path, *_: found[path.parent.name])
    monkeypatch.setattr(export, "quantize", lambda *_: None)
    monkeypatch.setattr(export, "network_inputs", lambda *_: [])
    monkeypatch.setattr(export, "ExportedModel", lambda *_: None)
    (tmp_path / "float").mkdir()
    args = parse_args(["--max_ap_loss", "0.01", "--data_path", str(tmp_path)])

    class Dataset(tuple):
        set_name = "val"

    with pytest.raises(InputError, match="x.xml loses 0.0200 AP .*--max_ap_loss 0.01"):
        quantize_within_loss(args, tmp_path / "float" / "x.xml", load_project("shapes"), Dataset("abc"))


@pytest.mark.slow
def test_nothing_detected_proves_nothing_about_nms(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    weights = write_weights(tmp_path / "d0.pth")
    cv2.imwrite("black.png", np.zeros((64, 64, 3), np.uint8))
    project = tmp_path / "two.yml"
    text = (REPOSITORY / "projects" / "shapes.yml").read_text()
    project.write_text(re.sub(r"obj_list: \[[^]]*\]", "obj_list: [a, b]", text))
    args = ["-p", str(project), "-w", str(weights), "--image_size", "128", "--images", "black.png"]
    with pytest.raises(InputError, match="--images"):
        main(parse_args([*args, "--nms", "--score_threshold", "0.9", "--format", "torchscript"]))
    assert not list(tmp_path.glob("*.torchscript")) and not list(tmp_path.glob(".export-*"))
