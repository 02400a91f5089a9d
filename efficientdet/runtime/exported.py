"""Exported files as networks that the detector can run."""

from pathlib import Path

import torch
from torch import Tensor

from efficientdet.config import model_config
from efficientdet.model.postprocess import Candidates, find_candidates
from efficientdet.project import Project
from efficientdet.runtime.engines import open_engine
from efficientdet.runtime.metadata import DETECTION_OUTPUTS, RAW_OUTPUTS, Metadata
from efficientdet.runtime.runner import measuring
from efficientdet.structures import Outputs
from utils.errors import InputError
from utils.stopwatch import Stopwatch


class ExportedModel:
    """A file written by `efficientdet.export`, ready to run on `device`, as `Runner`.

    Args:
        dtype: bfloat16 makes OpenVINO compute in it; the precision of all other files is fixed.

    Raises InputError for an unusable file, a missing package, and a device or dtype that the engine does not support.
    """

    def __init__(self, path: str | Path, device: torch.device, dtype: torch.dtype = torch.float32):
        self.path = Path(path)
        if not self.path.is_file():
            raise InputError(f"the exported file {self.path} does not exist")
        dtypes = (torch.float32, torch.bfloat16) if self.path.suffix.lower() == ".xml" else (torch.float32,)
        if dtype not in dtypes:
            raise InputError(f"the precision of {self.path} is fixed: leave --amp out, or export it with --half")
        self._run, texts = open_engine(self.path, device, dtype)
        self.metadata = Metadata.from_texts(texts, self.path)
        self.device = device
        self.compound_coef = self.metadata.compound_coef
        self.size_divisor = model_config(self.compound_coef).size_divisor
        self.input_dtype = torch.uint8 if self.metadata.normalization == "inside" else torch.float32
        self.padding = self.metadata.padding
        self.takes_any_shape = self.metadata.dynamic
        self.limits = self.metadata.suppression

    def canvas(self, image_size: int | tuple[int, int] | None, project: Project | None = None) -> tuple[int, int]:
        """Return the (height, width) of the input for an image size; None means the file's own, not the project's.

        Raises InputError if the file was exported for another one.
        """
        own = self.metadata.image_size
        canvas = own if image_size is None else model_config(self.compound_coef).input_shape(image_size)
        if canvas != own and not self.metadata.dynamic:
            sizes = f"{own[1]} x {own[0]} pixels, not {canvas[1]} x {canvas[0]} (width x height)"
            raise InputError(f"{self.path} accepts {sizes}: export again with that --image_size or with --dynamic")
        return canvas

    def project(self, given: Project | None) -> Project:
        """Return the file's project. Raises InputError if a `given` one has other class names."""
        own = self.metadata.project(self.path)
        if given is not None and given.class_names != own.class_names:
            differences = [f"{a!r} is {b!r} there" for a, b in zip(own.class_names, given.class_names) if a != b]
            differences.append(f"it has {own.num_classes} classes, the project has {given.num_classes}")
            raise InputError(f"{self.path} was not exported with {given.path}: {differences[0]}; pass its -p")
        return own

    def __call__(self, images: Tensor) -> tuple[Tensor, ...]:
        """Return the outputs described in `ExportGraph.forward` for images (N, 3, H, W) of `input_dtype`.

        Raises InputError if they do not match the metadata.
        """
        outputs = tuple(self._run(self.graph_input(images)))
        is_raw, num_classes = self.limits is None, len(self.metadata.class_names)
        expected = RAW_OUTPUTS if is_raw else DETECTION_OUTPUTS
        if len(outputs) != len(expected) or (is_raw and outputs[0].shape[-1] != num_classes):
            raise InputError(f"the outputs of {self.path} do not match its metadata: export the weights again")
        return outputs

    def graph_input(self, images: Tensor) -> Tensor:
        """Return images (N, 3, H, W) of `input_dtype` in the layout of the graph's input."""
        return (images.permute(0, 2, 3, 1) if self.input_dtype == torch.uint8 else images).contiguous()

    def find(
        self, images: Tensor, score_threshold: float, stopwatch: Stopwatch | None = None, multi_label: bool = False
    ) -> Candidates:
        """See `Runner.find`. A graph with NMS has dropped everything below its own threshold already."""
        with measuring(stopwatch, "network", self.device):
            outputs = self(images)
        with measuring(stopwatch, "post-processing", self.device):
            if self.limits is None:
                height, width = images.shape[-2:]
                return find_candidates(Outputs(*outputs), height, width, score_threshold, multi_label)
            boxes, scores, classes, _ = outputs
            image_indices, rows = (scores > score_threshold).nonzero(as_tuple=True)
            return Candidates(image_indices, *(values[image_indices, rows] for values in (boxes, scores, classes)))
