"""The data check as a command: clean data passes, and every planted fault is found."""

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
from utils.errors import InputError

SIDE = 128
IMAGES = {"train": (1, 2, 3, 4), "val": (11, 12)}


@pytest.fixture
def clean_project(tmp_path, monkeypatch, write_coco) -> SimpleNamespace:
    """Write a project without faults, in the current folder. Each image has a square and a disc, as large as an anchor.

    Annotation 1 is the square of image 1, annotation 2 its disc, and so on.
    """
    monkeypatch.chdir(tmp_path)
    (tmp_path / "projects").mkdir()
    yml = tmp_path / "projects" / "drawn.yml"
    yml.write_text(SHAPES_YML)
    data = tmp_path / "datasets" / "drawn"
    for set_name, image_ids in IMAGES.items():
        arrays = {i: np.random.default_rng(i).integers(0, 255, (SIDE, SIDE, 3), np.uint8) for i in image_ids}
        boxes = [
            {"image_id": image_id, "category_id": category_id, "bbox": [corner, 4, 32, 32]}
            for image_id in image_ids
            for category_id, corner in ((7, 4), (3, 60))
        ]
        write_coco(data, set_name, arrays, boxes)
    return SimpleNamespace(root=tmp_path, yml=yml, data=data)


@pytest.fixture
def check(capsys) -> Callable[..., tuple[int, str]]:
    """Return a function that runs the command in this process and returns its exit status and output."""

    def check(*flags: str) -> tuple[int, str]:
        status = main(parse_args(["-p", "drawn", "--image_size", str(SIDE), "-n", "2", *flags]))
        return status, capsys.readouterr().out

    return check


def test_clean_data_has_no_findings(clean_project, check):
    status, output = check()
    assert status == 0
    assert "error:" not in output and "warning:" not in output
    assert output.splitlines()[-1] == "0 errors, 0 warnings in 6 images"
    assert "train: 4 images (0 without objects), 8 boxes" in output
    assert "val: 2 images (0 without objects), 4 boxes" in output
    square, disc = (line.split() for line in output.splitlines()[2:4])
    assert square == ["square", "4", "4", "100.0%", "1.00"] and disc[:3] == ["disc", "4", "4"]
    assert "boxes at 128 x 128" in output


# Each fault is a function that plants it in a project, and returns its level and texts that the finding must hold.
Fault = Callable[[SimpleNamespace], tuple[str, tuple[str, ...]]]


def missing_image(project):
    (project.data / "train/2.png").unlink()
    return "error", ("train/2.png: image 2 ",)


def unreadable_image(project):
    path = project.data / "val/11.png"
    path.write_bytes(path.read_bytes()[:1000])
    return "error", ("images that cannot be read: 1", "val/11.png: image 11 ")


def cut_jpeg(project):
    path = project.data / "train/3.jpg"
    cv2.imwrite(str(path), cv2.imread(str(path.with_suffix(".png"))))
    path.with_suffix(".png").unlink()
    path.write_bytes(path.read_bytes()[:-500])
    edit_annotations(project.data, "train", lambda content: content["images"][2].update(file_name="3.jpg"))
    return "error", ("images that cannot be read: 1", "train/3.jpg: image 3 ")


def duplicate_image(project):
    (project.data / "train/3.png").write_bytes((project.data / "train/1.png").read_bytes())
    return "warning", ("duplicate images: 1", "train/3.png: image 3 has the pixels of image 1 (1.png)")


def wrong_size(project):
    edit_annotations(project.data, "val", lambda content: content["images"][1].update(width=130))
    return "error", ("another size", "val/12.png: image 12 is 128 x 128 pixels, but annotated as 130 x 128")


def ignored_rotation(project):
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


def box_across_border(project):
    edit_annotations(project.data, "val", lambda content: content["annotations"][0].update(bbox=[4, 100, 32, 32]))
    return "warning", ("across the border of their images: 1", "val/11.png: annotation 1 of image 11 ")


def thin_box(project):
    box = {"id": 90, "image_id": 4, "category_id": 3, "bbox": [9, 9, 0, 9]}
    edit_annotations(project.data, "train", lambda content: content["annotations"].append(box))
    return "warning", ("thinner than a pixel: 1", "train/4.png: annotation 90 of image 4 ")


def negative_box(project):
    edit_annotations(project.data, "train", lambda content: content["annotations"][1].update(bbox=[60, 36, 32, -32]))
    return "error", ("negative size: 1", "train/1.png: annotation 2 of image 1 ")


def duplicate_box(project):
    def edit(content):
        content["annotations"].append({**content["annotations"][4], "id": 90})

    edit_annotations(project.data, "train", edit)
    return "warning", ("duplicate boxes: 1", "train/3.png: annotation 90 of image 3 repeats annotation 5")


def unknown_category(project):
    edit_annotations(project.data, "val", lambda content: content["categories"].append({"id": 9, "name": "star"}))
    return "error", ("instances_val.json: category 9 ", "'star'")


