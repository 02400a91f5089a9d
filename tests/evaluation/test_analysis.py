"""The analysis of an evaluation, against numbers computed by hand."""

import time
from dataclasses import fields

import numpy as np
import pytest
from results import each_cause, explain, found, truth, write_set

from efficientdet.evaluation.analysis import Analysis, ThresholdCurve, analyze, class_table
from efficientdet.evaluation.coco import Details, GroundTruth, ScoredDetections
from efficientdet.evaluation.error_causes import CAUSES


def test_no_objects_and_no_detections(tmp_path, make_project):
    _, _, analysis = explain(write_set(tmp_path, make_project(), [1, 2], []), [])
    assert [(row.name, row.boxes) for row in analysis.classes] == [("square", 0), ("disc", 0)]
    assert all(np.isnan(row[2:]).all() for row in (*analysis.classes, *analysis.sizes))
    assert (analysis.confusion == 0).all() and analysis.confusion.shape == (3, 3)
    assert all(row.errors == row.all_errors == 0 and np.isnan(row.gain) for row in analysis.causes)
    assert [image.image_id for image in analysis.images] == [1, 2] and not analysis.images[0].errors
    assert np.isnan(analysis.precision["AP50"]).all()


def test_no_detections(tmp_path, make_project):
    _, _, analysis = explain(write_set(tmp_path, make_project(), [1, 2], [truth(image_id=2)]), [])
    square = analysis.classes[0]
    assert square[:6] == ("square", 1, 0, 0, 0, 0) and np.isnan(square[6:]).all()
    assert analysis.confusion.tolist() == [[0, 0, 1], [0, 0, 0], [0, 0, 0]]
    assert [(image.image_id, image.errors) for image in analysis.images] == [(2, {"missed": 1}), (1, {})]


def test_no_objects(tmp_path, make_project):
    _, _, analysis = explain(
        write_set(tmp_path, make_project(), [1], []), [found(confidence=0.4), found(confidence=0.9)]
    )
    assert analysis.confusion.tolist()[2] == [
        1,
        0,
        0,
    ]  # above 0.5, the middle of the thresholds: F1 is 0 at all of them
    assert analysis.all_classes.precision[0] == 0 and np.isnan(analysis.all_classes.recall).all()


def test_every_object_found(tmp_path, make_project):
    annotations = [truth(), truth([200, 50, 10, 10], category_id=3)]
    results = [found(), found([200, 50, 10, 10], category_id=3, confidence=0.75)]
    _, _, analysis = explain(write_set(tmp_path, make_project(), [1], annotations), results)
    for row, threshold in zip(analysis.classes, (0.25, 0.37)):  # the middle of the thresholds that reach it
        assert row[1:] == pytest.approx((1, 1, 1, 1, 1, threshold, 1, 1))
    assert analysis.score_threshold == pytest.approx(0.25)
    assert analysis.confusion.tolist() == np.diag([1, 1, 0]).tolist()
    assert analysis.images[0] == (1, 2, {})


def test_threshold_curve_counts_detections_with_at_least_that_score(tmp_path, make_project):
    # By descending score: right, wrong, right; three objects.
    annotations = [truth([100 * i, 0, 50, 50]) for i in range(3)]
    results = [
        found([0, 0, 50, 50], confidence=0.9),
        found([500, 0, 50, 50], confidence=0.5),
        found([100, 0, 50, 50], confidence=0.25),
    ]
    _, _, analysis = explain(write_set(tmp_path, make_project(), [1], annotations), results)
    curve = analysis.class_curves[0]
    at = {score: int(np.flatnonzero(np.isclose(curve.thresholds, score))[0]) for score in (0, 0.25, 0.26, 0.5, 0.9, 1)}
    assert [(curve.true_positives[i], curve.false_positives[i]) for i in at.values()] == [
        (2, 1),
        (2, 1),
        (1, 1),
        (1, 1),
        (1, 0),
        (0, 0),
    ]
    assert curve.f1[list(at.values())] == pytest.approx([4 / 6, 4 / 6, 2 / 5, 2 / 5, 2 / 4, 0])
    assert np.isnan(curve.precision[at[1]]) and curve.recall[at[1]] == 0
    square = analysis.classes[0]
    assert (square.F1, square.precision, square.recall) == pytest.approx((2 / 3, 2 / 3, 2 / 3))
    assert square.threshold == pytest.approx(0.12)


