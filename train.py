"""Train EfficientDet on a project's data set.

  python train.py -p shapes --batch_size 8 --recipe official --optim adamw --lr 2e-3    the data set that comes with it
  python train.py -p coco -c 2 --batch_size 8 --lr 1e-5 -w weights/efficientdet-d2.pth   fine-tune published weights
  python train.py -p coco -c 2 --batch_size 8 --lr 1e-3 --head_only                      train the heads alone
  python train.py -p coco -c 2 --batch_size 8 -w last                                    go on after Ctrl+C
  torchrun --nproc_per_node 4 train.py -p coco -c 2 --batch_size 32                      several GPUs, or machines

Data lies in datasets/{project}/{set}/*.jpg and datasets/{project}/annotations/instances_{set}.json, COCO format.
Ctrl+C finishes the step in progress, saves a checkpoint and exits.
"""

import argparse
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields
from itertools import islice
from pathlib import Path

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

from efficientdet.check.report import report_before_training
from efficientdet.checkpoints.find import find_weights, last_path
from efficientdet.checkpoints.loading import fit_weights, load_backbone, load_weights
from efficientdet.config import model_config
from efficientdet.data.dataset import CocoDataset
from efficientdet.data.loader import Batch, BatchLoader, EpochSampler, is_dead_worker
from efficientdet.data.shapes import draw_if_absent
from efficientdet.model.loss import DetectionLoss
from efficientdet.model.network import EfficientDet
from efficientdet.project import Project, load_project
from efficientdet.runtime.modes import compile_network
from efficientdet.training.activation_checkpointing import checkpoint_activations
from efficientdet.training.checkpoints import Checkpoints, load_last
from efficientdet.training.failures import fitting_batch_size
from efficientdet.training.monitor import Monitor, write_debug_images
from efficientdet.training.optimization import LearningRate, WeightAverage, make_optimizer
from efficientdet.training.recipe import RECIPES, Recipe, make_recipe, recipe_changes
from efficientdet.training.step import StepResult, TrainingStep, set_training_mode
from efficientdet.training.validation import LossMean, evaluate_networks
from utils import distributed
from utils.cli import (
    BOOLEAN,
    default_workers,
    image_size,
    non_negative_float,
    non_negative_int,
    positive_int,
)
from utils.device import autocast_dtype, check_compiler, cuda_device, is_out_of_memory, keep_freed_memory
from utils.errors import InputError, exit_on_input_error
from utils.files import make_writable_folder
from utils.stop import StopRequest

