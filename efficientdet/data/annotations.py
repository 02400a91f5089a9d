"""COCO annotation files: read, judged rule by rule, and laid out as arrays."""

import difflib
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeGuard

import numpy as np

from efficientdet.data.findings import Finding, by_kind, in_short
from efficientdet.data.transforms import MIN_BOX_SIDE
from efficientdet.project import Project
from utils.errors import InputError

UNKNOWN_CLASS = -1
MOST_PIXELS = 1e9  # that a side, a coordinate may have; more is no image, and overflows in what follows
_NEEDED = {
    "images": ("id", "file_name"),
    "annotations": ("id", "image_id", "category_id", "bbox"),
    "categories": ("id", "name"),
}
# A function that takes note of an error: kind, subject, message, advice, and the file unless it is the annotations'.
_Note = Callable[..., None]


@dataclass(frozen=True)
class Boxes:
    """The annotations of a set as columns of M rows. Rows of one image are together, in the order of the images."""

    annotation_ids: list
    images: np.ndarray  # (M,) int64: position among the set's images
    class_ids: np.ndarray  # (M,) int64; UNKNOWN_CLASS for a category that is no class of the project
    xywh: np.ndarray  # (M, 4) float64: left, top, width, height in pixels of the image
    areas: np.ndarray  # (M,) float64: pixels, as annotated, or else the box's
    crowd: np.ndarray  # (M,) bool: a region of many objects
    learnable: np.ndarray  # (M,) bool: what training learns from: no crowd regions, none below one pixel


@dataclass(frozen=True)
class AnnotatedSet:
    """One set (`train2017`, say) as its annotation file tells it, without what is faulty there."""

    project: Project
    name: str
    pictures: Path  # the folder
    annotation_file: Path
    images: list[dict]  # N, in the order of their ids
    sizes: np.ndarray  # (N, 2) int64: height, width in pixels; 0 where the file does not tell
    present: np.ndarray  # (N,) bool: whether the image is there
    boxes: Boxes
    category_ids: dict[int, int | str]  # class index -> category id
    listed: frozenset[str]  # the file names of all images, those beyond `max_images` too
    findings: list[Finding]  # errors, all of which make the set unfit for training

    def picture(self, index: int) -> Path:
        """The file of an image."""
        return self.pictures / self.images[index]["file_name"]

    def rows(self, index: int) -> slice:
        """The rows of `boxes` that belong to an image."""
        return slice(*np.searchsorted(self.boxes.images, (index, index + 1)).tolist())


def read_set(folder: Path, set_name: str, project: Project, max_images: int | None = None) -> AnnotatedSet:
    """Read and judge `annotations/instances_{set_name}.json` in `folder`, and look for the images in `{set_name}/`.

    Nothing is raised: whatever is wrong is in the result's `findings`, and faulty entries are left out of it.
    `max_images` takes the first so many, in the order of their ids; the others' entries are judged, too.
    """
    pictures, path = Path(folder) / set_name, Path(folder) / "annotations" / f"instances_{set_name}.json"
    findings: list[Finding] = []

    def note(kind: str, subject: str, message: str, advice: str, file: Path = path) -> None:
        findings.append(Finding("error", kind, file, subject, message, advice))

    content = _read_content(path, note)
    all_images = _with_own_ids(content["images"], "image", note)
    categories = _with_own_ids(content["categories"], "category", note)
    named = _with_file_names(all_images, note)
    images = sorted(named, key=lambda image: (str(type(image["id"])), image["id"]))[:max_images]
    class_of = _match_categories(categories, project, note)
    # Numbers and texts of digits mean the same id.
    positions: dict[str, int | None] = {str(image["id"]): None for image in all_images}
    positions |= {str(image["id"]): position for position, image in enumerate(images)}
    classes = {str(category["id"]): class_of.get(category["id"], UNKNOWN_CLASS) for category in categories}
    boxes = _read_boxes(content["annotations"], positions, classes, note)
    if not images and not findings:
        note("sets without images", "", "lists no images", "there is nothing to work on")
    return AnnotatedSet(
        project=project,
        name=set_name,
        pictures=pictures,
        annotation_file=path,
        images=images,
        sizes=np.array([_size(image) for image in images], np.int64).reshape(-1, 2),
        present=_look_for_images(images, pictures, path, note),
        boxes=boxes,
        category_ids={class_index: category_id for category_id, class_index in class_of.items()},
        listed=frozenset(image["file_name"] for image in named),
        findings=findings,
    )


