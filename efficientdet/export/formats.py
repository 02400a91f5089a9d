"""Write a network in each export format: a single graph and its `Metadata`."""

import json
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.export import Dim

from efficientdet.export.graph import ExportGraph, scores_after_nms, scores_after_nms_operator
from efficientdet.model.network import EfficientDet
from efficientdet.runtime.metadata import CONVOLUTIONS, DETECTION_OUTPUTS, METADATA_FILE, RAW_OUTPUTS, RT_INFO, Metadata
from efficientdet.runtime.modes import optimize
from utils.optional import quietly

PACKAGES = {
    "onnx": ("onnx", "onnxscript", "onnxruntime"),
    "openvino": ("onnx", "onnxscript", "openvino"),
    "torchscript": (),
    "pt2": (),
}


def make_graph(network: EfficientDet, metadata: Metadata, nms_operator: bool = False) -> ExportGraph:
    """Return the graph that `metadata` describes, on the CPU.

    Args:
        nms_operator: make NMS a single operator, which the format replaces by its own.
    """
    dtype = torch.float16 if metadata.precision == "float16" else torch.float32
    fused: Any = optimize(network, torch.device("cpu"), dtype).network
    return ExportGraph(fused, metadata, scores_after_nms_operator if nms_operator else scores_after_nms).eval()


def write_exported(network: EfficientDet, metadata: Metadata, export_format: str, path: Path) -> None:
    """Write the file that `metadata` describes to `path`, which must have the format's suffix."""
    import torchvision  # noqa: F401  (cannot be imported while tracing)

    with quietly("torch", "onnxscript", "onnx_ir"), torch.no_grad():
        _WRITERS[export_format](network, metadata, path)


def _write_onnx(network: EfficientDet, metadata: Metadata, path: Path) -> None:
    graph = make_graph(network, metadata, nms_operator=True)
    graph.to(memory_format=torch.contiguous_format)  # channels-last weights would fill the graph with reshapes
    example, dynamic_shapes = _example(metadata)
    limits = metadata.suppression
    program = torch.onnx.export(
        graph,
        (example,),
        input_names=["images"],
        output_names=DETECTION_OUTPUTS if limits else RAW_OUTPUTS,
        dynamic_shapes=dynamic_shapes,
        opset_version=18,
        custom_translation_table=_onnx_nms(limits.max_detections) if limits else {},
        dynamo=True,
        verbose=False,
    )
    assert program is not None
    model = program.model_proto
    model.producer_name = "efficientdet-pytorch"
    for name, text in metadata.to_texts().items():
        model.metadata_props.add(key=name, value=text)
    path.write_bytes(model.SerializeToString())


def _onnx_nms(max_detections: int) -> dict[Any, Any]:
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
        maximum = op.Constant(value_ints=[max_detections])
        thresholds = [op.Constant(value_floats=[value]) for value in (iou_threshold, score_threshold)]
        selected = op.NonMaxSuppression(boxes, by_class, maximum, *thresholds)  # (M, 3): image, class, candidate
        places = op.Gather(selected, op.Constant(value_ints=[0, 2]), axis=1)
        zeros = op.Mul(scores, op.Constant(value_float=0.0))
        return op.ScatterND(zeros, places, op.GatherND(scores, places))

    return {torch.ops.efficientdet.scores_after_nms.default: translated}


def _write_openvino(network: EfficientDet, metadata: Metadata, path: Path) -> None:
    """Convert from ONNX. Half precision applies to the stored weights; the engine chooses its own for computing."""
    import openvino
    from openvino import opset13 as op

    with tempfile.TemporaryDirectory() as folder:
        onnx_path = Path(folder) / "model.onnx"
        _write_onnx(network, replace(metadata, precision="float32"), onnx_path)
        model = openvino.convert_model(onnx_path)  # read_model would skip some fusions
        for name, text in metadata.to_texts().items():
            model.set_rt_info(text, [RT_INFO, name])
        # OpenVINO's own compression to float16 would also round the anchors: halve the convolutions' weights only.
        if metadata.precision == "float16":
            halved: dict[str, Any] = {}  # the pyramid levels share the heads' weights
            for operation in model.get_ordered_ops():
                if operation.get_type_name() in CONVOLUTIONS:
                    weights = operation.input_value(1).get_node()
                    name = weights.get_friendly_name()
                    if name not in halved:
                        halved[name] = op.convert(op.constant(weights.get_data().astype(np.float16)), "f32")
                    operation.input(1).replace_source_output(halved[name].output(0))
        openvino.save_model(model, path, compress_to_fp16=False)


def _write_torchscript(network: EfficientDet, metadata: Metadata, path: Path) -> None:
    traced = torch.jit.trace(make_graph(network, metadata), _example(metadata)[0], check_trace=False)
    torch.jit.save(traced, str(path), _extra_files={METADATA_FILE: json.dumps(metadata.to_texts())})


def _write_pt2(network: EfficientDet, metadata: Metadata, path: Path) -> None:
    example, dynamic_shapes = _example(metadata)
    program = torch.export.export(make_graph(network, metadata), (example,), dynamic_shapes=dynamic_shapes)
    program.example_inputs = None  # else they would be stored
    torch.export.save(program, path, extra_files={METADATA_FILE: json.dumps(metadata.to_texts())})


_WRITERS = {"onnx": _write_onnx, "openvino": _write_openvino, "torchscript": _write_torchscript, "pt2": _write_pt2}


def _example(metadata: Metadata) -> tuple[Tensor, tuple[dict[int, Any]]]:
    """Return a batch of two images, and its dynamic dimensions: the batch and, with --dynamic, height and width."""
    height, width = metadata.image_size
    dimensions: dict[int, Any] = {0: Dim("batch")}
    first = 1 if metadata.normalization == "inside" else 2
    if metadata.dynamic:  # small, with unequal sides
        height, width = 2 * metadata.size_divisor, 3 * metadata.size_divisor
        dimensions[first] = metadata.size_divisor * Dim("rows")
        dimensions[first + 1] = metadata.size_divisor * Dim("columns")
    if metadata.normalization == "inside":
        return torch.zeros(2, height, width, 3, dtype=torch.uint8), (dimensions,)
    return torch.zeros(2, 3, height, width), (dimensions,)
