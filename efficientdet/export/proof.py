"""What shows that an exported file computes what PyTorch computes."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from efficientdet.config import DEMO_SCORE_THRESHOLD, EVALUATION_IOU_THRESHOLD, EVALUATION_SCORE_THRESHOLD
from efficientdet.export.formats import make_deployable
from efficientdet.model.network import EfficientDet
from efficientdet.model.postprocess import postprocess
from efficientdet.runtime.exported import ExportedModel
from efficientdet.runtime.metadata import RAW_OUTPUTS, Metadata, Suppression
from efficientdet.structures import Detections
from utils.device import keep_freed_memory
from utils.measuring import Measured, Workload, measure

_CPU = torch.device("cpu")
_MOST_DETECTIONS = 100  # of an image, as COCO counts them
# What two boxes of one object may differ by: a share of its longer side, but some pixels in any case.
_SAME_SHARE, _SAME_PIXELS = 0.05, 2.0
_CLEAR = DEMO_SCORE_THRESHOLD


@dataclass(frozen=True)
class Tolerance:
    """How far a file may be from PyTorch in float32."""

    outputs: float  # the largest difference of a raw output, in its standard deviations
    scores: float  # of detections that match
    boxes: float  # of detections that match, in sides of the input
    unmatched: float  # share of all detections
    clear_unmatched: float  # the same of the clear ones: where scores are nearly equal, another one may survive


TOLERANCES = {
    "float32": Tolerance(outputs=1e-3, scores=1e-3, boxes=1e-4, unmatched=0.2, clear_unmatched=0.01),
    "float16": Tolerance(outputs=0.1, scores=0.02, boxes=5e-3, unmatched=0.4, clear_unmatched=0.05),
}
_ANCHORS_TOLERANCE = 1e-5  # in their standard deviation, in any precision: they are no result of the network's


class Difference(NamedTuple):
    """A row of the proof."""

    name: str
    largest: float
    allowed: float

    @property
    def is_proven(self) -> bool:
        return self.largest <= self.allowed  # not for NaN


class Matches(NamedTuple):
    """Detections of the file beside PyTorch's."""

    found: int = 0  # of both
    unmatched: int = 0
    clear: int = 0  # of both, with a score above _CLEAR: fainter ones come and go at the threshold
    clear_unmatched: int = 0
    scores: float = 0.0  # the largest difference of two that match
    boxes: float = 0.0  # the same of a coordinate, pixels of the input

    def plus(self, other: "Matches") -> "Matches":
        found, unmatched, clear, clear_unmatched = (a + b for a, b in zip(self[:4], other[:4]))
        largest = max(self.scores, other.scores), max(self.boxes, other.boxes)
        return Matches(found, unmatched, clear, clear_unmatched, *largest)


@dataclass(frozen=True)
class Proof:
    """The differences over all images."""

    differences: list[Difference]  # those of the raw outputs first
    matches: Matches

    @property
    def first_failure(self) -> Difference | None:
        return next((difference for difference in self.differences if not difference.is_proven), None)


@torch.inference_mode()
def prove(exported: ExportedModel, network: EfficientDet, inputs: Sequence[Tensor]) -> Proof:
    """Run the file and, beside it, `network` in float32 by PyTorch.

    Args:
        inputs: images (1, 3, H, W), as the file takes them.
    """
    metadata = exported.metadata
    tolerance = TOLERANCES[metadata.precision]
    reference = make_deployable(network, replace(metadata, precision="float32"))
    outputs: dict[str, Difference] = {}
    matches = Matches()
    for images in inputs:
        pixels = images.permute(0, 2, 3, 1) if reference.takes_pixels else images
        wanted, got = reference(pixels), exported(images)
        if metadata.suppression is None:
            for name, expected, value in zip(RAW_OUTPUTS, wanted, got):
                largest = (value - expected).abs().max() / expected.std()
                allowed = _ANCHORS_TOLERANCE if name == "anchors" else tolerance.outputs
                outputs[name] = _worse(outputs.get(name), Difference(name, largest.item(), allowed))
        height, width = images.shape[-2:]
        pair = (_detections(values, metadata.suppression, height, width) for values in (wanted, got))
        matches = matches.plus(match(*pair))
    clear_share = _share(matches.clear_unmatched, matches.clear)
    side = max(metadata.image_size)
    return Proof(
        [
            *outputs.values(),
            Difference("share of detections unmatched", _share(matches.unmatched, matches.found), tolerance.unmatched),
            Difference("share of clear ones unmatched", clear_share, tolerance.clear_unmatched),
            Difference("scores of detections", matches.scores, tolerance.scores),
            Difference("boxes of detections (pixels)", matches.boxes, tolerance.boxes * side),
        ],
        matches,
    )


