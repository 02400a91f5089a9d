"""What exported files say of themselves, how they are opened, and how the detector uses them."""

import json
import zipfile
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from exports import CPU, SUPPRESSION, describe, images, network_that_finds, small_project

from efficientdet.benchmark.inputs import random_image
from efficientdet.checkpoints.find import is_exported
from efficientdet.export.formats import write_exported
from efficientdet.inference.detector import Detector, load_detector
from efficientdet.runtime.exported import ExportedFinder, ExportedModel
from efficientdet.runtime.metadata import Metadata
from utils.errors import InputError


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> Path:
    """model.pt2 with raw outputs and detector.pt2 with suppression, both of uint8 images."""
    folder = tmp_path_factory.mktemp("exported")
    write_exported(network_that_finds(), describe(), "pt2", folder / "model.pt2")
    write_exported(network_that_finds(), describe(suppression=SUPPRESSION), "pt2", folder / "detector.pt2")
    return folder


def test_which_files_are_exported():
    assert not is_exported(None)
    assert not is_exported("best") and not is_exported("d0.pth")
    assert all(is_exported(f"weights/d0{suffix}") for suffix in (".onnx", ".xml", ".pt2", ".torchscript"))


def test_metadata_survive_as_texts():
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
        {"normalization": '"beside"'},
    ],
)
def test_metadata_that_are_strange(change):
    texts = describe().to_texts() | change
    texts = {name: text for name, text in texts.items() if text is not None}
    with pytest.raises(InputError, match="^x.onnx does not tell what it holds"):
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
def test_files_that_are_no_models(tmp_path, name, engine):
    pytest.importorskip(engine)
    with pytest.raises(InputError, match="there is no exported file"):
        ExportedModel(tmp_path / name, CPU)
    for file in (tmp_path / name, tmp_path / "model.bin"):
        file.write_bytes(b"nothing of the kind")
    with pytest.raises(InputError, match=f"cannot run .*{name}"):
        ExportedModel(tmp_path / name, CPU)


@pytest.mark.filterwarnings("ignore:.*torch.jit")
def test_a_file_of_another_program(tmp_path):
    torch.jit.save(torch.jit.script(torch.nn.ReLU()), str(tmp_path / "relu.torchscript"))
    with pytest.raises(InputError, match="relu.torchscript does not tell what it holds"):
        ExportedModel(tmp_path / "relu.torchscript", CPU)


def test_an_unknown_engine_says_how_to_get_it(tmp_path, monkeypatch):
    (tmp_path / "model.onnx").write_bytes(b"")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match="running model.onnx needs onnxruntime: pip install onnxruntime"):
        ExportedModel(tmp_path / "model.onnx", CPU)


def test_precisions_are_the_files_own(files):
    with pytest.raises(InputError, match="has a precision of its own"):
        ExportedModel(files / "model.pt2", CPU, torch.bfloat16)


def test_the_size_is_fixed(files):
    model = ExportedModel(files / "model.pt2", CPU)
    assert model.canvas(None) == model.canvas(100) == (128, 128)
    with pytest.raises(InputError, match=r"takes 128 x 128 pixels, not 256 x 128"):
        model.canvas((128, 256))


def test_the_project_must_be_the_files(files):
    model = ExportedModel(files / "model.pt2", CPU)
    assert model.project(None).class_names == ("disc", "square", "Größe")
    assert model.project(small_project()).path == files / "model.pt2"
    with pytest.raises(InputError, match="'disc' is 'ring' there"):
        model.project(replace(small_project(), class_names=("ring", "square", "Größe")))
    with pytest.raises(InputError, match="it has 3 classes, the project has 1"):
        model.project(replace(small_project(), class_names=("disc",)))


def test_the_detector_finds_the_same_with_a_file(files):
    pictures = [random_image(), np.ascontiguousarray(random_image()[:, :200])]
    raw, suppressed = (load_detector(weights=files / name) for name in ("model.pt2", "detector.pt2"))
    ours = Detector(network_that_finds(), small_project(), CPU, 128)
    for a, b, c in zip(*(detector(pictures, 0.05, 0.5, 2, 100) for detector in (raw, suppressed, ours))):
        assert len(a) > 20
        torch.testing.assert_close(a.boxes, b.boxes, rtol=0, atol=1e-2)
        torch.testing.assert_close(a.scores, b.scores, rtol=0, atol=1e-5)
        # The file's pixels are rounded to bytes, so borderline objects differ, but not the clearest.
        assert abs(a.scores[0] - c.scores[0]) < 0.02
    assert raw.project.path == files / "model.pt2" and raw.canvas == (128, 128) and raw.compound_coef == 0


def test_candidates_of_a_file_with_suppression(files):
    finder = ExportedFinder(ExportedModel(files / "detector.pt2", CPU))
    batch = images(describe(), 2)
    every = finder(batch, 0.05)
    assert every.image_indices.unique().tolist() == [0, 1]
    threshold = every.scores.median().item()
    assert torch.equal(finder(batch, threshold).scores, every.scores[every.scores > threshold])


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"score_threshold": 0.01}, "cannot give scores of 0.01"),
        ({"iou_threshold": 0.6}, "cannot give boxes that overlap by 0.6"),
        ({"max_detections": 101}, "cannot give 101 detections"),
    ],
)
def test_suppression_inside_sets_limits(files, options, told):
    with pytest.raises(InputError, match=told):
        load_detector(weights=files / "detector.pt2")([random_image()], **options)


def test_other_outputs_than_the_metadata_tell(files, tmp_path):
    def edited(entry: str, text: str) -> ExportedModel:
        path = tmp_path / "edited.pt2"
        with zipfile.ZipFile(files / "model.pt2") as old, zipfile.ZipFile(path, "w") as new:
            for name in old.namelist():
                content = old.read(name)
                if name.endswith("efficientdet.json"):
                    content = json.dumps(json.loads(content) | {entry: text}).encode()
                new.writestr(name, content)
        return ExportedModel(path, CPU)

    batch = images(describe())
    assert len(edited("mean", "[0, 0, 0]")(batch)) == 3
    for model in (edited("class_names", '["disc"]'), edited("suppression", json.dumps(asdict(SUPPRESSION)))):
        with pytest.raises(InputError, match="has other outputs than its metadata tell"):
            model(batch)


def test_openvino_needs_both_files(tmp_path):
    pytest.importorskip("openvino")
    (tmp_path / "model.xml").write_text("<net/>")
    with pytest.raises(InputError, match="needs model.bin beside it"):
        ExportedModel(tmp_path / "model.xml", CPU)


def test_less_padding_needs_a_file_of_any_shape(files):
    with pytest.raises(InputError, match="--rect"):
        load_detector(weights=files / "model.pt2")([random_image()], rect=True)


def test_a_file_is_not_compiled(files):
    with pytest.raises(InputError, match="leave --compile out"):
        load_detector(weights=files / "model.pt2", mode="compiled")
