"""Quantization of a small network with the parts of an exported file: normalization, decoding, top-k."""

import importlib.util
import logging
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from efficientdet.export.quantization import quantize
from utils.errors import InputError

openvino = pytest.importorskip("openvino")
pytest.importorskip("nncf")
pytestmark = pytest.mark.slow  # importing NNCF

SIDE, BOXES = 32, 16 * 16
METADATA = {"class_names": '["square", "disc"]', "precision": '"float32"'}


class SmallDetector(nn.Module):
    """(1, 32, 32, 3) uint8 -> raw outputs (256, 6), boxes xyxy (256, 4) and the best 8 of them."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 32, 3, stride=2, padding=1)
        self.depthwise = nn.Conv2d(32, 32, 3, padding=1, groups=32)
        self.pointwise = nn.Conv2d(32, 32, 1)
        self.wide = nn.Conv2d(32, 32, 3, padding=1)
        self.header = nn.Conv2d(32, 6, 1)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x = (images.permute(0, 3, 1, 2).float() - 120) / 60
        x = F.silu(self.stem(x))
        x = x + F.silu(self.pointwise(self.depthwise(x)))
        raw = self.header(F.silu(self.wide(x))).permute(0, 2, 3, 1).reshape(BOXES, 6)
        boxes = torch.cat((raw[:, :2], raw[:, :2] + raw[:, 2:4].exp()), dim=-1) * SIDE
        return raw, boxes, boxes[raw[:, 4:].sigmoid().amax(dim=-1).topk(8).indices]


def random_images(number: int, seed: int) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.integers(0, 256, (1, SIDE, SIDE, 3), dtype=np.uint8) for _ in range(number)]


def run(path: Path, image: np.ndarray) -> list[np.ndarray]:
    engine = openvino.Core().compile_model(path, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return [np.array(output) for output in engine([image]).values()]


def constants(path: Path, element_type: openvino.Type) -> list[openvino.Node]:
    operations = openvino.Core().read_model(path).get_ops()
    return [op for op in operations if op.get_type_name() == "Constant" and op.get_element_type() == element_type]


@pytest.fixture(scope="module")
def exported(tmp_path_factory) -> Path:
    """The float32 file."""
    torch.manual_seed(0)
    program = torch.export.export(SmallDetector().eval(), (torch.from_numpy(random_images(1, 0)[0]),))
    model = openvino.convert_model(program)
    for key, text in METADATA.items():
        model.set_rt_info(text, ["efficientdet", key])
    path = tmp_path_factory.mktemp("exported") / "small.xml"
    openvino.save_model(model, path, compress_to_fp16=False)
    return path


@pytest.fixture(scope="module")
def quantized(exported) -> Path:
    path = exported.with_name("small-int8.xml")
    quantize(exported, random_images(16, 1), path)
    return path


def test_no_calibration_inputs(tmp_path):
    with pytest.raises(ValueError, match="at least one input"):
        quantize(tmp_path / "absent.xml", [], tmp_path / "new.xml")


@pytest.mark.parametrize("package", ["openvino", "nncf"])
def test_missing_package_is_named(package, monkeypatch, tmp_path):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == package else SimpleNamespace())
    with pytest.raises(InputError, match=f"pip install {package}"):
        quantize(tmp_path / "absent.xml", random_images(1, 0), tmp_path / "new.xml")


def test_outputs_are_close_but_not_equal(exported, quantized):
    image = random_images(1, 2)[0]
    expected, found = run(exported, image)[0], run(quantized, image)[0]
    difference = np.abs(found - expected)
    assert 0 < difference.mean() < 0.05 * expected.std()
    assert difference.max() < 0.3 * expected.std()


def test_convolution_weights_are_bytes(exported, quantized):
    weights = sum(constant.get_data().size for constant in constants(quantized, openvino.Type.i8))
    assert weights == 32 * (3 * 9 + 9 + 32 + 32 * 9 + 6)
    assert not constants(exported, openvino.Type.i8)
    assert quantized.with_suffix(".bin").stat().st_size < 0.5 * exported.with_suffix(".bin").stat().st_size


def test_operations_after_the_last_convolution_stay_exact(quantized):
    raw, boxes, best = run(quantized, random_images(1, 2)[0])
    decoded = np.concatenate((raw[:, :2], raw[:, :2] + np.exp(raw[:, 2:4])), axis=-1) * SIDE
    np.testing.assert_allclose(boxes, decoded, rtol=1e-5, atol=1e-4)
    np.testing.assert_array_equal(best, boxes[np.argsort(-raw[:, 4:].max(axis=-1))[:8]])


def test_names_shapes_and_metadata_are_kept_except_the_precision(exported, quantized):
    before, after = (openvino.Core().read_model(path) for path in (exported, quantized))
    for ports in ("inputs", "outputs"):
        described = [
            [(port.get_names(), port.get_partial_shape(), port.get_element_type()) for port in getattr(model, ports)]
            for model in (before, after)
        ]
        assert described[0] == described[1]
    texts = {key: after.get_rt_info(["efficientdet", key]).astype(str) for key in METADATA}
    assert texts == {**METADATA, "precision": '"int8"'}


def test_one_progress_bar_and_two_files(exported, tmp_path, capfd):
    quantize(exported, random_images(4, 1), tmp_path / "new.xml")
    printed = capfd.readouterr()
    assert printed.out == ""
    assert {line.split(":")[0] for line in printed.err.replace("\r", "\n").split("\n") if line} == {"calibrating INT8"}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["new.bin", "new.xml"]


def test_logging_of_the_program_is_unchanged(exported, tmp_path):
    logger, handler = logging.getLogger("nncf"), logging.Handler(logging.DEBUG)
    level = logger.level
    logger.addHandler(handler)
    try:
        quantize(exported, random_images(1, 1), tmp_path / "new.xml")
    finally:
        logger.removeHandler(handler)
    assert (handler.level, logger.level) == (logging.DEBUG, level)
