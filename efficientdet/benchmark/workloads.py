"""What the benchmark measures: for each kind of work, what a contender does in one pass, on random inputs."""

import contextlib
import io
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
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
    name: str  # a mode of `optimize`, "ours", one of PEERS, or the path of an exported file
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


def make_workload(contender: Contender) -> Workload:
    """Return the contender's workload, in the contender's own process. Raises InputError for unusable data."""
    if contender.device.type == "cpu" and contender.name in ("ours", *MODES) and contender.name != "plain":
        keep_freed_memory()
    torch.manual_seed(0)
    return KINDS[contender.what].make(contender)


def end_to_end(contender: Contender) -> Workload:
    """Detect objects in decoded images (640 x 480), including letterbox and post-processing."""
    images, stopwatch = [random_image()] * contender.batch_size, Stopwatch()
    name, side, project, device = contender.name, contender.side, contender.project, contender.device
    if name == "plain":
        detect: Callable = partial(baselines.baseline_detections, contender.network(), images, side, project, stopwatch)
    elif name == "effdet":
        network = baselines.effdet_network(contender.compound_coef, side, device, "predict")
        detect = partial(baselines.effdet_detections, network, images, side, project)
    elif name in baselines.PEERS["torchvision"]:
        network = baselines.torchvision_network(name, device)
        detect = partial(baselines.torchvision_detections, network, images)
    else:
        detector = contender.detector()
        prepared = partial(detector.prepare, images, OPTIONS, len(images))
        return Workload(lambda: detector.detect(prepared(), OPTIONS, stopwatch), len(images), device, stopwatch)
    return Workload(detect, len(images), device, stopwatch)


def forward(contender: Contender) -> Workload:
    """Run the network alone on images that are on the device already."""
    shape = (contender.batch_size, 3, contender.side, contender.side)
    images = torch.randn(shape, device=contender.device)
    if contender.name == "effdet":
        network: Callable = baselines.effdet_network(contender.compound_coef, contender.side, contender.device)
    elif is_exported(contender.name):
        network = exported = ExportedModel(contender.name, contender.device)
        images = torch.randint(256, shape, dtype=torch.uint8).to(contender.device, exported.input_dtype)
    else:
        network = contender.network()
        if contender.name != "plain":
            images = images.contiguous(memory_format=torch.channels_last)
    return Workload(torch.inference_mode()(partial(network, images)), contender.batch_size, contender.device)


def training_step(contender: Contender) -> Workload:
    """Update a network by a random batch: forward, loss, backward, AdamW."""
    network = EfficientDet(contender.compound_coef, NUM_CLASSES).train().to(contender.device)
    images = torch.randn(contender.batch_size, 3, contender.side, contender.side, device=contender.device)
    targets = random_targets(contender.batch_size, contender.side, contender.device)
    if contender.name == "plain":
        adamw = torch.optim.AdamW(network.parameters(), lr=1e-4)
        update: Callable = partial(baselines.baseline_step, network, adamw, Batch(images, targets, [], []))
    else:
        network.to(memory_format=torch.channels_last)
        batch = Batch(images.contiguous(memory_format=torch.channels_last), targets, letterboxes=[], image_ids=[])
        optimizer = make_optimizer(RECIPES["reference"], network)
        amp = None if contender.precision == "float32" else PRECISIONS[contender.precision]
        model = compile_network(network) if contender.name == "compiled" else network
        update = partial(TrainingStep(model, DetectionLoss(), optimizer, amp), [batch])
    return Workload(update, contender.batch_size, contender.device)


def loss(contender: Contender) -> Workload:
    """Compute the loss of random outputs and its gradients."""
    batch_size, side, device = contender.batch_size, contender.side, contender.device
    dtype = PRECISIONS[contender.precision]
    outputs = random_outputs(contender.compound_coef, side, batch_size, device, dtype, mean=-4.0, std=1.5)
    inputs = outputs.class_logits.requires_grad_(), outputs.box_deltas.requires_grad_()
    targets = random_targets(batch_size, side, device)
    compute = baselines.baseline_loss if contender.name == "plain" else DetectionLoss()
    return Workload(lambda: torch.autograd.grad(compute(outputs, targets).total, inputs), batch_size, device)


def postprocessing(contender: Contender) -> Workload:
    """Turn random outputs into detections."""
    size = contender.compound_coef, contender.side, contender.batch_size
    outputs = random_outputs(*size, contender.device, torch.float32, mean=-5.5, std=0.6)  # some 50 candidates per image
    if contender.name == "plain":
        run_once: Callable = partial(baselines.baseline_postprocess, outputs, contender.side)
    else:
        canvas, thresholds = (contender.side, contender.side), (EVALUATION_SCORE_THRESHOLD, EVALUATION_IOU_THRESHOLD)
        run_once = partial(torch.inference_mode()(postprocess), outputs, *canvas, *thresholds)
    return Workload(run_once, contender.batch_size, contender.device)


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
        evaluate = partial(baselines.baseline_evaluation, contender.network(), dataset)
    else:
        settings = OPTIONS, contender.batch_size, contender.num_workers, Stopwatch()
        evaluate = partial(detect_dataset, contender.detector(), dataset, *settings)

    def run_once() -> None:
        with contextlib.redirect_stderr(io.StringIO()):  # hides the progress bar
            evaluate()

    return Workload(run_once, len(dataset), contender.device)


