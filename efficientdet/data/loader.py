"""Batches of samples, loaded by worker processes."""

import os
from collections.abc import Callable, Iterator, Sequence, Sized
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from efficientdet.data.dataset import CocoDataset, Sample, SampleKey
from efficientdet.data.transforms import Letterbox
from efficientdet.structures import PADDING_CLASS, Targets
from utils.errors import InputError


@dataclass(frozen=True)
class Batch:
    """N samples together."""

    images: Tensor  # (N, 3, H, W) float32, normalised, channels-last in memory
    targets: Targets  # in pixels of `images`
    letterboxes: list[Letterbox]
    image_ids: list[int | str]

    def pin_memory(self) -> "Batch":
        """The batch in page-locked memory, from where it is copied to a GPU while the GPU works."""
        return self._with(lambda tensor: tensor.pin_memory())

    def to(self, device: torch.device) -> "Batch":
        return self._with(lambda tensor: tensor.to(device, non_blocking=True))

    def first(self, images: int) -> "Batch":
        """Its first so many samples."""
        part = self._with(lambda tensor: tensor[:images])
        return replace(part, letterboxes=self.letterboxes[:images], image_ids=self.image_ids[:images])

    def _with(self, move: Callable[[Tensor], Tensor]) -> "Batch":
        return replace(self, images=move(self.images), targets=Targets(*map(move, self.targets)))


class EpochSampler(Sampler[SampleKey]):
    """All images once per epoch, in an order that depends on the seed and the epoch alone.

    Set `epoch` before iterating; `start` skips that many images, to go on in the middle of an epoch. When several
    processes share a step of `step_images`, each draws its part of every step, so that together they see what one
    process would; an incomplete last step is then left out.
    """

    def __init__(self, length: int, seed: int, step_images: int = 1, rank: int = 0, world_size: int = 1):
        self.length = length
        self.seed = seed
        self.epoch = 0
        self.start = 0
        self._step_images = step_images
        self._rank = rank
        self._world_size = world_size

    def __iter__(self) -> Iterator[SampleKey]:
        order = np.random.default_rng((self.seed, self.epoch)).permutation(self.length)[self.start :]
        if self._world_size > 1:
            order = order[: len(self) * self._world_size].reshape(-1, self._world_size, self._share)[:, self._rank]
        return (SampleKey(int(index), self.epoch) for index in order.ravel())

    def __len__(self) -> int:
        left = self.length - self.start
        return left if self._world_size == 1 else left // self._step_images * self._share

    @property
    def _share(self) -> int:
        return self._step_images // self._world_size


def collate(samples: list[Sample]) -> Batch:
    """Samples of one input size -> a batch; targets padded to the largest number of objects."""
    images = np.stack([sample.image for sample in samples])
    most = max(len(sample.target.class_ids) for sample in samples)
    boxes = torch.zeros(len(samples), most, 4)
    class_ids = torch.full((len(samples), most), PADDING_CLASS)
    for i, sample in enumerate(samples):
        objects = len(sample.target.class_ids)
        boxes[i, :objects] = torch.from_numpy(sample.target.boxes)
        class_ids[i, :objects] = torch.from_numpy(sample.target.class_ids)
    return Batch(
        images=torch.from_numpy(images).permute(0, 3, 1, 2),
        targets=Targets(boxes, class_ids),
        letterboxes=[sample.letterbox for sample in samples],
        image_ids=[sample.image_id for sample in samples],
    )


class BatchLoader:
    """Batches of a data set, prepared by worker processes.

    With an `EpochSampler` it serves training: shuffled, augmented, without the incomplete last batch (unless there is
    no other). With other indices, by default all in order, it serves evaluation: every image once.
    """

    def __init__(
        self,
        dataset: CocoDataset,
        batch_size: int,
        num_workers: int,
        sampler: EpochSampler | Sequence[int] | None = None,
        pin_memory: bool = False,
    ):
        self.dataset = dataset
        self._batch_size = batch_size
        self._drawn: Sized = dataset if sampler is None else sampler
        self._loader = DataLoader(
            _ErrorsAsValues(dataset),
            batch_size,
            sampler=sampler,
            num_workers=num_workers,
            collate_fn=_collate_or_error,
            drop_last=isinstance(sampler, EpochSampler) and len(dataset) >= batch_size,
            pin_memory=pin_memory,
            worker_init_fn=_leave_stopping_to_the_main_process,
            persistent_workers=num_workers > 0,
            # Of its own, because each iteration draws a number from it: training's random numbers must not depend on
            # how often an epoch was begun.
            generator=torch.Generator(),
        )

    def start_epoch(self, epoch: int, images_done: int = 0) -> None:
        """Make the next iteration draw the images of `epoch` after its first `images_done`."""
        assert isinstance(self._drawn, EpochSampler)
        self._drawn.epoch, self._drawn.start = epoch, images_done

    @property
    def num_images(self) -> int:
        """How many images one iteration from here gives."""
        return len(self._loader) * self._batch_size if self._loader.drop_last else len(self._drawn)

    def __iter__(self) -> Iterator[Batch]:
        """InputError for the first image that cannot be used."""
        for batch in self._loader:
            if isinstance(batch, InputError):
                try:
                    raise batch
                finally:
                    del batch  # its traceback holds this frame, and that cycle would keep the workers waiting
            yield batch


def is_dead_worker(error: RuntimeError) -> bool:
    """Whether a loading process died, which PyTorch tells wherever the main process happens to be."""
    return "DataLoader worker" in str(error)


class _ErrorsAsValues(Dataset):
    """Hands an InputError on as a value: raised in a worker, it would arrive wrapped in the worker's traceback."""

    def __init__(self, dataset: CocoDataset):
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, key: int | SampleKey) -> Sample | InputError:
        try:
            return self.dataset[key]
        except InputError as error:
            return error


def _collate_or_error(samples: list[Sample | InputError]) -> Batch | InputError:
    usable = [sample for sample in samples if isinstance(sample, Sample)]
    errors = [sample for sample in samples if isinstance(sample, InputError)]
    return errors[0] if errors else collate(usable)


def _leave_stopping_to_the_main_process(worker_id: int) -> None:
    """Ctrl+C and a job scheduler's SIGTERM go to the whole process group, but the last step still needs its workers."""
    if os.name == "posix":
        os.setpgrp()
