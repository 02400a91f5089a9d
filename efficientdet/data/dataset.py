"""From COCO files to samples for the network."""

import contextlib
import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pycocotools.coco import COCO
from torch.utils.data import Dataset

from efficientdet.data.annotations import AnnotatedSet, raise_first_error, read_set
from efficientdet.data.augmentation import Augmentation
from efficientdet.data.transforms import AnnotatedImage, Letterbox, Target
from efficientdet.project import Project
from utils.images import read_image


@dataclass(frozen=True)
class SampleKey:
    """An image and the epoch to augment it for. With the seed, these alone determine the augmentation."""

    index: int
    epoch: int


@dataclass(frozen=True)
class Sample:
    """An image, ready for the network."""

    image: np.ndarray  # (H, W, 3) float32, normalized
    target: Target  # in pixels of `image`
    letterbox: Letterbox
    image_id: int | str


class CocoDataset(Dataset):
    """One set (such as `train2017`) of a project: images and a COCO annotation file.

    `dataset[index]` returns the image without augmentation, `dataset[SampleKey(index, epoch)]` augments it, from a
    smaller decoding if it is a JPEG of many more pixels than the network's input.

    Args:
        folder: the project's data, with images in `{set_name}/` and `annotations/instances_{set_name}.json`.
        canvas: (height, width) of the network's input.
        augmentation: what is done to augmented images; by default, half of them are mirrored.
        max_images: use only the first images by id.

    Raises InputError for faulty annotations and missing files; `dataset[...]` raises it for an unusable image.
    """

    def __init__(
        self,
        folder: Path,
        set_name: str,
        project: Project,
        canvas: tuple[int, int],
        seed: int = 0,
        augmentation: Augmentation | None = None,
        max_images: int | None = None,
    ):
        self.annotated = read_set(folder, set_name, project, max_images)
        raise_first_error(self.annotated)
        self.annotation_file, self.category_ids = self.annotated.annotation_file, self.annotated.category_ids
        self.set_name = set_name
        self.project = project
        self.canvas = canvas
        self.seed = seed
        self.augmentation = augmentation or Augmentation()
        self.coco = _coco_index(self.annotated)
        self.image_ids = [image["id"] for image in self.annotated.images]
        self.index_of = {image_id: index for index, image_id in enumerate(self.image_ids)}

    def __len__(self) -> int:
        return len(self.image_ids)

    def __getitem__(self, key: int | SampleKey) -> Sample:
        index, epoch = (key.index, key.epoch) if isinstance(key, SampleKey) else (key, None)
        image_id = self.image_ids[index]
        if epoch is None:
            image, target = self.load_image(image_id), self.target(image_id)
            letterbox = Letterbox.fit(image.shape[:2], self.canvas)
        else:
            image, target = self._load_reduced(index)
            rng = np.random.default_rng((self.seed, epoch, index))
            fill = tuple(round(255 * value) for value in self.project.mean)
            image, target, letterbox = self.augmentation.apply(
                image, target, self.canvas, rng, lambda: self._load_reduced(int(rng.integers(len(self)))), fill
            )
        pixels = letterbox.apply(image, self.project.mean, self.project.std)
        target = Target(letterbox.boxes_to_canvas(target.boxes), target.class_ids)
        return Sample(pixels, target, letterbox, image_id)

    def load_image(self, image_id: int | str) -> np.ndarray:
        """Return an image, (H, W, 3) uint8 RGB, in the orientation of its annotated width and height."""
        index = self.index_of[image_id]
        height, width = self.annotated.sizes[index].tolist()
        return read_image(self.annotated.image_path(index), (height, width) if height and width else None)

    def _load_reduced(self, index: int) -> AnnotatedImage:
        """Return an image and its objects, a large JPEG 2, 4 or 8 times smaller if that leaves enough pixels."""
        image_id, size = self.image_ids[index], tuple(self.annotated.sizes[index].tolist())
        target = self.target(image_id)
        if not all(size):
            return self.load_image(image_id), target
        scale = max(1.0, self.augmentation.max_scale)
        needed = Letterbox.fit(size, (int(self.canvas[0] * scale), int(self.canvas[1] * scale))).resized
        image = read_image(self.annotated.image_path(index), size, needed)
        factor = round(max(size) / max(image.shape[:2]))
        return image, Target(target.boxes / factor, target.class_ids)

    def target(self, image_id: int | str) -> Target:
        """Return the objects to learn, in pixels of the image: no crowd regions, no sides below one pixel."""
        boxes = self.annotated.boxes
        rows = self.annotated.rows(self.index_of[image_id])
        learnable = boxes.learnable[rows]
        xyxy = boxes.xywh[rows][learnable].astype(np.float32)
        xyxy[:, 2:] += xyxy[:, :2]
        return Target(xyxy, boxes.class_ids[rows][learnable])


def _coco_index(annotated: AnnotatedSet) -> COCO:
    """Return a pycocotools index with the fields that scoring needs.

    Its category ids are class indices, its image ids positions: pycocotools would turn numbers into text in a set that
    has both. Annotations are counted from 1, because scoring reads id 0 as "unmatched".
    """
    boxes, names = annotated.boxes, annotated.project.class_names
    columns = boxes.images, boxes.class_ids, boxes.xywh, boxes.areas, boxes.crowd.astype(int)
    rows = zip(*(column.tolist() for column in columns))
    coco = COCO()
    coco.dataset = {
        "images": [{"id": position} for position in range(len(annotated.images))],
        "annotations": [
            {"id": number, "image_id": image, "category_id": class_id, "bbox": bbox, "area": area, "iscrowd": crowd}
            for number, (image, class_id, bbox, area, crowd) in enumerate(rows, 1)
        ],
        "categories": [{"id": class_id, "name": names[class_id]} for class_id in annotated.category_ids],
    }
    with contextlib.redirect_stdout(io.StringIO()):
        coco.createIndex()
    return coco
