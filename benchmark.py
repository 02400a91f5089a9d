"""Measure speed and memory.

  python benchmark.py                     detection with D0: from a normalised picture to its detections
  python benchmark.py -c 3 --batch_size 8
  python benchmark.py --compare effdet    beside the same model of the package effdet (pip install effdet)
  python benchmark.py --what train        training steps: forward, loss, backward, AdamW
  python benchmark.py --what loss         the loss alone, forward and backward
  python benchmark.py --what loader -p shapes   pictures loaded per second, and how many a training step consumes
  python benchmark.py --what evaluate -p shapes   coco_eval.py's way through a validation set, but for the scoring
  python benchmark.py --what prepare -p shapes    from decoded pictures to the network's input
  python benchmark.py --what postprocess          from the network's outputs to detections

All of it runs on the GPU if there is one. The contenders take turns within one run, so that their ratios hold when the
machine's speed drifts. Weights, pictures and boxes (8 per picture, of 90 classes) are random, but for the loader's.

Detection: "plain" is the network as trained, unfused, contiguous in memory. The score threshold is set where 1,000
anchors per picture pass it, so that post-processing has real work.

Training and loss: "ours" is train.py's step, channels-last, "ours bf16" also under autocast to bfloat16, but for the
loss. "baseline" is the same network in contiguous float32, with a loss as one would first write it, image by image.
"peak MiB" is what the first step of a fresh process takes, beyond the memory that network and pictures had taken.

Evaluation and its parts: "baseline" is the reference's way. One picture at a time, without workers, is normalised in
float64 before it is resized, goes through the unfused network, and every anchor's box is decoded.
"""

import argparse
import contextlib
import statistics
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import torch
from torch import Tensor
from torchvision.ops import batched_nms
from tqdm import tqdm

from efficientdet.boxes import clip_boxes, decode, encode, pairwise_iou, yxyx_to_xyxy
from efficientdet.checkpoint import chosen_weights, load_weights
from efficientdet.config import model_config
from efficientdet.dataset import Batch, BatchLoader, CocoDataset, EpochSampler
from efficientdet.detector import DetectionOptions, load_detector
from efficientdet.engine import TrainingStep
from efficientdet.evaluate import EVALUATION_IOU_THRESHOLD, EVALUATION_SCORE_THRESHOLD, coco_results
from efficientdet.fuse import fuse_for_inference
from efficientdet.inference import Stopwatch, detect_dataset
from efficientdet.loss import PADDING_CLASS, DetectionLoss, Losses, Targets
from efficientdet.model import EfficientDet, Outputs
from efficientdet.optimization import make_optimizer
from efficientdet.postprocess import Detections, in_picture, postprocess
from efficientdet.project import Project, load_project
from efficientdet.recipe import RECIPES
from efficientdet.transforms import Letterbox
from utils.cli import BOOLEAN, non_negative_int, positive_int
from utils.device import chosen_device
from utils.errors import InputError, exit_on_input_error
from utils.memory import keep_freed_memory

BATCH_SIZES = {
    "end_to_end": 1, "train": 4, "loss": 8, "loader": 4, "evaluate": 8, "prepare": 1, "postprocess": 8
}  # by default  # fmt: skip
CANDIDATES = 1000
NUM_CLASSES = 90
OBJECTS = 8  # per picture
PREPARED = 40  # pictures


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--what", choices=BATCH_SIZES, default="end_to_end", help="see above (default: end_to_end, detection)")
    add("-c", "--compound_coef", type=int, default=0, choices=range(9), help="D0 to D7, 8 is D7X (default: 0)")
    defaults = ", ".join(f"{size} for {what}" for what, size in BATCH_SIZES.items())
    add("--batch_size", type=positive_int, help=f"images per pass (default: {defaults})")
    add("--image_size", type=positive_int, help="side of the input, pixels (default: the coefficient's, 512 for D0)")
    add("--cuda", **BOOLEAN, help="run on a GPU (default: if there is one)")
    add("--device", type=non_negative_int, default=0, help="which GPU (default: 0)")
    add("--compare", nargs="*", choices=("effdet",), default=[], help="end_to_end: another implementation beside ours")
    add("-p", "--project", default="coco", help="loader, evaluate, prepare: whose pictures (default: coco)")
    add("--data_path", type=Path, default=Path("datasets"), help="... the projects' data (default: datasets/)")
    add("-w", "--weights", help="evaluate: weights file (default: the project's, as for coco_eval.py)")
    add(
        "-n",
        "--num_workers",
        type=non_negative_int,
        default=2,
        help="loader, evaluate: loading processes, or threads (default: 2)",
    )
    add("--runs", type=positive_int, default=15, help="counted passes of each contender (default: 15)")
    add("--warmup", type=non_negative_int, default=3, help="passes of each before them (default: 3)")
    return parser.parse_args()


