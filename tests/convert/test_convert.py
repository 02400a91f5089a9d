"""`python -m efficientdet.convert`: three formats there and back, what it writes, and what it rejects."""

import json
import os
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from label_formats import write_as_csv, write_as_voc, write_as_yolo
from scripts import REPOSITORY, assert_succeeded

from efficientdet.convert import __main__ as convert
from efficientdet.convert.__main__ import guess_format, main, parse_args
from efficientdet.data.dataset import CocoDataset
from efficientdet.project import load_project
from utils.errors import InputError


def content(set_name: str, project: str = "made", data: str = "datasets") -> dict:
    return json.loads(Path(data, project, "annotations", f"instances_{set_name}.json").read_text())


def objects(coco: dict) -> dict[str, list[tuple]]:
    """Return file name -> [(class, *xywh)]."""
    names = {category["id"]: category["name"] for category in coco["categories"]}
    found = {image["id"]: (image["file_name"], []) for image in coco["images"]}
    for annotation in coco["annotations"]:
        found[annotation["image_id"]][1].append((names[annotation["category_id"]], *annotation["bbox"]))
    return dict(found.values())


def run(*args: str | Path) -> None:
    """Run the command in this process, for the project `made`."""
    main(parse_args([*map(str, args), "-p", "made"]))


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """An empty working folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write_csv(number: int = 4, rows: str = "", file_name: str = "photos/boxes.csv") -> Path:
    """Write a CSV file, next to images `0.png`, ... of 60 x 40 pixels, each with a cat from (1, 2) to (10, 20)."""
    file = Path(file_name)
    file.parent.mkdir(parents=True, exist_ok=True)
    for n in range(number):
        assert cv2.imwrite(str(file.parent / f"{n}.png"), np.full((40, 60, 3), n, np.uint8))
    cats = "".join(f"{n}.png,1,2,10,20,cat\n" for n in range(number))
    file.write_text(f"filename,xmin,ymin,xmax,ymax,class\n{cats}{rows}")
    return file


def files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if not path.is_dir())


def test_no_objects(folder):
    write_csv(0, "0.png,,,,,\n1.png,,,,,\n")
    for name in ("0.png", "1.png"):
        cv2.imwrite(f"photos/{name}", np.zeros((4, 6, 3), np.uint8))
    with pytest.raises(InputError, match="no object"):
        run("photos")
    assert not Path("datasets").exists() and not Path("projects").exists()


@pytest.mark.parametrize("write", [write_as_voc, write_as_yolo, write_as_csv])
def test_there_and_back(shapes_project, folder, capsys, write):
    run(*write(shapes_project, folder / "labeled"))

    project = load_project("made")
    assert project.name == "made" and project.class_names == ("disc", "square")
    assert (project.train_set, project.val_set, project.image_size) == ("train", "val", None)
    coco = load_project(REPOSITORY / "projects" / "coco.yml")
    for same in ("mean", "std", "anchor_scales", "anchor_ratios"):
        assert getattr(project, same) == getattr(coco, same)

    boxes = 0
    for set_name in ("train", "val"):
        before = objects(json.loads((shapes_project.data / f"annotations/instances_{set_name}.json").read_text()))
        after = objects(content(set_name))
        assert after.keys() == before.keys()
        for name in before:
            assert [found[0] for found in after[name]] == [found[0] for found in before[name]]
            for found, expected in zip(after[name], before[name]):
                assert found[1:] == pytest.approx(expected[1:], abs=0.001)
            boxes += len(after[name])
            assert (
                Path("datasets/made", set_name, name).read_bytes()
                == (shapes_project.data / set_name / name).read_bytes()
            )
        dataset = CocoDataset(Path("datasets/made"), set_name, project, (128, 128))
        assert len(dataset) == len(before)
        assert [len(dataset[index].target.class_ids) for index in range(len(dataset))] == [
            len(after[dataset.annotated.images[dataset.index_of[image_id]]["file_name"]])
            for image_id in dataset.image_ids
        ]
    assert boxes == 12
    assert files(folder / "projects") == ["made.yml"] and len(files(folder / "datasets")) == 9 + 2

    printed = capsys.readouterr().out
    rows = {line.split()[0]: line.split()[1:] for line in printed.splitlines() if line}
    assert rows["images"] == ["6", "3"] and rows["without"] == ["boxes", "1", "1"]
    assert sum(map(int, rows["boxes"])) == 12 == sum(map(int, rows["disc"] + rows["square"]))
    assert "python -m efficientdet.check -p made" in printed and "python train.py -p made" in printed


def test_annotations_are_complete(folder):
    write_csv(2, "1.png,0.5,0,60,39.5,dog\n")
    run("photos", "--seed", "1")
    train, val = content("train"), content("val")
    assert train["categories"] == val["categories"] == [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}]
    both = {coco["images"][0]["file_name"]: coco for coco in (train, val)}
    assert both["1.png"]["images"] == [{"id": 1, "file_name": "1.png", "width": 60, "height": 40}]
    assert both["1.png"]["annotations"] == [
        {"id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 2, 9, 18], "area": 162, "iscrowd": 0},
        {"id": 2, "image_id": 1, "category_id": 2, "bbox": [0.5, 0, 59.5, 39.5], "area": 2350.25, "iscrowd": 0},
    ]


def test_files_are_written_byte_for_byte(folder):
    write_csv(2)
    run("photos")
    assert Path("datasets/made/annotations/instances_val.json").read_text() == (
        '{"images": [{"id": 1, "file_name": "1.png", "width": 60, "height": 40}], '
        '"annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [1.0, 2.0, 9.0, 18.0], "area": 162.0, '
        '"iscrowd": 0}], "categories": [{"id": 1, "name": "cat"}]}'
    )
    lines = [line.split("  #")[0] for line in Path("projects/made.yml").read_text().splitlines()]
    assert [line for line in lines if line and not line.startswith("#")] == [
        "project_name: made",
        "train_set: train",
        "val_set: val",
        f"num_gpus: {int(torch.cuda.is_available())}",
        "mean: [0.485, 0.456, 0.406]",
        "std: [0.229, 0.224, 0.225]",
        "anchors_scales: '[2 ** 0, 2 ** (1.0 / 3.0), 2 ** (2.0 / 3.0)]'",
        "anchors_ratios: '[(1.0, 1.0), (1.4, 0.7), (0.7, 1.4)]'",
        "obj_list:",
        "- cat",
    ]


def test_difficult_objects_are_ignored_in_evaluation(folder, capsys):
    box = "<bndbox><xmin>1</xmin><ymin>1</ymin><xmax>9</xmax><ymax>9</ymax></bndbox>"
    for name in "ab":
        cv2.imwrite(f"{name}.png", np.zeros((40, 60, 3), np.uint8))
        difficult = f"<object><name>cat</name><difficult>1</difficult>{box}</object>"
        Path(f"{name}.xml").write_text(f"<annotation>{difficult}</annotation>")
    run(".")
    assert [annotation["iscrowd"] for annotation in content("train")["annotations"]] == [1]
    assert "2 objects are difficult" in capsys.readouterr().out


def test_test_set_remains_separate(folder):
    write_csv(3, file_name="data/train.csv")
    write_csv(1, file_name="data/more/test.csv")
    run("data")
    assert [len(content(set_name)["images"]) for set_name in ("train", "val", "test")] == [2, 1, 1]
    assert load_project("made").val_set == "val"


def test_equal_names_in_different_folders_stay_apart(folder):
    write_csv(1, file_name="photos/a/b/boxes.csv").unlink()
    write_csv(1, "b/0.png,0,0,5,5,dog\n", "photos/a/boxes.csv")
    write_csv(1, file_name="elsewhere/val.csv")
    run("photos", "elsewhere/val.csv")
    assert objects(content("train")) == {"0.png": [("cat", 1, 2, 9, 18)], "b/0.png": [("dog", 0, 0, 5, 5)]}
    assert files(folder / "datasets/made") == [
        "annotations/instances_train.json",
        "annotations/instances_val.json",
        "train/0.png",
        "train/b/0.png",
        "val/0.png",
    ]
    assert len(CocoDataset(Path("datasets/made"), "train", load_project("made"), (128, 128))) == 2


def test_classes_are_in_alphabetical_order(folder):
    write_csv(2, "".join(f"0.png,1,1,9,9,{name}\n" for name in ("zebra", "ant", "mule", "bee", "yak", "Dog")))
    run("photos")
    assert load_project("made").class_names == ("Dog", "ant", "bee", "cat", "mule", "yak", "zebra")


def test_classes_file_sets_the_order(folder):
    write_csv(2)
    Path("names.txt").write_text("dog\ncat\n")
    run("photos", "--classes", "names.txt")
    assert load_project("made").class_names == ("dog", "cat")


def test_link_makes_hard_links(folder):
    write_csv(2)
    run("photos", "--link", "--data_path", "data")
    written = sorted(Path("data/made").rglob("*.png"))
    assert {path.stat().st_ino for path in written} == {Path(f"photos/{n}.png").stat().st_ino for n in range(2)}


def test_link_makes_symbolic_links_to_another_file_system(folder, monkeypatch):
    def refuse(*paths):
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", refuse)
    write_csv(2)
    run("photos", "--link")
    for path in sorted(Path("datasets/made").rglob("*.png")):
        assert path.is_symlink() and path.resolve() == folder / "photos" / path.name


def test_all_faults_are_reported_and_nothing_is_written(folder, capsys):
    rows = (
        "".join(f"{n % 4}.png,1,1,90,{20 + n},cat\n" for n in range(25)) + "lost.png,1,1,2,2,cat\n3.png,1,1,1,9,cat\n"
    )
    write_csv(4, rows)
    with pytest.raises(InputError, match="27 faults in 5 of 5 images.*--skip_faulty"):
        run("photos")
    printed = capsys.readouterr().err
    assert "25 x a box that reaches beyond its image: correct it, or pass --clip\n" in printed
    assert printed.count(" in 60 x 40 pixels\n") == 20 + 1 and "  and 5 more\n" in printed
    assert "photos/boxes.csv, line 31: photos/lost.png\n" in printed
    assert "photos/boxes.csv, line 32: x1 y1 x2 y2 = 1 1 1 9 in 60 x 40 pixels\n" in printed
    assert not Path("datasets").exists() and not Path("projects").exists()


def test_skip_faulty_leaves_images_with_faults_out(folder, capsys):
    write_csv(4, "3.png,1,1,90,9,cat\nlost.png,1,1,2,2,dog\n")
    run("photos", "--skip_faulty")
    names = {**objects(content("train")), **objects(content("val"))}
    assert sorted(names) == ["0.png", "1.png", "2.png"]
    captured = capsys.readouterr()
    assert "line 6: " in captured.err and "line 7: photos/lost.png" in captured.err
    assert "2 faults in 2 of 5 images: these images are left out" in captured.out
    assert load_project("made").class_names == ("cat",)


def test_one_faulty_row_leaves_its_image_out(folder):
    """Even if the row does not name the image's set."""
    file = write_csv(4)
    rows = ["filename,xmin,ymin,xmax,ymax,class,split", *(f"{n}.png,1,2,10,20,cat,train" for n in range(4))]
    file.write_text("\n".join([*rows, "2.png,1,2,10,20"]))
    run("photos", "--skip_faulty")
    assert sorted({**objects(content("train")), **objects(content("val"))}) == ["0.png", "1.png", "3.png"]


