"""What to do when a training step fails."""

from collections.abc import Callable

from efficientdet.data.loader import Batch
from utils.device import is_out_of_memory


def fitting_batch_size(step: Callable[[Batch], object], batch: Batch) -> int:
    """The largest part of a `batch` that runs out of memory with which `step` does not: halves are tried; 0 is none."""
    images = len(batch.image_ids) // 2
    while images:
        try:
            step(batch.first(images))
            return images
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
        images //= 2
    return 0