WORKERS = default_workers()
DEBUG_FOLDER = Path("test")
MAX_SKIPPED_IN_A_ROW = 10
SYNC_BN_BELOW = 4  # images per GPU


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("-p", "--project", default="coco", help="a name under projects/, or a YAML file (default: coco)")
    add("-c", "--compound_coef", type=int, default=0, choices=range(9), help="D0 to D7, 8 is D7X (default: 0)")
    add("-n", "--num_workers", type=non_negative_int, default=WORKERS, help=f"loading processes (default: {WORKERS})")
    add("--batch_size", type=positive_int, default=12, help="images per step, of all GPUs together (default: 12)")
    add("--accumulate", type=positive_int, default=1, help="so many batches make one step, to save memory (default: 1)")
    add(
        "--checkpoint_activations",
        **BOOLEAN,
        default=False,
        help="do not keep activations for the backward pass, but compute them again in it: the same training in half "
        "the memory (a third of it with D5), for a third more time. For D5 to D7X, and for larger batches",
    )
    add(
        "--compile",
        **BOOLEAN,
        default=False,
        help="train through torch.compile, on a GPU: the first step waits for minutes, the next run's for less. (On a "
        "CPU no step gets faster by it)",
    )
    add("--head_only", **BOOLEAN, default=False, help="freeze backbone and BiFPN, train the heads")
    add("--freeze_bn", **BOOLEAN, default=False, help="freeze the batch norms' statistics, for small batches")
    add("--num_epochs", type=positive_int, default=500, help="epochs in all (default: 500)")
    add("--val_interval", type=positive_int, default=1, help="validate every so many epochs (default: 1)")
    add("--save_interval", type=positive_int, default=500, help="save every so many steps (default: 500)")
    add("--keep", type=non_negative_int, default=3, help="checkpoints of the run to keep, 0 for all (default: 3)")
    add(
        "--es_min_delta",
        type=non_negative_float,
        default=0.0,
        help="early stopping: least gain that counts (default: 0)",
    )
    add("--es_patience", type=non_negative_int, default=0, help="... epochs without it before stopping; 0 never stops")
    add("--data_path", type=Path, default=Path("datasets"), help="folder of the projects' data (default: datasets/)")
    add("--log_path", type=Path, default=Path("logs"), help="folder of the curves and TensorBoard (default: logs/)")
    add(
        "-w",
        "--load_weights",
        metavar="FILE|last",
        help="start from a weights file, or go on where the last run stopped",
    )
    add(
        "--backbone_weights",
        metavar="FILE|imagenet",
        help="an ImageNet backbone: a file of EfficientNet-PyTorch, torchvision or timm, or imagenet to fetch it",
    )
    add("--saved_path", type=Path, default=Path("logs"), help="folder of the checkpoints (default: logs/)")
    add("--debug", **BOOLEAN, default=False, help=f"draw predictions beside the truth into {DEBUG_FOLDER}/, every step")
    add(
        "--image_size", type=image_size, help="side of the input, or WIDTHxHEIGHT (default: project's or coefficient's)"
    )
    add("--max_images", type=positive_int, help="use only the first so many images of each set, to try a run")
    add("--seed", type=non_negative_int, default=0, help="of weights, order and augmentation (default: 0)")
    add("--amp", choices=("off", "bf16", "fp16"), help="mixed precision (default: bf16 where the hardware has it)")
    add("--sync_bn", **BOOLEAN, help=f"batch norms over all GPUs (default: below {SYNC_BN_BELOW} images per GPU)")

    recipe = parser.add_argument_group("recipe", "each flag below takes the place of one of the recipe's values")
    recipe.add_argument("--recipe", choices=tuple(RECIPES), default="reference", help="(default: reference)")
    kinds = {bool: BOOLEAN, int: {"type": non_negative_int}, str: {}, float: {"type": non_negative_float}}
    for value in fields(Recipe):
        kind = kinds[type(getattr(RECIPES["official"], value.name))]
        choices = {"choices": value.metadata["choices"]} if value.metadata["choices"] else {}
        values = ", ".join(f"{name}: {getattr(recipe, value.name)}" for name, recipe in RECIPES.items())
        recipe.add_argument(f"--{value.name}", **kind, **choices, help=f"{value.metadata['help']} ({values})")
    recipe.set_defaults(**{value.name: None for value in fields(Recipe)})
    return parser.parse_args()


@dataclass
class Progress:
    """Where a run stands."""

    epoch: int = 0
    step: int = 0
    images_in_epoch: int = 0  # of the current epoch, seen so far
    best_loss: float = float("inf")  # on the validation set
    best_epoch: int = 0
    best_ap: float = -1.0
    skipped: int = 0  # steps whose loss was not finite
    skipped_in_a_row: int = 0
    history: list[dict] = field(default_factory=list)  # a row for each epoch


def main(args: argparse.Namespace) -> None:
    project = load_project(args.project)
    device = training_device(project)
    if project.num_gpus > 1 and not distributed.is_started():
        distributed.start_processes(project.num_gpus)
    if device.type == "cpu":
        keep_freed_memory()
    with distributed.report_once(), distributed.process_group(device):
        train(args, project, device)


