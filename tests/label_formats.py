"""The project of the fixture `shapes_project`, written in each format that the converter reads."""

import json
import os
from pathlib import Path

import numpy as np


def read_images(project) -> list[tuple[str, dict, list[tuple[str, list[float]]]]]:
    """Return [(set, image entry, [(class, xywh)])] of a project."""
    found = []
    for set_name in ("train", "val"):
        coco = json.loads((project.data / "annotations" / f"instances_{set_name}.json").read_text())
        names = {category["id"]: category["name"] for category in coco["categories"]}
        for image in coco["images"]:
            mine = [a for a in coco["annotations"] if a["image_id"] == image["id"]]
            found.append((set_name, image, [(names[a["category_id"]], a["bbox"]) for a in mine]))
    return found


def write_as_voc(project, folder: Path) -> list[str]:
    lists = {"train": "", "val": ""}
    for name in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (folder / name).mkdir(parents=True)
    for set_name, image, boxes in read_images(project):
        stem = Path(image["file_name"]).stem
        lists[set_name] += f"{stem}\n"
        os.link(project.data / set_name / image["file_name"], folder / "JPEGImages" / image["file_name"])
        elements = "".join(
            f"<object><name>{name}</name><bndbox><xmin>{x + 1}</xmin><ymin>{y + 1}</ymin>"
            f"<xmax>{x + width}</xmax><ymax>{y + height}</ymax></bndbox></object>"
            for name, (x, y, width, height) in boxes
        )
        (folder / "Annotations" / f"{stem}.xml").write_text(f"<annotation>{elements}</annotation>")
    for set_name, text in lists.items():
        (folder / "ImageSets" / "Main" / f"{set_name}.txt").write_text(text)
    return [str(folder)]


def write_as_yolo(project, folder: Path) -> list[str]:
    classes = ["disc", "square"]
    for set_name, image, boxes in read_images(project):
        images, labels = folder / set_name / "images", folder / set_name / "labels"
        images.mkdir(parents=True, exist_ok=True)
        labels.mkdir(exist_ok=True)
        os.link(project.data / set_name / image["file_name"], images / image["file_name"])
        size = np.array([image["width"], image["height"]])
        lines = []
        for name, bbox in boxes:
            corner, sides = np.array(bbox[:2]) / size, np.array(bbox[2:]) / size
            lines.append(" ".join([str(classes.index(name)), *(f"{v:.6f}" for v in (*(corner + sides / 2), *sides))]))
        (labels / image["file_name"]).with_suffix(".txt").write_text("\n".join(lines))
    (folder / "data.yaml").write_text(f"train: ../train/images\nval: ../val/images\nnames: {classes}\n")
    return [str(folder / "data.yaml")]


def write_as_csv(project, folder: Path) -> list[str]:
    folder.mkdir()
    rows = {"train": "", "val": ""}
    for set_name, image, boxes in read_images(project):
        path = project.data / set_name / image["file_name"]
        for name, (x, y, width, height) in boxes:
            rows[set_name] += f"{path},{x},{y},{x + width},{y + height},{name}\n"
        rows[set_name] += "" if boxes else f"{path},,,,,\n"
    for set_name, text in rows.items():
        (folder / f"{set_name}.csv").write_text(text)
    return [str(folder / "train.csv"), str(folder / "val.csv")]
