"""What to detect, and how."""

import difflib
from collections.abc import Sequence
from dataclasses import dataclass

from efficientdet.config import DEMO_IOU_THRESHOLD, DEMO_SCORE_THRESHOLD
from efficientdet.project import Project
from efficientdet.runtime.runner import Runner
from utils.errors import InputError


@dataclass(frozen=True)
class DetectionOptions:
    """What to detect, and how. `Detector.__call__` describes each option."""

    score_threshold: float = DEMO_SCORE_THRESHOLD
    iou_threshold: float = DEMO_IOU_THRESHOLD
    max_detections: int | None = None
    classes: Sequence[str] | None = None
    flip: bool = False
    rect: bool = False
    tile: int | None = None


def check_options(options: DetectionOptions, runner: Runner, project: Project) -> None:
    """Raise InputError for options that a network with a fixed input or with NMS inside cannot follow."""
    if options.rect and not runner.takes_any_shape:
        raise InputError("--rect changes the input's shape from batch to batch, and this network accepts one: omit it")
    limits = runner.limits
    if limits is not None and (
        options.score_threshold < limits.score_threshold
        or options.iou_threshold > limits.iou_threshold
        or (options.max_detections or 0) > limits.max_detections
    ):
        raise InputError(
            f"{project.path} was exported with --nms: pass a score threshold of {limits.score_threshold:g} or more, an "
            f"IoU threshold of {limits.iou_threshold:g} or less, and at most {limits.max_detections} as max_detections"
        )


def class_indices(names: Sequence[str], project: Project) -> list[int]:
    """Return the indices of classes by name. Raises InputError, with the nearest name, for an unknown one."""
    known = [name for name in project.class_names if name]
    for name in names:
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"it has {', '.join(known)}"
            raise InputError(f"{project.path} has no class {name!r}: {hint}")
    return [project.class_names.index(name) for name in names]
