"""Ctrl+C and SIGTERM, at the right moment."""

import signal


class StopRequest:
    """Ctrl+C or SIGTERM, remembered until the step in progress is done. A second Ctrl+C interrupts at once.

    A context manager; outside its block the signals do what they did before.
    """

    def __init__(self) -> None:
        self.received = False

    def __enter__(self) -> "StopRequest":
        self._previous = {number: signal.signal(number, self._handle) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: object) -> None:
        if self.received:
            raise KeyboardInterrupt
        self.received = True
