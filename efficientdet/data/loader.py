"""Batches of samples, loaded by worker processes."""

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader, Dataset, Sampler

from efficientdet.data.dataset import CocoDataset, Sample, SampleKey
from efficientdet.data.transforms import Letterbox
from efficientdet.structures import PADDING_CLASS, Targets
from utils.errors import InputError


@dataclass(frozen=True)
class Batch:
    """N samples."""

    images: Tensor  # (N, 3, H, W) float32, normalized, channels-last in memory
    targets: Targets  # in pixels of `images`
    letterboxes: list[Letterbox]
    image_ids: list[int | str]

    def pin_memory(self) -> "Batch":
        """Return the batch in page-locked memory, which can be copied to a GPU asynchronously."""
        return self._map(lambda tensor: tensor.pin_memory())

    def to(self, device: torch.device) -> "Batch":
        return self._map(lambda tensor: tensor.to(device, non_blocking=True))

    def first(self, count: int) -> "Batch":
        """Return the first `count` samples, or all if there are fewer."""
        part = self._map(lambda tensor: tensor[:count])
        return replace(part, letterboxes=self.letterboxes[:count], image_ids=self.image_ids[:count])

    def _map(self, function: Callable[[Tensor], Tensor]) -> "Batch":
        return replace(self, images=function(self.images), targets=Targets(*map(function, self.targets)))


@dataclass(eq=False)
class EpochSampler(Sampler[SampleKey]):
    """Every image once per epoch, in an order that depends only on the seed and the epoch.

    Set `epoch` before iterating, and `start` to skip that many images when resuming within an epoch. If several
    processes share a step of `step_images`, each draws its part of every step: together they see what a single process
    would, except for an incomplete last step, which is dropped.
    """

    length: int
    seed: int
    step_images: int = 1
    rank: int = 0
    world_size: int = 1
    epoch: int = 0
    start: int = 0

    def __iter__(self) -> Iterator[SampleKey]:
        order = np.random.default_rng((self.seed, self.epoch)).permutation(self.length)[self.start :]
        if self.world_size > 1:
            share = self.step_images // self.world_size
            order = order[: len(self) * self.world_size].reshape(-1, self.world_size, share)[:, self.rank]
        return (SampleKey(int(index), self.epoch) for index in order.ravel())

    def __len__(self) -> int:
        left = self.length - self.start
        return left if self.world_size == 1 else left // self.step_images * (self.step_images // self.world_size)


def collate(samples: list[Sample]) -> Batch:
    """Stack samples of one input size; targets are padded to the largest number of objects."""
    images = np.stack([sample.image for sample in samples])
    max_objects = max(len(sample.target.class_ids) for sample in samples)
    boxes = torch.zeros(len(samples), max_objects, 4)
    class_ids = torch.full((len(samples), max_objects), PADDING_CLASS)
    for i, sample in enumerate(samples):
        objects = len(sample.target.class_ids)
        boxes[i, :objects] = torch.from_numpy(sample.target.boxes)
        class_ids[i, :objects] = torch.from_numpy(sample.target.class_ids)
    letterboxes, image_ids = [sample.letterbox for sample in samples], [sample.image_id for sample in samples]
    return Batch(torch.from_numpy(images).permute(0, 3, 1, 2), Targets(boxes, class_ids), letterboxes, image_ids)


class BatchLoader:
    """Batches of a data set, prepared by worker processes.

    An `EpochSampler` makes it a training loader: shuffled and augmented, without the incomplete last batch unless it is
    the only one. Plain indices (by default all, in order) make it an evaluation loader: each image once.
    Keys do the same with augmented images.
    """

    def __init__(
        self,
        dataset: CocoDataset,
        batch_size: int,
        num_workers: int,
        sampler: EpochSampler | Sequence[int] | Sequence[SampleKey] | None = None,
        pin_memory: bool = False,
    ):
        self.dataset = dataset
        self._sampler = range(len(dataset)) if sampler is None else sampler
        drop_last = isinstance(sampler, EpochSampler) and len(dataset) >= batch_size
        self._batches = BatchSampler(self._sampler, batch_size, drop_last)  # type: ignore[arg-type]  # SampleKeys
        self._loader = DataLoader(
            _BatchOrError(dataset),
            batch_size=None,  # an item of the data set is a whole batch
            sampler=self._batches,
            num_workers=num_workers,
            pin_memory=pin_memory,
            worker_init_fn=_leave_process_group,
            persistent_workers=num_workers > 0,
            # Each iteration draws a number. Taken from the global generator, it would make the random numbers of
            # training depend on how often an epoch was begun.
            generator=torch.Generator(),
        )

    def start_epoch(self, epoch: int, images_done: int = 0) -> None:
        """Make the next iteration draw the images of `epoch` after its first `images_done`."""
        assert isinstance(self._sampler, EpochSampler)
        self._sampler.epoch, self._sampler.start = epoch, images_done

    @property
    def num_images(self) -> int:
        """The number of images in the next iteration."""
        batches = self._batches
        return len(batches) * batches.batch_size if batches.drop_last else len(self._sampler)

    def __iter__(self) -> Iterator[Batch]:
        """Yield batches. Raises InputError at the first unusable image."""
        for batch in self._loader:
            if isinstance(batch, InputError):
                try:
                    raise batch
                finally:
                    del batch  # the traceback refers to this frame; the cycle would keep the workers alive
            yield batch


def is_dead_worker(error: Exception) -> bool:
    """Return whether a worker process died. PyTorch raises that anywhere; during a read, the connection breaks."""
    return isinstance(error, EOFError | ConnectionError) or "DataLoader worker" in str(error)


@dataclass(frozen=True)
class _BatchOrError(Dataset):
    """Batches by their keys. InputErrors are returned: raised in a worker, they would arrive with its traceback."""

    dataset: CocoDataset

    def __getitem__(self, keys: list[int] | list[SampleKey]) -> Batch | InputError:
        try:
            return collate([self.dataset[key] for key in keys])
        except InputError as error:
            return error


def _leave_process_group(worker_id: int) -> None:
    """Shield a worker from Ctrl+C and SIGTERM, which reach the whole group: the last step still needs it."""
    os.setpgrp()
