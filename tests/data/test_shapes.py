"""The data set of shapes: the same seed gives the same images, and boxes are exact."""

import hashlib
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.random import RandomState
from scripts import REPOSITORY, assert_succeeded

from efficientdet.data import shapes
from efficientdet.data.dataset import CocoDataset
from efficientdet.data.shapes import CLASS_NAMES, IMAGE_SIZES, draw_if_absent, draw_image, write_shapes
from efficientdet.project import load_project
from efficientdet.shapes import main, parse_args
from utils.errors import InputError

PROJECT = REPOSITORY / "projects" / "shapes.yml"


def content(folder: Path, set_name: str) -> dict:
    return json.loads((folder / "annotations" / f"instances_{set_name}.json").read_text())


@pytest.fixture(scope="module")
def drawn() -> list[tuple[np.ndarray, list[dict]]]:
    """Draw the first 100 training images."""
    return [draw_image(RandomState((0, 0, number))) for number in range(100)]


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> Path:
    """Write a data set of 4 training and 2 validation images."""
    folder = tmp_path_factory.mktemp("written") / "shapes"
    write_shapes(folder, 4, 2)
    return folder


def test_no_images(tmp_path):
    write_shapes(tmp_path / "shapes", 0, 0)
    for set_name in ("train", "val"):
        found = content(tmp_path / "shapes", set_name)
        assert found["images"] == found["annotations"] == []
        assert [category["name"] for category in found["categories"]] == list(CLASS_NAMES)


# Recorded with OpenCV 4.11, 4.12 and 5.0, and numpy 1.26 and 2.4.
@pytest.mark.parametrize(
    ("seed", "digest", "objects"),
    [
        (
            (0, 0, 0),
            "34a513b94d4bd70d7a5a4b80fb91e8b1a78eff6f8f79228f5867fd3a51a66c0d",
            [("rectangle", [0, 25, 115, 135], 15301)],
        ),
        ((7, 0, 5), "29f16f14f92019cb9ea86ccc0d95e8558d022cc07868aa3425771d6dcbe4b836", []),
        (
            (0, 0, 6),
            "ef8ba23dff893f401b142eb077f24f9d228691f097a28cae771ffc0dc8959b8d",
            [
                ("rectangle", [15, 87, 99, 82], 4802),
                ("cross", [125, 60, 81, 79], 3310),
                ("cross", [134, 267, 146, 117], 10719),
                ("triangle", [154, 160, 134, 145], 9766),
            ],
        ),
        (
            (0, 1, 0),
            "379024f9af05ac8ad04b1942c9596122cb180167b0aa1c216420f8ed90a9e329",
            [
                ("triangle", [114, 37, 71, 50], 1557),
                ("cross", [121, 91, 41, 28], 597),
                ("star", [106, 187, 113, 107], 4828),
                ("cross", [86, 125, 71, 70], 3110),
                ("star", [216, 286, 43, 42], 728),
            ],
        ),
        (
            (0, 1, 2),
            "d6c573c648a32832070de0f2e60ea0877c9da7f652a9d5d724c59a8ab1f49c83",
            [("triangle", [123, 81, 92, 56], 2283), ("ring", [158, 170, 114, 84], 5182)],
        ),
    ],
)
def test_recorded_images(seed, digest, objects):
    image, found = draw_image(RandomState(seed))
    assert hashlib.sha256(image.tobytes()).hexdigest() == digest
    assert [(entry["class"], entry["bbox"], entry["area"]) for entry in found] == objects


def test_image_depends_on_its_seed(drawn):
    image, objects = draw_image(RandomState((0, 0, 2)))
    np.testing.assert_array_equal(image, drawn[2][0])
    assert objects == drawn[2][1]
    for seed in ((0, 0, 3), (0, 1, 2), (1, 0, 2)):
        other, other_objects = draw_image(RandomState(seed))
        assert other.shape != image.shape or (other != image).mean() > 0.5
        assert other_objects != objects


