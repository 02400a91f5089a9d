"""The weights and inputs behind `tests/golden/`: every array is determined by its name and shape.

The seed is the CRC-32 of the name, so that the order of creation does not matter.
"""

import json
import zlib
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from efficientdet.model.network import EfficientDet

GOLDEN = Path(__file__).parent / "golden"


def recorded(file_name: str) -> dict[str, np.ndarray]:
    """Return all arrays of an `.npz` file in `tests/golden/`."""
    with np.load(GOLDEN / file_name) as arrays:
        return dict(arrays)


def published_shapes(compound_coef: int) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the published weights by key, in the order of the file."""
    networks = json.loads((GOLDEN / "state_dict_shapes.json").read_text())
    return {key: tuple(shape) for key, shape in networks[f"d{compound_coef}"].items()}


def normal_array(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Return standard-normal float32 numbers, which also serve as images."""
    return _generator(name).normal(size=shape).astype(np.float32)


def state_array(key: str, shape: tuple[int, ...]) -> np.ndarray:
    """Return the entry `key` of a state dict: float32, or int64 for the step counters of batch norms."""
    constants = {"num_batches_tracked": np.int64(0), "running_mean": np.float32(0), "running_var": np.float32(1)}
    kind = key.rpartition(".")[2]
    if kind in constants:
        return np.full(shape, constants[kind])

    generator = _generator(key)
    if kind.endswith(("_w1", "_w2")):  # fusion weights, some negative, so that their ReLU matters
        drawn = generator.uniform(-0.3, 1.5, shape)
    elif kind == "bias":
        drawn = generator.normal(0.0, 0.1, shape)
    elif len(shape) == 1:  # batch norm scale
        drawn = generator.uniform(0.8, 1.2, shape)
    else:  # convolution: (out, in / groups, height, width)
        drawn = generator.normal(0.0, 1.0 / np.sqrt(np.prod(shape[1:])), shape)
    return drawn.astype(np.float32)


def fill(network: nn.Module, dtype: torch.dtype = torch.float64) -> nn.Module:
    """Load the recorded weights, in `dtype` on the CPU, into `network`, which may be on any device, also "meta"."""

    def tensor(key: str, shape: torch.Size) -> Tensor:
        values = torch.from_numpy(state_array(key, tuple(shape)))
        return values.to(dtype) if values.is_floating_point() else values

    state = {key: tensor(key, value.shape) for key, value in network.state_dict().items()}
    network.load_state_dict(state, strict=True, assign=True)
    return network


def network_with_statistics(compound_coef: int) -> EfficientDet:
    """Return a float64 network with three classes and batch norm statistics that a wrong fold would show."""
    with torch.device("meta"):
        model = EfficientDet(compound_coef, num_classes=3)
    fill(model).eval()
    generator = torch.Generator().manual_seed(0)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.2, generator=generator)
            module.running_var.uniform_(0.3, 1.5, generator=generator)
    return model


def _generator(name: str) -> np.random.Generator:
    return np.random.default_rng(zlib.crc32(name.encode()))
