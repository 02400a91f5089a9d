"""The six causes of errors and their cost in AP50, against numbers computed by hand."""

import numpy as np
import pytest
from results import each_cause, found, truth, write_set

from efficientdet.evaluation.coco import score_in_detail
from efficientdet.evaluation.error_causes import CAUSES, find_errors, gains, overlapping_pairs


def errors_of(dataset, results, min_score=0.0):
    """Return the details, their errors, and the causes in the order of `results`, whose scores must differ."""
    _, details = score_in_detail(dataset, results)
    counted = ~details.detections.ignored & (details.detections.scores >= min_score)
    errors = find_errors(details, overlapping_pairs(details), counted)
    by_score = dict(zip(details.detections.scores, errors.causes))
    return details, errors, [by_score[r["score"]] for r in results]


def names(causes) -> list[str]:
    return ["" if cause < 0 else CAUSES[cause] for cause in causes]


def test_no_objects_and_no_detections(tmp_path, make_project):
    details, errors, _ = errors_of(write_set(tmp_path, make_project(), [1], []), [])
    assert [len(values) for values in errors] == [0, 0, 0]
    assert np.isnan(gains(details, errors)).all()


def test_no_detections_miss_all_objects_but_crowds(tmp_path, make_project):
    dataset = write_set(tmp_path, make_project(), [1, 2], [truth(), truth(iscrowd=1), truth(image_id=2, category_id=3)])
    details, errors, _ = errors_of(dataset, [])
    assert errors.missed.tolist() == [True, False, True]
    assert gains(details, errors).tolist() == [0, 0, 0, 0, 0, 1]


def test_detections_without_objects_are_background(tmp_path, make_project):
    details, errors, causes = errors_of(write_set(tmp_path, make_project(), [1], []), [found()])
    assert names(causes) == ["background"]
    assert np.isnan(gains(details, errors)).all()


def test_each_cause_once(tmp_path, make_project):
    dataset, results = each_cause(tmp_path, make_project())
    details, errors, causes = errors_of(dataset, results)
    assert names(causes) == [
        "background", "", "duplicate", "localisation", "classification", "both", "", ""
    ]  # fmt: skip
    # Only the detection of cause "both" is near the fourth, a disc; the last is in the second image.
    assert errors.missed.tolist() == [False, False, False, True, False, False, True]
    assert sorted(errors.fixed_matches[errors.fixed_matches >= 0]) == [1, 2]

    # Squares, by descending score: wrong, right, wrong x 4, right; 4 objects. Precision is 1/2 at the 26 recall points
    # up to 0.25 and 2/7 at the 25 up to 0.5. Discs: 2 objects, nothing right.
    base = 26 / 2 + 25 * 2 / 7
    assert score_in_detail(dataset, results)[0].numbers[1] == pytest.approx(base / 202)
    one_less = 26 / 2 + 25 * 2 / 6
    expected = {
        "classification": one_less + 51,  # one of two discs is found, with precision 1
        "localisation": 26 / 2 + 25 * 2 / 4 + 25 * 3 / 7,
        "both": one_less,
        "duplicate": one_less,
        "background": 26 * 1 + 25 * 2 / 6,
        "missed": 34 / 2 + 33 * 2 / 7,  # 3 squares and 1 disc remain
    }
    assert gains(details, errors) == pytest.approx([(expected[cause] - base) / 202 for cause in CAUSES])


def test_detections_with_low_scores_may_be_left_out(tmp_path, make_project):
    _, errors, causes = errors_of(*each_cause(tmp_path, make_project()), min_score=0.65)
    assert names(causes) == ["background", "", "duplicate", "localisation", "", "", "", ""]
    assert errors.missed.tolist() == [False, False, True, True, False, True, True]


@pytest.mark.parametrize(
    ("height", "category_id", "cause"),
    [(50, 7, ""), (49, 7, "localisation"), (10, 7, "localisation"), (9, 7, "background")]
    + [(50, 3, "classification"), (49, 3, "both"), (10, 3, "both"), (9, 3, "background")],
)
def test_limits_of_the_causes(tmp_path, make_project, height, category_id, cause):
    dataset = write_set(tmp_path, make_project(), [1], [truth([0, 0, 100, 100])])
    _, errors, causes = errors_of(dataset, [found([0, 0, 100, height], category_id=category_id)])
    assert names(causes) == [cause]
    assert errors.missed.tolist() == [cause in ("both", "background")]


def test_only_the_candidate_with_the_highest_score_is_fixed(tmp_path, make_project):
    dataset = write_set(tmp_path, make_project(), [1], [truth([0, 0, 100, 100])])
    results = [
        found([0, 0, 100, 40], confidence=0.5),
        found([0, 0, 100, 100], category_id=3, confidence=0.75),
        found([0, 0, 100, 30], confidence=0.25),
    ]
    details, errors, causes = errors_of(dataset, results)
    assert names(causes) == ["localisation", "classification", "localisation"]
    assert (
        errors.fixed_matches[details.detections.scores == 0.75].tolist() == [0]
        and (errors.fixed_matches >= 0).sum() == 1
    )
    assert gains(details, errors)[:2] == pytest.approx([1, 0])


def test_wrong_class_on_an_object_that_is_found_fixes_nothing(tmp_path, make_project):
    dataset = write_set(tmp_path, make_project(), [1], [truth(), truth([100, 100, 9, 9], category_id=3)])
    details, errors, causes = errors_of(dataset, [found(), found(category_id=3, confidence=0.75)])
    assert names(causes) == ["", "classification"]
    assert (errors.fixed_matches == -1).all()
    assert errors.missed.tolist() == [False, True]


def test_class_without_remaining_objects_is_left_out_of_the_mean(tmp_path, make_project):
    dataset = write_set(tmp_path, make_project(), [1], [truth(), truth([100, 100, 9, 9], category_id=3)])
    details, errors, _ = errors_of(dataset, [found()])
    assert gains(details, errors)[CAUSES.index("missed")] == pytest.approx(0.5)
