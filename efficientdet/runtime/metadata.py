"""The metadata in an exported file."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from efficientdet.config import model_config
from efficientdet.project import Project
from utils.errors import InputError

RAW_OUTPUTS = ("class_logits", "box_deltas", "anchors")
DETECTION_OUTPUTS = ("boxes", "scores", "classes", "count")
METADATA_FILE = "efficientdet.json"  # in the archives of PyTorch's formats
RT_INFO = "efficientdet"  # the group of entries in OpenVINO's files
CONVOLUTIONS = ("Convolution", "GroupConvolution")  # OpenVINO's operator types


@dataclass(frozen=True)
class Suppression:
    """The thresholds of a graph that includes NMS."""

    score_threshold: float
    iou_threshold: float
    max_detections: int  # the best of each image


@dataclass(frozen=True)
class Metadata:
    """What an exported file says about itself. Each entry is stored under its name, as JSON."""

    compound_coef: int
    class_names: tuple[str, ...]  # class index -> name
    mean: tuple[float, ...]  # of red, green and blue in [0, 1]
    std: tuple[float, ...]
    normalization: str  # "inside": images are uint8 (N, H, W, 3) RGB; "outside": float32 (N, 3, H, W), normalized
    image_size: tuple[int, int]  # (height, width) in pixels
    dynamic: bool  # whether other multiples of size_divisor are accepted as well
    size_divisor: int
    padding: tuple[int, int, int]  # RGB right of and below an image, if normalization is inside; else zeros
    precision: str  # of the network: "float32", "float16" or "int8"
    suppression: Suppression | None  # None: the outputs are the network's own
    pyramid_levels: tuple[int, ...]
    anchor_scale: float
    anchor_scales: tuple[float, ...]
    anchor_ratios: tuple[tuple[float, float], ...]

    def __post_init__(self) -> None:
        for values, length in (self.mean, 3), (self.std, 3), (self.padding, 3), (self.image_size, 2):
            if len(values) != length or not all(isinstance(value, int | float) for value in values):
                raise ValueError(f"{values} are not {length} numbers")
        if model_config(self.compound_coef).input_shape(self.image_size) != self.image_size:
            raise ValueError(f"image_size {self.image_size}")
        if not self.class_names or not all(isinstance(name, str) for name in self.class_names):
            raise ValueError("class_names")
        if self.normalization not in ("inside", "outside") or self.precision not in ("float32", "float16", "int8"):
            raise ValueError("normalization or precision")

    def to_texts(self) -> dict[str, str]:
        """Return entry -> JSON."""
        return {name: json.dumps(value, ensure_ascii=False) for name, value in asdict(self).items()}

    @classmethod
    def from_texts(cls, texts: Mapping[str, str], path: Path) -> "Metadata":
        """Return the inverse of `to_texts`. Raises InputError, naming the file, for missing or invalid entries."""
        try:
            values: dict[str, Any] = {field.name: _as_tuples(json.loads(texts[field.name])) for field in fields(cls)}
            if values["suppression"] is not None:
                values["suppression"] = Suppression(**values["suppression"])
            return cls(**values)
        except (KeyError, TypeError, ValueError) as error:
            remedy = "export the weights with python -m efficientdet.export"
            raise InputError(f"{path} has no valid metadata ({error}): {remedy}") from error

    def project(self, path: Path) -> Project:
        """Return the part of a project that detection needs. `path` is the exported file."""
        return Project(
            path, path.stem, "", "", 0, self.mean, self.std, self.anchor_scales, self.anchor_ratios, self.class_names
        )


def _as_tuples(value: object) -> object:
    return tuple(map(_as_tuples, value)) if isinstance(value, list) else value