def refuse_if_faulty(annotated: AnnotatedSet) -> None:
    """InputError with the first of the set's errors, if it has any."""
    if annotated.findings:
        command = f"python -m efficientdet.check -p {annotated.project.path}"
        more = f"; {command} lists all" if len(annotated.findings) > 1 else ""
        raise InputError(in_short(by_kind(annotated.findings)[0]) + more)


def _read_content(path: Path, note: _Note) -> dict[str, list[dict]]:
    """The three lists of the file, without incomplete entries; empty lists when it is no COCO file."""

    def unusable(subject: str, message: str, advice: str) -> dict[str, list[dict]]:
        note("annotation files that cannot be used", subject, message, advice)
        return {key: [] for key in _NEEDED}

    try:
        with open(path, encoding="utf-8") as file:
            content = json.load(file)
    except FileNotFoundError:
        return unusable("", "is not there", "it must hold the set's boxes in COCO format")
    except json.JSONDecodeError as error:
        return unusable(f"line {error.lineno}", "is not valid JSON", error.msg)
    except (OSError, ValueError, RecursionError) as error:  # ValueError: not UTF-8, or a number of thousands of digits
        return unusable("", "cannot be read", str(error))
    if not isinstance(content, dict):
        return unusable("", "is not in COCO format", "it must hold an object with images, annotations, categories")
    for key in _NEEDED:
        if not isinstance(content.get(key), list):
            return unusable("", f"has no list {key!r}", "COCO format has images, annotations and categories")
    return {key: _complete(content[key], key, note) for key in _NEEDED}


def _complete(entries: list, key: str, note: _Note) -> list[dict]:
    """Those that have all fields that are needed."""
    complete = []
    for position, entry in enumerate(entries):
        absent = [name for name in _NEEDED[key] if not isinstance(entry, dict) or name not in entry]
        if absent:
            message = f"of {key!r} has no {absent[0]!r}: {str(entry)[:100]}"
            note("incomplete entries", f"entry {position}", message, "complete or remove it")
        else:
            complete.append(entry)
    return complete


def _with_own_ids(entries: list[dict], noun: str, note: _Note) -> list[dict]:
    """Those whose id is a number or a text, and no earlier entry's."""
    own: dict[str, dict] = {}
    for entry in entries:
        subject = f"{noun} {entry['id']!r}"
        if not isinstance(entry["id"], int | str):
            note("ids that cannot be used", subject, "has an id of another type", "it must be a number or text")
        elif str(entry["id"]) in own:
            note("ids given twice", subject, "has the id of an earlier entry", "give each its own")
        else:
            own[str(entry["id"])] = entry
    return list(own.values())


def _with_file_names(images: list[dict], note: _Note) -> list[dict]:
    """Those whose file name is a text. Their sizes are judged, too."""
    named = []
    for image in images:
        subject = f"image {image['id']!r}"
        for side in ("width", "height"):
            if side in image and not _is_pixels(image[side]):
                message, advice = f"has the {side} {image[side]!r}", "it must be a number of pixels, or left out"
                note("image sizes that cannot be used", subject, message, advice)
        if isinstance(image["file_name"], str):
            named.append(image)
        else:
            message = f"has the file_name {image['file_name']!r}"
            note("file names that cannot be used", subject, message, "it must be text")
    return named


