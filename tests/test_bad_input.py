"""Mistakes in files and flags: each is reported in one sentence that names what is wrong, never by a traceback."""

import importlib
import os
import socket
from collections.abc import Callable
from types import SimpleNamespace

import pytest
from scripts import SMALL, TRAIN, assert_one_error, edit_annotations, run_main, run_script, write_weights

EVALUATE = ("coco_eval.py", "-p", "drawn", *SMALL, "-n", "0")
DETECT = ("efficientdet_test.py", "-p", "drawn", *SMALL)

# Each makes a mistake in a project, and returns the command to run and what the sentence must name.
Mistake = Callable[[SimpleNamespace], tuple[tuple, tuple]]


def missing_weights(project):
    return (*EVALUATE, "-w", "absent.pth"), ("absent.pth",)


def no_weights_for_the_project(project):
    return EVALUATE, ("-w", "drawn")


def weights_of_another_coefficient(project):
    weights = write_weights(project.root / "d1.pth", compound_coef=1)
    return (*EVALUATE, "-w", weights), (weights, "looks like D1", "-c 0")


def weights_of_other_classes(project):
    weights = write_weights(project.root / "coco.pth", num_classes=90)
    return (*EVALUATE, "-w", weights), (weights, "90 classes", "2")


def text_instead_of_weights(project):
    (project.root / "notes.pth").write_text("not tensors\n")
    return (*TRAIN, "-w", "notes.pth"), ("notes.pth",)


