"""Rules on boxes, classes and files, at their limits. test_check.py plants each fault in a whole project."""

import numpy as np
import pytest

from efficientdet.check.objects import objects_on_canvas
from efficientdet.check.rules import (
    annotation_findings,
    box_findings,
    class_counts,
    empty_images,
    object_findings,
    unlisted_images,
)
from efficientdet.config import model_config
from efficientdet.data.annotations import read_set

CONFIG = model_config(0)


@pytest.fixture
def boxes_in(tmp_path, write_coco, make_project):
    """Return a function that reads a set of one image of 100 x 200 pixels (height x width) with the given boxes."""

    def boxes_in(*bboxes, **fields):
        annotations = [{"image_id": 1, "category_id": 7, "bbox": bbox, **fields} for bbox in bboxes]
        write_coco(tmp_path, "some", {1: np.zeros((100, 200, 3), np.uint8)}, annotations)
        return read_set(tmp_path, "some", make_project())

    return boxes_in


def test_only_finding_without_boxes_is_the_empty_image(boxes_in):
    annotated = boxes_in()
    objects = objects_on_canvas(annotated, (128, 128), CONFIG)
    assert objects.xyxy.shape == (0, 4) and objects.sides.shape == (0, 2) and objects.best_ious.shape == (0,)
    assert list(annotation_findings(annotated, objects)) == []
    assert [finding.subject for finding in empty_images(annotated)] == ["image 1"]
    assert class_counts(annotated).tolist() == [0, 0]


@pytest.mark.parametrize(
    ("bbox", "level", "kind"),
    [
        ([0, 0, 200, 100], None, None),
        ([-1, -1, 202, 102], None, None),
        ([10, 10, 1, 1], None, None),
        ([-1.5, 0, 20, 20], "warning", "across the border"),
        ([0, -1.5, 20, 20], "warning", "across the border"),
        ([190, 10, 11.5, 20], "warning", "across the border"),
        ([10, 90, 20, 11.5], "warning", "across the border"),
        ([200, 10, 5, 5], "error", "outside"),
        ([10, 100, 5, 5], "error", "outside"),
        ([-5, 10, 5, 5], "error", "outside"),
        ([10, -5, 5, 5], "error", "outside"),
        ([10, 10, 0.9, 20], "warning", "thinner than a pixel"),
        ([10, 10, 20, 0], "warning", "thinner than a pixel"),
        ([300, 10, 0.5, 20], "warning", "thinner than a pixel"),
        ([50, 50, -20, 20], "error", "negative"),
        ([50, 50, 20, -20], "error", "negative"),
    ],
)
def test_boxes_relative_to_their_image(boxes_in, bbox, level, kind):
    findings = list(box_findings(boxes_in([20, 20, 30, 30], bbox)))
    assert len(findings) == (level is not None)
    for finding in findings:
        assert finding.level == level and kind in finding.kind
        assert finding.subject == "annotation 2 of image 1" and finding.file.name == "1.png"
        assert f"[{', '.join(f'{value:g}' for value in bbox)}]" in finding.message


def test_boxes_of_an_image_of_unknown_size_are_never_outside(boxes_in):
    annotated = boxes_in([900, 900, 5, 5], [5, 5, -1, 5])
    annotated.sizes[:] = 0
    assert [finding.kind for finding in box_findings(annotated)] == ["boxes of negative size"]
    assert len(objects_on_canvas(annotated, (128, 128), CONFIG).rows) == 0


def test_duplicate_box_names_the_previous_one(boxes_in):
    annotated = boxes_in([1, 2, 30, 40], [5, 2, 30, 40], [1, 2, 30, 40], [1, 2, 30, 40.5], [1, 2, 30, 40])
    assert [(finding.subject, finding.message) for finding in box_findings(annotated)] == [
        ("annotation 3 of image 1", "repeats annotation 1"),
        ("annotation 5 of image 1", "repeats annotation 3"),
    ]


def test_equal_boxes_of_two_classes_are_no_duplicates(boxes_in):
    annotated = boxes_in([1, 2, 30, 40], [1, 2, 30, 40])
    annotated.boxes.class_ids[1] = 1
    assert list(box_findings(annotated)) == []


def test_objects_are_placed_by_the_letterbox(boxes_in):
    objects = objects_on_canvas(boxes_in([20, 10, 40, 60], [0, 0, 0.5, 9], [10, 20, 30, 40]), (128, 128), CONFIG)
    assert objects.rows.tolist() == [0, 2]
    np.testing.assert_allclose(objects.xyxy, np.array([[20, 10, 60, 70], [10, 20, 40, 60]]) * 0.64)
    np.testing.assert_allclose(objects.sides, np.array([[40, 60], [30, 40]]) * 0.64)


@pytest.mark.parametrize(("side", "small"), [(7.9, True), (8, False)])
def test_objects_below_four_by_four_pixels_are_small(boxes_in, side, small):
    annotated = boxes_in([20, 20, 2 * side, side / 2], [50, 50, 40, 40])  # 100 x 200 pixels are halved
    findings = list(object_findings(annotated, objects_on_canvas(annotated, (100, 100), CONFIG)))
    found = [finding.subject for finding in findings if "below 4 x 4" in finding.kind]
    assert found == ["annotation 1 of image 1"] * small


@pytest.mark.parametrize(("good", "warned"), [(8, True), (9, False)])
def test_nine_tenths_of_the_boxes_must_match_an_anchor(boxes_in, good, warned):
    annotated = boxes_in(*[[4 + 8 * i, 4, 32, 32] for i in range(good)], [50, 50, 4, 4])
    findings = object_findings(annotated, objects_on_canvas(annotated, (256, 256), CONFIG))
    assert [finding.kind for finding in findings] == ["sets with boxes that no anchor matches"] * warned


def test_half_of_the_boxes_of_a_class_must_match_an_anchor(boxes_in):
    annotated = boxes_in(*[[4 + 3 * i, 4, 32, 32] for i in range(19)], [50, 50, 4, 4], [60, 50, 4, 4])
    annotated.boxes.class_ids[-2:] = 1
    (finding,) = object_findings(annotated, objects_on_canvas(annotated, (256, 256), CONFIG))
    assert f"100.0% of its {annotated.project.class_names[1]} " in finding.message
    annotated.boxes.class_ids[-3] = 1
    annotated.boxes.class_ids[-2] = 0
    assert list(object_findings(annotated, objects_on_canvas(annotated, (256, 256), CONFIG))) == []


def test_unlisted_images_are_found_in_subfolders(boxes_in):
    annotated = boxes_in()
    folder = annotated.image_path(0).parent
    (folder / "inner").mkdir()
    for name in ("inner/a.JPG", "notes.txt", "b.png"):
        (folder / name).touch()
    assert [finding.file for finding in unlisted_images([annotated])] == [folder / "b.png", folder / "inner/a.JPG"]


def test_folder_shared_by_two_sets_is_listed_by_both(tmp_path, write_coco, make_project):
    for set_name, image_id in (("train", 1), ("val", 2)):
        write_coco(tmp_path, set_name, {image_id: np.zeros((9, 9, 3), np.uint8)})
    (tmp_path / "val" / "2.png").rename(tmp_path / "train" / "2.png")
    (tmp_path / "val").rmdir()
    (tmp_path / "val").symlink_to(tmp_path / "train")
    (tmp_path / "train" / "3.png").touch()
    sets = [read_set(tmp_path, set_name, make_project()) for set_name in ("train", "val")]
    assert [finding.file.name for finding in unlisted_images(sets)] == ["3.png"]
