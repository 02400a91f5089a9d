"""Ctrl+C and SIGTERM, deferred to a suitable moment."""

import signal


class StopRequest:
    """Context manager that sets `received` on Ctrl+C or SIGTERM, so that the step in progress can finish.

    A second signal raises KeyboardInterrupt at once. The previous handlers are restored on exit.

    Processes that train together receive a signal at different moments: they set `agreed` where all of them have
    compared `received`, and act on that alone.
    """

    def __init__(self) -> None:
        self.received = False
        self.agreed = False

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
