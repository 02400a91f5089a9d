"""The data check as its users run it: clean data passes, and every fault that is planted is found."""

import os
import subprocess
import sys
from collections.abc import Callable
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
from conftest import SHAPES_YML
from PIL import Image
from scripts import REPOSITORY, edit_annotations

from efficientdet.check.__main__ import main, parse_args

SIDE = 128
IMAGES = {"train": (1, 2, 3, 4), "val": (11, 12)}


@pytest.fixture
def clean_project(tmp_path, monkeypatch, write_coco) -> SimpleNamespace:
    """A project without a fault, in the current folder. Every image has a square and a disc, as large as an anchor.

    Annotation 1 is the square of image 1, annotation 2 its disc, and so on.
    """
    monkeypatch.chdir(tmp_path)
    (tmp_path / "projects").mkdir()
    yml = tmp_path / "projects" / "drawn.yml"
    yml.write_text(SHAPES_YML)
    data = tmp_path / "datasets" / "drawn"
    for set_name, image_ids in IMAGES.items():
        pictures = {i: np.random.default_rng(i).integers(0, 255, (SIDE, SIDE, 3), np.uint8) for i in image_ids}
        boxes = [
            {"image_id": image_id, "category_id": category_id, "bbox": [corner, 4, 32, 32]}
            for image_id in image_ids
            for category_id, corner in ((7, 4), (3, 60))
        ]
        write_coco(data, set_name, pictures, boxes)
    return SimpleNamespace(root=tmp_path, yml=yml, data=data)


@pytest.fixture
def check(capsys) -> Callable[..., tuple[int, str]]:
    """A function that runs the command in this process: its exit status, and what it printed."""

    def check(*flags: str) -> tuple[int, str]:
        status = main(parse_args(["-p", "drawn", "--image_size", str(SIDE), "-n", "2", *flags]))
        return status, capsys.readouterr().out

    return check


def test_clean_data_gives_no_finding(clean_project, check):
    status, shown = check()
    assert status == 0
    assert "error:" not in shown and "warning:" not in shown
    assert shown.splitlines()[-1] == "0 errors, 0 warnings in 6 images"
    assert "train: 4 images (0 without objects), 8 boxes" in shown
    assert "val: 2 images (0 without objects), 4 boxes" in shown
    square, disc = (line.split() for line in shown.splitlines()[2:4])
    assert square == ["square", "4", "4", "100.0%", "1.00"] and disc[:3] == ["disc", "4", "4"]
    assert "boxes at 128 x 128" in shown


# Each fault is a function that plants it in a project, and returns the level, and texts of the findings' lines.
Fault = Callable[[SimpleNamespace], tuple[str, tuple[str, ...]]]


def missing_image(project):
    (project.data / "train/2.png").unlink()
    return "error", ("missing images: 1", "train/2.png: image 2 ")


def unreadable_image(project):
    path = project.data / "val/11.png"
    path.write_bytes(path.read_bytes()[:1000])
    return "error", ("cannot be read: 1", "val/11.png: image 11 ")


def cut_jpeg(project):
    path = project.data / "train/3.jpg"
    cv2.imwrite(str(path), cv2.imread(str(path.with_suffix(".png"))))
    path.with_suffix(".png").unlink()
    path.write_bytes(path.read_bytes()[:-500])
    edit_annotations(project.data, "train", lambda content: content["images"][2].update(file_name="3.jpg"))
    return "error", ("cannot be read: 1", "train/3.jpg: image 3 ", "cut short")


def duplicate_image(project):
    (project.data / "train/3.png").write_bytes((project.data / "train/1.png").read_bytes())
    return "warning", ("are there twice: 1", "train/3.png: image 3 has the pixels of image 1 (1.png)")


def other_size_in_the_json(project):
    edit_annotations(project.data, "val", lambda content: content["images"][1].update(width=130))
    return "error", ("another size", "val/12.png: image 12 is 128 x 128 pixels, but annotated as 130 x 128")


def rotation_that_the_json_ignores(project):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(np.random.default_rng(9).integers(0, 255, (100, SIDE, 3), np.uint8)).save(
        project.data / "train/turned.jpg", exif=exif
    )
    (project.data / "train/1.png").unlink()
    changes = {"file_name": "turned.jpg", "height": 100, "width": SIDE}
    edit_annotations(project.data, "train", lambda content: content["images"][0].update(changes))
    return "warning", ("EXIF rotation: 1", "train/turned.jpg: image 1 is 100 x 128", "--show")


def box_outside(project):
    edit_annotations(project.data, "train", lambda content: content["annotations"][2].update(bbox=[200, 4, 32, 32]))
    return "error", ("outside of their images: 1", "train/2.png: annotation 3 of image 2 ")


def box_that_reaches_out(project):
    edit_annotations(project.data, "val", lambda content: content["annotations"][0].update(bbox=[4, 100, 32, 32]))
    return "warning", ("reach out of their images: 1", "val/11.png: annotation 1 of image 11 ")


