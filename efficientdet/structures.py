"""The data exchanged between data loading, network, loss and post-processing."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor


class Outputs(NamedTuple):
    """The network's outputs for N images with A anchors each."""

    class_logits: Tensor  # (N, A, num_classes); their sigmoid is the score
    box_deltas: Tensor  # (N, A, 4): (dy, dx, dh, dw) relative to the anchor
    anchors: Tensor  # (A, 4) yxyx in pixels of the input; float32, or float64 in a float64 network


PADDING_CLASS = -1


class Targets(NamedTuple):
    """The ground truth of N images, each padded to M objects."""

    boxes: Tensor  # (N, M, 4) xyxy, float, in pixels of the input
    class_ids: Tensor  # (N, M) int64, PADDING_CLASS for padding


@dataclass(frozen=True)
class Detections:
    """The K objects detected in one image, highest score first; the shapes are (0, 4), (0,) and (0,) if K is 0."""

    boxes: Tensor  # (K, 4) xyxy, float, in pixels
    scores: Tensor  # (K,) float in [0, 1]
    class_ids: Tensor  # (K,) int64, index into the project's class names

    def __post_init__(self) -> None:
        count = len(self.boxes)
        shapes = tuple(self.boxes.shape), tuple(self.scores.shape), tuple(self.class_ids.shape)
        if shapes != ((count, 4), (count,), (count,)):
            raise ValueError(f"boxes, scores and class_ids must have the shapes (K, 4), (K,) and (K,), not {shapes}")

    def __len__(self) -> int:
        return len(self.boxes)

    def __getitem__(self, index: Tensor | slice) -> "Detections":
        """Select detections by a slice, a mask (K,) or a tensor of indices."""
        return Detections(self.boxes[index], self.scores[index], self.class_ids[index])


def concatenate(parts: Sequence[Detections]) -> Detections:
    """Return the detections of all `parts`, in their order."""
    fields = zip(*((part.boxes, part.scores, part.class_ids) for part in parts))
    return Detections(*map(torch.cat, fields))
