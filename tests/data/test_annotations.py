"""Annotation files: all errors are collected at once, and the remaining entries are kept."""

import json

import numpy as np
import pytest

from efficientdet.data.annotations import UNKNOWN_CLASS, raise_first_error, read_set
from utils.errors import InputError

GRAY = np.full((60, 80, 3), 100, np.uint8)


def box(image_id, bbox=(0, 0, 9, 9), category_id=7, **fields) -> dict:
    return {"image_id": image_id, "category_id": category_id, "bbox": list(bbox), **fields}


@pytest.fixture
def read(tmp_path, write_coco, make_project):
    """Return a function that writes a set of gray images, applies `edit` to the file's content, and reads it."""

    def read(image_ids=(1, 2), annotations=(), edit=None, max_images=None, **project):
        path = write_coco(tmp_path, "some", dict.fromkeys(image_ids, GRAY), annotations)
        if edit:
            content = json.loads(path.read_text())
            edit(content)
            path.write_text(json.dumps(content))
        return read_set(tmp_path, "some", make_project(**project), max_images)

    return read


def test_set_without_images(read):
    annotated = read(())
    assert [finding.kind for finding in annotated.findings] == ["empty sets"]
    assert annotated.images == [] and annotated.sizes.shape == (0, 2) and annotated.present.shape == (0,)
    assert annotated.boxes.xywh.shape == (0, 4) and annotated.boxes.learnable.shape == (0,)


def test_images_without_boxes(read):
    annotated = read()
    assert annotated.findings == []
    assert annotated.boxes.xywh.shape == (0, 4) and annotated.boxes.learnable.dtype == bool
    assert annotated.sizes.tolist() == [[60, 80], [60, 80]] and annotated.present.tolist() == [True, True]


def test_boxes_are_grouped_in_the_order_of_the_images(read, tmp_path):
    annotated = read(
        (5, 4, 9),
        [
            box(9, [1, 2, 3, 4], area=5, id="a"),
            box(4, [5, 6, 7, 8], 3, id="b"),
            box(9, [1, 2, 0.5, 4], id="c"),
            box(4, [9, 9, 9, 9], iscrowd=1, id="d"),
        ],
    )
    boxes = annotated.boxes
    assert annotated.findings == [] and [image["id"] for image in annotated.images] == [4, 5, 9]
    assert boxes.annotation_ids == ["b", "d", "a", "c"] and boxes.images.tolist() == [0, 0, 2, 2]
    assert boxes.class_ids.tolist() == [1, 0, 0, 0]  # category 3 is the disc, class 1
    assert boxes.xywh.tolist() == [[5, 6, 7, 8], [9, 9, 9, 9], [1, 2, 3, 4], [1, 2, 0.5, 4]]
    assert boxes.areas.tolist() == [56, 81, 5, 2]
    assert boxes.crowd.tolist() == [False, True, False, False]
    assert boxes.learnable.tolist() == [True, False, True, False]
    assert [annotated.rows(index) for index in range(3)] == [slice(0, 2), slice(2, 2), slice(2, 4)]
    assert annotated.image_path(2) == tmp_path / "some" / "9.png" and annotated.image_path(2).is_file()


def test_images_beyond_max_images_are_checked_and_left_out(read):
    annotated = read((1, 2, 3), [box(3), box(3, [1, 2, 3]), box(1)], max_images=2)
    assert [image["id"] for image in annotated.images] == [1, 2] and annotated.boxes.images.tolist() == [0]
    assert annotated.listed == {"1.png", "2.png", "3.png"}
    assert [finding.subject for finding in annotated.findings] == ["annotation 2"]


def test_absent_size_is_zero(read):
    def edit(content):
        del content["images"][0]["height"]

    annotated = read(edit=edit)
    assert annotated.findings == [] and annotated.sizes.tolist() == [[0, 0], [60, 80]]


