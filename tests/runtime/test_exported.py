"""The metadata in exported files, how they are opened, and how the detector uses them."""

import json
import zipfile
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from exports import CPU, SUPPRESSION, describe, images, network_that_finds, small_project

from efficientdet.benchmark.workloads import random_image
from efficientdet.checkpoints.find import is_exported
from efficientdet.export.formats import write_exported
from efficientdet.inference.detector import Detector, load_detector
from efficientdet.runtime.exported import ExportedModel
from efficientdet.runtime.metadata import METADATA_FILE, Metadata
from utils.errors import InputError


@pytest.fixture(scope="module")
def model_file(tmp_path_factory) -> Path:
    """A file with raw outputs, of uint8 images, in the format that opens fastest."""
    path = tmp_path_factory.mktemp("exported") / "model.torchscript"
    write_exported(network_that_finds(), describe(), "torchscript", path)
    return path


@pytest.fixture(scope="module")
def nms_file(tmp_path_factory) -> Path:
    """The same with NMS in the graph."""
    path = tmp_path_factory.mktemp("exported") / "nms.torchscript"
    write_exported(network_that_finds(), describe(suppression=SUPPRESSION), "torchscript", path)
    return path


@pytest.fixture(scope="module")
def model(model_file) -> ExportedModel:
    return ExportedModel(model_file, CPU)


@pytest.fixture(scope="module")
def nms_detector(nms_file) -> Detector:
    return load_detector(weights=nms_file, device="cpu")


def test_which_files_are_exported():
    assert not is_exported(None)
    assert not is_exported("best") and not is_exported("d0.pth")
    assert all(is_exported(f"weights/d0{suffix}") for suffix in (".onnx", ".xml", ".pt2", ".torchscript"))


def test_metadata_survives_as_texts():
    for metadata in (describe(), describe(suppression=SUPPRESSION, dynamic=True)):
        assert Metadata.from_texts(metadata.to_texts(), Path("x.onnx")) == metadata
    assert describe().to_texts()["class_names"] == '["disc", "square", "Größe"]'


@pytest.mark.parametrize(
    "change",
    [
        {"mean": None},
        {"mean": '["a", "b", "c"]'},
        {"compound_coef": "9"},
        {"suppression": '{"score": 1}'},
        {"class_names": "disc"},
        {"class_names": "3"},
        {"image_size": '"abc"'},
        {"image_size": "[0, -5]"},
        {"image_size": "[128, 100]"},
        {"padding": "[1, 2]"},
        {"normalization": '"somewhere"'},
    ],
)
def test_invalid_metadata_is_an_error(change):
    texts = describe().to_texts() | change
    texts = {name: text for name, text in texts.items() if text is not None}
    with pytest.raises(InputError, match=r"^x\.onnx"):
        Metadata.from_texts(texts, Path("x.onnx"))


@pytest.mark.parametrize(
    ("name", "engine"),
    [
        ("model.onnx", "onnxruntime"),
        ("model.xml", "openvino"),
        ("model.pt2", "torch"),
        ("model.torchscript", "torch"),
    ],
)
def test_missing_and_damaged_files_are_errors(tmp_path, name, engine):
    pytest.importorskip(engine)
    with pytest.raises(InputError, match=name):
        ExportedModel(tmp_path / name, CPU)
    for file in (tmp_path / name, tmp_path / "model.bin"):
        file.write_bytes(b"no model")
    with pytest.raises(InputError, match=name):
        ExportedModel(tmp_path / name, CPU)


@pytest.mark.filterwarnings("ignore:.*torch.jit")
def test_file_of_another_program_is_an_error(tmp_path):
    torch.jit.save(torch.jit.script(torch.nn.ReLU()), str(tmp_path / "relu.torchscript"))
    with pytest.raises(InputError, match=r"relu\.torchscript.*efficientdet\.export"):
        ExportedModel(tmp_path / "relu.torchscript", CPU)


def test_missing_engine_is_an_error_that_says_how_to_install_it(tmp_path, monkeypatch):
    (tmp_path / "model.onnx").write_bytes(b"")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"model\.onnx.*pip install onnxruntime"):
        ExportedModel(tmp_path / "model.onnx", CPU)


