"""Measure the time and memory of contenders that take turns, each in its own process.

Separate processes, because the contenders treat freed memory differently, and because the system reports the peak
memory of whole processes only. All sleep except the one whose turn it is.
"""

import contextlib
import ctypes
import signal
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

import torch
from tqdm import tqdm

from utils.device import is_out_of_memory
from utils.errors import InputError
from utils.stopwatch import Stopwatch

MIN_RUNS, MAX_RUNS, MAX_SECONDS = 3, 15, 20.0
_EXIT_TIMEOUT = 10.0  # seconds


class Workload(NamedTuple):
    run_once: Callable[[], object]
    images: int  # per pass
    device: torch.device
    stopwatch: Stopwatch | None = None  # measures "post-processing" during a pass


class Pass(NamedTuple):
    """The cost of one pass. Memory is the process's or, on a GPU, that of its tensors there."""

    seconds: float
    postprocessing_seconds: float | None
    bytes_before: int
    bytes_at_peak: int


@dataclass
class Measured:
    """The measurements of one contender so far. The first pass includes compiling and recording."""

    images: int = 0  # per pass
    first: Pass | None = None
    passes: list[Pass] = field(default_factory=list)  # those that count
    out_of_memory: bool = False

    @property
    def median(self) -> float | None:  # seconds
        return statistics.median(result.seconds for result in self.passes) if self.passes else None


def measure(
    makers: Mapping[Any, Callable], title: str, measured: dict[Any, Measured], runs: int | None = None, warmup: int = 1
) -> None:
    """Let contenders take turns, and put each result into `measured` at once. One that runs out of memory drops out.

    The functions in `makers` must be picklable; each makes a `Workload` in its own process. After the first pass and
    `warmup` passes, `runs` of each count; None means MIN_RUNS, and up to MAX_RUNS within MAX_SECONDS. Raises InputError
    if a contender does, RuntimeError if its process dies.
    """
    minimum, maximum = (MIN_RUNS, MAX_RUNS) if runs is None else (runs, runs)
    bar = tqdm(total=len(makers) * (1 + warmup + maximum), unit="pass", leave=False, dynamic_ncols=True)
    with bar, contextlib.ExitStack() as stack:
        bar.set_description(f"{title}, starting")
        processes = {key: stack.enter_context(_process(make)) for key, make in makers.items()}
        for key, ask in processes.items():
            images = ask()
            measured[key] = Measured(images or 0, out_of_memory=images is None)
        for number in range(-1 - warmup, maximum):
            if number == -warmup:  # not earlier, as the first passes may have waited for a compiler
                start = time.perf_counter()
            if number >= minimum and time.perf_counter() - start > MAX_SECONDS:
                break
            for key, ask in processes.items():
                bar.set_description(f"{title}, {key}")
                result = None if measured[key].out_of_memory else ask()
                if result is None:
                    measured[key].out_of_memory = True
                elif number < -warmup:
                    measured[key].first = result
                elif number >= 0:
                    measured[key].passes.append(result)
                bar.update()


@contextlib.contextmanager
def _process(make: Callable[[], Workload]) -> Iterator[Callable[[], Any]]:
    """Start a contender's process. Yield a function that asks for its next reply, see `_serve`."""
    context = get_context("spawn")
    connection, childs_end = context.Pipe()
    process = context.Process(target=_serve, args=(childs_end, make))
    handler = signal.signal(signal.SIGINT, signal.SIG_IGN)  # inherited: Ctrl+C is for this process alone
    try:
        process.start()
    finally:
        signal.signal(signal.SIGINT, handler)
    childs_end.close()

    def ask() -> Any:
        with contextlib.suppress(ConnectionError):  # the process may have sent an error and ended
            connection.send("next")
        try:
            reply = connection.recv()
        except (EOFError, ConnectionError):
            process.join()
            if process.exitcode != -signal.SIGKILL:  # which is how the system reclaims memory
                raise RuntimeError(f"a measured process ended with status {process.exitcode}") from None
            return None
        if isinstance(reply, InputError):
            raise reply
        if reply is None:
            process.join(_EXIT_TIMEOUT)  # frees its memory
        return reply

    try:
        yield ask
        connection.close()
        process.join(_EXIT_TIMEOUT)
    finally:
        process.kill()
        process.join()


def _serve(connection: Connection, make: Callable[[], Workload]) -> None:
    """Reply with the number of images per pass, then with passes; with None if memory does not suffice."""
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG: end with the parent, even during a pass of minutes
    with contextlib.suppress(OSError):  # if memory runs out, let the system kill this process, not its parent
        Path("/proc/self/oom_score_adj").write_text("1000")
    try:
        workload = make()
        connection.recv()
        connection.send(workload.images)
        while connection.recv():
            result = _measure_pass(workload)
            # ONNX Runtime's and OpenVINO's threads spin for a while after their work: they would slow the next pass.
            time.sleep(0.2)
            connection.send(result)
    except EOFError:  # the parent has closed the connection
        pass
    except InputError as error:
        connection.send(error)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        connection.send(None)


def _measure_pass(workload: Workload) -> Pass:
    device, stopwatch, on_gpu = workload.device, workload.stopwatch, workload.device.type == "cuda"
    if on_gpu:
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
    else:
        with contextlib.suppress(OSError):  # where the peak cannot be reset, it is that since the start
            Path("/proc/self/clear_refs").write_text("5")
    before = torch.cuda.memory_allocated(device) if on_gpu else _resident_bytes("VmRSS")
    start = time.perf_counter()
    workload.run_once()
    if on_gpu:
        torch.cuda.synchronize(device)
    seconds = time.perf_counter() - start
    peak = torch.cuda.max_memory_allocated(device) if on_gpu else _resident_bytes("VmHWM")
    postprocessing = stopwatch.seconds.pop("post-processing", None) if stopwatch else None
    return Pass(seconds, postprocessing, before, max(before, peak))


def _resident_bytes(field: str) -> int:
    """Return this process's memory, now (VmRSS) or at its peak (VmHWM). getrusage's peak includes the parent's."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(f"{field}:"))


def matmul_speed(device: torch.device, dtype: torch.dtype) -> float:
    """Return the FLOP/s of multiplying large matrices, the best of ten: what the device can reach in practice."""
    torch.set_float32_matmul_precision("high" if device.type == "cuda" else "highest")  # TF32, as in convolutions
    side = 8192 if device.type == "cuda" else 2048
    matrix = torch.randn(side, side, device=device).to(dtype)
    workload = Workload(partial(torch.mm, matrix, matrix), 1, device)
    return 2 * side**3 / min(_measure_pass(workload).seconds for _ in range(10))
