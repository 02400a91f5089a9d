"""Prove that an exported file computes what PyTorch computes, and compare their speed."""

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from efficientdet.config import DEMO_SCORE_THRESHOLD, EVALUATION_IOU_THRESHOLD, EVALUATION_SCORE_THRESHOLD
from efficientdet.export.formats import make_graph
from efficientdet.model.network import EfficientDet
from efficientdet.model.postprocess import postprocess
from efficientdet.runtime.exported import ExportedModel
from efficientdet.runtime.metadata import RAW_OUTPUTS, Suppression
from efficientdet.structures import Detections, Outputs
from utils.device import keep_freed_memory
from utils.measuring import Measured, Workload, measure

_CPU = torch.device("cpu")
_MAX_DETECTIONS = 100  # per image, as COCO counts
# Boxes match if no coordinate differs by more than this: a fraction of the longer side, but at least some pixels.
_MATCH_FRACTION, _MIN_MATCH_PIXELS = 0.05, 2.0
_CLEAR_SCORE = DEMO_SCORE_THRESHOLD

# Row of the proof -> how far a file may deviate from PyTorch in float32, by the file's precision.
TOLERANCES = {
    # The largest difference, in standard deviations of the output. The network does not compute the anchors.
    "class_logits": {"float32": 1e-3, "float16": 0.1},
    "box_deltas": {"float32": 1e-3, "float16": 0.1},
    "anchors": {"float32": 1e-5, "float16": 1e-5},
    # Fractions. Not zero: NMS may keep another box if scores are nearly equal.
    "share of detections unmatched": {"float32": 0.2, "float16": 0.4},
    "share of clear ones unmatched": {"float32": 0.01, "float16": 0.05},
    # The largest difference of matching detections; of boxes as a fraction of the input's longer side.
    "scores of detections": {"float32": 1e-3, "float16": 0.02},
    "boxes of detections (pixels)": {"float32": 1e-4, "float16": 5e-3},
}


class Difference(NamedTuple):
    name: str
    largest: float
    allowed: float


@dataclass
class Matches:
    """The file's detections compared with PyTorch's, summed over images. Counts include both sides."""

    found: int = 0
    matched: int = 0
    clear: int = 0  # scored above _CLEAR_SCORE; fainter detections come and go at the threshold
    clear_matched: int = 0
    scores: float = 0.0  # largest difference of two matching scores
    boxes: float = 0.0  # largest difference of two matching coordinates, pixels of the input

    def add(self, expected: Detections, got: Detections) -> None:
        """Match the detections of one image: each of `expected`, best first, with the nearest of its class in `got`."""
        # By corners, not by IoU, which is 0 even of two identical boxes if they lie beyond the image's edge.
        distances = (expected.boxes[:, None] - got.boxes).abs().amax(dim=-1)
        distances[expected.class_ids[:, None] != got.class_ids] = math.inf
        sides = (expected.boxes[:, 2:] - expected.boxes[:, :2]).abs().amax(dim=-1)
        allowed = (_MATCH_FRACTION * sides).clamp(min=_MIN_MATCH_PIXELS)
        expected_clear, got_clear = expected.scores > _CLEAR_SCORE, got.scores > _CLEAR_SCORE
        self.found += len(expected) + len(got)
        self.clear += int(expected_clear.sum() + got_clear.sum())
        for row in range(len(expected) if len(got) else 0):
            distance, column = distances[row].min(dim=0)
            if not distance <= allowed[row]:
                continue
            distances[:, column] = math.inf
            self.matched += 2
            self.clear_matched += int(expected_clear[row]) + int(got_clear[column])
            self.scores = max(self.scores, (expected.scores[row] - got.scores[column]).abs().item())
            self.boxes = max(self.boxes, distance.item())


@dataclass(frozen=True)
class Proof:
    """The differences over all images, those of the raw outputs first."""

    differences: list[Difference]
    matches: Matches

    @property
    def first_failure(self) -> Difference | None:
        return next((row for row in self.differences if not row.largest <= row.allowed), None)  # NaN fails, too


@torch.inference_mode()
def prove(exported: ExportedModel, network: EfficientDet, inputs: Sequence[Tensor]) -> Proof:
    """Compare the exported file with `network` in PyTorch and float32, on inputs (1, 3, H, W) for the file."""
    metadata = exported.metadata
    reference = make_graph(network, replace(metadata, precision="float32"))
    raw: dict[str, list[Tensor]] = {name: [] for name in RAW_OUTPUTS} if metadata.suppression is None else {}
    matches = Matches()
    for images in inputs:
        expected, got = reference(exported.graph_input(images)), exported(images)
        for name, a, b in zip(raw, expected, got):
            raw[name].append((b - a).abs().max() / a.std())
        height, width = images.shape[-2:]
        matches.add(*(_detections(outputs, metadata.suppression, height, width) for outputs in (expected, got)))

    largest = {name: torch.stack(values).max().item() for name, values in raw.items()}
    largest |= {
        "share of detections unmatched": (matches.found - matches.matched) / max(1, matches.found),
        "share of clear ones unmatched": (matches.clear - matches.clear_matched) / max(1, matches.clear),
        "scores of detections": matches.scores,
        "boxes of detections (pixels)": matches.boxes,
    }
    allowed = {name: by_precision[metadata.precision] for name, by_precision in TOLERANCES.items()}
    allowed["boxes of detections (pixels)"] *= max(metadata.image_size)
    return Proof([Difference(name, value, allowed[name]) for name, value in largest.items()], matches)


def _detections(outputs: Sequence[Tensor], suppression: Suppression | None, height: int, width: int) -> Detections:
    """Return the detections in a graph's outputs for one image."""
    if suppression is not None:
        *fields, count = outputs
        return Detections(*(values[0, : int(count)] for values in fields))
    limits = EVALUATION_SCORE_THRESHOLD, EVALUATION_IOU_THRESHOLD
    (detections,) = postprocess(Outputs(*outputs), height, width, *limits)
    return detections[:_MAX_DETECTIONS]


def compare_speed(paths: Sequence[Path], network: EfficientDet, images: Tensor, runs: int) -> dict[str, float]:
    """Return name -> median seconds of PyTorch and of exported files, in separate processes, on one (1, 3, H, W)."""
    exported = {path: ExportedModel(path, _CPU) for path in paths}
    metadata = replace(exported[paths[0]].metadata, precision="float32")
    pixels = exported[paths[0]].graph_input(images)
    contenders = {"PyTorch": partial(_workload, partial(make_graph, network, metadata), pixels)}
    for path, model in exported.items():
        name = f"{path.suffix[1:]} {model.metadata.precision}"
        contenders[name] = partial(_workload, partial(ExportedModel, path, _CPU), images)
    measured: dict[str, Measured] = {}
    measure(contenders, "speed", measured, runs)
    return {name: statistics.median(run.seconds for run in measured[name].passes) for name in contenders}


def _workload(make_model: Callable[[], Callable[[Tensor], object]], images: Tensor) -> Workload:
    keep_freed_memory()
    model = make_model()
    return Workload(torch.inference_mode()(lambda: model(images)), 1, _CPU)