def test_all_errors_are_collected_and_the_rest_is_kept(read):
    def edit(content):
        content["images"].append({"id": 3})
        content["images"].append({"id": 1, "file_name": "1.png"})
        content["images"].append({"id": [4], "file_name": "4.png"})
        content["images"].append({"id": 5, "file_name": 5})
        content["images"].append({"id": 6, "file_name": "2.png", "width": 80.0, "height": 60})
        content["images"].append({"id": 7, "file_name": "absent.png"})
        content["categories"].append({"id": 8, "name": "star"})
        content["categories"].append({"id": 9, "name": "disc"})
        content["annotations"].append(None)

    annotated = read(
        annotations=[
            box(1),
            box(55),
            box(1, category_id=4),
            box(1, [1, 2, 3]),
            box(1, area="big"),
            box(2, category_id=8),
            box(5),
        ],
        edit=edit,
    )
    assert [(finding.subject, finding.kind) for finding in annotated.findings] == [
        ("entry 2", "incomplete entries"),
        ("entry 7", "incomplete entries"),
        ("image 1", "duplicate ids"),
        ("image [4]", "invalid ids"),
        ("image 5", "invalid file names"),
        ("image 6", "invalid image sizes"),
        ("category 8", "categories missing from obj_list"),
        ("category 9", "duplicate category names"),
        ("annotation 2", "annotations of unknown images"),
        ("annotation 3", "annotations of unknown categories"),
        ("annotation 4", "malformed boxes"),
        ("annotation 5", "malformed areas"),
        ("image 7", "missing images"),
    ]
    assert all(finding.level == "error" and finding.advice for finding in annotated.findings)
    assert [image["id"] for image in annotated.images] == [1, 2, 6, 7]
    assert annotated.sizes.tolist() == [[60, 80], [60, 80], [0, 0], [0, 0]]
    assert annotated.present.tolist() == [True, True, True, False]
    assert annotated.boxes.annotation_ids == [1, 3, 6]
    assert annotated.boxes.class_ids.tolist() == [0, UNKNOWN_CLASS, UNKNOWN_CLASS]


@pytest.mark.parametrize("size", [0, -5, 80.0, "80", None, 10**30])
def test_invalid_width(read, size):
    (finding,) = read(edit=lambda content: content["images"][0].update(width=size)).findings
    assert finding.kind == "invalid image sizes" and finding.subject == "image 1" and repr(size) in finding.message


@pytest.mark.parametrize("value", [10**400, 1e300, float("nan"), "9"])
def test_invalid_coordinate(read, value):
    (finding,) = read(annotations=[box(1, [0, 0, 9, value])]).findings
    assert finding.kind == "malformed boxes" and len(finding.message) <= 100


@pytest.mark.parametrize("flag", ["0", 2, [1]])
def test_invalid_crowd_flag(read, flag):
    (finding,) = read(annotations=[box(1, iscrowd=flag)]).findings
    assert finding.subject == "annotation 1" and repr(flag) in finding.message


def test_file_name_that_no_file_system_accepts(read):
    (finding,) = read(edit=lambda content: content["images"][0].update(file_name="x" * 300)).findings
    assert finding.kind == "missing images"


@pytest.mark.parametrize(
    ("name", "meant"),
    [("Disc ", "'disc'"), ("DISC", "'disc'"), ("dics", "'disc'"), ("zebra", ""), ("square", None), ("", "")],
)
def test_advice_on_an_unknown_category_contains_the_most_similar_name(read, name, meant):
    def edit(content):
        content["categories"] = [{"id": 5, "name": name}]

    findings = read(edit=edit, obj_list=["square", "disc", ""]).findings
    assert len(findings) == (meant is not None)
    for finding in findings:
        assert finding.subject == "category 5" and repr(name) in finding.message and "made.yml" in finding.message
        assert meant in finding.advice and ("'" in finding.advice) == bool(meant)


@pytest.mark.parametrize("ids", [(3, 7), (0, 1), (1, 0), ("3", "7"), ("0", "x"), (90, 2**40)])
def test_categories_match_by_name_not_by_id(read, ids):
    def edit(content):
        content["categories"] = [{"id": ids[0], "name": "disc"}, {"id": ids[1], "name": "square"}]

    annotated = read(edit=edit)
    assert annotated.findings == [] and annotated.category_ids == {1: ids[0], 0: ids[1]}


def test_category_named_by_a_number_matches(read):
    annotated = read(edit=lambda content: content.update(categories=[{"id": 0, "name": 8}]), obj_list=["7", "8"])
    assert annotated.findings == [] and annotated.category_ids == {1: 0}


@pytest.mark.parametrize("content", ["", "[]", "{", "1" * 5000, '{"images": [], "annotations": {}}', "[" * 100000])
def test_file_that_is_not_coco_is_one_finding(tmp_path, make_project, content):
    path = tmp_path / "annotations" / "instances_some.json"
    path.parent.mkdir()
    path.write_text(content)
    (finding,) = read_set(tmp_path, "some", make_project()).findings
    assert finding.file == path and finding.kind == "unusable annotation files" and finding.advice


def test_set_without_files_is_one_finding(tmp_path, make_project):
    (finding,) = read_set(tmp_path, "some", make_project()).findings
    assert finding.kind == "unusable annotation files" and finding.file.name == "instances_some.json"


def test_first_error_is_raised(read):
    raise_first_error(read())
    with pytest.raises(InputError, match=r"annotation 1 has the bbox \[1\]: .*\[x, y, width, height\]"):
        raise_first_error(read(annotations=[box(1, [1])]))
    with pytest.raises(InputError, match=r"annotation 1 .*2 malformed boxes.*efficientdet\.check -p .*made"):
        raise_first_error(read(annotations=[box(1, [1]), box(77), box(1, [2])]))
