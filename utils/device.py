"""Which device to run on."""

import torch

from utils.errors import InputError


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
