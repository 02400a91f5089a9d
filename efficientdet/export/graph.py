"""The network as it leaves the project: pixels in, outputs or detections out, as one graph of plain operators."""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from efficientdet.boxes import clip_boxes, decode
from efficientdet.model.anchors import make_anchors
from efficientdet.model.network import EfficientDet
from efficientdet.model.postprocess import nms
from efficientdet.runtime.metadata import Suppression

_MOST_CANDIDATES = 5000  # anchors of an image that suppression sees, as in google/automl


class Deployable(nn.Module):
    """A network with what belongs before and behind it.

    Args:
        network: for inference, from `fuse_for_inference` or `optimize`.
        normalization: mean and std of RGB in [0, 1], if images come as uint8 (N, H, W, 3) RGB. With None they come as
            the network takes them: float32 (N, 3, H, W), normalised.
        image_size: (height, width) of all images, or None for any that suits the pyramid.
        suppression: None gives the network's own outputs.
        surviving: `surviving_scores`, or `opaque_surviving_scores`, which stays one operator in an exported graph.
    """

    mean: Tensor
    std: Tensor
    fixed_anchors: Tensor | None

    def __init__(
        self,
        network: EfficientDet,
        normalization: tuple[tuple[float, ...], tuple[float, ...]] | None,
        image_size: tuple[int, int] | None,
        suppression: Suppression | None,
        surviving: Callable[..., Tensor] | None = None,
    ):
        super().__init__()
        self.network = network
        self.suppression = suppression
        self.surviving = surviving or surviving_scores
        self.takes_pixels = normalization is not None
        if normalization is not None:
            mean, std = (255 * torch.tensor(values).view(3, 1, 1) for values in normalization)
            self.register_buffer("mean", mean)
            self.register_buffer("std", std)
        self.register_buffer("fixed_anchors", None if image_size is None else self._anchors(*image_size))
        smallest = 2 * (network.config.size_divisor,)
        self.num_candidates = min(_MOST_CANDIDATES, len(self._anchors(*(image_size or smallest))))

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """RAW_OUTPUTS, as `Outputs` has them but all in float32; or DETECTION_OUTPUTS of D = max_detections:

        boxes (N, D, 4) float32, (x1, y1, x2, y2) in pixels of the input, best first; scores (N, D) float32; classes
        (N, D) int64, indices; count (N,) int64. Beyond an image's count the rest of its row is zero.
        """
        if self.takes_pixels:
            images = images.permute(0, 3, 1, 2).float().contiguous()  # else the export writes strides into the graph
            images = (images - self.mean) / self.std
        pyramid = self.network.features(images)
        class_logits, box_deltas = self.network.classifier(pyramid).float(), self.network.regressor(pyramid).float()
        height, width = images.shape[-2:]
        anchors = self._anchors(height, width) if self.fixed_anchors is None else self.fixed_anchors
        if self.suppression is None:
            return class_logits, box_deltas, anchors
        return self._detections(class_logits, box_deltas, anchors, height, width, self.suppression)

    def _anchors(self, height: int, width: int) -> Tensor:
        return make_anchors(height, width, self.network.anchor_spec).float()

    def _detections(
        self,
        class_logits: Tensor,
        box_deltas: Tensor,
        anchors: Tensor,
        height: int,
        width: int,
        suppression: Suppression,
    ) -> tuple[Tensor, ...]:
        best = class_logits.amax(dim=-1).topk(self.num_candidates).indices
        scores, classes = _rows(class_logits, best).sigmoid().max(dim=-1)
        boxes = clip_boxes(decode(_rows(box_deltas, best), anchors[best]), height, width)
        # A box outside the image has a corner beyond the other one: it overlaps nothing, as one without an area.
        corner = boxes[..., :2]
        proper = torch.cat((corner, torch.maximum(corner, boxes[..., 2:])), dim=-1)
        limits = suppression.score_threshold, suppression.iou_threshold
        surviving = self.surviving(proper, scores, classes, self.network.num_classes, *limits)

        scores, order = surviving.topk(min(suppression.max_detections, self.num_candidates))
        found = scores > 0
        boxes = torch.where(found.unsqueeze(-1), _rows(boxes, order), 0)
        classes = torch.where(found, classes.gather(1, order), 0)
        return boxes, scores, classes, found.sum(dim=1)


def _rows(values: Tensor, indices: Tensor) -> Tensor:
    """Of each image's values (N, A, C) those rows that its indices (N, K) name: (N, K, C)."""
    return values.gather(1, indices.unsqueeze(-1).expand(-1, -1, values.shape[-1]))


def surviving_scores(
    boxes_xyxy: Tensor,
    scores: Tensor,
    class_ids: Tensor,
    num_classes: int,
    score_threshold: float,
    iou_threshold: float,
) -> Tensor:
    """The scores (N, K) with zeros where they are too low or non-maximum suppression within a class strikes.

    Args:
        boxes_xyxy: (N, K, 4), no coordinate below 0.
        class_ids: (N, K), below num_classes.
    """
    # 0, 1, ...: len() would fix their number in an exported graph, and arange() the device.
    image_ids = torch.ones_like(class_ids[:, :1]).cumsum(dim=0) - 1
    groups = (image_ids * num_classes + class_ids).flatten()
    # Each class of an image in a place of its own. In float32 that would be coarse.
    boxes = boxes_xyxy.double().flatten(0, 1)
    boxes = boxes + groups.unsqueeze(1) * (boxes.max() + 1)
    # Two boxes without an area, which always survive: torch.export takes for granted that two do.
    boxes, padded = F.pad(boxes, (0, 0, 0, 2), value=-1.0), F.pad(scores.flatten(), (0, 2), value=math.inf)
    candidates = (padded > score_threshold).nonzero().squeeze(1)
    survivors = candidates[nms(boxes[candidates], padded[candidates].double(), iou_threshold)]
    surviving = torch.zeros_like(padded).index_copy(0, survivors, padded[survivors])
    return surviving[:-2].view_as(scores)


# The same as one operator, for a format that has non-maximum suppression of its own.
opaque_surviving_scores = torch.library.custom_op("efficientdet::surviving_scores", surviving_scores, mutates_args=())


@opaque_surviving_scores.register_fake
def _(boxes_xyxy: Tensor, scores: Tensor, *_: object) -> Tensor:
    return torch.empty_like(scores)