def test_best_threshold_is_the_middle_of_the_first_run():
    def best(right, wrong):
        return ThresholdCurve(np.linspace(0, 1, len(right)), np.array(right), np.array(wrong), 2).best

    assert best([1, 2, 2, 2, 1], [0] * 5) == 2
    assert best([1, 2, 1, 2, 2], [0] * 5) == 1
    assert best([1, 1, 1, 2, 2], [0] * 5) == 3
    assert best([0, 0, 0], [3, 2, 0]) == 1


@pytest.mark.parametrize(("low", "high"), [(20, 80), (-4, -2), (-1, 5)])
def test_scores_may_have_any_range(tmp_path, make_project, low, high):
    results = [found(confidence=high), found([500, 0, 9, 9], confidence=low)]
    _, _, analysis = explain(write_set(tmp_path, make_project(), [1], [truth()]), results)
    assert low < analysis.score_threshold <= high and analysis.classes[0].F1 == 1


def test_sizes_are_decided_by_the_annotated_area(tmp_path, make_project):
    annotations = [
        truth([0, 0, 100, 100], area=1023),
        truth([200, 0, 30, 30], area=5000),
        truth([300, 0, 30, 30], area=9999),
        truth([400, 0, 30, 30], area=9999),
        truth([500, 0, 30, 30], area=9999, iscrowd=1),
    ]
    results = [found(annotation["bbox"]) for annotation in (annotations[0], annotations[2])]
    _, _, analysis = explain(write_set(tmp_path, make_project(), [1], annotations), results)
    small, medium, large = analysis.sizes
    assert (small[:2], medium[:2], large[:2]) == (("small", 1), ("medium", 1), ("large", 2))
    assert (*small[2:], *medium[2:]) == pytest.approx((1, 1, 1, 0, 0, 0))
    assert large[2:] == pytest.approx((51 / 101, 51 / 101, 0.5))


def test_curves_and_classes_average_to_the_twelve_numbers(tmp_path, make_project):
    evaluation, _, analysis = explain(*each_cause(tmp_path, make_project()))
    numbers = evaluation.by_name()
    for name in ("AP50", "AP75"):
        assert analysis.precision[name].mean() == pytest.approx(numbers[name])
    assert np.mean([row.AP for row in analysis.classes]) == pytest.approx(numbers["AP"])
    assert np.mean([row.AR for row in analysis.classes]) == pytest.approx(numbers["AR_100"])
    assert analysis.class_precision.mean(axis=1) == pytest.approx([row.AP50 for row in analysis.classes])
    assert analysis.class_precision[0, [0, 25, 26, 50, 51]] == pytest.approx([1 / 2, 1 / 2, 2 / 7, 2 / 7, 0])
    assert [row.AP for row in analysis.sizes][0] == pytest.approx(numbers["AP_small"])


def test_confusions_and_causes_are_counted_at_the_best_threshold(tmp_path, make_project):
    dataset, results = each_cause(tmp_path, make_project())
    _, _, analysis = explain(dataset, results)
    # F1 of all boxes is 2 * 2 / (7 + 6) with all detections, and 2 * 1 / (2 + 6) with the first two.
    assert analysis.score_threshold == pytest.approx(0.05)
    assert analysis.confusion.tolist() == [
        [2, 0, 2],  # two of four squares are found
        [1, 0, 1],  # one of two discs is detected as a square
        [4, 0, 0],  # background, duplicate, localisation, both
    ]
    assert [(row.name, row.errors, row.all_errors) for row in analysis.causes] == [
        ("classification", 1, 1),
        ("localisation", 1, 1),
        ("both", 1, 1),
        ("duplicate", 1, 1),
        ("background", 1, 1),
        ("missed", 2, 2),
    ]
    assert analysis.images == [
        (1, 2, dict.fromkeys(CAUSES, 1)),
        (2, 0, {"missed": 1}),
        (3, 0, {}),
    ]