def test_every_documented_property_occurs(drawn):
    assert all(image.dtype == np.uint8 for image, _ in drawn)
    assert {(image.shape[1], image.shape[0]) for image, _ in drawn} == set(IMAGE_SIZES)
    counts = {len(objects) for _, objects in drawn}
    assert {0, 1, 2, 3, 4, 5} < counts and max(counts) <= 6
    found = [(entry, image.shape) for image, objects in drawn for entry in objects]
    for name in CLASS_NAMES:
        assert sum(entry["class"] == name for entry, _ in found) > len(found) / 10

    boxes = np.array([entry["bbox"] for entry, _ in found])
    ends = boxes[:, :2] + boxes[:, 2:]
    limits = np.array([(width, height) for _, (height, width, _) in found])
    assert (boxes[:, :2] >= 0).all() and (ends <= limits).all()
    at_border = (boxes[:, :2] == 0).any(axis=1) | (ends == limits).any(axis=1)
    assert 0.1 < at_border.mean() < 0.5
    longest, shortest = boxes[:, 2:].max(axis=1), boxes[:, 2:].min(axis=1)
    assert shortest.min() >= 12 and longest.min() < 20 and longest.max() > 200
    aspects = boxes[:, 2] / boxes[:, 3]
    assert aspects.min() < 0.5 and aspects.max() > 2
    areas = np.array([entry["area"] for entry, _ in found])
    assert (areas <= boxes[:, 2] * boxes[:, 3]).all() and areas.min() > 0


def test_boxes_and_areas_match_the_visible_pixels(monkeypatch):
    """Flat, distinct colors without blending at the edges show which pixels belong to which shape."""
    rasterize = shapes._rasterize
    attempts: list[int] = []  # pixels of each shape that is tried, in order

    def hard_edges(polygons):
        left, top, coverage = rasterize(polygons)
        solid = coverage * 2 >= 16
        attempts.append(int(solid.sum()))
        return left, top, 16 * solid.astype(np.int32)

    def flat_color(rng, colors, height, width):
        return np.full((height, width, 3), 25 * len(attempts), np.int32)

    monkeypatch.setattr(shapes, "_rasterize", hard_edges)
    monkeypatch.setattr(shapes, "_texture", flat_color)
    monkeypatch.setattr(shapes, "_background", lambda rng, height, width, _: np.zeros((height, width, 3), np.int32))
    hidden = rejected = total = 0
    for number in range(80):
        attempts.clear()
        image, objects = draw_image(RandomState(number))
        shown = (image[..., 0] + 12) // 25  # the number of the attempt, 0 for the background; noise is below 3
        expected = []
        for attempt in np.unique(shown)[1:] if (shown == 0).any() else np.unique(shown):
            rows, columns = np.nonzero(shown == attempt)
            x, y = columns.min(), rows.min()
            bbox = [x, y, columns.max() - x + 1, rows.max() - y + 1]
            expected.append((bbox, len(rows)))
            assert len(rows) >= 0.45 * attempts[attempt - 1]
            assert min(bbox[2:]) >= 8
            hidden += len(rows) < attempts[attempt - 1]
        assert [(entry["bbox"], entry["area"]) for entry in objects] == expected
        rejected += len(attempts) - len(objects)
        total += len(objects)
    assert total > 150 and hidden > 50 and rejected > 10


def test_coverage_computed_by_hand():
    # Starts at pixel (2, 1). 5 x 9 sub-pixels, because the last row and column belong to the polygon.
    left, top, coverage = shapes._rasterize([np.array([(8, 4), (12, 4), (12, 12), (8, 12)], np.int32)])
    assert (left, top) == (2, 1)
    assert coverage.tolist() == [[16, 4], [16, 4], [4, 1]]
    # Left of and above the image, with a hole of 3 x 3 sub-pixels without its outline.
    outer, hole = [(-8, -8), (-1, -8), (-1, -1), (-8, -1)], [(-7, -7), (-4, -7), (-4, -4), (-7, -4)]
    left, top, coverage = shapes._rasterize([np.array(outer, np.int32), np.array(hole, np.int32)])
    assert (left, top) == (-2, -2)
    assert coverage.tolist() == [[16 - 4, 16], [16, 16]]


