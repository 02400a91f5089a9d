"""Exported files: what they say of themselves, and how each is run in its own engine."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from efficientdet.checkpoints.find import FORMATS
from efficientdet.config import model_config
from efficientdet.deployable import DETECTION_OUTPUTS, RAW_OUTPUTS, Suppression
from efficientdet.model.postprocess import Candidates, find_candidates
from efficientdet.project import Project
from efficientdet.pt2_safety import check_pt2, no_pickled_code
from efficientdet.structures import Outputs
from utils.errors import InputError
from utils.optional import quietly, require_packages

METADATA_FILE = "efficientdet.json"  # inside the archives of PyTorch's formats


RT_INFO = "efficientdet"  # the group of entries in OpenVINO's files


CONVOLUTIONS = ("Convolution", "GroupConvolution")  # OpenVINO's types of operations


@dataclass(frozen=True)
class Metadata:
    """What an exported file says of itself. Each entry is stored under its name, as JSON."""

    compound_coef: int
    class_names: tuple[str, ...]  # class index -> name
    mean: tuple[float, ...]  # of red, green, blue in [0, 1]
    std: tuple[float, ...]
    normalization: str  # "inside": images are uint8 (N, H, W, 3) RGB; "outside": float32 (N, 3, H, W), normalised
    image_size: tuple[int, int]  # (height, width) in pixels
    dynamic: bool  # whether any multiples of size_divisor will do, too
    size_divisor: int
    padding: tuple[int, int, int]  # RGB beside and below a picture, if normalization is inside; else zeros
    precision: str  # of the network: "float32", "float16" or "int8"
    suppression: Suppression | None  # None: the outputs are the network's own
    pyramid_levels: tuple[int, ...]
    anchor_scale: float
    anchor_scales: tuple[float, ...]
    anchor_ratios: tuple[tuple[float, float], ...]

    def to_texts(self) -> dict[str, str]:
        """Entry -> JSON."""
        return {name: json.dumps(value, ensure_ascii=False) for name, value in asdict(self).items()}

    @classmethod
    def from_texts(cls, texts: Mapping[str, str], path: Path) -> "Metadata":
        """The opposite. InputError when the file at `path` lacks an entry or has a strange one."""
        try:
            values: dict[str, Any] = {field.name: _as_tuples(json.loads(texts[field.name])) for field in fields(cls)}
            if values["suppression"] is not None:
                values["suppression"] = Suppression(**values["suppression"])
            metadata = cls(**values)
            metadata._check()
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(
                f"{path} does not tell what it holds ({error}): export weights by python -m efficientdet.export"
            ) from error
        return metadata

    def _check(self) -> None:
        """ValueError or TypeError for what cannot be used."""
        for values, length in (self.mean, 3), (self.std, 3), (self.padding, 3), (self.image_size, 2):
            if len(values) != length or not all(isinstance(value, int | float) for value in values):
                raise ValueError(f"{values} are not {length} numbers")
        if model_config(self.compound_coef).input_shape(self.image_size) != self.image_size:
            raise ValueError(f"image_size {self.image_size}")
        if not self.class_names or not all(isinstance(name, str) for name in self.class_names):
            raise ValueError("class_names")
        if self.normalization not in ("inside", "outside") or self.precision not in ("float32", "float16", "int8"):
            raise ValueError("normalization or precision")

    def project(self, path: Path) -> Project:
        """As much of a project as detecting needs. `path` is the file's."""
        return Project(
            path, path.stem, "", "", 0, self.mean, self.std, self.anchor_scales, self.anchor_ratios, self.class_names
        )


def _as_tuples(value: object) -> object:
    return tuple(map(_as_tuples, value)) if isinstance(value, list) else value


class Engine(NamedTuple):
    """A file that is ready to run."""

    run: Callable[[Tensor], Sequence[Tensor]]  # images -> the graph's outputs
    texts: Mapping[str, str]  # the entries of `Metadata`


