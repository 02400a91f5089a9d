"""What the benchmark measures: for each kind of work, what a contender does in one pass, on random inputs."""

from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from itertools import chain, islice, repeat
from pathlib import Path
from typing import NamedTuple, cast

import cv2
import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from efficientdet.benchmark import baselines
from efficientdet.checkpoints.find import is_exported
from efficientdet.config import EVALUATION_IOU_THRESHOLD, EVALUATION_SCORE_THRESHOLD
from efficientdet.data.dataset import CocoDataset
from efficientdet.data.loader import Batch, BatchLoader, EpochSampler
from efficientdet.data.transforms import Letterbox
from efficientdet.inference.dataset import detect_dataset
from efficientdet.inference.detector import DetectionOptions, Detector, load_detector
from efficientdet.model.loss import DetectionLoss
from efficientdet.model.network import CLASS_HEADER, EfficientDet
from efficientdet.model.postprocess import postprocess
from efficientdet.project import Project
from efficientdet.runtime.exported import ExportedModel
from efficientdet.runtime.modes import MODES, NetworkRunner, compile_network
from efficientdet.structures import Outputs, Targets
from efficientdet.training.optimization import make_optimizer
from efficientdet.training.recipe import RECIPES
from efficientdet.training.step import TrainingStep
from utils.device import keep_freed_memory
from utils.measuring import Workload
from utils.stopwatch import Stopwatch

