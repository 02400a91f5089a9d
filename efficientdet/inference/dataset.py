"""Detect in a whole data set, and measure where the time goes."""

from contextlib import closing
from dataclasses import replace

from tqdm import tqdm

from efficientdet.data.dataset import CocoDataset
from efficientdet.data.results import coco_results
from efficientdet.inference.detector import Detector, Prepared
from efficientdet.inference.options import DetectionOptions
from utils import distributed
from utils.errors import InputError
from utils.stopwatch import Stopwatch
from utils.threads import ordered_map


def detect_dataset(
    detector: Detector,
    dataset: CocoDataset,
    options: DetectionOptions,
    batch_size: int,
    num_threads: int,
    stopwatch: Stopwatch,
    progress: bool = True,
) -> list[dict]:
    """Return the COCO results of all images, in the data set's order. `options.tile` has no effect.

    Processes share the images; each returns the results of all. `num_threads` load the next batches while the network
    runs; with 0, loading alternates with it. `stopwatch` receives the time of "loading" (as far as the network waits
    for it), "network" and "post-processing". `progress` shows a bar. Raises InputError for an unusable image.
    """
    share = dataset.image_ids[distributed.rank() :: distributed.world_size()]
    whole_images = replace(options, tile=None)

    def load(start: int) -> tuple[list[int | str], Prepared]:
        image_ids = share[start : start + batch_size]
        return image_ids, detector.prepare(list(map(dataset.load_image, image_ids)), whole_images, batch_size)

    starts = range(0, len(share), batch_size)
    # Threads, because the processes of `BatchLoader` take longer to start than detection in a small set.
    loaded = ordered_map(load, starts, num_threads, num_threads) if num_threads else (load(start) for start in starts)
    description, disable = f"{dataset.set_name} on {detector.device}", distributed.rank() > 0 or not progress
    bar = tqdm(desc=description, total=len(share), unit="image", dynamic_ncols=True, disable=disable)
    found: dict[int | str, list[dict]] = {}
    problem = None
    with bar, closing(loaded) as batches:
        try:
            while True:
                with stopwatch.measuring("loading"):
                    batch = next(batches, None)
                if batch is None:
                    break
                image_ids, prepared = batch
                detections = detector.detect(prepared, whole_images, stopwatch)
                with stopwatch.measuring("post-processing"):
                    for image_id, of_image in zip(image_ids, detections):
                        found[image_id] = coco_results(image_id, of_image, dataset.category_ids)
                bar.update(len(detections))
        except InputError as error:  # raised below, because the other processes wait for this one
            problem = str(error)
    for part, reason in distributed.all_gather((found, problem)):
        if reason is not None:
            raise InputError(reason)
        found.update(part)
    return [result for image_id in dataset.image_ids for result in found[image_id]]