def truncated_weights(project):
    weights = write_weights(project.root / "half.pth")
    weights.write_bytes(weights.read_bytes()[: weights.stat().st_size // 2])
    return (*TRAIN, "-w", weights), (weights,)


def missing_project(project):
    return ("train.py", "-p", "dawn"), ("projects/dawn.yml", "drawn")


def misspelt_yaml_key(project):
    project.yml.write_text(project.yml.read_text().replace("train_set:", "trian_set:"))
    return TRAIN, ("drawn.yml", "'trian_set'", "'train_set'")


def missing_yaml_key(project):
    project.yml.write_text(project.yml.read_text().replace("std:", "# std:"))
    return TRAIN, ("drawn.yml", "'std'")


def invalid_yaml(project):
    project.yml.write_text(project.yml.read_text().replace("[0.485, 0.456, 0.406]", "[0.485, 0.456"))
    return TRAIN, ("drawn.yml", "line")


def missing_annotation_file(project):
    (project.data / "annotations/instances_train.json").unlink()
    return TRAIN, ("datasets/drawn/annotations/instances_train.json",)


def truncated_annotation_file(project):
    path = project.data / "annotations/instances_val.json"
    path.write_text(path.read_text()[:200])
    return EVALUATE, ("instances_val.json", "line 1")


def image_missing_on_disk(project):
    (project.data / "train/000015.jpg").unlink()
    return TRAIN, ("000015.jpg", "instances_train.json")


def annotation_of_an_unknown_image(project):
    edit_annotations(project.data, "train", lambda content: content["annotations"][0].update(id=77, image_id=555))
    return TRAIN, ("instances_train.json", "annotation 77", "image 555")


def annotation_of_an_unknown_category(project):
    edit_annotations(project.data, "train", lambda content: content["annotations"][0].update(id=77, category_id=5))
    return TRAIN, ("instances_train.json", "annotation 77", "category_id 5")


def category_that_is_not_in_obj_list(project):
    edit_annotations(project.data, "val", lambda content: content["categories"][0].update(name="dics"))
    return TRAIN, ("'dics'", "instances_val.json", "drawn.yml", "'disc'")


def annotation_without_a_number_for_its_area(project):
    edit_annotations(project.data, "val", lambda content: content["annotations"][0].update(id=77, area="big"))
    return (*EVALUATE, "-w", write_weights(project.root / "untrained.pth")), ("instances_val.json", "77", "area")


def file_name_that_is_a_number(project):
    edit_annotations(project.data, "train", lambda content: content["images"][0].update(file_name=5))
    return TRAIN, ("instances_train.json", "file_name", "5")


def truncated_jpeg(project):
    path = project.data / "train/000021.jpg"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    return (*TRAIN, "-n", "1"), ("datasets/drawn/train/000021.jpg",)


def text_named_jpg(project):
    (project.data / "val/000105.jpg").write_text("not an image\n")
    return (*EVALUATE, "-w", write_weights(project.root / "untrained.pth")), ("datasets/drawn/val/000105.jpg",)


def image_of_another_size_than_annotated(project):
    edit_annotations(project.data, "train", lambda content: [image.update(height=99) for image in content["images"]])
    return TRAIN, ("datasets/drawn/train/", "160 x 120", "160 x 99")


def missing_image(project):
    return (*DETECT, "absent.jpg", "-w", "untrained.pth"), ("absent.jpg",)


def empty_folder(project):
    (project.root / "empty").mkdir()
    return (*DETECT, "empty", "-w", "untrained.pth"), ("empty",)


def format_that_does_not_exist(project):
    return (*DETECT, "x.jpg", "--save", "csv,pdf"), ("--save", "'csv,pdf'")


def shapes_that_change_for_a_compiled_network(project):
    return (*DETECT, project.data / "val", "--compile", "--rect"), ("--compile", "--rect")


def image_size_without_height(project):
    return ("train.py", "-p", "drawn", "--image_size", "640x"), ("--image_size", "'640x'")


def image_size_zero(project):
    return ("coco_eval.py", "-p", "drawn", "--image_size", "0"), ("--image_size", "'0'")


def threshold_above_one(project):
    return (*DETECT, "x.jpg", "--threshold", "1.5"), ("--threshold", "'1.5'")


def coefficient_that_does_not_exist(project):
    return (*TRAIN, "-c", "9"), ("--compound_coef", "9")


def saved_path_that_is_a_file(project):
    (project.root / "blocked").write_text("a file where a folder should be")
    return (*TRAIN, "--num_epochs", "1", "--max_images", "2", "--saved_path", "blocked"), ("blocked",)


def log_path_that_is_a_file(project):
    (project.root / "blocked").write_text("a file where a folder should be")
    return (*TRAIN, "--num_epochs", "1", "--log_path", "blocked"), ("blocked",)


def output_that_is_a_file(project):
    (project.root / "blocked").write_text("a file where a folder should be")
    weights = write_weights(project.root / "untrained.pth")
    return (*DETECT, project.data / "val", "-w", weights, "--output", "blocked"), ("blocked",)


def results_without_entries(project):
    path = project.root / "logs/drawn/val_bbox_results.json"
    path.parent.mkdir(parents=True)
    path.write_text("[1, 2, 3]")
    return (*EVALUATE, "--override", "False"), ("val_bbox_results.json", "entry 0")


MISTAKES: list[Mistake] = [
    missing_weights, no_weights_for_the_project, weights_of_another_coefficient, weights_of_other_classes,
    text_instead_of_weights, truncated_weights,
    missing_project, misspelt_yaml_key, missing_yaml_key, invalid_yaml,
    missing_annotation_file, truncated_annotation_file, image_missing_on_disk, annotation_of_an_unknown_image,
    annotation_of_an_unknown_category, category_that_is_not_in_obj_list, annotation_without_a_number_for_its_area,
    file_name_that_is_a_number,
    truncated_jpeg, text_named_jpg, image_of_another_size_than_annotated, missing_image, empty_folder,
    format_that_does_not_exist, shapes_that_change_for_a_compiled_network,
    image_size_without_height, image_size_zero, threshold_above_one, coefficient_that_does_not_exist,
    saved_path_that_is_a_file, log_path_that_is_a_file, output_that_is_a_file, results_without_entries,
]  # fmt: skip


@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda mistake: mistake.__name__)
def test_mistake_is_reported_in_one_sentence(shapes_project, mistake):
    (script, *args), named = mistake(shapes_project)
    run = run_main(importlib.import_module(script.removesuffix(".py")), *args, cwd=shapes_project.root)
    assert_one_error(run, *named)
    assert not list(shapes_project.root.rglob("*.tmp"))


def test_published_weights_without_a_network(shapes_project):
    with socket.socket() as probe:  # a port without a listener: nothing leaves this machine
        probe.bind(("127.0.0.1", 0))
        proxy = f"http://127.0.0.1:{probe.getsockname()[1]}"
    env = {name: value for name, value in os.environ.items() if name.lower() != "no_proxy"}
    env |= dict.fromkeys(("HTTPS_PROXY", "https_proxy", "HTTP_PROXY", "http_proxy", "ALL_PROXY"), proxy)
    photo = shapes_project.data / "val/000102.jpg"
    run = run_script("efficientdet_test.py", photo, *SMALL, "-c", "2", cwd=shapes_project.root, env=env)
    url = "https://github.com/zylo117/Yet-Another-Efficient-Pytorch/releases/download/1.0/efficientdet-d2.pth"
    assert_one_error(run, url, "weights/efficientdet-d2.pth")
    assert not list((shapes_project.root / "weights").glob("*.pth"))
