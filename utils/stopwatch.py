"""Time several activities that alternate."""

import time
from collections.abc import Iterator
from contextlib import contextmanager


class Stopwatch:
    """Seconds spent on each of several activities in turn."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def measuring(self, activity: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.seconds[activity] = self.seconds.get(activity, 0.0) + time.perf_counter() - start

    def summary(self, images: int) -> str:
        """One line: images per second, and the share of the time that each activity took."""
        total = sum(self.seconds.values())
        shares = ", ".join(f"{activity} {seconds / total:.0%}" for activity, seconds in self.seconds.items())
        return f"{images} images in {total:.1f} s, {images / total:.1f} a second: {shares}"