def train(args: argparse.Namespace, project: Project, device: torch.device) -> None:
    is_main = distributed.rank() == 0
    torch.manual_seed(args.seed)
    config = model_config(args.compound_coef)
    canvas = config.input_shape(args.image_size or project.image_size)
    recipe = make_recipe(args.recipe, args.batch_size * args.accumulate, recipe_changes(args))
    amp = autocast_dtype(args.amp, device)
    if args.compile and args.checkpoint_activations:
        raise InputError(
            "--compile and --checkpoint_activations exclude each other, as the compiler chooses itself what to keep: "
            "leave one out"
        )
    if args.compile and device.type == "cpu":
        raise InputError(
            "--compile makes no training step on a CPU faster, and the first one minutes slower: leave it out"
        )
    share = distributed.local_batch_size(args.batch_size)
    train_set, val_set = open_data(args, project, canvas, (recipe.min_scale, recipe.max_scale))
    if max(canvas) == config.size_divisor and min(share, len(train_set)) == 1 and not args.freeze_bn:
        raise InputError(
            "a single image of this size leaves batch norm one value: pass --batch_size 2 or more for each process"
        )
    place = (distributed.rank(), distributed.world_size())
    sampler = EpochSampler(len(train_set), args.seed, args.batch_size, *place)
    pin_memory = device.type == "cuda"
    train_batches = BatchLoader(train_set, share, args.num_workers, sampler, pin_memory)
    val_batches = BatchLoader(val_set, share, args.num_workers, range(place[0], len(val_set), place[1]), pin_memory)

    # The network, and what updates it.
    saved_path = args.saved_path / project.name
    network, last = open_network(args, project, saved_path)
    network.to(device).to(memory_format=torch.channels_last)
    set_training_mode(network, args.head_only, args.freeze_bn)
    average = WeightAverage(network, recipe.ema_decay) if recipe.ema_decay else None
    if args.checkpoint_activations:
        checkpoint_activations(network)
    optimizer = make_optimizer(recipe, network)
    learning_rate = LearningRate(recipe, optimizer, args.num_epochs)
    loss_settings = {
        name: getattr(recipe, name)
        for name in ("focal_gamma", "negative_iou", "force_best_anchor", "box_loss", "normalize")
    }
    loss = DetectionLoss(
        **loss_settings,
        num_processes=distributed.world_size(),
        all_reduce_sum=distributed.all_reduce_sum,
    )
    val_loss = DetectionLoss(**loss_settings)
    trained: nn.Module = network
    if args.compile:  # for training alone: validation has batches of other sizes
        check_compiler(device)
        trained = compile_network(network)
    step = TrainingStep(in_parallel(trained, device, args, share), loss, optimizer, amp, recipe.clip_norm)

    # Where it stands.
    progress, losses = Progress(), LossMean()
    checkpoints = Checkpoints(saved_path, args.compound_coef, args.keep)
    order = {"seed": args.seed, "images": len(train_set)}
    settings = {"optim": recipe.optim, "decay_kernels_only": recipe.decay_kernels_only, "head_only": args.head_only}
    if distributed.rank() > 0:
        torch.manual_seed(args.seed + distributed.rank())  # its own drop-connect
    if last:
        progress, losses = restore(last, optimizer, learning_rate, step.scaler, average, settings)
        checkpoints.written = last["written"]
        distributed.print_rank0(
            f"going on from {last_path(saved_path, args.compound_coef)}: epoch {progress.epoch + 1}, "
            f"step {progress.step}"
        )
        if last["order"] != order and progress.images_in_epoch:
            distributed.print_rank0("other images or another --seed: the epoch begins anew")
            progress.images_in_epoch, losses = 0, LossMean()
        if last["lr"] != recipe.lr:  # the same --lr again leaves the schedule's own rate as it is
            distributed.print_rank0(f"lr {recipe.lr:g} takes the place of the schedule's {learning_rate.base:g}")
            learning_rate.base = recipe.lr
    if progress.epoch >= args.num_epochs:
        raise InputError(f"all {progress.epoch} epochs of the run are done: pass a larger --num_epochs to go on")

    def save() -> None:
        random = distributed.all_gather(random_state(device))
        if monitor is None:
            return
        state = {
            "progress": asdict(progress),
            "losses": vars(losses),
            "settings": settings,
            "order": order,
            "lr": recipe.lr,
            "random": random,
            "optimizer": optimizer.state_dict(),
            "learning_rate": learning_rate.state_dict(),
            "scaler": step.scaler.state_dict(),
            "average": average and average.state_dict(),
        }
        monitor.flush()  # a kill after this loses no curve either
        tqdm.write(f"saved {checkpoints.save(network, state, progress.epoch, progress.step)}")

    log_path = args.log_path / project.name
    monitor = None  # but on rank 0
    if is_main:
        make_writable_folder(saved_path)
        make_writable_folder(log_path)
        monitor = Monitor(log_path, progress.step)
        print(report_before_training(train_set, val_set, config))
        print(run_report(args, network, recipe, canvas, device, amp, log_path))

    with StopRequest() as stop, kept_on_failure(save, progress):
        while progress.epoch < args.num_epochs:
            # One epoch of training, from where it was left.
            sampler.epoch, sampler.start = progress.epoch, progress.images_in_epoch
            set_training_mode(network, args.head_only, args.freeze_bn)
            bar = progress_bar(f"epoch {progress.epoch + 1}/{args.num_epochs}", train_batches)
            with bar:
                for batches in steps(train_batches, args.accumulate, stop):
                    learning_rate.before_step(progress.epoch + progress.images_in_epoch / len(train_set))
                    batches = [batch.to(device) for batch in batches]
                    result = attempt(step, batches)
                    if result is None:
                        if progress.images_in_epoch:
                            save()
                        raise OutOfMemory(advice_on_memory(step, batches[0], args))
                    images = sum(len(batch.image_ids) for batch in batches) * distributed.world_size()
                    progress.step += 1
                    progress.images_in_epoch += images
                    count_skipped(progress, result.skipped, batches)
                    if not result.skipped:
                        losses.add(images, result.losses)
                        if average:
                            average.update(network)

                    bar.update(images)
                    bar.set_postfix_str(
                        f"step {progress.step}, class {result.losses.classification:.4f}, "
                        f"box {result.losses.regression:.4f}, lr {learning_rate.value:g}"
                        + (f", {progress.skipped} skipped" if progress.skipped else "")
                    )
                    if monitor:
                        monitor.step(progress.step, result, learning_rate.value)
                    if args.debug and is_main:
                        write_debug_images(batches[-1], result.outputs, project, DEBUG_FOLDER)
                    if progress.step % args.save_interval == 0:
                        save()
            if stop.received:
                break

            # Validation. Interrupted here, the run comes back to it: the epoch ends below.
            row = {
                "epoch": progress.epoch + 1,
                "step": progress.step,
                "lr": learning_rate.value,
                "train_loss": losses.total,
                "train_class": losses.classification,
                "train_box": losses.regression,
                "skipped": progress.skipped,
            }
            improved = tired = False
            if (progress.epoch + 1) % args.val_interval == 0:
                networks = {"": network, "average_": average.network} if average else {"": network}
                with progress_bar("validation", val_batches) as bar:
                    outcomes = evaluate_networks(networks, val_loss, val_batches, val_set, device, amp, stop, bar)
                if stop.received:
                    break
                val_losses, evaluation, _ = outcomes[""]
                better = max(outcomes, key=lambda name: outcomes[name].evaluation.numbers[0])
                best_ap = outcomes[better].evaluation.numbers[0].item()
                improved = val_losses.total + args.es_min_delta < progress.best_loss
                if improved:
                    progress.best_loss, progress.best_epoch = val_losses.total, progress.epoch
                tired = progress.epoch - progress.best_epoch > args.es_patience > 0
                row |= {
                    "val_loss": val_losses.total,
                    "val_class": val_losses.classification,
                    "val_box": val_losses.regression,
                }
                if best_ap >= 0:  # COCO's -1 is no number: the set has no objects
                    row |= dict(zip(("AP", "AP50", "AP75"), evaluation.numbers.tolist()))
                    if average:
                        row["average_AP"] = outcomes["average_"].evaluation.numbers[0].item()
                if monitor:
                    tqdm.write(epoch_summary(row))
                    monitor.validation(row, outcomes[better].shown, val_set)
                    if best_ap > progress.best_ap:
                        tqdm.write(f"best AP so far {best_ap:.3f}: saved {checkpoints.save_best(networks[better])}")
                progress.best_ap = max(progress.best_ap, best_ap)

            progress.epoch, progress.images_in_epoch = progress.epoch + 1, 0
            learning_rate.after_epoch(progress.epoch, losses.total)
            losses = LossMean()
            progress.history.append(row)
            if monitor:
                monitor.epoch(progress.history)
            if improved or tired or progress.epoch == args.num_epochs:
                save()
            if tired:
                distributed.print_rank0(
                    f"stopped early: no validation loss below {progress.best_loss:.4f} since epoch "
                    f"{progress.best_epoch + 1}"
                )
                break

        if stop.received:
            save()
            distributed.print_rank0("stopped; go on with the same command and --load_weights last")
    if monitor:
        monitor.close()


