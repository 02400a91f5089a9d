"""The objects of a data set at the network's input size, and how well anchors match them."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from efficientdet.boxes import pairwise_iou, yxyx_to_xyxy
from efficientdet.config import ModelConfig
from efficientdet.data.annotations import AnnotatedSet
from efficientdet.data.transforms import Letterbox
from efficientdet.model.anchors import AnchorSpec

_CHUNK = 2**16  # boxes that `best_anchor_iou` takes at once; a few tens of megabytes


def best_anchor_iou(boxes_xyxy: Tensor, height: int, width: int, spec: AnchorSpec) -> Tensor:
    """The IoU of each box (M, 4) with the anchor of the `height` x `width` input that overlaps it most: (M,).

    Only the anchors of one cell per level are compared, the one nearest to the box's centre. Among anchors of one size
    the IoU grows with the intersection, and that is the overlap in x times the overlap in y: each depends on the
    distance between the centres in its own axis alone, and never grows with it.

    The input's sides are multiples of the coarsest stride, as the network needs them.
    """

    def best(boxes: Tensor) -> Tensor:
        centres_yx = ((boxes[:, :2] + boxes[:, 2:]) / 2).flip(-1)
        ious = []
        for level in spec.pyramid_levels:
            stride = 2**level
            last_cell = centres_yx.new_tensor([height // stride - 1, width // stride - 1])
            cell = (centres_yx / stride).floor().clamp(min=0).minimum(last_cell)
            centres = ((cell + 0.5) * stride)[:, None]  # (M, 1, 2)
            halves = spec.half_sizes(level).to(boxes)
            anchors_xyxy = yxyx_to_xyxy(torch.cat((centres - halves, centres + halves), dim=-1))
            ious.append(pairwise_iou(anchors_xyxy, boxes[:, None]).amax(dim=(1, 2)))
        return torch.stack(ious).amax(dim=0)

    return torch.cat([best(boxes) for boxes in boxes_xyxy.split(_CHUNK)])


@dataclass(frozen=True)
class Objects:
    """What there is to learn in a set's images, as the network's input shows it. Without images of unknown size."""

    canvas: tuple[int, int]  # (height, width) of the input
    rows: np.ndarray  # (K,) of the set's boxes
    xyxy: np.ndarray  # (K, 4) float64, pixels of the input
    best_ious: np.ndarray  # (K,) with the project's anchors

    @property
    def sides(self) -> np.ndarray:
        """(K, 2): widths and heights."""
        return self.xyxy[:, 2:] - self.xyxy[:, :2]


def objects_on_canvas(annotated: AnnotatedSet, canvas: tuple[int, int], config: ModelConfig) -> Objects:
    """The set's objects in an input of `canvas` (height, width) pixels, and how well the anchors there reach them."""
    boxes, project = annotated.boxes, annotated.project
    rows = np.flatnonzero(boxes.learnable & np.all(annotated.sizes > 0, axis=1)[boxes.images])
    xyxy = boxes.xywh[rows]
    xyxy[:, 2:] += xyxy[:, :2]
    sizes, size_of = np.unique(annotated.sizes[boxes.images[rows]], axis=0, return_inverse=True)
    for number, size in enumerate(sizes.tolist()):
        of_size = size_of.ravel() == number
        xyxy[of_size] = Letterbox.fit(tuple(size), canvas).boxes_to_canvas(xyxy[of_size])
    return Objects(canvas, rows, xyxy, best_ious(xyxy, canvas, config, project.anchor_scales, project.anchor_ratios))


def best_ious(
    boxes_xyxy: np.ndarray,
    canvas: tuple[int, int],
    config: ModelConfig,
    scales: tuple[float, ...],
    ratios: tuple[tuple[float, float], ...],
) -> np.ndarray:
    """`best_anchor_iou` of boxes (K, 4) on the canvas with the anchors of a network: (K,)."""
    spec = AnchorSpec(config.pyramid_levels, config.anchor_scale, scales, ratios)
    return best_anchor_iou(torch.from_numpy(boxes_xyxy), *canvas, spec).numpy()
