"""Train EfficientDet on a project's data set.

  python train.py -p shapes --image_size 256 --recipe quick --minutes 10               watch a detector learn
  python train.py -p birds -c 2 --recipe quick --lr 2e-3 -w weights/efficientdet-d2.pth   fine-tune published weights
  python train.py -p birds -c 2 --recipe quick --lr 2e-3 -w last                       resume after Ctrl+C
  python train.py -p coco -c 2 --recipe official --backbone_weights imagenet           as google/automl does
  torchrun --nproc_per_node 4 train.py -p coco -c 2 --batch_size 32                    several GPUs or machines

Images are read from datasets/{project}/{set}/, annotations in COCO format from
datasets/{project}/annotations/instances_{set}.json. Ctrl+C finishes the current step, saves a checkpoint and exits.
"""

import argparse
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import islice
from pathlib import Path

import torch

from efficientdet.check.report import report_before_training
from efficientdet.checkpoints.find import find_weights, last_path
from efficientdet.checkpoints.loading import apply_weights, load_backbone, load_weights
from efficientdet.config import model_config
from efficientdet.data.dataset import CocoDataset
from efficientdet.data.loader import Batch, BatchLoader, EpochSampler
from efficientdet.data.shapes import draw_if_absent
from efficientdet.model.network import EfficientDet
from efficientdet.project import Project, load_project
from efficientdet.runtime.modes import compile_network
from efficientdet.training.checkpoints import Checkpoints, load_last
from efficientdet.training.failures import (
    OutOfMemory,
    count_skipped,
    memory_advice,
    save_on_failure,
    unless_out_of_memory,
)
from efficientdet.training.monitor import Monitor, progress_bar, step_summary
from efficientdet.training.norm_statistics import STATISTICS_BATCHES, images_for_statistics
from efficientdet.training.progress import VALIDATIONS, Length
from efficientdet.training.recipe import Recipe, add_recipe_flags, make_recipe, recipe_changes
from efficientdet.training.run import Run
from utils import distributed
from utils.cli import (
    BOOLEAN,
    add_flags,
    make_parser,
    non_negative_float,
    non_negative_int,
    positive_float,
    positive_int,
)
from utils.device import autocast_dtype, check_compiler, keep_freed_memory, training_device
from utils.errors import InputError, exit_on_input_error
from utils.files import make_writable_folder
from utils.stop import StopRequest

DEBUG_FOLDER = Path("test")
DEFAULT_EPOCHS = 500


