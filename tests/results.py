"""Shared by the tests of evaluation: small sets of boxes, and detections of them."""

from pathlib import Path

import numpy as np
from conftest import CATEGORIES, _write_coco

from efficientdet.data.dataset import CocoDataset
from efficientdet.evaluation.analysis import Analysis, analyze
from efficientdet.evaluation.coco import Details, Evaluation, score_in_detail
from efficientdet.project import Project

BOX = [10.0, 20.0, 30.0, 40.0]


def found(bbox=BOX, image_id=1, category_id=7, confidence=0.5) -> dict:
    """Return an entry of a results file."""
    return {"image_id": image_id, "category_id": category_id, "score": confidence, "bbox": bbox}


def truth(bbox=BOX, image_id=1, category_id=7, **fields) -> dict:
    """Return an annotation."""
    return {"image_id": image_id, "category_id": category_id, "bbox": bbox, **fields}


def write_set(folder: Path, project: Project, image_ids, annotations, categories=CATEGORIES, **options) -> CocoDataset:
    """Write and open a set of black images, 1000 x 200 pixels."""
    arrays = {image_id: np.zeros((200, 1000, 3), np.uint8) for image_id in image_ids}
    _write_coco(folder, "some", arrays, annotations, categories)
    return CocoDataset(folder, "some", project, (128, 128), **options)


def explain(dataset: CocoDataset, results: list[dict]) -> tuple[Evaluation, Details, Analysis]:
    evaluation, details = score_in_detail(dataset, results)
    return evaluation, details, analyze(details, dataset.project.class_names, dataset.image_ids)


def each_cause(folder: Path, project: Project) -> tuple[CocoDataset, list[dict]]:
    """Write image 1 with a detection of each kind, image 2 with a missed object, image 3 with nothing.

    Squares have category 7, discs 3. By descending score the detections are: background, correct, duplicate,
    localisation, classification, both, correct, and one in a crowd, which does not count.
    """
    annotations = [
        truth([0, 0, 10, 10]),
        truth([100, 0, 10, 10]),
        truth([200, 0, 10, 10], category_id=3),
        truth([300, 0, 10, 10], category_id=3),
        truth([400, 0, 50, 50], iscrowd=1),
        truth([600, 0, 10, 10]),
        truth([700, 0, 10, 10], image_id=2),
    ]
    results = [
        found([500, 0, 10, 10], confidence=0.95),
        found([0, 0, 10, 10], confidence=0.9),
        found([0, 0, 10, 8], confidence=0.8),  # IoU 0.8
        found([100, 0, 10, 4], confidence=0.7),  # IoU 0.4
        found([200, 0, 10, 10], confidence=0.6),
        found([300, 0, 10, 4], confidence=0.5),
        found([600, 0, 10, 10], confidence=0.1),
        found([410, 10, 5, 5], confidence=0.05),
    ]
    return write_set(folder, project, [1, 2, 3], annotations), results
