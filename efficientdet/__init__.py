"""EfficientDet D0 to D7X in PyTorch, with the published weights' keys and arithmetic.

- `load_detector` makes a `Detector` of weights and a project: pictures in, `Detections` out.
- `EfficientDet` is the plain network: images in, `Outputs` out; `load_weights` puts a weights file into it.
- `load_project` reads a YAML file under `projects/`, or elsewhere, to a `Project`.
- `InputError`, a ValueError, says in one sentence what is wrong with a file or a value.
"""

try:
    from efficientdet.checkpoint import load_weights
    from efficientdet.detector import Detector, load_detector
    from efficientdet.model import EfficientDet, Outputs
    from efficientdet.postprocess import Detections
    from efficientdet.project import Project, load_project
    from utils.errors import InputError
except ImportError as error:
    if error.name is None or error.name.partition(".")[0] != "utils":
        raise
    import utils

    raise ImportError(
        f"efficientdet needs the package utils that comes with it, but {utils.__file__} is imported in its place: "
        "rename that, or run from another folder"
    ) from error

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