class Setting(NamedTuple):
    """What every contender gets alike."""

    compound_coef: int
    side: int  # of the input, pixels
    batch_size: int
    device: torch.device

    def __str__(self) -> str:
        return f"D{self.compound_coef} at {self.side} x {self.side}, batch {self.batch_size}"


def main(args: argparse.Namespace) -> None:
    config = model_config(args.compound_coef)
    setting = Setting(
        args.compound_coef,
        config.input_shape(args.image_size)[0],
        args.batch_size or BATCH_SIZES[args.what],
        chosen_device(args.cuda, args.device),
    )
    match args.what:
        case "end_to_end":
            compare_detection(setting, args)
        case "train":
            print(f"{setting}, training steps, {describe(setting.device)}")
            compare_processes(training_step, ("ours float32", "ours bf16", "baseline"), setting, args)
        case "loss":
            print(f"{setting}, loss forward and backward, {describe(setting.device)}")
            compare_processes(loss_pass, ("ours", "ours bf16", "baseline"), setting, args)
        case "loader":
            compare_loading(setting, args)
        case "evaluate":
            compare_evaluation(setting, args)
        case "prepare":
            compare_preparing(setting, args)
        case "postprocess":
            compare_postprocessing(setting, args)


# Detection.


@torch.inference_mode()
def compare_detection(setting: Setting, args: argparse.Namespace) -> None:
    torch.manual_seed(0)
    network = EfficientDet(setting.compound_coef).eval()
    images = torch.randn(setting.batch_size, 3, setting.side, setting.side)
    print(f"{setting}, float32, {describe(setting.device)}")

    network.to(setting.device)
    images = images.to(setting.device)
    contenders = {"ours": ours(network, images), "ours, plain": plain(network, images)}
    if "effdet" in args.compare:
        contenders["effdet"] = effdet(setting.compound_coef, images)
    seconds = measure(contenders, args.warmup, args.runs, setting.device)
    fastest = statistics.median(seconds["ours"])
    ratios = {name: f"{fastest / statistics.median(times):.2f}" for name, times in seconds.items()}
    print_table(seconds, setting.batch_size, {"ours / it": ratios})


def ours(network: EfficientDet, images: Tensor) -> Callable[[], object]:
    """The network as `load_detector` runs it."""
    fused = fuse_for_inference(network, images.device)
    return with_postprocessing(fused, images.contiguous(memory_format=torch.channels_last))


def plain(network: EfficientDet, images: Tensor) -> Callable[[], object]:
    """The network as one would first write it."""
    return with_postprocessing(network, images)


def with_postprocessing(network: EfficientDet, images: Tensor) -> Callable[[], object]:
    scores = network(images).class_logits.amax(dim=-1).sigmoid()
    threshold = scores.flatten().sort(descending=True).values[CANDIDATES * len(images)].item()
    return lambda: postprocess(network(images), *images.shape[-2:], threshold, EVALUATION_IOU_THRESHOLD)


def effdet(compound_coef: int, images: Tensor) -> Callable[[], object]:
    """The same coefficient of the package effdet, forward and post-processing."""
    try:
        from effdet import create_model
    except ImportError as error:
        raise InputError("--compare effdet needs that package: pip install effdet") from error
    name = "tf_efficientdet_d7x" if compound_coef == 8 else f"tf_efficientdet_d{compound_coef}"
    size = tuple(images.shape[-2:])
    model = create_model(name, bench_task="predict", pretrained=False, pretrained_backbone=False, image_size=size)
    model.eval().to(images.device)
    return lambda: model(images)


