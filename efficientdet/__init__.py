"""EfficientDet D0 to D7X in PyTorch, with the published weights' keys and arithmetic.

- `load_detector` builds a `Detector` from weights and a project: images in, `Detections` out.
- `EfficientDet` is the plain network: images in, `Outputs` out. `load_weights` loads a weights file into it.
- `load_project` reads a project's YAML file into a `Project`.
- `InputError`, a ValueError, says in a sentence what is wrong with a file or a value.
"""

from pathlib import Path

import utils

# A program may have a `utils` of its own: where that is found first, the modules of ours are found in it, too.
utils.__path__ = [*getattr(utils, "__path__", ()), str(Path(__file__).resolve().parent.parent / "utils")]

from efficientdet.checkpoints.loading import load_weights
from efficientdet.inference.detector import Detector, load_detector
from efficientdet.model.network import EfficientDet
from efficientdet.project import Project, load_project
from efficientdet.structures import Detections, Outputs
from utils.errors import InputError

__version__ = "1.0.0"

__all__ = [
    "Detections",
    "Detector",
    "EfficientDet",
    "InputError",
    "Outputs",
    "Project",
    "load_detector",
    "load_project",
    "load_weights",
]
