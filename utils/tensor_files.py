"""Files of tensors, written atomically and read without executing their content."""

import io
from pathlib import Path
from typing import TypeGuard

import torch
from torch import Tensor

from utils.errors import InputError
from utils.files import atomic_write


def save_tensors(content: dict, path: Path) -> None:
    """Save a dict of tensors, numbers, strings, lists and dicts. Raises InputError if the file cannot be written."""
    # Serialized in memory first: on a full disk torch.save raises RuntimeError, among others.
    buffer = io.BytesIO()
    torch.save(content, buffer)
    with atomic_write(path) as temporary:
        temporary.write_bytes(buffer.getbuffer())


def load_tensors(path: Path) -> object:
    """Load the content of a PyTorch or safetensors file onto the CPU. Raises InputError if it cannot be read."""
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except ModuleNotFoundError as error:
        raise InputError(f"reading {path} needs the package safetensors: pip install safetensors") from error
    except Exception as error:  # the unpickler may raise nearly anything on a damaged file
        reason = "it is damaged, incomplete, or holds other objects, which are never loaded"
        raise InputError(f"{path} cannot be read as a file of tensors: {reason}") from error


def is_state_dict(content: object) -> TypeGuard[dict[str, Tensor]]:
    """Return whether `content` is a dict of named tensors and nothing else."""
    if not isinstance(content, dict):
        return False
    return all(isinstance(key, str) and isinstance(value, Tensor) for key, value in content.items())
