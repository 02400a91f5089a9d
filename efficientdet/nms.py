"""torchvision's non-maximum suppression. Its import takes a second: that waits until there are boxes."""

from torch import Tensor


def nms(boxes_xyxy: Tensor, scores: Tensor, iou_threshold: float) -> Tensor:
    """The indices (M,) of those of K boxes (K, 4) that no better one overlaps by more, best first."""
    from torchvision import ops

    return ops.nms(boxes_xyxy, scores, iou_threshold)


def batched_nms(boxes_xyxy: Tensor, scores: Tensor, groups: Tensor, iou_threshold: float) -> Tensor:
    """The same, where only boxes of one group (K,) compete."""
    from torchvision import ops

    return ops.batched_nms(boxes_xyxy, scores, groups, iou_threshold)
