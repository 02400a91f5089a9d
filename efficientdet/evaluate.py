"""`Detections` -> COCO results -> average precision."""

import contextlib
import io
import json
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from efficientdet.boxes import xyxy_to_xywh
from efficientdet.dataset import CocoDataset
from efficientdet.postprocess import Detections
from utils.errors import InputError
from utils.files import written_whole

EVALUATION_SCORE_THRESHOLD = 0.05
EVALUATION_IOU_THRESHOLD = 0.5


class Evaluation(NamedTuple):
    """COCO's twelve numbers, and its own lines that tell them."""

    # (12,): AP, AP50, AP75, AP by size (3), AR by number of detections (3), AR by size (3); -1 where undefined
    numbers: np.ndarray
    summary: str


def coco_results(image_id: int | str, detections: Detections, category_ids: dict) -> list[dict]:
    """One image's detections as entries of a COCO results file.

    Classes without a category in the data set (COCO's unused slots, say) have no id to be reported under.

    Args:
        category_ids: class index -> category id, as `CocoDataset.category_ids`.
    """
    boxes = xyxy_to_xywh(detections.boxes).tolist()
    return [
        {"image_id": image_id, "category_id": category_ids[class_id], "score": score, "bbox": box}
        for box, score, class_id in zip(boxes, detections.scores.tolist(), detections.class_ids.tolist())
        if class_id in category_ids
    ]


def write_results(path: Path, results: list[dict]) -> None:
    """Write a COCO results file."""
    with written_whole(path) as temporary:
        temporary.write_text(json.dumps(results))


def read_results(path: Path) -> list[dict]:
    """Read a COCO results file; InputError when it is none."""
    try:
        results = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise InputError(f"cannot read the results {path}: {error}; pass --override True to make them anew") from error
    if not isinstance(results, list) or not all(_is_result(result) for result in results):
        raise InputError(f"{path} is not a COCO results file; pass --override True to make it anew")
    return results


def _is_result(value: object) -> bool:
    """Whether `value` is an entry of a COCO results file."""
    return (
        isinstance(value, dict)
        and all(isinstance(value.get(key), int | str) for key in ("image_id", "category_id"))
        and isinstance(value.get("score"), int | float)
        and isinstance(value.get("bbox"), list)
        and len(value["bbox"]) == 4
        and all(isinstance(number, int | float) for number in value["bbox"])
    )


def score(dataset: CocoDataset, results: Iterable[dict]) -> Evaluation:
    """Average precision of a results file's entries on all images of `dataset`."""
    class_of = {str(category_id): class_index for class_index, category_id in dataset.category_ids.items()}
    known_images = set(dataset.image_ids)
    annotations = []
    for number, result in enumerate(results, 1):
        if result["image_id"] not in known_images or str(result["category_id"]) not in class_of:
            raise InputError(
                f"the results hold image {result['image_id']!r} with category {result['category_id']!r}, which "
                f"{dataset.annotation_file} or --max_images leaves out; pass --override True to make them anew"
            )
        x, y, width, height = result["bbox"]
        annotations.append(
            {
                "id": number,
                "image_id": result["image_id"],
                "category_id": class_of[str(result["category_id"])],
                "bbox": [x, y, width, height],
                "score": result["score"],
                "area": width * height,
                "iscrowd": 0,
            }
        )

    with contextlib.redirect_stdout(io.StringIO()):
        # Built by hand because COCO.loadRes fails on an empty list, and nothing detected is a result: AP 0.
        found = COCO()
        found.dataset = {**dataset.coco.dataset, "annotations": annotations}
        found.createIndex()
        evaluation = COCOeval(dataset.coco, found, "bbox")
        evaluation.params.imgIds = dataset.image_ids
        evaluation.evaluate()
        evaluation.accumulate()
    with contextlib.redirect_stdout(io.StringIO()) as summary:
        evaluation.summarize()
    return Evaluation(np.asarray(evaluation.stats), summary.getvalue().rstrip())
