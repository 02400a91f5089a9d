"""Write the report of an evaluation: a page to read, its images as files, and all numbers as JSON."""

import itertools
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
from efficientdet.evaluation.figures import charts, draw_errors
from efficientdet.evaluation.markup import document, paragraph, photograph, table
from efficientdet.evaluation.page import number_sections
from utils.charts import write_chart
from utils.files import atomic_folder
from utils.images import write_image

MAX_WORST_IMAGES = 12
_ON_WORST_IMAGES = "Most errors at the best score threshold: detections on the left, ground truth on the right."


def report_folder(parent: Path, set_name: str, source: Path | str) -> Path:
    """Return a new folder, named after the set, the weights or results file, and the time. It is not created."""
    name = f"eval-{set_name}-{Path(source).stem}-{time.strftime('%Y%m%d-%H%M%S')}"
    suffixes = itertools.chain([""], (f"-{number}" for number in itertools.count(2)))
    return next(folder for suffix in suffixes if not (folder := parent / f"{name}{suffix}").exists())


def write_report(
    folder: Path,
    dataset: CocoDataset,
    evaluation: Evaluation,
    details: Details,
    analysis: Analysis,
    facts: Mapping[str, str],  # what was evaluated and how, shown first: weights, input size
    seconds: Mapping[str, float] | None = None,  # duration of each part of the evaluation: loading, network, ...
) -> None:
    """Write `report.html`, `report.json`, the charts as PNG and the worst images as JPEG, all or nothing."""
    seconds = dict(seconds or {})
    facts = {
        "set": f"{dataset.set_name} of {dataset.project.name}",
        "images": f"{len(dataset):,}",
        "detections": f"{len(details.detections.scores):,} (at most 100 per class and image)",
        "evaluated": time.strftime("%Y-%m-%d %H:%M:%S"),
        **facts,
    }
    with atomic_folder(folder) as temporary:
        for name, figure in charts(analysis).items():
            write_chart(temporary / f"{name}.png", figure)
        chart_files = {path.stem: path.read_bytes() for path in temporary.glob("*.png")}
        sections = number_sections(facts, evaluation, analysis, chart_files)
        sections["Worst images"] = paragraph(_ON_WORST_IMAGES)
        bad = [image for image in analysis.images if image.errors][:MAX_WORST_IMAGES]
        for rank, image in enumerate(tqdm(bad, desc="worst images", unit="image", dynamic_ncols=True), 1):
            file_name = _file_name(dataset, image)
            path = temporary / "worst" / f"{rank:02d}_{Path(file_name).stem}.jpg"
            write_image(path, draw_errors(dataset, details, analysis, image.image_id))
            errors = ", ".join(f"{count} {name}" for name, count in image.errors.items())
            caption = f"{rank}. {file_name}: {errors}; {image.right} right"
            sections["Worst images"] += photograph(path.read_bytes(), "detections and ground truth", caption)
        if seconds:
            times = [(part, value, 1000 * value / len(dataset)) for part, value in seconds.items()]
            sections["Time"] = table(("part", "seconds", "milliseconds per image"), times)
        numbers = {"facts": facts, "numbers": evaluation.by_name(), "seconds": seconds, **_numbers(dataset, analysis)}
        text = json.dumps(_to_json(numbers), indent=1, allow_nan=False)
        (temporary / "report.json").write_text(text, encoding="utf-8")
        page = document(f"Evaluation of {dataset.project.name}, {dataset.set_name}", sections)
        (temporary / "report.html").write_text(page, encoding="utf-8", errors="replace")  # file names may be any bytes


def _numbers(dataset: CocoDataset, analysis: Analysis) -> dict:
    """Return everything in `analysis` under the keys of report.json."""
    names = [row.name for row in analysis.classes]
    curve = analysis.all_classes
    curves = {"F1": curve.f1, "precision": curve.precision, "recall": curve.recall}
    class_f1 = {name: curve.f1 for name, curve in zip(names, analysis.class_curves)}
    class_precision = dict(zip(names, analysis.class_precision))
    return {
        "score_threshold": analysis.score_threshold,
        "classes": [row._asdict() for row in analysis.classes],
        "sizes": [row._asdict() for row in analysis.sizes],
        "causes": [row._asdict() for row in analysis.causes],
        "precision_over_recall": {"recall": RECALLS, **analysis.precision, "classes_at_IoU_0.5": class_precision},
        "over_score_threshold": {"threshold": curve.thresholds, **curves, "F1_of_classes": class_f1},
        "confusion": {
            "iou_threshold": MATCH_IOU,
            "rows_are_truth_columns_are_detections": [*names, "background"],
            "counts": analysis.confusion,
        },
        "images": [{**image._asdict(), "file_name": _file_name(dataset, image)} for image in analysis.images],
    }


def _file_name(dataset: CocoDataset, image: ImageResult) -> str:
    return dataset.annotated.images[dataset.index_of[image.image_id]]["file_name"]


def _to_json(value: Any) -> Any:
    """Turn arrays into lists and NaN into None."""
    if isinstance(value, dict):
        return {key: _to_json(item) for key, item in value.items()}
    if isinstance(value, np.ndarray | list):
        return [_to_json(item) for item in (value.tolist() if isinstance(value, np.ndarray) else value)]
    return None if isinstance(value, float) and math.isnan(value) else value
