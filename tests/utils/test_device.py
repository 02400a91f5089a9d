"""Choice of device, precision and compiler, on machines with and without GPUs; memory."""

import importlib.util
import shutil
import subprocess
import sys
import sysconfig

import pytest
import torch
from scripts import REPOSITORY

from utils.device import (
    autocast_dtype,
    cuda_device,
    inference_dtype,
    is_out_of_memory,
    network_mode,
    select_device,
    training_device,
)
from utils.errors import InputError

CPU = torch.device("cpu")


@pytest.fixture
def gpus(monkeypatch):
    """A function that makes PyTorch find a number of GPUs."""

    def find(number: int) -> None:
        monkeypatch.setattr(torch.cuda, "device_count", lambda: number)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: number > 0)

    return find


def test_machine_without_gpu_runs_on_the_cpu(gpus):
    gpus(0)
    assert select_device() == select_device(None) == select_device(False) == CPU
    assert select_device(None, 3) == CPU


def test_missing_gpu_is_refused(gpus):
    gpus(0)
    for choose in (lambda: cuda_device(), lambda: select_device(True)):
        with pytest.raises(InputError, match=r"device 0 .*--cuda False"):
            choose()


def test_index_beyond_the_gpus_is_refused(gpus):
    gpus(2)
    for choose in (lambda: cuda_device(2), lambda: select_device(True, 2), lambda: select_device(None, 2)):
        with pytest.raises(InputError, match=r"device 2 .* 2 .*--device"):
            choose()


def test_machine_with_gpus_runs_on_the_requested_one(gpus):
    gpus(2)
    assert select_device() == select_device(None) == select_device(True) == torch.device("cuda", 0)
    assert select_device(None, 1) == cuda_device(1) == torch.device("cuda", 1)
    assert select_device(False, 1) == CPU


@pytest.mark.parametrize("present", [0, 2])
def test_training_without_gpus_is_on_the_cpu(gpus, present):
    gpus(present)
    assert training_device(0, "x.yml") == CPU


@pytest.mark.parametrize(("present", "remedy"), [(0, "num_gpus to 0 .*CPU"), (2, "num_gpus to 2$")])
def test_training_on_missing_gpus_is_refused_with_the_file(gpus, present, remedy):
    gpus(present)
    with pytest.raises(InputError, match=rf"projects/x\.yml .*num_gpus: 3, .* {present} .*{remedy}"):
        training_device(3, "projects/x.yml")


@pytest.mark.parametrize("local_rank", [0, 1])
def test_each_training_process_has_its_own_gpu(gpus, monkeypatch, local_rank):
    gpus(2)
    current = []
    monkeypatch.setattr(torch.cuda, "set_device", current.append)
    monkeypatch.setenv("LOCAL_RANK", str(local_rank))
    assert training_device(2, "x.yml") == torch.device("cuda", local_rank)
    assert current == [torch.device("cuda", local_rank)]


def test_process_of_several_machines_needs_its_own_gpu_only(gpus, monkeypatch):
    gpus(1)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setenv("LOCAL_RANK", "0")
    assert training_device(4, "x.yml") == torch.device("cuda", 0)
    monkeypatch.setenv("LOCAL_RANK", "1")
    with pytest.raises(InputError, match="device 1"):
        training_device(4, "x.yml")


@pytest.mark.parametrize("device", [CPU, torch.device("cuda", 1)])
@pytest.mark.parametrize(("amp", "dtype"), [("off", None), ("bf16", torch.bfloat16), ("fp16", torch.float16)])
def test_requested_precision_is_used_on_any_hardware(device, amp, dtype):
    assert autocast_dtype(amp, device) is dtype


@pytest.mark.parametrize(("native", "dtype"), [(False, None), (True, torch.bfloat16)])
def test_default_precision_is_what_the_hardware_multiplies_natively(monkeypatch, native, dtype):
    # Each kind of hardware is asked about itself: the other one's answer must not matter.
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: native)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: not native)
    assert autocast_dtype(None, CPU) is dtype
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: not native)
    # GPUs before 2020 only emulate bfloat16, which is slow.
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: native or including_emulation)
    assert autocast_dtype(None, torch.device("cuda", 0)) is dtype


def test_autocast_accepts_the_default_precision_of_this_cpu():
    dtype = autocast_dtype(None, CPU)
    with torch.autocast("cpu", dtype=dtype, enabled=dtype is not None):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype is (dtype or torch.float32)


@pytest.mark.parametrize(("amp", "dtype"), [("off", torch.float32), ("bf16", torch.bfloat16)])
def test_precision_of_inference(amp, dtype):
    assert inference_dtype(amp, CPU) is inference_dtype(amp, torch.device("cuda")) is dtype


def test_half_precision_of_inference_needs_a_gpu():
    assert inference_dtype("fp16", torch.device("cuda")) is torch.float16
    with pytest.raises(InputError, match="fp16.*GPU"):
        inference_dtype("fp16", CPU)


def test_compiling_needs_a_compiler_and_pythons_headers(monkeypatch, tmp_path):
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(tmp_path))
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert network_mode(False, CPU) == "fused"
    with pytest.raises(InputError, match=r"g\+\+"):
        network_mode(True, CPU)
    monkeypatch.setattr(shutil, "which", lambda name: "/usr/bin/g++" if name == "g++" else None)
    with pytest.raises(InputError, match=r"/Python\.h .*python3-dev"):
        network_mode(True, CPU)
    (tmp_path / "Python.h").touch()
    assert network_mode(True, CPU) == "compiled"


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_c_compiler_suffices_for_a_gpu_only(monkeypatch, tmp_path, device):
    (tmp_path / "Python.h").touch()
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(tmp_path))
    monkeypatch.setattr(shutil, "which", lambda name: "/usr/bin/gcc" if name == "gcc" else None)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: "found")
    if device == "cuda":
        assert network_mode(True, torch.device("cuda")) == "compiled"
    else:
        with pytest.raises(InputError, match=r"g\+\+"):
            network_mode(True, CPU)


def test_compiling_for_a_gpu_needs_triton(monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: name)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match="pip install triton"):
        network_mode(True, torch.device("cuda"))


# Prints the page faults of ten rounds of four tensors of 40 MiB.
COUNT_PAGE_FAULTS = """
import resource, sys
import torch
from utils.device import keep_freed_memory
if "keep" in sys.argv:
    keep_freed_memory()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    tensors = [torch.ones(10 * 2**20 + number) for number in range(4)]
    del tensors
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.slow
def test_freed_memory_is_reused():
    default, kept = (
        int(subprocess.check_output([sys.executable, "-c", COUNT_PAGE_FAULTS, *args], cwd=REPOSITORY))
        for args in ((), ("keep",))
    )
    assert 0 < kept < default / 2


def test_only_a_lack_of_memory_is_out_of_memory():
    assert not is_out_of_memory(RuntimeError())
    assert not is_out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    assert is_out_of_memory(MemoryError())
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory."))
    with pytest.raises(RuntimeError) as caught:  # the host's memory
        torch.empty(2**60, dtype=torch.uint8)
    assert is_out_of_memory(caught.value)
