"""COCO files -> samples -> batches."""

import contextlib
import io
import os
from collections.abc import Callable, Iterator, Sequence, Sized
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from pycocotools.coco import COCO
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from efficientdet.annotations import AnnotatedSet, read_set, refuse_if_faulty
from efficientdet.project import Project
from efficientdet.structures import PADDING_CLASS, Targets
from efficientdet.transforms import Letterbox, Target, random_horizontal_flip, random_scale_crop
from utils.errors import InputError
from utils.images import read_image


@dataclass(frozen=True)
class SampleKey:
    """Which image, and in which epoch: the augmentation depends on these and the seed alone, not on who draws it."""

    index: int
    epoch: int


@dataclass(frozen=True)
class Sample:
    """One image, ready for the network."""

    image: np.ndarray  # (H, W, 3) float32, normalised
    target: Target  # in pixels of `image`
    letterbox: Letterbox
    image_id: int | str


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


class CocoDataset(Dataset):
    """One set (`train2017`, say) of a project: pictures and a COCO annotation file.

    `dataset[index]` gives the picture as it is, `dataset[SampleKey(index, epoch)]` augments it for training.

    Args:
        folder: the project's data, with the pictures in `{set_name}/` and `annotations/instances_{set_name}.json`.
        canvas: (height, width) of the network's input.
        seed: of the augmentations.
        scale_range: pictures to train on are scaled by a random factor between these, and cropped; (1, 1) does not.
        max_images: take only the first so many, in the order of their ids.

    Raises InputError when the files do not fit each other or the project. All of them are checked here but the
    content of the pictures; a picture that cannot be used makes `dataset[...]` raise it.
    """

    def __init__(
        self,
        folder: Path,
        set_name: str,
        project: Project,
        canvas: tuple[int, int],
        seed: int = 0,
        scale_range: tuple[float, float] = (1.0, 1.0),
        max_images: int | None = None,
    ):
        self.annotated = read_set(folder, set_name, project, max_images)
        refuse_if_faulty(self.annotated)
        self.set_name = set_name
        self.pictures = self.annotated.pictures
        self.annotation_file = self.annotated.annotation_file
        self.category_ids = self.annotated.category_ids
        self.project = project
        self.canvas = canvas
        self.seed = seed
        self.scale_range = scale_range
        self.coco = _coco_index(self.annotated)
        self.image_ids = [image["id"] for image in self.annotated.images]
        self.index_of = {image_id: index for index, image_id in enumerate(self.image_ids)}

    def __len__(self) -> int:
        return len(self.image_ids)

    def __getitem__(self, key: int | SampleKey) -> Sample:
        index, epoch = (key.index, key.epoch) if isinstance(key, SampleKey) else (key, None)
        image_id = self.image_ids[index]
        image, target = self.picture(image_id), self.target(image_id)
        letterbox = None
        if epoch is not None:
            rng = np.random.default_rng((self.seed, epoch, index))
            image, target = random_horizontal_flip(image, target, rng)
            if self.scale_range != (1.0, 1.0):
                image, target, letterbox = random_scale_crop(image, target, self.canvas, rng, self.scale_range)
        letterbox = letterbox or Letterbox.fit(image.shape[:2], self.canvas)
        pixels = letterbox.image(image, self.project.mean, self.project.std)
        target = Target(letterbox.boxes_to_canvas(target.boxes), target.class_ids)
        return Sample(pixels, target, letterbox, image_id)

    def picture(self, image_id: int | str) -> np.ndarray:
        """(H, W, 3) uint8 RGB, the way round that the annotations' width and height say."""
        index = self.index_of[image_id]
        height, width = self.annotated.sizes[index].tolist()
        return read_image(self.annotated.picture(index), (height, width) if height and width else None)

    def target(self, image_id: int | str) -> Target:
        """The objects to learn, in pixels of the picture: no crowd regions, none below one pixel."""
        boxes = self.annotated.boxes
        rows = self.annotated.rows(self.index_of[image_id])
        learnable = boxes.learnable[rows]
        xyxy = boxes.xywh[rows][learnable].astype(np.float32)
        xyxy[:, 2:] += xyxy[:, :2]
        return Target(xyxy, boxes.class_ids[rows][learnable])


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

    @property
    def num_images(self) -> int:
        """How many images one iteration from here gives."""
        return len(self._loader) * self._batch_size if self._loader.drop_last else len(self._drawn)

    def __iter__(self) -> Iterator[Batch]:
        """InputError for the first picture that cannot be used."""
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


def _coco_index(annotated: AnnotatedSet) -> COCO:
    """A pycocotools index of the set, with class indices for category ids, positions for image ids (it turns numbers
    into texts where a set has both), and the fields that scoring needs."""
    boxes, names = annotated.boxes, annotated.project.class_names
    rows = zip(boxes.images.tolist(), boxes.class_ids.tolist(), boxes.xywh.tolist(), boxes.areas.tolist(), boxes.crowd)
    coco = COCO()
    coco.dataset = {
        "images": [{"id": position} for position in range(len(annotated.images))],
        "annotations": [
            {
                "id": number,  # COCO's scoring takes id 0 for "unmatched", so ids are our own, from 1
                "image_id": image,
                "category_id": class_id,
                "bbox": bbox,
                "area": area,
                "iscrowd": int(crowd),
            }
            for number, (image, class_id, bbox, area, crowd) in enumerate(rows, 1)
        ],
        "categories": [{"id": class_id, "name": names[class_id]} for class_id in annotated.category_ids],
    }
    with contextlib.redirect_stdout(io.StringIO()):
        coco.createIndex()
    return coco
