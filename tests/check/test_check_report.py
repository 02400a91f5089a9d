"""The report before training: numbers of boxes, the share that anchors match, warnings."""

import json

import numpy as np
import pytest

from efficientdet.check.report import data_report, report_before_training
from efficientdet.config import model_config
from efficientdet.data.dataset import CocoDataset

SQUARE, DISC = 7, 3  # category ids


@pytest.fixture
def report_of(tmp_path, write_coco, make_project):
    """Return a function that reports on images of the given sizes (by id) and annotations, at an input of 128 x 128.

    The smallest anchors of D0 are 32 x 32 pixels, with centers at 4, 12, 20, ...
    """

    def report(sizes, annotations, max_images=None, edit=None, **project) -> list[str]:
        arrays = {image_id: np.zeros((*size, 3), np.uint8) for image_id, size in sizes.items()}
        boxes = [
            {"image_id": image_id, "category_id": category, "bbox": box, "area": box[2] * box[3], "iscrowd": 0, **more}
            for image_id, category, box, more in annotations
        ]
        path = write_coco(tmp_path, "train", arrays, boxes)
        if edit:
            content = json.loads(path.read_text())
            edit(content)
            path.write_text(json.dumps(content))
        dataset = CocoDataset(tmp_path, "train", make_project(**project), (128, 128), max_images=max_images)
        return data_report(dataset, model_config(0)).splitlines()

    return report


def box(image_id: int, category: int, x: float, y: float, side: float, **more) -> tuple:
    return image_id, category, [x, y, side, side], more


def test_set_without_objects(report_of):
    assert report_of({1: (128, 128)}, []) == [
        "train: 1 images (1 without objects), 0 boxes",
        "  square 0, disc 0",
    ]


def test_boxes_that_are_anchors(report_of):
    lines = report_of(
        {1: (128, 128), 2: (128, 128), 3: (128, 128)},
        [box(1, SQUARE, 4, 4, 32), box(3, DISC, 12, 20, 32), box(3, DISC, 60, 60, 32)],
    )
    assert lines == [
        "train: 3 images (1 without objects), 3 boxes",
        "  square 1, disc 2",
        "  100.0% of the boxes match an anchor (IoU >= 0.5) at 128 x 128",
    ]


def test_class_without_boxes_is_a_warning(report_of):
    lines = report_of({1: (128, 128)}, [box(1, SQUARE, 4, 4, 32)])
    assert lines[1] == "  square 1, disc 0"
    assert lines[3].startswith("  warning: ") and "instances_train.json has no box of 'disc'" in lines[3]
    assert len(lines) == 4


def test_class_without_a_name_needs_no_category(report_of):
    lines = report_of(
        {1: (128, 128)},
        [box(1, SQUARE, 4, 4, 32), box(1, DISC, 4, 4, 32)],
        obj_list=["", "square", "", "disc", ""],
    )
    assert lines[1] == "  square 1, disc 1" and len(lines) == 3


def test_low_coverage_is_a_warning_with_the_median_size(report_of):
    # An anchor of 32 x 32 has an IoU below 0.5 with a box of less than half its area.
    lines = report_of(
        {1: (128, 128), 2: (128, 128)},
        [
            box(1, SQUARE, 4, 4, 32),
            box(1, DISC, 4, 4, 32),
            box(1, DISC, 50, 50, 4),
            box(2, DISC, 50, 50, 10),
            box(2, DISC, 50, 50, 20),
        ],
    )
    assert lines[2] == "  40.0% of the boxes match an anchor (IoU >= 0.5) at 128 x 128"
    assert lines[3].startswith("  warning: ")
    assert "median size is 10 pixels" in lines[3]
    assert "--image_size" in lines[3] and "anchors_scales" in lines[3] and "made.yml" in lines[3]
    assert len(lines) == 4


@pytest.mark.parametrize(("good", "warned"), [(8, True), (9, False)])
def test_coverage_of_nine_tenths_is_enough(report_of, good, warned):
    annotations = [box(1, (SQUARE, DISC)[i % 2], 4, 8 * i, 32) for i in range(good)] + [box(1, DISC, 50, 50, 4)]
    lines = report_of({1: (128, 128)}, annotations)
    assert lines[2].startswith(f"  {good / (good + 1):.1%} of")
    assert any("warning" in line for line in lines) == warned


@pytest.mark.parametrize(("size", "side", "share"), [((128, 128), 64, "100.0%"), ((256, 512), 16, "0.0%")])
def test_boxes_are_matched_at_the_input_size(report_of, size, side, share):
    # 256 x 512 pixels are quartered: a box of 64 x 64 becomes 16 x 16, a quarter of the smallest anchor's area.
    lines = report_of({1: size}, [box(1, SQUARE, 0, 0, 64), box(1, DISC, 64, 0, 64)])
    assert lines[2].startswith(f"  {share} of the boxes")
    assert any(f"median size is {side} pixels" in line for line in lines) == (share == "0.0%")


