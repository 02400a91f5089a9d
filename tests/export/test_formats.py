"""Each format's file computes, in its own engine, what PyTorch computes."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from exports import CPU, SUPPRESSION, describe, images, network_that_finds

from efficientdet.checkpoints.find import EXPORT_SUFFIXES
from efficientdet.export.formats import check_packages, write_exported
from efficientdet.export.proof import TOLERANCES, prove
from efficientdet.runtime.exported import ExportedModel
from efficientdet.runtime.metadata import DETECTION_OUTPUTS, RAW_OUTPUTS, Metadata
from utils.errors import InputError

for needed in ("onnx", "onnxscript", "onnxruntime", "openvino"):
    pytest.importorskip(needed)

RARE = replace(SUPPRESSION, score_threshold=0.775)  # leaves nothing of some images, and one object of others


def exported(folder: Path, export_format: str, metadata: Metadata) -> ExportedModel:
    path = folder / f"model{EXPORT_SUFFIXES[export_format]}"
    write_exported(network_that_finds(metadata.compound_coef), metadata, export_format, path)
    model = ExportedModel(path, CPU)
    assert model.metadata == metadata
    return model


def assert_proven(model: ExportedModel, *sizes: tuple[int, int]) -> None:
    """On images of the model's own size, and of `sizes`."""
    inputs = [images(model.metadata, 1, *size) for size in (model.metadata.image_size, *sizes)]
    proof = prove(model, network_that_finds(model.compound_coef), inputs)
    assert proof.first_failure is None, proof
    assert proof.matches.found > (4 if model.metadata.suppression == RARE else 40) * len(inputs)
    assert proof.matches.clear > 0


def test_packages_that_are_missing(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name.startswith("onnx") else object())
    with pytest.raises(InputError, match="--format onnx needs onnx and onnxscript and onnxruntime: pip install onnx"):
        check_packages("onnx")
    check_packages("pt2")


@pytest.mark.parametrize(
    ("export_format", "changes"),
    [
        ("onnx", {"precision": "float16"}),
        ("onnx", {"suppression": RARE, "normalization": "outside"}),
        ("openvino", {"suppression": RARE}),
        ("openvino", {"precision": "float16"}),
        ("torchscript", {"precision": "float16", "normalization": "outside"}),
        ("torchscript", {"suppression": RARE}),
        ("pt2", {"suppression": RARE, "normalization": "outside"}),
    ],
)
def test_d0(tmp_path, export_format, changes):
    model = exported(tmp_path, export_format, describe(**changes))
    assert_proven(model)
    four = images(model.metadata, 4)
    together, one_by_one = model(four), [model(image[None]) for image in four]
    names = DETECTION_OUTPUTS if model.metadata.suppression else RAW_OUTPUTS
    for name, batch, *singles in zip(names, together, *one_by_one):
        expected = singles[0] if name == "anchors" else torch.cat(singles)
        assert batch.shape == expected.shape
        largest = TOLERANCES[model.metadata.precision].outputs * expected.float().std()
        assert (batch - expected).abs().max() <= largest, name
    if model.metadata.suppression == RARE:
        assert {0, 1} < set(together[DETECTION_OUTPUTS.index("count")].tolist())


def test_any_height_and_width(tmp_path):
    """OpenVINO's file is made of ONNX's."""
    metadata = describe(dynamic=True, suppression=SUPPRESSION)
    assert_proven(exported(tmp_path, "openvino", metadata), (256, 128), (128, 384))


# Of the larger ones each is exported in one format. D7 is built as D6; D8 has another level.
@pytest.mark.slow
@pytest.mark.parametrize(
    ("compound_coef", "export_format"),
    [
        (1, "pt2"),
        (2, "torchscript"),
        (3, "pt2"),
        (4, "pt2"),
        (5, "torchscript"),
        (6, "pt2"),
        (7, "torchscript"),
        (8, "onnx"),
    ],
)
def test_every_coefficient(tmp_path, compound_coef, export_format):
    assert_proven(exported(tmp_path, export_format, describe(compound_coef)))
