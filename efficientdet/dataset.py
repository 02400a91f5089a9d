"""COCO files -> samples -> batches."""

import contextlib
import io
import json
import math
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from pycocotools.coco import COCO
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from efficientdet.loss import PADDING_CLASS, Targets
from efficientdet.project import Project
from efficientdet.transforms import MIN_BOX_SIDE, Letterbox, Target, random_horizontal_flip, random_scale_crop
from utils.errors import InputError
from utils.images import read_image


class SampleKey(NamedTuple):
    """Which image, and in which epoch: the augmentation depends on these and the seed alone, not on who draws it."""

    index: int
    epoch: int


@dataclass(frozen=True)
class Sample:
    """One image, ready for the network."""

    image: np.ndarray  # (H, W, 3) float32, normalised
    target: Target  # in pixels of `image`
    letterbox: Letterbox
    image_id: int


@dataclass(frozen=True)
class Batch:
    """N samples together."""

    images: Tensor  # (N, 3, H, W) float32, normalised, channels-last in memory
    targets: Targets  # in pixels of `images`
    letterboxes: list[Letterbox]
    image_ids: list[int]

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
        self.set_name = set_name
        self.pictures = Path(folder) / set_name
        self.annotation_file = Path(folder) / "annotations" / f"instances_{set_name}.json"
        self.project = project
        self.canvas = canvas
        self.seed = seed
        self.scale_range = scale_range

        content = _read_annotations(self.annotation_file)
        class_of = project.match_categories(content["categories"], self.annotation_file)
        self.category_ids = {class_index: category_id for category_id, class_index in class_of.items()}
        images = sorted(content["images"], key=lambda image: (str(type(image["id"])), image["id"]))[:max_images]
        self._check_pictures(images)

        self.coco = _coco_index({**content, "images": images}, class_of)
        self.image_ids = [image["id"] for image in images]

    def __len__(self) -> int:
        return len(self.image_ids)

    def __getitem__(self, key: int | SampleKey) -> Sample:
        index, epoch = key if isinstance(key, SampleKey) else (key, None)
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

    def picture(self, image_id: int) -> np.ndarray:
        """(H, W, 3) uint8 RGB, the way round that the annotations' width and height say."""
        entry = self.coco.imgs[image_id]
        size = (entry["height"], entry["width"]) if "height" in entry and "width" in entry else None
        return read_image(self.pictures / entry["file_name"], size)

    def target(self, image_id: int) -> Target:
        """The objects to learn, in pixels of the picture: no crowd regions, none below one pixel."""
        annotations = [
            annotation
            for annotation in self.coco.imgToAnns[image_id]
            if not annotation["iscrowd"] and min(annotation["bbox"][2:]) >= MIN_BOX_SIDE
        ]
        boxes = np.array([annotation["bbox"] for annotation in annotations], np.float32).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        return Target(boxes, np.array([annotation["category_id"] for annotation in annotations], np.int64))

    def _check_pictures(self, images: list[dict]) -> None:
        if not images:
            raise InputError(f"{self.annotation_file} lists no images: there is nothing to work on")
        if not self.pictures.is_dir():
            raise InputError(f"there is no folder {self.pictures}: the pictures of {self.annotation_file} belong there")
        present = {path.name for path in self.pictures.iterdir()}
        missing = [
            image["file_name"]
            for image in images
            if image["file_name"] not in present and not (self.pictures / image["file_name"]).is_file()
        ]
        if missing:
            raise InputError(
                f"{len(missing)} of the {len(images)} images in {self.annotation_file} are not in {self.pictures}, "
                f"the first is {missing[0]}: copy them there or take their entries out"
            )


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
        drawn = len(self._loader.sampler)
        return len(self._loader) * self._loader.batch_size if self._loader.drop_last else drawn

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
    return next((sample for sample in samples if isinstance(sample, InputError)), None) or collate(samples)


def _leave_stopping_to_the_main_process(worker_id: int) -> None:
    """Ctrl+C and a job scheduler's SIGTERM go to the whole process group, but the last step still needs its workers."""
    if os.name == "posix":
        os.setpgrp()


