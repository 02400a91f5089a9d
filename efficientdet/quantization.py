"""An exported network -> the same in eight-bit integers, for CPUs: post-training quantisation of OpenVINO's files.

NNCF finds the range of each activation by running calibration pictures, and corrects the biases for the mean error.
"""

import contextlib
import importlib.util
import io
import logging
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from tqdm import tqdm

from utils.errors import InputError
from utils.files import written_whole

if TYPE_CHECKING:
    import openvino

CALIBRATION_PICTURES = 100  # 50 lose another 0.005 AP of the shapes, 300 gain nothing
_CONVOLUTIONS = ("Convolution", "GroupConvolution")


def require_nncf() -> None:
    """InputError when a package that quantisation needs is not installed."""
    for name in ("openvino", "nncf"):
        if importlib.util.find_spec(name) is None:
            raise InputError(f"--int8 needs the package {name}: pip install {name}")


def quantize(model_path: Path, inputs: Sequence[np.ndarray], quantized_path: Path) -> None:
    """Write the INT8 form of an exported float32 network, with the same inputs, outputs and metadata.

    Quantised is what leads to a convolution. The heads' last convolutions, which give logits and box deltas, stay in
    float32, and so do box decoding and non-maximum suppression, where the file has them.

    Args:
        model_path: OpenVINO's .xml, with its .bin beside.
        inputs: what the network takes, one array for each pass: of pictures like those that it will see.
        quantized_path: the .xml to write; the .bin goes beside it.

    Raises InputError when a package is not installed or the disk does not take the files, ValueError without inputs.
    """
    require_nncf()
    if not len(inputs):
        raise ValueError("quantisation needs at least one input to calibrate with")
    import nncf
    import openvino

    nncf.set_log_level(logging.ERROR)
    network = openvino.Core().read_model(model_path)
    with (
        contextlib.redirect_stdout(io.StringIO()),  # for bars of NNCF's own
        tqdm(inputs, desc="calibrating INT8", unit="pass", dynamic_ncols=True) as bar,
    ):
        quantized = nncf.quantize(
            network,
            nncf.Dataset(bar),
            # Zero points for activations (the preset MIXED) cost 0.006 AP of the shapes, and a tenth of the time.
            preset=nncf.QuantizationPreset.PERFORMANCE,
            subset_size=len(inputs),
            ignored_scope=nncf.IgnoredScope(names=_beyond_convolutions(network)),
        )
    _save(quantized, quantized_path)


def _beyond_convolutions(network: "openvino.Model") -> list[str]:
    """The names of the operations that no convolution follows."""
    before, beyond = set(), []
    for operation in reversed(network.get_ordered_ops()):
        users = [target.get_node() for output in operation.outputs() for target in output.get_target_inputs()]
        if any(user.get_type_name() in _CONVOLUTIONS or user.get_friendly_name() in before for user in users):
            before.add(operation.get_friendly_name())
        else:
            beyond.append(operation.get_friendly_name())
    return beyond


def _save(network: "openvino.Model", path: Path) -> None:
    import openvino

    weights_path = path.with_suffix(".bin")
    with (
        written_whole(weights_path) as weights,
        written_whole(path) as structure,
        tempfile.TemporaryDirectory(dir=path.parent) as folder,  # for OpenVINO chooses the second name by the first
    ):
        draft = Path(folder, path.name)
        openvino.save_model(network, draft, compress_to_fp16=False)
        os.replace(draft, structure)
        os.replace(draft.with_suffix(".bin"), weights)
