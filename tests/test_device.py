"""Which device to run on, on machines with and without GPUs."""

import pytest
import torch

from utils.device import available_device, chosen_device, cuda_device
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
