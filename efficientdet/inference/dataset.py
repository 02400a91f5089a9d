"""A whole data set through the detector, and where the time went."""

from collections.abc import Generator, Sequence
from contextlib import closing
from dataclasses import replace

from tqdm import tqdm

from efficientdet.data.dataset import CocoDataset
from efficientdet.data.results import coco_results
from efficientdet.inference.detector import DetectionOptions, Detector, PreparedBatch
from utils import distributed
from utils.errors import InputError
from utils.overlap import ordered_map
from utils.stopwatch import Stopwatch


def detect_dataset(
    detector: Detector,
    dataset: CocoDataset,
    options: DetectionOptions,
    batch_size: int,
    num_threads: int,
    stopwatch: Stopwatch,
) -> list[dict]:
    """COCO results of all images, in the data set's order; the same in all processes, which share the images.

    Args:
        options: of them `tile` has no effect.
        num_threads: that load the next batches while the network works; 0 loads in turn with it.
        stopwatch: takes the time of loading (as far as the network waits for it), network and post-processing.

    Raises InputError for an image that cannot be used.
    """
    share = range(distributed.rank(), len(dataset), distributed.world_size())
    found, problem = {}, None
    with (
        closing(_batches(detector, dataset, share, options, batch_size, num_threads)) as batches,
        tqdm(
            desc=f"{dataset.set_name} on {detector.device}",
            total=len(share),
            unit="image",
            dynamic_ncols=True,
            disable=distributed.rank() > 0,
        ) as bar,
    ):
        while True:
            try:
                with stopwatch.measuring("loading"):
                    batch = next(batches, None)
            except InputError as error:  # the other processes must not wait for this one
                problem = str(error)
                break
            if batch is None:
                break
            image_ids, (images, letterboxes, _) = batch
            with stopwatch.measuring("network"):  # to the candidates, whose number only a finished pass can tell
                candidates = detector.find(images, letterboxes, options)
            with stopwatch.measuring("post-processing"):
                detections = detector.choose(candidates, letterboxes, options)
                for image_id, objects in zip(image_ids, detections):
                    found[image_id] = coco_results(image_id, objects, dataset.category_ids)
            bar.update(len(detections))
    parts = distributed.all_gather((found, problem))
    for _, problem in parts:
        if problem:
            raise InputError(problem)
    found = {image_id: entries for part, _ in parts for image_id, entries in part.items()}
    return [entry for image_id in dataset.image_ids for entry in found[image_id]]


def _batches(
    detector: Detector,
    dataset: CocoDataset,
    share: Sequence[int],
    options: DetectionOptions,
    batch_size: int,
    num_threads: int,
) -> Generator[tuple[list[int | str], PreparedBatch]]:
    """The images of `share` in their order: their ids, and what the network takes.

    By threads, not by `BatchLoader`'s processes: a pass through a few images is over before those have started.
    """
    whole = replace(options, tile=None)

    def load(start: int) -> tuple[list[int | str], PreparedBatch]:
        image_ids = [dataset.image_ids[index] for index in share[start : start + batch_size]]
        arrays = [dataset.load_image(image_id) for image_id in image_ids]
        (batch,) = detector.prepare(arrays, whole, batch_size).batches
        return image_ids, batch

    starts = range(0, len(share), batch_size)
    if num_threads:
        yield from ordered_map(load, starts, num_threads, depth=num_threads)
    else:
        yield from map(load, starts)
