"""How the C library deals with freed memory, and when there is not enough."""

import ctypes

import torch

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
