"""When a run fails: what is saved, and what the user can do about memory, divergence and unusable images."""

import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

from tqdm import tqdm

from efficientdet.data.loader import Batch, is_dead_worker
from efficientdet.training.progress import Progress
from efficientdet.training.run import Run
from efficientdet.training.step import StepOutcome, StepResult
from utils import distributed
from utils.device import is_out_of_memory
from utils.errors import InputError

T = TypeVar("T")
MAX_SKIPPED_IN_A_ROW = 10


class OutOfMemory(InputError):
    """A batch does not fit into memory."""


class Diverged(InputError):
    """The loss has not been finite for many steps."""


@contextmanager
def save_on_failure(run: Run) -> Iterator[None]:
    """Save the steps made in this block before an unusable image or a dead worker ends the run."""
    steps_before = run.progress.step
    try:
        yield
    except (OutOfMemory, Diverged):  # what is worth saving has been saved; the network is in no state to be
        raise
    except InputError:
        if run.progress.step > steps_before:
            run.save()
        raise
    except (RuntimeError, EOFError, ConnectionError) as error:
        if not is_dead_worker(error):
            raise
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # the death of another worker must not interrupt saving
        if run.progress.step > steps_before and distributed.world_size() == 1:
            run.save()
        reason = str(error) or "a worker process was killed"
        raise InputError(f"{reason}; if memory is short, resume with -w last and a smaller -n") from error


def unless_out_of_memory(function: Callable[[], T]) -> T | None:
    """Return the result of `function`; None if memory ran out, after everything that it held has been freed."""
    try:
        return function()
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
    return None


def memory_advice(run: Run, batch: Batch, batch_size: int, accumulate: int, less_memory: bool, compiled: bool) -> str:
    """Say how to train with less memory, after trying smaller parts of `batch`. The run is unusable afterwards.

    Args:
        batch_size, accumulate, less_memory, compiled: the flags that did not fit.
    """
    size = f"--batch_size {batch_size}"
    spare = "" if less_memory else "--checkpoint_activations, or "
    if distributed.world_size() > 1:  # the other processes are waiting: no time to try
        return f"out of memory with {size} on {distributed.world_size()} processes: pass {spare}half as many images"
    if compiled:  # each size would be compiled for minutes
        return f"out of memory with {size}: pass half as many images, or leave out --compile"
    fitting = fitting_batch_size(lambda part: run.step([part.to(run.device)]), batch)
    if not fitting:
        return f"out of memory with {size}, and even with one image: pass {spare}a smaller --image_size or -c"
    return (
        f"out of memory with {size}; {fitting} fits: pass {spare}--batch_size {fitting}, with "
        f"--accumulate {-(-batch_size * accumulate // fitting)} for steps of as many images as before"
    )


def fitting_batch_size(step: Callable[[Batch], object], batch: Batch) -> int:
    """Return the largest half, quarter, … of `batch` that `step` has memory for, in images; 0 if not even one has."""
    images = len(batch.image_ids) // 2
    while images:
        try:
            step(batch.first(images))
            return images
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
        images //= 2
    return 0


def count_skipped(progress: Progress, result: StepResult, batches: Sequence[Batch]) -> None:
    """Count and report a skipped step. Raises Diverged after MAX_SKIPPED_IN_A_ROW without an update in between."""
    if result.outcome is StepOutcome.UPDATED:
        progress.skipped_in_a_row = 0
    if result.outcome is not StepOutcome.SKIPPED:
        return
    progress.skipped += 1
    progress.skipped_in_a_row += 1
    image_ids = [image_id for batch in batches for image_id in batch.image_ids]
    tqdm.write(f"step {progress.step} skipped: loss or gradient not finite, on images {image_ids}")
    if progress.skipped_in_a_row == MAX_SKIPPED_IN_A_ROW:
        raise Diverged(
            f"loss or gradient was not finite for {MAX_SKIPPED_IN_A_ROW} steps in a row, most recently on images "
            f"{image_ids}: resume with -w last and a lower --lr, a longer --warmup_epochs or a --clip_norm, and check "
            "the boxes of those images"
        )
