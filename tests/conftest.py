"""Shared fixtures: small data sets of drawn images.

- `shapes_project`: a whole project in a temporary folder, with YAML file, images and annotation files.
- `write_coco(folder, set_name, arrays, annotations, categories)`: write one set of a data set.
- `make_project(**changes)`: load a `Project` that has no files but its YAML.
"""

import json
import os
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch

from efficientdet.project import Project, load_project

HEIGHT, WIDTH = 120, 160

# In obj_list, square is class 0 and disc is class 1; the category ids have gaps and the opposite order.
CATEGORIES = ({"id": 3, "name": "disc"}, {"id": 7, "name": "square"})

SHAPES_YML = """\
project_name: drawn
train_set: train
val_set: val
num_gpus: 0

mean: [0.485, 0.456, 0.406]
std: [0.229, 0.224, 0.225]

anchors_scales: '[2 ** 0, 2 ** (1.0 / 3.0), 2 ** (2.0 / 3.0)]'
anchors_ratios: '[(1.0, 1.0), (1.4, 0.7), (0.7, 1.4)]'

obj_list: ['square', 'disc']
"""


def pytest_configure(config: pytest.Config) -> None:
    """Divide the cores among the workers of pytest-xdist and the scripts they run."""
    config.option.loadscopereorder = False  # keep the order below, instead of files with many tests first
    if workers := os.environ.get("PYTEST_XDIST_WORKER_COUNT"):  # not in the process that starts them: they inherit it
        threads = max(1, torch.get_num_threads() // int(workers))
        torch.set_num_threads(threads)
        os.environ["OMP_NUM_THREADS"] = str(threads)  # for the scripts


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Start with slow files of few tests, so that no worker is left alone with a long one at the end."""
    tests = Counter(item.path for item in items)
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: (item.path not in slow, tests[item.path]))


def _draw_shapes(seed: int, objects: int) -> tuple[np.ndarray, list[dict]]:
    """Draw squares and discs in turn on noise, (120, 160, 3). Returns the image and its annotations without ids."""
    rng = np.random.default_rng(seed)
    image = rng.integers(90, 130, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    annotations = []
    for number in range(objects):
        side = int(rng.integers(32, 56))
        x = int(rng.integers(0, 80 - side)) + 80 * (number % 2)
        y = int(rng.integers(0, HEIGHT - side))
        if (seed + number) % 2:
            cv2.rectangle(image, (x, y), (x + side - 1, y + side - 1), (230, 40, 30), cv2.FILLED)
            category_id = 7
        else:
            radius = side // 2
            side = 2 * radius + 1
            cv2.circle(image, (x + radius, y + radius), radius, (20, 60, 240), cv2.FILLED)
            category_id = 3
        bbox = [x, y, side, side]
        annotations.append({"category_id": category_id, "bbox": bbox, "area": side * side, "iscrowd": 0})
    return image, annotations


def _write_coco(
    folder: Path,
    set_name: str,
    arrays: dict[int | str, np.ndarray],
    annotations: Iterable[dict] = (),
    categories: Iterable[dict] = CATEGORIES,
) -> Path:
    """Write `{set_name}/{id}.png` and `annotations/instances_{set_name}.json` into `folder`. Returns the latter's path.

    `arrays` are images by id, (H, W, 3) uint8 RGB; PNG keeps every pixel. Annotations without an `id` get one.
    """
    (folder / set_name).mkdir(parents=True, exist_ok=True)
    images = []
    for image_id, array in arrays.items():
        file_name = f"{image_id}.png"
        assert cv2.imwrite(str(folder / set_name / file_name), cv2.cvtColor(array, cv2.COLOR_RGB2BGR))
        height, width = array.shape[:2]
        images.append({"id": image_id, "file_name": file_name, "height": height, "width": width})
    return _write_annotations(folder, set_name, images, annotations, categories)


def _write_annotations(
    folder: Path, set_name: str, images: list[dict], annotations: Iterable[dict], categories: Iterable[dict]
) -> Path:
    path = folder / "annotations" / f"instances_{set_name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    numbered = [{"id": number, **annotation} for number, annotation in enumerate(annotations, 1)]
    path.write_text(json.dumps({"images": images, "annotations": numbered, "categories": list(categories)}))
    return path


@pytest.fixture
def write_coco() -> Callable[..., Path]:
    """Return the function that writes one set of images and boxes in COCO's layout."""
    return _write_coco


@pytest.fixture
def make_project(tmp_path) -> Callable[..., Project]:
    """Return a function that loads the project of the shapes with other YAML values: `make_project(num_gpus=1)`."""

    def make(**changes) -> Project:
        lines = [line for line in SHAPES_YML.splitlines() if line.split(":")[0] not in changes]
        path = tmp_path / "made.yml"
        # JSON is valid YAML.
        path.write_text("\n".join(lines + [f"{key}: {json.dumps(value)}" for key, value in changes.items()]) + "\n")
        return load_project(path)

    return make


@pytest.fixture
def shapes_project(tmp_path) -> SimpleNamespace:
    """Write a project of squares and discs: 6 training and 3 validation images, one in each set without objects.

    Attributes: `root` (a folder to run scripts in), `yml` (root/projects/drawn.yml), `data` (root/datasets/drawn),
    `train_ids`, `val_ids`.
    """
    root = tmp_path / "shapes"
    yml = root / "projects" / "drawn.yml"
    yml.parent.mkdir(parents=True)
    yml.write_text(SHAPES_YML)
    data = root / "datasets" / "drawn"
    ids = {"train": [11, 12, 15, 21, 22, 30], "val": [102, 105, 109]}
    for set_name, image_ids in ids.items():
        (data / set_name).mkdir(parents=True)
        images, annotations = [], []
        for number, image_id in enumerate(image_ids):
            array, objects = _draw_shapes(seed=image_id, objects=(1, 2, 0)[number % 3] if number < 3 else 2)
            file_name = f"{image_id:06d}.jpg"
            cv2.imwrite(str(data / set_name / file_name), cv2.cvtColor(array, cv2.COLOR_RGB2BGR))
            images.append({"id": image_id, "file_name": file_name, "height": HEIGHT, "width": WIDTH})
            annotations += [{"image_id": image_id, **annotation} for annotation in objects]
        _write_annotations(data, set_name, images, annotations, CATEGORIES)
    return SimpleNamespace(root=root, yml=yml, data=data, train_ids=ids["train"], val_ids=ids["val"])
