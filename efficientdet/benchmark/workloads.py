"""What the benchmark measures: for each contender, what it does in a pass."""

import contextlib
import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from efficientdet.benchmark.baselines import (
    baseline_detections,
    baseline_evaluation,
    baseline_loss,
    baseline_postprocess,
    baseline_prepare,
    baseline_step,
)
from efficientdet.benchmark.inputs import NUM_CLASSES, random_image, random_outputs, random_targets
from efficientdet.benchmark.peers import TORCHVISION_MODELS, effdet_detections, effdet_network, torchvision_detector
from efficientdet.checkpoints.find import is_exported
from efficientdet.checkpoints.loading import load_weights
from efficientdet.config import EVALUATION_IOU_THRESHOLD, EVALUATION_SCORE_THRESHOLD
from efficientdet.data.dataset import CocoDataset
from efficientdet.data.loader import Batch, BatchLoader, EpochSampler
from efficientdet.data.transforms import Letterbox
from efficientdet.inference.dataset import detect_dataset
from efficientdet.inference.detector import DetectionOptions, Detector
from efficientdet.model.loss import DetectionLoss
from efficientdet.model.network import EfficientDet
from efficientdet.model.postprocess import find_candidates, postprocess
from efficientdet.project import Project
from efficientdet.runtime.exported import ExportedModel
from efficientdet.runtime.modes import MODES, compile_network, optimize
from efficientdet.structures import Detections
from efficientdet.training.optimization import make_optimizer
from efficientdet.training.recipe import RECIPES
from efficientdet.training.step import TrainingStep
from utils.device import keep_freed_memory
from utils.measuring import Workload, synchronize
from utils.stopwatch import Stopwatch

