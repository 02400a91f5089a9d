"""Train EfficientDet on a project's data set.

  python train.py -p coco -c 2 --batch_size 8 --lr 1e-5 -w weights/efficientdet-d2.pth   fine-tune published weights
  python train.py -p coco -c 2 --batch_size 8 --lr 1e-3 --head_only                      train the heads alone
  python train.py -p coco -c 2 --batch_size 8 -w last                                    go on after Ctrl+C

Data lies in datasets/{project}/{set}/*.jpg and datasets/{project}/annotations/instances_{set}.json, COCO format.
Ctrl+C finishes the step in progress, saves a checkpoint and exits.
"""

import argparse
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from tensorboardX import SummaryWriter
from tqdm import tqdm

from efficientdet.checkpoint import find_weights, load_last, load_weights, save_checkpoint
from efficientdet.config import model_config
from efficientdet.dataset import Batch, BatchLoader, CocoDataset, EpochSampler
from efficientdet.engine import LossMean, NonFiniteLossError, StopRequest, set_training_mode, train_step, validate
from efficientdet.loss import PADDING_CLASS, DetectionLoss
from efficientdet.model import EfficientDet, Outputs
from efficientdet.postprocess import postprocess
from efficientdet.project import Project, load_project
from utils.cli import (
    BOOLEAN,
    chosen_image_size,
    default_workers,
    non_negative_float,
    non_negative_int,
    positive_float,
    positive_int,
)
from utils.device import cuda_device
from utils.errors import InputError, exit_on_input_error
from utils.files import make_writable_folder
from utils.images import write_image
from utils.visualize import draw_boxes, side_by_side

WORKERS = default_workers()
DEBUG_FOLDER = Path("test")
DEBUG_SCORE_THRESHOLD = 0.2
DEBUG_IOU_THRESHOLD = 0.2


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("-p", "--project", default="coco", help="a name under projects/, or a YAML file (default: coco)")
    add("-c", "--compound_coef", type=int, default=0, choices=range(9), help="D0 to D7, 8 is D7X (default: 0)")
    add("-n", "--num_workers", type=non_negative_int, default=WORKERS, help=f"loading processes (default: {WORKERS})")
    add("--batch_size", type=positive_int, default=12, help="images per step (default: 12)")
    add("--head_only", **BOOLEAN, default=False, help="freeze backbone and BiFPN, train the heads")
    add("--lr", type=positive_float, default=1e-4, help="learning rate at the start (default: 1e-4)")
    add("--optim", choices=("adamw", "sgd"), default="adamw", help="sgd is for the end of long runs (default: adamw)")
    add("--num_epochs", type=positive_int, default=500, help="epochs in all (default: 500)")
    add("--val_interval", type=positive_int, default=1, help="validate every so many epochs (default: 1)")
    add("--save_interval", type=positive_int, default=500, help="save every so many steps (default: 500)")
    add("--lr_patience", type=non_negative_int, default=3, help="lr / 10 after more epochs without gain (default: 3)")
    add(
        "--es_min_delta",
        type=non_negative_float,
        default=0.0,
        help="early stopping: least gain that counts (default: 0)",
    )
    add("--es_patience", type=non_negative_int, default=0, help="... epochs without it before stopping; 0 never stops")
    add("--data_path", type=Path, default=Path("datasets"), help="folder of the projects' data (default: datasets/)")
    add("--log_path", type=Path, default=Path("logs"), help="folder of TensorBoard's files (default: logs/)")
    add(
        "-w",
        "--load_weights",
        metavar="FILE|last",
        help="start from a weights file, or go on where the last run stopped",
    )
    add("--saved_path", type=Path, default=Path("logs"), help="folder of the checkpoints (default: logs/)")
    add("--debug", **BOOLEAN, default=False, help=f"draw predictions beside the truth into {DEBUG_FOLDER}/, every step")
    add("--image_size", type=positive_int, help="side of the input, pixels (default: the coefficient's, 512 for D0)")
    add("--max_images", type=positive_int, help="use only the first so many images of each set, to try a run")
    add("--seed", type=non_negative_int, default=0, help="of weights, order and augmentation (default: 0)")
    return parser.parse_args()


@dataclass
class Progress:
    """Where a run stands."""

    epoch: int = 0
    step: int = 0
    images_in_epoch: int = 0  # of the current epoch, seen so far
    best_loss: float = float("inf")  # on the validation set
    best_epoch: int = 0


