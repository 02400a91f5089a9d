"""Prefetching, ordered maps over threads, and the limit on what is in flight."""

import signal
import subprocess
import sys
import threading
import time

import pytest

from utils.threads import Budget, ordered_map, prefetch


def wait_until(condition, seconds: float = 5.0) -> bool:
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.005)
    return True


@pytest.fixture(autouse=True)
def no_thread_remains():
    before = threading.active_count()
    yield
    assert wait_until(lambda: threading.active_count() == before)


class Counting:
    """Counts from 0, and records how many items it has produced and which thread closed it."""

    def __init__(self, end: int = 10**9):
        self.made, self.end, self.closed_in = 0, end, None

    def __iter__(self):
        try:
            while self.made < self.end:
                self.made += 1
                yield self.made - 1
        finally:
            self.closed_in = threading.current_thread()


RUNNERS = [
    pytest.param(lambda items: prefetch(items, 2), id="prefetch"),
    pytest.param(lambda items: ordered_map(lambda item: item, items, threads=3, depth=2), id="ordered_map"),
]


@pytest.mark.parametrize("run", RUNNERS)
def test_empty_iterable_yields_nothing(run):
    assert list(run([])) == []


@pytest.mark.parametrize("run", RUNNERS)
def test_items_come_in_order(run):
    assert list(run(range(500))) == list(range(500))


@pytest.mark.parametrize("run", RUNNERS)
def test_none_is_an_ordinary_item(run):
    assert list(run([None, 0, None])) == [None, 0, None]


@pytest.mark.parametrize("run", RUNNERS)
def test_nothing_is_produced_before_the_first_request(run):
    counting = Counting()
    items = run(counting)
    time.sleep(0.05)
    assert counting.made == 0
    assert next(items) == 0
    items.close()


@pytest.mark.parametrize("run", RUNNERS)
def test_few_items_are_produced_ahead(run):
    counting = Counting()
    items = run(counting)
    for taken in (1, 2, 3):
        next(items)
        # Two are queued, and the producer waits to queue a third.
        assert wait_until(lambda taken=taken: counting.made == taken + 3)
        time.sleep(0.05)
        assert counting.made == taken + 3
    items.close()


def test_the_iterable_runs_in_another_thread():
    def where():
        yield threading.current_thread()

    assert next(prefetch(where(), 1)) is not threading.current_thread()


@pytest.mark.parametrize("run", RUNNERS)
def test_exception_is_raised_after_the_items_before_it(run):
    def broken():
        yield 1
        yield 2
        raise ZeroDivisionError("third")

    items = run(broken())
    assert [next(items), next(items)] == [1, 2]
    with pytest.raises(ZeroDivisionError, match="third"):
        next(items)


def test_type_error_of_a_non_iterable_reaches_the_consumer():
    with pytest.raises(TypeError, match="not iterable"):
        list(prefetch(5, 1))


def test_exception_of_the_function_is_raised_in_its_place():
    items = ordered_map(lambda number: 6 // number, [3, 2, 0, 1], threads=2, depth=4)
    assert [next(items), next(items)] == [2, 3]
    with pytest.raises(ZeroDivisionError):
        next(items)


def test_several_threads_run_at_once_and_order_is_kept():
    together = threading.Barrier(3, timeout=5)

    def meet(number):
        together.wait()  # passes when three threads have arrived
        time.sleep(0.01 * (number % 3 == 0))
        return number

    assert list(ordered_map(meet, range(9), threads=3, depth=3)) == list(range(9))


@pytest.mark.parametrize("run", RUNNERS)
def test_closing_stops_the_producer_and_closes_the_iterable(run):
    counting = Counting()
    items = run(counting)
    next(items)
    items.close()
    made = counting.made
    time.sleep(0.05)
    assert counting.made == made <= 4
    assert wait_until(lambda: counting.closed_in is not None)


def test_exception_in_the_consumer_ends_the_thread():
    def consume():
        for _ in prefetch(Counting(), 1):
            raise KeyError

    before = threading.active_count()
    with pytest.raises(KeyError):
        consume()
    assert wait_until(lambda: threading.active_count() == before)


def test_all_stages_stop_although_the_first_is_blocked():
    gate = threading.Event()

    def waiting():
        yield 1
        gate.wait(10)  # like a camera that sends nothing more

    before = threading.active_count()
    first = prefetch(waiting(), 1, patience=0.1)
    middle = ordered_map(lambda item: item, (item for item in first), threads=2, depth=1)
    last = prefetch((item for item in middle), 1)
    assert next(last) == 1
    start = time.monotonic()
    last.close()
    assert time.monotonic() - start < 2
    assert threading.active_count() == before + 1  # the blocked one is abandoned
    gate.set()


def test_items_are_freed_once_yielded():
    class Big:
        alive = 0

        def __init__(self):
            Big.alive += 1

        def __del__(self):
            Big.alive -= 1

    max_alive = 0
    stages = prefetch(ordered_map(lambda big: big, (Big() for _ in range(50)), threads=2, depth=1), 1)
    for item in stages:
        del item
        max_alive = max(max_alive, Big.alive)
    assert max_alive <= 6 and wait_until(lambda: Big.alive == 0)


def test_interrupt_ends_all_threads():
    script = (
        "import itertools, signal, time\nfrom utils.threads import prefetch, ordered_map\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # a background job ignores it
        "items = prefetch(ordered_map(lambda n: n, itertools.count(), 2, 2), 1)\n"
        "print(next(items), flush=True)\n"
        "for item in items: time.sleep(0.01)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "0\n"
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=10)
    assert errors.rstrip().endswith("KeyboardInterrupt") and errors.count("Traceback") == 1


def reserve_and_settle(allowance: Budget, size: int) -> None:
    allowance.settle(allowance.reserve(), size)


def test_single_item_is_allowed_however_large():
    reserve_and_settle(Budget(10), 1000)


def test_producer_waits_at_the_limit():
    allowance, passed = Budget(10), []

    def produce():
        for size in (4, 4, 4, 4):
            reserve_and_settle(allowance, size)
            passed.append(size)

    producer = threading.Thread(target=produce)
    producer.start()
    assert wait_until(lambda: len(passed) == 3)  # 12 in flight: the third was reserved at 8
    time.sleep(0.1)
    assert len(passed) == 3
    allowance.release(4)
    producer.join(5)
    assert len(passed) == 4


def test_second_item_waits_until_the_size_of_the_first_is_known():
    allowance = Budget(10)
    reserved = allowance.reserve()
    second = threading.Thread(target=allowance.reserve)
    second.start()
    time.sleep(0.1)
    assert second.is_alive()
    allowance.settle(reserved, 3)
    second.join(5)
    assert not second.is_alive()