def _is_pixels(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and 0 < value <= MOST_PIXELS


def _size(image: dict) -> tuple[int, int]:
    height, width = image.get("height"), image.get("width")
    return (height, width) if _is_pixels(height) and _is_pixels(width) else (0, 0)


def _match_categories(categories: list[dict], project: Project, note: _Note) -> dict[int | str, int]:
    """Category id -> class index, by name."""
    class_index = {name: index for index, name in enumerate(project.class_names) if name}
    names = [str(category["name"]) for category in categories]
    unused = class_index.keys() - set(names)
    class_of, seen = {}, set()
    for category, name in zip(categories, names):
        subject = f"category {category['id']!r}"
        if name in seen:
            message = f"is named {name!r}, as another is"
            note("categories of one name", subject, message, "give each a name of its own")
        if name in class_index:
            class_of[category["id"]] = class_index[name]
        else:
            message = f"is named {name!r}, which is not in obj_list of {project.path}"
            note("categories that obj_list lacks", subject, message, _advice_on_name(name, unused))
        seen.add(name)
    return class_of


def _advice_on_name(name: str, unused: set[str]) -> str:
    """What to do about a category's name that `obj_list` lacks, given the names there that no category has."""
    folded = {_folded(other): other for other in sorted(unused)}
    alike = folded.get(_folded(name))
    if alike:
        return f"it differs from {alike!r} there in case, spaces or signs alone; write it the same in both"
    close = difflib.get_close_matches(name, sorted(unused), n=1)
    if close:
        return f"add it there, or write it the same in both if {close[0]!r} is meant"
    return "add it there, or take the category and its annotations out"


def _folded(name: str) -> str:
    return "".join(character for character in name.casefold() if character.isalnum())


def _read_boxes(
    annotations: list[dict], positions: dict[str, int | None], classes: dict[str, int], note: _Note
) -> Boxes:
    """The boxes of the images that have a position. Annotations of those that have None are judged and left out."""
    rows = []
    for annotation in annotations:
        subject = f"annotation {annotation['id']!r}"
        image_id, category_id, bbox = str(annotation["image_id"]), str(annotation["category_id"]), annotation["bbox"]
        if image_id not in positions:
            note(
                "annotations of unknown images",
                subject,
                f"belongs to image {annotation['image_id']!r}, which is not among the images",
                "add the image's entry or remove the annotation",
            )
        if category_id not in classes:
            note(
                "annotations of unknown categories",
                subject,
                f"has category_id {annotation['category_id']!r}, which is not among the categories",
                "add the category's entry or correct the annotation",
            )
        if not isinstance(bbox, list) or len(bbox) != 4 or not all(map(_is_coordinate, bbox)):
            message, advice = f"has the bbox {bbox!r}"[:100], "it must be four numbers of pixels, [x, y, width, height]"
            note("malformed boxes", subject, message, advice)
            continue
        area = annotation.get("area")
        area = bbox[2] * bbox[3] if area is None else area
        if not _is_area(area):
            message = f"has the area {area!r}"[:100]
            note("malformed areas", subject, message, "it must be a number of pixels, or left out")
            continue
        is_crowd = annotation.get("iscrowd") or 0
        if is_crowd not in (0, 1):
            message = f"has the iscrowd {is_crowd!r}"[:100]
            note("crowd flags that cannot be used", subject, message, "it must be 0 or 1, or left out")
            continue
        position = positions.get(image_id)
        if position is not None:
            class_id = classes.get(category_id, UNKNOWN_CLASS)
            rows.append((position, annotation["id"], class_id, bbox, area, bool(is_crowd)))
    rows.sort(key=lambda row: row[0])
    images, annotation_ids, class_ids, bboxes, areas, crowds = zip(*rows) if rows else ((),) * 6
    xywh, crowd = np.array(bboxes, np.float64).reshape(-1, 4), np.array(crowds, bool)
    return Boxes(
        annotation_ids=list(annotation_ids),
        images=np.array(images, np.int64),
        class_ids=np.array(class_ids, np.int64),
        xywh=xywh,
        areas=np.array(areas, np.float64),
        crowd=crowd,
        learnable=~crowd & (xywh[:, 2:] >= MIN_BOX_SIDE).all(axis=1),
    )


def _is_coordinate(value: object) -> bool:
    return isinstance(value, int | float) and abs(value) <= MOST_PIXELS  # NaN is not


def _is_area(value: object) -> bool:
    return isinstance(value, int | float) and abs(value) <= MOST_PIXELS**2


def _look_for_images(images: list[dict], pictures: Path, path: Path, note: _Note) -> np.ndarray:
    """Whether the image of each image is there: (N,) bool."""
    if not images:
        return np.zeros(0, bool)
    if not pictures.is_dir():
        note("missing folders", "", "is not there", f"the images of {path} belong there", pictures)
        return np.zeros(len(images), bool)
    names = {file.name for file in pictures.iterdir()}
    present = [image["file_name"] in names or os.path.isfile(pictures / image["file_name"]) for image in images]
    for image, is_there in zip(images, present):
        if not is_there:
            advice = f"copy it there, or take its entry and boxes out of {path.name}"
            note("missing images", f"image {image['id']!r}", "is missing", advice, pictures / image["file_name"])
    return np.array(present, bool)
