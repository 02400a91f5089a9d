"""Detections -> COCO results -> average precision, at the ends of the scale and between."""

import json
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from results import found, truth, write_set

from efficientdet.data.dataset import CocoDataset
from efficientdet.data.results import coco_results, read_results, write_results
from efficientdet.evaluation.coco import NUMBER_NAMES, score, score_in_detail
from efficientdet.project import load_project
from efficientdet.structures import Detections
from utils.errors import InputError


@pytest.fixture
def dataset(shapes_project):
    project = load_project(shapes_project.yml)
    return CocoDataset(shapes_project.data, "train", project, (128, 128))


@pytest.fixture
def open_set(tmp_path, make_project):
    """A function that writes a set of images and annotations, and opens it."""
    return partial(write_set, tmp_path, make_project())


def truth_as_results(dataset: CocoDataset) -> list[dict]:
    results = []
    for image_id in dataset.image_ids:
        target = dataset.target(image_id)
        found = Detections(
            torch.from_numpy(target.boxes), torch.ones(len(target.boxes)), torch.from_numpy(target.class_ids)
        )
        results += coco_results(image_id, found, dataset.category_ids)
    return results


# Results.


def test_no_detections_are_no_results():
    assert (
        coco_results(1, Detections(torch.zeros(0, 4), torch.zeros(0), torch.zeros(0, dtype=torch.int64)), {0: 3}) == []
    )


def test_results_have_coco_boxes_and_the_files_category_ids():
    detections = Detections(
        torch.tensor([[1.0, 2.0, 11.0, 32.0], [0.5, 0.0, 4.0, 4.0]]), torch.tensor([0.75, 0.5]), torch.tensor([1, 0])
    )
    assert coco_results(42, detections, {0: 7, 1: 3}) == [
        {"image_id": 42, "category_id": 3, "score": 0.75, "bbox": [1.0, 2.0, 10.0, 30.0]},
        {"image_id": 42, "category_id": 7, "score": 0.5, "bbox": [0.5, 0.0, 3.5, 4.0]},
    ]


def test_string_category_ids_come_back_as_in_the_file(open_set):
    categories = [{"id": "c7", "name": "square"}, {"id": "03", "name": "disc"}]
    dataset = open_set([1], [truth(category_id="c7")], categories)
    detections = Detections(torch.tensor([[10.0, 20, 40, 60]] * 2), torch.tensor([0.9, 0.8]), torch.tensor([0, 1]))
    results = coco_results(1, detections, dataset.category_ids)
    assert [result["category_id"] for result in results] == ["c7", "03"]
    assert score(dataset, results).numbers[0] == pytest.approx(1)


def test_classes_without_a_category_are_dropped():
    detections = Detections(torch.zeros(3, 4), torch.tensor([0.9, 0.8, 0.7]), torch.tensor([11, 0, 25]))
    assert [result["score"] for result in coco_results(1, detections, {0: 1})] == pytest.approx([0.8])


def test_results_are_read_as_written(open_set, tmp_path):
    dataset = open_set([4], [])
    detections = Detections(torch.rand(2, 4), torch.rand(2), torch.tensor([0, 1]))
    results = coco_results(4, detections, dataset.category_ids)
    path = tmp_path / "made" / "results.json"
    write_results(path, results)
    assert json.loads(path.read_text()) == results == read_results(path, dataset)
    write_results(path, [])
    assert read_results(path, dataset) == []


def test_ids_may_be_numbers_or_texts_and_further_fields_are_dropped(open_set, tmp_path):
    dataset = open_set([1, "b"], [truth()])
    entry = {**found(image_id="1", category_id="7"), "segmentation": {"counts": "x"}, "id": 5}
    path = tmp_path / "results.json"
    path.write_text(json.dumps([entry, found(image_id="b")]))
    assert read_results(path, dataset) == [found(), found(image_id="b")]


