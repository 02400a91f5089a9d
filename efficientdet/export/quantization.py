"""An exported network -> the same in eight-bit integers, for CPUs: post-training quantisation of OpenVINO's files.

NNCF runs calibration images to find the range of each activation, and corrects the biases for what rounding adds.
README.md tells what else was measured: ONNX Runtime gains next to nothing by its own quantisation.
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

PACKAGES = ("openvino", "nncf")
CALIBRATION_IMAGES = 100  # 10 lose another 0.01 AP of the shapes, 300 gain nothing


def quantize(model_path: Path, inputs: Sequence[np.ndarray], quantized_path: Path) -> None:
    """Write the INT8 form of an exported float32 network, with the same inputs, outputs and metadata but for precision.

    Convolutions and what lies before them are quantised, except for squeeze-and-excitation, which NNCF leaves. What
    follows the last ones, such as decoding and non-maximum suppression, stays in float32, too.

    Args:
        model_path: OpenVINO's .xml, with its .bin beside. It should come from `openvino.convert_model`: without the
            fusions of that, INT8 is slower than float32.
        inputs: what the network takes, an array for each pass: of images like those that it will see.
        quantized_path: the .xml to write; the .bin goes beside it.

    Raises InputError when a package is not installed, ValueError without inputs.
    """
    require_packages(PACKAGES, "quantisation")
    if not inputs:
        raise ValueError("quantisation needs at least one input to calibrate with")
    import nncf
    import openvino

    network = openvino.Core().read_model(model_path)
    with (
        # NNCF's own switch, set_log_level, would also silence every handler that another put on its logger, for good.
        quietly("nncf"),
        contextlib.redirect_stdout(io.StringIO()),  # takes NNCF's own bars
        tqdm(inputs, desc="calibrating INT8", unit="pass", dynamic_ncols=True) as bar,
    ):
        quantized = nncf.quantize(
            network,
            nncf.Dataset(bar),
            # The other preset, MIXED, gives activations zero points: 0.006 less AP of the shapes, and a tenth slower.
            preset=nncf.QuantizationPreset.PERFORMANCE,
            subset_size=len(inputs),
            ignored_scope=nncf.IgnoredScope(names=_after_convolutions(network)),
        )
    quantized.set_rt_info(json.dumps("int8"), [RT_INFO, "precision"])
    openvino.save_model(quantized, quantized_path, compress_to_fp16=False)


def _after_convolutions(network: "openvino.Model") -> list[str]:
    """The names of the operations, no convolutions themselves, that no convolution follows."""
    before, after = set(), []
    for operation in reversed(network.get_ordered_ops()):
        users = [target.get_node() for output in operation.outputs() for target in output.get_target_inputs()]
        if operation.get_type_name() in CONVOLUTIONS or any(user.get_friendly_name() in before for user in users):
            before.add(operation.get_friendly_name())
        else:
            after.append(operation.get_friendly_name())
    return after