def box_without_width(project):
    edit_annotations(
        project.data,
        "train",
        lambda content: content["annotations"].append(
            {"id": 90, "image_id": 4, "category_id": 3, "bbox": [9, 9, 0, 9]}
        ),
    )
    return "warning", ("narrower or lower than a pixel: 1", "train/4.png: annotation 90 of image 4 ")


def box_of_negative_height(project):
    edit_annotations(project.data, "train", lambda content: content["annotations"][1].update(bbox=[60, 36, 32, -32]))
    return "error", ("negative width or height: 1", "train/1.png: annotation 2 of image 1 ")


def duplicate_box(project):
    def edit(content):
        content["annotations"].append({**content["annotations"][4], "id": 90})

    edit_annotations(project.data, "train", edit)
    return "warning", ("are there twice: 1", "train/3.png: annotation 90 of image 3 repeats annotation 5")


def unknown_category(project):
    edit_annotations(project.data, "val", lambda content: content["categories"].append({"id": 9, "name": "star"}))
    return "error", ("obj_list lacks: 1", "instances_val.json: category 9 is named 'star'", "add it there")


def category_in_another_case(project):
    edit_annotations(project.data, "train", lambda content: content["categories"][0].update(name="Disc"))
    return "error", ("instances_train.json: category 3 is named 'Disc'", "differs from 'disc'", "case")


def class_without_category(project):
    project.yml.write_text(SHAPES_YML.replace("'disc']", "'disc', 'star']"))
    return "warning", ("classes without a category: 2", "instances_train.json has no category 'star'", "drawn.yml")


def class_without_boxes(project):
    edit_annotations(
        project.data, "val", lambda content: [found.update(category_id=7) for found in content["annotations"]]
    )
    return "warning", ("classes without a box: 1", "instances_val.json has no box of 'disc'")


def image_without_boxes(project):
    edit_annotations(project.data, "train", lambda content: content["annotations"].__delitem__(slice(2, 4)))
    return "warning", ("images without boxes: 1", "train/2.png: image 2 has no box")


def same_image_in_both_sets(project):
    (project.data / "val/12.png").write_bytes((project.data / "train/4.png").read_bytes())
    return "error", ("trained on and validated on: 1", "val/12.png: image 12 is the same image as ", "train/4.png")


def same_file_name_in_both_sets(project):
    (project.data / "val/12.png").rename(project.data / "val/4.png")
    edit_annotations(project.data, "val", lambda content: content["images"][1].update(file_name="4.png"))
    return "warning", ("file names that both sets have", "val/4.png: image 12 has the name of another image")


def same_set_twice(project):
    project.yml.write_text(SHAPES_YML.replace("val_set: val", "val_set: train"))
    return "warning", ("sets that are the same: 1", "drawn.yml has 'train' as train_set and as val_set")


def unlisted_image(project):
    (project.data / "val/extra.png").write_bytes((project.data / "val/11.png").read_bytes())
    return "warning", ("no annotation file lists: 1", "val/extra.png is in no annotation file")


def small_object(project):
    edit_annotations(project.data, "train", lambda content: content["annotations"][7].update(bbox=[60, 4, 5, 3]))
    return "warning", ("less than 4 x 4 pixels", "train/4.png: annotation 8 of image 4 is 5.0 x 3.0 pixels")


def boxes_that_no_anchor_reaches(project):
    edit_annotations(project.data, "val", lambda content: content["annotations"][2].update(bbox=[4, 4, 9, 9]))
    return "warning", ("that no anchor reaches: 1", "instances_val.json has 25.0% of boxes", "--anchors")


def annotation_of_an_unknown_image(project):
    edit_annotations(project.data, "train", lambda content: content["annotations"][3].update(image_id=55))
    return "error", ("unknown images: 1", "instances_train.json: annotation 4 belongs to image 55")


def malformed_boxes(project):
    edit_annotations(project.data, "val", lambda content: [found.pop("bbox") for found in content["annotations"]])
    return "error", ("incomplete entries: 4", "instances_val.json: entry 0 of 'annotations' has no 'bbox'")


def missing_annotation_file(project):
    (project.data / "annotations/instances_val.json").unlink()
    return "error", ("cannot be used: 1", "instances_val.json is not there", "train: 4 images")


def missing_folder(project):
    (project.data / "val").rename(project.data / "elsewhere")
    return "error", ("missing folders: 1", "datasets/drawn/val is not there")


FAULTS: list[Fault] = [
    missing_image, unreadable_image, cut_jpeg, duplicate_image, other_size_in_the_json,
    rotation_that_the_json_ignores, box_outside, box_that_reaches_out, box_without_width, box_of_negative_height,
    duplicate_box, unknown_category, category_in_another_case, class_without_category, class_without_boxes,
    image_without_boxes, same_image_in_both_sets, same_file_name_in_both_sets, same_set_twice, unlisted_image,
    small_object, boxes_that_no_anchor_reaches, annotation_of_an_unknown_image, malformed_boxes,
    missing_annotation_file, missing_folder,
]  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_planted_fault_is_found(clean_project, check, fault):
    level, texts = fault(clean_project)
    status, shown = check()
    assert status == (level == "error"), shown
    assert f"\n{level}: " in shown and "\n  -> " in shown
    for text in texts:
        assert text in shown
    assert ("error: " in shown) == (level == "error")


