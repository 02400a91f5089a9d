"""Reading CSV tables: columns, boxes, sets, and faults with their lines."""

from pathlib import Path

import pytest

from efficientdet.convert.csv_table import read_csv
from efficientdet.convert.labels import Fault, LabeledBox, LabeledImage, Labels
from utils.errors import InputError


def read(folder: Path, text: str, name: str = "boxes.csv", **options) -> Labels:
    (folder / name).write_text(text, newline="")
    return read_csv(folder / name, **options)


def line_of(found: LabeledImage | LabeledBox | Fault) -> int:
    return int(found.place.split(", line ")[1])


def boxes(labels: Labels) -> list[tuple]:
    return [(box.class_name, box.xyxy, line_of(box)) for image in labels.images for box in image.boxes]


def test_no_files_and_no_rows(tmp_path):
    with pytest.raises(InputError, match="no CSV files"):
        read_csv(tmp_path)
    with pytest.raises(InputError, match=r"boxes\.csv, line 1: "):
        read(tmp_path, "")
    assert read(tmp_path, "filename,xmin,ymin,xmax,ymax,class\r\n").images == []


def test_rows_of_an_image_are_merged(tmp_path):
    labels = read(
        tmp_path,
        "filename,width,height,class,xmin,ymin,xmax,ymax\n"
        "a.jpg,60,40,cat,1,2,10,20\n"
        "sub/b.jpg,50,30,dog,0,0,7.5,8\n\n"
        "a.jpg,60,40,dog,5,6,7,8\n",
    )
    assert [(image.path, image.size, line_of(image)) for image in labels.images] == [
        (tmp_path / "a.jpg", (40, 60), 2),
        (tmp_path / "sub" / "b.jpg", (30, 50), 3),
    ]
    assert boxes(labels) == [("cat", (1, 2, 10, 20), 2), ("dog", (5, 6, 7, 8), 5), ("dog", (0, 0, 7.5, 8), 3)]
    assert labels.class_names is None and not any(image.faults for image in labels.images)


@pytest.mark.parametrize(
    "text",
    [
        "image,x,y,width,height,label\na.jpg,1,2,9,18,cat\n",
        "Image Path;X;Y;W;H;Class Name;image_width;image_height\na.jpg;1;2;9;18;cat;;\n",
        "path\tx1\ty1\tx2\ty2\tname\textra\na.jpg\t1\t2\t10\t20\tcat\tbird\n",
        "ymin,xmin,ymax,xmax,class,image-name\n 2, 1, 20, 10, cat, a.jpg\n",
        '\ufeff"filename","xmin","ymin","xmax","ymax","class"\r\n"a.jpg","1","2","10","20","cat"\r\n',
        "a.jpg,1,2,10,20,cat\n",
    ],
)
def test_known_headers(tmp_path, text):
    labels = read(tmp_path, text)
    (box,) = boxes(labels)
    assert box[:2] == ("cat", (1, 2, 10, 20)) and labels.images[0].path == tmp_path / "a.jpg"
    assert labels.images[0].size is None and labels.images[0].faults == []


def test_rows_without_a_box_are_images_without_objects(tmp_path):
    labels = read(tmp_path, "a.jpg,,,,,\nb.jpg,1,2,10,20,cat\n")
    assert [len(image.boxes) for image in labels.images] == [0, 1]
    assert not any(image.faults for image in labels.images)


def test_images_without_a_row_are_noted(tmp_path):
    for name in ("a.jpg", "b.jpg"):
        (tmp_path / name).touch()
    row = "file,x1,y1,x2,y2,class\n{},1,2,3,4,cat\n"
    assert read(tmp_path, row.format("a.jpg")).notes == [f"1 images of {tmp_path} are in no row: left out"]
    assert read(tmp_path, row.format("a.jpg") + "b.jpg,,,,,\n").notes == []


def test_paths_start_in_the_images_folder(tmp_path):
    labels = read(
        tmp_path, f"sub\\a.jpg,,,,,\n{tmp_path}/b.jpg,,,,,\n../c.jpg,,,,,\n", images_folder=tmp_path / "photos"
    )
    assert [image.path for image in labels.images] == [
        tmp_path / "photos" / "sub" / "a.jpg",
        tmp_path / "b.jpg",
        tmp_path / "c.jpg",
    ]