def category_in_another_case(project):
    edit_annotations(project.data, "train", lambda content: content["categories"][0].update(name="Disc"))
    return "error", ("instances_train.json: category 3 ", "'Disc'", "'disc'")


def class_without_category(project):
    project.yml.write_text(SHAPES_YML.replace("'disc']", "'disc', 'star']"))
    return "warning", ("classes without a category: 2", "instances_train.json has no category 'star'", "drawn.yml")


def class_without_boxes(project):
    def edit(content):
        for annotation in content["annotations"]:
            annotation["category_id"] = 7

    edit_annotations(project.data, "val", edit)
    return "warning", ("classes without a box: 1", "instances_val.json has no box of 'disc'")


def image_without_boxes(project):
    edit_annotations(project.data, "train", lambda content: content["annotations"].__delitem__(slice(2, 4)))
    return "warning", ("images without boxes: 1", "train/2.png: image 2 has no box")


def same_image_in_both_sets(project):
    (project.data / "val/12.png").write_bytes((project.data / "train/4.png").read_bytes())
    return "error", ("images in both sets: 1", "val/12.png: image 12 is the same image as ", "train/4.png")


def same_file_name_in_both_sets(project):
    (project.data / "val/12.png").rename(project.data / "val/4.png")
    edit_annotations(project.data, "val", lambda content: content["images"][1].update(file_name="4.png"))
    return "warning", ("file names in both sets: 1", "val/4.png: image 12 has the name of another image")


def same_set_twice(project):
    project.yml.write_text(SHAPES_YML.replace("val_set: val", "val_set: train"))
    return "warning", ("sets that are the same: 1", "drawn.yml has 'train' as train_set and as val_set")


def unlisted_image(project):
    (project.data / "val/extra.png").write_bytes((project.data / "val/11.png").read_bytes())
    return "warning", ("unlisted images: 1", "val/extra.png is in no annotation file")


def small_object(project):
    edit_annotations(project.data, "train", lambda content: content["annotations"][7].update(bbox=[60, 4, 5, 3]))
    return "warning", ("below 4 x 4 pixels", "train/4.png: annotation 8 of image 4 is 5.0 x 3.0 pixels")


def boxes_without_an_anchor(project):
    edit_annotations(project.data, "val", lambda content: content["annotations"][2].update(bbox=[4, 4, 9, 9]))
    return "warning", ("that no anchor matches: 1", "instances_val.json has 25.0% of its boxes", "--anchors")


def annotation_of_an_unknown_image(project):
    edit_annotations(project.data, "train", lambda content: content["annotations"][3].update(image_id=55))
    return "error", ("instances_train.json: annotation 4 ", "image 55")


def annotations_without_a_box(project):
    edit_annotations(project.data, "val", lambda content: [entry.pop("bbox") for entry in content["annotations"]])
    return "error", ("incomplete entries: 4", "instances_val.json: entry 0 of 'annotations' has no 'bbox'")


def missing_annotation_file(project):
    (project.data / "annotations/instances_val.json").unlink()
    return "error", ("instances_val.json ", "train: 4 images")


def missing_folder(project):
    (project.data / "val").rename(project.data / "elsewhere")
    return "error", ("datasets/drawn/val ",)


FAULTS: list[Fault] = [
    missing_image, unreadable_image, cut_jpeg, duplicate_image, wrong_size, ignored_rotation, box_outside,
    box_across_border, thin_box, negative_box, duplicate_box, unknown_category, category_in_another_case,
    class_without_category, class_without_boxes, image_without_boxes, same_image_in_both_sets,
    same_file_name_in_both_sets, same_set_twice, unlisted_image, small_object, boxes_without_an_anchor,
    annotation_of_an_unknown_image, annotations_without_a_box, missing_annotation_file, missing_folder,
]  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_planted_fault_is_found(clean_project, check, fault):
    level, texts = fault(clean_project)
    status, output = check()
    assert status == (level == "error"), output
    assert f"\n{level}: " in output and "\n  -> " in output
    for text in texts:
        assert text in output
    assert ("error: " in output) == (level == "error")


def test_sets_without_images_are_an_error(clean_project, check):
    for set_name in IMAGES:
        edit_annotations(clean_project.data, set_name, lambda content: content.update(images=[], annotations=[]))
    status, output = check("--anchors", "--show", "3")
    assert status == 1 and output.endswith("\n2 errors, 6 warnings in 0 images: correct the errors before training\n")
    assert "anchors: no boxes" in output and "no samples drawn" in output


def test_unknown_sizes_are_taken_from_the_images(clean_project, check):
    def edit(content):
        for image in content["images"]:
            del image["width"], image["height"]
        content["annotations"][0]["bbox"] = [200, 4, 32, 32]

    edit_annotations(clean_project.data, "train", edit)
    status, output = check()
    assert status == 1 and "[200, 4, 32, 32] in 128 x 128 pixels" in output