def test_missing_results_are_told(dataset, tmp_path):
    with pytest.raises(InputError, match=r"none\.json"):
        read_results(tmp_path / "none.json", dataset)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"", "cannot read.*results.json"),
        (b"[{]", "cannot read.*results.json"),
        (b"\xff\xfe", "cannot read.*results.json"),
        (b"[" * 100_000, "cannot read.*results.json"),
        (b"3", "results.json.*a list of entries"),
        (b'{"images": [], "annotations": []}', "results.json.*a list of entries"),
    ],
)
def test_file_that_holds_no_results_is_refused(dataset, tmp_path, content, told):
    path = tmp_path / "results.json"
    path.write_bytes(content)
    with pytest.raises(InputError, match=told):
        read_results(path, dataset)


@pytest.mark.parametrize(
    ("entry", "told"),
    [
        ("1", "is no object"),
        ("[]", "is no object"),
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
def test_entry_of_no_use_is_named(open_set, tmp_path, entry, told):
    path = tmp_path / "results.json"
    path.write_text(f"[{json.dumps(found())}, {entry}]")
    with pytest.raises(InputError, match=rf"results\.json: entry 1 .*{told}"):
        read_results(path, open_set([1], []))


@pytest.mark.parametrize(("key", "value"), [("image_id", 2), ("image_id", "1.0"), ("category_id", 5)])
def test_entries_for_what_the_set_leaves_out_are_counted(open_set, tmp_path, key, value):
    dataset = open_set([1, 2], [truth(image_id=1)], max_images=1)
    path = tmp_path / "results.json"
    path.write_text(json.dumps([found(), found() | {key: value}, found() | {key: value}]))
    with pytest.raises(InputError, match=rf"2 of 3 entries .*--max_images.* entry 1 with {key} {value!r}"):
        read_results(path, dataset)


# Scores.


def test_nothing_detected_scores_zero_in_twelve_lines(dataset):
    evaluation = score(dataset, [])
    assert evaluation.numbers.shape == (12,)
    assert evaluation.numbers[:3].tolist() == [0, 0, 0]
    assert evaluation.numbers[0] == evaluation.numbers[8] == 0
    lines = evaluation.summary.splitlines()
    assert len(lines) == 12
    assert lines[0].startswith(" Average Precision  (AP) @[ IoU=0.50:0.95 | area=   all | maxDets=100 ]")
    assert lines[0].endswith("= 0.000")


def test_perfect_detections_score_one(dataset, capsys):
    evaluation = score(dataset, truth_as_results(dataset))
    assert evaluation.numbers[[0, 1, 2, 8]] == pytest.approx(1)
    assert set(evaluation.numbers.round(6).tolist()) <= {1.0, -1.0}  # -1 where no object has the size
    assert evaluation.summary.splitlines()[0].endswith("= 1.000")
    assert capsys.readouterr().out == ""


def test_detections_of_the_other_class_score_zero(dataset):
    swapped = {3: 7, 7: 3}
    results = [{**result, "category_id": swapped[result["category_id"]]} for result in truth_as_results(dataset)]
    assert score(dataset, results).numbers[0] == 0


def test_one_of_two_objects_found(open_set):
    dataset = open_set([1], [truth(), truth([100, 100, 40, 40])])
    # Precision is 1 up to recall 0.5: 51 of the 101 recall points.
    assert score(dataset, [found()]).numbers[0] == pytest.approx(51 / 101)
    assert score(dataset, [found()]).numbers[8] == pytest.approx(0.5)


def test_overlap_counts_at_the_thresholds_that_it_reaches(open_set):
    dataset = open_set([1], [truth([0, 0, 100, 100])])
    numbers = score(dataset, [found([0, 0, 100, 72])]).numbers  # IoU 0.72: 0.50 to 0.70, five of ten
    assert numbers[0] == pytest.approx(0.5)
    assert (numbers[1], numbers[2]) == (pytest.approx(1), 0)


def test_false_alarm_with_a_better_score_halves_precision(open_set):
    dataset = open_set([1, 2], [truth()])
    alarm = found([150, 150, 20, 20], image_id=2, confidence=0.9)
    assert score(dataset, [found(), alarm]).numbers[0] == pytest.approx(0.5)
    assert score(dataset, [found(), {**alarm, "score": 0.1}]).numbers[0] == pytest.approx(1)


def test_crowd_region_swallows_detections(open_set):
    dataset = open_set([1], [truth(), truth([100, 100, 80, 80], iscrowd=1)])
    inside = [found([110, 110, 20, 20], confidence=0.9), found([140, 140, 20, 20], confidence=0.8)]
    assert score(dataset, [found(), *inside]).numbers[0] == pytest.approx(1)


def test_annotation_id_zero_is_an_object_as_any_other(open_set):
    dataset = open_set([1], [truth(id=0)])
    assert score(dataset, [found()]).numbers[0] == pytest.approx(1)


def test_annotated_area_decides_the_size(open_set):
    dataset = open_set([1], [truth(area=500.0)])  # the box alone would be of medium size: 1200 pixels
    numbers = score(dataset, [found()]).numbers
    assert (numbers[3], numbers[4]) == (pytest.approx(1), -1)


def test_set_without_objects_is_undefined(open_set):
    evaluation = score(open_set([1, 2], []), [found()])
    assert (evaluation.numbers == -1).all()


def test_images_with_text_ids_are_scored(open_set):
    dataset = open_set(["a", "b"], [truth(image_id="b")])
    assert score(dataset, [found(image_id="b")]).numbers[0] == pytest.approx(1)
    assert score(dataset, [found(image_id="a")]).numbers[0] == 0


def test_images_with_ids_of_both_kinds_are_scored(open_set):
    image_ids = (7, "8", "a")
    dataset = open_set(image_ids, [truth(image_id=image_id) for image_id in image_ids])
    evaluation, details = score_in_detail(dataset, [found(image_id=image_id) for image_id in image_ids])
    assert evaluation.numbers[0] == pytest.approx(1)
    assert details.truth.images.tolist() == details.found.images.tolist() == [0, 1, 2]


def test_subset_is_scored_on_its_own_images(open_set):
    annotations = [truth(image_id=1), truth(image_id=2)]
    assert score(open_set([1, 2], annotations, max_images=1), [found()]).numbers[0] == pytest.approx(1)
    assert score(open_set([1, 2], annotations), [found()]).numbers[0] == pytest.approx(51 / 101)


def test_scoring_twice_gives_the_same(dataset):
    results = truth_as_results(dataset)[::2]
    np.testing.assert_array_equal(score(dataset, results).numbers, score(dataset, results).numbers)


# As pycocotools alone.


def many_results(content: dict, seed: int) -> list[dict]:
    """Detections of every quality: near the truth, of another class, anywhere; in one image above 100 of a class."""
    rng = np.random.default_rng(seed)
    category_ids = [category["id"] for category in content["categories"]]
    results = []
    for annotation in content["annotations"]:
        for _ in range(rng.integers(0, 4)):
            box = np.array(annotation["bbox"]) + rng.normal(0, 4, 4)
            category_id = annotation["category_id"] if rng.random() < 0.8 else int(rng.choice(category_ids))
            results.append(found(box.clip(0.1).tolist(), annotation["image_id"], category_id, round(rng.random(), 2)))
    first = content["images"][0]["id"]
    boxes = rng.uniform(1, 60, (250, 4)).tolist()
    results += [found(box, first, category_ids[0], round(rng.random(), 1)) for box in boxes]
    rng.shuffle(results)
    return results


@pytest.fixture
def crowded_set(tmp_path, write_coco, make_project) -> tuple[CocoDataset, Path]:
    """Images with gaps in their ids, crowds, classes in another order than their ids, one without objects."""
    rng = np.random.default_rng(0)
    names = [f"class {letter}" for letter in "hcaegdbf"]
    categories = [{"id": 3 + 5 * number, "name": name} for number, name in enumerate(names)]
    image_ids = (139, 7, 90_000, 25, 26, 400)
    annotations = [
        truth(
            rng.uniform(2, 120, 4).round(2).tolist(),
            int(rng.choice(image_ids)),
            categories[int(rng.integers(7))]["id"],
            area=float(rng.uniform(100, 12_000)),
            iscrowd=int(rng.random() < 0.2),
        )
        for _ in range(120)
    ]
    pictures = {image_id: np.zeros((250, 250, 3), np.uint8) for image_id in image_ids}
    path = write_coco(tmp_path, "crowded", pictures, annotations, categories)
    return CocoDataset(tmp_path, "crowded", make_project(obj_list=sorted(names)), (128, 128)), path


@pytest.mark.parametrize("seed", range(5))
def test_numbers_are_those_of_pycocotools_to_the_last_digit(crowded_set, tmp_path, seed):
    dataset, path = crowded_set
    results = tmp_path / "results.json"
    results.write_text(json.dumps(many_results(json.loads(path.read_text()), seed)))
    coco = COCO(str(path))
    theirs = COCOeval(coco, coco.loadRes(str(results)), "bbox")
    theirs.evaluate()
    theirs.accumulate()
    theirs.summarize()
    ours = score(dataset, read_results(results, dataset)).numbers
    assert ours.tolist() == theirs.stats.tolist()
    assert 0.05 < ours[0] < 0.9


def test_details_of_nothing(open_set):
    evaluation, details = score_in_detail(open_set([1], []), [])
    assert details.class_ids.tolist() == [0, 1]
    assert [len(values) for values in (*details.truth, *details.found)] == [0] * 11
    assert np.isnan(list(evaluation.by_name().values())).all() and (details.precision == -1).all()


def test_details_tell_which_object_each_detection_finds(open_set):
    annotations = [truth([0, 0, 20, 20], 1, 3), truth([0, 0, 10, 10], 2, iscrowd=1), truth([50, 50, 10, 10], 2)]
    results = [
        found([52, 50, 10, 10], 2, confidence=0.5),  # the same object, IoU 2/3
        found([50, 50, 10, 10], 2, confidence=0.75),
        found([1, 1, 5, 5], 2, confidence=0.25),
        found([0, 0, 20, 20], 1, 3),
        found([0, 0, 20, 20], 1, 7),
    ]
    evaluation, details = score_in_detail(open_set([1, 2], annotations), results)
    assert evaluation.by_name()["AP50"] == pytest.approx(1)
    assert list(evaluation.by_name()) == list(NUMBER_NAMES)
    truths, detections = details.truth, details.found
    assert truths.images.tolist() == [0, 1, 1] and truths.classes.tolist() == [1, 0, 0]  # disc (3), square (7)
    assert truths.boxes[2].tolist() == [50, 50, 60, 60] and truths.crowd.tolist() == [False, True, False]
    assert detections.images.tolist() == [0, 1, 1, 1, 0] and detections.classes.tolist() == [0, 0, 0, 0, 1]
    assert detections.scores.tolist() == [0.5, 0.75, 0.5, 0.25, 0.5]
    assert detections.truth.tolist() == [-1, 2, -1, -1, 0]
    assert detections.ignored.tolist() == [False, False, False, True, False]
    assert detections.boxes[2].tolist() == [52, 50, 62, 60]


def test_details_hold_the_best_hundred_of_a_class_and_image(open_set):
    results = [found(confidence=number / 200) for number in range(150)]
    _, details = score_in_detail(open_set([1], [truth()]), results)
    assert details.found.scores.tolist() == [number / 200 for number in range(149, 49, -1)]