def main(args: argparse.Namespace) -> None:
    project = load_project(args.project)
    device = training_device(project)
    torch.manual_seed(args.seed)
    config = model_config(args.compound_coef)
    image_size = chosen_image_size(args.image_size, config.input_size, config.size_divisor)
    folder, canvas = args.data_path / project.name, (image_size, image_size)
    train_set = CocoDataset(folder, project.train_set, project, canvas, args.seed, args.max_images)
    val_set = CocoDataset(folder, project.val_set, project, canvas, args.seed, args.max_images)
    if image_size == config.size_divisor and min(args.batch_size, len(train_set)) == 1:
        raise InputError("a single image of this size leaves batch norm one value: pass --batch_size 2 or more")
    sampler = EpochSampler(len(train_set), args.seed)
    pin_memory = device.type == "cuda"
    train_batches = BatchLoader(train_set, args.batch_size, args.num_workers, sampler, pin_memory)
    val_batches = BatchLoader(val_set, args.batch_size, args.num_workers, pin_memory=pin_memory)

    network = EfficientDet(args.compound_coef, project.num_classes, project.anchor_ratios, project.anchor_scales)
    saved_path = args.saved_path / project.name
    last = None
    if args.load_weights == "last":
        weights, last = load_last(saved_path, args.compound_coef)
        load_weights(network, weights)
    elif args.load_weights:
        weights = find_weights(args.load_weights)
        if load_weights(network, weights, new_class_header=True):
            print(f"{weights} has other classes: the class header starts afresh for {project.num_classes}")
    network.to(device, memory_format=torch.channels_last)

    set_training_mode(network, args.head_only)
    trainable = [parameter for parameter in network.parameters() if parameter.requires_grad]
    optimizer = make_optimizer(args.optim, trainable, args.lr)
    scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=args.lr_patience)
    progress, losses = Progress(), LossMean()
    settings = {"optim": args.optim, "head_only": args.head_only}
    order = {"seed": args.seed, "images": len(train_set)}
    if last:
        progress, losses = restore(last, optimizer, scheduler, settings)
        print(f"going on from {weights}: epoch {progress.epoch + 1}, step {progress.step}")
        if last["order"] != order and progress.images_in_epoch:
            print("other images or another --seed: the epoch begins anew")
            progress.images_in_epoch, losses = 0, LossMean()
        if last["lr"] != args.lr:  # the same --lr again leaves the schedule's own rate as it is
            print(f"--lr {args.lr:g} takes the place of the schedule's {optimizer.param_groups[0]['lr']:g}")
            for group in optimizer.param_groups:
                group["lr"] = args.lr
    if progress.epoch >= args.num_epochs:
        raise InputError(
            f"{weights} has all its {progress.epoch} epochs behind it: pass a larger --num_epochs to go on"
        )

    def save() -> None:
        state = {
            "progress": asdict(progress),
            "losses": losses.state(),
            "settings": settings,
            "order": order,
            "lr": args.lr,
            "random": torch.get_rng_state(),
            "optimizer": optimizer.state_dict(),
            "scheduler": scheduler.state_dict(),
        }
        path = save_checkpoint(network, state, saved_path, progress.epoch, progress.step)
        tqdm.write(f"saved {path}")

    make_writable_folder(saved_path)
    make_writable_folder(args.log_path / project.name)
    writer = SummaryWriter(str(args.log_path / project.name / "tensorboard"))
    loss = DetectionLoss()
    print(
        f"D{args.compound_coef} at {image_size} x {image_size} on {device}: "
        f"{sum(parameter.numel() for parameter in trainable):,} parameters to train, "
        f"{len(train_set)} images to train on, {len(val_set)} to validate; "
        f"TensorBoard: tensorboard --logdir {args.log_path / project.name}"
    )

    with StopRequest() as stop, writer, kept_on_input_error(save, progress):
        while progress.epoch < args.num_epochs:
            # One epoch of training, from where it was left.
            sampler.epoch, sampler.start = progress.epoch, progress.images_in_epoch
            set_training_mode(network, args.head_only)
            bar = progress_bar(f"epoch {progress.epoch + 1}/{args.num_epochs}", train_batches)
            with bar:
                for batch in train_batches:
                    batch = batch.to(device)
                    step_losses, outputs = train_step(network, loss, optimizer, batch)
                    progress.step += 1
                    progress.images_in_epoch += len(batch.image_ids)
                    losses.add(len(batch.image_ids), step_losses)

                    lr = optimizer.param_groups[0]["lr"]
                    classification, regression = (part.item() for part in step_losses)
                    bar.update(len(batch.image_ids))
                    bar.set_postfix_str(
                        f"step {progress.step}, class {classification:.4f}, box {regression:.4f}, lr {lr:g}"
                    )
                    writer.add_scalar("train/classification_loss", classification, progress.step)
                    writer.add_scalar("train/regression_loss", regression, progress.step)
                    writer.add_scalar("train/loss", classification + regression, progress.step)
                    writer.add_scalar("train/learning_rate", lr, progress.step)
                    if args.debug:
                        write_debug_pictures(batch, outputs, project)
                    if stop.received:
                        break
                    if progress.step % args.save_interval == 0:
                        save()
            if stop.received:
                break

            # Validation. Interrupted here, the run comes back to it: the epoch ends below.
            improved = tired = False
            if (progress.epoch + 1) % args.val_interval == 0:
                val_losses = LossMean()
                with progress_bar("validation", val_batches) as bar:
                    for images, batch_losses in validate(network, loss, val_batches, device):
                        val_losses.add(images, batch_losses)
                        bar.update(images)
                        if stop.received:
                            break
                if stop.received:
                    break
                tqdm.write(
                    f"epoch {progress.epoch + 1}: train loss {losses.total:.4f}; validation loss "
                    f"{val_losses.total:.4f} (class {val_losses.classification:.4f}, box {val_losses.regression:.4f})"
                )
                writer.add_scalar("val/classification_loss", val_losses.classification, progress.step)
                writer.add_scalar("val/regression_loss", val_losses.regression, progress.step)
                writer.add_scalar("val/loss", val_losses.total, progress.step)
                improved = val_losses.total + args.es_min_delta < progress.best_loss
                if improved:
                    progress.best_loss, progress.best_epoch = val_losses.total, progress.epoch
                tired = progress.epoch - progress.best_epoch > args.es_patience > 0

            scheduler.step(losses.total)
            progress.epoch, progress.images_in_epoch, losses = progress.epoch + 1, 0, LossMean()
            if improved or tired or progress.epoch == args.num_epochs:
                save()
            if tired:
                print(
                    f"stopped early: no validation loss below {progress.best_loss:.4f} since epoch "
                    f"{progress.best_epoch + 1}"
                )
                break

        if stop.received:
            save()
            print("stopped; go on with the same command and --load_weights last")