class ExportedModel:
    """A file of `efficientdet.export`, ready to run on `device`.

    Args:
        dtype: bfloat16 lets OpenVINO compute in it; all other files know their own.

    Raises InputError for a file that cannot be used, a package that is missing, and a device or dtype that the file's
    engine does not have.
    """

    def __init__(self, path: str | Path, device: torch.device, dtype: torch.dtype = torch.float32):
        self.path = Path(path)
        if not self.path.is_file():
            raise InputError(f"there is no exported file {self.path}")
        if dtype != torch.float32 and (self.path.suffix.lower(), dtype) != (FORMATS["openvino"], torch.bfloat16):
            raise InputError(f"{self.path} has a precision of its own: leave --amp out, or export it with --half")
        engine = _ENGINES[self.path.suffix.lower()](self.path, device, dtype)
        self.metadata = Metadata.from_texts(engine.texts, self.path)
        self.compound_coef = self.metadata.compound_coef
        self.config = model_config(self.compound_coef)
        self._run = engine.run

    @property
    def input_dtype(self) -> torch.dtype:
        return torch.uint8 if self.metadata.normalization == "inside" else torch.float32

    def canvas(self, image_size: int | tuple[int, int] | None) -> tuple[int, int]:
        """(height, width) of the input for an `image_size`, as `ModelConfig.input_shape`.

        InputError when the file was made for another one.
        """
        own = self.metadata.image_size
        canvas = own if image_size is None else self.config.input_shape(image_size)
        if canvas != own and not self.metadata.dynamic:
            raise InputError(
                f"{self.path} takes {own[1]} x {own[0]} pixels, not {canvas[1]} x {canvas[0]} (width x height): "
                "export the weights anew, with that --image_size or with --dynamic"
            )
        return canvas

    def project(self, given: Project | None) -> Project:
        """The file's own, which must have the class names of the `given` one. InputError when they differ."""
        own = self.metadata.project(self.path)
        if given is not None and given.class_names != own.class_names:
            differing = [f"{a!r} is {b!r} there" for a, b in zip(own.class_names, given.class_names) if a != b]
            lengths = f"it has {own.num_classes} classes, the project has {given.num_classes}"
            raise InputError(
                f"{self.path} was not exported with {given.path}: {differing[0] if differing else lengths}; pass its -p"
            )
        return own

    def __call__(self, images: Tensor) -> tuple[Tensor, ...]:
        """The file's outputs, which `Deployable.forward` describes, for images (N, 3, H, W) of `input_dtype`.

        InputError when the file has others than it says.
        """
        outputs = tuple(self._run(self.graph_input(images)))
        expected = RAW_OUTPUTS if self.metadata.suppression is None else DETECTION_OUTPUTS
        if len(outputs) != len(expected) or (
            self.metadata.suppression is None and outputs[0].shape[-1] != len(self.metadata.class_names)
        ):
            raise InputError(f"{self.path} has other outputs than its metadata tell: export the weights anew")
        return outputs

    def graph_input(self, images: Tensor) -> Tensor:
        """Images (N, 3, H, W) of `input_dtype` as the graph has its dimensions."""
        return (images.permute(0, 2, 3, 1) if self.input_dtype == torch.uint8 else images).contiguous()


class ExportedFinder:
    """An exported file with the choice of its candidates, as `CandidateFinder`."""

    def __init__(self, network: ExportedModel):
        self.network = network

    def __call__(self, images: Tensor, score_threshold: float) -> Candidates:
        """A graph with suppression has left out those below its own threshold already."""
        outputs = self.network(images)
        if self.network.metadata.suppression is None:
            height, width = images.shape[-2:]
            return find_candidates(Outputs(*outputs), height, width, score_threshold)
        boxes, scores, classes, _ = outputs
        image_indices, rows = (scores > score_threshold).nonzero(as_tuple=True)
        return Candidates(image_indices, *(values[image_indices, rows] for values in (boxes, scores, classes)))


