"""COCO results files, in and out."""

import json
from pathlib import Path

from efficientdet.boxes import xyxy_to_xywh
from efficientdet.data.annotations import is_box, is_number
from efficientdet.data.dataset import CocoDataset
from efficientdet.structures import Detections
from utils.errors import InputError
from utils.files import atomic_write

_MAX = 1e300  # of a finite number: an integer above would not fit a float


def coco_results(image_id: int | str, detections: Detections, category_ids: dict) -> list[dict]:
    """Return the detections of one image as entries of a COCO results file.

    Classes that `category_ids` (of `CocoDataset`) lacks, such as COCO's unused slots, are left out.
    """
    boxes = xyxy_to_xywh(detections.boxes).tolist()
    return [
        {"image_id": image_id, "category_id": category_ids[class_id], "score": score, "bbox": box}
        for box, score, class_id in zip(boxes, detections.scores.tolist(), detections.class_ids.tolist())
        if class_id in category_ids
    ]


def write_results(path: Path, results: list[dict]) -> None:
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(results))


def read_results(path: Path, dataset: CocoDataset) -> list[dict]:
    """Read the entries of any detector's COCO results file for the images and categories of `dataset`.

    Ids may be numbers or numerals as text in either file; they are returned as in `dataset`. Other fields are dropped.
    Raises InputError with the position of the first unusable entry, counted from 0.
    """
    try:
        results = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"cannot read the results {path}: {error}; detect again, or pass another file") from error
    if not isinstance(results, list):
        raise InputError(f"{path} is not a results file: expected a list of {{image_id, category_id, bbox, score}}")
    for position, result in enumerate(results):
        if flaw := _flaw(result):
            raise InputError(f"{path}: entry {position} {flaw}: {str(result)[:100]}")
    image_of = {str(image_id): image_id for image_id in dataset.image_ids}
    category_of = {str(category_id): category_id for category_id in dataset.category_ids.values()}
    for key, known, noun in (("image_id", image_of, "images"), ("category_id", category_of, "categories")):
        unknown = [position for position, result in enumerate(results) if str(result[key]) not in known]
        if unknown:
            raise InputError(
                f"{path}: {len(unknown)} of {len(results)} entries are for {noun} that {dataset.annotation_file} or "
                f"--max_images leaves out, the first is entry {unknown[0]} with {key} {results[unknown[0]][key]!r}: "
                "evaluate them on the set they were made for"
            )
    entries = []
    for result in results:
        ids = {"image_id": image_of[str(result["image_id"])], "category_id": category_of[str(result["category_id"])]}
        entries.append({**ids, "score": result["score"], "bbox": result["bbox"]})
    return entries


def _flaw(result: object) -> str | None:
    """Return what is wrong with an entry of a COCO results file, or None."""
    if not isinstance(result, dict):
        return "is not an object with image_id, category_id, bbox and score"
    for key in ("image_id", "category_id"):
        if not isinstance(result.get(key), int | str):
            return f"has no {key} that is an integer or text"
    if not is_number(result.get("score"), _MAX):
        return "has no score that is a finite number"
    if not is_box(result.get("bbox"), _MAX):
        return "has no bbox of four finite numbers, [x, y, width, height]"
    return None