# Training and loss.


def compare_processes(
    make: Callable[[str, Setting], Callable[[], object]],
    names: tuple[str, ...],
    setting: Setting,
    args: argparse.Namespace,
    images: int | None = None,
) -> None:
    """Table of the contenders that `make` makes of their names; the last is the baseline.

    Each has a process of its own, since they differ in what becomes of freed memory, too.

    Args:
        images: of a pass (default: a batch).
    """
    with contextlib.ExitStack() as stack:
        processes = {
            name: stack.enter_context(
                ProcessPoolExecutor(1, get_context("spawn"), initializer=prepare, initargs=(make, name, setting))
            )
            for name in names
        }
        memory = {name: f"{process.submit(first_pass).result() / 2**20:.0f}" for name, process in processes.items()}
        contenders = {name: partial(run_in, process) for name, process in processes.items()}
        seconds = measure(contenders, args.warmup, args.runs, setting.device)
    slowest = statistics.median(seconds["baseline"])
    ratios = {name: f"{slowest / statistics.median(times):.2f}" for name, times in seconds.items()}
    print_table(seconds, images or setting.batch_size, {"x baseline": ratios, "peak MiB": memory})


def run_in(process: ProcessPoolExecutor) -> None:
    process.submit(one_pass).result()


class Prepared(NamedTuple):
    """What a contender's process holds."""

    run_once: Callable[[], object]
    device: torch.device


_prepared: list[Prepared] = []  # in a contender's process: its own


def prepare(make: Callable[[str, Setting], Callable[[], object]], name: str, setting: Setting) -> None:
    """Begin a contender's process."""
    if name != "baseline":
        keep_freed_memory()
    _prepared.append(Prepared(make(name, setting), setting.device))


def one_pass() -> None:
    (contender,) = _prepared
    contender.run_once()
    synchronize(contender.device)


def first_pass() -> int:
    """Bytes that the first pass takes at its peak, on top of what was there before it."""
    (contender,) = _prepared
    if contender.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(contender.device)
        before = torch.cuda.memory_allocated(contender.device)
        one_pass()
        return torch.cuda.max_memory_allocated(contender.device) - before
    before = resident_bytes("VmRSS")
    one_pass()
    return resident_bytes("VmHWM") - before


def training_step(name: str, setting: Setting) -> Callable[[], object]:
    """One update of a network with fresh weights by a random batch."""
    torch.manual_seed(0)
    network = EfficientDet(setting.compound_coef, NUM_CLASSES).train().to(setting.device)
    images = torch.randn(setting.batch_size, 3, setting.side, setting.side, device=setting.device)
    targets = random_targets(setting)
    if name == "baseline":
        return baseline_step(network, images, targets)
    network.to(memory_format=torch.channels_last)
    batch = Batch(images.contiguous(memory_format=torch.channels_last), targets, letterboxes=[], image_ids=[])
    optimizer = make_optimizer(RECIPES["reference"], network)
    step = TrainingStep(network, DetectionLoss(), optimizer, torch.bfloat16 if name == "ours bf16" else None)
    return lambda: step([batch])


def baseline_step(network: EfficientDet, images: Tensor, targets: Targets) -> Callable[[], object]:
    """One update in the way that comes first to mind."""
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-4)

    def step() -> None:
        loss = baseline_loss(network(images), targets).total
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


def loss_pass(name: str, setting: Setting) -> Callable[[], object]:
    """The loss of random predictions and its gradient."""
    torch.manual_seed(0)
    dtype = torch.bfloat16 if name == "ours bf16" else torch.float32
    outputs = random_outputs(setting, dtype, mean=-4.0, std=1.5)
    outputs.class_logits.requires_grad_()
    outputs.box_deltas.requires_grad_()
    targets = random_targets(setting)
    loss = baseline_loss if name == "baseline" else DetectionLoss()

    def forward_and_backward() -> None:
        outputs.class_logits.grad = outputs.box_deltas.grad = None
        loss(outputs, targets).total.backward()

    return forward_and_backward


