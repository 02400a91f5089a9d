"""The checkpoints that a run writes, and the state that it can be resumed from.

A checkpoint `efficientdet-d{coef}_{epoch}_{step}.pth` is a plain state dict, as the reference writes it. Next to the
newest is `efficientdet-d{coef}_last.state` with everything that a run needs to resume, its weights included: a single
rename replaces one complete state by the next, whatever happens to the other files.
"""

import contextlib
import re
from collections.abc import Sequence
from pathlib import Path

from torch import Tensor, nn

from efficientdet.checkpoints.find import best_path, find_last, last_path
from utils.errors import InputError
from utils.tensor_files import is_state_dict, load_tensors, save_tensors


class Checkpoints:
    """The checkpoints of one run in `folder`: its newest `keep` (0: all), the best, and the state to resume from."""

    def __init__(self, folder: Path, compound_coef: int, keep: int = 0, written: Sequence[str] = ()):
        self.folder = folder
        self.keep = keep
        self.written = list(written)  # names of the run's weights files, oldest first
        self._coef = compound_coef
        for leftover in folder.glob(f".efficientdet-d{compound_coef}_*.tmp"):  # of a process killed while saving
            _remove(leftover)

    def save(self, network: nn.Module, state: dict, epoch: int, step: int, result: nn.Module | None = None) -> Path:
        """Write a weights file, then `network` and `state` as `last`, and remove old checkpoints.

        The weights file holds `result`, or without one the network. `state` may hold tensors, numbers, strings, lists
        and dicts. Returns the path of the weights file.
        """
        path = self.folder / f"efficientdet-d{self._coef}_{epoch}_{step}.pth"
        save_tensors(_cpu_tensors(result or network), path)
        written = [name for name in self.written if name != path.name] + [path.name]
        kept = written[-self.keep :]
        save_tensors({**state, "network": _cpu_tensors(network), "written": kept}, last_path(self.folder, self._coef))
        self.written = kept
        for name in set(written) - set(kept):
            _remove(self.folder / name)
        return path

    def save_best(self, network: nn.Module) -> Path:
        """Write the weights as the best. Returns their path."""
        path = best_path(self.folder, self._coef)
        save_tensors(_cpu_tensors(network), path)
        return path


def load_last(folder: Path, compound_coef: int) -> dict:
    """Load the state that `Checkpoints.save` wrote last. Raises InputError if there is none, or it is unusable."""
    path = find_last(folder, compound_coef)
    state = load_tensors(path)
    # The names in `written` are those of files to be removed one day: accept no others.
    name = re.compile(rf"efficientdet-d{compound_coef}_\d+_\d+\.pth")
    if (
        not isinstance(state, dict)
        or not is_state_dict(state.get("network"))
        or not isinstance(written := state.get("written"), list)
        or not all(isinstance(entry, str) and name.fullmatch(entry) for entry in written)
    ):
        raise InputError(f"{path} is not a training state of this version: remove it and pass a weights file")
    return state


def _remove(path: Path) -> None:
    """Remove a file if possible: a file too many is no reason to end a run."""
    with contextlib.suppress(OSError):
        path.unlink()


def _cpu_tensors(network: nn.Module) -> dict[str, Tensor]:
    return {key: value.cpu().contiguous() for key, value in network.state_dict().items()}
