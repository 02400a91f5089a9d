"""Write a network in each export format: a single graph and its `Metadata`."""

import json
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.export import Dim

from efficientdet.export.graph import ExportGraph, scores_after_nms, scores_after_nms_operator
from efficientdet.model.network import EfficientDet
from efficientdet.runtime.metadata import (
    CONVOLUTIONS,
    DETECTION_OUTPUTS,
    METADATA_FILE,
    RAW_OUTPUTS,
    RT_INFO,
    Metadata,
    Suppression,
)
from efficientdet.runtime.modes import optimize
from utils.optional import quietly

if TYPE_CHECKING:
    import openvino

PACKAGES = {
    "onnx": ("onnx", "onnxscript", "onnxruntime"),
    "openvino": ("onnx", "onnxscript", "openvino"),
    "torchscript": (),
    "pt2": (),
}
_CPU = torch.device("cpu")
_OPSET = 18


def make_graph(network: EfficientDet, metadata: Metadata, nms_operator: bool = False) -> ExportGraph:
    """Return the graph that `metadata` describes, on the CPU.

    Args:
        nms_operator: make NMS a single operator, which the format replaces by its own.
    """
    dtype = torch.float16 if metadata.precision == "float16" else torch.float32
    fused: Any = optimize(network, _CPU, dtype).network
    return ExportGraph(fused, metadata, scores_after_nms_operator if nms_operator else scores_after_nms).eval()


def write_exported(network: EfficientDet, metadata: Metadata, export_format: str, path: Path) -> None:
    """Write the file that `metadata` describes to `path`, which must have the format's suffix."""
    import torchvision  # noqa: F401  (cannot be imported while tracing)

    with quietly("torch", "onnxscript", "onnx_ir"), torch.no_grad():
        _WRITERS[export_format](network, metadata, path)


def _write_onnx(network: EfficientDet, metadata: Metadata, path: Path) -> None:
    graph = make_graph(network, metadata, nms_operator=True)
    graph.to(memory_format=torch.contiguous_format)  # channels-last weights would fill the graph with reshapes
    program = torch.onnx.export(
        graph,
        (_example(metadata),),
        input_names=["images"],
        output_names=DETECTION_OUTPUTS if metadata.suppression else RAW_OUTPUTS,
        dynamic_shapes=_dynamic_shapes(metadata),
        opset_version=_OPSET,
        custom_translation_table=_onnx_nms(metadata.suppression) if metadata.suppression else {},
        dynamo=True,
        verbose=False,
    )
    assert program is not None
    model = program.model_proto
    model.producer_name = "efficientdet-pytorch"
    for name, text in metadata.to_texts().items():
        model.metadata_props.add(key=name, value=text)
    path.write_bytes(model.SerializeToString())


def _onnx_nms(suppression: Suppression) -> dict[Any, Any]:
    """Return the translation of `scores_after_nms_operator` to ONNX operators."""
    from onnxscript import FLOAT, INT64
    from onnxscript import opset18 as op

    def translated(
        boxes: FLOAT, scores: FLOAT, class_ids: INT64, num_classes: int, score_threshold: float, iou_threshold: float
    ) -> FLOAT:
        # (N, classes, K): each candidate scores in its own class only.
        classes = op.Constant(value_ints=list(range(num_classes)))
        is_class = op.Equal(op.Unsqueeze(class_ids, [1]), op.Unsqueeze(classes, [0, 2]))
        by_class = op.Where(is_class, op.Unsqueeze(scores, [1]), op.Constant(value_float=0.0))
        selected = op.NonMaxSuppression(
            boxes,
            by_class,
            op.Constant(value_ints=[suppression.max_detections]),
            op.Constant(value_floats=[iou_threshold]),
            op.Constant(value_floats=[score_threshold]),
        )  # (M, 3): image, class, candidate
        places = op.Gather(selected, op.Constant(value_ints=[0, 2]), axis=1)
        zeros = op.Mul(scores, op.Constant(value_float=0.0))
        return op.ScatterND(zeros, places, op.GatherND(scores, places))

    return {torch.ops.efficientdet.scores_after_nms.default: translated}


def _write_openvino(network: EfficientDet, metadata: Metadata, path: Path) -> None:
    """Convert from ONNX. Half precision applies to the stored weights; the engine chooses its own for computing."""
    import openvino

    with tempfile.TemporaryDirectory() as folder:
        onnx_path = Path(folder) / "model.onnx"
        _write_onnx(network, replace(metadata, precision="float32"), onnx_path)
        model = openvino.convert_model(onnx_path)  # read_model would skip some fusions
        for name, text in metadata.to_texts().items():
            model.set_rt_info(text, [RT_INFO, name])
        if metadata.precision == "float16":
            _halve_weights(model)
        openvino.save_model(model, path, compress_to_fp16=False)


def _halve_weights(model: "openvino.Model") -> None:
    """Store the convolutions' weights in float16. OpenVINO's own compression would also round the anchors."""
    from openvino import opset13 as op

    halved: dict[str, Any] = {}  # the pyramid levels share the heads' weights
    for operation in model.get_ordered_ops():
        if operation.get_type_name() in CONVOLUTIONS:
            weights = operation.input_value(1).get_node()
            name = weights.get_friendly_name()
            if name not in halved:
                halved[name] = op.convert(op.constant(weights.get_data().astype(np.float16)), "f32")
            operation.input(1).replace_source_output(halved[name].output(0))


def _write_torchscript(network: EfficientDet, metadata: Metadata, path: Path) -> None:
    traced = torch.jit.trace(make_graph(network, metadata), _example(metadata), check_trace=False)
    torch.jit.save(traced, str(path), _extra_files={METADATA_FILE: json.dumps(metadata.to_texts())})


def _write_pt2(network: EfficientDet, metadata: Metadata, path: Path) -> None:
    graph = make_graph(network, metadata)
    program = torch.export.export(graph, (_example(metadata),), dynamic_shapes=_dynamic_shapes(metadata))
    program.example_inputs = None  # else they would be stored
    torch.export.save(program, path, extra_files={METADATA_FILE: json.dumps(metadata.to_texts())})


_WRITERS = {"onnx": _write_onnx, "openvino": _write_openvino, "torchscript": _write_torchscript, "pt2": _write_pt2}


def _example(metadata: Metadata) -> Tensor:
    """Return a batch of two images; if their size is dynamic, small ones with unequal sides."""
    divisor = metadata.size_divisor
    height, width = (2 * divisor, 3 * divisor) if metadata.dynamic else metadata.image_size
    if metadata.normalization == "inside":
        return torch.zeros(2, height, width, 3, dtype=torch.uint8)
    return torch.zeros(2, 3, height, width)


def _dynamic_shapes(metadata: Metadata) -> tuple[dict[int, Any]]:
    """Return the input's dynamic dimensions: the batch, and with --dynamic height and width."""
    sizes: dict[int, Any] = {0: Dim("batch")}
    if metadata.dynamic:
        first = 1 if metadata.normalization == "inside" else 2
        sizes[first] = metadata.size_divisor * Dim("rows")
        sizes[first + 1] = metadata.size_divisor * Dim("columns")
    return (sizes,)
