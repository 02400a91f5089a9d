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
    if runner.limits is None:
        return
    score, iou = runner.limits.score_threshold, runner.limits.iou_threshold
    max_detections = runner.limits.max_detections
    requested = ""
    if options.score_threshold < score:
        requested = f"scores of {options.score_threshold:g} (its threshold is {score:g})"
    elif options.iou_threshold > iou:
        requested = f"boxes that overlap by {options.iou_threshold:g} (its NMS keeps up to {iou:g})"
    elif options.max_detections is not None and options.max_detections > max_detections:
        requested = f"{options.max_detections} detections per image (it returns {max_detections})"
    if requested:
        raise InputError(f"{project.path} was exported with --nms and has no {requested}: relax it, or export again")


def class_indices(names: Sequence[str], project: Project) -> list[int]:
    """Return the indices of classes by name. Raises InputError, with the nearest name, for an unknown one."""
    known = [name for name in project.class_names if name]
    for name in names:
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"it has {', '.join(known)}"
            raise InputError(f"{project.path} has no class {name!r}: {hint}")
    return [project.class_names.index(name) for name in names]