def training_device(project: Project) -> torch.device:
    """The device of this process, by the project's `num_gpus`."""
    if project.num_gpus == 0:
        return torch.device("cpu")
    present = torch.cuda.device_count()
    if project.num_gpus > present and not distributed.is_started():
        raise InputError(
            f"{project.path} asks for num_gpus: {project.num_gpus}, but PyTorch finds {present} here: "
            f"set num_gpus to {present}" + ("" if present else " to train on the CPU")
        )
    device = cuda_device(distributed.local_rank())
    torch.cuda.set_device(device)
    return device


def open_data(
    args: argparse.Namespace, project: Project, canvas: tuple[int, int], scales: tuple[float, float]
) -> tuple[CocoDataset, CocoDataset]:
    """What to train on, and what to validate on."""
    if distributed.rank() == 0:
        draw_if_absent(project, args.data_path)
    distributed.any_rank()  # the others wait for it
    data = args.data_path / project.name
    train_set = CocoDataset(data, project.train_set, project, canvas, args.seed, scales, args.max_images)
    if distributed.world_size() > 1 and len(train_set) < args.batch_size:
        raise InputError(f"{len(train_set)} images are less than --batch_size {args.batch_size}: take a smaller one")
    return train_set, CocoDataset(data, project.val_set, project, canvas, max_images=args.max_images)


