"""A training run: everything that changes while it trains, saved so that it resumes as if never interrupted."""

import math
import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict
from operator import sub

import torch
from torch import nn
from tqdm import tqdm

from efficientdet.data.loader import Batch, BatchLoader
from efficientdet.model.loss import DetectionLoss
from efficientdet.model.network import EfficientDet
from efficientdet.training.activation_checkpointing import checkpoint_activations
from efficientdet.training.checkpoints import Checkpoints
from efficientdet.training.monitor import Monitor, NoMonitor, progress_bar
from efficientdet.training.norm_statistics import average_over_processes, estimate
from efficientdet.training.optimization import LearningRate, WeightAverage, make_optimizer
from efficientdet.training.progress import Length, Progress
from efficientdet.training.recipe import Recipe
from efficientdet.training.step import (
    StepOutcome,
    StepResult,
    TrainingStep,
    in_parallel,
    set_drop_connect,
    set_training_mode,
)
from efficientdet.training.validation import LossMean, Validated, validate
from utils import distributed
from utils.errors import InputError
from utils.stop import StopRequest

TIMED_STEPS = 20


class Run:
    """Network, moving average, optimizer, learning rate, step, losses, progress and checkpoints of a training.

    Args:
        network: with its initial weights; moved to `device`.
        images_per_epoch: of the whole training set.
        images_per_process: of a batch on this process.
        seed: of the order of images; with `images_per_epoch` it decides whether an epoch can be resumed.
        amp: dtype of autocast; None computes in float32.
        head_only, freeze_bn: as for `set_training_mode`.
        less_memory: recompute activations in the backward pass.
        compiled: the network wrapped by `compile_network`, for training alone: validation has batches of other sizes.
    """

    def __init__(
        self,
        network: EfficientDet,
        recipe: Recipe,
        device: torch.device,
        checkpoints: Checkpoints,
        *,
        length: Length,
        images_per_epoch: int,
        images_per_process: int,
        seed: int,
        amp: torch.dtype | None = None,
        head_only: bool = False,
        freeze_bn: bool = False,
        less_memory: bool = False,
        compiled: nn.Module | None = None,
    ):
        self.recipe = recipe
        self.device = device
        self.checkpoints = checkpoints
        self.images_per_epoch = images_per_epoch
        self.length = length
        self.head_only, self.freeze_bn = head_only, freeze_bn
        self.network = network.to(device).to(memory_format=torch.channels_last)
        set_training_mode(network, head_only, freeze_bn)
        set_drop_connect(network, recipe.drop_connect)
        self.average = WeightAverage(network, recipe.ema_decay) if recipe.ema_decay else None
        # What is validated, and what weights files hold.
        self.result: nn.Module = self.average.network if self.average else network
        if less_memory:
            checkpoint_activations(network)
        self.optimizer = make_optimizer(recipe, network, amp)
        self.learning_rate = LearningRate(recipe, self.optimizer, length.epochs or math.inf)
        loss = DetectionLoss.from_recipe(
            recipe, num_processes=distributed.world_size(), all_reduce_sum=distributed.all_reduce_sum
        )
        self.val_loss = DetectionLoss.from_recipe(recipe)
        trained = in_parallel(compiled or network, device, images_per_process, False if freeze_bn else recipe.sync_bn)
        self.step = TrainingStep(trained, loss, self.optimizer, amp, recipe.clip_norm)
        self.progress, self.losses = Progress(), LossMean()
        self._start = time.monotonic()
        self._step_times: list[float] = []
        self.monitor: Monitor | NoMonitor = NoMonitor()
        self._order = {"seed": seed, "images": images_per_epoch}
        optim, kernels_only = recipe.optim, recipe.decay_kernels_only
        # A run can be resumed with these values only.
        self._settings = {"optim": optim, "decay_kernels_only": kernels_only, "head_only": head_only}
        if distributed.rank() > 0:
            torch.manual_seed(seed + distributed.rank())  # for a drop-connect of its own

    @property
    def seconds(self) -> float:
        """The seconds since the start, without interruptions, the same in all processes; 0 where they do not matter.

        A state that is saved after some epochs must not depend on the time that they took.
        """
        if self.length.minutes is None:
            return 0.0
        of_rank0 = time.monotonic() - self._start if distributed.rank() == 0 else 0.0
        return distributed.all_reduce_sum(torch.tensor(of_rank0, device=self.device)).item()

    @property
    def is_finished(self) -> bool:
        """Whether the run has reached its length."""
        return self.length.is_reached(self.progress, self.seconds)

    def train_step(self, batches: Sequence[Batch]) -> StepResult:
        """Train on the micro-batches of a step, and count it."""
        epochs_done = self.progress.epoch + self.progress.images_in_epoch / self.images_per_epoch
        share_done = self.length.share_done(self.progress, self.seconds)
        self.learning_rate.before_step(epochs_done, self.progress.step, share_done)
        result = self.step([batch.to(self.device) for batch in batches])
        self.progress.step += 1
        self.progress.images_in_epoch += result.images
        if result.outcome is StepOutcome.UPDATED:
            self.losses.add(result.images, result.losses)
            if self.average:
                self.average.update(self.network)
        self._report_duration(result.images)
        return result

    def _report_duration(self, images_per_step: int) -> None:
        """Print how long the rest of the run will take, once the first steps have been timed."""
        self._step_times.append(time.monotonic())
        if len(self._step_times) == TIMED_STEPS and self.length.epochs and distributed.rank() == 0:
            step = statistics.median(map(sub, self._step_times[1:], self._step_times))
            images = (self.length.epochs - self.progress.epoch) * self.images_per_epoch - self.progress.images_in_epoch
            minutes = step * images / images_per_step / 60
            tqdm.write(f"{1000 * step:.0f} ms per step: about {minutes:.0f} min from here, and validation")

    def validate(
        self, statistics_batches: BatchLoader, val_batches: BatchLoader, stop: StopRequest
    ) -> Validated | None:
        """Validate the average, or without one the network, with the statistics of its batch norms up to date.

        `statistics_batches` are of the training set. A request to stop ends validation without a result.
        """
        start = self.seconds
        average_over_processes(self.network)
        if self.average:
            estimate(self.average.network, self.network, statistics_batches, self.step.amp, stop)
        with progress_bar("validation", val_batches) as bar:
            validated = validate(
                self.result, self.val_loss, val_batches, val_batches.dataset, self.device, self.step.amp, stop, bar
            )
        self.progress.validated_at = self.seconds
        self.progress.validation_seconds = self.progress.validated_at - start
        return validated

    def end_epoch(self, validated: Validated | None, min_delta: float = 0.0) -> bool:
        """Close the epoch, with the result of its validation if it had one, and prepare the next.

        The weights with the highest average precision so far (without objects: the lowest loss) are saved as the best.
        Returns whether there are such, by more than `min_delta`.
        """
        progress = self.progress
        improved = False
        if validated:
            ap = validated.ap
            score = ap if ap >= 0 else -validated.losses.total
            improved = score > progress.best_score + min_delta
        if improved:
            progress.best_score, progress.best_epoch = score, progress.epoch
            if distributed.rank() == 0:
                saved = self.checkpoints.save_best(self.result)
                tqdm.write(
                    f"best AP so far {ap:.3f}: saved {saved}" if ap >= 0 else f"lowest loss so far: saved {saved}"
                )
        progress.history.append(self._history_row(validated))
        progress.epoch, progress.images_in_epoch = progress.epoch + 1, 0
        self.learning_rate.after_epoch(progress.epoch, self.losses.total)
        self.losses = LossMean()
        set_training_mode(self.network, self.head_only, self.freeze_bn)
        return improved

    def _history_row(self, validated: Validated | None) -> dict[str, float]:
        """Return the current epoch's row of history.csv."""
        row = {
            "epoch": self.progress.epoch + 1,
            "step": self.progress.step,
            "lr": self.learning_rate.value,
            "train_loss": self.losses.total,
            "train_class": self.losses.classification,
            "train_box": self.losses.regression,
            "skipped": self.progress.skipped,
        }
        if validated:
            losses = validated.losses
            row |= {"val_loss": losses.total, "val_class": losses.classification, "val_box": losses.regression}
            if validated.ap >= 0:
                row |= dict(zip(("AP", "AP50", "AP75"), validated.evaluation.numbers.tolist()))
        return row

    def save(self) -> None:
        """Save the weights, averaged if an average is kept, and the state to resume from.

        Called on all ranks; rank 0 writes.
        """
        self.progress.seconds = self.seconds
        average_over_processes(self.network)
        random = distributed.all_gather(_random_state(self.device))
        if distributed.rank() > 0:
            return
        state = {
            "progress": asdict(self.progress),
            "losses": vars(self.losses),
            "settings": self._settings,
            "order": self._order,
            "lr": self.recipe.lr,
            "random": random,
            "optimizer": self.optimizer.state_dict(),
            "learning_rate": self.learning_rate.state_dict(),
            "scaler": self.step.scaler.state_dict(),
            "average": self.average and self.average.state_dict(),
        }
        self.monitor.flush()  # first: a kill right after saving must not lose curves
        path = self.checkpoints.save(self.network, state, self.progress.epoch, self.progress.step, self.result)
        tqdm.write(f"saved {path}")

    def resume(self, state: dict) -> None:
        """Restore a `state` that `save` has written, except for the weights. Raises InputError if the flags differ."""
        try:
            for name, value in self._settings.items():
                if (saved := state["settings"][name]) != value:
                    raise InputError(
                        f"the run to resume had --{name} {saved}: pass the same, or its weights file instead of last"
                    )
            self.optimizer.load_state_dict(state["optimizer"])
            self.learning_rate.load_state_dict(state["learning_rate"])
            if self.step.scaler.is_enabled() and state["scaler"]:
                self.step.scaler.load_state_dict(state["scaler"])
            if self.average and state["average"]:
                self.average.load_state_dict(state["average"])
            if distributed.rank() < len(state["random"]):
                _set_random_state(state["random"][distributed.rank()])
            self.progress, self.losses = Progress(**state["progress"]), LossMean(**state["losses"])
            self.checkpoints.written = state["written"]
            self._start = time.monotonic() - self.progress.seconds
            same_order, saved_lr = state["order"] == self._order, state["lr"]
        except (KeyError, TypeError) as error:
            raise InputError(
                f"the last run was made by another version ({error}): pass its weights file instead of last"
            ) from error
        if self.progress.images_in_epoch and not same_order:
            distributed.print_rank0("other images or another --seed: the epoch starts again")
            self.progress.images_in_epoch, self.losses = 0, LossMean()
        if saved_lr != self.recipe.lr:  # the same --lr as before leaves the rate that the schedule has reached
            distributed.print_rank0(f"lr {self.recipe.lr:g} replaces the schedule's {self.learning_rate.base:g}")
            self.learning_rate.base = self.recipe.lr


def _random_state(device: torch.device) -> dict[str, torch.Tensor]:
    """Return the state of this process's generators. Order and augmentation need none: seed and epoch decide them."""
    state = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


def _set_random_state(state: dict[str, torch.Tensor]) -> None:
    torch.set_rng_state(state["cpu"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"], distributed.local_rank())