@pytest.mark.parametrize(
    ("name", "area"),
    [
        ("ellipse", math.pi),
        ("rectangle", 4),
        ("triangle", 3 * math.sqrt(3) / 4),
        ("star", 10 * 0.5 * 0.45 * math.sin(math.pi / 5)),  # ten triangles with sides 1 and 0.45
        ("cross", 4 - 4 * 0.68**2),
        ("ring", math.pi * (1 - 0.55**2)),
    ],
)
def test_area_of_each_outline(name, area):
    polygons = [np.rint(np.array(polygon) * 1000).astype(np.int32) for polygon in shapes._OUTLINES[name]]
    _, _, coverage = shapes._rasterize(polygons)
    assert coverage.sum() / 1000**2 == pytest.approx(area, rel=0.01)


def test_every_outline_is_tested():
    assert set(CLASS_NAMES) == {"ellipse", "rectangle", "triangle", "star", "cross", "ring"}


def test_nothing_is_drawn_outside_the_boxes(monkeypatch):
    """Drawings that differ only in the color of shapes differ at most two pixels outside the boxes, at thin tips."""

    def draw(number: int, color: int):
        monkeypatch.setattr(
            shapes, "_texture", lambda rng, colors, height, width: np.full((height, width, 3), color, np.int32)
        )
        return draw_image(RandomState(number))

    for number in range(20):
        (black, objects), (white, same_objects) = draw(number, 0), draw(number, 255)
        assert objects == same_objects
        boxed = np.zeros(black.shape[:2], bool)
        for x, y, width, height in (entry["bbox"] for entry in objects):
            boxed[max(0, y - 2) : y + height + 2, max(0, x - 2) : x + width + 2] = True
        differs = (black != white).any(axis=-1)
        assert differs.any() == bool(objects) and not differs[~boxed].any()


def test_written_set_fits_the_project(written):
    project = load_project(PROJECT)
    assert project.class_names == CLASS_NAMES
    assert {path.name for path in written.iterdir()} == {"annotations", project.train_set, project.val_set}
    for set_number, (set_name, length) in enumerate(((project.train_set, 4), (project.val_set, 2))):
        dataset = CocoDataset(written, set_name, project, (128, 128))
        assert len(dataset) == length
        for number, image_id in enumerate(dataset.image_ids):
            image, objects = draw_image(RandomState((0, set_number, number)))
            np.testing.assert_array_equal(dataset.load_image(image_id), image)
            target = dataset.target(image_id)
            assert [CLASS_NAMES[class_id] for class_id in target.class_ids] == [entry["class"] for entry in objects]
            xywh = np.concatenate((target.boxes[:, :2], target.boxes[:, 2:] - target.boxes[:, :2]), axis=1)
            assert xywh.tolist() == [entry["bbox"] for entry in objects]
            assert dataset[number].image.shape == (128, 128, 3)


def test_annotations_are_numbered_from_one_and_complete(written):
    for set_name in ("train", "val"):
        found = content(written, set_name)
        assert [entry["id"] for entry in found["annotations"]] == list(range(1, len(found["annotations"]) + 1))
        for image in found["images"]:
            written_image = cv2.imread(str(written / set_name / image["file_name"]))
            assert written_image.shape[:2] == (image["height"], image["width"])
        assert {entry["iscrowd"] for entry in found["annotations"]} == {0}
        assert all(entry["area"] > 0 for entry in found["annotations"])


