"""What to detect, and how."""

import difflib
from collections.abc import Sequence
from dataclasses import dataclass

from efficientdet.config import DEMO_IOU_THRESHOLD, DEMO_SCORE_THRESHOLD
from efficientdet.project import Project
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
    soft_nms: bool = False
    multi_label: bool = False  # for evaluation, see `find_candidates`

    def __post_init__(self) -> None:
        if self.soft_nms and (self.flip or self.tile is not None):
            raise InputError("soft-NMS detects in one view of an image: leave --flip and --tile out")


def resolve_iou_threshold(given: float | None, default: float, soft_nms: bool) -> float:
    """Return the IoU threshold of hard NMS. Raises InputError if one is given for soft-NMS, which has none."""
    if soft_nms and given is not None:
        raise InputError("soft-NMS has no IoU threshold: leave --iou_threshold out")
    return default if given is None else given


def class_indices(names: Sequence[str], project: Project) -> list[int]:
    """Return the indices of classes by name. Raises InputError, with the nearest name, for an unknown one."""
    known = [name for name in project.class_names if name]
    for name in names:
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"it has {', '.join(known)}"
            raise InputError(f"{project.path} has no class {name!r}: {hint}")
    return [project.class_names.index(name) for name in names]