def test_sets_from_a_column(tmp_path):
    header = "filename,xmin,ymin,xmax,ymax,class,split\n"
    labels = read(tmp_path, f"{header}a.jpg,,,,,,train\nb.jpg,,,,,,Validation\nc.jpg,,,,,,test\nd.jpg,,,,,,\n")
    assert [image.set_name for image in labels.images] == ["train", "val", "test", None]


@pytest.mark.parametrize(
    ("name", "set_name"),
    [("train.csv", "train"), ("Val_labels.csv", "val"), ("boxes-test.csv", "test"), ("training1.csv", None)],
)
def test_sets_from_file_names(tmp_path, name, set_name):
    assert read(tmp_path, "a.jpg,,,,,\n", name).images[0].set_name == set_name


def test_boxes_of_one_image_in_two_files_name_their_own_file(tmp_path):
    for name in "ab":
        (tmp_path / f"{name}.csv").write_text("a.jpg,1,2,10,20,cat\n")
    (image,) = read_csv(tmp_path).images
    assert [box.place for box in image.boxes] == [f"{tmp_path}/{name}.csv, line 1" for name in "ab"]


def test_folder_of_csv_files(tmp_path):
    for folder in ("train", "valid"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "_annotations.csv").write_text("a.jpg,1,2,10,20,cat\n")
    assert [(image.path, image.set_name) for image in read_csv(tmp_path).images] == [
        (tmp_path / "train" / "a.jpg", "train"),
        (tmp_path / "valid" / "a.jpg", "val"),
    ]


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ("a.jpg,60,40,cat,one,2,10,20", "a value that is not a number: 'one'"),
        ("a.jpg,60,40,cat,1,2,10,", "a value that is not a number: ''"),
        ("a.jpg,60,40,cat,1,2,10,inf", "a value that is not a number: 'inf'"),
        ("a.jpg,60,40,,1,2,10,20", "an object without a class"),
        ("a.jpg,wide,40,cat,1,2,10,20", "a value that is not a number: 'wide'"),
        ("a.jpg,60,40,cat,1,2,10", "number of columns than the first row: 7 instead of 8"),
        ("a.jpg,60,40,cat,1,2,10,20,30", "number of columns than the first row: 9 instead of 8"),
        ("a.jpg,61,40,cat,1,2,10,20", "image size than the image's first row: {folder}/a.jpg"),
        (",60,40,cat,1,2,10,20", "a row without the name of an image"),
    ],
)
def test_faults_name_their_line(tmp_path, row, words):
    good = "a.jpg,60,40,cat,1,2,10,20"
    labels = read(tmp_path, f"filename,width,height,class,xmin,ymin,xmax,ymax\n{good}\n{row}\n{good},,\n")
    (fault,) = [fault for image in labels.images for fault in image.faults]
    assert fault.place == f"{tmp_path}/boxes.csv, line 3"
    assert words.format(folder=tmp_path) in f"{fault.problem}: {fault.detail}"
    assert {2, 4} <= {line for _, _, line in boxes(labels)}


def test_unknown_set_is_a_fault(tmp_path):
    labels = read(tmp_path, "filename,xmin,ymin,xmax,ymax,class,set\na.jpg,,,,,,holdout\n")
    (fault,) = labels.images[0].faults
    assert line_of(fault) == 2 and "a set other than" in fault.problem and fault.detail == "'holdout'"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("cat,0\ndog,1\n", r"line 1: neither a header with a column of file names \(filename, "),
        ("a.jpg,1,2,10,twenty,cat\n", "line 1: neither a header"),
        ("filename,xmin,ymin,xmax,class\n", "line 1: .* xmin, ymin, xmax, ymax nor x, y, width"),
        ("filename,xmin,ymin,xmax,ymax\n", "line 1: .* no column of classes"),
        ("file,path,x,y,w,h,class\n", "line 1: the columns file and path "),
        ('a.jpg,1,2,10,20,cat\nb.jpg,"1"2,2,10,20,cat\n', "line 2: invalid CSV"),
    ],
)
def test_unusable_tables(tmp_path, text, words):
    with pytest.raises(InputError, match=rf"boxes\.csv, {words}"):
        read(tmp_path, text)


def test_file_that_is_not_text(tmp_path):
    (tmp_path / "a.csv").write_bytes(b"\xff\xfe\x00a")
    with pytest.raises(InputError, match=r"a\.csv: not UTF-8"):
        read_csv(tmp_path)
