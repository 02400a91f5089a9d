"""The exported graph: image pixels in, raw outputs or detections out, in plain operators only."""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from efficientdet.boxes import clip_boxes, decode
from efficientdet.model.anchors import make_anchors
from efficientdet.model.network import EfficientDet
from efficientdet.model.postprocess import MAX_CANDIDATES, nms
from efficientdet.runtime.metadata import Metadata


def scores_after_nms(
    boxes_xyxy: Tensor,
    scores: Tensor,
    class_ids: Tensor,
    num_classes: int,
    score_threshold: float,
    iou_threshold: float,
) -> Tensor:
    """Return the scores (N, K) with zeros for those below the threshold or suppressed within their class.

    The boxes are (N, K, 4), with no coordinate below 0; the class ids (N, K) are below num_classes.
    """
    # 0, 1, ...: an exported graph would fix the number of len(), and the device of arange().
    image_ids = torch.ones_like(class_ids[:, :1]).cumsum(dim=0) - 1
    groups = (image_ids * num_classes + class_ids).flatten()
    # Shift the classes of each image apart. In float32 large offsets would cost precision.
    boxes = boxes_xyxy.double().flatten(0, 1)
    boxes = boxes + groups.unsqueeze(1) * (boxes.max() + 1)
    # Add two boxes without area, which always survive: torch.export assumes that at least two do.
    boxes, padded = F.pad(boxes, (0, 0, 0, 2), value=-1.0), F.pad(scores.flatten(), (0, 2), value=math.inf)
    candidates = (padded > score_threshold).nonzero().squeeze(1)
    survivors = candidates[nms(boxes[candidates], padded[candidates].double(), iou_threshold)]
    surviving = torch.zeros_like(padded).index_copy(0, survivors, padded[survivors])
    return surviving[:-2].view_as(scores)


# The same as a single operator, for formats with an NMS operator of their own.
scores_after_nms_operator = torch.library.custom_op("efficientdet::scores_after_nms", scores_after_nms, mutates_args=())


@scores_after_nms_operator.register_fake
def _(boxes_xyxy: Tensor, scores: Tensor, *_: object) -> Tensor:
    return torch.empty_like(scores)


class ExportGraph(nn.Module):
    """A network with the preprocessing and postprocessing that `metadata` describes.

    Args:
        network: in inference form, from `fuse_for_inference` or `optimize`.
        run_nms: `scores_after_nms` or `scores_after_nms_operator`.
    """

    mean: Tensor
    std: Tensor
    fixed_anchors: Tensor | None

    def __init__(self, network: EfficientDet, metadata: Metadata, run_nms: Callable[..., Tensor]):
        super().__init__()
        self.network = network
        self.suppression = metadata.suppression
        self.run_nms = run_nms
        self.accepts_pixels = metadata.normalization == "inside"
        if self.accepts_pixels:
            self.register_buffer("mean", 255 * torch.tensor(metadata.mean).view(3, 1, 1))
            self.register_buffer("std", 255 * torch.tensor(metadata.std).view(3, 1, 1))
        height, width = (metadata.size_divisor,) * 2 if metadata.dynamic else metadata.image_size
        anchors = make_anchors(height, width, network.anchor_spec).float()
        self.register_buffer("fixed_anchors", None if metadata.dynamic else anchors)
        self.num_candidates = min(MAX_CANDIDATES, len(anchors))

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Return RAW_OUTPUTS, the fields of `Outputs` in float32, or DETECTION_OUTPUTS with D = max_detections.

        These are boxes (N, D, 4) float32, (x1, y1, x2, y2) in pixels of the input, best first; scores (N, D) float32;
        classes (N, D) int64, indices; count (N,) int64. Rows beyond an image's count are zero.
        """
        if self.accepts_pixels:
            images = images.permute(0, 3, 1, 2).float().contiguous()  # else the export writes strides into the graph
            images = (images - self.mean) / self.std
        pyramid = self.network.features(images)
        class_logits, box_deltas = self.network.classifier(pyramid).float(), self.network.regressor(pyramid).float()
        height, width = images.shape[-2:]
        anchors = self.fixed_anchors
        if anchors is None:
            anchors = make_anchors(height, width, self.network.anchor_spec).float()
        limits = self.suppression
        if limits is None:
            return class_logits, box_deltas, anchors
        best = class_logits.amax(dim=-1).topk(self.num_candidates).indices
        boxes = clip_boxes(decode(_gather_rows(box_deltas, best), anchors[best]), height, width)
        scores, classes = _gather_rows(class_logits, best).sigmoid().max(dim=-1)
        # Clipping inverts boxes outside the image. They overlap nothing; nor do these boxes without area.
        corner = boxes[..., :2]
        proper = torch.cat((corner, torch.maximum(corner, boxes[..., 2:])), dim=-1)
        thresholds = limits.score_threshold, limits.iou_threshold
        surviving = self.run_nms(proper, scores, classes, self.network.num_classes, *thresholds)
        scores, order = surviving.topk(min(limits.max_detections, self.num_candidates))
        found = scores > 0
        boxes = torch.where(found.unsqueeze(-1), _gather_rows(boxes, order), 0)
        classes = torch.where(found, classes.gather(1, order), 0)
        return boxes, scores, classes, found.sum(dim=1)


def _gather_rows(values: Tensor, indices: Tensor) -> Tensor:
    """Return the rows of values (N, A, C) at each image's indices (N, K): (N, K, C)."""
    return values.gather(1, indices.unsqueeze(-1).expand(-1, -1, values.shape[-1]))
