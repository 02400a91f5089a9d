"""Files of tensors: written whole, and read without executing anything in them."""

import io
from pathlib import Path
from typing import TypeGuard

import torch
from torch import Tensor

from utils.errors import InputError
from utils.files import atomic_write


def save_tensors(content: dict, path: Path) -> None:
    """Write a dict of tensors, numbers, texts, lists and dicts. InputError when the disk does not take it."""
    # Through memory, because torch.save tells of a full disk by a RuntimeError among others.
    buffer = io.BytesIO()
    torch.save(content, buffer)
    with atomic_write(path) as temporary:
        temporary.write_bytes(buffer.getbuffer())


def load_tensors(path: Path) -> object:
    """What a file of PyTorch or safetensors holds, on the CPU. InputError when it cannot be read as such."""
    try:
        if path.suffix == ".safetensors":
            return _load_safetensors(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except ModuleNotFoundError as error:
        raise InputError(f"reading {path} needs the package safetensors: pip install safetensors") from error
    except Exception as error:  # a damaged file makes the unpickler raise nearly anything
        raise InputError(
            f"{path} cannot be read as a file of tensors: it is damaged, incomplete, or holds other objects, "
            "which are never loaded"
        ) from error


def _load_safetensors(path: Path) -> dict[str, Tensor]:
    from safetensors.torch import load_file

    return load_file(path)


def is_state_dict(content: object) -> TypeGuard[dict[str, Tensor]]:
    """Whether it is a dict of named tensors and nothing else."""
    return isinstance(content, dict) and all(
        isinstance(key, str) and isinstance(value, Tensor) for key, value in content.items()
    )
