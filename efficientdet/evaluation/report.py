"""A folder that explains an evaluation: a page to read, its images as files, and all numbers as JSON."""

import json
import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from efficientdet.data.dataset import CocoDataset
from efficientdet.evaluation.analysis import Analysis, ImageResult
from efficientdet.evaluation.coco import MATCH_IOU, Details, Evaluation
from efficientdet.evaluation.error_causes import RECALLS
from efficientdet.evaluation.figures import beside_truth, charts
from efficientdet.evaluation.page import report_page
from utils.charts import write_chart
from utils.files import atomic_folder
from utils.images import write_image

WORST_IMAGES = 12


def report_folder(parent: Path, set_name: str, source: Path | str) -> Path:
    """A folder that does not exist yet, named by the set, the weights or the file with the results, and the time."""
    name = f"eval-{set_name}-{Path(source).stem}-{time.strftime('%Y%m%d-%H%M%S')}"
    folder, number = parent / name, 1
    while folder.exists():
        number += 1
        folder = parent / f"{name}-{number}"
    return folder


def write_report(
    folder: Path,
    dataset: CocoDataset,
    evaluation: Evaluation,
    details: Details,
    analysis: Analysis,
    facts: Mapping[str, str],
    seconds: Mapping[str, float] | None = None,
) -> None:
    """Write `report.html`, `report.json`, the charts as PNG and the worst images as JPEG. The folder appears complete.

    Args:
        facts: what was evaluated and how, to be shown at the top: weights, input size.
        seconds: what each part of the evaluation took: loading, network and so on.
    """
    seconds = seconds or {}
    facts = {
        "set": f"{dataset.set_name} of {dataset.project.name}",
        "images": f"{len(dataset):,}",
        "detections": f"{len(details.found.scores):,} that count (at most 100 of a class in an image)",
        "evaluated": time.strftime("%Y-%m-%d %H:%M:%S"),
        **facts,
    }
    with atomic_folder(folder) as temporary:
        for name, figure in charts(analysis).items():
            write_chart(temporary / f"{name}.png", figure)
        pictures = {path.stem: path.read_bytes() for path in temporary.glob("*.png")}
        worst = []
        bad = [image for image in analysis.images if image.errors][:WORST_IMAGES]
        for rank, image in enumerate(tqdm(bad, desc="worst images", unit="image", dynamic_ncols=True), 1):
            file_name = _file_name(dataset, image)
            path = temporary / "worst" / f"{rank:02d}_{Path(file_name).stem}.jpg"
            write_image(path, beside_truth(dataset, details, analysis, image.image_id))
            errors = ", ".join(f"{count} {name}" for name, count in image.errors.items())
            worst.append((f"{rank}. {file_name}: {errors}; {image.right} right", path.read_bytes()))
        numbers = _numbers(dataset, evaluation, analysis, facts, seconds)
        (temporary / "report.json").write_text(json.dumps(numbers, indent=1, allow_nan=False), encoding="utf-8")
        title = f"Evaluation of {dataset.project.name}, {dataset.set_name}"
        page = report_page(title, facts, evaluation, analysis, pictures, worst, seconds, len(dataset))
        (temporary / "report.html").write_text(page, encoding="utf-8", errors="replace")  # names may be of any bytes


def _numbers(
    dataset: CocoDataset,
    evaluation: Evaluation,
    analysis: Analysis,
    facts: Mapping[str, str],
    seconds: Mapping[str, float],
) -> dict:
    """All that the report tells, as plain values for JSON; None where undefined."""
    names = [row.name for row in analysis.classes]
    every = analysis.all_classes
    numbers = {
        "facts": dict(facts),
        "numbers": evaluation.by_name(),
        "seconds": dict(seconds),
        "score_threshold": analysis.score_threshold,
        "classes": [row._asdict() for row in analysis.classes],
        "sizes": [row._asdict() for row in analysis.sizes],
        "causes": [row._asdict() for row in analysis.causes],
        "precision_over_recall": {
            "recall": RECALLS,
            **analysis.precision,
            "classes_at_IoU_0.5": dict(zip(names, analysis.class_precision)),
        },
        "over_score_threshold": {
            "threshold": every.thresholds,
            "F1": every.f1,
            "precision": every.precision,
            "recall": every.recall,
            "F1_of_classes": {name: curve.f1 for name, curve in zip(names, analysis.class_curves)},
        },
        "confusion": {
            "iou_threshold": MATCH_IOU,
            "rows_are_truth_columns_are_detections": [*names, "background"],
            "counts": analysis.confusion,
        },
        "images": [{**image._asdict(), "file_name": _file_name(dataset, image)} for image in analysis.images],
    }
    return _plain(numbers)


def _file_name(dataset: CocoDataset, image: ImageResult) -> str:
    return dataset.annotated.images[dataset.index_of[image.image_id]]["file_name"]


def _plain(value: Any) -> Any:
    """Arrays as lists, and None for NaN."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, np.ndarray):
        value = value.tolist()
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and math.isnan(value) else value
