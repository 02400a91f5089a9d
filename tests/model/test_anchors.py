"""Anchors compared with hand-computed coordinates."""

import pytest
import torch

from efficientdet.boxes import pairwise_iou, yxyx_to_xyxy
from efficientdet.check.objects import best_anchor_iou
from efficientdet.config import ANCHOR_RATIOS, ANCHOR_SCALES
from efficientdet.model.anchors import AnchorSpec, cached_anchors, make_anchors

CPU = torch.device("cpu")
SQUARE = ((1.0, 1.0),)
PUBLISHED = AnchorSpec((3, 4, 5, 6, 7), 4.0, ANCHOR_SCALES, ANCHOR_RATIOS)
COARSE = AnchorSpec((7,), 4.0, (1.0,), SQUARE)


def test_one_square_anchor_per_cell_row_by_row():
    anchors = make_anchors(16, 24, AnchorSpec((3,), 1.0, (1.0,), SQUARE))
    # yxyx
    assert anchors.tolist() == [
        [0, 0, 8, 8],
        [0, 8, 8, 16],
        [0, 16, 8, 24],
        [8, 0, 16, 8],
        [8, 8, 16, 16],
        [8, 16, 16, 24],
    ]


def test_sides_are_strides_times_scales_times_ratios():
    anchors = make_anchors(8, 8, AnchorSpec((3,), 4.0, (1.0, 2.0), ((1.0, 1.0), (1.5, 0.5))))
    # Center (4, 4), base side 32; the second ratio is 1.5 wide and 0.5 high.
    assert anchors.tolist() == [
        [-12, -12, 20, 20],
        [-4, -20, 12, 28],
        [-28, -28, 36, 36],
        [-12, -44, 20, 52],
    ]


def test_levels_are_ordered_from_the_finest():
    anchors = make_anchors(16, 16, AnchorSpec((3, 4), 1.0, (1.0,), SQUARE))
    assert anchors.shape == (5, 4)
    assert anchors[-1].tolist() == [0, 0, 16, 16]


@pytest.mark.parametrize(
    ("height", "width", "levels", "cells"),
    [
        (512, 512, (3, 4, 5, 6, 7), 5456),
        (128, 256, (3, 4, 5, 6, 7), 512 + 128 + 32 + 8 + 2),
        (256, 256, (3, 4, 5, 6, 7, 8), 1024 + 256 + 64 + 16 + 4 + 1),
    ],
)
def test_number_of_anchors(height, width, levels, cells):
    spec = AnchorSpec(levels, 4.0, ANCHOR_SCALES, ANCHOR_RATIOS)
    anchors = make_anchors(height, width, spec)
    assert spec.num_per_cell == 9
    assert anchors.shape == (9 * cells, 4)
    assert anchors.dtype == torch.float64


def test_cache_keeps_dtypes_and_devices_apart():
    single, double = (cached_anchors(128, 128, PUBLISHED, dtype, CPU) for dtype in (torch.float32, torch.float64))
    assert (single.dtype, double.dtype) == (torch.float32, torch.float64)
    assert torch.equal(double, make_anchors(128, 128, PUBLISHED))
    assert cached_anchors(128, 128, PUBLISHED, torch.float32, torch.device("meta")).device.type == "meta"
    same = AnchorSpec((3, 4, 5, 6, 7), 4.0, ANCHOR_SCALES, ANCHOR_RATIOS)
    assert cached_anchors(128, 128, same, torch.float32, CPU) is single


def test_cache_keeps_shapes_apart():
    tall = cached_anchors(256, 128, COARSE, torch.float32, CPU)
    wide = cached_anchors(128, 256, COARSE, torch.float32, CPU)
    assert tall.tolist() == [[-192, -192, 320, 320], [-64, -192, 448, 320]]
    assert wide.tolist() == [[-192, -192, 320, 320], [-192, -64, 320, 448]]


def test_anchors_cached_in_inference_mode_can_be_used_in_training():
    arguments = (640, 128, COARSE, torch.float32, CPU)
    with torch.inference_mode():
        cached_anchors(*arguments)
    deltas = torch.ones(5, 4, requires_grad=True)
    (deltas * cached_anchors(*arguments)).sum().backward()
    assert torch.equal(deltas.grad, make_anchors(640, 128, COARSE).float())


def test_without_boxes_there_is_no_best_anchor():
    assert best_anchor_iou(torch.zeros(0, 4), 128, 128, PUBLISHED).shape == (0,)


def test_best_anchor_computed_by_hand():
    boxes = [
        [8.0, 0, 16, 8],  # identical to the anchor of the second cell
        [2, 0, 10, 8],  # center (6, 4), so the first cell, (0, 0, 8, 8): 48 / (64 + 64 - 48)
        [8, 0, 16, 4],  # half of the second cell's anchor
        [0, 0, 16, 16],  # the only anchor of the next level
        [-16, 0, -8, 8],  # outside the input
        [5, 5, 5, 5],  # empty
    ]
    found = best_anchor_iou(torch.tensor(boxes), 16, 16, AnchorSpec((3, 4), 1.0, (1.0,), SQUARE))
    assert found.tolist() == pytest.approx([1, 0.6, 0.5, 1, 0, 0])


@pytest.mark.parametrize("chunk", [2**16, 7])
@pytest.mark.parametrize(("height", "width"), [(256, 256), (128, 384)])
def test_best_anchor_equals_the_best_of_all_pairs(monkeypatch, chunk, height, width):
    monkeypatch.setattr("efficientdet.check.objects._CHUNK", chunk)
    generator = torch.Generator().manual_seed(0)

    def random_boxes(spread: float, max_side: float) -> torch.Tensor:
        """Return 100 boxes with sides up to `max_side` pixels, centered within `spread` times the input's sides."""
        centers = (torch.rand(100, 2, generator=generator) - 0.5) * spread + 0.5
        centers = centers * torch.tensor([width, height])
        halves = torch.rand(100, 2, generator=generator) * max_side / 2
        return torch.cat((centers - halves, centers + halves), dim=1)

    borders = torch.tensor([[0.0, 0, 20, 30], [width - 9, height - 50, width, height], [0, 0, width, height]])
    between_cells = torch.tensor([[0.0, 0, 16, 16], [8, 8, 24, 24], [-8, -8, 8, 8]])  # equally close to two cells
    some = random_boxes(1, 200), random_boxes(1, 3), random_boxes(1, 2000), random_boxes(9, 300)
    boxes = torch.cat((*some, borders, between_cells)).double()
    all_pairs = pairwise_iou(boxes, yxyx_to_xyxy(make_anchors(height, width, PUBLISHED))).amax(dim=1)
    assert all_pairs.max() > 0.8 and (all_pairs > 0.5).sum() > 50 and all_pairs.min() == 0
    torch.testing.assert_close(best_anchor_iou(boxes, height, width, PUBLISHED), all_pairs, rtol=1e-12, atol=1e-12)
    single = best_anchor_iou(boxes.float(), height, width, PUBLISHED)
    assert single.dtype == torch.float32
    torch.testing.assert_close(single, all_pairs.float(), rtol=0, atol=1e-4)
