"""Overlap work in threads: prefetch items, map a function in parallel, bound what is in flight.

OpenCV and PyTorch release the GIL while they compute, so decoding, preprocessing, the network and drawing can overlap.
"""

import contextlib
import queue
import threading
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")

_POLL_SECONDS = 0.05  # how often a waiting thread checks whether it should stop


def prefetch(iterable: Iterable[Item], depth: int, patience: float | None = None) -> Generator[Item]:
    """Yield the items of `iterable` in order, produced by a thread that runs up to `depth` items ahead.

    The thread starts when the first item is requested. An exception of `iterable` is raised in its place, after the
    items before it. When this generator is closed, the thread stops after its current item and is joined for up to
    `patience` seconds (default: forever). If it is still blocked, as by a camera, it is abandoned and ends after its
    next item, or with the process. Generators may be chained: closing the last one stops the threads of all.
    """
    producer = _Producer(iterable, depth)
    producer.start()
    try:
        while True:
            item = producer.get()
            if isinstance(item, _End):
                if item.error is not None:
                    raise item.error
                return
            yield item
            del item  # otherwise it would stay alive while waiting for the next one
    finally:
        producer.stopped.set()
        producer.join(patience)


def ordered_map(
    function: Callable[[Item], Result],
    iterable: Iterable[Item],
    threads: int,
    depth: int,
    patience: float | None = None,
) -> Generator[Result]:
    """Yield `function(item)` for each item in order, computed by several threads.

    Another thread iterates over `iterable`, at most `depth` + 2 items ahead. Exceptions, closing and `patience` are as
    in `prefetch`.
    """
    with ThreadPoolExecutor(threads) as pool:
        futures = prefetch((pool.submit(function, item) for item in iterable), depth, patience)
        try:
            yield from map(Future.result, futures)
        finally:
            futures.close()
            pool.shutdown(cancel_futures=True)


class Budget:
    """A limit on the total size (in pixels, say) of the items in flight.

    The producer calls `reserve` before it makes an item and `settle` as soon as its size is known; the consumer calls
    `release`. A single item is always allowed, however large.
    """

    def __init__(self, limit: int):
        self._limit = limit
        self._in_flight = 0
        self._estimate = limit  # size of the latest item; initially the limit, so that the first one is alone
        self._changed = threading.Condition()

    def reserve(self) -> int:
        """Wait until an item may be made. Return the size reserved for it, an estimate."""
        with self._changed:
            while self._in_flight >= self._limit:
                self._changed.wait(_POLL_SECONDS)
                _exit_if_stopped()
            self._in_flight += self._estimate
            return self._estimate

    def settle(self, reserved: int, size: int) -> None:
        """Replace a reserved size by the item's actual size."""
        with self._changed:
            self._in_flight += size - reserved
            self._estimate = max(1, size)
            self._changed.notify()

    def release(self, size: int) -> None:
        """Remove an item of this size."""
        with self._changed:
            self._in_flight -= size
            self._changed.notify()


class _End(NamedTuple):
    """The end of a producer's items, and the exception that caused it, if any."""

    error: BaseException | None


class _Stopped(BaseException):
    """Unwinds a producer's thread whose consumer has stopped."""


def _exit_if_stopped() -> None:
    thread = threading.current_thread()
    if isinstance(thread, _Producer) and thread.stopped.is_set():
        raise _Stopped


class _Producer(threading.Thread):
    """The thread behind `prefetch`. A daemon, so that a blocked one does not keep the process alive."""

    def __init__(self, iterable: Iterable, depth: int):
        super().__init__(daemon=True)
        self.stopped = threading.Event()
        self._iterable = iterable
        self._items: queue.Queue[Any] = queue.Queue(depth)

    def run(self) -> None:
        end = _End(None)
        iterator: Iterator | None = None
        try:
            iterator = iter(self._iterable)
            for item in iterator:
                self._put(item)
                del item
        except _Stopped:
            return
        except BaseException as error:
            end = _End(error)
        finally:
            if isinstance(iterator, Generator):
                iterator.close()  # releases its files and threads here, in the thread that ran it
        with contextlib.suppress(_Stopped):
            self._put(end)

    def _put(self, item: object) -> None:
        while True:
            _exit_if_stopped()
            with contextlib.suppress(queue.Full):
                return self._items.put(item, timeout=_POLL_SECONDS)

    def get(self) -> Any:
        """Return the next item. Called in the consumer's thread, which may be another producer."""
        while True:
            with contextlib.suppress(queue.Empty):
                return self._items.get(timeout=_POLL_SECONDS)
            _exit_if_stopped()
