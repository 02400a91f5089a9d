"""Which device to run on, on machines with and without GPUs."""

import importlib.util
import shutil
import sysconfig

import pytest
import torch

from utils.device import autocast_dtype, available_device, chosen_device, cuda_device, inference_dtype, network_mode
from utils.errors import InputError


@pytest.fixture
def gpus(monkeypatch):
    """A function that lets PyTorch find so many GPUs."""

    def find(number: int) -> None:
        monkeypatch.setattr(torch.cuda, "device_count", lambda: number)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: number > 0)

    return find


def test_machine_without_gpu_runs_on_the_cpu(gpus):
    gpus(0)
    assert available_device() == chosen_device(None) == chosen_device(False) == torch.device("cpu")
    assert chosen_device(None, 3) == torch.device("cpu")


def test_gpu_that_is_not_there_is_refused(gpus):
    gpus(0)
    for ask in (lambda: cuda_device(), lambda: chosen_device(True)):
        with pytest.raises(InputError, match=r"CUDA device 0 .*finds 0 .*--cuda False"):
            ask()


def test_index_beyond_the_gpus_is_refused(gpus):
    gpus(2)
    for ask in (lambda: cuda_device(2), lambda: chosen_device(True, 2), lambda: chosen_device(None, 2)):
        with pytest.raises(InputError, match=r"CUDA device 2 .*finds 2 .*--device"):
            ask()


def test_machine_with_gpus_runs_on_the_one_asked_for(gpus):
    gpus(2)
    assert available_device() == chosen_device(None) == chosen_device(True) == torch.device("cuda", 0)
    assert chosen_device(None, 1) == cuda_device(1) == torch.device("cuda", 1)
    assert chosen_device(False, 1) == torch.device("cpu")


@pytest.mark.parametrize("device", [torch.device("cpu"), torch.device("cuda", 1)])
@pytest.mark.parametrize(("amp", "dtype"), [("off", None), ("bf16", torch.bfloat16), ("fp16", torch.float16)])
def test_precision_that_is_asked_for_is_taken_on_any_hardware(device, amp, dtype):
    assert autocast_dtype(amp, device) is dtype


@pytest.mark.parametrize(("fast", "dtype"), [(False, None), (True, torch.bfloat16)])
def test_precision_by_default_is_what_the_hardware_multiplies(monkeypatch, fast, dtype):
    # Each kind of hardware is asked for itself: the other's answer must not matter.
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: fast)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: not fast)
    assert autocast_dtype(None, torch.device("cpu")) is dtype
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: not fast)
    # GPUs before 2020 have bfloat16 by emulation alone, which is slow.
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: fast or including_emulation)
    assert autocast_dtype(None, torch.device("cuda", 0)) is dtype


def test_precision_of_this_machines_cpu_is_one_that_autocast_takes():
    dtype = autocast_dtype(None, torch.device("cpu"))
    with torch.autocast("cpu", dtype=dtype, enabled=dtype is not None):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype is (dtype or torch.float32)


@pytest.mark.parametrize(("amp", "dtype"), [("off", torch.float32), ("bf16", torch.bfloat16)])
def test_precision_of_inference(amp, dtype):
    assert inference_dtype(amp, torch.device("cpu")) is inference_dtype(amp, torch.device("cuda")) is dtype


def test_half_precision_of_inference_needs_a_gpu():
    assert inference_dtype("fp16", torch.device("cuda")) is torch.float16
    with pytest.raises(InputError, match="fp16.*GPU"):
        inference_dtype("fp16", torch.device("cpu"))


def test_networks_are_compiled_where_a_compiler_is(monkeypatch, tmp_path):
    cpu = torch.device("cpu")
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(tmp_path))
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert network_mode(False, cpu) == "fused"
    with pytest.raises(InputError, match=r"needs a C\+\+ compiler: install .*g\+\+"):
        network_mode(True, cpu)
    monkeypatch.setattr(shutil, "which", lambda name: "/usr/bin/g++" if name == "g++" else None)
    with pytest.raises(InputError, match=r"needs .*/Python\.h: install .*python3-dev"):
        network_mode(True, cpu)
    (tmp_path / "Python.h").touch()
    assert network_mode(True, cpu) == "compiled"


@pytest.mark.parametrize(("triton", "expected"), [(None, "pip install triton"), ("there", None)])
def test_networks_are_compiled_for_a_gpu_by_triton(monkeypatch, triton, expected):
    monkeypatch.setattr(shutil, "which", lambda name: name)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: triton)
    if expected:
        with pytest.raises(InputError, match=expected):
            network_mode(True, torch.device("cuda"))
    else:
        assert network_mode(True, torch.device("cuda")) == "compiled"