def test_clip_removes_faults(folder):
    write_csv(2, "1.png,-30,1,30,50,cat\n")
    run("photos", "--clip")
    assert ("cat", 0, 1, 30, 39) in {**objects(content("train")), **objects(content("val"))}["1.png"]


@pytest.mark.parametrize("path", ["datasets/made/notes.txt", "projects/made.yml"])
def test_existing_files_are_kept(folder, path):
    write_csv(2)
    Path(path).parent.mkdir(parents=True)
    Path(path).write_text("mine")
    with pytest.raises(InputError, match=path.removesuffix("/notes.txt")):
        run("photos")
    assert Path(path).read_text() == "mine"
    assert files(folder) == sorted(["photos/0.png", "photos/1.png", "photos/boxes.csv", path])


@pytest.mark.parametrize("stop", [KeyboardInterrupt(), OSError(28, "No space left on device")])
def test_interrupted_writing_leaves_nothing(folder, monkeypatch, stop):
    write_csv(4)
    copy = convert.shutil.copyfile

    def copy_two_only(source, target):
        if len(list(folder.glob("datasets/*/train/*"))) == 2:
            raise stop
        return copy(source, target)

    monkeypatch.setattr(convert.shutil, "copyfile", copy_two_only)
    with pytest.raises(KeyboardInterrupt if isinstance(stop, KeyboardInterrupt) else InputError):
        run("photos")
    assert list(Path("datasets").iterdir()) == list(Path("projects").iterdir()) == []


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["Annotations/a.xml"], "voc"),
        (["train/a.xml", "train/a.jpg", "readme.txt"], "voc"),
        (["labels/a.xml", "images/a.jpg"], "voc"),
        (["labels/a.txt", "images/a.jpg"], "yolo"),
        (["a.txt", "classes.txt"], "yolo"),
        (["data.yaml", "train/images/a.jpg"], "yolo"),
        (["deep/boxes.CSV"], "csv"),
    ],
)
def test_format_is_guessed(folder, names, expected):
    for name in names:
        Path("data", name).parent.mkdir(parents=True, exist_ok=True)
        Path("data", name).touch()
    assert guess_format(Path("data")) == expected


