"""Non-maximum suppression, for which torchvision is imported late."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from efficientdet.model.postprocess import batched_nms, nms

REPOSITORY = Path(__file__).parents[2]
# The IoU of the first and the second box is 1/3, of the first and the third 0.
BOXES = torch.tensor([[0.0, 0.0, 2.0, 2.0], [1.0, 0.0, 3.0, 2.0], [8.0, 8.0, 9.0, 9.0]])
SCORES = torch.tensor([0.5, 0.9, 0.7])


def test_no_boxes():
    nothing = torch.zeros(0)
    assert nms(nothing.view(0, 4), nothing, 0.5).tolist() == []
    assert batched_nms(nothing.view(0, 4), nothing, nothing, 0.5).tolist() == []


@pytest.mark.parametrize(("iou_threshold", "kept"), [(0.3, [1, 2]), (0.4, [1, 2, 0])])
def test_box_is_dropped_if_a_better_one_overlaps_it_by_more_than_the_threshold(iou_threshold, kept):
    assert nms(BOXES, SCORES, iou_threshold).tolist() == kept


@pytest.mark.parametrize(("groups", "kept"), [([0, 0, 0], [1, 2]), ([0, 1, 0], [1, 2, 0])])
def test_only_boxes_of_the_same_group_suppress_each_other(groups, kept):
    assert batched_nms(BOXES, SCORES, torch.tensor(groups), 0.3).tolist() == kept


@pytest.mark.slow
def test_importing_scripts_and_commands_does_not_import_torchvision():
    names = "train, coco_eval, efficientdet_test, benchmark, efficientdet.export.__main__"
    program = f"import sys, {names}; sys.exit('torchvision' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], cwd=REPOSITORY).returncode == 0