def _read_annotations(path: Path) -> dict:
    """The content of the COCO annotation file `path`, checked."""
    try:
        with open(path, encoding="utf-8") as file:
            content = json.load(file)
    except FileNotFoundError:
        raise InputError(f"there is no annotation file {path}: it must hold the set's boxes in COCO format") from None
    except json.JSONDecodeError as error:
        raise InputError(f"{path}, line {error.lineno}: this is not valid JSON: {error.msg}") from error
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read {path}: {error}") from error

    if not isinstance(content, dict):
        raise InputError(f"{path} is not in COCO format: it must hold an object with images, annotations, categories")
    for key, needed in (
        ("images", ("id", "file_name")),
        ("annotations", ("id", "image_id", "category_id", "bbox")),
        ("categories", ("id", "name")),
    ):
        if not isinstance(content.get(key), list):
            raise InputError(f"{path} is not in COCO format: it has no list {key!r}")
        for position, entry in enumerate(content[key]):
            absent = [name for name in needed if not isinstance(entry, dict) or name not in entry]
            if absent:
                raise InputError(f"{path}: entry {position} of {key!r} has no {absent[0]!r}: {str(entry)[:100]}")
    for key in ("images", "categories"):
        _check_ids(content[key], key, path)
    _check_images(content["images"], path)
    _check_annotations(content, path)
    return content


def _check_ids(entries: list[dict], key: str, path: Path) -> None:
    seen = set()
    for entry in entries:
        if not isinstance(entry["id"], int | str):
            raise InputError(f"{path}: an entry of {key!r} has the id {entry['id']!r}: it must be a number or text")
        if str(entry["id"]) in seen:
            raise InputError(f"{path}: two entries of {key!r} have the id {entry['id']!r}: give each its own")
        seen.add(str(entry["id"]))


def _check_images(images: list[dict], path: Path) -> None:
    for image in images:
        where = f"{path}: image {image['id']!r}"
        if not isinstance(image["file_name"], str):
            raise InputError(f"{where} has the file_name {image['file_name']!r}: it must be text")
        for side in ("width", "height"):
            if not isinstance(image.get(side, 1), int):
                raise InputError(f"{where} has the {side} {image[side]!r}: it must be a number of pixels, or left out")


def _check_annotations(content: dict, path: Path) -> None:
    image_ids = {str(image["id"]) for image in content["images"]}
    category_ids = {str(category["id"]) for category in content["categories"]}
    for annotation in content["annotations"]:
        where = f"{path}: annotation {annotation['id']!r}"
        if str(annotation["image_id"]) not in image_ids:
            raise InputError(
                f"{where} belongs to image {annotation['image_id']!r}, which is not among the images: "
                "add the image's entry or remove the annotation"
            )
        if str(annotation["category_id"]) not in category_ids:
            raise InputError(
                f"{where} has category_id {annotation['category_id']!r}, which is not among the categories: "
                "add the category's entry or correct the annotation"
            )
        box = annotation["bbox"]
        if not isinstance(box, list) or len(box) != 4 or not all(_is_finite(value) for value in box):
            raise InputError(f"{where} has the bbox {box!r}: it must be four numbers, [x, y, width, height]")
        if not _is_finite(_area(annotation)):
            raise InputError(f"{where} has the area {annotation['area']!r}: it must be a number of pixels, or left out")


def _area(annotation: dict) -> float:
    """The annotated area in pixels, or the box's when there is none."""
    area = annotation.get("area")
    return annotation["bbox"][2] * annotation["bbox"][3] if area is None else area


def _is_finite(value: object) -> bool:
    try:
        return isinstance(value, int | float) and math.isfinite(value)
    except OverflowError:  # an int too large for a float
        return False


def _coco_index(content: dict, class_of: dict) -> COCO:
    """A pycocotools index of `content`, with class indices for category ids and the fields that scoring needs."""
    # Numbers and texts of digits mean the same id.
    class_of = {str(category_id): class_index for category_id, class_index in class_of.items()}
    image_ids = {str(image["id"]): image["id"] for image in content["images"]}
    coco = COCO()
    coco.dataset = {
        "images": content["images"],
        "annotations": [
            {
                "id": number,  # COCO's scoring takes id 0 for "unmatched", so ids are our own, from 1
                "image_id": image_ids[str(annotation["image_id"])],
                "category_id": class_of[str(annotation["category_id"])],
                "bbox": annotation["bbox"],
                "area": _area(annotation),
                "iscrowd": int(bool(annotation.get("iscrowd"))),
            }
            for number, annotation in enumerate(content["annotations"], 1)
            if str(annotation["image_id"]) in image_ids
        ],
        "categories": [
            {"id": class_of[str(category["id"])], "name": category["name"]} for category in content["categories"]
        ],
    }
    with contextlib.redirect_stdout(io.StringIO()):
        coco.createIndex()
    return coco