def _share(part: int, whole: int) -> float:
    return part / max(1, whole)


def _worse(a: Difference | None, b: Difference) -> Difference:
    return b if a is None or not b.largest <= a.largest else a  # NaN is the worst


def _detections(outputs: Sequence[Tensor], suppression: Suppression | None, height: int, width: int) -> Detections:
    """Of one image."""
    if suppression is not None:
        boxes, scores, classes, count = outputs
        found = int(count)
        return Detections(boxes[0, :found], scores[0, :found], classes[0, :found])
    raw = outputs[0], outputs[1], outputs[2]
    (all_found,) = postprocess(raw, height, width, EVALUATION_SCORE_THRESHOLD, EVALUATION_IOU_THRESHOLD)
    return all_found[:_MOST_DETECTIONS]


def match(expected: Detections, got: Detections) -> Matches:
    """Each of `expected`, the best first, takes that of `got` of its class that lies nearest, if it is near enough."""
    # By corners, not by IoU: of a box beyond the image's edge that is 0, with itself even.
    distances = (expected.boxes[:, None] - got.boxes).abs().amax(dim=-1)
    distances[expected.class_ids[:, None] != got.class_ids] = math.inf
    sides = (expected.boxes[:, 2:] - expected.boxes[:, :2]).abs().amax(dim=-1)
    allowed = (_SAME_SHARE * sides).clamp(min=_SAME_PIXELS)
    is_clear, is_clear_too = expected.scores > _CLEAR, got.scores > _CLEAR
    clear = clear_unmatched = int(is_clear.sum() + is_clear_too.sum())
    found = unmatched = len(expected) + len(got)
    scores = boxes = 0.0
    for row in range(len(expected) if len(got) else 0):
        distance, column = distances[row].min(dim=0)
        if not distance <= allowed[row]:
            continue
        distances[:, column] = math.inf
        unmatched -= 2
        clear_unmatched -= int(is_clear[row]) + int(is_clear_too[column])
        scores = max(scores, (expected.scores[row] - got.scores[column]).abs().item())
        boxes = max(boxes, distance.item())
    return Matches(found, unmatched, clear, clear_unmatched, scores, boxes)


def time_in_turns(paths: Sequence[Path], network: EfficientDet, images: Tensor, runs: int) -> list[tuple[str, float]]:
    """PyTorch and the files: their names, and median seconds for an image (1, 3, H, W), in processes of their own."""
    metadata = replace(ExportedModel(paths[0], _CPU).metadata, precision="float32")
    contenders = {"PyTorch": partial(_run_pytorch, network, metadata, images)}
    for path in paths:
        contenders[f"{path.suffix[1:]} {ExportedModel(path, _CPU).metadata.precision}"] = partial(
            _run_file, path, images
        )
    measured: dict[str, Measured] = {}
    measure(contenders, "speed", measured, runs)
    return [(name, statistics.median(run.seconds for run in measured[name].passes)) for name in contenders]


def _run_file(path: Path, images: Tensor) -> Workload:
    exported = ExportedModel(path, _CPU)

    def run_once() -> None:
        exported(images)

    return Workload(run_once, 1, _CPU)


def _run_pytorch(network: EfficientDet, metadata: Metadata, images: Tensor) -> Workload:
    keep_freed_memory()
    deployable = make_deployable(network, metadata)
    pixels = images.permute(0, 2, 3, 1) if deployable.takes_pixels else images

    @torch.inference_mode()
    def run_once() -> None:
        deployable(pixels)

    return Workload(run_once, 1, _CPU)
