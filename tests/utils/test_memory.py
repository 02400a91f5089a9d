"""Memory of freed tensors is kept for the next ones, and a lack of memory is known as such."""

import ctypes
import subprocess
import sys

import pytest
import torch

from utils.device import is_out_of_memory, keep_freed_memory

# Prints how many pages the system had to hand out for ten rounds of four tensors of 40 MiB.
COUNT_PAGES = """
import resource, sys
import torch
from utils.memory import is_out_of_memory, keep_freed_memory
print(keep_freed_memory() if "keep" in sys.argv else False)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    tensors = [torch.ones(10 * 2**20 + number) for number in range(4)]
    del tensors
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="needs glibc")
def test_kept_memory_is_used_again():
    (_, usual), (kept, again) = (
        subprocess.run(
            [sys.executable, "-c", COUNT_PAGES, *args], capture_output=True, text=True, check=True
        ).stdout.split()
        for args in ((), ("keep",))
    )
    assert kept == "True"
    assert int(usual) > 0
    assert int(again) < int(usual) / 2


def test_another_c_library_is_left_as_it_is(monkeypatch):
    monkeypatch.setattr(ctypes, "CDLL", lambda name: object())
    assert keep_freed_memory() is False


def test_what_is_out_of_memory():
    assert not is_out_of_memory(RuntimeError())
    assert not is_out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory."))
    with pytest.raises(RuntimeError) as caught:  # the computer's own memory
        torch.empty(2**60, dtype=torch.uint8)
    assert is_out_of_memory(caught.value)
