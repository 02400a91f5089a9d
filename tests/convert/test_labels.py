"""What all label formats share: files and names found, and labels checked against the images."""

from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from efficientdet.convert.labels import (
    Fault,
    LabelledBox,
    LabelledImage,
    Labels,
    check_images,
    files_below,
    read_class_names,
    set_named_in,
)
from utils.errors import InputError

LABELS = Path("labels.txt")


@pytest.fixture
def picture(tmp_path) -> Path:
    """An image 60 wide and 40 high."""
    assert cv2.imwrite(str(tmp_path / "a.png"), np.zeros((40, 60, 3), np.uint8))
    return tmp_path / "a.png"


def check(path: Path | None, *boxes, class_names=None, clip=False, **labels) -> LabelledImage:
    """The image with a cat at each of the boxes (xyxy), checked; the boxes are in lines 1, 2, ..."""
    cats = [LabelledBox("cat", box, line) for line, box in enumerate(boxes, 1)]
    labelled = LabelledImage(path, LABELS, 7, boxes=cats, **labels)
    (checked,) = check_images(Labels([labelled], class_names), clip, num_threads=1)
    return checked


def test_no_labels():
    assert check_images(Labels([]), clip=False, num_threads=2) == []


def test_image_without_boxes(picture):
    checked = check(picture)
    assert checked.size == (40, 60) and checked.boxes == [] and checked.faults == []


def test_pixels_stay_and_shares_become_pixels(picture):
    assert check(picture, (0, 1.5, 60, 40)).boxes[0].xyxy == (0, 1.5, 60, 40)
    checked = check(picture, (0.25, 0.5, 0.75, 1), normalised=True)
    assert checked.boxes[0].xyxy == (15, 20, 45, 40) and not checked.normalised


def test_boxes_are_clipped_where_rounding_explains_it(picture):
    checked = check(picture, (-1, -0.5, 61, 40.75))
    assert checked.boxes[0].xyxy == (0, 0, 60, 40) and checked.faults == []


@pytest.mark.parametrize("box", [(-1.25, 0, 9, 9), (0, -2, 9, 9), (50, 0, 61.5, 9), (0, 30, 9, 42), (70, 0, 80, 9)])
def test_boxes_beyond_the_image_are_faults(picture, box):
    checked = check(picture, (1, 1, 2, 2), box)
    (fault,) = checked.faults
    assert fault.line == 2 and "beyond its image: correct it, or pass --clip" in fault.problem
    assert fault.detail == "x1 y1 x2 y2 = {:g} {:g} {:g} {:g} in 60 x 40 pixels".format(*box)
    assert len(checked.boxes) == 1


def test_boxes_beyond_the_image_are_clipped_on_request(picture):
    checked = check(picture, (-30, 10, 30, 90), (70, 0, 80, 9), clip=True)
    assert [box.xyxy for box in checked.boxes] == [(0, 10, 30, 40)]
    assert [(fault.line, fault.problem) for fault in checked.faults] == [
        (2, "a box without width or height in its image")
    ]


@pytest.mark.parametrize("box", [(5, 5, 5, 9), (5, 5, 9, 5), (9, 5, 5, 9), (60, 5, 60.5, 9)])
def test_boxes_without_width_or_height_are_faults(picture, box):
    (fault,) = check(picture, box).faults
    assert fault.problem == "a box without width or height in its image" and fault.line == 1


def test_classes_that_are_not_listed_are_faults(picture):
    assert check(picture, (0, 0, 9, 9), class_names=["dog", "cat"]).faults == []
    (fault,) = check(picture, (0, 0, 9, 9), class_names=["dog"]).faults
    assert fault.line == 1 and "not in the list of classes" in fault.problem and fault.detail == "'cat'"


def test_size_is_the_one_that_the_labels_agree_with(tmp_path):
    """Stored 60 x 40, and turned by its EXIF orientation when it is shown."""
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (60, 40)).save(tmp_path / "turned.jpg", exif=exif)
    assert check(tmp_path / "turned.jpg").size == (60, 40)
    assert check(tmp_path / "turned.jpg", size=(60, 40)).size == (60, 40)
    assert check(tmp_path / "turned.jpg", size=(40, 60)).size == (40, 60)


def test_images_that_cannot_be_used_are_faults(picture, tmp_path):
    (tmp_path / "cut.png").write_bytes(picture.read_bytes()[:40])
    for path, labels, words in (
        (tmp_path / "lost.png", {}, ("an image that is not there", "lost.png")),
        (tmp_path / f"{'x' * 300}.png", {}, ("an image that is not there", "x.png")),
        (tmp_path, {}, ("an image that is not there", str(tmp_path))),
        (tmp_path / "cut.png", {}, ("cannot be used", "cut.png is damaged")),
        (picture, {"size": (60, 40)}, ("cannot be used", "is 60 x 40 pixels", "says 40 x 60")),
    ):
        (fault,) = check(path, (0, 0, 9, 9), **labels).faults
        assert (fault.file, fault.line) == (LABELS, 7)
        assert all(word in f"{fault.problem}: {fault.detail}" for word in words)


def test_faults_of_the_reader_are_kept(picture):
    fault = Fault(LABELS, 3, "a mistake")
    assert check(None, faults=[fault]).faults == [fault]
    assert check(picture, (9, 9, 9, 9), faults=[fault]).faults[0] is fault


def test_image_that_is_labelled_twice_is_a_fault(picture):
    def labelled(path: Path, line: int, set_name: str | None) -> LabelledImage:
        return LabelledImage(path, LABELS, line, set_name)

    again = picture.parent / "." / "sub" / ".." / picture.name
    pictures = [labelled(picture, 1, "train"), labelled(again, 2, None), labelled(picture, 3, "val")]
    faults = [picture.faults for picture in check_images(Labels(pictures), clip=False, num_threads=1)]
    assert [len(found) for found in faults] == [0, 1, 0]
    assert faults[1][0].line == 2 and "twice" in faults[1][0].problem


def test_a_fault_names_its_place():
    assert str(Fault(LABELS, 3, "a mistake", "this")) == "labels.txt, line 3: this"
    assert str(Fault(LABELS, None, "a mistake")) == "labels.txt"


def test_files_below_hide_what_is_hidden_and_follow_links(tmp_path):
    assert files_below(tmp_path) == []
    for name in (
        "data/b.JPG",
        "data/deep/a.png",
        "data/.trash/c.png",
        "data/._d.png",
        "data/notes.txt",
        "other/e.webp",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    data = tmp_path / "data"
    (data / "link").symlink_to(tmp_path / "other")
    assert files_below(data) == [data / "b.JPG", data / "deep" / "a.png", data / "link" / "e.webp"]
    assert files_below(data, {".txt"}) == [data / "notes.txt"]


@pytest.mark.parametrize(
    ("path", "set_name"),
    [
        ("a.jpg", None),
        ("train.jpg", None),
        ("train/a.jpg", "train"),
        ("images/Valid/a.jpg", "val"),
        ("testing/train/a.jpg", "test"),
        ("training_2/a.jpg", None),
    ],
)
def test_set_named_in_folders(path, set_name):
    assert set_named_in(Path("val") / path, Path("val")) == set_name


def test_class_names_are_lines(tmp_path):
    (tmp_path / "names").write_bytes(b"\xef\xbb\xbfcat\r\nblue whale \r\n\r\n")
    assert read_class_names(tmp_path / "names") == ["cat", "blue whale"]
    with pytest.raises(InputError, match="cannot read .*absent"):
        read_class_names(tmp_path / "absent")
