"""Write labeled images as a project: image folders, COCO annotation files and the YAML file."""

import json
import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import torch
import yaml
from numpy.random import RandomState
from tqdm import tqdm

from efficientdet.convert.labels import LabeledImage
from utils.errors import InputError
from utils.files import atomic_folder, atomic_write, make_writable_folder

Sets = dict[str, list[LabeledImage]]  # set name -> its images

PROJECT_FILE = """\
{project_name}
train_set: train
val_set: val
num_gpus: {num_gpus}  # 0 is the CPU

# Of red, green and blue in [0, 1]. Keep them if your images resemble photographs.
mean: [0.485, 0.456, 0.406]
std: [0.229, 0.224, 0.225]

# Anchor sizes within an octave, and (width, height) factors: those of the published weights.
anchors_scales: '[2 ** 0, 2 ** (1.0 / 3.0), 2 ** (2.0 / 3.0)]'
anchors_ratios: '[(1.0, 1.0), (1.4, 0.7), (0.7, 1.4)]'

# image_size: 640  # side of the input in pixels, if not the coefficient's own

# The categories of the annotation files, in the order of the network's outputs.
{obj_list}
"""


def split_into_sets(images: list[LabeledImage], val_fraction: float, seed: int) -> Sets:
    """Return the images of `train` and `val`, and of `test` if the labels name one.

    Images of no set become training images. If the labels name no val, `val_fraction` of the training images,
    selected by `seed`, become it. Raises InputError if train or val is empty.
    """
    sets: Sets = {"train": [], "val": []}
    for image in images:
        sets.setdefault(image.set_name or "train", []).append(image)
    train = sets["train"]
    if not sets["val"] and len(train) > 1:
        number = min(max(round(val_fraction * len(train)), 1), len(train) - 1)
        chosen = set(RandomState(seed).permutation(len(train))[:number].tolist())
        sets["val"] = [image for index, image in enumerate(train) if index in chosen]
        sets["train"] = [image for index, image in enumerate(train) if index not in chosen]
        print(f"the data has no validation set: {number} training images become it (--val_fraction)")
    for set_name in ("train", "val"):
        if not sets[set_name]:
            raise InputError(f"no images are left for the set {set_name}: label at least one")
    return sets


def write_project(
    folder: Path, project_file: Path, sets: Sets, class_names: list[str], copy: Callable[[Path, Path], object]
) -> None:
    """Write images and annotations into `folder`, and the YAML file. Both appear only once both are complete.

    `copy(path, new_path)` is called for each image. Raises InputError if a file cannot be written.
    """
    make_writable_folder(folder.parent)
    with atomic_write(project_file) as unfinished_file, atomic_folder(folder) as unfinished:
        unfinished_file.write_text(project_text(folder.name, class_names), encoding="utf-8")
        (unfinished / "annotations").mkdir()
        for set_name, images in sets.items():
            # Short, unique names: paths relative to the deepest folder that holds all images.
            paths = [os.path.abspath(str(image.path)) for image in images]
            root = os.path.commonpath([os.path.dirname(path) for path in paths])
            names = [os.path.relpath(path, root) for path in paths]
            for path, name in zip(tqdm(paths, f"writing {set_name}", unit="img", dynamic_ncols=True), names):
                target = unfinished / set_name / name
                target.parent.mkdir(parents=True, exist_ok=True)
                copy(Path(path), target)
            content = json.dumps(coco_content(images, names, class_names))
            (unfinished / "annotations" / f"instances_{set_name}.json").write_text(content, encoding="utf-8")


def project_text(name: str, class_names: list[str]) -> str:
    """Return the content of the project's YAML file."""
    return PROJECT_FILE.format(
        project_name=yaml.safe_dump({"project_name": name}).strip(),
        num_gpus=int(torch.cuda.is_available()),
        obj_list=yaml.safe_dump({"obj_list": class_names}, allow_unicode=True).strip(),  # one per line
    )


def coco_content(images: list[LabeledImage], file_names: list[str], class_names: list[str]) -> dict:
    """Return a set in COCO's format, with ids from 1."""
    category_ids = {name: number for number, name in enumerate(class_names, 1)}
    entries: list[dict] = []
    annotations: list[dict] = []
    for image_id, (image, file_name) in enumerate(zip(images, file_names), 1):
        assert image.size is not None  # known since the image was checked
        height, width = image.size
        entries.append({"id": image_id, "file_name": file_name, "width": width, "height": height})
        for box in image.boxes:
            x1, y1, x2, y2 = box.xyxy
            xywh = [round(value, 3) for value in (x1, y1, x2 - x1, y2 - y1)]
            area, category_id = round(xywh[2] * xywh[3], 3), category_ids[box.class_name]
            annotation = {"id": len(annotations) + 1, "image_id": image_id, "category_id": category_id}
            annotations.append({**annotation, "bbox": xywh, "area": area, "iscrowd": int(box.is_crowd)})
    categories = [{"id": number, "name": name} for name, number in category_ids.items()]
    return {"images": entries, "annotations": annotations, "categories": categories}


def link_image(path: Path, target: Path) -> None:
    """Make `target` a hard link to an image, or a symbolic link where the file system allows no hard one."""
    try:
        os.link(path.resolve(), target)
    except OSError:
        os.symlink(path.resolve(), target)


def summary_table(sets: Sets, class_names: list[str]) -> str:
    """Return a table of the number of images and boxes by set and class."""
    boxes = {name: Counter(box.class_name for image in images for box in image.boxes) for name, images in sets.items()}
    rows = [
        ("", sets),
        ("images", [len(images) for images in sets.values()]),
        ("without boxes", [sum(not image.boxes for image in images) for images in sets.values()]),
        ("boxes", [count.total() for count in boxes.values()]),
        *((f"  {name}", [count[name] for count in boxes.values()]) for name in class_names),
    ]
    longest = max(len(title) for title, _ in rows)
    return "\n".join(f"{title:{longest}}" + "".join(f"{value:>9}" for value in values) for title, values in rows)
