"""Reading Pascal VOC: boxes, sets, the image of each XML file, and faults with their lines."""

from collections.abc import Iterable
from pathlib import Path

import pytest

from efficientdet.convert.labels import Fault, LabeledBox, LabeledImage
from efficientdet.convert.voc import read_voc
from utils.errors import InputError

BOX = "<bndbox><xmin>1</xmin><ymin>2</ymin><xmax>10</xmax><ymax>20</ymax></bndbox>"
CAT = f"<object><name>cat</name>{BOX}</object>"


def write(path: Path, text: str = "") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def annotation(content: str = CAT) -> str:
    return f"<annotation>\n{content}\n</annotation>\n"


def write_pair(folder: Path, name: str, content: str = CAT) -> None:
    """Write an empty `{name}.jpg`, which no reader of labels opens, and `{name}.xml` next to it."""
    write(folder / f"{name}.jpg")
    write(folder / f"{name}.xml", annotation(content))


def only_image(folder: Path, **options) -> LabeledImage:
    (image,) = read_voc(folder, **options).images
    return image


def line_of(found: LabeledBox | Fault) -> int:
    return int(found.place.split(", line ")[1])


def described(faults: list[Fault]) -> list[tuple[str, int, str]]:
    return [(fault.problem, line_of(fault), fault.detail) for fault in faults]


def test_folder_without_xml_files(tmp_path):
    write(tmp_path / "a.jpg")
    with pytest.raises(InputError, match="no XML files"):
        read_voc(tmp_path)


def test_annotation_without_objects(tmp_path):
    write_pair(tmp_path, "a", "")
    image = only_image(tmp_path)
    assert image.path == tmp_path / "a.jpg" and image.place == f"{tmp_path}/a.xml, line 1"
    assert image.boxes == [] and image.faults == [] and image.size is None and image.set_name is None


def test_coordinates_are_pixel_numbers_from_one(tmp_path):
    """Columns 1 to 10 are the first ten, from the image's edge to 10. Rows 2 to 20 are nineteen."""
    write_pair(tmp_path, "a")
    (box,) = only_image(tmp_path).boxes
    assert box.class_name == "cat" and box.xyxy == (0, 1, 10, 20) and line_of(box) == 2 and not box.is_crowd


def test_zero_based_coordinates_are_distances_from_the_edge(tmp_path):
    write_pair(tmp_path, "a", CAT.replace("<xmin>1<", "<xmin>0.25<"))
    (box,) = only_image(tmp_path, zero_based=True).boxes
    assert box.xyxy == (0.25, 2, 10, 20)


def test_objects_keep_the_order_of_the_file(tmp_path):
    dog = f"<object>\n  <part><name>head</name>{BOX}</part><name> dog </name>{BOX.replace('10', '45.5')}</object>"
    write_pair(tmp_path, "a", f"<size><width>60</width><height>40</height><depth>3</depth></size>{CAT}\n{dog}")
    image = only_image(tmp_path)
    assert [(box.class_name, box.xyxy, line_of(box)) for box in image.boxes] == [
        ("cat", (0, 1, 10, 20), 2),
        ("dog", (0, 1, 45.5, 20), 3),
    ]
    assert image.size == (40, 60)


def test_size_of_zero_is_unspecified(tmp_path):
    write_pair(tmp_path, "a", "<size><width>0</width><height>0</height></size>")
    image = only_image(tmp_path)
    assert image.size is None and image.faults == []


@pytest.mark.parametrize(
    ("difficult", "kept"),
    [
        ("ignore", [("cat", False), ("dog", True)]),
        ("keep", [("cat", False), ("dog", False)]),
        ("drop", [("cat", False)]),
    ],
)
def test_difficult_objects(tmp_path, difficult, kept):
    dog = CAT.replace("cat", "dog").replace("</object>", "<difficult>1</difficult></object>")
    cat = CAT.replace("</object>", "<difficult>0</difficult></object>")
    write_pair(tmp_path, "a", cat + dog)
    boxes = only_image(tmp_path, difficult=difficult).boxes
    assert [(box.class_name, box.is_crowd) for box in boxes] == kept


def write_voc(root: Path, names: Iterable[str], **lists: str) -> None:
    for name in names:
        write(root / "JPEGImages" / f"{name}.jpg")
        write(root / "Annotations" / f"{name}.xml", annotation())
    for list_name, content in lists.items():
        write(root / "ImageSets" / "Main" / f"{list_name}.txt", content)