def open_network(args: argparse.Namespace, project: Project, saved_path: Path) -> tuple[EfficientDet, dict | None]:
    """The network with the weights to begin with, and the state of the run to go on with, if it is to."""
    network = EfficientDet(args.compound_coef, project.num_classes, project.anchor_ratios, project.anchor_scales)
    if args.load_weights == "last":
        last = distributed.broadcast_from_rank0(lambda: load_last(saved_path, args.compound_coef))
        fit_weights(network, last["network"], last_path(saved_path, args.compound_coef))
        return network, last
    if args.load_weights:
        weights = find_weights(args.load_weights)
        if load_weights(network, weights, new_class_header=True):
            distributed.print_rank0(
                f"{weights} has other classes: the class header starts afresh for {project.num_classes}"
            )
    if args.backbone_weights:
        load_backbone(network, args.backbone_weights)
    return network, None


def in_parallel(network: nn.Module, device: torch.device, args: argparse.Namespace, share: int) -> nn.Module:
    """The network as several processes train it together, the gradients averaged; alone, as it is."""
    if distributed.world_size() == 1:
        return network
    sync_bn = share < SYNC_BN_BELOW if args.sync_bn is None else args.sync_bn
    if sync_bn and device.type == "cuda" and not args.freeze_bn:
        nn.SyncBatchNorm.convert_sync_batchnorm(network)
    return DistributedDataParallel(network, device_ids=[device] if device.type == "cuda" else None)


