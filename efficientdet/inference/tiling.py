"""Small objects in large images: overlapping windows that are searched one by one, and their detections joined."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from efficientdet.boxes import box_area, pairwise_intersection
from efficientdet.model.postprocess import suppress
from efficientdet.structures import Detections, concatenate

OVERLAP = 0.2  # of a window's side, at least: objects up to that size lie whole in some window
_EDGE = 0.01  # of a window's side: a box that comes so near to it may be cut there
_COVERED = 0.6  # share of a cut box that a whole one covers when it shows the same object


class Window(NamedTuple):
    """A part of an image, in its pixels."""

    top: int
    left: int
    height: int
    width: int

    def of(self, image: np.ndarray) -> np.ndarray:
        """Its pixels in the image (H, W, 3)."""
        return image[self.top : self.top + self.height, self.left : self.left + self.width]


def windows(height: int, width: int, side: int | None) -> list[Window]:
    """The image as a whole, and squares of `side` pixels that cover it, evenly spread; None asks for the whole alone.

    The whole is there for objects larger than a window.
    """
    whole = Window(0, 0, height, width)
    if side is None or max(height, width) <= side:
        return [whole]
    return [whole] + [
        Window(top, left, min(side, height), min(side, width))
        for top in _starts(height, side)
        for left in _starts(width, side)
    ]


def _starts(length: int, side: int) -> list[int]:
    """Where windows of `side` begin on an axis of `length` pixels."""
    room = length - side
    if room <= 0:
        return [0]
    steps = -(-room // max(1, int(side * (1 - OVERLAP))))
    return [step * room // steps for step in range(steps + 1)]


def join(
    parts: Sequence[tuple[Window, Detections]],
    height: int,
    width: int,
    iou_threshold: float,
    max_detections: int | None = None,
) -> Detections:
    """The detections of a `height` x `width` image from those of its windows, in the windows' own pixels.

    What two windows have seen is thinned by non-maximum suppression within each class. A box at an inner edge of its
    window may be a part of an object only. It goes when a neighbour must show more of the object, as the box is
    shorter than the windows' overlap, and when a box of its class that is whole covers most of it.
    """
    if len(parts) == 1:
        return parts[0][1][:max_detections]  # not thinned again
    moved, cut = [], []
    for window, found in parts:
        side = found.boxes.new_tensor([window.width, window.height])
        before, after = found.boxes[:, :2], found.boxes[:, 2:]  # (K, 2): on the axes x and y
        goes_on_before = torch.tensor([window.left > 0, window.top > 0])
        goes_on_after = torch.tensor([window.left + window.width < width, window.top + window.height < height])
        cut_on_axis = (before < _EDGE * side) & goes_on_before | (after > (1 - _EDGE) * side) & goes_on_after
        shown = ~(cut_on_axis & (after - before < OVERLAP * side)).any(dim=1)
        offset = found.boxes.new_tensor([window.left, window.top, window.left, window.top])
        moved.append(Detections(found.boxes + offset, found.scores, found.class_ids)[shown])
        cut.append(cut_on_axis.any(dim=1)[shown])
    together, is_cut = concatenate(moved), torch.cat(cut)
    kept = ~is_cut
    kept[is_cut] = ~_covered(together[is_cut], together[~is_cut])
    return suppress(together[kept], iou_threshold, max_detections)


def _covered(cut: Detections, whole: Detections) -> Tensor:
    """(C,) bool: which of the `cut` boxes lie mostly inside a `whole` one of their class."""
    covered = torch.zeros(len(cut), dtype=torch.bool)
    for class_id in cut.class_ids.unique():
        of_class = cut.class_ids == class_id
        boxes = cut.boxes[of_class]
        shared = pairwise_intersection(boxes, whole.boxes[whole.class_ids == class_id])
        covered[of_class] = (shared >= _COVERED * box_area(boxes)[:, None]).any(dim=1)
    return covered