@contextmanager
def _readable(path: Path, engine: str) -> Iterator[None]:
    """Whatever `engine` raises at a file that it cannot read becomes an InputError."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:  # each engine has exceptions of its own
        lines = [line for line in str(error).splitlines() if line.strip() and not line.startswith("Exception from")]
        reason = lines[0].strip() if lines else type(error).__name__
        raise InputError(f"{engine} cannot run {path}: {reason}") from error


def _open_onnx(path: Path, device: torch.device, dtype: torch.dtype) -> Engine:
    require_packages(["onnxruntime"], f"running {path.name}")
    import onnxruntime

    provider = "CUDAExecutionProvider" if device.type == "cuda" else "CPUExecutionProvider"
    if provider not in onnxruntime.get_available_providers():
        raise InputError(
            "this ONNX Runtime knows no GPU: pip install onnxruntime-gpu, or run on the CPU (--cuda False)"
        )
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3  # errors
    providers = [(provider, {"device_id": device.index or 0} if device.type == "cuda" else {})]
    with _readable(path, "ONNX Runtime"):
        session = onnxruntime.InferenceSession(path, options, providers)

    def run(images: Tensor) -> list[Tensor]:
        return [torch.from_numpy(output) for output in session.run(None, {"images": images.cpu().numpy()})]

    return Engine(run, session.get_modelmeta().custom_metadata_map)


def _open_openvino(path: Path, device: torch.device, dtype: torch.dtype) -> Engine:
    require_packages(["openvino"], f"running {path.name}")
    if device.type != "cpu":
        raise InputError(f"{path} runs on the CPU: pass --cuda False")
    if not path.with_suffix(".bin").is_file():
        raise InputError(f"{path} needs {path.with_suffix('.bin').name} beside it: copy both files")
    import openvino

    settings = {
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        "INFERENCE_PRECISION_HINT": "bf16" if dtype == torch.bfloat16 else "f32",  # its own choice would be bf16
        "PERFORMANCE_HINT": "LATENCY",
    }
    with _readable(path, "OpenVINO"):
        core = openvino.Core()
        model = core.read_model(path)
        names = [field.name for field in fields(Metadata) if model.has_rt_info([RT_INFO, field.name])]
        texts = {name: model.get_rt_info([RT_INFO, name]).astype(str) for name in names}
        compiled = core.compile_model(model, "CPU", settings)

    def run(images: Tensor) -> list[Tensor]:
        return [torch.from_numpy(output) for output in compiled(images.numpy(), share_inputs=True).to_tuple()]

    return Engine(run, texts)


def _open_torchscript(path: Path, device: torch.device, dtype: torch.dtype) -> Engine:
    import torchvision  # noqa: F401  (registers its operators)

    files = {METADATA_FILE: ""}
    with _readable(path, "TorchScript"), quietly():
        module = torch.jit.load(path, map_location=device, _extra_files=files)
        texts = json.loads(files[METADATA_FILE] or "{}")

    @torch.inference_mode()
    def run(images: Tensor) -> Sequence[Tensor]:
        return module(images.to(device))

    return Engine(run, texts)


def _open_pt2(path: Path, device: torch.device, dtype: torch.dtype) -> Engine:
    import torchvision  # noqa: F401  (registers its operators)
    from torch.export.passes import move_to_device_pass

    files = {METADATA_FILE: ""}
    with _readable(path, "torch.export"):
        check_pt2(path)
        with quietly("torch"), no_pickled_code():
            program = torch.export.load(path, extra_files=files)
        if device.type != "cpu":
            program = move_to_device_pass(program, device)
        module = program.module()
        texts = json.loads(files[METADATA_FILE] or "{}")

    @torch.inference_mode()
    def run(images: Tensor) -> Sequence[Tensor]:
        return module(images.to(device))

    return Engine(run, texts)


_ENGINES = {".onnx": _open_onnx, ".xml": _open_openvino, ".torchscript": _open_torchscript, ".pt2": _open_pt2}
