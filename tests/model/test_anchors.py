"""Anchors against coordinates worked out by hand."""

import pytest
import torch

from efficientdet.boxes import pairwise_iou, yxyx_to_xyxy
from efficientdet.check.objects import best_anchor_iou
from efficientdet.config import ANCHOR_RATIOS, ANCHOR_SCALES
from efficientdet.model.anchors import cached_anchors, make_anchors

SQUARE = ((1.0, 1.0),)


def test_one_square_anchor_for_each_cell_row_by_row():
    anchors = make_anchors(16, 24, (3,), 1.0, (1.0,), SQUARE)
    # (y1, x1, y2, x2)
    assert anchors.tolist() == [
        [0, 0, 8, 8],
        [0, 8, 8, 16],
        [0, 16, 8, 24],
        [8, 0, 16, 8],
        [8, 8, 16, 16],
        [8, 16, 16, 24],
    ]


def test_sides_are_strides_times_scales_times_ratios():
    anchors = make_anchors(8, 8, (3,), 4.0, (1.0, 2.0), ((1.0, 1.0), (1.5, 0.5)))
    # Centre (4, 4). Base side 32; the second ratio is 1.5 wide and 0.5 high.
    assert anchors.tolist() == [
        [-12, -12, 20, 20],
        [-4, -20, 12, 28],
        [-28, -28, 36, 36],
        [-12, -44, 20, 52],
    ]


def test_levels_follow_each_other_from_the_finest():
    anchors = make_anchors(16, 16, (3, 4), 1.0, (1.0,), SQUARE)
    assert anchors.shape == (5, 4)
    assert anchors[-1].tolist() == [0, 0, 16, 16]


@pytest.mark.parametrize(
    ("height", "width", "levels", "count"),
    [
        (512, 512, (3, 4, 5, 6, 7), 49104),
        (128, 256, (3, 4, 5, 6, 7), 9 * (512 + 128 + 32 + 8 + 2)),
        (256, 256, (3, 4, 5, 6, 7, 8), 9 * (1024 + 256 + 64 + 16 + 4 + 1)),
    ],
)
def test_count(height, width, levels, count):
    anchors = make_anchors(height, width, levels, 4.0, ANCHOR_SCALES, ANCHOR_RATIOS)
    assert anchors.shape == (count, 4)
    assert anchors.dtype == torch.float64


def test_cache_keeps_types_apart():
    arguments = (128, 128, (3, 4, 5, 6, 7), 4.0, ANCHOR_SCALES, ANCHOR_RATIOS)
    single = cached_anchors(*arguments, torch.float32, torch.device("cpu"))
    double = cached_anchors(*arguments, torch.float64, torch.device("cpu"))
    assert (single.dtype, double.dtype) == (torch.float32, torch.float64)
    assert torch.equal(double, make_anchors(*arguments))
    assert cached_anchors(*arguments, torch.float32, torch.device("meta")).device.type == "meta"
    assert cached_anchors(*arguments, torch.float32, torch.device("cpu")) is single


def test_cache_keeps_shapes_apart():
    tall = cached_anchors(256, 128, (7,), 4.0, (1.0,), SQUARE, torch.float32, torch.device("cpu"))
    wide = cached_anchors(128, 256, (7,), 4.0, (1.0,), SQUARE, torch.float32, torch.device("cpu"))
    assert tall.tolist() == [[-192, -192, 320, 320], [-64, -192, 448, 320]]
    assert wide.tolist() == [[-192, -192, 320, 320], [-192, -64, 320, 448]]


def test_anchors_first_made_in_inference_mode_serve_training():
    arguments = (640, 128, (7,), 3.0, (1.0,), SQUARE, torch.float32, torch.device("cpu"))
    with torch.inference_mode():
        cached_anchors(*arguments)
    deltas = torch.ones(5, 4, requires_grad=True)
    (deltas * cached_anchors(*arguments)).sum().backward()
    assert torch.equal(deltas.grad, make_anchors(*arguments[:6]).float())


def test_no_boxes_have_no_best_anchor():
    assert best_anchor_iou(torch.zeros(0, 4), 128, 128, (3, 4), 4.0, ANCHOR_SCALES, ANCHOR_RATIOS).shape == (0,)


def test_best_anchor_worked_out_by_hand():
    boxes = [
        [8.0, 0, 16, 8],  # the anchor of the second cell itself
        [2, 0, 10, 8],  # centre (6, 4), so the first cell, (0, 0, 8, 8): 48 / (64 + 64 - 48)
        [8, 0, 16, 4],  # half of the second
        [0, 0, 16, 16],  # the one anchor of the next level
        [-16, 0, -8, 8],  # beside the input
        [5, 5, 5, 5],  # nothing
    ]
    found = best_anchor_iou(torch.tensor(boxes), 16, 16, (3, 4), 1.0, (1.0,), SQUARE)
    assert found.tolist() == pytest.approx([1, 0.6, 0.5, 1, 0, 0])


@pytest.mark.parametrize("chunk", [2**16, 7])
@pytest.mark.parametrize(("height", "width"), [(256, 256), (128, 384)])
def test_best_anchor_is_that_of_all_pairs(monkeypatch, chunk, height, width):
    monkeypatch.setattr("efficientdet.check.objects._CHUNK", chunk)
    generator = torch.Generator().manual_seed(0)

    def some(spread: float, longest: float) -> torch.Tensor:
        """100 boxes with sides up to `longest` pixels, centred in `spread` times the input, about its middle."""
        centres = (torch.rand(100, 2, generator=generator) - 0.5) * spread + 0.5
        centres = centres * torch.tensor([width, height])
        halves = torch.rand(100, 2, generator=generator) * longest / 2
        return torch.cat((centres - halves, centres + halves), dim=1)

    borders = torch.tensor([[0.0, 0, 20, 30], [width - 9, height - 50, width, height], [0, 0, width, height]])
    on_grid = torch.tensor([[0.0, 0, 16, 16], [8, 8, 24, 24], [-8, -8, 8, 8]])  # as near to one cell as to the next
    boxes = torch.cat((some(1, 200), some(1, 3), some(1, 2000), some(9, 300), borders, on_grid)).double()
    arguments = (height, width, (3, 4, 5, 6, 7), 4.0, ANCHOR_SCALES, ANCHOR_RATIOS)
    all_pairs = pairwise_iou(boxes, yxyx_to_xyxy(make_anchors(*arguments))).amax(dim=1)
    assert all_pairs.max() > 0.8 and (all_pairs > 0.5).sum() > 50 and all_pairs.min() == 0
    torch.testing.assert_close(best_anchor_iou(boxes, *arguments), all_pairs, rtol=1e-12, atol=1e-12)
    single = best_anchor_iou(boxes.float(), *arguments)
    assert single.dtype == torch.float32
    torch.testing.assert_close(single, all_pairs.float(), rtol=0, atol=1e-4)
