"""Devices: which one to use, in which precision, and how to treat its memory."""

import ctypes
import importlib.util
import os
import shutil
import sysconfig
from pathlib import Path

import torch

from utils import distributed
from utils.errors import InputError

_AMP = {"off": None, "bf16": torch.bfloat16, "fp16": torch.float16}
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # parameters of glibc's mallopt, from malloc.h


def cuda_device(index: int = 0) -> torch.device:
    """Return the CUDA device `index`. Raises InputError if it does not exist."""
    present = torch.cuda.device_count()
    if index >= present:
        remedy = "choose another --device" if present else "run on the CPU (--cuda False)"
        raise InputError(f"CUDA device {index} was requested, but PyTorch finds {present} GPUs: {remedy}")
    return torch.device("cuda", index)


def select_device(cuda: bool | None = None, index: int = 0) -> torch.device:
    """Return the device for `--cuda` and `--device`. If `cuda` is None, prefer a GPU."""
    if cuda is None:
        cuda = torch.cuda.is_available()
    return cuda_device(index) if cuda else torch.device("cpu")


def training_device(num_gpus: int, source: str) -> torch.device:
    """Return this process's device for training on `num_gpus` GPUs (0 means the CPU), and make it the current one.

    Raises InputError if they do not exist, naming `source`, the file that sets `num_gpus`. Under torchrun, which may
    span several machines, only this process's own GPU is checked.
    """
    if num_gpus == 0:
        return torch.device("cpu")
    present = torch.cuda.device_count()
    if num_gpus > present and not distributed.is_launched():
        remedy = f"set num_gpus to {present}" + ("" if present else " to train on the CPU")
        raise InputError(f"{source} asks for num_gpus: {num_gpus}, but PyTorch finds {present} here: {remedy}")
    device = cuda_device(distributed.local_rank())
    torch.cuda.set_device(device)
    return device


def autocast_dtype(amp: str | None, device: torch.device) -> torch.dtype | None:
    """Return the autocast dtype for `--amp`, or None for float32.

    If `amp` is None, choose bfloat16 where the hardware multiplies it natively: most CUDA GPUs since 2020, and CPUs
    with AVX512-BF16 (which includes those with AMX).
    """
    if amp is not None:
        return _AMP[amp]
    if device.type == "cuda":
        is_native = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        is_native = torch.cpu._is_avx512_bf16_supported()
    return torch.bfloat16 if is_native else None


def inference_dtype(amp: str, device: torch.device) -> torch.dtype:
    """Return the dtype of a network at inference for `--amp`. Raises InputError for float16 on a CPU."""
    if amp == "fp16" and device.type == "cpu":
        raise InputError("half precision (--amp fp16, --float16) needs a GPU: leave it out, or pass --amp bf16")
    return _AMP[amp] or torch.float32


def network_mode(compile_network: bool, device: torch.device) -> str:
    """Return the mode for `--compile`, as in `efficientdet.runtime.modes`. Raises InputError without a compiler."""
    if not compile_network:
        return "fused"
    check_compiler(device)
    return "compiled"


def check_compiler(device: torch.device) -> None:
    """Raise InputError if something that torch.compile needs for `device` is not installed."""
    # Looked up by name, because importing PyTorch's own check takes seconds. A GPU needs a C compiler only.
    compilers = [os.environ.get("CXX"), "g++", "clang++"] + (["gcc", "cc"] if device.type == "cuda" else [])
    if not any(name and shutil.which(name) for name in compilers):
        raise InputError("compiling needs a C++ compiler: install one (on Debian and Ubuntu, the package g++)")
    header = Path(sysconfig.get_path("include"), "Python.h")
    if not header.is_file():
        package = "on Debian and Ubuntu, the package python3-dev"
        raise InputError(f"compiling needs {header} of Python's headers: install them ({package})")
    if device.type == "cuda" and importlib.util.find_spec("triton") is None:
        raise InputError("compiling for a GPU needs the package triton: pip install triton")


def keep_freed_memory() -> None:
    """Let this process and its children reuse the memory of freed tensors instead of returning it to the system.

    By default glibc unmaps large blocks at once; page faults then take a quarter of a training step on the CPU.
    """
    mallopt = ctypes.CDLL(None).mallopt
    if not mallopt(_M_MMAP_THRESHOLD, 2**30):
        mallopt(_M_MMAP_THRESHOLD, 2**25)  # the maximum of an older glibc
    mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)


def is_out_of_memory(error: Exception) -> bool:
    """Return whether `error` reports a lack of GPU or host memory."""
    messages = ("can't allocate memory", "CUDA error: out of memory", "ALLOC_FAILED")
    is_known = any(message in str(error) for message in messages)
    return is_known or isinstance(error, MemoryError | torch.OutOfMemoryError)
