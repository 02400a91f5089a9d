"""What travels between data, network, loss and post-processing."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor


class Outputs(NamedTuple):
    """What the network says of a batch of N images with A anchors each."""

    class_logits: Tensor  # (N, A, num_classes); their sigmoid is the score
    box_deltas: Tensor  # (N, A, 4): (dy, dx, dh, dw) relative to the anchor
    anchors: Tensor  # (A, 4): (y1, x1, y2, x2) in input pixels; float32, or float64 in a float64 network


PADDING_CLASS = -1


class Targets(NamedTuple):
    """The ground truth of a batch of N images, each padded to M objects."""

    boxes: Tensor  # (N, M, 4) float, (x1, y1, x2, y2) in input pixels
    class_ids: Tensor  # (N, M) int64, PADDING_CLASS where there is no object


@dataclass(frozen=True)
class Detections:
    """The objects found in one image, best score first. Without objects the shapes are (0, 4), (0,) and (0,)."""

    boxes: Tensor  # (K, 4) float, (x1, y1, x2, y2) in pixels
    scores: Tensor  # (K,) float in [0, 1]
    class_ids: Tensor  # (K,) int64, index into the project's class names

    def __post_init__(self) -> None:
        count = len(self.boxes)
        shapes = tuple(self.boxes.shape), tuple(self.scores.shape), tuple(self.class_ids.shape)
        if shapes != ((count, 4), (count,), (count,)):
            raise ValueError(
                f"boxes, scores and class_ids must be shaped (K, 4), (K,) and (K,), not {shapes[0]}, {shapes[1]} "
                f"and {shapes[2]}"
            )

    @classmethod
    def empty(cls) -> "Detections":
        return cls(torch.zeros(0, 4), torch.zeros(0), torch.zeros(0, dtype=torch.int64))

    def __len__(self) -> int:
        return len(self.boxes)

    def __getitem__(self, chosen: Tensor | slice) -> "Detections":
        """Those that a slice, a mask (K,) or a tensor of indices chooses."""
        return Detections(self.boxes[chosen], self.scores[chosen], self.class_ids[chosen])


def concatenate(parts: Sequence[Detections]) -> Detections:
    """All of them, one part after the other."""
    return Detections(
        *(torch.cat([getattr(part, name) for part in parts]) for name in ("boxes", "scores", "class_ids"))
    )