def random_outputs(setting: Setting, dtype: torch.dtype, mean: float, std: float) -> Outputs:
    """What a network might say of a batch: normal class logits of this mean and deviation, and box deltas."""
    with torch.device("meta"):
        network = EfficientDet(setting.compound_coef, NUM_CLASSES)
    anchors = network.anchors(torch.empty(1, 3, setting.side, setting.side, device=setting.device))
    shape = (setting.batch_size, len(anchors))
    logits = torch.empty(*shape, NUM_CLASSES, dtype=dtype, device=setting.device).normal_(mean, std)
    return Outputs(logits, torch.empty(*shape, 4, dtype=dtype, device=setting.device).normal_(0.0, 0.5), anchors)


def random_targets(setting: Setting) -> Targets:
    """Boxes from 16 pixels to half the input long, up to twice as long as wide or high, cut at the border."""
    shape = (setting.batch_size, OBJECTS, 1)
    lengths = 16 * (setting.side / 32) ** torch.rand(shape)
    stretch = 2 ** (torch.rand(shape) - 0.5)
    sizes = torch.cat((lengths * stretch, lengths / stretch), dim=-1)
    centres = setting.side * torch.rand(setting.batch_size, OBJECTS, 2)
    boxes = torch.cat((centres - sizes / 2, centres + sizes / 2), dim=-1).clamp(0, setting.side)
    class_ids = torch.randint(NUM_CLASSES, (setting.batch_size, OBJECTS))
    return Targets(boxes.to(setting.device), class_ids.to(setting.device))


def baseline_loss(outputs: Outputs, targets: Targets) -> Losses:
    """The reference recipe's loss in the way that comes first to mind: `DetectionLoss(empty_image_normalizer=1)`.

    A loop over the images, with a one-hot target for every logit and everything left to autograd.
    """
    anchors = outputs.anchors
    classification, regression = [], []
    for logits, deltas, boxes, class_ids in zip(outputs.class_logits, outputs.box_deltas, *targets):
        boxes, class_ids = boxes[class_ids != PADDING_CLASS].to(anchors), class_ids[class_ids != PADDING_CLASS]
        if len(boxes):
            best_iou, best_object = pairwise_iou(yxyx_to_xyxy(anchors), boxes).max(dim=1)
        else:
            best_iou = best_object = torch.zeros(len(anchors), dtype=torch.int64, device=anchors.device)
        positive = best_iou >= 0.5
        objects = best_object[positive]
        divisor = positive.sum().clamp(min=1)

        probabilities = logits.sigmoid().clamp(1e-4, 1 - 1e-4)
        one_hot = torch.full_like(probabilities, -1)  # where it stays, the anchor is left out
        one_hot[best_iou < 0.4] = 0
        one_hot[positive] = 0
        one_hot[positive, class_ids[objects]] = 1
        alpha_factor = torch.full_like(one_hot, 0.25)
        alpha_factor = torch.where(one_hot == 1, alpha_factor, 1 - alpha_factor)
        focal_weight = alpha_factor * torch.where(one_hot == 1, 1 - probabilities, probabilities) ** 2
        cross_entropy = -(one_hot * probabilities.log() + (1 - one_hot) * (1 - probabilities).log())
        losses = torch.where(one_hot != -1, focal_weight * cross_entropy, 0.0)
        classification.append(losses.sum() / divisor)

        distances = (deltas[positive] - encode(boxes[objects], anchors[positive])).abs()
        losses = torch.where(distances < 1 / 9, 0.5 * 9 * distances**2, distances - 0.5 / 9)
        regression.append(losses.sum() / (4 * divisor))
    return Losses(torch.stack(classification).mean(), 50 * torch.stack(regression).mean())


# Evaluation and its parts.


def compare_evaluation(setting: Setting, args: argparse.Namespace) -> None:
    project = load_project(args.project)
    images = len(validation_set(setting, project, args.data_path))
    print(f"{setting}, detecting in {images} pictures, float32, {describe(setting.device)}")
    weights = chosen_weights(args.weights, project.name, args.compound_coef, Path("logs"))
    make = partial(evaluation, project, args.data_path, weights, args.num_workers)
    compare_processes(make, ("ours", "baseline"), setting, args, images)


