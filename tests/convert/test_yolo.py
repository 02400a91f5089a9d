"""Reading YOLO: boxes, class names, sets, and faults with their lines."""

from pathlib import Path

import pytest

from efficientdet.convert.labels import Fault, LabeledBox
from efficientdet.convert.yolo import read_yolo
from utils.errors import InputError


def write(path: Path, text: str = "") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def write_yolo(folder: Path, labels: dict[str, str | None], names: str = "cat\ndog\n") -> Path:
    """Write empty images `images/{name}.jpg`, `labels/{name}.txt` and `classes.txt`."""
    for name, text in labels.items():
        write(folder / "images" / f"{name}.jpg")
        if text is not None:
            write(folder / "labels" / f"{name}.txt", text)
    write(folder / "classes.txt", names)
    return folder


def line_of(found: LabeledBox | Fault) -> int:
    return int(found.place.split(", line ")[1])


def sets(labels, folder: Path) -> list[tuple[str, str | None]]:
    return [(str(image.path.relative_to(folder)), image.set_name) for image in labels.images]


def test_no_images(tmp_path):
    write_yolo(tmp_path, {})
    with pytest.raises(InputError, match="0 images and no label files"):
        read_yolo(tmp_path)


def test_no_label_files(tmp_path):
    write_yolo(tmp_path, {"a": None})
    with pytest.raises(InputError, match=r"1 images and no label files.*such as .*a\.txt for .*images/a\.jpg"):
        read_yolo(tmp_path)


def test_empty_and_missing_label_files_are_images_without_objects(tmp_path):
    write_yolo(tmp_path, {"a": "", "b": None, "c": "\n\n"})
    labels = read_yolo(tmp_path)
    assert [image.boxes for image in labels.images] == [[], [], []]
    assert [image.faults for image in labels.images] == [[], [], []]
    assert labels.notes == ["1 images have no label file: they count as images without objects"]


def test_boxes_computed_by_hand(tmp_path):
    write_yolo(tmp_path, {"a": "1 0.5 0.25 0.5 0.25\n\n0 0.75 0.5 0.5 1\n"})
    labels = read_yolo(tmp_path)
    (image,) = labels.images
    assert labels.class_names == ["cat", "dog"] and image.normalized and image.size is None
    assert [(box.class_name, box.xyxy, line_of(box)) for box in image.boxes] == [
        ("dog", (0.25, 0.125, 0.75, 0.375), 1),
        ("cat", (0.5, 0, 1, 1), 3),
    ]
    assert image.place == f"{tmp_path}/labels/a.txt, line 1"


def test_polygons_become_their_bounding_boxes(tmp_path):
    write_yolo(tmp_path, {"a": "0 0.5 0.25 0.75 0.5 0.25 0.375\n0.0 0.1 0.2 0.4 0.2 0.4 0.6 0.1 0.6"})
    (image,) = read_yolo(tmp_path).images
    assert [box.xyxy for box in image.boxes] == [(0.25, 0.25, 0.75, 0.5), (0.1, 0.2, 0.4, 0.6)]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("2 0.5 0.5 0.1 0.1", "a class index without a class name: 2, with 2 names"),
        ("-1 0.5 0.5 0.1 0.1", "a class index without a class name: -1"),
        ("0.5 0.5 0.5 0.1 0.1", "a class index without a class name: 0.5"),
        ("cat 0.5 0.5 0.1 0.1", "number: 'cat'"),
        ("0 0.5 0.5 0.1 nan", "number: 'nan'"),
        ("0 0.5 0.5 0.1", "nor a class and a polygon: 4 values"),
        ("0 0.5 0.5 0.1 0.1 0.97", "nor a class and a polygon: 6 values"),
        ("0 0.1 0.1 0.2 0.2 0.3 0.3 0.4", "nor a class and a polygon: 8 values"),
        ("0 320 0.5 0.1 0.1", "fractions of the image's sides: 320"),
        ("0 0.5 0.5 -0.1 0.1", "fractions of the image's sides: -0.1"),
        ("0 0.5 0.5 0.1 1.002", "fractions of the image's sides: 1.002"),
    ],
)
def test_faults_name_their_line(tmp_path, line, words):
    write_yolo(tmp_path, {"a": f"0 0.5 0.5 1.0005 1\n\n{line}\n1 0.5 0.5 1 1\n"})
    (image,) = read_yolo(tmp_path).images
    (fault,) = image.faults
    assert fault.place == f"{tmp_path}/labels/a.txt, line 3"
    assert words in f"{fault.problem}: {fault.detail}"
    assert [line_of(box) for box in image.boxes] == [1, 4]


