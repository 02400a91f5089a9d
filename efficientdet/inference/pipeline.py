"""From sources to detections, with decoding, preparation and network running side by side."""

from collections.abc import Generator, Iterable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path

from efficientdet.inference.detector import Detector, Prepared
from efficientdet.inference.options import DetectionOptions
from efficientdet.inference.sources import Failure, Frame, load
from efficientdet.structures import Detections
from utils.cli import default_workers
from utils.threads import Budget, ordered_map, prefetch

Items = list[Frame | Failure]
FrameResult = tuple[Frame, Detections] | Failure

MAX_PIXELS_IN_FLIGHT = 2**28  # of all frames together; a single larger one is allowed
_MAX_DECODERS = 4  # threads; more would not speed up a GPU, and hold too many large images
_SOURCE_PATIENCE = 1.0  # seconds to wait, at the end, for a camera or a stream


def detect_frames(
    detector: Detector, items: Iterable[Path | Frame | Failure], options: DetectionOptions, batch_size: int = 1
) -> Generator[FrameResult]:
    """Yield the frames of `items`, as of `open_sources`, with their detections, in order.

    Threads decode the next frames, prepare the next batch and run the network on this one while the caller handles the
    last. They hold about MAX_PIXELS_IN_FLIGHT pixels in all, and end when this generator does.
    """
    allowance = Budget(MAX_PIXELS_IN_FLIGHT)

    def decode(reserved_item: tuple[int, Path | Frame | Failure]) -> Frame | Failure:
        reserved, item = reserved_item
        loaded = load(item)
        allowance.settle(reserved, _pixels(loaded))
        return loaded

    def prepare(batch: Items) -> tuple[Items, Prepared | None]:
        arrays = [item.image for item in batch if isinstance(item, Frame)]
        return batch, detector.prepare(arrays, options, batch_size) if arrays else None

    def detect(prepared_batch: tuple[Items, Prepared | None]) -> list[FrameResult]:
        batch, prepared = prepared_batch
        found = iter(detector.detect(prepared, options) if prepared else ())
        return [(item, next(found)) if isinstance(item, Frame) else item for item in batch]

    decoders = min(_MAX_DECODERS, default_workers())
    # Stages are functions, because a generator's variables would keep frames alive that it has handed on.
    with ExitStack() as stack:  # each stage ends before those that it draws from
        reserved_items = zip(iter(allowance.reserve, None), items)  # waits for room before it opens the next item
        depth = max(decoders, batch_size)
        frames = stack.enter_context(closing(ordered_map(decode, reserved_items, decoders, depth, _SOURCE_PATIENCE)))
        batches = iter(lambda: _next_batch(frames, batch_size), [])
        prepared = stack.enter_context(closing(prefetch(map(prepare, batches), depth=1)))
        for batch in stack.enter_context(closing(prefetch(map(detect, prepared), depth=1))):
            while batch:
                pixels = _pixels(batch[0])
                yield batch.pop(0)
                allowance.release(pixels)


def _next_batch(items: Iterator[Frame | Failure], batch_size: int) -> Items:
    """Return up to `batch_size` frames, fewer if they are huge, with the failures between them; empty at the end."""
    batch: Items = []
    frames = pixels = 0
    for item in items:
        batch.append(item)
        frames += isinstance(item, Frame)
        pixels += _pixels(item)
        # Half of the pixels allowed in flight: at all of them, no other frame could arrive to fill the batch.
        if frames in (0, batch_size) or pixels >= MAX_PIXELS_IN_FLIGHT // 2:
            break
    return batch


def _pixels(item: Frame | FrameResult) -> int:
    frame = item[0] if isinstance(item, tuple) else item
    return frame.image.shape[0] * frame.image.shape[1] if isinstance(frame, Frame) else 0
