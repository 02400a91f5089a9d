"""Which device to run on."""

import ctypes
import importlib.util
import os
import shutil
import sysconfig
from pathlib import Path

import torch

from utils.errors import InputError

_AMP = {"off": None, "bf16": torch.bfloat16, "fp16": torch.float16}


def cuda_device(index: int = 0) -> torch.device:
    """The CUDA device `index`; InputError when this machine has none such."""
    present = torch.cuda.device_count()
    if index >= present:
        raise InputError(
            f"CUDA device {index} was asked for, but PyTorch finds {present} here: "
            + ("choose another --device" if present else "run on the CPU (--cuda False)")
        )
    return torch.device("cuda", index)


def available_device() -> torch.device:
    """The first CUDA device if there is one, else the CPU."""
    return torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")


def chosen_device(cuda: bool | None, index: int = 0) -> torch.device:
    """The device of the scripts' `--cuda` and `--device`; `cuda` None takes a GPU when there is one."""
    if cuda is None:
        cuda = torch.cuda.is_available()
    return cuda_device(index) if cuda else torch.device("cpu")


def autocast_dtype(amp: str | None, device: torch.device) -> torch.dtype | None:
    """The dtype of the scripts' `--amp`; None (off) computes in float32.

    `amp` None takes bfloat16 where the hardware multiplies it: most CUDA GPUs since 2020, CPUs with AVX512-BF16
    (those with AMX have it, too).
    """
    if amp is None:
        if device.type == "cuda":
            fast = torch.cuda.is_bf16_supported(including_emulation=False)
        else:
            fast = torch.cpu._is_avx512_bf16_supported()
        amp = "bf16" if fast else "off"
    return _AMP[amp]


def inference_dtype(amp: str, device: torch.device) -> torch.dtype:
    """The dtype of a whole network for inference, by the scripts' `--amp`. InputError for float16 on a CPU."""
    if amp == "fp16" and device.type == "cpu":
        raise InputError("half precision (--amp fp16, --float16) needs a GPU: leave it out, or pass --amp bf16")
    return _AMP[amp] or torch.float32


def network_mode(compile_network: bool, device: torch.device) -> str:
    """How a network runs, by the scripts' `--compile`: `efficientdet.runtime.modes.optimize` has the modes."""
    if not compile_network:
        return "fused"
    check_compiler(device)
    return "compiled"


def check_compiler(device: torch.device) -> None:
    """InputError when torch.compile lacks what it builds programs for `device` with."""
    # Looked for by name, as importing what knows better takes seconds.
    names = (os.environ.get("CXX"), "g++", "clang++", "gcc", "cc")
    if not any(name and shutil.which(name) for name in names[: 3 if device.type == "cpu" else None]):
        raise InputError("compiling needs a C++ compiler: install one (on Debian and Ubuntu, the package g++)")
    headers = Path(sysconfig.get_path("include"))
    if not (headers / "Python.h").is_file():
        raise InputError(
            f"compiling needs Python's headers, and there is no {headers / 'Python.h'}: install them "
            "(on Debian and Ubuntu, the package python3-dev)"
        )
    if device.type == "cuda" and importlib.util.find_spec("triton") is None:
        raise InputError("compiling for a GPU needs the package triton: pip install triton")


# Parameters of glibc's mallopt, from malloc.h.
_M_TRIM_THRESHOLD = -1


_M_MMAP_THRESHOLD = -3


_LARGEST_TRIM_THRESHOLD = 2**31 - 1


_MMAP_THRESHOLDS = (2**30, 2**25)  # bytes; an older glibc takes no more than the second


def keep_freed_memory() -> bool:
    """Let this process and its children keep the memory of freed tensors for the next ones.

    Otherwise glibc gives large pieces back to the system at once, and each training step on the CPU spends a quarter
    of its time on having them zeroed, page by page, again. False where the C library is another, and nothing changes.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    kept = any(mallopt(_M_MMAP_THRESHOLD, threshold) for threshold in _MMAP_THRESHOLDS)
    return bool(kept and mallopt(_M_TRIM_THRESHOLD, _LARGEST_TRIM_THRESHOLD))


def is_out_of_memory(error: Exception) -> bool:
    """Whether the memory of a GPU, or the computer's, did not suffice."""
    told = any(text in str(error) for text in ("can't allocate memory", "CUDA error: out of memory", "ALLOC_FAILED"))
    return told or isinstance(error, MemoryError | torch.OutOfMemoryError)
