"""Time that a program spends on each of several alternating activities."""

import time
from collections.abc import Iterator
from contextlib import contextmanager


class Stopwatch:
    """Accumulated seconds by activity, in order of first use."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def measuring(self, activity: str) -> Iterator[None]:
        """Add the duration of a `with` block to `activity`."""
        start = time.perf_counter()
        yield
        self.seconds[activity] = self.seconds.get(activity, 0.0) + time.perf_counter() - start

    def summary(self, images: int) -> str:
        """Return one line with the images per second and each activity's share of the time."""
        total = sum(self.seconds.values())
        shares = ", ".join(f"{activity} {seconds / total:.0%}" for activity, seconds in self.seconds.items())
        return f"{images} images in {total:.1f} s, {images / total:.1f} a second: {shares}"
