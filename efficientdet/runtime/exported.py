"""Exported files: what they say of themselves, and how each is run in its own engine."""

from pathlib import Path

import torch
from torch import Tensor

from efficientdet.checkpoints.find import EXPORT_SUFFIXES
from efficientdet.config import model_config
from efficientdet.model.postprocess import Candidates, find_candidates
from efficientdet.project import Project
from efficientdet.runtime.engines import _ENGINES
from efficientdet.runtime.metadata import DETECTION_OUTPUTS, RAW_OUTPUTS, Metadata
from efficientdet.structures import Outputs
from utils.errors import InputError


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
        suffix = self.path.suffix.lower()
        if dtype != torch.float32 and (suffix, dtype) != (EXPORT_SUFFIXES["openvino"], torch.bfloat16):
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
