"""Tiles of large images, and how their detections are joined."""

import numpy as np
import pytest
import torch

from efficientdet.inference.views import Tile, join_tiles, make_tiles
from efficientdet.structures import Detections


def detections(*boxes, scores=None, class_ids=None) -> Detections:
    count = len(boxes)
    return Detections(
        torch.tensor(boxes, dtype=torch.float32).reshape(count, 4),
        torch.tensor(scores or [0.9] * count),
        torch.tensor(class_ids or [0] * count),
    )


NONE = detections()


def test_without_a_side_the_image_is_not_divided():
    assert make_tiles(300, 500, None) == [Tile(0, 0, 300, 500)]


@pytest.mark.parametrize("size", [(1, 1), (300, 500), (512, 512)])
def test_image_no_larger_than_a_tile_is_not_divided(size):
    assert make_tiles(*size, 512) == [Tile(0, 0, *size)]


def test_tiles_overlap_and_reach_the_far_edges():
    # 1000 pixels: tiles of 512 at 0 and at 488 would overlap by 24, less than a fifth.
    whole, *parts = make_tiles(400, 1000, 512)
    assert whole == Tile(0, 0, 400, 1000)
    assert parts == [Tile(0, 0, 400, 512), Tile(0, 244, 400, 512), Tile(0, 488, 400, 512)]


@pytest.mark.parametrize(
    ("size", "side"), [((513, 513), 512), ((2000, 3000), 512), ((20_000, 600), 512), ((1, 5000), 512), ((5, 60), 1)]
)
def test_every_pixel_lies_in_a_tile(size, side):
    covered = np.zeros(size, bool)
    for tile in make_tiles(*size, side)[1:]:
        assert (tile.height, tile.width) == (min(side, size[0]), min(side, size[1]))
        assert tile.top + tile.height <= size[0] and tile.left + tile.width <= size[1]
        tile.crop(covered)[:] = True
    assert covered.all()


def test_objects_up_to_the_overlap_lie_entirely_in_some_tile():
    parts = make_tiles(100, 3000, 500)[1:]
    for left in range(2900):
        assert any(part.left <= left and left + 100 <= part.left + part.width for part in parts)


def test_nothing_found_anywhere():
    parts = [(tile, NONE) for tile in make_tiles(400, 1000, 512)]
    assert len(join_tiles(parts, 0.5, None)) == 0


def test_whole_image_alone_is_not_suppressed_again():
    found = detections([0, 0, 9, 9], [0, 0, 9, 9])  # equal boxes
    assert len(join_tiles([(Tile(0, 0, 400, 1000), found)], 0.5, None)) == 2
    assert len(join_tiles([(Tile(0, 0, 400, 1000), found)], 0.5, max_detections=1)) == 1


def test_boxes_are_moved_to_the_image_and_the_weaker_of_two_is_dropped():
    parts = [
        (Tile(0, 0, 400, 1000), NONE),
        (Tile(0, 0, 400, 512), detections([300, 50, 340, 90], scores=[0.6])),
        (Tile(0, 244, 400, 512), detections([56, 50, 96, 90], scores=[0.8])),
    ]
    found = join_tiles(parts, 0.5, None)
    assert found.boxes.tolist() == [[300, 50, 340, 90]]
    assert found.scores.tolist() == pytest.approx([0.8])


def test_part_of_an_object_is_dropped_if_the_whole_is_detected():
    cut = detections([400, 100, 511, 200], scores=[0.95])  # at the right edge of its tile
    whole = detections([400 - 244, 100, 700 - 244, 200], scores=[0.5])
    parts = [
        (Tile(0, 0, 400, 1000), NONE),
        (Tile(0, 0, 400, 512), cut),
        (Tile(0, 244, 400, 512), whole),
    ]
    found = join_tiles(parts, 0.5, None)  # their IoU is 0.37: suppression alone would keep both
    assert found.boxes.tolist() == [[400, 100, 700, 200]]


def test_part_of_an_object_is_kept_if_nothing_else_shows_it():
    cut = detections([400, 100, 511, 200])
    other_class = detections([400 - 244, 100, 700 - 244, 200], class_ids=[1])
    parts = [(Tile(0, 0, 400, 1000), NONE), (Tile(0, 0, 400, 512), cut), (Tile(0, 244, 400, 512), other_class)]
    assert len(join_tiles(parts, 0.5, None)) == 2


def test_part_of_which_a_neighbor_must_show_more_is_dropped():
    short, long = detections([420, 100, 511, 200]), detections([400, 100, 511, 200])  # a fifth of the side is 102
    for cut, left in ((short, 0), (long, 1)):
        parts = [(Tile(0, 0, 400, 1000), NONE), (Tile(0, 0, 400, 512), cut), (Tile(0, 244, 400, 512), NONE)]
        assert len(join_tiles(parts, 0.5, None)) == left
    low = detections([100, 300, 400, 399])  # at the lower edge of the image, where nothing is cut
    assert len(join_tiles([(Tile(0, 0, 400, 1000), NONE), (Tile(0, 0, 400, 512), low)], 0.5, None)) == 1


def test_box_at_the_edge_of_the_image_is_not_cut():
    at_edge = detections([0, 0, 40, 40], scores=[0.9])
    around = detections([0, 0, 90, 90], scores=[0.5])
    parts = [(Tile(0, 0, 400, 1000), around), (Tile(0, 0, 400, 512), at_edge)]
    assert len(join_tiles(parts, 0.5, None)) == 2


def test_the_best_are_kept():
    parts = [
        (Tile(0, 0, 400, 1000), detections([0, 0, 9, 9], scores=[0.3])),
        (Tile(0, 244, 400, 512), detections([50, 50, 90, 90], [150, 50, 190, 90], scores=[0.5, 0.7])),
    ]
    found = join_tiles(parts, 0.5, max_detections=2)
    assert found.scores.tolist() == pytest.approx([0.7, 0.5])