def test_label_file_that_is_not_text(tmp_path):
    write_yolo(tmp_path, {"a": ""})
    (tmp_path / "labels" / "a.txt").write_bytes(b"\xff\xfe0")
    (fault,) = read_yolo(tmp_path).images[0].faults
    assert "unreadable" in fault.problem and "UTF-8" in str(fault)


def test_label_file_without_image_is_a_fault(tmp_path):
    write_yolo(tmp_path, {"train/a": ""})
    write(tmp_path / "labels" / "train" / "lost.txt", "0 0.5 0.5 1 1")
    write(tmp_path / "labels" / "classes.txt", "cat\ndog")
    (_, lost) = read_yolo(tmp_path).images
    assert lost.path is None and str(lost.faults[0]) == f"{tmp_path}/labels/train/lost.txt, line 1"


def test_labels_next_to_the_images(tmp_path):
    write(tmp_path / "a.jpg")
    write(tmp_path / "a.txt", "0 0.5 0.5 1 1")
    write(tmp_path / "obj.names", "cat\n")
    labels = read_yolo(tmp_path)
    assert labels.class_names == ["cat"] and len(labels.images[0].boxes) == 1


@pytest.mark.parametrize(
    "expected",
    [
        {"images/a.jpg": None, "images/train/a.jpg": "train", "images/val/a.jpg": "val"},
        {"test/images/a.jpg": "test", "train/images/a.jpg": "train", "valid/images/a.jpg": "val"},
    ],
)
def test_folders_name_the_sets(tmp_path, expected):
    for name in expected:
        write(tmp_path / name)
        write((tmp_path / name.replace("images", "labels")).with_suffix(".txt"), "0 0.5 0.5 1 1")
    write(tmp_path / "classes.txt", "cat\n")
    labels = read_yolo(tmp_path)
    assert sets(labels, tmp_path) == list(expected.items())
    assert all(len(image.boxes) == 1 for image in labels.images)


def test_class_names_from_the_caller_come_first(tmp_path):
    write_yolo(tmp_path, {"a": "1 0.5 0.5 1 1"})
    labels = read_yolo(tmp_path, ["bird", "fish"])
    assert labels.class_names == ["bird", "fish"] and labels.images[0].boxes[0].class_name == "fish"


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({}, "has no data.yaml, classes.txt or obj.names: .* --classes"),
        ({"classes.txt": "\n"}, "classes.txt is empty"),
        ({"classes.txt": "cat\n\ndog\n"}, "classes.txt, line 2: "),
        ({"classes.txt": "cat\ndog\ncat\n"}, "classes.txt, line 3: .*'cat'"),
        ({"classes.txt": "cat\n", "labels/classes.txt": "dog\n"}, "the class names in .* differ"),
        ({"data.yaml": "train: images\n"}, "has no data.yaml, classes.txt"),
        ({"data.yaml": "names: 3\n"}, "data.yaml: names must be .* not 3"),
        ({"data.yaml": "names: {cat: 0}\n"}, "data.yaml: names must be .*cat"),
        ({"data.yaml": "names: [cat, cat]\n"}, "data.yaml: the name 'cat' .*duplicate"),
        ({"data.yaml": "names: [yes, no]\n"}, "data.yaml: the name True .*quotes"),
        ({"data.yaml": "names: {0: cat, 1: null}\n"}, "data.yaml: the name None"),
        ({"data.yaml": "names: [cat\n"}, "data.yaml, line 2"),
        ({"data.yaml": "cat"}, "data.yaml"),
        ({"data.yaml": "kpt_shape: [17, 2]\n"}, "data.yaml .*kpt_shape"),
        ({"a.yaml": "", "b.yaml": ""}, "a.yaml, b.yaml"),
        ({"data.yaml": "names: [cat]\ntrain: photos\n"}, "data.yaml: photos, the folder of the set train"),
    ],
)
def test_unusable_descriptions(tmp_path, files, words):
    write(tmp_path / "images" / "a.jpg")
    write(tmp_path / "labels" / "a.txt", "0 0.5 0.5 1 1")
    for name, text in files.items():
        write(tmp_path / name, text)
    with pytest.raises(InputError, match=words):
        read_yolo(tmp_path)


