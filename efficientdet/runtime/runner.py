"""What the detector needs of a network, whichever way it runs."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Protocol

import torch
from torch import Tensor

from efficientdet.model.postprocess import Candidates
from efficientdet.project import Project
from efficientdet.runtime.metadata import Suppression
from utils.stopwatch import Stopwatch


class Runner(Protocol):
    """A trained network on its device, ready for inference: `NetworkRunner` in PyTorch, or an `ExportedModel`."""

    compound_coef: int
    size_divisor: int  # sides of the input must be multiples of it
    input_dtype: torch.dtype  # of images: floating point, normalized; or uint8, which the network normalizes itself
    padding: tuple[int, int, int]  # RGB around a uint8 image
    takes_any_shape: bool  # whether the input's shape may change from batch to batch
    limits: Suppression | None  # the thresholds of a graph that includes NMS

    def canvas(self, image_size: int | tuple[int, int] | None, project: Project) -> tuple[int, int]:
        """Return the (height, width) of the input for an image size as in `ModelConfig.input_shape`.

        None means the network's default. Raises InputError for a size that the network does not accept.
        """

    def find(
        self, images: Tensor, score_threshold: float, stopwatch: Stopwatch | None = None, multi_label: bool = False
    ) -> Candidates:
        """Return the candidates above the score threshold in images (N, 3, H, W) of `input_dtype`.

        `multi_label` chooses them as `find_candidates` does; a graph that includes NMS ignores it. The time goes to
        `stopwatch`: "network", and "post-processing" where it can be separated.
        """


@contextmanager
def measuring(stopwatch: Stopwatch | None, activity: str, device: torch.device) -> Iterator[None]:
    """Add the time that the block takes on `device` to `stopwatch`. Without one, do not wait for the device."""
    with stopwatch.measuring(activity) if stopwatch else nullcontext():
        yield
        if stopwatch and device.type == "cuda":
            torch.cuda.synchronize(device)