PRECISIONS = {"float32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
PREPARED = 40  # images


@dataclass(frozen=True)
class Contender:
    """A row of a table: who does what, at which size."""

    what: str  # a key of KINDS
    name: str  # a mode of `fast_path`; "plain" or "ours"; a peer; the path of an exported file
    precision: str  # a key of PRECISIONS, or an exported file's own
    compound_coef: int
    side: int  # of the input, pixels
    batch_size: int

    def __str__(self) -> str:
        return f"{self.name} {self.precision}"


class Material(NamedTuple):
    """What all contenders of a group share."""

    device: torch.device
    project: Project
    data_path: Path
    weights: Path | None  # of the network that detects
    num_workers: int


class Kind(NamedTuple):
    """A sort of work, and who can do it."""

    make: Callable[[Contender, Material], Workload]
    batch_size: int  # by default
    names: dict[str, str]  # mode of `fast_path` -> the contender that stands for it
    in_precisions: tuple[str, ...] = ()  # the contenders that are there in each precision; the others in float32
    peers: tuple[str, ...] = ()
    takes_exported: bool = False  # files
    needs_data: bool = False  # of a project
    forward_passes: int = 0  # that take as many floating-point operations; 0: they are not counted


def make_workload(contender: Contender, material: Material) -> Workload:
    """To be called in the contender's own process. InputError for data that cannot be used."""
    if material.device.type == "cpu" and contender.name in (*MODES, "ours") and contender.name != "plain":
        keep_freed_memory()
    torch.manual_seed(0)
    return KINDS[contender.what].make(contender, material)


def forward(contender: Contender, material: Material) -> Workload:
    """The network alone: images that are on the device -> outputs that stay there."""
    shape = (contender.batch_size, 3, contender.side, contender.side)
    images = torch.randn(shape, device=material.device)
    network: Callable[[Tensor], object]
    if contender.name == "effdet":
        network = effdet_network(contender.compound_coef, contender.side, material.device)
    elif is_exported(contender.name):
        network = exported = ExportedModel(contender.name, material.device)
        images = torch.randint(256, shape, dtype=torch.uint8).to(material.device, exported.input_dtype)
    else:
        precision = PRECISIONS[contender.precision]
        network = optimize(trained(contender, material), material.device, precision, contender.name).network
        if contender.name == "compiled":
            network = compile_network(network)
    if contender.name in MODES and contender.name != "plain":
        images = images.contiguous(memory_format=torch.channels_last)

    @torch.inference_mode()
    def run_once() -> None:
        network(images)

    return Workload(run_once, contender.batch_size, material.device)


def end_to_end(contender: Contender, material: Material) -> Workload:
    """Decoded images -> detections on the CPU, in the images' pixels."""
    pictures = [random_image()] * contender.batch_size
    stopwatch = Stopwatch()
    if contender.name == "effdet":
        model = effdet_network(contender.compound_coef, contender.side, material.device, "predict")
        run_once: Callable[[], object] = partial(effdet_detections, model, pictures, contender.side, material.project)
    elif contender.name in TORCHVISION_MODELS:
        run_once = partial(torchvision_detector(contender.name, material.device), pictures)
    else:
        run_once = partial(detections_of_ours(contender, material, stopwatch), pictures)

    def timed() -> float | None:
        run_once()
        return stopwatch.seconds.pop("post-processing", None)

    return Workload(timed, contender.batch_size, material.device)


def detections_of_ours(
    contender: Contender, material: Material, stopwatch: Stopwatch
) -> Callable[[Sequence[np.ndarray]], list[Detections]]:
    """Images -> detections by a mode of `fast_path`; the time of post-processing goes to `stopwatch`."""
    canvas = (contender.side, contender.side)
    if contender.name == "plain":
        plain = plain_network(contender, material)
        return lambda pictures: baseline_detections(plain, pictures, canvas, material.project, stopwatch)
    detector = make_detector(contender, material, canvas)
    options = DetectionOptions(EVALUATION_SCORE_THRESHOLD, EVALUATION_IOU_THRESHOLD)
    # The choice of candidates is one graph with the network then, or may be.
    finds = contender.name == "compiled" or is_exported(contender.name)

    @torch.inference_mode()
    def detect(pictures: Sequence[np.ndarray]) -> list[Detections]:
        ((images, letterboxes, _),) = detector.prepare(pictures, options, len(pictures)).batches
        network: Any = (
            partial(detector.find, letterboxes=letterboxes, options=options) if finds else detector.finder.network
        )
        found = network(images)
        synchronize(material.device)
        with stopwatch.measuring("post-processing"):
            candidates = found if finds else [find_candidates(found, *canvas, options.score_threshold)]
            return detector.choose(candidates, letterboxes, options)

    return detect


def train(contender: Contender, material: Material) -> Workload:
    """One update of a network with fresh weights by a random batch."""
    device = material.device
    network = EfficientDet(contender.compound_coef, NUM_CLASSES).train().to(device)
    images = torch.randn(contender.batch_size, 3, contender.side, contender.side, device=device)
    targets = random_targets(contender.batch_size, contender.side, device)
    if contender.name == "plain":
        return Workload(baseline_step(network, images, targets), contender.batch_size, device)
    network.to(memory_format=torch.channels_last)
    batch = Batch(images.contiguous(memory_format=torch.channels_last), targets, letterboxes=[], image_ids=[])
    optimizer = make_optimizer(RECIPES["reference"], network)
    amp = None if contender.precision == "float32" else PRECISIONS[contender.precision]
    run = compile_network(network) if contender.name == "compiled" else network
    step = TrainingStep(run, DetectionLoss(), optimizer, amp)

    def run_once() -> None:
        step([batch])

    return Workload(run_once, contender.batch_size, device)


def loss(contender: Contender, material: Material) -> Workload:
    """The loss of random predictions and its gradient."""
    dtype = PRECISIONS[contender.precision]
    shape = contender.compound_coef, contender.side, contender.batch_size
    outputs = random_outputs(*shape, material.device, dtype, mean=-4.0, std=1.5)
    outputs.class_logits.requires_grad_()
    outputs.box_deltas.requires_grad_()
    targets = random_targets(contender.batch_size, contender.side, material.device)
    compute = baseline_loss if contender.name == "plain" else DetectionLoss()

    def run_once() -> None:
        outputs.class_logits.grad = outputs.box_deltas.grad = None
        compute(outputs, targets).total.backward()

    return Workload(run_once, contender.batch_size, material.device)


def postprocessing(contender: Contender, material: Material) -> Workload:
    """Random outputs of the network -> detections."""
    # Some fifty anchors of an image pass.
    shape = contender.compound_coef, contender.side, contender.batch_size
    outputs = random_outputs(*shape, material.device, torch.float32, mean=-5.5, std=0.6)
    arguments = outputs, contender.side, contender.side, EVALUATION_SCORE_THRESHOLD

    @torch.inference_mode()
    def run_once() -> None:
        if contender.name == "plain":
            baseline_postprocess(*arguments)
        else:
            postprocess(*arguments, EVALUATION_IOU_THRESHOLD)

    return Workload(run_once, contender.batch_size, material.device)


def prepare(contender: Contender, material: Material) -> Workload:
    """Decoded images of the validation set -> the network's input, on the CPU."""
    dataset = validation_set(contender, material)
    project = material.project
    pictures = [dataset.load_image(image_id) for image_id in dataset.image_ids[:PREPARED]]
    letterboxes = [Letterbox.fit(picture.shape[:2], dataset.canvas) for picture in pictures]

    def run_once() -> None:
        for picture, letterbox in zip(pictures, letterboxes):
            if contender.name == "plain":
                baseline_prepare(picture, letterbox, project)
            else:
                letterbox.apply(picture, project.mean, project.std)

    return Workload(run_once, len(pictures), torch.device("cpu"))


def loader(contender: Contender, material: Material) -> Workload:
    """Batches to train on. A pass is four of each loading process, so that it does not end at a lucky one."""
    canvas = (contender.side, contender.side)
    train_set = CocoDataset(folder(material), material.project.train_set, material.project, canvas)
    batches = endless_batches(train_set, contender.batch_size, material.num_workers)
    next(batches)  # from the first arrival on, all are at work
    number = 4 * max(1, material.num_workers)

    def run_once() -> None:
        for _ in range(number):
            next(batches)

    return Workload(run_once, number * min(contender.batch_size, len(train_set)), torch.device("cpu"))


def endless_batches(train_set: CocoDataset, batch_size: int, num_workers: int) -> Iterator[Batch]:
    sampler = EpochSampler(len(train_set), seed=0)
    batches = BatchLoader(train_set, batch_size, num_workers, sampler)
    while True:
        yield from batches
        sampler.epoch += 1


def evaluation(contender: Contender, material: Material) -> Workload:
    """The validation set -> COCO results, which is all of coco_eval.py but the scoring."""
    dataset = validation_set(contender, material)
    if contender.name == "plain":
        run_once = partial(baseline_evaluation, plain_network(contender, material), dataset)
    else:
        detector = make_detector(contender, material, dataset.canvas)
        options = DetectionOptions(EVALUATION_SCORE_THRESHOLD, EVALUATION_IOU_THRESHOLD)
        run_once = partial(detect_dataset, detector, dataset, options, contender.batch_size, material.num_workers)

    def silent() -> None:
        with contextlib.redirect_stderr(io.StringIO()):  # a progress bar
            run_once(Stopwatch())

    return Workload(silent, len(dataset), material.device)


_EVERY_MODE = {mode: mode for mode in MODES}
_PLAIN_AND_OURS = {"plain": "plain", "fused": "ours"}
KINDS = {
    "end_to_end": Kind(
        end_to_end, 1, _EVERY_MODE, MODES, ("effdet", "torchvision"), takes_exported=True, forward_passes=1
    ),
    "forward": Kind(forward, 32, _EVERY_MODE, MODES, ("effdet",), takes_exported=True, forward_passes=1),
    # The gradients of inputs and of weights each take as many operations as the outputs.
    "train": Kind(train, 4, {**_PLAIN_AND_OURS, "compiled": "compiled"}, ("ours", "compiled"), forward_passes=3),
    "loss": Kind(loss, 8, _PLAIN_AND_OURS, ("ours",)),
    "postprocess": Kind(postprocessing, 8, _PLAIN_AND_OURS),
    "prepare": Kind(prepare, 1, _PLAIN_AND_OURS, needs_data=True),
    "loader": Kind(loader, 4, {"fused": "ours"}, needs_data=True),
    "eval": Kind(evaluation, 8, _EVERY_MODE, MODES, takes_exported=True, needs_data=True),
}


def contenders(
    what: str,
    modes: Sequence[str],
    precisions: Sequence[str],
    peers: Sequence[str],
    compound_coef: int,
    side: int,
    batch_size: int,
    exported: Mapping[str, str] | None = None,
) -> list[Contender]:
    """All who do this work: those that stand for the `modes`, in the `precisions` that they know, and the others.

    `exported` are the paths of exported files of this coefficient, and their precisions.
    """
    kind = KINDS[what]
    found = []
    for name in dict.fromkeys(kind.names[mode] for mode in modes if mode in kind.names):
        for precision in precisions if name in kind.in_precisions else ("float32",):
            found.append(Contender(what, name, precision, compound_coef, side, batch_size))
    for peer in peers:
        if peer in kind.peers:
            names = TORCHVISION_MODELS if peer == "torchvision" else (peer,)
            found += [Contender(what, name, "float32", compound_coef, side, batch_size) for name in names]
    if kind.takes_exported:
        for path, precision in (exported or {}).items():
            found.append(Contender(what, path, precision, compound_coef, side, batch_size))
    return found


# What they are made of.


def trained(contender: Contender, material: Material) -> EfficientDet:
    """The network with the material's weights."""
    project = material.project
    network = EfficientDet(contender.compound_coef, project.num_classes, project.anchor_ratios, project.anchor_scales)
    assert material.weights is not None, f"{contender.what} was given no weights"
    load_weights(network.eval(), material.weights)
    return network


def plain_network(contender: Contender, material: Material) -> nn.Module:
    network = trained(contender, material)
    return optimize(network, material.device, PRECISIONS[contender.precision], "plain").network


def make_detector(contender: Contender, material: Material, canvas: tuple[int, int]) -> Detector:
    """Of the material's weights, or of an exported file's."""
    if is_exported(contender.name):
        exported = ExportedModel(contender.name, material.device)
        project = material.project if KINDS[contender.what].needs_data else None  # elsewhere nobody asks for names
        return Detector(exported, exported.project(project), material.device, canvas)
    dtype, network = PRECISIONS[contender.precision], trained(contender, material)
    return Detector(network, material.project, material.device, canvas, dtype, contender.name)


def folder(material: Material) -> Path:
    return material.data_path / material.project.name


def validation_set(contender: Contender, material: Material) -> CocoDataset:
    canvas = (contender.side, contender.side)
    return CocoDataset(folder(material), material.project.val_set, material.project, canvas)


@lru_cache
def forward_flops(compound_coef: int, side: int) -> int:
    """Floating-point operations of the plain network for an image: two for each multiplication with its addition.

    Convolutions alone are counted, as in the paper (which counts the two as one).
    """
    with torch.device("meta"):  # shapes without numbers
        network = EfficientDet(compound_coef, NUM_CLASSES).eval()
        images = torch.empty(1, 3, side, side)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        network(images)
    return counter.get_total_flops()
