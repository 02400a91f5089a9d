"""Data-parallel processes, one per device. Every function also works in a single process without a process group."""

import logging
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from utils.errors import InputError

T = TypeVar("T")


def world_size() -> int:
    """Return the number of processes."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """Return the rank of this process. Rank 0 prints and writes files."""
    return dist.get_rank() if dist.is_initialized() else 0


def local_rank() -> int:
    """Return the rank of this process on its machine, which is also the index of its GPU."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def is_launched() -> bool:
    """Return whether `torchrun` or `launch_processes` launched this process as one of several."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def launch_processes(number: int) -> None:
    """Run this command again in `number` processes on this machine, and exit when they have ended.

    PyTorch's elastic launcher assigns the ranks, forwards Ctrl+C and SIGTERM, and stops all processes when one fails.
    """
    from torch.distributed.elastic.multiprocessing import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)  # the processes report their own errors
    rendezvous: dict[str, Any] = {"rdzv_backend": "c10d", "rdzv_endpoint": "localhost:0", "run_id": str(os.getpid())}
    config = LaunchConfig(min_nodes=1, max_nodes=1, nproc_per_node=number, max_restarts=0, **rendezvous)
    try:
        elastic_launch(config, sys.executable)(*sys.argv)
    except SignalException:
        sys.exit(0)
    except ChildFailedError as error:
        sys.exit(error.get_first_failure()[1].exitcode)
    sys.exit(0)


@contextmanager
def process_group(device: torch.device) -> Iterator[None]:
    """Join the default process group, if there are several processes: NCCL for GPUs, Gloo for CPUs."""
    if is_launched():
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield
    finally:
        if is_launched():
            dist.destroy_process_group()


@contextmanager
def report_once() -> Iterator[None]:
    """Let rank 0 alone raise an InputError that occurs in every process; the others exit silently."""
    try:
        yield
    except InputError:
        if int(os.environ.get("RANK", "0")) == 0:
            raise
        time.sleep(20)  # a head start for rank 0: the launcher stops all processes when the first one exits
        sys.exit(1)


def print_rank0(text: str) -> None:
    """Print on rank 0 only."""
    if rank() == 0:
        print(text)


def all_reduce_sum(values: Tensor) -> Tensor:
    """Return the sum of a tensor over all processes. `values` is unchanged."""
    if world_size() > 1:
        values = values.clone()
        dist.all_reduce(values)
    return values


def any_rank(*flags: bool) -> list[bool]:
    """Return, for each flag, whether it is set in any process. Without flags, this is a barrier."""
    if world_size() == 1:
        return list(flags)
    # The zero makes processes wait for each other even without flags: an empty tensor would not.
    counts = torch.tensor([0.0, *map(float, flags)], device=_communication_device())
    return (all_reduce_sum(counts) > 0).tolist()[1:]


def all_gather(value: T) -> list[T]:
    """Return the `value` of every process, any picklable object, in order of rank."""
    if world_size() == 1:
        return [value]
    values: list[Any] = [None] * world_size()
    dist.all_gather_object(values, value)
    return values


def broadcast_from_rank0(make: Callable[[], T]) -> T:
    """Call `make` on rank 0 only, and return its picklable result in all processes, or raise its InputError in all."""
    if world_size() == 1:
        return make()
    outcome: list[Any] = [None]
    if rank() == 0:
        try:
            outcome = [make()]
        except InputError as error:
            outcome = [error]
    dist.broadcast_object_list(outcome, device=_communication_device())
    if isinstance(outcome[0], InputError):
        raise outcome[0]
    return outcome[0]


def local_batch_size(batch_size: int) -> int:
    """Return this process's share of `batch_size` images. Raises InputError if the shares would differ."""
    if batch_size % world_size():
        suggestion = max(1, batch_size // world_size()) * world_size()
        raise InputError(f"--batch_size {batch_size} is not divisible by {world_size()} processes: pass {suggestion}")
    return batch_size // world_size()


def _communication_device() -> torch.device:
    """Return the device for collectives: NCCL transfers GPU tensors only."""
    return torch.device("cuda", local_rank()) if dist.get_backend() == "nccl" else torch.device("cpu")