def sets(labels) -> list[tuple[str, str | None]]:
    return [(image.path.stem, image.set_name) for image in labels.images]


def test_lists_name_the_sets(tmp_path):
    write_voc(tmp_path, "abcd", train="b\na\n\n", val="c 1\n", trainval="a\nb\nc\n", cat_train="d 1\n")
    labels = read_voc(tmp_path)
    assert sets(labels) == [("b", "train"), ("a", "train"), ("c", "val")]
    assert labels.images[0].path == tmp_path / "JPEGImages" / "b.jpg"
    assert [note.split(" of ")[0] for note in labels.notes] == ["1 XML files", "1 images"]


def test_listed_names_may_contain_blanks_or_precede_a_flag(tmp_path):
    write_voc(tmp_path, ["my cat", "c", "d"], train="my cat\nc  1\n", val="d -1\n")
    assert [name for name, _ in sets(read_voc(tmp_path))] == ["my cat", "c", "d"]


def test_trainval_counts_without_train_and_val(tmp_path):
    write_voc(tmp_path, "abc", trainval="a\nb\n", test="c\n")
    labels = read_voc(tmp_path)
    assert sorted(sets(labels)) == [("a", None), ("b", None), ("c", "test")] and labels.notes == []


def test_without_lists_there_are_no_sets(tmp_path):
    write_voc(tmp_path, "ab")
    assert sets(read_voc(tmp_path)) == [("a", None), ("b", None)]


def test_folder_of_several_years(tmp_path):
    """Segmentation masks share the images' names."""
    write_voc(tmp_path / "VOC2007", "ab", train="a\n", val="b\n")
    write_voc(tmp_path / "VOC2012", "c", train="c\n")
    write(tmp_path / "VOC2012" / "SegmentationClass" / "c.png")
    labels = read_voc(tmp_path)
    assert sets(labels) == [("a", "train"), ("b", "val"), ("c", "train")] and labels.notes == []
    assert labels.images[2].path == tmp_path / "VOC2012" / "JPEGImages" / "c.jpg"


def test_folders_name_the_sets(tmp_path):
    for folder in ("train", "valid", "test"):
        write_pair(tmp_path / folder, "same")
    labels = read_voc(tmp_path)
    assert [(image.path, image.set_name) for image in labels.images] == [
        (tmp_path / "test" / "same.jpg", "test"),
        (tmp_path / "train" / "same.jpg", "train"),
        (tmp_path / "valid" / "same.jpg", "val"),
    ]


def test_listed_image_without_xml_file_is_a_fault_of_the_list(tmp_path):
    write_voc(tmp_path, "a", train="a\nlost\n")
    _, lost = read_voc(tmp_path).images
    assert str(lost.faults[0]) == f"{tmp_path}/ImageSets/Main/train.txt, line 2: {tmp_path}/Annotations/lost.xml"


@pytest.mark.parametrize(
    ("xml_file", "filename", "images", "chosen"),
    [
        ("a.xml", "a.jpg", ["a.jpg"], "a.jpg"),
        ("a.xml", "a.jpg", ["a.PNG"], "a.PNG"),
        ("a.xml", "old.jpg", ["a.jpg"], "a.jpg"),
        ("a.xml", "b.jpg", ["a.jpg", "b.jpg"], "a.jpg"),
        ("001.xml", "photo.jpg", ["photo.jpg"], "photo.jpg"),
        ("001.xml", "photo", ["photo.jpg"], "photo.jpg"),
        ("001.xml", "C:\\Users\\me\\photo.jpg", ["photo.jpg"], "photo.jpg"),
        ("a.jpg.xml", "", ["a.jpg"], "a.jpg"),
        ("a.xml", "a.png", ["a.jpg", "a.png"], "a.png"),
        ("a.xml", "", [".checkpoints/a.jpg", "a.jpg"], "a.jpg"),
        ("xml/train/a.xml", "a.jpg", ["images/train/a.jpg", "images/val/a.jpg"], "images/train/a.jpg"),
    ],
)
def test_image_of_an_xml_file(tmp_path, xml_file, filename, images, chosen):
    write(tmp_path / xml_file, annotation(f"<filename>{filename}</filename>"))
    for image in images:
        write(tmp_path / image)
    assert only_image(tmp_path).path == tmp_path / chosen