def test_anchors_are_those_of_the_project(report_of):
    boxes = [box(1, SQUARE, 12, 12, 16), box(1, DISC, 12, 12, 16)]
    assert report_of({1: (128, 128)}, boxes)[2].startswith("  0.0%")
    assert report_of({1: (128, 128)}, boxes, anchors_scales=[0.5])[2].startswith("  100.0%")


def test_boxes_that_training_ignores_are_not_counted(report_of):
    lines = report_of(
        {1: (128, 128), 2: (128, 128)},
        [
            box(1, SQUARE, 4, 4, 32),
            box(1, DISC, 4, 4, 32),
            box(1, DISC, 4, 4, 90, iscrowd=1),
            (2, DISC, [5, 5, 0.5, 40], {}),
        ],
    )
    assert lines[:2] == ["train: 2 images (1 without objects), 2 boxes", "  square 1, disc 1"]
    assert lines[2].startswith("  100.0%")


def test_images_beyond_max_images_are_not_counted(report_of):
    annotations = [box(1, SQUARE, 4, 4, 32), box(1, DISC, 4, 4, 32), box(2, SQUARE, 50, 50, 4)]
    lines = report_of({1: (128, 128), 2: (128, 128)}, annotations, max_images=1)
    assert lines == [
        "train: 1 images (0 without objects), 2 boxes",
        "  square 1, disc 1",
        "  100.0% of the boxes match an anchor (IoU >= 0.5) at 128 x 128",
    ]


def test_large_numbers_have_commas(report_of):
    lines = report_of({1: (128, 128)}, [box(1, (SQUARE, DISC)[i % 2], 4, 4, 32) for i in range(2468)])
    assert lines[:2] == ["train: 1 images (0 without objects), 2,468 boxes", "  square 1,234, disc 1,234"]


def test_boxes_in_images_of_unknown_size_have_no_coverage(report_of):
    def forget_sizes(content: dict) -> None:
        for image in content["images"]:
            del image["height"], image["width"]

    lines = report_of({1: (128, 128)}, [box(1, SQUARE, 4, 4, 32), box(1, DISC, 4, 4, 32)], edit=forget_sizes)
    assert lines == ["train: 1 images (0 without objects), 2 boxes", "  square 1, disc 1"]


def test_findings_of_one_kind_are_one_warning_with_their_number(report_of):
    lines = report_of(
        {1: (128, 128), 2: (128, 128)},
        [box(1, SQUARE, 4, 4, 32), box(1, DISC, 4, 4, 32)] + [box(2, DISC, 4 + 8 * i, 112, 32) for i in range(3)],
    )
    assert (
        lines[3].startswith("  warning: ")
        and "2.png: annotation 3 of image 2 has the bbox [4, 112, 32, 32]" in lines[3]
    )
    assert "the first of 3 boxes across the border of their images" in lines[3]
    assert len(lines) == 4


@pytest.fixture
def report_of_both(tmp_path, write_coco, make_project):
    """Return a function that reports on two sets of one image each, given their annotations, at 128 x 128."""

    def report(train, val, same_name: bool = False, same_image: bool = False) -> list[str]:
        first, second = np.zeros((128, 128, 3), np.uint8), np.full((128, 128, 3), 0 if same_image else 9, np.uint8)
        write_coco(tmp_path, "train", {1: first}, [{"image_id": 1, "category_id": c, "bbox": b} for c, b in train])
        val_id = 1 if same_name else 2
        write_coco(
            tmp_path, "val", {val_id: second}, [{"image_id": val_id, "category_id": c, "bbox": b} for c, b in val]
        )
        project = make_project()
        sets = (CocoDataset(tmp_path, set_name, project, (128, 128)) for set_name in ("train", "val"))
        return report_before_training(*sets, model_config(0)).splitlines()

    return report


GOOD = [(SQUARE, [4, 4, 32, 32]), (DISC, [44, 44, 32, 32])]


def test_sets_without_faults_have_no_warning(report_of_both):
    lines = report_of_both(GOOD, GOOD)
    assert [line.split(":")[0] for line in lines if not line.startswith(" ")] == ["train", "val"]
    assert not any("warning: " in line or "efficientdet.check" in line for line in lines)


def test_warning_is_followed_by_the_command_that_says_more(report_of_both):
    lines = report_of_both(GOOD, [*GOOD, (DISC, [200, 4, 32, 32])])
    assert sum("warning: " in line for line in lines) == 2  # the box also leaves a third without an anchor
    assert lines[-1].startswith("python -m efficientdet.check -p ") and "made.yml" in lines[-1]


@pytest.mark.parametrize(
    ("same_name", "same_image", "warned"),
    [(True, True, True), (True, False, False), (False, True, False)],  # the last takes decoding to find
)
def test_file_in_both_sets_is_a_warning(report_of_both, same_name, same_image, warned):
    lines = report_of_both(GOOD, GOOD, same_name, same_image)
    warnings = [line for line in lines if "val/1.png: image 1 is the same image as " in line]
    assert len(warnings) == warned == any("efficientdet.check" in line for line in lines)