def test_ambiguous_formats(folder):
    Path("data").mkdir()
    with pytest.raises(InputError, match="data.*--format {voc,yolo,csv}"):
        guess_format(Path("data"))
    Path("data/a.csv").touch()
    Path("data/a.xml").touch()
    with pytest.raises(InputError, match="Pascal VOC and CSV"):
        guess_format(Path("data"))
    assert guess_format(Path("data/a.csv")) == "csv"
    with pytest.raises(InputError, match="data/a.xml"):
        guess_format(Path("data/a.xml"))
    with pytest.raises(InputError, match="absent"):
        guess_format(Path("absent"))


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["photos", "--zero_based"], "--zero_based and --difficult .*photos"),
        (["photos", "--difficult", "drop"], "--zero_based and --difficult .*photos"),
        (["photos", "--format", "yolo", "--images", "photos"], "--images .*photos"),
        (["photos", "-p", "../made"], "-p ../made"),
        (["photos", "--format", "voc"], "no XML files"),
    ],
)
def test_flags_that_do_not_fit(folder, args, words):
    write_csv(2)
    with pytest.raises(InputError, match=words):
        main(parse_args(["-p", "made", *args]))
    assert not Path("datasets").exists()


@pytest.mark.slow
def test_command_as_a_user_runs_it(folder):
    command = [sys.executable, "-m", "efficientdet.convert", str(write_csv(4)), "-p", "birds"]
    env = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    completed = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=300)
    assert_succeeded(completed)
    assert "photos/boxes.csv: CSV (guessed" in completed.stdout
    assert "-> datasets/birds/, projects/birds.yml" in completed.stdout
    assert len(content("train", "birds")["images"]) == 3
