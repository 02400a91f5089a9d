"""The objects of a data set at the network's input size, and how well the anchors match them."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from efficientdet.boxes import pairwise_iou, yxyx_to_xyxy
from efficientdet.config import ModelConfig
from efficientdet.data.annotations import AnnotatedSet
from efficientdet.data.transforms import Letterbox
from efficientdet.model.anchors import AnchorSpec

_CHUNK = 2**16  # boxes compared at once, in a few tens of megabytes


def best_anchor_iou(boxes_xyxy: Tensor, height: int, width: int, spec: AnchorSpec) -> Tensor:
    """Return the highest IoU of each box (M, 4) with an anchor of a `height` x `width` input: (M,).

    On each level, only the anchors of the cell nearest to the box's center are compared. Among anchors of one size the
    IoU grows with the intersection, which is the overlap in x times the overlap in y; each of these depends on the
    distance of the centers along its own axis alone, and never grows with it.
    """
    best = []
    for boxes in boxes_xyxy.split(_CHUNK):
        centers_yx = ((boxes[:, :2] + boxes[:, 2:]) / 2).flip(-1)
        ious = []
        for level in spec.pyramid_levels:
            stride = 2**level
            last_cell = centers_yx.new_tensor([height // stride - 1, width // stride - 1])
            cell = (centers_yx / stride).floor().clamp(min=0).minimum(last_cell)
            centers = ((cell + 0.5) * stride)[:, None]  # (M, 1, 2)
            halves = spec.half_sizes(level).to(boxes)
            anchors_xyxy = yxyx_to_xyxy(torch.cat((centers - halves, centers + halves), dim=-1))
            ious.append(pairwise_iou(anchors_xyxy, boxes[:, None]).amax(dim=(1, 2)))
        best.append(torch.stack(ious).amax(dim=0))
    return torch.cat(best)


@dataclass(frozen=True)
class Objects:
    """The K objects to learn from a set, at the input size. Images of unknown size are left out."""

    canvas: tuple[int, int]  # (height, width) of the input
    anchors: AnchorSpec  # of the project
    rows: np.ndarray  # (K,) positions in the set's boxes
    xyxy: np.ndarray  # (K, 4) float64, in pixels of the input
    best_ious: np.ndarray  # (K,) with `anchors`

    @property
    def sides(self) -> np.ndarray:  # (K, 2) widths and heights
        return self.xyxy[:, 2:] - self.xyxy[:, :2]


def objects_on_canvas(annotated: AnnotatedSet, canvas: tuple[int, int], config: ModelConfig) -> Objects:
    """Return the objects of a set as the letterbox places them on a `canvas` of (height, width) pixels."""
    boxes, project = annotated.boxes, annotated.project
    anchors = AnchorSpec(config.pyramid_levels, config.anchor_scale, project.anchor_scales, project.anchor_ratios)
    rows = np.flatnonzero(boxes.learnable & np.all(annotated.sizes > 0, axis=1)[boxes.images])
    xyxy = boxes.xywh[rows]
    xyxy[:, 2:] += xyxy[:, :2]
    sizes, size_of = np.unique(annotated.sizes[boxes.images[rows]], axis=0, return_inverse=True)
    for number, size in enumerate(sizes.tolist()):
        of_size = size_of.ravel() == number
        xyxy[of_size] = Letterbox.fit(tuple(size), canvas).boxes_to_canvas(xyxy[of_size])
    return Objects(canvas, anchors, rows, xyxy, best_ious(xyxy, canvas, anchors))


def best_ious(boxes_xyxy: np.ndarray, canvas: tuple[int, int], anchors: AnchorSpec) -> np.ndarray:
    """Return `best_anchor_iou` of boxes (K, 4) on a canvas of (height, width) pixels: (K,)."""
    return best_anchor_iou(torch.from_numpy(boxes_xyxy), *canvas, anchors).numpy()
