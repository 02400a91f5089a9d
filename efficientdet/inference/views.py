"""More views of an image than one: its mirror image, and overlapping tiles, for small objects in large images."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from efficientdet.boxes import box_area, clip_boxes, flip_boxes, pairwise_intersection
from efficientdet.data.transforms import Letterbox
from efficientdet.model.postprocess import suppress
from efficientdet.structures import Detections, concatenate

MIN_OVERLAP = 0.2  # as a share of a tile's side: an object up to this size lies entirely in some tile
_EDGE = 0.01  # as a share of a tile's side: a box this close to an inner edge may be cut there
_COVERED = 0.6  # share of a cut box that an uncut one covers if both are the same object


def mirror(images: Tensor, letterboxes: Sequence[Letterbox]) -> Tensor:
    """Return a copy of a batch (N, 3, H, W) with mirrored images, which stay at the left of the canvas."""
    mirrored = images.clone()
    for image, letterbox in zip(mirrored, letterboxes):
        height, width = letterbox.resized
        image[:, :height, :width] = image[:, :height, :width].flip(-1)
    return mirrored


def join_mirrored(
    found: Detections, mirrored: Detections, letterbox: Letterbox, iou_threshold: float, max_detections: int | None
) -> Detections:
    """Join the detections in an image and in its mirror image by NMS, all in pixels of the canvas."""
    boxes = clip_boxes(flip_boxes(mirrored.boxes, letterbox.resized[1]), *letterbox.canvas)
    both = concatenate([found, Detections(boxes, mirrored.scores, mirrored.class_ids)])
    return suppress(both, iou_threshold, max_detections)


class Tile(NamedTuple):
    """A part of an image, in pixels."""

    top: int
    left: int
    height: int
    width: int

    def crop(self, image: np.ndarray) -> np.ndarray:
        return image[self.top : self.top + self.height, self.left : self.left + self.width]


def make_tiles(height: int, width: int, side: int | None) -> list[Tile]:
    """Return the whole image and, if `side` is given and shorter, evenly spread squares of that side that cover it."""
    whole = Tile(0, 0, height, width)
    if side is None or max(height, width) <= side:
        return [whole]
    tops, lefts = (_tile_starts(length, side) for length in (height, width))
    return [whole] + [Tile(top, left, min(side, height), min(side, width)) for top in tops for left in lefts]


def _tile_starts(length: int, side: int) -> list[int]:
    room = max(0, length - side)
    steps = -(-room // max(1, int(side * (1 - MIN_OVERLAP))))
    return [0] + [step * room // steps for step in range(1, steps + 1)]


def join_tiles(parts: list[tuple[Tile, Detections]], iou_threshold: float, max_detections: int | None) -> Detections:
    """Return the detections in an image, given those in its tiles (as of `make_tiles`), in pixels of the tile.

    Detections of several tiles are joined by NMS within each class. A box at an inner edge of its tile may be part of
    an object. It is dropped if a neighboring tile must show more of the object, because the box is shorter than the
    overlap of tiles; or if an uncut box of its class covers most of it.
    """
    if len(parts) == 1:
        return parts[0][1][:max_detections]  # NMS is done
    whole = parts[0][0]
    moved, cut = [], []
    for tile, found in parts:
        side = found.boxes.new_tensor([tile.width, tile.height])
        before, after = found.boxes[:, :2], found.boxes[:, 2:]  # (K, 2): on the axes x and y
        continues_before = torch.tensor([tile.left > 0, tile.top > 0])
        continues_after = torch.tensor([tile.left + tile.width < whole.width, tile.top + tile.height < whole.height])
        cut_on_axis = (before < _EDGE * side) & continues_before | (after > (1 - _EDGE) * side) & continues_after
        kept = ~(cut_on_axis & (after - before < MIN_OVERLAP * side)).any(dim=1)
        offset = found.boxes.new_tensor([tile.left, tile.top, tile.left, tile.top])
        moved.append(Detections(found.boxes + offset, found.scores, found.class_ids)[kept])
        cut.append(cut_on_axis.any(dim=1)[kept])
    together, is_cut = concatenate(moved), torch.cat(cut)
    kept = ~is_cut
    for class_id in together.class_ids[is_cut].unique():
        of_class = together.class_ids == class_id
        boxes = together.boxes[of_class & is_cut]
        shared = pairwise_intersection(boxes, together.boxes[of_class & ~is_cut])
        kept[of_class & is_cut] = (shared < _COVERED * box_area(boxes)[:, None]).all(dim=1)
    return suppress(together[kept], iou_threshold, max_detections)