class Kind(NamedTuple):
    """A kind of work, and its possible contenders."""

    make: Callable[[Contender], Workload]
    batch_size: int  # by default
    names: Mapping[str, str]  # mode -> contender
    in_precisions: Sequence[str] = ()  # contenders that run in each precision; others run in float32
    peers: Sequence[str] = ()
    accepts_exported: bool = False
    needs_data: bool = False  # of a project
    forward_passes: int = 0  # with as many FLOPs; 0 if they are not counted


_ALL_MODES = {mode: mode for mode in MODES}
_PLAIN_AND_OURS = {"plain": "plain", "fused": "ours"}
KINDS = {
    "end_to_end": Kind(end_to_end, 1, _ALL_MODES, MODES, [*baselines.PEERS], accepts_exported=True, forward_passes=1),
    "forward": Kind(forward, 32, _ALL_MODES, MODES, ["effdet"], accepts_exported=True, forward_passes=1),
    # The gradients of inputs and of weights each cost as many operations as the outputs.
    "train": Kind(training_step, 4, _PLAIN_AND_OURS | {"compiled": "compiled"}, ("ours", "compiled"), forward_passes=3),
    "loss": Kind(loss, 8, _PLAIN_AND_OURS, ("ours",)),
    "postprocess": Kind(postprocessing, 8, _PLAIN_AND_OURS),
    "prepare": Kind(prepare, 1, _PLAIN_AND_OURS, needs_data=True),
    "loader": Kind(loader, 4, {"fused": "ours"}, needs_data=True),
    "eval": Kind(evaluation, 8, _ALL_MODES, MODES, accepts_exported=True, needs_data=True),
}


@lru_cache
def forward_flops(compound_coef: int, side: int) -> int:
    """Return the floating-point operations of all convolutions per image, two for each multiply-add."""
    with torch.device("meta"):  # shapes only
        network = EfficientDet(compound_coef, NUM_CLASSES).eval()
        images = torch.empty(1, 3, side, side)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        network(images)
    return counter.get_total_flops()


# Inputs that cost as much work as real ones, the same in each run.


def random_image() -> np.ndarray:
    """Return an image (H, W, 3) uint8 RGB of smooth noise."""
    coarse = np.random.default_rng(0).integers(0, 256, (IMAGE_SIZE[0] // 40, IMAGE_SIZE[1] // 40, 3), np.uint8)
    return cv2.resize(coarse, IMAGE_SIZE[::-1], interpolation=cv2.INTER_CUBIC)


@torch.inference_mode()
def realistic_weights(compound_coef: int, side: int, project: Project, device: torch.device) -> dict[str, Tensor]:
    """Return random weights, on the CPU, with which CANDIDATES anchors of `random_image()` pass the threshold."""
    torch.manual_seed(0)
    network = EfficientDet(compound_coef, project.num_classes, project.anchor_ratios, project.anchor_scales).to(device)
    pixels = Letterbox.fit(IMAGE_SIZE, (side, side)).apply(random_image(), project.mean, project.std)
    image = torch.from_numpy(pixels)[None].permute(0, 3, 1, 2).to(device)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0  # the statistics of this image alone: fresh ones would let activations vanish
    network.train()(torch.cat((image, image.flip(-1))))  # two, since the top of a small pyramid is a single cell
    logits = network.eval()(image).class_logits[0].amax(dim=-1)
    threshold = math.log(EVALUATION_SCORE_THRESHOLD / (1 - EVALUATION_SCORE_THRESHOLD))
    shift = threshold - logits.sort(descending=True).values[CANDIDATES]
    network.get_submodule(CLASS_HEADER).get_parameter("conv.bias").add_(shift)
    return {key: tensor.cpu() for key, tensor in network.state_dict().items()}


def random_outputs(
    compound_coef: int, side: int, batch_size: int, device: torch.device, dtype: torch.dtype, mean: float, std: float
) -> Outputs:
    """Return the outputs of an imaginary network: class logits of this mean and standard deviation, and box deltas."""
    with torch.device("meta"):
        network = EfficientDet(compound_coef, NUM_CLASSES)
    anchors = network.anchors(torch.empty(1, 3, side, side, device=device))
    logits = torch.empty(batch_size, len(anchors), NUM_CLASSES, dtype=dtype, device=device).normal_(mean, std)
    deltas = torch.empty(batch_size, len(anchors), 4, dtype=dtype, device=device).normal_(0.0, 0.5)
    return Outputs(logits, deltas, anchors)


def random_targets(batch_size: int, side: int, device: torch.device) -> Targets:
    """Return boxes from 16 pixels to half the input's side, with aspect ratios of up to 2, clipped to the input."""
    shape = (batch_size, OBJECTS, 1)
    lengths = 16 * (side / 32) ** torch.rand(shape)
    stretch = 2 ** (torch.rand(shape) - 0.5)
    sizes = torch.cat((lengths * stretch, lengths / stretch), dim=-1)
    centres = side * torch.rand(batch_size, OBJECTS, 2)
    boxes = torch.cat((centres - sizes / 2, centres + sizes / 2), dim=-1).clamp(0, side)
    class_ids = torch.randint(NUM_CLASSES, (batch_size, OBJECTS))
    return Targets(boxes.to(device), class_ids.to(device))