@contextmanager
def kept_on_input_error(save: Callable[[], None], progress: Progress) -> Iterator[None]:
    """A picture that cannot be used ends the run, but not at the cost of the steps made before it."""
    steps_before = progress.step
    try:
        yield
    except NonFiniteLossError:  # the network's statistics may be spoilt: the last checkpoint is the better one
        raise
    except InputError:
        if progress.step > steps_before:
            save()
        raise


def training_device(project: Project) -> torch.device:
    """The device that the project's `num_gpus` asks for."""
    if project.num_gpus == 0:
        return torch.device("cpu")
    present = torch.cuda.device_count()
    if project.num_gpus > present:
        raise InputError(
            f"{project.path} asks for num_gpus: {project.num_gpus}, but PyTorch finds {present} here: "
            f"set num_gpus to {present}" + ("" if present else " to train on the CPU")
        )
    if project.num_gpus > 1:
        print(f"num_gpus: {project.num_gpus}, but this version trains on one: the first")
    return cuda_device(0)


def make_optimizer(name: str, parameters: list[torch.nn.Parameter], lr: float) -> torch.optim.Optimizer:
    """The reference's two."""
    if name == "adamw":
        return torch.optim.AdamW(parameters, lr)
    return torch.optim.SGD(parameters, lr, momentum=0.9, nesterov=True)


def restore(
    state: dict,
    optimizer: torch.optim.Optimizer,
    scheduler: torch.optim.lr_scheduler.ReduceLROnPlateau,
    settings: dict,
) -> tuple[Progress, LossMean]:
    """Put a run's optimizer, scheduler and random state back as they were saved. InputError when the flags differ."""
    try:
        for name, value in settings.items():
            if (was := state["settings"][name]) != value:
                raise InputError(
                    f"the run to go on with had --{name} {was}: pass the same, or its weights file instead of last"
                )
        optimizer.load_state_dict(state["optimizer"])
        scheduler.load_state_dict(state["scheduler"])
        torch.set_rng_state(state["random"])
        return Progress(**state["progress"]), LossMean(**state["losses"])
    except (KeyError, TypeError) as error:
        raise InputError(
            f"the training state beside {state['weights']} is of another version ({error}): pass the weights instead"
        ) from error


def progress_bar(title: str, batches: BatchLoader) -> tqdm:
    """A bar that counts images. On a terminal of 80 columns only what stands last is cut: counts, time left, bar."""
    layout = "{desc} {percentage:3.0f}% {rate_noinv_fmt}{postfix} {n_fmt}/{total_fmt} {remaining} |{bar}|"
    return tqdm(desc=title, total=batches.num_images, unit="img", bar_format=layout, dynamic_ncols=True)


def write_debug_pictures(batch: Batch, outputs: Outputs, project: Project) -> None:
    """For each image of the batch `test/{project}_{image_id}.jpg`: predictions on the left, the truth on the right."""
    outputs = Outputs(*(part.detach() for part in outputs))
    detections = postprocess(outputs, *batch.images.shape[-2:], DEBUG_SCORE_THRESHOLD, DEBUG_IOU_THRESHOLD)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (project.mean, project.std))
    for i, (image_id, found) in enumerate(zip(batch.image_ids, detections)):
        pixels = (batch.images[i].cpu() * std + mean).mul(255).round().clamp(0, 255).byte().permute(1, 2, 0).numpy()
        real = batch.targets.class_ids[i] != PADDING_CLASS
        panels = []
        for boxes, class_ids, scores in (
            (found.boxes, found.class_ids, found.scores),
            (batch.targets.boxes[i][real], batch.targets.class_ids[i][real], None),
        ):
            names = [project.class_names[class_id] for class_id in class_ids.tolist()]
            if scores is not None:
                names = [f"{name} {score:.2f}" for name, score in zip(names, scores.tolist())]
            panels.append(draw_boxes(pixels, boxes.cpu().numpy(), class_ids.cpu().numpy(), names))
        write_image(DEBUG_FOLDER / f"{project.name}_{image_id}.jpg", side_by_side(*panels))


if __name__ == "__main__":
    with exit_on_input_error():
        main(parse_args())