def test_images_do_not_depend_on_their_number(written, tmp_path):
    write_shapes(tmp_path / "fewer", 2, 1)
    for set_name, length in (("train", 2), ("val", 1)):
        fewer, more = content(tmp_path / "fewer", set_name), content(written, set_name)
        assert fewer["images"] == more["images"][:length]
        assert fewer["annotations"] == more["annotations"][: len(fewer["annotations"])]
        assert len(fewer["annotations"]) == sum(entry["image_id"] <= length for entry in more["annotations"])
        for image in fewer["images"]:
            name = Path(set_name) / image["file_name"]
            assert (tmp_path / "fewer" / name).read_bytes() == (written / name).read_bytes()


def test_sets_and_seeds_differ(written, tmp_path):
    write_shapes(tmp_path / "other", 1, 0, seed=1)
    first = (written / "train/000000.png").read_bytes()
    assert first != (written / "val/000000.png").read_bytes()
    assert first != (tmp_path / "other/train/000000.png").read_bytes()


@pytest.mark.parametrize("stop", [KeyboardInterrupt(), InputError("cannot write: no space left on device")])
def test_interruption_leaves_nothing(monkeypatch, tmp_path, stop):
    def draw_two_only(rng):
        if len(list(tmp_path.rglob("*.png"))) == 2:
            raise stop
        return draw_image(rng)

    monkeypatch.setattr(shapes, "draw_image", draw_two_only)
    with pytest.raises(type(stop)):
        write_shapes(tmp_path / "shapes", 3, 1)
    assert list(tmp_path.iterdir()) == []


def test_unusable_folders_and_seeds(tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(InputError, match="file"):
        write_shapes(tmp_path / "file", 1, 0)
    with pytest.raises(InputError, match="file"):
        write_shapes(tmp_path / "file" / "shapes", 1, 0)
    with pytest.raises(InputError, match="--seed"):
        write_shapes(tmp_path / "shapes", 1, 0, seed=2**32)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    assert (tmp_path / "file").read_text() == "mine"


def test_only_absent_data_of_the_project_shapes_is_drawn(monkeypatch, tmp_path, make_project, capsys):
    folders = []
    monkeypatch.setattr(shapes, "write_shapes", folders.append)
    draw_if_absent(make_project(), tmp_path)
    draw_if_absent(load_project(REPOSITORY / "projects" / "coco.yml"), tmp_path)
    assert folders == [] and capsys.readouterr().out == ""
    draw_if_absent(load_project(PROJECT), tmp_path)
    assert folders == [tmp_path / "shapes"]
    assert str(tmp_path / "shapes") in capsys.readouterr().out
    (tmp_path / "shapes").mkdir()
    draw_if_absent(load_project(PROJECT), tmp_path)
    assert len(folders) == 1


@pytest.mark.slow
def test_command_as_a_user_runs_it(tmp_path):
    command = [sys.executable, "-m", "efficientdet.shapes", "--output", "data/drawn", "--train", "3", "--val", "2"]
    env = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    assert_succeeded(subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=300))
    folder = tmp_path / "data" / "drawn"
    assert [str(path.relative_to(folder)) for path in sorted(tmp_path.rglob("*")) if path.is_file()] == [
        "annotations/instances_train.json",
        "annotations/instances_val.json",
        "train/000000.png",
        "train/000001.png",
        "train/000002.png",
        "val/000000.png",
        "val/000001.png",
    ]


def test_command_does_not_overwrite(tmp_path):
    (tmp_path / "drawn").mkdir()
    with pytest.raises(InputError, match="drawn"):
        main(parse_args(["--output", str(tmp_path / "drawn"), "--train", "1", "--val", "0"]))
    assert list(tmp_path.rglob("*")) == [tmp_path / "drawn"]


@pytest.mark.parametrize("args", [["--train", "-1"], ["--seed", "-1"], ["--val", "x"], ["--se", "1"]])
def test_command_refuses_bad_flags(args, capsys):
    with pytest.raises(SystemExit):
        parse_args(args)
    assert args[0] in capsys.readouterr().err
