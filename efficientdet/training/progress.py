"""How far a run has come, and when it ends."""

import math
from dataclasses import dataclass, field, replace

VALIDATIONS = 10  # of a run whose length is in steps or minutes
MIN_TRAINING = 10  # times as long as the last validation, before the next one in a run of some minutes


@dataclass
class Progress:
    """How far a run has come."""

    epoch: int = 0
    step: int = 0
    images_in_epoch: int = 0  # of the current epoch, seen so far
    seconds: float = 0.0  # since the start, without interruptions
    validated_at: float = 0.0  # seconds at the end of the last validation
    validation_seconds: float = 0.0  # that it took
    best_score: float = -math.inf  # of the weights that are saved as best
    best_epoch: int = 0
    skipped: int = 0  # steps whose loss or gradient was not finite
    skipped_in_a_row: int = 0
    history: list[dict] = field(default_factory=list)  # a row per epoch


@dataclass(frozen=True)
class Length:
    """How long a run lasts, in epochs or in minutes without interruptions, and after which epochs it is validated."""

    epochs: int | None  # None if the run lasts some minutes
    minutes: float | None = None
    val_interval: int | None = 1  # epochs between validations; None: at most VALIDATIONS, in a run of some minutes

    def share_done(self, progress: Progress, seconds: float) -> float | None:
        """Return the share of its minutes that a run has done, with time left for a validation; None for epochs."""
        if self.minutes is None:
            return None
        return seconds / max(60 * self.minutes - progress.validation_seconds, 1e-9)

    def is_reached(self, progress: Progress, seconds: float) -> bool:
        """Return whether all epochs are done, or the time is up."""
        share = self.share_done(progress, seconds)
        return progress.epoch >= (self.epochs or math.inf) if share is None else share >= 1

    def validation_is_due(self, progress: Progress, seconds: float) -> bool:
        """Return whether to validate after the epoch that `progress` does not count yet; always after the last."""
        epochs_done = progress.epoch + 1
        if self.is_reached(replace(progress, epoch=epochs_done), seconds):
            return True
        if self.val_interval is not None:
            return epochs_done % self.val_interval == 0
        pause = max(60 * (self.minutes or 0) / VALIDATIONS, MIN_TRAINING * progress.validation_seconds)
        return seconds - progress.validated_at >= pause
