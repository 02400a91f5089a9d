"""Quantize OpenVINO files to eight-bit integers after training, for CPUs.

NNCF runs calibration images to find the range of each activation, and corrects the biases for rounding errors.
The README says what else was measured: ONNX Runtime gains next to nothing from its own quantization.
"""

import contextlib
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from tqdm import tqdm

from efficientdet.runtime.metadata import CONVOLUTIONS, RT_INFO
from utils.optional import quietly, require_packages

if TYPE_CHECKING:
    import openvino

INT8_PACKAGES = ("openvino", "nncf")
CALIBRATION_IMAGES = 100  # on shapes, 10 cost another 0.01 AP and 300 gain nothing


def quantize(model_path: Path, inputs: Sequence[np.ndarray], quantized_path: Path) -> None:
    """Write the INT8 form of an exported float32 network: same inputs, outputs and metadata except the precision.

    Convolutions and their predecessors are quantized, except squeeze-and-excitation, which NNCF skips. Whatever
    follows the last convolutions, such as decoding and NMS, stays in float32.

    Args:
        model_path: OpenVINO's .xml, from `openvino.convert_model`: without its fusions, INT8 is slower than float32.
        inputs: arrays for the network, one per pass, of images like those it will see.
        quantized_path: the .xml to write; the .bin is written next to it.

    Raises InputError if a package is missing, ValueError without inputs.
    """
    require_packages(INT8_PACKAGES, "quantization")
    if not inputs:
        raise ValueError("quantization needs at least one input for calibration")
    import nncf
    import openvino

    network = openvino.Core().read_model(model_path)
    # The MIXED preset adds zero points to activations: 0.006 AP lower on shapes, and a tenth slower.
    preset, ignored = nncf.QuantizationPreset.PERFORMANCE, nncf.IgnoredScope(names=_after_convolutions(network))
    bar = tqdm(inputs, desc="calibrating INT8", unit="pass", dynamic_ncols=True)
    # Not nncf.set_log_level, which would also silence other handlers on its logger, permanently. The redirection
    # hides NNCF's progress bars.
    with quietly("nncf"), contextlib.redirect_stdout(io.StringIO()), bar:
        data = nncf.Dataset(bar)
        quantized = nncf.quantize(network, data, preset=preset, subset_size=len(inputs), ignored_scope=ignored)
    quantized.set_rt_info(json.dumps("int8"), [RT_INFO, "precision"])
    openvino.save_model(quantized, quantized_path, compress_to_fp16=False)


def _after_convolutions(network: "openvino.Model") -> list[str]:
    """Return the names of the operations that neither are convolutions nor precede one."""
    before, after = set(), []
    for operation in reversed(network.get_ordered_ops()):
        users = [target.get_node() for output in operation.outputs() for target in output.get_target_inputs()]
        if operation.get_type_name() in CONVOLUTIONS or any(user.get_friendly_name() in before for user in users):
            before.add(operation.get_friendly_name())
        else:
            after.append(operation.get_friendly_name())
    return after