@pytest.mark.parametrize("names", ["[cat, dog]", "{1: dog, 0: cat}", "\n- cat\n- dog"])
@pytest.mark.parametrize(
    "paths",
    [
        "train: images/train\nval: images/val",
        "path: .\ntrain: images/train\nval: images/val\ntest:",
        "path: ../datasets/pets\ntrain: images/train\nval: [images/val]",
        "train: ../images/train\nval: ../images/val",
        "nc: 2",  # the folders define the sets
    ],
)
def test_yaml_file_names_classes_and_sets(tmp_path, names, paths):
    write_yolo(tmp_path, {"train/a": "1 0.5 0.5 1 1", "val/b": ""}, names="wrong\n")
    file = write(tmp_path / "data.yaml", f"{paths}\nnames: {names}\n")
    for source in (tmp_path, file):
        labels = read_yolo(source)
        assert labels.class_names == ["cat", "dog"] and labels.notes == []
        assert sets(labels, tmp_path) == [("images/train/a.jpg", "train"), ("images/val/b.jpg", "val")]
        assert labels.images[0].boxes[0].class_name == "dog"


def test_class_indices_may_have_gaps(tmp_path):
    write_yolo(tmp_path, {"a": "7 0.5 0.5 1 1\n1 0.5 0.5 1 1"})
    write(tmp_path / "data.yaml", "names: {7: dog, 0: cat}")
    labels = read_yolo(tmp_path)
    (image,) = labels.images
    assert labels.class_names == ["cat", "dog"]
    assert [box.class_name for box in image.boxes] == ["dog"] and line_of(image.faults[0]) == 2


def test_missing_test_folder_is_noted(tmp_path):
    write_yolo(tmp_path, {"a": ""})
    write(tmp_path / "data.yaml", "train: images\nval: images\ntest: ../test/images\nnames: [cat]")
    labels = read_yolo(tmp_path)
    assert len(labels.notes) == 1 and "../test/images, the folder of the set test" in labels.notes[0]


def test_list_files_name_the_images(tmp_path):
    write_yolo(tmp_path, {"a": "0 0.5 0.5 1 1", "b": None, "c": ""})
    write(tmp_path / "data.yaml", "train: lists/train.txt\nval: lists/val.txt\nnames: [cat]")
    write(tmp_path / "lists" / "train.txt", f"../images/a.jpg\n\n{tmp_path}/images/lost.jpg\n")
    write(tmp_path / "lists" / "val.txt", "./../images/b.jpg\n")
    labels = read_yolo(tmp_path)
    assert sets(labels, tmp_path) == [
        ("images/a.jpg", "train"),
        ("images/lost.jpg", "train"),
        ("images/b.jpg", "val"),
    ]
    assert [image.place for image in labels.images] == [
        f"{tmp_path}/labels/a.txt, line 1",
        f"{tmp_path}/lists/train.txt, line 3",
        f"{tmp_path}/lists/val.txt, line 1",
    ]
