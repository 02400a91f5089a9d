"""Smaller batches after running out of memory, skipped steps, and what is saved when a run fails."""

from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch
from tiny import tiny_batch

from efficientdet.data.loader import Batch
from efficientdet.training.failures import (
    MAX_SKIPPED_IN_A_ROW,
    Diverged,
    OutOfMemory,
    count_skipped,
    fitting_batch_size,
    save_on_failure,
    unless_out_of_memory,
)
from efficientdet.training.progress import Progress
from efficientdet.training.step import StepOutcome
from utils.errors import InputError


def memory_for(limit: int, tried: list[int]) -> Callable[[Batch], None]:
    """A step that notes the number of images, and runs out of memory with more than `limit`."""

    def step(batch: Batch) -> None:
        assert len(batch.images) == len(batch.targets.boxes) == len(batch.targets.class_ids) == len(batch.letterboxes)
        tried.append(len(batch.image_ids))
        if len(batch.image_ids) > limit:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    return step


@pytest.mark.parametrize(
    ("images", "limit", "fitting", "tries"),
    [
        (1, 1, 0, []),  # a single image did not fit: there is nothing to try
        (12, 0, 0, [6, 3, 1]),
        (12, 2, 1, [6, 3, 1]),
        (12, 5, 3, [6, 3]),
        (12, 11, 6, [6]),
        (16, 4, 4, [8, 4]),
    ],
)
def test_largest_half_that_fits(images, limit, fitting, tries):
    tried = []
    assert fitting_batch_size(memory_for(limit, tried), tiny_batch(images=images)) == fitting
    assert tried == tries


@pytest.mark.parametrize("error", [RuntimeError("shapes do not match"), ValueError("no"), KeyboardInterrupt()])
def test_other_errors_than_of_memory_pass_through(error):
    def step(batch: Batch | None = None) -> None:
        raise error

    for attempt in (lambda: fitting_batch_size(step, tiny_batch(images=4)), lambda: unless_out_of_memory(step)):
        with pytest.raises(type(error)) as caught:
            attempt()
        assert caught.value is error


def test_out_of_memory_gives_none_and_anything_else_its_result():
    assert unless_out_of_memory(lambda: 5) == 5
    assert unless_out_of_memory(lambda: memory_for(0, [])(tiny_batch())) is None


def results(*outcomes: StepOutcome) -> Progress:
    """The progress after steps with these outcomes, on the images 0 and 1."""
    progress = Progress()
    for outcome in outcomes:
        progress.step += 1
        count_skipped(progress, SimpleNamespace(outcome=outcome), [tiny_batch()])
    return progress


def test_updates_and_overflows_are_not_skipped_steps():
    progress = results(StepOutcome.UPDATED, StepOutcome.OVERFLOWED)
    assert (progress.skipped, progress.skipped_in_a_row) == (0, 0)


def test_an_update_ends_a_row_of_skipped_steps():
    skipped, updated = StepOutcome.SKIPPED, StepOutcome.UPDATED
    progress = results(*[skipped] * (MAX_SKIPPED_IN_A_ROW - 1), updated, skipped, StepOutcome.OVERFLOWED, skipped)
    assert (progress.skipped, progress.skipped_in_a_row) == (MAX_SKIPPED_IN_A_ROW + 1, 2)


def test_too_many_skipped_steps_in_a_row_name_the_images(capsys):
    with pytest.raises(Diverged, match=r"\[0, 1\]"):
        results(*[StepOutcome.SKIPPED] * MAX_SKIPPED_IN_A_ROW)


@pytest.mark.parametrize(
    ("error", "steps", "saved"),
    [
        (InputError("image 7"), 0, False),
        (InputError("image 7"), 3, True),
        (OutOfMemory("too large"), 3, False),
        (Diverged("nan"), 3, False),
        (EOFError(), 3, True),
        (RuntimeError("DataLoader worker (pid 7) is killed"), 3, True),
    ],
)
def test_unusable_input_and_dead_workers_save_the_steps_made(error, steps, saved):
    saves = []
    run = SimpleNamespace(progress=Progress(step=10), save=lambda: saves.append(run.progress.step))
    expected = type(error) if isinstance(error, InputError) else InputError
    with pytest.raises(expected), save_on_failure(run):
        run.progress.step += steps
        raise error
    assert saves == ([13] if saved else [])
