"""The file of each format computes, in its own engine, what PyTorch computes."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from exports import CPU, SUPPRESSION, describe, images, network_that_finds

from efficientdet.checkpoints.find import EXPORT_SUFFIXES
from efficientdet.export.formats import write_exported
from efficientdet.export.proof import TOLERANCES, prove
from efficientdet.runtime.exported import ExportedModel
from efficientdet.runtime.metadata import DETECTION_OUTPUTS, RAW_OUTPUTS, Metadata

for package in ("onnx", "onnxscript", "onnxruntime", "openvino"):
    pytest.importorskip(package)
pytestmark = pytest.mark.slow

RARE = replace(SUPPRESSION, score_threshold=0.775)  # detects nothing in some images, and one object in others


def exported(folder: Path, export_format: str, metadata: Metadata) -> ExportedModel:
    path = folder / f"model{EXPORT_SUFFIXES[export_format]}"
    write_exported(network_that_finds(metadata.compound_coef), metadata, export_format, path)
    model = ExportedModel(path, CPU)
    assert model.metadata == metadata
    return model


def assert_proven(model: ExportedModel, *sizes: tuple[int, int]) -> None:
    """Prove the model on images of its own size and of `sizes`."""
    inputs = [images(model.metadata, 1, *size) for size in (model.metadata.image_size, *sizes)]
    proof = prove(model, network_that_finds(model.compound_coef), inputs)
    assert proof.first_failure is None, proof
    assert proof.matches.found > (4 if model.metadata.suppression == RARE else 40) * len(inputs)
    assert proof.matches.clear > 0


@pytest.mark.oldest
@pytest.mark.parametrize(
    ("export_format", "changes"),
    [
        ("onnx", {"suppression": RARE, "normalization": "outside", "precision": "float16"}),
        ("torchscript", {"precision": "float16", "normalization": "outside"}),
        ("torchscript", {"suppression": RARE}),
        ("pt2", {"suppression": RARE, "normalization": "outside"}),
    ],
)
def test_batch_equals_single_images(tmp_path, export_format, changes):
    model = exported(tmp_path, export_format, describe(**changes))
    assert_proven(model)
    batch = images(model.metadata, 4)
    together, one_by_one = model(batch), [model(image[None]) for image in batch]
    names = DETECTION_OUTPUTS if model.metadata.suppression else RAW_OUTPUTS
    for name, outputs, *singles in zip(names, together, *one_by_one):
        expected = singles[0] if name == "anchors" else torch.cat(singles)
        assert outputs.shape == expected.shape
        largest = TOLERANCES["class_logits"][model.metadata.precision] * expected.float().std()
        assert (outputs - expected).abs().max() <= largest, name
    if model.metadata.suppression == RARE:
        assert {0, 1} < set(together[DETECTION_OUTPUTS.index("count")].tolist())


def test_dynamic_height_and_width(tmp_path):
    """With weights in float16. OpenVINO's file is made from ONNX's."""
    metadata = describe(dynamic=True, suppression=SUPPRESSION, precision="float16")
    model = exported(tmp_path, "openvino", metadata)
    assert_proven(model, (256, 128), (128, 384))
    parameters = sum(value.numel() for value in network_that_finds().parameters())
    assert 2 * parameters < model.path.with_suffix(".bin").stat().st_size < 3 * parameters


def test_d8(tmp_path):
    """Which fuses by plain sums, as D6 and D7 do, and has another level."""
    assert_proven(exported(tmp_path, "torchscript", describe(8)))