def restore(
    state: dict,
    optimizer: torch.optim.Optimizer,
    learning_rate: LearningRate,
    scaler: torch.amp.GradScaler,
    average: WeightAverage | None,
    settings: dict,
) -> tuple[Progress, LossMean]:
    """Put all that a run has besides its weights back as it was saved. InputError when the flags differ."""
    try:
        for name, value in settings.items():
            if (was := state["settings"][name]) != value:
                raise InputError(
                    f"the run to go on with had --{name} {was}: pass the same, or its weights file instead of last"
                )
        optimizer.load_state_dict(state["optimizer"])
        learning_rate.load_state_dict(state["learning_rate"])
        if scaler.is_enabled() and state["scaler"]:
            scaler.load_state_dict(state["scaler"])
        if average and state["average"]:
            average.load_state_dict(state["average"])
        if distributed.rank() < len(state["random"]):
            set_random_state(state["random"][distributed.rank()])
        return Progress(**state["progress"]), LossMean(**state["losses"])
    except (KeyError, TypeError) as error:
        raise InputError(f"the last run was of another version ({error}): pass its weights file instead") from error


def random_state(device: torch.device) -> dict[str, torch.Tensor]:
    """The state of this process's generators. Order and augmentation need none: they follow from seed and epoch."""
    state = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


