"""Box arithmetic compared with hand-computed coordinates."""

import math

import pytest
import torch

from efficientdet.boxes import (
    box_area,
    clip_boxes,
    decode,
    encode,
    flip_boxes,
    pairwise_intersection,
    pairwise_iou,
    xyxy_to_xywh,
    yxyx_to_xyxy,
)


def boxes(*rows) -> torch.Tensor:
    return torch.tensor(rows, dtype=torch.float64).reshape(-1, 4)


def test_no_boxes():
    none = boxes()
    assert yxyx_to_xyxy(none).shape == (0, 4)
    assert xyxy_to_xywh(none).shape == (0, 4)
    assert encode(none, none).shape == (0, 4)
    assert decode(none, none).shape == (0, 4)
    assert clip_boxes(none, 10, 10).shape == (0, 4)
    assert flip_boxes(none, 10).shape == (0, 4)
    assert box_area(none).shape == (0,)
    assert pairwise_intersection(none, none).shape == (0, 0)
    assert pairwise_iou(none, none).shape == (0, 0)
    assert pairwise_iou(none, boxes([0, 0, 1, 1])).shape == (0, 1)
    assert pairwise_iou(boxes([0, 0, 1, 1]), none).shape == (1, 0)


def test_yxyx_to_xyxy_is_its_own_inverse():
    yxyx, xyxy = boxes([1, 2, 3, 4]), boxes([2, 1, 4, 3])
    assert torch.equal(yxyx_to_xyxy(yxyx), xyxy)
    assert torch.equal(yxyx_to_xyxy(xyxy), yxyx)


def test_xyxy_to_xywh():
    assert xyxy_to_xywh(boxes([1, 2, 4, 8], [5, 5, 5, 5])).tolist() == [[1, 2, 3, 6], [5, 5, 0, 0]]


def test_iou_computed_by_hand():
    a = boxes([0, 0, 10, 10], [0, 0, 0, 0])
    b = boxes([0, 0, 10, 10], [5, 0, 15, 10], [0, 5, 10, 10], [10, 0, 20, 10], [2, 2, 4, 7], [30, 30, 40, 40])
    expected = boxes([1, 50 / 150, 0.5, 0], [10 / 100, 0, 0, 0], [0, 0, 0, 0]).flatten().reshape(2, 6)
    torch.testing.assert_close(pairwise_iou(a, b), expected)


def test_iou_of_empty_boxes_is_zero_not_nan():
    point = boxes([3, 3, 3, 3])
    assert pairwise_iou(point, point).item() == 0


def test_iou_broadcasts_over_a_batch():
    a = boxes([0, 0, 10, 10], [0, 0, 2, 2], [5, 0, 15, 10], [1, 1, 3, 3]).reshape(2, 2, 4)
    b = boxes([0, 0, 10, 10], [2, 2, 4, 4], [0, 0, 2, 2])
    iou = pairwise_iou(a, b)
    assert iou.shape == (2, 2, 3)
    torch.testing.assert_close(iou[0], pairwise_iou(a[0], b))
    torch.testing.assert_close(iou[1], pairwise_iou(a[1], b))


ANCHOR = [10, 20, 30, 60]  # (y1, x1, y2, x2): center y 20, x 40; 20 high, 40 wide


@pytest.mark.parametrize(
    ("box_xyxy", "deltas"),
    [
        ([20, 10, 60, 30], [0, 0, 0, 0]),
        ([30, 10, 70, 30], [0, 0.25, 0, 0]),  # 10 pixels to the right: a quarter of the width
        ([20, 15, 60, 35], [0.25, 0, 0, 0]),  # 5 pixels down: a quarter of the height
        ([0, 10, 80, 30], [0, 0, 0, math.log(2)]),
        ([20, 0, 60, 40], [0, 0, math.log(2), 0]),
        ([50, 25, 70, 35], [0.5, 0.5, -math.log(2), -math.log(2)]),
    ],
)
def test_deltas_computed_by_hand(box_xyxy, deltas):
    torch.testing.assert_close(encode(boxes(box_xyxy), boxes(ANCHOR)), boxes(deltas))
    torch.testing.assert_close(decode(boxes(deltas), boxes(ANCHOR)), boxes(box_xyxy))


def test_encode_treats_sides_below_one_pixel_as_one_pixel():
    deltas = encode(boxes([40, 20, 40, 20.5]), boxes(ANCHOR))
    torch.testing.assert_close(deltas, boxes([0.0125, 0, math.log(1 / 20), math.log(1 / 40)]))


def test_decode_is_the_inverse_of_encode():
    generator = torch.Generator().manual_seed(0)
    corners = torch.rand(2, 50, 2, generator=generator, dtype=torch.float64) * 100
    sizes = torch.rand(2, 50, 2, generator=generator, dtype=torch.float64) * 100 + 1
    expected, anchors = torch.cat((corners, corners + sizes), dim=-1)
    torch.testing.assert_close(decode(encode(expected, anchors), anchors), expected)


def test_decode_accepts_a_batch_with_shared_anchors():
    deltas = torch.zeros(3, 1, 4, dtype=torch.float64)
    assert torch.equal(decode(deltas, boxes(ANCHOR)), boxes([20, 10, 60, 30]).expand(3, 1, 4))


def test_boxes_are_clipped_to_the_last_pixel():
    clipped = clip_boxes(boxes([-5, -6, 300, 200], [1, 2, 3, 4], [0, 0, 127, 63]), height=64, width=128)
    assert clipped.tolist() == [[0, 0, 127, 63], [1, 2, 3, 4], [0, 0, 127, 63]]


def test_clipping_leaves_outside_boxes_outside():
    clipped = clip_boxes(boxes([200, 100, 300, 150], [-30, -20, -10, -5]), height=64, width=128)
    assert clipped.tolist() == [[200, 100, 127, 63], [0, 0, -10, -5]]


def test_clipping_does_not_modify_its_argument():
    original = boxes([-5, -6, 300, 200])
    clip_boxes(original, 64, 128)
    assert original.tolist() == [[-5, -6, 300, 200]]


def test_flip_mirrors_boxes():
    assert flip_boxes(boxes([0, 1, 10, 5], [60, 2, 64, 3]), 64).tolist() == [[54, 1, 64, 5], [0, 2, 4, 3]]


def test_area_and_intersection():
    some = boxes([0, 0, 4, 5], [10, 10, 10, 20])
    assert box_area(some).tolist() == [20, 0]
    # A quarter of the box, touching it, and far away.
    assert pairwise_intersection(some[:1], boxes([2, 2.5, 9, 9], [4, 0, 5, 5], [9, 9, 12, 12])).tolist() == [[5, 0, 0]]
