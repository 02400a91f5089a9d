"""Average precision, from nothing found to everything found, and compared with pycocotools."""

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
from efficientdet.data.results import coco_results, read_results
from efficientdet.evaluation.coco import NUMBER_NAMES, score, score_in_detail
from efficientdet.project import load_project
from efficientdet.structures import Detections


@pytest.fixture
def dataset(shapes_project):
    project = load_project(shapes_project.yml)
    return CocoDataset(shapes_project.data, "train", project, (128, 128))


@pytest.fixture
def open_set(tmp_path, make_project):
    """Return a function that writes and opens a set, given its image ids and annotations."""
    return partial(write_set, tmp_path, make_project())


def ground_truth_as_results(dataset: CocoDataset) -> list[dict]:
    results = []
    for image_id in dataset.image_ids:
        boxes, class_ids = map(torch.from_numpy, dataset.target(image_id))
        results += coco_results(image_id, Detections(boxes, torch.ones(len(boxes)), class_ids), dataset.category_ids)
    return results


def test_no_detections_score_zero_in_twelve_lines(dataset):
    evaluation = score(dataset, [])
    assert evaluation.numbers.shape == (12,)
    assert evaluation.numbers[:3].tolist() == [0, 0, 0]
    assert evaluation.numbers[0] == evaluation.numbers[8] == 0
    lines = evaluation.summary.splitlines()
    assert len(lines) == 12
    assert lines[0].startswith(" Average Precision  (AP) @[ IoU=0.50:0.95 | area=   all | maxDets=100 ]")
    assert lines[0].endswith("= 0.000")


def test_perfect_detections_score_one(dataset, capsys):
    evaluation = score(dataset, ground_truth_as_results(dataset))
    assert evaluation.numbers[[0, 1, 2, 8]] == pytest.approx(1)
    assert set(evaluation.numbers.round(6).tolist()) <= {1.0, -1.0}  # -1 where no object has the size
    assert evaluation.summary.splitlines()[0].endswith("= 1.000")
    assert capsys.readouterr().out == ""


def test_detections_of_the_wrong_class_score_zero(dataset):
    swapped = {3: 7, 7: 3}
    results = [{**result, "category_id": swapped[result["category_id"]]} for result in ground_truth_as_results(dataset)]
    assert score(dataset, results).numbers[0] == 0


def test_one_of_two_objects_found(open_set):
    dataset = open_set([1], [truth(), truth([100, 100, 40, 40])])
    # Precision is 1 up to recall 0.5: 51 of the 101 recall points.
    assert score(dataset, [found()]).numbers[0] == pytest.approx(51 / 101)
    assert score(dataset, [found()]).numbers[8] == pytest.approx(0.5)


def test_a_match_counts_at_the_iou_thresholds_that_it_reaches(open_set):
    dataset = open_set([1], [truth([0, 0, 100, 100])])
    numbers = score(dataset, [found([0, 0, 100, 72])]).numbers  # IoU 0.72: 0.50 to 0.70, five of ten
    assert numbers[0] == pytest.approx(0.5)
    assert (numbers[1], numbers[2]) == (pytest.approx(1), 0)


def test_false_positive_with_the_highest_score_halves_precision(open_set):
    dataset = open_set([1, 2], [truth()])
    false_positive = found([150, 150, 20, 20], image_id=2, confidence=0.9)
    assert score(dataset, [found(), false_positive]).numbers[0] == pytest.approx(0.5)
    assert score(dataset, [found(), {**false_positive, "score": 0.1}]).numbers[0] == pytest.approx(1)


def test_detections_in_a_crowd_region_are_ignored(open_set):
    dataset = open_set([1], [truth(), truth([100, 100, 80, 80], iscrowd=1)])
    inside = [found([110, 110, 20, 20], confidence=0.9), found([140, 140, 20, 20], confidence=0.8)]
    assert score(dataset, [found(), *inside]).numbers[0] == pytest.approx(1)


def test_annotation_with_id_zero_counts_like_any_other(open_set):
    dataset = open_set([1], [truth(id=0)])
    assert score(dataset, [found()]).numbers[0] == pytest.approx(1)


