"""Seconds and memory of contenders that take turns, each in a process of its own.

Of its own, because they differ in what becomes of freed memory, and because only the peak of a whole process can be
told. All but the one whose turn it is are asleep.
"""

import contextlib
import os
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from multiprocessing import get_context, parent_process
from multiprocessing.connection import Connection
from pathlib import Path
from threading import Thread
from typing import Any, NamedTuple, TypeVar

import torch
from tqdm import tqdm

from utils.device import is_out_of_memory
from utils.errors import InputError

Key = TypeVar("Key")
# Seconds. After their work OpenMP's threads look for more for a hundredth; those of ONNX Runtime and OpenVINO much
# longer, and made what had its turn next twice as slow.
_UNTIL_THREADS_SLEEP = 0.2
_PATIENCE = 10.0  # seconds that an idle process has to end by itself
_MATRIX_SIDE = {"cpu": 2048, "cuda": 8192}


class Workload(NamedTuple):
    """What a contender does again and again."""

    run_once: Callable[[], float | None]  # returns how many of its seconds were post-processing, if it has any
    images: int  # of a pass
    device: torch.device


class Pass(NamedTuple):
    """What a pass took."""

    seconds: float
    postprocessing_seconds: float | None
    bytes_before: int  # that the process held already; on a GPU, its tensors there
    bytes_at_peak: int  # that it held at most during the pass


@dataclass
class Measured:
    """What is known of a contender so far."""

    images: int = 0  # of a pass
    first: Pass | None = None  # compiling and recording are in it
    passes: list[Pass] = field(default_factory=list)  # those that count
    out_of_memory: bool = False


class Rounds(NamedTuple):
    """How often each contender has its turn, after its first pass."""

    warmup: int = 1  # rounds that do not count
    least: int = 3  # that count
    most: int = 15
    seconds: float = 20.0  # from the first passes on, after which there is no round beyond `least`


def measure(
    contenders: Mapping[Key, Callable[[], Workload]], rounds: Rounds, title: str, measured: dict[Key, Measured]
) -> None:
    """Let the contenders take turns. What comes of it goes to `measured` at once, so that Ctrl+C loses nothing.

    One that runs out of memory drops out.

    Args:
        contenders: the functions that make their workloads, in processes of their own; they can be pickled.
        title: of the progress bar.

    Raises the InputError of such a function.
    """
    with contextlib.ExitStack() as stack:
        total = len(contenders) * (1 + rounds.warmup + rounds.most)
        bar = stack.enter_context(tqdm(total=total, unit="pass", leave=False, dynamic_ncols=True))
        bar.set_description(f"{title}, starting")
        processes = {key: stack.enter_context(_Process(make)) for key, make in contenders.items()}
        for key, process in processes.items():
            measured[key] = Measured(process.images() or 0)

        opening = -1 - rounds.warmup
        for number in range(opening, rounds.most):
            if number == opening + 1:  # the first passes may have waited for a compiler
                start = time.perf_counter()
            if number >= rounds.least and time.perf_counter() - start > rounds.seconds:
                break
            for key, process in processes.items():
                bar.set_description(f"{title}, {key}")
                result = process.one_pass()
                if result is None:
                    measured[key].out_of_memory = True
                elif measured[key].first is None:
                    measured[key].first = result
                elif number >= 0:
                    measured[key].passes.append(result)
                bar.update()


