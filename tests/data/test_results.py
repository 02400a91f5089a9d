"""Results files: detections to COCO entries and back, and what is refused."""

import json
from functools import partial

import pytest
import torch
from results import found, truth, write_set

from efficientdet.data.results import coco_results, read_results, write_results
from efficientdet.structures import Detections
from utils.errors import InputError


@pytest.fixture
def open_set(tmp_path, make_project):
    """Return a function that writes and opens a set, given its image ids and annotations."""
    return partial(write_set, tmp_path, make_project())


def test_no_detections_give_no_results():
    empty = Detections(torch.zeros(0, 4), torch.zeros(0), torch.zeros(0, dtype=torch.int64))
    assert coco_results(1, empty, {0: 3}) == []


def test_results_have_xywh_boxes_and_the_category_ids_of_the_file():
    detections = Detections(
        torch.tensor([[1.0, 2.0, 11.0, 32.0], [0.5, 0.0, 4.0, 4.0]]), torch.tensor([0.75, 0.5]), torch.tensor([1, 0])
    )
    assert coco_results(42, detections, {0: 7, 1: 3}) == [
        {"image_id": 42, "category_id": 3, "score": 0.75, "bbox": [1.0, 2.0, 10.0, 30.0]},
        {"image_id": 42, "category_id": 7, "score": 0.5, "bbox": [0.5, 0.0, 3.5, 4.0]},
    ]


def test_text_category_ids_are_those_of_the_file(open_set):
    categories = [{"id": "c7", "name": "square"}, {"id": "03", "name": "disc"}]
    detections = Detections(torch.tensor([[10.0, 20, 40, 60]] * 2), torch.tensor([0.9, 0.8]), torch.tensor([0, 1]))
    results = coco_results(1, detections, open_set([1], [], categories).category_ids)
    assert [result["category_id"] for result in results] == ["c7", "03"]


def test_detections_of_classes_without_a_category_are_dropped():
    detections = Detections(torch.zeros(3, 4), torch.tensor([0.9, 0.8, 0.7]), torch.tensor([11, 0, 25]))
    assert [result["score"] for result in coco_results(1, detections, {0: 1})] == pytest.approx([0.8])


def test_results_are_read_back_as_written(open_set, tmp_path):
    dataset = open_set([4], [])
    detections = Detections(torch.rand(2, 4), torch.rand(2), torch.tensor([0, 1]))
    results = coco_results(4, detections, dataset.category_ids)
    path = tmp_path / "made" / "results.json"
    write_results(path, results)
    assert json.loads(path.read_text()) == results == read_results(path, dataset)
    write_results(path, [])
    assert read_results(path, dataset) == []


def test_ids_may_be_numbers_or_text_and_other_fields_are_dropped(open_set, tmp_path):
    dataset = open_set([1, "b"], [truth()])
    entry = {**found(image_id="1", category_id="7"), "segmentation": {"counts": "x"}, "id": 5}
    path = tmp_path / "results.json"
    path.write_text(json.dumps([entry, found(image_id="b")]))
    assert read_results(path, dataset) == [found(), found(image_id="b")]


def test_missing_file_is_named(open_set, tmp_path):
    with pytest.raises(InputError, match=r"none\.json"):
        read_results(tmp_path / "none.json", open_set([1], []))


@pytest.mark.parametrize(
    "content", [b"", b"[{]", b"\xff\xfe", b"[" * 100_000, b"3", b'{"images": [], "annotations": []}']
)
def test_file_without_results_is_named(open_set, tmp_path, content):
    path = tmp_path / "results.json"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"results\.json"):
        read_results(path, open_set([1], []))


@pytest.mark.parametrize(
    ("entry", "field"),
    [
        ("1", ""),
        ("[]", ""),
        ("{}", "image_id"),
        ('{"image_id": [1], "category_id": 7, "score": 0.5, "bbox": [1, 2, 3, 4]}', "image_id"),
        ('{"image_id": 1, "category_id": null, "score": 0.5, "bbox": [1, 2, 3, 4]}', "category_id"),
        ('{"image_id": 1, "category_id": 7, "bbox": [1, 2, 3, 4]}', "score"),
        ('{"image_id": 1, "category_id": 7, "score": "high", "bbox": [1, 2, 3, 4]}', "score"),
        ('{"image_id": 1, "category_id": 7, "score": NaN, "bbox": [1, 2, 3, 4]}', "score"),
        ('{"image_id": 1, "category_id": 7, "score": 1e999, "bbox": [1, 2, 3, 4]}', "score"),
        ('{"image_id": 1, "category_id": 7, "score": 0.5}', "bbox"),
        ('{"image_id": 1, "category_id": 7, "score": 0.5, "bbox": null}', "bbox"),
        ('{"image_id": 1, "category_id": 7, "score": 0.5, "bbox": [1, 2, 3]}', "bbox"),
        ('{"image_id": 1, "category_id": 7, "score": 0.5, "bbox": [1, 2, "3", 4]}', "bbox"),
        ('{"image_id": 1, "category_id": 7, "score": 0.5, "bbox": [1, 2, -Infinity, 4]}', "bbox"),
    ],
)
def test_invalid_entry_is_named(open_set, tmp_path, entry, field):
    path = tmp_path / "results.json"
    path.write_text(f"[{json.dumps(found())}, {entry}]")
    with pytest.raises(InputError, match=rf"results\.json: entry 1 .*{field}"):
        read_results(path, open_set([1], []))


@pytest.mark.parametrize(("key", "value"), [("image_id", 2), ("image_id", "1.0"), ("category_id", 5)])
def test_entries_for_images_or_categories_outside_of_the_set_are_counted(open_set, tmp_path, key, value):
    dataset = open_set([1, 2], [truth(image_id=1)], max_images=1)
    path = tmp_path / "results.json"
    path.write_text(json.dumps([found(), found() | {key: value}, found() | {key: value}]))
    with pytest.raises(InputError, match=rf"2 of 3 entries .*--max_images.* entry 1 with {key} {value!r}"):
        read_results(path, dataset)
