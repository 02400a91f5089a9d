"""Work side by side in threads: an iterator that runs ahead, a function in several threads, a bound on what is in work.

OpenCV and PyTorch let other threads run while they compute, so decoding, preparing, network and drawing can overlap.
"""

import contextlib
import queue
import threading
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")

_POLL_SECONDS = 0.05  # how often a waiting thread looks whether it shall stop


def prefetch(iterable: Iterable[Item], depth: int, patience: float | None = None) -> Generator[Item]:
    """The items of `iterable` in their order, made by a thread that runs up to `depth` items ahead.

    Nothing is made before the first item is asked for. An exception of `iterable` is raised where it would have been:
    after the items before it.

    When the consumer stops (closes this generator, raises, is interrupted), the thread ends with the item that it is
    making, and is waited for. Stages may be put behind each other: all of them stop.

    Args:
        patience: seconds to wait for the thread. For what may wait for ever, as a camera does; such a thread
            is left behind, and ends with its next item or the process. None waits as long as it takes.
    """
    stage = _Stage(iterable, depth)
    stage.start()
    try:
        while True:
            item = stage.take()
            if isinstance(item, _End):
                if item.error is not None:
                    raise item.error
                return
            yield item
            del item  # or two would be alive while the next one is waited for
    finally:
        stage.stopped.set()
        stage.join(patience)


def ordered_map(
    function: Callable[[Item], Result],
    iterable: Iterable[Item],
    threads: int,
    depth: int,
    patience: float | None = None,
) -> Generator[Result]:
    """`function` of each item, in the items' order, computed by several threads.

    At most `depth` + 2 items are taken from `iterable` before their result is asked for. `iterable` runs in a thread
    of its own. Exceptions, stopping and `patience` are as in `prefetch`.
    """
    with ThreadPoolExecutor(threads) as pool:

        def submit(item: Item) -> Future[Result]:
            return pool.submit(function, item)

        futures = prefetch(map(submit, iterable), depth, patience)
        try:
            yield from map(Future.result, futures)
        finally:
            futures.close()
            pool.shutdown(cancel_futures=True)


class Allowance:
    """So much of something (pixels, say) may be in work at once, whatever the items' sizes.

    The producer reserves before it makes an item, tells the item's size when it is known, and the consumer releases
    it. One item is always allowed, however large.
    """

    def __init__(self, most: int):
        self.most = most
        self._in_work = 0
        self._expected = most  # size of the last item: the guess for the next; at first one alone is let through
        self._changed = threading.Condition()

    def reserve(self) -> int:
        """Wait until there is room. Returns what is set aside for the next item, for `settle`."""
        with self._changed:
            while self._in_work >= self.most:
                self._changed.wait(_POLL_SECONDS)
                _leave_if_told_to_stop()
            self._in_work += self._expected
            return self._expected

    def settle(self, reserved: int, size: int) -> None:
        """The item for which `reserved` was set aside has this size."""
        with self._changed:
            self._in_work += size - reserved
            self._expected = max(1, size)
            self._changed.notify()

    def release(self, size: int) -> None:
        """An item of this size is done."""
        with self._changed:
            self._in_work -= size
            self._changed.notify()


class _End:
    """Comes after the last item, with the exception that ended them, if one did."""

    def __init__(self, error: BaseException | None = None):
        self.error = error


class _Stopped(BaseException):
    """Raised in a stage's thread that waits for another stage, when its own consumer has stopped."""


def _leave_if_told_to_stop() -> None:
    stage = threading.current_thread()
    if isinstance(stage, _Stage) and stage.stopped.is_set():
        raise _Stopped


class _Stage(threading.Thread):
    """The thread of `prefetch`. A daemon: one that waits for ever does not keep the process alive."""

    def __init__(self, iterable: Iterable, depth: int):
        super().__init__(daemon=True)
        self.stopped = threading.Event()
        self._iterable = iterable
        self._made: queue.Queue[Any] = queue.Queue(depth)

    def run(self) -> None:
        end = _End()
        iterator: Any = None
        try:
            iterator = iter(self._iterable)
            for item in iterator:
                self._hand_on(item)
                del item
        except _Stopped:
            return
        except BaseException as error:
            end = _End(error)
        finally:
            if hasattr(iterator, "close"):  # a generator: its files and threads are closed here, in its own thread
                iterator.close()
        with contextlib.suppress(_Stopped):
            self._hand_on(end)

    def _hand_on(self, item: object) -> None:
        while True:
            if self.stopped.is_set():
                raise _Stopped
            with contextlib.suppress(queue.Full):
                return self._made.put(item, timeout=_POLL_SECONDS)

    def take(self) -> Any:
        """The next item, in the consumer's thread."""
        while True:
            with contextlib.suppress(queue.Empty):
                return self._made.get(timeout=_POLL_SECONDS)
            _leave_if_told_to_stop()