PRECISIONS = {"float32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
OPTIONS = DetectionOptions(EVALUATION_SCORE_THRESHOLD, EVALUATION_IOU_THRESHOLD)
IMAGE_SIZE = (480, 640)  # (height, width) in pixels
CANDIDATES = 1000  # anchors per image above the score threshold of evaluation, with random weights
NUM_CLASSES = 90
OBJECTS = 8  # per image


@dataclass(frozen=True)
class Contender:
    """A row of a table: who does what, and with what."""

    what: str  # a key of KINDS
    name: str  # one of MODES or PEERS, or the path of an exported file
    precision: str  # a key of PRECISIONS, or the exported file's own
    compound_coef: int
    side: int  # of the input, pixels
    batch_size: int
    device: torch.device
    project: Project
    data_path: Path
    weights: Path  # of the network that detects
    num_workers: int

    def __str__(self) -> str:
        return f"{self.name} {self.precision}"

    def dataset(self, set_name: str) -> CocoDataset:
        return CocoDataset(self.data_path / self.project.name, set_name, self.project, (self.side, self.side))

    def detector(self) -> Detector:
        """Load the contender's exported file, or its weights in its mode and precision."""
        if is_exported(self.name):
            project = self.project if self.what == "eval" else None  # None: the file's own
            return load_detector(self.compound_coef, self.name, project, self.device, self.side)
        options = self.side, PRECISIONS[self.precision], self.name
        return load_detector(self.compound_coef, self.weights, self.project, self.device, *options)

    def network(self) -> nn.Module:
        """Load the weights into a network in the contender's mode and precision."""
        network = cast(NetworkRunner, self.detector().runner).network
        return compile_network(cast(EfficientDet, network)) if self.name == "compiled" else network

    @property
    def is_optimized(self) -> bool:
        return self.name in MODES and self.name != "plain"

    def workload(self, run_once: Callable[[], object], stopwatch: Stopwatch | None = None) -> Workload:
        """Return the workload of a batch per pass."""
        return Workload(run_once, self.batch_size, self.device, stopwatch)


def make_workload(contender: Contender) -> Workload:
    """Return the contender's workload, in the contender's own process. Raises InputError for unusable data."""
    if contender.device.type == "cpu" and contender.is_optimized:
        keep_freed_memory()
    torch.manual_seed(0)
    return KINDS[contender.what].make(contender)


def end_to_end(contender: Contender) -> Workload:
    """Detect objects in decoded images (640 x 480), including letterbox and post-processing."""
    images, stopwatch = [random_image()] * contender.batch_size, Stopwatch()
    name, side, project, device = contender.name, contender.side, contender.project, contender.device
    if name == "plain":
        detect = partial(baselines.baseline_detections, contender.network(), images, side, project, stopwatch)
        return contender.workload(detect, stopwatch)
    if name == "effdet":
        network = baselines.effdet_network(contender.compound_coef, side, device, "predict")
        return contender.workload(partial(baselines.effdet_detections, network, images, side, project))
    if name in baselines.PEERS["torchvision"]:
        network = baselines.torchvision_network(name, device)
        return contender.workload(partial(baselines.torchvision_detections, network, images))
    detector = contender.detector()
    prepared = partial(detector.prepare, images, OPTIONS, len(images))
    return contender.workload(lambda: detector.detect(prepared(), OPTIONS, stopwatch), stopwatch)


def forward(contender: Contender) -> Workload:
    """Run the network alone on images that are on the device already."""
    images = prepared_batch(contender)
    if contender.name == "effdet":
        network: Callable = baselines.effdet_network(contender.compound_coef, contender.side, contender.device)
    elif is_exported(contender.name):
        network = exported = ExportedModel(contender.name, contender.device)
        if exported.input_dtype == torch.uint8:
            pixels = torch.from_numpy(cv2.resize(random_image(), (contender.side, contender.side)))
            images = pixels.permute(2, 0, 1).repeat(len(images), 1, 1, 1).to(contender.device)
    else:
        network = contender.network()
    return contender.workload(torch.inference_mode()(partial(network, images)))


def training_step(contender: Contender) -> Workload:
    """Update a network by a random batch: forward, loss, backward, AdamW."""
    network = EfficientDet(contender.compound_coef, NUM_CLASSES).train().to(contender.device)
    batch = Batch(prepared_batch(contender), random_targets(contender), letterboxes=[], image_ids=[])
    if contender.name == "plain":
        adamw = torch.optim.AdamW(network.parameters(), lr=1e-4)
        return contender.workload(partial(baselines.baseline_step, network, adamw, batch))
    network.to(memory_format=torch.channels_last)
    optimizer = make_optimizer(RECIPES["reference"], network)
    amp = None if contender.precision == "float32" else PRECISIONS[contender.precision]
    model = compile_network(network) if contender.name == "compiled" else network
    return contender.workload(partial(TrainingStep(model, DetectionLoss(), optimizer, amp), [batch]))


def loss(contender: Contender) -> Workload:
    """Compute the loss of random outputs and its gradients."""
    outputs, targets = random_outputs(contender, mean=-4.0, std=1.5), random_targets(contender)
    inputs = outputs.class_logits.requires_grad_(), outputs.box_deltas.requires_grad_()
    compute = baselines.baseline_loss if contender.name == "plain" else DetectionLoss()
    return contender.workload(lambda: torch.autograd.grad(compute(outputs, targets).total, inputs))


def postprocessing(contender: Contender) -> Workload:
    """Turn random outputs into detections."""
    outputs, side = random_outputs(contender, mean=-5.5, std=0.6), contender.side  # some 50 candidates per image
    if contender.name == "plain":
        return contender.workload(partial(baselines.baseline_postprocess, outputs, side))
    arguments = side, side, OPTIONS.score_threshold, OPTIONS.iou_threshold
    return contender.workload(partial(torch.inference_mode()(postprocess), outputs, *arguments))


def prepare(contender: Contender) -> Workload:
    """Turn decoded images of a validation set into the network's input, on the CPU."""
    dataset, project = contender.dataset(contender.project.val_set), contender.project
    images = [dataset.load_image(image_id) for image_id in dataset.image_ids[:40]]
    letterboxes = [Letterbox.fit(image.shape[:2], dataset.canvas) for image in images]
    prepare_one = baselines.baseline_image if contender.name == "plain" else Letterbox.apply
    arguments = [(*pair, project.mean, project.std) for pair in zip(letterboxes, images)]
    return Workload(lambda: [prepare_one(*each) for each in arguments], len(images), torch.device("cpu"))


def loader(contender: Contender) -> Workload:
    """Load batches to train on."""
    dataset, batch_size = contender.dataset(contender.project.train_set), contender.batch_size
    epoch = BatchLoader(dataset, batch_size, contender.num_workers, EpochSampler(len(dataset), seed=0))
    batches = chain.from_iterable(repeat(epoch))
    next(batches)  # once it has arrived, all workers are busy
    count = 4 * max(1, contender.num_workers)  # several from each worker, so that a pass does not end with a lucky one
    images = count * min(batch_size, len(dataset))
    return Workload(lambda: sum(1 for _ in islice(batches, count)), images, torch.device("cpu"))


def evaluation(contender: Contender) -> Workload:
    """Detect objects in a validation set, as coco_eval.py does before scoring."""
    dataset = contender.dataset(contender.project.val_set)
    if contender.name == "plain":
        evaluate: Callable = partial(baselines.baseline_evaluation, contender.network(), dataset)
    else:
        settings = OPTIONS, contender.batch_size, contender.num_workers, Stopwatch()
        evaluate = partial(detect_dataset, contender.detector(), dataset, *settings, progress=False)
    return Workload(evaluate, len(dataset), contender.device)


class Kind(NamedTuple):
    """A kind of work, and its possible contenders."""

    make: Callable[[Contender], Workload]
    batch_size: int  # by default
    modes: Collection[str]
    in_precisions: Collection[str] = ()  # modes that run in each precision; others run in float32
    peers: Collection[str] = ()
    accepts_exported: bool = False
    needs_data: bool = False  # of a project
    forward_passes: int = 0  # with as many FLOPs; 0 if they are not counted


KINDS = {
    "end_to_end": Kind(end_to_end, 1, MODES, MODES, baselines.PEERS, accepts_exported=True, forward_passes=1),
    "forward": Kind(forward, 32, MODES, MODES, ["effdet"], accepts_exported=True, forward_passes=1),
    # The gradients of inputs and of weights each cost as many operations as the outputs.
    "train": Kind(training_step, 4, ["plain", "fused", "compiled"], ["fused", "compiled"], forward_passes=3),
    "loss": Kind(loss, 8, ["plain", "fused"], ["fused"]),
    "postprocess": Kind(postprocessing, 8, ["plain", "fused"]),
    "prepare": Kind(prepare, 1, ["plain", "fused"], needs_data=True),
    "loader": Kind(loader, 4, ["fused"], needs_data=True),
    "eval": Kind(evaluation, 8, MODES, MODES, accepts_exported=True, needs_data=True),
}


@lru_cache
def forward_flops(compound_coef: int, side: int) -> int:
    """Return the floating-point operations of all convolutions per image, two for each multiply-add."""
    with torch.device("meta"), torch.no_grad(), FlopCounterMode(display=False) as counter:  # shapes only
        EfficientDet(compound_coef, NUM_CLASSES).eval()(torch.empty(1, 3, side, side))
    return counter.get_total_flops()


# Inputs that cost as much work as real ones, the same in each run.


def random_image() -> np.ndarray:
    """Return an image (H, W, 3) uint8 RGB of smooth noise."""
    coarse = np.random.default_rng(0).integers(0, 256, (IMAGE_SIZE[0] // 40, IMAGE_SIZE[1] // 40, 3), np.uint8)
    return cv2.resize(coarse, IMAGE_SIZE[::-1], interpolation=cv2.INTER_CUBIC)


@torch.inference_mode()
def realistic_weights(contender: Contender) -> dict[str, Tensor]:
    """Return random weights, on the CPU, with which CANDIDATES anchors of `random_image()` pass the threshold."""
    torch.manual_seed(0)
    network = EfficientDet(contender.compound_coef, contender.project.num_classes).to(contender.device)
    image = prepared_batch(replace(contender, batch_size=1))
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0  # the statistics of this image alone: fresh ones would let activations vanish
    network.train()(torch.cat((image, image.flip(-1))))  # two, since the top of a small pyramid is a single cell
    logits = network.eval()(image).class_logits[0].amax(dim=-1)
    shift = torch.tensor(EVALUATION_SCORE_THRESHOLD).logit() - logits.sort(descending=True).values[CANDIDATES]
    network.get_submodule(CLASS_HEADER).get_parameter("conv.bias").add_(shift)
    return {key: tensor.cpu() for key, tensor in network.state_dict().items()}


def prepared_batch(contender: Contender) -> Tensor:
    """Return copies of `random_image` as the network's input (N, 3, side, side), channels-last in optimized modes.

    Noise instead would let activations grow, which then take up to a third longer to compute.
    """
    side, project = contender.side, contender.project
    pixels = Letterbox.fit(IMAGE_SIZE, (side, side)).apply(random_image(), project.mean, project.std)
    images = torch.from_numpy(pixels)[None].permute(0, 3, 1, 2).repeat(contender.batch_size, 1, 1, 1)
    layout = torch.channels_last if contender.is_optimized else torch.contiguous_format
    return images.to(contender.device, memory_format=layout)


def random_outputs(contender: Contender, mean: float, std: float) -> Outputs:
    """Return the outputs of an imaginary network: class logits of this mean and standard deviation, and box deltas."""
    empty = partial(torch.empty, dtype=PRECISIONS[contender.precision], device=contender.device)
    anchors = EfficientDet(contender.compound_coef).anchors(empty(1, 3, contender.side, contender.side))
    logits = empty(contender.batch_size, len(anchors), NUM_CLASSES).normal_(mean, std)
    return Outputs(logits, empty(contender.batch_size, len(anchors), 4).normal_(0.0, 0.5), anchors)


def random_targets(contender: Contender) -> Targets:
    """Return boxes from 16 pixels to half the input's side, with aspect ratios of up to 2, clipped to the input."""
    side, shape = contender.side, (contender.batch_size, OBJECTS)
    lengths = 16 * (side / 32) ** torch.rand(*shape, 1)
    stretch = 2 ** (torch.rand(*shape, 1) - 0.5)
    sizes = torch.cat((lengths * stretch, lengths / stretch), dim=-1)
    centers = side * torch.rand(*shape, 2)
    boxes = torch.cat((centers - sizes / 2, centers + sizes / 2), dim=-1).clamp(0, side)
    return Targets(boxes.to(contender.device), torch.randint(NUM_CLASSES, shape).to(contender.device))
