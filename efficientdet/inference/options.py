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


def class_indices(names: Sequence[str], project: Project) -> list[int]:
    """Return the indices of classes by name. Raises InputError, with the nearest name, for an unknown one."""
    known = [name for name in project.class_names if name]
    for name in names:
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"it has {', '.join(known)}"
            raise InputError(f"{project.path} has no class {name!r}: {hint}")
    return [project.class_names.index(name) for name in names]