def validation_set(setting: Setting, project: Project, data_path: Path) -> CocoDataset:
    return CocoDataset(data_path / project.name, project.val_set, project, (setting.side, setting.side))


def evaluation(
    project: Project, data_path: Path, weights: Path, num_workers: int, name: str, setting: Setting
) -> Callable[[], object]:
    """The validation set -> COCO results."""
    dataset = validation_set(setting, project, data_path)
    if name == "baseline":
        network = EfficientDet(
            setting.compound_coef, project.num_classes, project.anchor_ratios, project.anchor_scales
        ).eval()
        load_weights(network, weights)
        return partial(baseline_evaluation, network.to(setting.device), dataset, setting)
    detector = load_detector(setting.compound_coef, weights, project, setting.device, setting.side)
    options = DetectionOptions(EVALUATION_SCORE_THRESHOLD, EVALUATION_IOU_THRESHOLD)
    return lambda: detect_dataset(detector, dataset, options, setting.batch_size, num_workers, Stopwatch())


@torch.inference_mode()
def baseline_evaluation(network: EfficientDet, dataset: CocoDataset, setting: Setting) -> list[dict]:
    results = []
    for image_id in tqdm(dataset.image_ids, leave=False):
        picture = dataset.picture(image_id)
        letterbox = Letterbox.fit(picture.shape[:2], dataset.canvas)
        pixels = baseline_prepare(picture, letterbox, dataset.project)
        images = torch.from_numpy(pixels[None]).to(setting.device).permute(0, 3, 1, 2).contiguous()
        (found,) = baseline_postprocess(network(images), *dataset.canvas, EVALUATION_SCORE_THRESHOLD)
        results += coco_results(image_id, in_picture(found, letterbox), dataset.category_ids)
    return results


def compare_preparing(setting: Setting, args: argparse.Namespace) -> None:
    project = load_project(args.project)
    dataset = validation_set(setting, project, args.data_path)
    pictures = [dataset.picture(image_id) for image_id in tqdm(dataset.image_ids[:PREPARED], leave=False)]
    letterboxes = [Letterbox.fit(picture.shape[:2], dataset.canvas) for picture in pictures]

    def ours() -> None:
        for picture, letterbox in zip(pictures, letterboxes):
            letterbox.image(picture, project.mean, project.std)

    def baseline() -> None:
        for picture, letterbox in zip(pictures, letterboxes):
            baseline_prepare(picture, letterbox, project)

    print(f"{len(pictures)} pictures onto {setting.side} x {setting.side}, {describe(torch.device('cpu'))}")
    compare_with_baseline({"ours": ours, "baseline": baseline}, len(pictures), setting, args)


def baseline_prepare(picture: np.ndarray, letterbox: Letterbox, project: Project) -> np.ndarray:
    """`Letterbox.image`, normalised in float64 before the resizing."""
    height, width = letterbox.resized
    normalized = (picture / 255 - np.array(project.mean)) / np.array(project.std)
    canvas = np.zeros((*letterbox.canvas, 3), np.float32)
    canvas[:height, :width] = cv2.resize(normalized, (width, height), interpolation=cv2.INTER_LINEAR)
    return canvas


def compare_postprocessing(setting: Setting, args: argparse.Namespace) -> None:
    torch.manual_seed(0)
    outputs = random_outputs(setting, torch.float32, mean=-5.5, std=0.6)  # some fifty anchors of an image pass
    arguments = (outputs, setting.side, setting.side, EVALUATION_SCORE_THRESHOLD)
    print(f"{setting}, post-processing at {EVALUATION_SCORE_THRESHOLD}, {describe(setting.device)}")
    contenders = {
        "ours": lambda: postprocess(*arguments, EVALUATION_IOU_THRESHOLD),
        "baseline": lambda: baseline_postprocess(*arguments),
    }
    compare_with_baseline(contenders, setting.batch_size, setting, args)