class _Process:
    """A contender's process, asleep until it is asked for a pass.

    A context manager: at the end of its block the process ends, at once if an exception is the reason.
    """

    def __init__(self, make: Callable[[], Workload]):
        context = get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, make))
        with _without_interrupts():
            self._process.start()
        theirs.close()

    def images(self) -> int | None:
        """Of a pass; waits until the workload is made. As `one_pass`, None without memory; before any `one_pass`."""
        return self._reply()

    def one_pass(self) -> Pass | None:
        """None when the memory does not suffice, now or before."""
        if self._connection.closed:
            return None
        with contextlib.suppress(ConnectionError):  # the reply tells why
            self._connection.send("pass")
        return self._reply()

    def _reply(self) -> Any:
        try:
            reply = self._connection.recv()
        except (EOFError, ConnectionError):
            self._process.join()
            if self._process.exitcode != -signal.SIGKILL:  # which is how the system gets memory back
                raise RuntimeError(f"a measured process ended with status {self._process.exitcode}") from None
            reply = MemoryError()
        if isinstance(reply, MemoryError):
            self._end(_PATIENCE)
            return None
        if isinstance(reply, InputError):
            raise reply
        return reply

    def __enter__(self) -> "_Process":
        return self

    def __exit__(self, kind: type | None, *_: object) -> None:
        self._end(_PATIENCE if kind is None else 0.0)

    def _end(self, patience: float) -> None:
        self._connection.close()
        self._process.join(patience)
        self._process.kill()
        self._process.join()


@contextlib.contextmanager
def _without_interrupts() -> Iterator[None]:
    """Processes that are started here leave Ctrl+C to this one."""
    handler = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)


def _serve(connection: Connection, make: Callable[[], Workload]) -> None:
    """A contender's process: replies with the images of a pass, then with a `Pass` whenever it is asked for one."""
    Thread(target=_end_with_parent, daemon=True).start()
    with contextlib.suppress(OSError):  # where memory runs out, let the system take this process, not its parent
        Path("/proc/self/oom_score_adj").write_text("1000")
    try:
        workload = make()
        connection.send(workload.images)
        while connection.recv():
            result = _one_pass(workload)
            time.sleep(_UNTIL_THREADS_SLEEP)
            connection.send(result)
    except EOFError:  # nobody will ask for more
        pass
    except InputError as error:
        connection.send(error)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        connection.send(MemoryError())


def _end_with_parent() -> None:
    """Even in the middle of a pass, which may take minutes."""
    parent = parent_process()
    if parent is not None:
        parent.join()
    os._exit(1)


def _one_pass(workload: Workload) -> Pass:
    device = workload.device
    before = _start_of_peak(device)
    synchronize(device)
    start = time.perf_counter()
    postprocessing = workload.run_once()
    synchronize(device)
    seconds = time.perf_counter() - start
    peak = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else _resident_bytes("VmHWM")
    return Pass(seconds, postprocessing, before, max(before, peak))


def _start_of_peak(device: torch.device) -> int:
    """Let the peak of memory begin anew. Returns the bytes that are held now."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return torch.cuda.memory_allocated(device)
    with contextlib.suppress(OSError):  # where that is not allowed, the peak is that of the whole process
        Path("/proc/self/clear_refs").write_text("5")
    return _resident_bytes("VmRSS")


def _resident_bytes(field: str) -> int:
    """This process's memory, now (VmRSS) or at its peak (VmHWM). getrusage's peak would count the parent's, too."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(f"{field}:"))


def synchronize(device: torch.device) -> None:
    """Wait until a GPU has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def matmul_speeds(device: torch.device, dtypes: Mapping[str, torch.dtype]) -> dict[str, float]:
    """Floating-point operations per second at which the device multiplies large matrices, the best of several.

    That is about the most that it can do. `dtypes` and the result are by the names of precisions.
    """
    measured: dict[str, Measured] = {}
    contenders = {name: partial(_matmul, device, dtype) for name, dtype in dtypes.items()}
    measure(contenders, Rounds(least=10, most=10), "matrix multiplication", measured)
    operations = 2 * _MATRIX_SIDE[device.type] ** 3
    return {name: operations / min(result.seconds for result in of.passes) for name, of in measured.items()}


def _matmul(device: torch.device, dtype: torch.dtype) -> Workload:
    side = _MATRIX_SIDE[device.type]
    if device.type == "cuda":
        torch.set_float32_matmul_precision("high")  # TF32, which convolutions may use, too
    a, b = torch.randn(2, side, side, device=device).to(dtype)
    product = torch.empty_like(a)

    def run_once() -> None:
        torch.mm(a, b, out=product)

    return Workload(run_once, 1, device)