def test_five_cases_are_listed_or_all(clean_project, check):
    edit_annotations(clean_project.data, "train", lambda content: content["annotations"].clear())
    edit_annotations(clean_project.data, "val", lambda content: content["annotations"].clear())
    output = check()[1]
    assert "warning: images without boxes: 6" in output and output.count(" has no box\n") == 5
    assert "  and 1 more (--all lists them)" in output
    output = check("--all")[1]
    assert output.count(" has no box\n") == 6 and "more (" not in output


def test_max_images_ignores_the_others(clean_project, check):
    (clean_project.data / "train/4.png").unlink()
    status, output = check("--max_images", "2")
    assert status == 0 and output.endswith("0 errors, 0 warnings in 4 images\n")


def test_anchors_that_fit_are_kept_and_others_replaced(clean_project, check):
    assert "keep the anchors" in check("--anchors")[1]

    def edit(content):
        for annotation in content["annotations"]:
            annotation["bbox"][2:] = 8, 32

    for set_name in IMAGES:
        edit_annotations(clean_project.data, set_name, edit)
    status, output = check("--anchors")
    assert status == 0
    assert "train: 0.0% and" in output and "\nanchors_scales: '[" in output and "\nanchors_ratios: '[(" in output


@pytest.mark.parametrize("flags", [(), ("--recipe", "official"), ("--min_scale", "0.5", "--max_scale", "0.5")])
def test_sheet_shows_samples_as_training_sees_them(clean_project, check, flags):
    for path in (clean_project.data / "train").iterdir():
        cv2.imwrite(str(path), np.full((SIDE, SIDE, 3), int(path.stem) * 50, np.uint8))
    status, output = check("--show", "3", *flags)
    assert status == 0 and "3 samples of train" in output and "-> test/check_drawn_train.jpg" in output
    sheet = cv2.imread("test/check_drawn_train.jpg")
    assert sheet.shape[0] > 2 * SIDE and sheet.shape[1] > 2 * SIDE  # two by two, with captions
    gray = cv2.cvtColor(sheet, cv2.COLOR_BGR2GRAY)
    pixels = np.stack([np.abs(gray.astype(int) - 50 * number) <= 2 for number in (1, 2, 3, 4)]).sum(axis=(1, 2))
    # Three of the four images are shown, with a quarter of their area at a scale of 0.5; the boxes hide a little.
    shares = np.sort(pixels)[1:] / SIDE**2
    assert (shares > (0.15 if "0.5" in flags else 0 if flags else 0.7)).all()
    if "0.5" in flags:
        assert (shares < 0.3).all()


@pytest.mark.parametrize("flags", [(), ("--recipe", "official")])
def test_sheet_shows_the_augmentation_of_the_flags(clean_project, check, flags):
    sheets = []
    for more in ((), ("--mosaic", "1"), ("--rotate", "20"), ("--rotate", "20")):
        assert check("--show", "3", *flags, *more)[0] == 0
        sheets.append(cv2.imread("test/check_drawn_train.jpg"))
    assert np.array_equal(sheets[2], sheets[3])
    assert not any(np.array_equal(sheets[0], other) for other in sheets[1:])


def test_sheet_leaves_unreadable_images_out(clean_project, check):
    for name in ("1.png", "2.png", "3.png"):
        (clean_project.data / "train" / name).write_bytes(b"")
    status, output = check("--show", "9")
    assert status == 1 and "1 samples of train" in output
    (clean_project.data / "train/4.png").write_bytes(b"")
    assert "no samples drawn: datasets/drawn/train" in check("--show", "9")[1]


def test_no_sheet_is_drawn_of_annotations_that_training_rejects(clean_project, check):
    edit_annotations(clean_project.data, "train", lambda content: content["categories"].append({"id": 9, "name": "a"}))
    assert "no samples drawn: training rejects" in check("--show", "2")[1]


@pytest.mark.parametrize("flags", [("--num_workers", "0"), ("--show", "0"), ("--mosaic", "2"), ("--recipe", "x")])
def test_invalid_flag_is_named(capsys, flags):
    with pytest.raises(SystemExit):
        parse_args([*flags])
    assert flags[0] in capsys.readouterr().err


def test_unknown_project_is_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="nowhere"):
        main(parse_args(["-p", "nowhere"]))


@pytest.mark.slow
def test_command_as_a_user_runs_it(clean_project):
    edit_annotations(clean_project.data, "train", lambda content: content["annotations"][0].update(bbox=[1, 2]))
    command = [sys.executable, "-m", "efficientdet.check", "-p", "drawn", "--image_size", "128"]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    run = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert run.returncode == 1 and "malformed boxes: 1" in run.stdout
    assert run.stdout.splitlines()[-1] == "1 errors, 0 warnings in 6 images: correct the errors before training"
    assert "decoding train: 100%" in run.stderr and "Traceback" not in run.stderr
