"""Checking labels against the images."""

from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from efficientdet.convert.labels import Fault, LabeledBox, LabeledImage, Labels, check_images

PLACE = "labels.txt, line 7"


@pytest.fixture
def path(tmp_path) -> Path:
    """The path of an image, 60 pixels wide and 40 high."""
    assert cv2.imwrite(str(tmp_path / "a.png"), np.zeros((40, 60, 3), np.uint8))
    return tmp_path / "a.png"


def check(path: Path | None, *boxes, class_names=None, clip=False, **labels) -> LabeledImage:
    """Check an image with a cat in each of the xyxy boxes, which are on lines 1, 2, ..."""
    cats = [LabeledBox("cat", box, f"labels.txt, line {line}") for line, box in enumerate(boxes, 1)]
    labeled = LabeledImage(path, PLACE, boxes=cats, **labels)
    (checked,) = check_images(Labels([labeled], class_names), clip, num_threads=1)
    return checked


def test_no_labels():
    assert check_images(Labels([]), clip=False, num_threads=2) == []


def test_image_without_boxes(path):
    checked = check(path)
    assert checked.size == (40, 60) and checked.boxes == [] and checked.faults == []


def test_fractions_become_pixels(path):
    assert check(path, (0, 1.5, 60, 40)).boxes[0].xyxy == (0, 1.5, 60, 40)
    checked = check(path, (0.25, 0.5, 0.75, 1), normalized=True)
    assert checked.boxes[0].xyxy == (15, 20, 45, 40) and not checked.normalized


def test_boxes_within_the_tolerance_are_clipped(path):
    checked = check(path, (-1, -0.5, 61, 40.75))
    assert checked.boxes[0].xyxy == (0, 0, 60, 40) and checked.faults == []


@pytest.mark.parametrize("box", [(-1.25, 0, 9, 9), (0, -2, 9, 9), (50, 0, 61.5, 9), (0, 30, 9, 42), (70, 0, 80, 9)])
def test_boxes_beyond_the_image_are_faults(path, box):
    checked = check(path, (1, 1, 2, 2), box)
    (fault,) = checked.faults
    assert fault.place == "labels.txt, line 2" and "pass --clip" in fault.problem
    assert fault.detail == "x1 y1 x2 y2 = {:g} {:g} {:g} {:g} in 60 x 40 pixels".format(*box)
    assert len(checked.boxes) == 1


def test_clip_applies_to_boxes_beyond_the_image(path):
    checked = check(path, (-30, 10, 30, 90), (70, 0, 80, 9), clip=True)
    assert [box.xyxy for box in checked.boxes] == [(0, 10, 30, 40)]
    assert [(fault.place, fault.problem) for fault in checked.faults] == [
        ("labels.txt, line 2", "a box without width or height inside its image")
    ]


@pytest.mark.parametrize("box", [(5, 5, 5, 9), (5, 5, 9, 5), (9, 5, 5, 9), (60, 5, 60.5, 9)])
def test_boxes_without_width_or_height_are_faults(path, box):
    (fault,) = check(path, box).faults
    assert fault.problem == "a box without width or height inside its image" and fault.place == "labels.txt, line 1"


def test_unlisted_classes_are_faults(path):
    assert check(path, (0, 0, 9, 9), class_names=["dog", "cat"]).faults == []
    (fault,) = check(path, (0, 0, 9, 9), class_names=["dog"]).faults
    assert fault.place == "labels.txt, line 1" and "not in the list of classes" in fault.problem
    assert fault.detail == "'cat'"


def test_exif_orientation_applies_unless_the_labels_give_the_stored_size(tmp_path):
    """Stored as 60 x 40 and shown as 40 x 60."""
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (60, 40)).save(tmp_path / "rotated.jpg", exif=exif)
    assert check(tmp_path / "rotated.jpg").size == (60, 40)
    assert check(tmp_path / "rotated.jpg", size=(60, 40)).size == (60, 40)
    assert check(tmp_path / "rotated.jpg", size=(40, 60)).size == (40, 60)


def test_unusable_images_are_faults(path, tmp_path):
    (tmp_path / "cut.png").write_bytes(path.read_bytes()[:40])
    for unusable, labels, words in (
        (tmp_path / "lost.png", {}, ("does not exist", "lost.png")),
        (tmp_path / f"{'x' * 300}.png", {}, ("does not exist", "x.png")),
        (tmp_path, {}, ("does not exist", str(tmp_path))),
        (tmp_path / "cut.png", {}, ("unusable", "cut.png")),
        (path, {"size": (60, 40)}, ("unusable", "a.png", "60 x 40", "40 x 60")),
    ):
        (fault,) = check(unusable, (0, 0, 9, 9), **labels).faults
        assert fault.place == PLACE
        assert all(word in f"{fault.problem}: {fault.detail}" for word in words)


def test_faults_of_the_reader_are_kept(path):
    fault = Fault("labels.txt, line 3", "a mistake")
    assert check(None, faults=[fault]).faults == [fault]
    assert check(path, (9, 9, 9, 9), faults=[fault]).faults[0] is fault


def test_image_labeled_twice_is_a_fault(path):
    def labeled(path: Path, line: int, set_name: str | None) -> LabeledImage:
        return LabeledImage(path, f"labels.txt, line {line}", set_name)

    again = path.parent / "." / "sub" / ".." / path.name
    images = [labeled(path, 1, "train"), labeled(again, 2, None), labeled(path, 3, "val")]
    faults = [image.faults for image in check_images(Labels(images), clip=False, num_threads=1)]
    assert [len(found) for found in faults] == [0, 1, 0]
    assert faults[1][0].place == "labels.txt, line 2" and "twice" in faults[1][0].problem


def test_fault_names_its_place():
    assert str(Fault("labels.txt, line 3", "a mistake", "this")) == "labels.txt, line 3: this"
    assert str(Fault("labels.txt", "a mistake")) == "labels.txt"
