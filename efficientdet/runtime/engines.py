"""The engines that run exported files, one for each format."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path

import torch
from torch import Tensor

from efficientdet.runtime.metadata import METADATA_FILE, RT_INFO, Metadata
from efficientdet.runtime.pt2_safety import check_pt2, no_pickled_code
from utils.errors import InputError
from utils.optional import quietly, require_packages

# What a file becomes: a function from images to the graph's outputs, and the entries of `Metadata` as JSON.
Engine = tuple[Callable[[Tensor], Sequence[Tensor]], Mapping[str, str]]


def open_engine(path: Path, device: torch.device, dtype: torch.dtype) -> Engine:
    """Open an exported file in the engine of its format. Raises InputError if the engine cannot run it."""
    try:
        return _OPENERS[path.suffix.lower()](path, device, dtype)
    except InputError:
        raise
    except Exception as error:  # every engine has its own exceptions
        lines = [line for line in str(error).splitlines() if line.strip() and not line.startswith("Exception from")]
        raise InputError(f"cannot run {path}: {lines[0].strip() if lines else type(error).__name__}") from error


def _open_onnx(path: Path, device: torch.device, dtype: torch.dtype) -> Engine:
    require_packages(["onnxruntime"], f"running {path.name}")
    import onnxruntime

    provider = "CUDAExecutionProvider" if device.type == "cuda" else "CPUExecutionProvider"
    if provider not in onnxruntime.get_available_providers():
        raise InputError("this ONNX Runtime has no GPU support: pip install onnxruntime-gpu, or pass --cuda False")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3  # errors
    settings = {"device_id": device.index or 0} if device.type == "cuda" else {}
    session = onnxruntime.InferenceSession(path, options, [(provider, settings)])

    def run(images: Tensor) -> list[Tensor]:
        return [torch.from_numpy(output) for output in session.run(None, {"images": images.cpu().numpy()})]

    return run, session.get_modelmeta().custom_metadata_map


def _open_openvino(path: Path, device: torch.device, dtype: torch.dtype) -> Engine:
    require_packages(["openvino"], f"running {path.name}")
    weights = path.with_suffix(".bin")
    if device.type != "cpu":
        raise InputError(f"{path} runs on the CPU: pass --cuda False")
    if not weights.is_file():
        raise InputError(f"{path} needs {weights.name} in the same folder: copy both files")
    import openvino

    settings = {
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        "INFERENCE_PRECISION_HINT": "bf16" if dtype == torch.bfloat16 else "f32",  # its default may be bf16
        "PERFORMANCE_HINT": "LATENCY",
    }
    core = openvino.Core()
    model = core.read_model(path)
    names = [field.name for field in fields(Metadata) if model.has_rt_info([RT_INFO, field.name])]
    texts = {name: model.get_rt_info([RT_INFO, name]).astype(str) for name in names}
    compiled = core.compile_model(model, "CPU", settings)

    def run(images: Tensor) -> list[Tensor]:
        return [torch.from_numpy(output) for output in compiled(images.numpy(), share_inputs=True).to_tuple()]

    return run, texts


def _open_torch(path: Path, device: torch.device, dtype: torch.dtype) -> Engine:
    import torchvision  # noqa: F401  (registers its operators)

    files = {METADATA_FILE: ""}  # filled while loading
    if path.suffix.lower() == ".pt2":
        from torch.export.passes import move_to_device_pass

        check_pt2(path)
        with quietly("torch"), no_pickled_code():
            program = torch.export.load(path, extra_files=files)
        module = (program if device.type == "cpu" else move_to_device_pass(program, device)).module()
    else:
        with quietly():
            module = torch.jit.load(path, map_location=device, _extra_files=files)

    @torch.inference_mode()
    def run(images: Tensor) -> Sequence[Tensor]:
        return module(images.to(device))

    return run, json.loads(files[METADATA_FILE] or "{}")


_OPENERS = {".onnx": _open_onnx, ".xml": _open_openvino, ".torchscript": _open_torch, ".pt2": _open_torch}
