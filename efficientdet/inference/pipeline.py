"""From sources to detections, with decoding, preparing and network side by side."""

from collections.abc import Generator, Iterable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path

from efficientdet.inference.detector import DetectionOptions, Detector, Prepared
from efficientdet.inference.sources import Failure, Frame, load
from efficientdet.structures import Detections
from utils.cli import default_workers
from utils.overlap import Allowance, ordered_map, prefetch

# Pixels of all frames in work together. One image may have more, and is then alone.
MOST_PIXELS = 2**28
_MOST_DECODERS = 4  # threads; a network on a GPU waits for fewer, and more would hold too many large images
_SOURCE_PATIENCE = 1.0  # seconds to wait, at the end, for a camera or a stream


def detect_frames(
    detector: Detector, items: Iterable[Path | Frame | Failure], options: DetectionOptions, batch_size: int = 1
) -> Generator[tuple[Frame, Detections] | Failure]:
    """What the detector finds in all frames of `items` (as `open_sources` gives them), in their order.

    Threads decode the next frames, prepare the next batch and run the network on this one while the caller deals with
    the last. They hold few frames, and at most about MOST_PIXELS pixels of them; they end when this generator does.
    """
    allowance = Allowance(MOST_PIXELS)

    def load_allowed(reserved_item: tuple[int, Path | Frame | Failure]) -> Frame | Failure:
        reserved, item = reserved_item
        loaded = load(item)
        allowance.settle(reserved, _pixels(loaded))
        return loaded

    # zip takes the permission before the item that needs it.
    allowed = zip(iter(allowance.reserve, None), items)
    decoders = min(_MOST_DECODERS, default_workers())
    with ExitStack() as stack:  # each stage ends before those that it draws from
        loaded = ordered_map(load_allowed, allowed, decoders, max(decoders, batch_size), _SOURCE_PATIENCE)
        stack.enter_context(closing(loaded))
        prepared = prefetch(_prepared(detector, _batches(loaded, batch_size), options, batch_size), depth=1)
        stack.enter_context(closing(prepared))
        batches = prefetch(_found(detector, prepared, options), depth=1)
        stack.enter_context(closing(batches))
        for batch in batches:
            while batch:
                pixels = _pixels(batch[0])
                yield batch.pop(0)
                allowance.release(pixels)


def _batches(items: Iterable[Frame | Failure], batch_size: int) -> Iterator[list[Frame | Failure]]:
    """Lists of up to `batch_size` frames, fewer where these are huge, with the failures between them."""
    batch, frames, pixels = [], 0, 0
    for item in items:
        batch.append(item)
        frames += isinstance(item, Frame)
        pixels += _pixels(item)
        del item
        # Half of what may be in work: all of it, and no other frame would come to fill the batch.
        if frames in (0, batch_size) or pixels >= MOST_PIXELS // 2:
            yield batch
            batch, frames, pixels = [], 0, 0
    if batch:
        yield batch


def _prepared(
    detector: Detector, batches: Iterable[list[Frame | Failure]], options: DetectionOptions, batch_size: int
) -> Iterator[tuple[list[Frame | Failure], Prepared | None]]:
    """Each batch with what the network needs of it; nothing where all are failures."""
    for batch in batches:
        arrays = [item.image for item in batch if isinstance(item, Frame)]
        yield batch, detector.prepare(arrays, options, batch_size) if arrays else None
        del batch, arrays


def _found(
    detector: Detector, batches: Iterable[tuple[list[Frame | Failure], Prepared | None]], options: DetectionOptions
) -> Iterator[list[tuple[Frame, Detections] | Failure]]:
    """Each batch with its detections."""
    for batch, prepared in batches:
        found = iter(detector.detect(prepared, options) if prepared is not None else ())
        yield [(item, next(found)) if isinstance(item, Frame) else item for item in batch]
        del batch, prepared


def _pixels(item: Frame | Failure | tuple[Frame, Detections]) -> int:
    frame = item[0] if isinstance(item, tuple) else item
    return frame.image.shape[0] * frame.image.shape[1] if isinstance(frame, Frame) else 0
