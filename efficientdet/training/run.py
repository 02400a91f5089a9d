"""A training run: everything that changes while it trains, saved so that it resumes as if never interrupted."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field

import torch
from torch import nn
from tqdm import tqdm

from efficientdet.data.loader import Batch
from efficientdet.model.loss import DetectionLoss
from efficientdet.model.network import EfficientDet
from efficientdet.training.activation_checkpointing import checkpoint_activations
from efficientdet.training.checkpoints import Checkpoints
from efficientdet.training.monitor import Monitor, NoMonitor
from efficientdet.training.optimization import LearningRate, WeightAverage, make_optimizer
from efficientdet.training.recipe import Recipe
from efficientdet.training.step import StepOutcome, StepResult, TrainingStep, in_parallel, set_training_mode
from efficientdet.training.validation import LossMean, Validated, best_of
from utils import distributed
from utils.errors import InputError


@dataclass
class Progress:
    """How far a run has come."""

    epoch: int = 0
    step: int = 0
    images_in_epoch: int = 0  # of the current epoch, seen so far
    best_loss: float = float("inf")  # on the validation set
    best_epoch: int = 0
    best_ap: float = -1.0
    skipped: int = 0  # steps whose loss or gradient was not finite
    skipped_in_a_row: int = 0
    history: list[dict] = field(default_factory=list)  # a row per epoch


class Run:
    """Network, moving average, optimizer, learning rate, step, losses, progress and checkpoints of a training.

    Args:
        network: with its initial weights; moved to `device`.
        images_per_epoch: of the whole training set.
        images_per_process: of a batch on this process.
        seed: of the order of images; with `images_per_epoch` it decides whether an epoch can be resumed.
        amp: dtype of autocast; None computes in float32.
        head_only, freeze_bn: as for `set_training_mode`.
        sync_bn: as for `in_parallel`.
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
        num_epochs: int,
        images_per_epoch: int,
        images_per_process: int,
        seed: int,
        amp: torch.dtype | None = None,
        head_only: bool = False,
        freeze_bn: bool = False,
        sync_bn: bool | None = None,
        less_memory: bool = False,
        compiled: nn.Module | None = None,
    ):
        self.recipe = recipe
        self.device = device
        self.checkpoints = checkpoints
        self.images_per_epoch = images_per_epoch
        self.head_only, self.freeze_bn = head_only, freeze_bn
        self.network = network.to(device).to(memory_format=torch.channels_last)
        set_training_mode(network, head_only, freeze_bn)
        self.average = WeightAverage(network, recipe.ema_decay) if recipe.ema_decay else None
        self.networks: dict[str, nn.Module] = {"": network}  # to validate
        if self.average:
            self.networks["average_"] = self.average.network
        if less_memory:
            checkpoint_activations(network)
        self.optimizer = make_optimizer(recipe, network)
        self.learning_rate = LearningRate(recipe, self.optimizer, num_epochs)
        loss = DetectionLoss.from_recipe(
            recipe, num_processes=distributed.world_size(), all_reduce_sum=distributed.all_reduce_sum
        )
        self.val_loss = DetectionLoss.from_recipe(recipe)
        trained = in_parallel(compiled or network, device, images_per_process, False if freeze_bn else sync_bn)
        self.step = TrainingStep(trained, loss, self.optimizer, amp, recipe.clip_norm)
        self.progress, self.losses = Progress(), LossMean()
        self.monitor: Monitor | NoMonitor = NoMonitor()
        self._order = {"seed": seed, "images": images_per_epoch}
        optim, kernels_only = recipe.optim, recipe.decay_kernels_only
        # A run can be resumed with these values only.
        self._settings = {"optim": optim, "decay_kernels_only": kernels_only, "head_only": head_only}
        if distributed.rank() > 0:
            torch.manual_seed(seed + distributed.rank())  # for a drop-connect of its own

    def train_step(self, batches: Sequence[Batch]) -> StepResult:
        """Train on the micro-batches of a step, and count it."""
        self.learning_rate.before_step(self.progress.epoch + self.progress.images_in_epoch / self.images_per_epoch)
        result = self.step([batch.to(self.device) for batch in batches])
        self.progress.step += 1
        self.progress.images_in_epoch += result.images
        if result.outcome is StepOutcome.UPDATED:
            self.losses.add(result.images, result.losses)
            if self.average:
                self.average.update(self.network)
        return result

    def end_epoch(self, validated: Mapping[str, Validated], min_delta: float = 0.0) -> bool:
        """Close the epoch, with the results of its validation if it had one, and prepare the next.

        Returns whether the validation loss has fallen by more than `min_delta`.
        """
        progress = self.progress
        improved = False
        if validated:
            loss = validated[""].losses.total
            improved = loss + min_delta < progress.best_loss
            if improved:
                progress.best_loss, progress.best_epoch = loss, progress.epoch
        progress.history.append(self._history_row(validated))
        progress.epoch, progress.images_in_epoch = progress.epoch + 1, 0
        self.learning_rate.after_epoch(progress.epoch, self.losses.total)
        self.losses = LossMean()
        set_training_mode(self.network, self.head_only, self.freeze_bn)
        return improved

    def _history_row(self, validated: Mapping[str, Validated]) -> dict[str, float]:
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
            losses, evaluation, _ = validated[""]
            row |= {"val_loss": losses.total, "val_class": losses.classification, "val_box": losses.regression}
            if validated[best_of(validated)].ap >= 0:
                row |= dict(zip(("AP", "AP50", "AP75"), evaluation.numbers.tolist()))
                if self.average:
                    row["average_AP"] = validated["average_"].ap
        return row

    def save_best(self, validated: Mapping[str, Validated]) -> None:
        """Save the weights with the highest average precision so far, be it the network's or their average's."""
        if not validated:
            return
        name = best_of(validated)
        ap = validated[name].ap
        if ap > self.progress.best_ap:
            self.progress.best_ap = ap
            if distributed.rank() == 0:
                tqdm.write(f"best AP so far {ap:.3f}: saved {self.checkpoints.save_best(self.networks[name])}")

    def save(self) -> None:
        """Save the weights, and the state to resume from. Called on all ranks; rank 0 writes."""
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
        path = self.checkpoints.save(self.network, state, self.progress.epoch, self.progress.step)
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