@torch.inference_mode()
def baseline_postprocess(outputs: Outputs, height: int, width: int, score_threshold: float) -> list[Detections]:
    """`postprocess` in the way that comes first to mind: every anchor's box and all its scores, image by image."""
    detections = []
    for logits, deltas in zip(outputs.class_logits, outputs.box_deltas):
        scores, class_ids = logits.sigmoid().max(dim=-1)
        boxes = clip_boxes(decode(deltas, outputs.anchors), height, width)
        passed = scores > score_threshold
        found = Detections(boxes[passed], scores[passed], class_ids[passed])
        kept = batched_nms(found.boxes, found.scores, found.class_ids, EVALUATION_IOU_THRESHOLD)
        detections.append(found[kept])
    return detections


def compare_with_baseline(
    contenders: dict[str, Callable[[], object]], images: int, setting: Setting, args: argparse.Namespace
) -> None:
    """Table of contenders in this process, the last of which is the baseline."""
    seconds = measure(contenders, args.warmup, args.runs, setting.device)
    slowest = statistics.median(seconds["baseline"])
    ratios = {name: f"{statistics.median(times) / slowest:.2f}" for name, times in seconds.items()}
    print_table(seconds, images, {"it / baseline": ratios})


# Loading.


def compare_loading(setting: Setting, args: argparse.Namespace) -> None:
    project = load_project(args.project)
    canvas = (setting.side, setting.side)
    train_set = CocoDataset(args.data_path / project.name, project.train_set, project, canvas)
    print(f"{setting}, loading {train_set.pictures}, {describe(setting.device)}")

    batches = endless_batches(train_set, setting.batch_size, args.num_workers)
    for _ in range(args.warmup + 1):  # from the first arrival on, all workers are at work
        next(batches)
    start = time.perf_counter()
    images = sum(len(next(batches).image_ids) for _ in range(args.runs))
    loaded = images / (time.perf_counter() - start)
    batches.close()  # so that the workers do not slow the steps down

    keep_freed_memory()
    steps = measure({"step": training_step("ours bf16", setting)}, args.warmup, args.runs, setting.device)["step"]
    consumed = setting.batch_size / statistics.median(steps)
    print(f"{'':<22} {'images/s':>9}")
    print(f"{f'loader, {args.num_workers} workers':<22} {loaded:>9.2f}")
    print(f"{'training step, bf16':<22} {consumed:>9.2f}")
    print(f"each alone; the loader is {loaded / consumed:.2f} times as fast")


def endless_batches(train_set: CocoDataset, batch_size: int, num_workers: int) -> Iterator[Batch]:
    sampler = EpochSampler(len(train_set), seed=0)
    batches = BatchLoader(train_set, batch_size, num_workers, sampler)
    while True:
        yield from batches
        sampler.epoch += 1


# Measuring.


def measure(
    contenders: dict[str, Callable[[], object]], warmup: int, runs: int, device: torch.device
) -> dict[str, list[float]]:
    """Seconds of each counted pass of each contender, taken in turns."""
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for run in tqdm(range(warmup + runs), unit="round", leave=False):
        for name, run_once in contenders.items():
            synchronize(device)
            start = time.perf_counter()
            run_once()
            synchronize(device)
            if run >= warmup:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def resident_bytes(field: str) -> int:
    """This process's memory, now (VmRSS) or at its peak (VmHWM). getrusage's peak would count the parent's, too."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(f"{field}:"))


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def print_table(seconds: dict[str, list[float]], batch_size: int, columns: dict[str, dict[str, str]]) -> None:
    """A row for each contender; `columns` are more of them, title -> contender -> text."""
    titles = "".join(f" {title:>10}" for title in columns)
    print(f"{'':<12} {'median ms':>10} {'min':>8} {'max':>8} {'images/s':>9}{titles}")
    for name, times in seconds.items():
        median = statistics.median(times)
        more = "".join(f" {column[name]:>10}" for column in columns.values())
        print(
            f"{name:<12} {1e3 * median:>10.1f} {1e3 * min(times):>8.1f} {1e3 * max(times):>8.1f} "
            f"{batch_size / median:>9.2f}{more}"
        )


def describe(device: torch.device) -> str:
    if device.type == "cuda":
        return f"{torch.cuda.get_device_name(device)}, torch {torch.__version__}"
    return f"CPU with {torch.get_num_threads()} threads, torch {torch.__version__}"


if __name__ == "__main__":
    with exit_on_input_error():
        main(parse_args())