def parse_args(args: Sequence[str] | None = None) -> argparse.Namespace:
    parser = make_parser(__doc__)
    add, off = parser.add_argument, {**BOOLEAN, "default": False}
    add_flags(parser, "project", "compound_coef", "num_workers", "data_path", "image_size", "max_images")
    add("-w", "--load_weights", metavar="FILE|last", help="start from a weights file, or resume the last run")
    backbones = (
        "backbone's ImageNet weights: a file of EfficientNet-PyTorch, torchvision or timm, or imagenet to download"
    )
    add("--backbone_weights", metavar="FILE|imagenet", help=backbones)
    add("--accumulate", type=positive_int, default=1, help="batches per step, to save memory (default: 1)")
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--num_epochs", type=positive_int, help="(default: the recipe's --num_steps, else 500)")
    length.add_argument("--minutes", type=positive_float, help="length of the run instead: its schedule ends on time")
    interval = "epochs between validations (default: 1; about ten validations if the length is in steps or minutes)"
    add("--val_interval", type=positive_int, help=interval)
    add("--save_interval", type=positive_int, default=500, help="steps between checkpoints (default: 500)")
    add("--keep", type=non_negative_int, default=3, help="checkpoints of the run to keep; 0: all (default: 3)")
    delta = "early stopping: the rise of AP that is an improvement (default: 0)"
    add("--es_min_delta", type=non_negative_float, default=0.0, help=delta)
    patience = "early stopping: epochs without improvement before it; 0: never stop early (default: 0)"
    add("--es_patience", type=non_negative_int, default=0, help=patience)
    add("--log_path", type=Path, default=Path("logs"), help="folder of curves and TensorBoard (default: logs/)")
    add_flags(parser, saved_path={"help": "folder of the checkpoints (default: logs/)"})
    add("--head_only", **off, help="freeze backbone and BiFPN, train the heads only")
    add("--freeze_bn", **off, help="freeze the batch norms' statistics, for small batches")
    add("--amp", choices=("off", "bf16", "fp16"), help="mixed precision (default: bf16 if the hardware supports it)")
    recompute = "recompute activations in the backward pass: half the memory (a third for D5), a third more time"
    add("--checkpoint_activations", **off, help=recompute)
    add("--compile", **off, help="use torch.compile, on a GPU: the first step takes minutes, less in the next run")
    add("--debug", **off, help=f"draw detections next to ground truth into {DEBUG_FOLDER}/, each step")
    add_flags(parser, seed={"help": "of initial weights, order and augmentation (default: 0)"})
    add_recipe_flags(parser)
    return parser.parse_args(args)


def main(args: argparse.Namespace) -> None:
    project = load_project(args.project)
    device = training_device(project.num_gpus, str(project.path))
    if project.num_gpus > 1 and not distributed.is_launched():
        distributed.launch_processes(project.num_gpus)
    if device.type == "cpu":
        keep_freed_memory()
    with distributed.report_once(), distributed.process_group(device):
        train(args, project, device)


def train(args: argparse.Namespace, project: Project, device: torch.device) -> None:
    check_flags(args, device)
    torch.manual_seed(args.seed)
    recipe = make_recipe(args.recipe, recipe_changes(args), args.accumulate)
    train_batches, statistics_batches, val_batches = open_data(args, project, recipe, device)
    run = open_run(args, project, recipe, device, len(train_batches.dataset))
    if distributed.rank() == 0:
        run.monitor = open_monitor(args, project, run, train_batches.dataset, val_batches.dataset)

    with StopRequest() as stop, save_on_failure(run):
        while not run.is_finished:
            train_epoch(run, train_batches, args, stop)
            if stop.agreed:
                break
            validated = None
            if run.length.validation_is_due(run.progress, run.seconds):
                validated = run.validate(statistics_batches, val_batches, stop)
                if stop.agreed:  # the resumed run starts with this validation
                    break
            improved = run.end_epoch(validated, args.es_min_delta)
            run.monitor.epoch(run.progress.history, validated, val_batches.dataset)
            stale = validated is not None and run.progress.epoch - 1 - run.progress.best_epoch > args.es_patience > 0
            if improved or stale or run.is_finished:
                run.save()
            if stale:
                distributed.print_rank0(f"stopped early: nothing better since epoch {run.progress.best_epoch + 1}")
                break
        if stop.agreed:
            run.save()
            distributed.print_rank0("stopped; to resume, repeat the command with --load_weights last")
    run.monitor.close()


def check_flags(args: argparse.Namespace, device: torch.device) -> None:
    """Raise InputError for flags that exclude each other."""
    if args.compile and args.checkpoint_activations:
        raise InputError(
            "--compile and --checkpoint_activations exclude each other, as the compiler decides what to keep: omit one"
        )
    if args.compile and device.type == "cpu":
        raise InputError("--compile speeds up no training step on a CPU, and the first one takes minutes: omit it")
    if args.compile:
        check_compiler(device)


def train_epoch(run: Run, train_batches: BatchLoader, args: argparse.Namespace, stop: StopRequest) -> None:
    """Train for the rest of the current epoch, or until a request to stop. Raises OutOfMemory and Diverged."""
    progress = run.progress
    train_batches.start_epoch(progress.epoch, progress.images_in_epoch)
    epochs = f"/{run.length.epochs}" if run.length.epochs else ""
    with progress_bar(f"epoch {progress.epoch + 1}{epochs}", train_batches) as bar:
        for batches in steps(train_batches, args.accumulate, stop):
            result = unless_out_of_memory(partial(run.train_step, batches))
            if result is None:
                if progress.images_in_epoch:
                    run.save()
                flags = run.recipe.batch_size, args.accumulate, args.checkpoint_activations, args.compile
                raise OutOfMemory(memory_advice(run, batches[0], *flags))
            count_skipped(progress, result, batches)
            bar.update(result.images)
            bar.set_postfix_str(step_summary(progress.step, result, run.learning_rate.value, progress.skipped))
            run.monitor.step(progress.step, batches, result, run.learning_rate.value)
            if progress.step % args.save_interval == 0:
                run.save()
            if run.is_finished:  # its minutes are over
                break


def steps(batches: BatchLoader, accumulate: int, stop: StopRequest) -> Iterator[list[Batch]]:
    """Yield the micro-batches of each step of an epoch. Ends on all ranks alike, with the epoch or a request to stop.

    An unusable image raises InputError on all ranks.
    """
    iterator = iter(batches)
    while True:
        micro_batches, problem = [], None
        try:
            micro_batches = list(islice(iterator, accumulate))
        except InputError as error:
            problem = error
        stop.agreed, failed = distributed.any_rank(stop.received, problem is not None)
        if failed:
            problems = distributed.all_gather(problem and str(problem))
            raise InputError(next(filter(None, problems)))
        if stop.agreed or not micro_batches:
            return
        yield micro_batches


def open_data(
    args: argparse.Namespace, project: Project, recipe: Recipe, device: torch.device
) -> tuple[BatchLoader, BatchLoader, BatchLoader]:
    """Return batches of the training set, of a part of it for the statistics of batch norms, and of the validation set.

    Training and validation are shared between the processes.
    """
    if distributed.rank() == 0:
        draw_if_absent(project, args.data_path)
    distributed.any_rank()  # a barrier: the others wait for it
    config = model_config(args.compound_coef)
    canvas = config.input_shape(args.image_size or project.image_size)
    folder = args.data_path / project.name
    train_set = CocoDataset(folder, project.train_set, project, canvas, args.seed, recipe.augmentation, args.max_images)
    val_set = CocoDataset(folder, project.val_set, project, canvas, max_images=args.max_images)

    rank, world_size, batch_size = distributed.rank(), distributed.world_size(), recipe.batch_size
    if world_size > 1 and len(train_set) < batch_size:
        raise InputError(f"--batch_size {batch_size} exceeds the {len(train_set)} images: pass a smaller one")
    share = distributed.local_batch_size(batch_size)
    if max(canvas) == config.size_divisor and min(share, len(train_set)) == 1 and not args.freeze_bn:
        raise InputError(
            "batch norm cannot train on a single image of this size: pass --batch_size 2 or more for each process"
        )
    sampler = EpochSampler(len(train_set), args.seed, batch_size, rank, world_size)
    load = partial(BatchLoader, num_workers=args.num_workers, pin_memory=device.type == "cuda")
    several = STATISTICS_BATCHES * share
    statistics_batches = load(train_set, several, sampler=images_for_statistics(len(train_set), several))
    val_share = range(rank, len(val_set), world_size)
    return load(train_set, share, sampler=sampler), statistics_batches, load(val_set, share, sampler=val_share)


def open_run(
    args: argparse.Namespace, project: Project, recipe: Recipe, device: torch.device, images_per_epoch: int
) -> Run:
    """Return the run to train: a new one from the weights that were asked for, or the last one resumed."""
    amp = autocast_dtype(args.amp, device)
    saved_path = args.saved_path / project.name
    network = EfficientDet(args.compound_coef, project.num_classes, project.anchor_ratios, project.anchor_scales)
    last, path = None, last_path(saved_path, args.compound_coef)
    if args.load_weights == "last":
        last = distributed.broadcast_from_rank0(lambda: load_last(saved_path, args.compound_coef))
        apply_weights(network, last["network"], path)
    else:
        load_initial_weights(args, network)
    run = Run(
        network,
        recipe,
        device,
        Checkpoints(saved_path, args.compound_coef, args.keep),
        length=run_length(args, recipe, images_per_epoch),
        images_per_epoch=images_per_epoch,
        images_per_process=distributed.local_batch_size(recipe.batch_size),
        seed=args.seed,
        amp=amp,
        head_only=args.head_only,
        freeze_bn=args.freeze_bn,
        less_memory=args.checkpoint_activations,
        compiled=compile_network(network) if args.compile else None,
    )
    if last:
        run.resume(last)
        distributed.print_rank0(f"resuming {path}: epoch {run.progress.epoch + 1}, step {run.progress.step}")
    if run.is_finished:
        done, flag = (args.minutes, "minutes") if args.minutes else (run.progress.epoch, "num_epochs")
        raise InputError(f"the run has finished its {done:g} {flag.removeprefix('num_')}: pass a larger --{flag}")
    return run


def run_length(args: argparse.Namespace, recipe: Recipe, images_per_epoch: int) -> Length:
    """Return the length that was asked for, or the recipe's."""
    if args.minutes:
        return Length(None, args.minutes, args.val_interval)
    steps_per_epoch = max(1, images_per_epoch // (recipe.batch_size * args.accumulate))
    epochs = args.num_epochs or -(-recipe.num_steps // steps_per_epoch) or DEFAULT_EPOCHS
    few = max(1, epochs // VALIDATIONS) if recipe.num_steps else 1
    return Length(epochs, val_interval=args.val_interval or few)


def load_initial_weights(args: argparse.Namespace, network: EfficientDet) -> None:
    """Load the files of --load_weights and --backbone_weights."""
    if args.load_weights:
        weights = find_weights(args.load_weights)
        if load_weights(network, weights, new_class_header=True):
            distributed.print_rank0(f"{weights} has other classes: new class header for {network.num_classes}")
    if args.backbone_weights:
        load_backbone(network, args.backbone_weights)


def open_monitor(
    args: argparse.Namespace, project: Project, run: Run, train_set: CocoDataset, val_set: CocoDataset
) -> Monitor:
    """Print what is about to be trained, and return the monitor."""
    log_path = args.log_path / project.name
    make_writable_folder(run.checkpoints.folder)
    make_writable_folder(log_path)
    print(report_before_training(train_set, val_set, run.network.config))
    trainable = sum(parameter.numel() for parameter in run.network.parameters() if parameter.requires_grad)
    processes = distributed.world_size()
    where = f"{processes} processes, first on {run.device}" if processes > 1 else str(run.device)
    amp = str(run.step.amp).removeprefix("torch.") if run.step.amp else "float32"
    images = f"{run.recipe.batch_size} images" + (f" x {args.accumulate} batches" if args.accumulate > 1 else "")
    height, width = train_set.canvas
    steps = len(train_set) // (run.recipe.batch_size * args.accumulate) or 1
    epochs = run.length.epochs
    length = f"{epochs * steps:,} steps ({epochs} epochs)" if epochs else f"{args.minutes:g} minutes"
    print(
        f"D{args.compound_coef} at {width} x {height} on {where}, {amp}: {trainable:,} trainable parameters, "
        f"{images} per step, {length}, recipe {args.recipe}, {run.recipe.optim} with lr {run.recipe.lr:g}\n"
        f"logs: {log_path}/history.csv, {log_path}/curves.png; tensorboard --logdir {log_path}"
    )
    return Monitor(log_path, project, run.progress.step, DEBUG_FOLDER if args.debug else None)


def command() -> None:
    """Run the script, as `efficientdet-train` does."""
    with exit_on_input_error():
        main(parse_args())


if __name__ == "__main__":
    command()