def set_random_state(state: dict[str, torch.Tensor]) -> None:
    torch.set_rng_state(state["cpu"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"], distributed.local_rank())


def steps(batches: BatchLoader, accumulate: int, stop: StopRequest) -> Iterator[list[Batch]]:
    """The micro-batches of each step of an epoch, until its end or a request to stop, in all processes alike."""
    iterator = iter(batches)
    while True:
        micro_batches, problem = [], None
        try:
            micro_batches = list(islice(iterator, accumulate))
        except InputError as error:
            problem = error
        stop.received, failed = distributed.any_rank(stop.received, problem is not None)
        if failed:
            problems = distributed.all_gather(problem and str(problem))
            raise InputError(next(filter(None, problems)))
        if stop.received or not micro_batches:
            return
        yield micro_batches


@contextmanager
def kept_on_failure(save: Callable[[], None], progress: Progress) -> Iterator[None]:
    """A bad image or a dead loading process ends the run, but not at the cost of the steps made before."""
    steps_before = progress.step
    try:
        yield
    except (OutOfMemory, Diverged):  # what could be kept is; now the network's state is no good
        raise
    except InputError:
        if progress.step > steps_before:
            save()
        raise
    except RuntimeError as error:
        if not is_dead_worker(error):
            raise
        if hasattr(signal, "SIGCHLD"):  # the next dead worker must not interrupt the saving
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        if progress.step > steps_before and distributed.world_size() == 1:
            save()
        raise InputError(f"{error}; if memory is short, go on with -w last and a smaller -n") from error


class OutOfMemory(InputError):
    """A batch did not fit."""


class Diverged(InputError):
    """The loss has not been finite for many steps."""


def attempt(step: TrainingStep, batches: list[Batch]) -> StepResult | None:
    """The outcome of a step; None when memory does not suffice, once all that the step held is free again."""
    try:
        return step(batches)
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
    return None


def advice_on_memory(step: TrainingStep, batch: Batch, args: argparse.Namespace) -> str:
    """What to do about a batch that does not fit, by trying smaller ones. The network is not to be used afterwards."""
    size = f"--batch_size {args.batch_size}"
    spare = "" if args.checkpoint_activations else "--checkpoint_activations, or "
    if distributed.world_size() > 1:  # the others wait for this process: no time to try
        return f"out of memory with {size} on {distributed.world_size()} processes: pass {spare}half as many images"
    if args.compile:  # each size would be compiled for minutes
        return f"out of memory with {size}: pass half as many images, or leave --compile out"
    fitting = fitting_batch_size(lambda part: step([part]), batch)
    if not fitting:
        return f"out of memory with {size}, and with a single image, too: pass {spare}a smaller --image_size or -c"
    accumulate = -(-args.batch_size * args.accumulate // fitting)
    return (
        f"out of memory with {size}; {fitting} fits: pass {spare}--batch_size {fitting}, with "
        f"--accumulate {accumulate} for steps of as many images as before"
    )


def count_skipped(progress: Progress, skipped: bool, batches: list[Batch]) -> None:
    """Count and tell of a step that was left out. `Diverged` when there were too many in a row."""
    if not skipped:
        progress.skipped_in_a_row = 0
        return
    progress.skipped += 1
    progress.skipped_in_a_row += 1
    image_ids = [image_id for batch in batches for image_id in batch.image_ids]
    tqdm.write(f"step {progress.step} is left out: loss or gradient is not finite, on images {image_ids}")
    if progress.skipped_in_a_row == MAX_SKIPPED_IN_A_ROW:
        raise Diverged(
            f"the loss was not finite for {MAX_SKIPPED_IN_A_ROW} steps in a row, at last on images {image_ids}: go on "
            "with -w last and a lower --lr, a longer --warmup_epochs or a --clip_norm, and look at those images' boxes"
        )


def epoch_summary(row: dict[str, float]) -> str:
    """What an epoch with validation has brought, in a line."""
    precision = "no objects to measure average precision on"
    if "AP" in row:
        average = f" ({row['average_AP']:.3f} by the averaged weights)" if "average_AP" in row else ""
        precision = f"AP {row['AP']:.3f}{average}, AP50 {row['AP50']:.3f}"
    return (
        f"epoch {row['epoch']}: train loss {row['train_loss']:.4f}; validation loss {row['val_loss']:.4f} "
        f"(class {row['val_class']:.4f}, box {row['val_box']:.4f}), {precision}"
    )


def run_report(
    args: argparse.Namespace,
    network: EfficientDet,
    recipe: Recipe,
    canvas: tuple[int, int],
    device: torch.device,
    amp: torch.dtype | None,
    log_path: Path,
) -> str:
    """What is about to happen."""
    trainable = sum(parameter.numel() for parameter in network.parameters() if parameter.requires_grad)
    processes = distributed.world_size()
    where = f"{processes} processes, first on {device}" if processes > 1 else str(device)
    together = f"{args.batch_size} images" + (f" x {args.accumulate} batches" if args.accumulate > 1 else "")
    return (
        f"D{args.compound_coef} at {canvas[1]} x {canvas[0]} on {where}, "
        f"{str(amp).removeprefix('torch.') if amp else 'float32'}: {trainable:,} parameters to train, "
        f"steps of {together}, recipe {args.recipe}, {recipe.optim} with lr {recipe.lr:g}\n"
        f"logs: {log_path}/history.csv, {log_path}/curves.png; tensorboard --logdir {log_path}"
    )


def progress_bar(title: str, batches: BatchLoader) -> tqdm:
    """A bar that counts images. On a terminal of 80 columns only what stands last is cut: counts, time left, bar."""
    layout = "{desc} {percentage:3.0f}% {rate_noinv_fmt}{postfix} {n_fmt}/{total_fmt} {remaining} |{bar}|"
    images = batches.num_images * distributed.world_size()
    hidden = distributed.rank() > 0
    return tqdm(desc=title, total=images, unit="img", bar_format=layout, dynamic_ncols=True, disable=hidden)


def command() -> None:
    """The script, and `efficientdet-train`."""
    with exit_on_input_error():
        main(parse_args())


if __name__ == "__main__":
    command()
