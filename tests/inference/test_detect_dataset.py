"""Detection in a data set: every image once, in order, however it is loaded."""

import threading

import pytest
import torch
from scripts import write_shapes_project, write_weights

from efficientdet.config import EVALUATION_IOU_THRESHOLD, EVALUATION_SCORE_THRESHOLD
from efficientdet.data.dataset import CocoDataset
from efficientdet.data.shapes import write_shapes
from efficientdet.evaluation.coco import score
from efficientdet.inference.dataset import detect_dataset
from efficientdet.inference.detector import Detector, load_detector
from efficientdet.inference.options import DetectionOptions
from efficientdet.project import SHAPES_WEIGHTS, load_project
from utils.errors import InputError
from utils.stopwatch import Stopwatch

OPTIONS = DetectionOptions(score_threshold=0.01, iou_threshold=0.5)
# A difference in the last digit could change what NMS keeps.
NO_SUPPRESSION = DetectionOptions(score_threshold=0.0, iou_threshold=1.0, max_detections=20)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> CocoDataset:
    project = write_shapes_project(tmp_path_factory.mktemp("drawn"))
    return CocoDataset(project.data, "train", load_project(project.yml), (128, 128))


@pytest.fixture(scope="module")
def detector(dataset, tmp_path_factory) -> Detector:
    weights = write_weights(tmp_path_factory.mktemp("weights") / "untrained.pth", 0, dataset.project.num_classes)
    return load_detector(0, weights, project=dataset.project, device="cpu", image_size=128)


@pytest.fixture(scope="module")
def one_by_one(detector, dataset) -> list[dict]:
    return detect_dataset(detector, dataset, NO_SUPPRESSION, 1, 0, Stopwatch())


def test_nothing_detected(detector, dataset):
    assert detect_dataset(detector, dataset, DetectionOptions(score_threshold=0.99), 4, 1, Stopwatch()) == []


def test_results_are_those_of_the_detector_in_the_data_sets_order(detector, dataset):
    results = detect_dataset(detector, dataset, OPTIONS, 1, 0, Stopwatch())
    expected = []
    for image_id in dataset.image_ids:
        (found,) = detector([dataset.load_image(image_id)], OPTIONS.score_threshold, OPTIONS.iou_threshold)
        for box, confidence, class_id in zip(found.boxes.tolist(), found.scores.tolist(), found.class_ids.tolist()):
            xywh = [box[0], box[1], box[2] - box[0], box[3] - box[1]]
            category_id = dataset.category_ids[class_id]
            expected.append({"image_id": image_id, "category_id": category_id, "score": confidence, "bbox": xywh})
    assert len(results) == len(expected) > 6
    for some, other in zip(results, expected):
        assert some == {**other, "bbox": pytest.approx(other["bbox"], abs=1e-3)}


@pytest.mark.parametrize(("batch_size", "num_threads"), [(1, 1), (4, 0), (4, 2), (100, 8)])
def test_batches_and_threads_change_nothing(detector, dataset, one_by_one, batch_size, num_threads):
    results = detect_dataset(detector, dataset, NO_SUPPRESSION, batch_size, num_threads, Stopwatch())
    assert [result["image_id"] for result in results] == [result["image_id"] for result in one_by_one]
    assert len(results) == 20 * len(dataset)
    scores, expected = ([result["score"] for result in some] for some in (results, one_by_one))
    assert scores == pytest.approx(expected, rel=1e-3)


def test_unusable_image_is_an_error_and_threads_end(detector, shapes_project):
    dataset = CocoDataset(shapes_project.data, "train", load_project(shapes_project.yml), (128, 128))
    (shapes_project.data / "train" / "000022.jpg").write_text("no image")
    before = threading.active_count()
    with pytest.raises(InputError, match=r"000022\.jpg"):
        detect_dataset(detector, dataset, OPTIONS, 2, 2, Stopwatch())
    assert threading.active_count() == before


def test_time_is_measured_by_activity(detector, dataset):
    stopwatch = Stopwatch()
    detect_dataset(detector, dataset, OPTIONS, 2, 1, stopwatch)
    assert list(stopwatch.seconds) == ["loading", "network", "post-processing"]
    assert all(seconds > 0 for seconds in stopwatch.seconds.values())
    stopwatch.seconds = {"loading": 0.5, "network": 1.5}
    assert stopwatch.summary(6) == "6 images in 2.0 s, 3.0 a second: loading 25%, network 75%"


@pytest.mark.slow
def test_half_precision_keeps_the_average_precision(tmp_path):
    write_shapes(tmp_path / "shapes", train_images=0, val_images=100)
    project = load_project("shapes")
    dataset = CocoDataset(tmp_path / "shapes", project.val_set, project, (384, 384))
    options = DetectionOptions(EVALUATION_SCORE_THRESHOLD, EVALUATION_IOU_THRESHOLD)
    exact, half = (
        score(dataset, detect_dataset(detector, dataset, options, 8, 2, Stopwatch())).numbers[0]
        for detector in (
            load_detector(0, SHAPES_WEIGHTS, project, "cpu", dtype=dtype) for dtype in (torch.float32, torch.bfloat16)
        )
    )
    assert exact > 0.85
    assert abs(half - exact) < 0.003
