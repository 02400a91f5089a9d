"""Several processes that train one network together, each on its own device; and the one process that needs none."""

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
_PATIENCE_SECONDS = 20


def world_size() -> int:
    """How many processes there are."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """The number of this one, from 0; rank 0 is the one that prints and writes."""
    return dist.get_rank() if dist.is_initialized() else 0


def is_started() -> bool:
    """Whether torch's launcher (`torchrun`, or `start_processes` below) has started this process among others."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def local_rank() -> int:
    """The number of this process on its machine, which is that of its GPU."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def print_rank0(text: str) -> None:
    """Print on rank 0 alone."""
    if rank() == 0:
        print(text)


@contextmanager
def report_once() -> Iterator[None]:
    """Around what every process does alike: an InputError is raised on rank 0, the others exit without a word."""
    try:
        yield
    except InputError:
        if int(os.environ.get("RANK", "0")) > 0:
            time.sleep(_PATIENCE_SECONDS)  # the launcher ends all when the first one exits: let that be rank 0
            sys.exit(1)
        raise


@contextmanager
def process_group(device: torch.device) -> Iterator[None]:
    """Joins the other processes, if there are any, by NCCL between GPUs and by gloo between CPUs."""
    if not is_started():
        yield
        return
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield
    finally:
        dist.destroy_process_group()


def start_processes(number: int) -> None:
    """Run this very command in `number` processes of this machine, and exit when they have ended.

    Torch's launcher gives them their ranks, passes Ctrl+C and SIGTERM on, and stops the others when one fails.
    """
    from torch.distributed.elastic.multiprocessing import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)  # the processes speak for themselves
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=number,
        run_id=str(os.getpid()),
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=0,
    )
    try:
        elastic_launch(config, sys.executable)(*sys.argv)
    except SignalException:
        sys.exit(0)
    except ChildFailedError as error:
        sys.exit(error.get_first_failure()[1].exitcode)
    sys.exit(0)


def all_reduce_sum(values: Tensor) -> Tensor:
    """The sum of a tensor over all processes."""
    if world_size() > 1:
        values = values.clone()
        dist.all_reduce(values)
    return values


def any_rank(*flags: bool) -> list[bool]:
    """Each flag, whether any process has raised it."""
    if world_size() == 1:
        return list(flags)
    counts = torch.tensor([float(flag) for flag in flags], device=_communication_device())
    return (all_reduce_sum(counts) > 0).tolist()


def all_gather(value: T) -> list[T]:
    """The `value` of every process, by rank."""
    if world_size() == 1:
        return [value]
    values: list[Any] = [None] * world_size()
    dist.all_gather_object(values, value)
    return values


def broadcast_from_rank0(make: Callable[[], T]) -> T:
    """What `make` gives on rank 0, where alone it is called; an InputError of it is raised in all processes."""
    if world_size() == 1:
        return make()
    made: list[Any] = [None, None]  # the result, or the message of an error
    if rank() == 0:
        try:
            made[0] = make()
        except InputError as error:
            made[1] = str(error)
    dist.broadcast_object_list(made, device=_communication_device())
    if made[1] is not None:
        raise InputError(made[1])
    return made[0]


def _communication_device() -> torch.device:
    """NCCL moves tensors between GPUs only."""
    return torch.device("cuda", local_rank()) if dist.get_backend() == "nccl" else torch.device("cpu")


def local_batch_size(batch_size: int) -> int:
    """This process's images of a step of `batch_size`. InputError unless all get the same number."""
    if batch_size % world_size():
        raise InputError(
            f"--batch_size {batch_size} cannot be shared evenly by {world_size()} processes: "
            f"take {max(1, batch_size // world_size()) * world_size()}"
        )
    return batch_size // world_size()