def test_annotated_area_decides_the_size(open_set):
    dataset = open_set([1], [truth(area=500.0)])  # the box alone would be of medium size: 1200 pixels
    numbers = score(dataset, [found()]).numbers
    assert (numbers[3], numbers[4]) == (pytest.approx(1), -1)


def test_set_without_objects_is_undefined(open_set):
    evaluation = score(open_set([1, 2], []), [found()])
    assert (evaluation.numbers == -1).all()


def test_category_ids_may_be_text(open_set):
    categories = [{"id": "c7", "name": "square"}, {"id": "03", "name": "disc"}]
    dataset = open_set([1], [truth(category_id="c7")], categories)
    assert score(dataset, [found(category_id="c7"), found(category_id="03")]).numbers[0] == pytest.approx(1)


def test_image_ids_may_be_text(open_set):
    dataset = open_set(["a", "b"], [truth(image_id="b")])
    assert score(dataset, [found(image_id="b")]).numbers[0] == pytest.approx(1)
    assert score(dataset, [found(image_id="a")]).numbers[0] == 0


def test_image_ids_may_be_numbers_and_text_in_one_set(open_set):
    image_ids = (7, "8", "a")
    dataset = open_set(image_ids, [truth(image_id=image_id) for image_id in image_ids])
    evaluation, details = score_in_detail(dataset, [found(image_id=image_id) for image_id in image_ids])
    assert evaluation.numbers[0] == pytest.approx(1)
    assert details.ground_truth.images.tolist() == details.detections.images.tolist() == [0, 1, 2]


def test_subset_is_scored_on_its_images_alone(open_set):
    annotations = [truth(image_id=1), truth(image_id=2)]
    assert score(open_set([1, 2], annotations, max_images=1), [found()]).numbers[0] == pytest.approx(1)
    assert score(open_set([1, 2], annotations), [found()]).numbers[0] == pytest.approx(51 / 101)


def test_scoring_twice_gives_the_same(dataset):
    results = ground_truth_as_results(dataset)[::2]
    np.testing.assert_array_equal(score(dataset, results).numbers, score(dataset, results).numbers)


# Compared with pycocotools.


def many_results(content: dict, seed: int) -> list[dict]:
    """Return detections near the ground truth, of another class, anywhere, and more than 100 of a class in an image."""
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
    """Write a set with crowds, gaps in the image ids, a class without objects, and classes not in the order of ids."""
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
    arrays = {image_id: np.zeros((250, 250, 3), np.uint8) for image_id in image_ids}
    path = write_coco(tmp_path, "crowded", arrays, annotations, categories)
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


def test_details_without_objects_and_detections(open_set):
    evaluation, details = score_in_detail(open_set([1], []), [])
    assert details.class_ids.tolist() == [0, 1]
    assert [len(values) for values in (*details.ground_truth, *details.detections)] == [0] * 11
    assert np.isnan(list(evaluation.by_name().values())).all() and (details.precision == -1).all()


def test_details_hold_the_object_that_each_detection_matches(open_set):
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
    ground_truth, detections = details.ground_truth, details.detections
    assert ground_truth.images.tolist() == [0, 1, 1] and ground_truth.classes.tolist() == [1, 0, 0]  # disc, square
    assert ground_truth.boxes[2].tolist() == [50, 50, 60, 60] and ground_truth.crowd.tolist() == [False, True, False]
    assert detections.images.tolist() == [0, 1, 1, 1, 0] and detections.classes.tolist() == [0, 0, 0, 0, 1]
    assert detections.scores.tolist() == [0.5, 0.75, 0.5, 0.25, 0.5]
    assert detections.matches.tolist() == [-1, 2, -1, -1, 0]
    assert detections.ignored.tolist() == [False, False, False, True, False]
    assert detections.boxes[2].tolist() == [52, 50, 62, 60]


def test_details_hold_the_best_hundred_detections_per_class_and_image(open_set):
    results = [found(confidence=number / 200) for number in range(150)]
    _, details = score_in_detail(open_set([1], [truth()]), results)
    assert details.detections.scores.tolist() == [number / 200 for number in range(149, 49, -1)]
