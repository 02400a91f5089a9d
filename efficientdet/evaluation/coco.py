"""`Detections` -> COCO results -> average precision, and what it was computed from."""

import contextlib
import io
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from efficientdet.data.dataset import CocoDataset

MATCH_IOU = 0.5  # of the matches that `Details` holds


NUMBER_NAMES = (
    "AP", "AP50", "AP75", "AP_small", "AP_medium", "AP_large",
    "AR_1", "AR_10", "AR_100", "AR_small", "AR_medium", "AR_large",
)  # fmt: skip


class Evaluation(NamedTuple):
    """COCO's twelve numbers, and its own lines that tell them."""

    # (12,): AP, AP50, AP75, AP by size (3), AR by number of detections (3), AR by size (3); -1 where undefined
    numbers: np.ndarray
    summary: str

    def by_name(self) -> dict[str, float]:
        """The numbers by their names; NaN where undefined."""
        return dict(zip(NUMBER_NAMES, np.where(self.numbers >= 0, self.numbers, np.nan).tolist()))


class Truth(NamedTuple):
    """The G annotated objects of a set."""

    images: np.ndarray  # (G,) positions in `dataset.image_ids`
    classes: np.ndarray  # (G,) positions in `Details.class_ids`
    boxes: np.ndarray  # (G, 4) float64 xyxy in the image's pixels
    areas: np.ndarray  # (G,) as annotated, which decides the size
    crowd: np.ndarray  # (G,) bool: a region of many, in which detections count neither as right nor as wrong


class Found(NamedTuple):
    """The D detections that COCO scores (the best 100 of each class in each image), class by class, image by image."""

    images: np.ndarray  # (D,) positions in `dataset.image_ids`
    classes: np.ndarray  # (D,) positions in `Details.class_ids`
    boxes: np.ndarray  # (D, 4) float64 xyxy in the image's pixels
    scores: np.ndarray  # (D,)
    truth: np.ndarray  # (D,) position in Truth of the object that it finds by MATCH_IOU, or -1
    ignored: np.ndarray  # (D,) bool: it lies in a crowd region


class Details(NamedTuple):
    """What COCO's scoring made the twelve numbers of, for the K classes of the data set's categories."""

    class_ids: np.ndarray  # (K,) class indices, ascending
    # (10, 101, K, 4): at IoU 0.50, 0.55 ... 0.95, at recall 0, 0.01 ... 1, by class, of all sizes, small, medium and
    # large; -1 where there is no object to find
    precision: np.ndarray
    recall: np.ndarray  # (10, K, 4): the highest reached
    truth: Truth
    found: Found


def score(dataset: CocoDataset, results: Sequence[dict]) -> Evaluation:
    """COCO's average precision of `results`, entries of a results file, on all images of `dataset`."""
    return score_in_detail(dataset, results)[0]


def score_in_detail(dataset: CocoDataset, results: Sequence[dict]) -> tuple[Evaluation, Details]:
    """As `score`, with what the numbers were computed from."""
    class_of = {category_id: class_index for class_index, category_id in dataset.category_ids.items()}
    # Built by hand because COCO.loadRes fails on an empty list, and nothing detected is a result: AP 0.
    annotations = []
    for number, result in enumerate(results, 1):
        x, y, width, height = result["bbox"]
        annotations.append(
            {
                "id": number,
                "image_id": dataset.index_of[result["image_id"]],
                "category_id": class_of[result["category_id"]],
                "bbox": [x, y, width, height],
                "score": result["score"],
                "area": width * height,
                "iscrowd": 0,
            }
        )
    with contextlib.redirect_stdout(io.StringIO()):
        found = COCO()
        found.dataset = {**dataset.coco.dataset, "annotations": annotations}
        found.createIndex()
        evaluation = COCOeval(dataset.coco, found, "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
    precision, recall = evaluation.eval["precision"], evaluation.eval["recall"]
    details = Details(
        np.asarray(evaluation.params.catIds),
        precision[..., -1],
        recall[..., -1],
        *_matches(dataset, results, evaluation),
    )
    # The means over classes are taken in the order of the category ids, not of our class indices: it moves their last
    # digit.
    ids = [dataset.category_ids[class_id] for class_id in evaluation.params.catIds]
    order = sorted(range(len(ids)), key=lambda k: (str(type(ids[k])), ids[k]))
    evaluation.eval |= {"precision": precision[:, :, order], "recall": recall[:, order]}
    with contextlib.redirect_stdout(io.StringIO()) as summary:
        evaluation.summarize()
    return Evaluation(np.asarray(evaluation.stats), summary.getvalue().rstrip()), details


def _matches(dataset: CocoDataset, results: Sequence[dict], evaluation: COCOeval) -> tuple[Truth, Found]:
    """Truth and detections as arrays, with the matches that `evaluation` made at MATCH_IOU."""
    parameters = evaluation.params
    class_ids = np.asarray(parameters.catIds)
    objects = dataset.coco.dataset["annotations"]
    truth = Truth(
        np.array([entry["image_id"] for entry in objects], np.int64),
        np.searchsorted(class_ids, np.array([entry["category_id"] for entry in objects], np.int64)),
        _xyxy([entry["bbox"] for entry in objects]),
        np.array([entry["area"] for entry in objects], np.float64),
        np.array([entry["iscrowd"] for entry in objects], bool),
    )

    threshold = np.flatnonzero(parameters.iouThrs == MATCH_IOU)[0]
    parts = [part for part in evaluation.evalImgs if part is not None and part["aRng"] == parameters.areaRng[0]]
    number = np.array([number for part in parts for number in part["dtIds"]], np.int64)
    object_id = np.array([match for part in parts for match in part["dtMatches"][threshold]], np.int64)
    ignored = np.array([flag for part in parts for flag in part["dtIgnore"][threshold]], bool)
    object_ids = np.array([entry["id"] for entry in objects], np.int64)  # ascending, and 0 means no match
    matched = np.where((object_id > 0) & ~ignored, np.searchsorted(object_ids, object_id), -1)
    chosen = [results[i - 1] for i in number]
    found = Found(
        np.array([dataset.index_of[result["image_id"]] for result in chosen], np.int64),
        np.repeat(
            np.searchsorted(class_ids, np.array([part["category_id"] for part in parts], np.int64)),
            np.array([len(part["dtIds"]) for part in parts], np.int64),
        ),
        _xyxy([result["bbox"] for result in chosen]),
        np.array([result["score"] for result in chosen], np.float64),
        matched,
        ignored,
    )
    return truth, found


def _xyxy(boxes_xywh: list[list[float]]) -> np.ndarray:
    boxes = np.array(boxes_xywh, np.float64).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    return boxes
