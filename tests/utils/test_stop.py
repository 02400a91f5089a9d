"""Signals recorded until the step in progress is done."""

import os
import signal

import pytest

from utils.stop import StopRequest


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signal_is_recorded_and_handlers_are_restored(number):
    handlers = [signal.getsignal(other) for other in (signal.SIGINT, signal.SIGTERM)]
    with StopRequest() as stop:
        assert not stop.received
        os.kill(os.getpid(), number)
        assert stop.received
    assert [signal.getsignal(other) for other in (signal.SIGINT, signal.SIGTERM)] == handlers


def test_second_signal_interrupts_at_once():
    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt), StopRequest():
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is handler


def test_handlers_are_restored_after_an_error():
    handler = signal.getsignal(signal.SIGTERM)
    with pytest.raises(ZeroDivisionError), StopRequest():
        _ = 1 / 0
    assert signal.getsignal(signal.SIGTERM) is handler
