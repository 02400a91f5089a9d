"""Write labels as a project: COCO files, image folders and the YAML file."""

import json
import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import torch
import yaml
from numpy.random import RandomState
from tqdm import tqdm

from efficientdet.convert.labels import LabelledImage
from utils.errors import InputError
from utils.files import atomic_folder, atomic_write, make_writable_folder

PROJECT_FILE = """\
{project_name}
train_set: train
val_set: val
num_gpus: {num_gpus}  # 0 is the CPU

# Of red, green and blue in [0, 1]. Leave them as they are while your images resemble photographs.
mean: [0.485, 0.456, 0.406]
std: [0.229, 0.224, 0.225]

# Anchor sizes within an octave, and (width, height) factors; those of the published weights.
anchors_scales: '[2 ** 0, 2 ** (1.0 / 3.0), 2 ** (2.0 / 3.0)]'
anchors_ratios: '[(1.0, 1.0), (1.4, 0.7), (0.7, 1.4)]'

# image_size: 640  # side of the input, pixels, if it is to differ from the coefficient's own

# The names of the annotation files' categories. Their order is the order of the network's outputs.
{obj_list}
"""


def divide(pictures: list[LabelledImage], val_fraction: float, seed: int) -> dict[str, list[LabelledImage]]:
    """Set name -> its images: `train`, `val`, and `test` where the labels know one.

    Images of no set are for training. When the labels know no val, `val_fraction` of those for training, chosen by
    `seed`, become it. InputError when a set remains empty.
    """
    sets: dict[str, list[LabelledImage]] = {"train": [], "val": []}
    for picture in pictures:
        sets.setdefault(picture.set_name or "train", []).append(picture)
    if not sets["val"] and len(sets["train"]) > 1:
        number = min(max(round(val_fraction * len(sets["train"])), 1), len(sets["train"]) - 1)
        chosen = set(RandomState(seed).permutation(len(sets["train"]))[:number].tolist())
        sets["val"] = [picture for index, picture in enumerate(sets["train"]) if index in chosen]
        sets["train"] = [picture for index, picture in enumerate(sets["train"]) if index not in chosen]
        print(f"the data has no set for validation: {number} images of those for training are taken (--val_fraction)")
    for set_name in ("train", "val"):
        if not sets[set_name]:
            raise InputError(f"no image is left for the set {set_name}: a project needs one at least; label more")
    return sets


def write_project(
    folder: Path,
    project_file: Path,
    sets: dict[str, list[LabelledImage]],
    class_names: list[str],
    place: Callable[[Path, Path], object],
) -> None:
    """Write images and annotations into `folder`, and the YAML file. Both appear when both are complete.

    Args:
        place: called with an image's path and the one it shall have, which does not exist yet.

    Raises InputError when they cannot be written.
    """
    make_writable_folder(folder.parent)
    with atomic_write(project_file) as unfinished_file, atomic_folder(folder) as unfinished:
        unfinished_file.write_text(project_text(folder.name, class_names), encoding="utf-8")
        (unfinished / "annotations").mkdir()
        for set_name, pictures in sets.items():
            names = _file_names(pictures)
            for picture, name in zip(tqdm(pictures, f"writing {set_name}", unit="img", dynamic_ncols=True), names):
                target = unfinished / set_name / name
                target.parent.mkdir(parents=True, exist_ok=True)
                place(picture.path, target)
            content = json.dumps(coco_content(pictures, names, class_names))
            (unfinished / "annotations" / f"instances_{set_name}.json").write_text(content, encoding="utf-8")


def project_text(name: str, class_names: list[str]) -> str:
    """The project's YAML file to begin with."""
    return PROJECT_FILE.format(
        project_name=yaml.safe_dump({"project_name": name}).strip(),
        num_gpus=int(torch.cuda.is_available()),
        obj_list=yaml.safe_dump({"obj_list": class_names}, allow_unicode=True).strip(),  # a line for each
    )


def coco_content(pictures: list[LabelledImage], file_names: list[str], class_names: list[str]) -> dict:
    """A set in COCO's format; ids are counted from 1."""
    category_ids = {name: number for number, name in enumerate(class_names, 1)}
    images: list[dict] = []
    annotations: list[dict] = []
    for image_id, (picture, file_name) in enumerate(zip(pictures, file_names), 1):
        assert picture.size is not None, "the image has not been checked"
        height, width = picture.size
        images.append({"id": image_id, "file_name": file_name, "width": width, "height": height})
        for box in picture.boxes:
            x1, y1, x2, y2 = box.xyxy
            bbox = [round(value, 3) for value in (x1, y1, x2 - x1, y2 - y1)]
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image_id,
                    "category_id": category_ids[box.class_name],
                    "bbox": bbox,
                    "area": round(bbox[2] * bbox[3], 3),
                    "iscrowd": int(box.is_crowd),
                }
            )
    categories = [{"id": number, "name": name} for name, number in category_ids.items()]
    return {"images": images, "annotations": annotations, "categories": categories}


def _file_names(pictures: list[LabelledImage]) -> list[str]:
    """Paths from the deepest folder that holds all of the images: short, and no two alike."""
    paths = [os.path.abspath(str(picture.path)) for picture in pictures]
    folder = os.path.commonpath([os.path.dirname(path) for path in paths])
    return [os.path.relpath(path, folder) for path in paths]


def link(picture: Path, target: Path) -> None:
    """A hard link to the image; where the file system has none to it, a symbolic one."""
    try:
        os.link(picture.resolve(), target)
    except OSError:
        os.symlink(picture.resolve(), target)


def summary(sets: dict[str, list[LabelledImage]], class_names: list[str]) -> str:
    """Images and boxes by set and class."""
    boxes = {name: Counter(box.class_name for p in pictures for box in p.boxes) for name, pictures in sets.items()}
    rows = [
        ("", sets),
        ("images", [len(pictures) for pictures in sets.values()]),
        ("without boxes", [sum(not picture.boxes for picture in pictures) for pictures in sets.values()]),
        ("boxes", [count.total() for count in boxes.values()]),
        *((f"  {name}", [count[name] for count in boxes.values()]) for name in class_names),
    ]
    longest = max(len(title) for title, _ in rows)
    return "\n".join(f"{title:{longest}}" + "".join(f"{value:>9}" for value in values) for title, values in rows)