def test_sets_without_anything_are_checked_too(clean_project, check):
    for set_name in IMAGES:
        edit_annotations(clean_project.data, set_name, lambda content: content.update(images=[], annotations=[]))
    status, shown = check("--anchors", "--show", "3")
    assert status == 1 and "sets without images: 2" in shown and "no boxes to propose any from" in shown
    assert "no samples are shown" in shown


def test_sizes_that_the_json_does_not_tell_are_taken_from_the_images(clean_project, check):
    def edit(content):
        for image in content["images"]:
            del image["width"], image["height"]
        content["annotations"][0]["bbox"] = [200, 4, 32, 32]

    edit_annotations(clean_project.data, "train", edit)
    status, shown = check()
    assert status == 1 and "[200, 4, 32, 32] in 128 x 128 pixels" in shown


def test_cases_are_listed_as_many_as_wanted(clean_project, check):
    edit_annotations(clean_project.data, "train", lambda content: content["annotations"].clear())
    edit_annotations(clean_project.data, "val", lambda content: content["annotations"].clear())
    shown = check()[1]
    assert "warning: images without boxes: 6" in shown and shown.count(" has no box\n") == 5
    assert "  and 1 more (--all lists them)" in shown
    shown = check("--all")[1]
    assert shown.count(" has no box\n") == 6 and "more (" not in shown


def test_max_images_leaves_the_rest_alone(clean_project, check):
    (clean_project.data / "train/4.png").unlink()
    status, shown = check("--max_images", "2")
    assert status == 0 and shown.endswith("0 errors, 0 warnings in 4 images\n")


def test_anchors_that_suit_are_kept_and_others_proposed(clean_project, check):
    assert "keep them" in check("--anchors")[1]
    for set_name in IMAGES:
        edit_annotations(
            clean_project.data,
            set_name,
            lambda content: [found.update(bbox=[found["bbox"][0], 4, 8, 32]) for found in content["annotations"]],
        )
    status, shown = check("--anchors")
    assert status == 0
    assert "train: 0.0% and" in shown and "\nanchors_scales: '[" in shown and "\nanchors_ratios: '[(" in shown


@pytest.mark.parametrize("flags", [(), ("--recipe", "official"), ("--min_scale", "0.5", "--max_scale", "0.5")])
def test_sheet_shows_samples_as_training_sees_them(clean_project, check, flags):
    for path in (clean_project.data / "train").iterdir():
        cv2.imwrite(str(path), np.full((SIDE, SIDE, 3), int(path.stem) * 50, np.uint8))
    status, shown = check("--show", "3", *flags)
    assert status == 0 and "3 samples of train as training sees them -> test/check_drawn_train.jpg" in shown
    sheet = cv2.imread("test/check_drawn_train.jpg")
    assert sheet.shape[0] > 2 * SIDE and sheet.shape[1] > 2 * SIDE  # two by two, with captions
    grey = cv2.cvtColor(sheet, cv2.COLOR_BGR2GRAY)
    pixels = np.stack([np.abs(grey.astype(int) - 50 * number) <= 2 for number in (1, 2, 3, 4)]).sum(axis=(1, 2))
    # Three of the four images are there, or at a half a quarter of them; boxes hide a little.
    shown_pixels = np.sort(pixels)[1:] / SIDE**2
    assert (shown_pixels > (0.15 if "0.5" in flags else 0 if flags else 0.7)).all()
    if "0.5" in flags:
        assert (shown_pixels < 0.3).all()


def test_sheet_leaves_broken_images_out(clean_project, check):
    for name in ("1.png", "2.png", "3.png"):
        (clean_project.data / "train" / name).write_bytes(b"")
    status, shown = check("--show", "9")
    assert status == 1 and "1 samples of train" in shown
    (clean_project.data / "train/4.png").write_bytes(b"")
    assert "no image in datasets/drawn/train can be used" in check("--show", "9")[1]


def test_sheet_of_annotations_that_training_refuses_is_not_drawn(clean_project, check):
    unknown_category(clean_project)
    edit_annotations(clean_project.data, "train", lambda content: content["categories"].append({"id": 9, "name": "a"}))
    assert "no samples are shown: training does not take" in check("--show", "2")[1]


def test_the_command_itself(clean_project):
    edit_annotations(clean_project.data, "train", lambda content: content["annotations"][0].update(bbox=[1, 2]))
    command = [sys.executable, "-m", "efficientdet.check", "-p", "drawn", "--image_size", "128"]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    run = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert run.returncode == 1 and "malformed boxes: 1" in run.stdout
    assert run.stdout.splitlines()[-1] == "1 errors, 0 warnings in 6 images: correct the errors before you train"
    assert "decoding train: 100%" in run.stderr and "Traceback" not in run.stderr