def test_images_in_another_folder(tmp_path):
    write(tmp_path / "labels" / "a.xml", annotation())
    write(tmp_path / "photos" / "a.jpg")
    assert only_image(tmp_path / "labels", images_folder=tmp_path / "photos").path == tmp_path / "photos" / "a.jpg"


def test_missing_and_ambiguous_images_are_faults(tmp_path):
    write(tmp_path / "a.xml", annotation("<size/>\n<filename>b.jpg</filename>"))
    image = only_image(tmp_path)
    assert image.path is None
    assert [(problem[:27], line, detail) for problem, line, detail in described(image.faults)] == [
        ("an image that does not exis", 3, "a.* or b.jpg"),
        ("an element <size> without <", 2, ""),
    ]
    write(tmp_path / "a.jpg")
    write(tmp_path / "a.png")
    (fault, _) = only_image(tmp_path).faults
    assert "several images" in fault.problem and line_of(fault) == 3 and "a.jpg or " in fault.detail


@pytest.mark.parametrize(
    ("content", "line", "words"),
    [
        (f"\n\n<object>{BOX}</object>", 4, "<object> without <name>"),
        (f"<object><name> </name>\n{BOX}</object>", 2, "an object without a class"),
        ("\n<object><name>cat</name></object>", 3, "<object> without <bndbox>"),
        (CAT.replace("<xmax>10</xmax>", ""), 2, "<bndbox> without <xmax>"),
        (CAT.replace("<ymax>20", "\n<ymax>2o"), 3, "number '2o'"),
        (CAT.replace("<ymax>20", "\n<ymax>nan"), 3, "number 'nan'"),
        (CAT.replace("<ymax>20", "\n<ymax>"), 3, "number ''"),
        (CAT.replace("<xmin>1<", "<xmin>0<"), 2, "--zero_based if yours start at 0 xmin 0, ymin 2"),
        ("<size><width>wide</width><height>9</height></size>", 2, "number 'wide'"),
    ],
)
def test_faults_name_their_line(tmp_path, content, line, words):
    write_pair(tmp_path, "a", f"{content}\n{CAT}")
    image = only_image(tmp_path)
    ((problem, fault_line, detail),) = described(image.faults)
    assert words in f"{problem} {detail}" and fault_line == line
    assert image.path == tmp_path / "a.jpg"
    assert image.boxes[-1].class_name == "cat", "the other objects are still read"


def test_every_faulty_object_is_reported(tmp_path):
    write_pair(tmp_path, "a", "<object/>\n<object/>\n<object/>")
    assert [line for _, line, _ in described(only_image(tmp_path).faults)] == [2, 3, 4]


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ("", 1, "invalid XML no element found"),
        ("<annotation>\n<object>\n</annotation>", 3, "invalid XML mismatched tag"),
        ("<annotation>\n<name>Black & White</name>\n</annotation>", 2, "invalid XML"),
        ("<annotations/>", 1, "not a Pascal VOC annotation <annotations>"),
        ('<?xml version="1.0" encoding="martian"?>\n<annotation/>', 1, "invalid XML"),
        ('<?xml version="1.0" encoding="gb18030"?>\n<annotation/>', 1, "invalid XML"),
    ],
)
def test_files_that_are_not_annotations(tmp_path, text, line, words):
    write(tmp_path / "a.jpg")
    write(tmp_path / "a.xml", text)
    image = only_image(tmp_path)
    ((problem, fault_line, detail),) = described(image.faults)
    assert words in f"{problem} {detail}" and fault_line == line and image.path is None


def test_document_types_are_rejected(tmp_path):
    """They could expand without bound or include files."""
    secret = write(tmp_path / "secret.txt", "secret")
    for entities in ('<!ENTITY a "aaaa"><!ENTITY b "&a;&a;">', f'<!ENTITY b SYSTEM "file://{secret}">'):
        write_pair(tmp_path, "a")
        write(tmp_path / "a.xml", f"<!DOCTYPE annotation [{entities}]>\n<annotation>&b;</annotation>")
        ((problem, line, _),) = described(only_image(tmp_path).faults)
        assert "document type" in problem and line == 1
