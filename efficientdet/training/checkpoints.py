"""The checkpoints of a run, and the state to resume it from."""

import contextlib
import re
from collections.abc import Sequence
from pathlib import Path

from torch import Tensor, nn

from efficientdet.checkpoints.find import best_path, find_last, last_path
from efficientdet.model.network import EfficientDet
from utils.errors import InputError
from utils.tensor_files import is_state_dict, load_tensors, save_tensors


class Checkpoints:
    """The checkpoints that one run writes into `folder`; it keeps the newest `keep` of them (0: all), and the best."""

    def __init__(self, folder: Path, compound_coef: int, keep: int = 0, written: Sequence[str] = ()):
        self.folder = folder
        self.keep = keep
        self.written = list(written)  # names of the run's weights files, the oldest first
        self._coef = compound_coef
        for leftover in folder.glob(f".efficientdet-d{compound_coef}_*.tmp"):  # of a process killed while it saved
            _remove(leftover)

    def save(self, network: EfficientDet, state: dict, epoch: int, step: int) -> Path:
        """Write the weights, make them and the training `state` `last`, remove what is too old. The weights' path.

        `state` holds tensors, numbers, texts, lists and dicts only.
        """
        weights = _cpu_tensors(network)
        path = self.folder / f"efficientdet-d{self._coef}_{epoch}_{step}.pth"
        save_tensors(weights, path)
        written = [name for name in self.written if name != path.name] + [path.name]
        kept = written[-self.keep :]
        save_tensors({**state, "network": weights, "written": kept}, last_path(self.folder, self._coef))
        self.written = kept
        for name in set(written) - set(kept):
            _remove(self.folder / name)
        return path

    def save_best(self, network: nn.Module) -> Path:
        """Write the weights as the best."""
        path = best_path(self.folder, self._coef)
        save_tensors(_cpu_tensors(network), path)
        return path


def load_last(folder: Path, compound_coef: int) -> dict:
    """The training state of the last run in `folder`, as `Checkpoints.save` wrote it."""
    path = find_last(folder, compound_coef)
    state = load_tensors(path)
    # The names are those of files to be removed one day.
    name = re.compile(rf"efficientdet-d{compound_coef}_\d+_\d+\.pth")
    if (
        not isinstance(state, dict)
        or not is_state_dict(state.get("network"))
        or not isinstance(written := state.get("written"), list)
        or not all(isinstance(entry, str) and name.fullmatch(entry) for entry in written)
    ):
        raise InputError(f"{path} is no training state of this version: remove it and pass a weights file")
    return state


def _remove(path: Path) -> None:
    """Without a word where that is not possible: a file too many is no reason to end a run."""
    with contextlib.suppress(OSError):
        path.unlink()


def _cpu_tensors(network: nn.Module) -> dict[str, Tensor]:
    return {key: value.cpu().contiguous() for key, value in network.state_dict().items()}
