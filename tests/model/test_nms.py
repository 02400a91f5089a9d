"""Non-maximum suppression, which is imported late."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from efficientdet.model.postprocess import batched_nms, nms

REPOSITORY = Path(__file__).parents[2]
# The IoU of the first and the second is 1/3, of the first and the third 0.
BOXES = torch.tensor([[0.0, 0.0, 2.0, 2.0], [1.0, 0.0, 3.0, 2.0], [8.0, 8.0, 9.0, 9.0]])
SCORES = torch.tensor([0.5, 0.9, 0.7])


def test_no_boxes():
    nothing = torch.zeros(0)
    assert nms(nothing.view(0, 4), nothing, 0.5).tolist() == []
    assert batched_nms(nothing.view(0, 4), nothing, nothing, 0.5).tolist() == []


@pytest.mark.parametrize(("iou_threshold", "kept"), [(0.3, [1, 2]), (0.4, [1, 2, 0])])
def test_a_box_goes_when_a_better_one_overlaps_it_by_more(iou_threshold, kept):
    assert nms(BOXES, SCORES, iou_threshold).tolist() == kept


@pytest.mark.parametrize(("groups", "kept"), [([0, 0, 0], [1, 2]), ([0, 1, 0], [1, 2, 0])])
def test_only_boxes_of_a_group_compete(groups, kept):
    assert batched_nms(BOXES, SCORES, torch.tensor(groups), 0.3).tolist() == kept


@pytest.mark.parametrize("name", ["train", "coco_eval", "efficientdet_test", "benchmark", "efficientdet.export"])
def test_torchvision_is_not_imported_before_there_are_boxes(name):
    program = f"import sys, {name}; sys.exit('torchvision' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], cwd=REPOSITORY).returncode == 0