def test_confused_objects_are_matched_by_descending_iou(tmp_path, make_project):
    results = [
        found([0, 0, 100, 60], category_id=3, confidence=0.9),
        found([0, 0, 100, 90], category_id=3, confidence=0.8),
    ]
    dataset = write_set(tmp_path, make_project(), [1], [truth([0, 0, 100, 100]), truth([500, 0, 9, 9], category_id=3)])
    _, _, analysis = explain(dataset, [*results, found([500, 0, 9, 9], category_id=3, confidence=0.7)])
    assert analysis.confusion.tolist() == [[0, 1, 0], [0, 1, 0], [0, 1, 0]]


def test_images_are_sorted_by_most_errors_then_by_fewest_right_detections(tmp_path, make_project):
    annotations = [truth(image_id=1), truth([500, 0, 9, 9], 1), truth(image_id=2), truth(image_id=3)]
    annotations += [truth([500, 0, 9, 9], 3)]
    _, _, analysis = explain(write_set(tmp_path, make_project(), [1, 2, 3], annotations), [found()])
    assert [image.image_id for image in analysis.images] == [3, 2, 1]


def test_ninety_classes_of_which_ten_have_no_name(tmp_path, make_project):
    names = ["" if i % 9 == 0 else f"class {i}" for i in range(90)]
    categories = [{"id": i + 1, "name": name} for i, name in enumerate(names) if name]
    project = make_project(obj_list=names)
    dataset = write_set(tmp_path, project, [1], [truth(category_id=90)], categories)
    _, _, analysis = explain(dataset, [found(category_id=90), found(category_id=2, confidence=0.75)])
    assert len(analysis.classes) == 80 and analysis.classes[-1][:3] == ("class 89", 1, pytest.approx(1))
    assert analysis.confusion.shape == (81, 81)


def test_class_table_lists_the_classes_that_have_boxes(tmp_path, make_project):
    _, _, analysis = explain(*each_cause(tmp_path, make_project()))
    head, *lines = class_table(analysis.classes).splitlines()
    assert head.split() == ["class", "boxes", "AP", "AP50", "AR", "F1", "at", "score", "precision", "recall"]
    assert lines[0].split()[:2] == ["square", "4"] and lines[1].split() == ["disc", "2"] + ["0.000"] * 4
    _, _, analysis = explain(write_set(tmp_path, make_project(), [1], []), [])
    assert class_table(analysis.classes).splitlines()[1:] == ["(2 classes have no boxes in this set)"]


@pytest.mark.slow
def test_half_a_million_detections_take_seconds():
    rng = np.random.default_rng(0)
    images, classes, objects, detections = 5000, 80, 36_000, 500_000

    def boxes(count: int) -> np.ndarray:
        corner = rng.uniform(0, 400, (count, 2))
        return np.concatenate([corner, corner + rng.uniform(10, 200, (count, 2))], axis=1)

    ground_truth = GroundTruth(
        rng.integers(images, size=objects),
        rng.integers(classes, size=objects),
        boxes(objects),
        rng.uniform(100, 20_000, objects),
        rng.random(objects) < 0.01,
    )
    matched = np.full(detections, -1)
    matched[:20_000] = rng.permutation(np.flatnonzero(~ground_truth.crowd))[:20_000]
    scored = ScoredDetections(
        np.where(matched >= 0, ground_truth.images[matched], rng.integers(images, size=detections)),
        np.where(matched >= 0, ground_truth.classes[matched], rng.integers(classes, size=detections)),
        boxes(detections),
        rng.random(detections),
        matched,
        rng.random(detections) < 0.01,
    )
    tables = rng.random((10, 101, classes, 4)), rng.random((10, classes, 4))
    details = Details(np.arange(classes), *tables, ground_truth, scored)
    start = time.process_time()
    analysis = analyze(details, [f"class {k}" for k in range(classes)], range(images))
    assert time.process_time() - start < 20
    assert all(getattr(analysis, field.name) is not None for field in fields(Analysis))
    assert analysis.confusion[:-1].sum() == (~ground_truth.crowd).sum()
