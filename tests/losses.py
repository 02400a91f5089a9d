"""Shared by the tests of the loss: ground truth, the reference's recorded batch, options, a comparison."""

import numpy as np
import torch
from golden_fill import normal_array, recorded
from torch import Tensor

from efficientdet.config import ANCHOR_RATIOS, ANCHOR_SCALES
from efficientdet.model.anchors import AnchorSpec, make_anchors
from efficientdet.model.loss import Losses
from efficientdet.structures import Targets

SPEC = AnchorSpec((3, 4, 5, 6, 7), 4.0, ANCHOR_SCALES, ANCHOR_RATIOS)
OFFICIAL = {
    "focal_gamma": 1.5,
    "negative_iou": 0.5,
    "force_best_anchor": True,
    "min_anchors": 0,
    "box_loss": "huber",
    "normalize": "batch",
}


def no_targets(batch: int) -> Targets:
    return Targets(torch.zeros(batch, 0, 4), torch.zeros(batch, 0, dtype=torch.int64))


def targets(*rows) -> Targets:
    """Return the ground truth of one image, from rows (x1, y1, x2, y2, class)."""
    table = torch.tensor(rows, dtype=torch.float64).reshape(1, -1, 5)
    return Targets(table[..., :4], table[..., 4].long())


def golden_loss() -> dict[str, np.ndarray]:
    """Return the reference's recorded losses and their inputs."""
    return recorded("loss.npz")


def make_golden_batch() -> tuple[tuple[Tensor, Tensor, Tensor], Targets]:
    """Return the recorded predictions, as leaves that require gradients, and their labels."""
    golden = golden_loss()
    anchors = make_anchors(*map(int, golden["input_hw"]), SPEC)
    logits = torch.from_numpy(normal_array("logits", (4, len(anchors), 3))) * 2 - 2
    deltas = torch.from_numpy(normal_array("regression", (4, len(anchors), 4))) * 0.3
    # The reference received float32 numbers; the results are compared in float64.
    logits, deltas, anchors = logits.double(), deltas.double(), anchors.float().double()
    annotations = torch.from_numpy(golden["annotations"])
    labels = Targets(annotations[..., :4], annotations[..., 4].long())
    return (logits.requires_grad_(), deltas.requires_grad_(), anchors), labels


def assert_losses_close(actual: Losses, expected: Losses, rtol: float) -> None:
    for a, b in zip(actual, expected):
        torch.testing.assert_close(a, b, rtol=rtol, atol=0)
