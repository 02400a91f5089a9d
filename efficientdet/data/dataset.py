"""COCO files -> samples -> batches."""

import contextlib
import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pycocotools.coco import COCO
from torch.utils.data import Dataset

from efficientdet.data.annotations import AnnotatedSet, read_set, refuse_if_faulty
from efficientdet.data.transforms import Letterbox, Target, random_horizontal_flip, random_scale_crop
from efficientdet.project import Project
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


class CocoDataset(Dataset):
    """One set (`train2017`, say) of a project: images and a COCO annotation file.

    `dataset[index]` gives the image as it is, `dataset[SampleKey(index, epoch)]` augments it for training.

    Args:
        folder: the project's data, with the images in `{set_name}/` and `annotations/instances_{set_name}.json`.
        canvas: (height, width) of the network's input.
        seed: of the augmentations.
        scale_range: images to train on are scaled by a random factor between these, and cropped; (1, 1) does not.
        max_images: take only the first so many, in the order of their ids.

    Raises InputError when the files do not fit each other or the project. All of them are checked here but the
    content of the images; an image that cannot be used makes `dataset[...]` raise it.
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
        """The objects to learn, in pixels of the image: no crowd regions, none below one pixel."""
        boxes = self.annotated.boxes
        rows = self.annotated.rows(self.index_of[image_id])
        learnable = boxes.learnable[rows]
        xyxy = boxes.xywh[rows][learnable].astype(np.float32)
        xyxy[:, 2:] += xyxy[:, :2]
        return Target(xyxy, boxes.class_ids[rows][learnable])


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
