"""When a run ends, and when it is validated."""

import pytest

from efficientdet.training.progress import Length, Progress


def test_run_of_no_epochs_so_far_is_not_over():
    assert not Length(1).is_reached(Progress(), 0.0)
    assert not Length(None, minutes=1).is_reached(Progress(), 0.0)


@pytest.mark.parametrize(("epoch", "reached"), [(2, False), (3, True), (4, True)])
def test_epochs(epoch, reached):
    length = Length(3)
    assert length.is_reached(Progress(epoch=epoch), 1e9) == reached
    assert length.share_done(Progress(epoch=epoch), 1e9) is None


@pytest.mark.parametrize(("seconds", "share"), [(0, 0), (45, 0.5), (90, 1), (180, 2)])
def test_minutes_leave_time_for_the_last_validation(seconds, share):
    length, progress = Length(None, minutes=2), Progress(epoch=99, validation_seconds=30)
    assert length.share_done(progress, seconds) == pytest.approx(share)
    assert length.is_reached(progress, seconds) == (share >= 1)


def test_time_shorter_than_a_validation_is_over_at_once():
    assert Length(None, minutes=0.1).is_reached(Progress(validation_seconds=30), 1.0)


@pytest.mark.parametrize("epoch", range(7))
def test_every_second_epoch_and_the_last_are_validated(epoch):
    assert Length(7, val_interval=2).validation_is_due(Progress(epoch=epoch), 0.0) == (epoch in (1, 3, 5, 6))


@pytest.mark.parametrize(("seconds", "due"), [(119, False), (120, True), (541, True)])
def test_run_of_some_minutes_is_validated_each_tenth(seconds, due):
    length, progress = Length(None, minutes=10, val_interval=None), Progress(validated_at=60)
    assert length.validation_is_due(progress, seconds) == due


@pytest.mark.parametrize(("seconds", "due"), [(179, False), (180, True)])
def test_long_validations_of_a_run_of_some_minutes_are_rare(seconds, due):
    length = Length(None, minutes=10, val_interval=None)
    progress = Progress(validated_at=60, validation_seconds=12)
    assert length.validation_is_due(progress, seconds) == due


def test_run_of_some_minutes_is_validated_at_the_end():
    length = Length(None, minutes=10, val_interval=1000)
    assert not length.validation_is_due(Progress(), 599)
    assert length.validation_is_due(Progress(), 600)
