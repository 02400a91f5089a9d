"""COCO results files, in and out."""

import json
from pathlib import Path

from efficientdet.boxes import xyxy_to_xywh
from efficientdet.data.dataset import CocoDataset
from efficientdet.structures import Detections
from utils.errors import InputError
from utils.files import atomic_write


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
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(results))


def read_results(path: Path, dataset: CocoDataset) -> list[dict]:
    """The entries of a COCO results file, any detector's, for the images and categories of `dataset`.

    Ids may be numbers or texts of digits, in both files; they come back as in `dataset`. Further fields are dropped.
    InputError names the entry, counted from 0, that is of no use.
    """
    try:
        results = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"cannot read the results {path}: {error}; detect anew, or pass another file") from error
    if not isinstance(results, list):
        raise InputError(
            f"{path} holds no results: they are a list of entries with image_id, category_id, bbox and score"
        )
    image_of = {str(image_id): image_id for image_id in dataset.image_ids}
    category_of = {str(category_id): category_id for category_id in dataset.category_ids.values()}
    for position, result in enumerate(results):
        wrong = _flaw(result)
        if wrong:
            raise InputError(f"{path}: entry {position} {wrong}: {str(result)[:100]}")
    for key, known, what in (("image_id", image_of, "images"), ("category_id", category_of, "categories")):
        strange = [position for position, result in enumerate(results) if str(result[key]) not in known]
        if strange:
            raise InputError(
                f"{path}: {len(strange)} of {len(results)} entries are for {what} that {dataset.annotation_file} or "
                f"--max_images leaves out, the first is entry {strange[0]} with {key} {results[strange[0]][key]!r}: "
                "score them on the set that they were made for"
            )
    return [
        {
            "image_id": image_of[str(result["image_id"])],
            "category_id": category_of[str(result["category_id"])],
            "score": result["score"],
            "bbox": result["bbox"],
        }
        for result in results
    ]


def _flaw(result: object) -> str | None:
    """What keeps `result` from being an entry of a COCO results file."""
    if not isinstance(result, dict):
        return "is no object with image_id, category_id, bbox and score"
    for key in ("image_id", "category_id"):
        if not isinstance(result.get(key), int | str):
            return f"has no {key} that is a whole number or text"
    if not _are_finite([result.get("score")]):
        return "has no score that is a finite number"
    box = result.get("bbox")
    if not isinstance(box, list) or len(box) != 4 or not _are_finite(box):
        return "has no bbox of four finite numbers, [x, y, width, height]"
    return None


def _are_finite(values: list) -> bool:
    return all(isinstance(value, int | float) and abs(value) < 1e300 for value in values)
