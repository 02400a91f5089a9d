"""Average precision as pycocotools computes it, and the matches behind it."""

import contextlib
import io
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from efficientdet.data.dataset import CocoDataset

MATCH_IOU = 0.5  # IoU threshold of the matches in `Details`
NUMBER_NAMES = (
    "AP", "AP50", "AP75", "AP_small", "AP_medium", "AP_large",
    "AR_1", "AR_10", "AR_100", "AR_small", "AR_medium", "AR_large",
)  # fmt: skip


class Evaluation(NamedTuple):
    """COCO's twelve numbers, and the twelve lines that pycocotools prints for them."""

    numbers: np.ndarray  # (12,) in the order of NUMBER_NAMES; -1 where undefined
    summary: str

    def by_name(self) -> dict[str, float]:
        """Return the numbers by name; NaN where undefined."""
        return dict(zip(NUMBER_NAMES, np.where(self.numbers >= 0, self.numbers, np.nan).tolist()))


class GroundTruth(NamedTuple):
    """The G annotated objects of a set."""

    images: np.ndarray  # (G,) positions in `dataset.image_ids`
    classes: np.ndarray  # (G,) positions in `Details.class_ids`
    boxes: np.ndarray  # (G, 4) float64 xyxy in pixels of the image
    areas: np.ndarray  # (G,) as annotated; decide between small, medium and large
    crowd: np.ndarray  # (G,) bool: a region of many objects, in which detections count neither as right nor as wrong


class ScoredDetections(NamedTuple):
    """The D detections that COCO scores: the best 100 of each class in each image, class by class, image by image."""

    images: np.ndarray  # (D,) positions in `dataset.image_ids`
    classes: np.ndarray  # (D,) positions in `Details.class_ids`
    boxes: np.ndarray  # (D, 4) float64 xyxy in pixels of the image
    scores: np.ndarray  # (D,)
    matches: np.ndarray  # (D,) position in GroundTruth of the object that is found at MATCH_IOU, or -1
    ignored: np.ndarray  # (D,) bool: lies in a crowd region


class Details(NamedTuple):
    """What the twelve numbers are computed from, for the K classes that are categories of the data set."""

    class_ids: np.ndarray  # (K,) class indices, ascending
    precision: np.ndarray  # (10, 101, K, 4): IoU 0.5 to 0.95, recall 0 to 1, class, size (all to large); -1: no objects
    recall: np.ndarray  # (10, K, 4): the highest that is reached; -1: no objects
    ground_truth: GroundTruth
    detections: ScoredDetections


def score(dataset: CocoDataset, results: Sequence[dict]) -> Evaluation:
    """Return COCO's average precision of `results`, entries of a results file, on all images of `dataset`.

    The numbers equal those of pycocotools on the untouched annotation file, but an annotation with the id 0, which
    never counts as found in pycocotools (0 means "unmatched"), counts like any other.
    """
    return score_in_detail(dataset, results)[0]


def score_in_detail(dataset: CocoDataset, results: Sequence[dict]) -> tuple[Evaluation, Details]:
    """Return the same as `score`, and what the numbers are computed from."""
    class_of = {category_id: class_index for class_index, category_id in dataset.category_ids.items()}
    annotations = []
    for number, result in enumerate(results, 1):
        indices = {"image_id": dataset.index_of[result["image_id"]], "category_id": class_of[result["category_id"]]}
        area = result["bbox"][2] * result["bbox"][3]
        annotations.append({**result, **indices, "id": number, "area": area, "iscrowd": 0})
    with contextlib.redirect_stdout(io.StringIO()):
        detected = COCO()  # not by COCO.loadRes, which fails on an empty list
        detected.dataset = {**dataset.coco.dataset, "annotations": annotations}
        detected.createIndex()
        evaluation = COCOeval(dataset.coco, detected, "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
    precision, recall = evaluation.eval["precision"], evaluation.eval["recall"]
    class_ids = np.asarray(evaluation.params.catIds)
    boxes = dataset.annotated.boxes
    classes = np.searchsorted(class_ids, boxes.class_ids)
    ground_truth = GroundTruth(boxes.images, classes, _xywh_to_xyxy(boxes.xywh), boxes.areas, boxes.crowd)
    detections = _scored_detections(evaluation, annotations)
    details = Details(class_ids, precision[..., -1], recall[..., -1], ground_truth, detections)
    # pycocotools averages over classes in the order of the category ids; another order changes the last digit.
    ids = [dataset.category_ids[class_id] for class_id in class_ids]
    order = sorted(range(len(ids)), key=lambda k: (str(type(ids[k])), ids[k]))
    evaluation.eval |= {"precision": precision[:, :, order], "recall": recall[:, order]}
    with contextlib.redirect_stdout(io.StringIO()) as summary:
        evaluation.summarize()
    return Evaluation(np.asarray(evaluation.stats), summary.getvalue().rstrip()), details


def _scored_detections(evaluation: COCOeval, annotations: Sequence[dict]) -> ScoredDetections:
    """Return the detections that `evaluation` scored, with their matches at MATCH_IOU."""
    parameters = evaluation.params
    threshold = np.flatnonzero(parameters.iouThrs == MATCH_IOU).item()
    parts = [part for part in evaluation.evalImgs if part is not None and part["aRng"] == parameters.areaRng[0]]
    scored = [annotations[number - 1] for part in parts for number in part["dtIds"]]
    object_ids = np.array([match for part in parts for match in part["dtMatches"][threshold]], np.int64)
    ignored = np.array([flag for part in parts for flag in part["dtIgnore"][threshold]], bool)
    return ScoredDetections(
        np.array([entry["image_id"] for entry in scored], np.int64),
        np.searchsorted(parameters.catIds, np.array([entry["category_id"] for entry in scored], np.int64)),
        _xywh_to_xyxy(np.array([entry["bbox"] for entry in scored], np.float64).reshape(-1, 4)),
        np.array([entry["score"] for entry in scored], np.float64),
        np.where(ignored, -1, object_ids - 1),  # `dataset.coco` counts the objects from 1; 0 means unmatched
        ignored,
    )


def _xywh_to_xyxy(boxes_xywh: np.ndarray) -> np.ndarray:
    return np.concatenate((boxes_xywh[:, :2], boxes_xywh[:, :2] + boxes_xywh[:, 2:]), axis=1)