def test_precision_is_fixed(model_file):
    with pytest.raises(InputError, match="--amp"):
        ExportedModel(model_file, CPU, torch.bfloat16)


def test_input_size_is_fixed(model):
    assert model.canvas(None) == model.canvas(100) == (128, 128)
    with pytest.raises(InputError, match=r"128 x 128 pixels, not 256 x 128"):
        model.canvas((128, 256))


def test_project_must_have_the_class_names_of_the_file(model, model_file):
    assert model.project(None).class_names == ("disc", "square", "Größe")
    assert model.project(small_project()).path == model_file
    with pytest.raises(InputError, match="'disc' is 'ring'"):
        model.project(replace(small_project(), class_names=("ring", "square", "Größe")))
    with pytest.raises(InputError, match="3 classes.* 1"):
        model.project(replace(small_project(), class_names=("disc",)))


def test_detector_finds_the_same_with_a_file(model_file, nms_detector):
    photos = [random_image(), np.ascontiguousarray(random_image()[:, :200])]
    raw, ours = load_detector(weights=model_file), Detector(network_that_finds(), small_project(), CPU, 128)
    for a, b, c in zip(*(detector(photos, 0.05, 0.5, 2, 100) for detector in (raw, nms_detector, ours))):
        assert len(a) > 20
        torch.testing.assert_close(a.boxes, b.boxes, rtol=0, atol=1e-2)
        torch.testing.assert_close(a.scores, b.scores, rtol=0, atol=1e-5)
        # The file's pixels are rounded to bytes, which changes borderline detections, but not the best.
        assert abs(a.scores[0] - c.scores[0]) < 0.02
    assert raw.project.path == model_file and raw.canvas == (128, 128) and raw.compound_coef == 0


def test_candidates_of_a_graph_with_nms(nms_detector):
    find = nms_detector.runner.find
    batch = images(describe(), 2)
    every = find(batch, 0.05)
    assert every.image_indices.unique().tolist() == [0, 1]
    threshold = every.scores.median().item()
    assert torch.equal(find(batch, threshold).scores, every.scores[every.scores > threshold])


@pytest.mark.parametrize(
    "options", [{"score_threshold": 0.01}, {"iou_threshold": 0.6}, {"max_detections": 101}, {"soft_nms": True}]
)
def test_graph_with_nms_sets_limits(nms_detector, options):
    with pytest.raises(InputError, match=r"nms\.torchscript.*--nms.*0\.05.*0\.5.*100"):
        nms_detector([random_image()], **options)


def test_outputs_that_do_not_match_the_metadata_are_an_error(model_file, tmp_path):
    def edited(**changes: str) -> ExportedModel:
        path = tmp_path / model_file.name
        with zipfile.ZipFile(model_file) as old, zipfile.ZipFile(path, "w") as new:
            for name in old.namelist():
                content = old.read(name)
                if name.endswith(METADATA_FILE):
                    content = json.dumps(json.loads(content) | changes).encode()
                new.writestr(name, content)
        return ExportedModel(path, CPU)

    batch = images(describe())
    assert len(edited(mean="[0, 0, 0]")(batch)) == 3
    for other in (edited(class_names='["disc"]'), edited(suppression=json.dumps(asdict(SUPPRESSION)))):
        with pytest.raises(InputError, match=r"model\.torchscript"):
            other(batch)


def test_openvino_needs_both_files(tmp_path):
    pytest.importorskip("openvino")
    (tmp_path / "model.xml").write_text("<net/>")
    with pytest.raises(InputError, match=r"model\.bin"):
        ExportedModel(tmp_path / "model.xml", CPU)


def test_rect_needs_a_file_for_any_shape(nms_detector):
    with pytest.raises(InputError, match="--rect"):
        nms_detector([random_image()], rect=True)


def test_file_cannot_be_compiled(model_file):
    with pytest.raises(InputError, match="--compile"):
        load_detector(weights=model_file, mode="compiled")
