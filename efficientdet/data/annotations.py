"""COCO annotation files: read, checked entry by entry, and laid out as arrays."""

import difflib
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeGuard

import numpy as np

from efficientdet.data.findings import Finding, format_short, group_by_kind
from efficientdet.data.transforms import MIN_BOX_SIDE
from efficientdet.project import Project
from utils.errors import InputError

UNKNOWN_CLASS = -1
MAX_PIXELS = 1e9  # per side or coordinate: no image is larger, and later arithmetic would overflow
_REQUIRED = {
    "images": ("id", "file_name"),
    "annotations": ("id", "image_id", "category_id", "bbox"),
    "categories": ("id", "name"),
}
# Records an error: kind, subject, message, advice, and the file if it is not the annotation file.
_Note = Callable[..., None]


@dataclass(frozen=True)
class Boxes:
    """The annotations of a set as columns of M rows, grouped by image in the order of the images."""

    annotation_ids: list
    images: np.ndarray  # (M,) int64: index of the image in the set
    class_ids: np.ndarray  # (M,) int64: UNKNOWN_CLASS if the category is not a class of the project
    xywh: np.ndarray  # (M, 4) float64: left, top, width, height in pixels of the image
    areas: np.ndarray  # (M,) float64: in pixels, as annotated, else width x height
    crowd: np.ndarray  # (M,) bool: the box marks a region of many objects
    learnable: np.ndarray  # (M,) bool: used in training, that is no crowd region and no side below one pixel


@dataclass(frozen=True)
class AnnotatedSet:
    """One set (such as `train2017`) as its annotation file describes it, without the faulty entries."""

    project: Project
    name: str
    image_folder: Path
    annotation_file: Path
    images: list[dict]  # N entries, sorted by id
    sizes: np.ndarray  # (N, 2) int64: height, width in pixels; 0 if the file does not give them
    present: np.ndarray  # (N,) bool: the image file exists
    boxes: Boxes
    category_ids: dict[int, int | str]  # class index -> category id
    listed: frozenset[str]  # file names of all images, including those beyond `max_images`
    findings: list[Finding]  # errors only; each makes the set unfit for training

    def image_path(self, index: int) -> Path:
        return self.image_folder / self.images[index]["file_name"]

    def rows(self, index: int) -> slice:
        """Return the rows of `boxes` that belong to an image."""
        return slice(*np.searchsorted(self.boxes.images, (index, index + 1)).tolist())


def read_set(folder: Path, set_name: str, project: Project, max_images: int | None = None) -> AnnotatedSet:
    """Read and check `annotations/instances_{set_name}.json` in `folder`, with its images in `{set_name}/`.

    Nothing is raised: errors are collected in `findings`, and faulty entries are left out.
    `max_images` keeps the first images by id; the entries of the others are still checked.
    """
    image_folder, path = Path(folder) / set_name, Path(folder) / "annotations" / f"instances_{set_name}.json"
    findings: list[Finding] = []

    def note(kind: str, subject: str, message: str, advice: str, file: Path = path) -> None:
        findings.append(Finding("error", kind, file, subject, message, advice))

    content = _read_content(path, note)
    all_images = _with_unique_ids(content["images"], "image", note)
    categories = _with_unique_ids(content["categories"], "category", note)
    named = _with_file_names(all_images, note)
    images = sorted(named, key=lambda image: (str(type(image["id"])), image["id"]))[:max_images]
    class_of = _match_categories(categories, project, note)
    # Ids are compared as text: 7 and "7" are the same id.
    positions: dict[str, int | None] = {str(image["id"]): None for image in all_images}
    positions |= {str(image["id"]): position for position, image in enumerate(images)}
    classes = {str(category["id"]): class_of.get(category["id"], UNKNOWN_CLASS) for category in categories}
    boxes = _read_boxes(content["annotations"], positions, classes, note)
    if not images and not findings:
        note("empty sets", "", "lists no images", "add images, or choose another set")
    return AnnotatedSet(
        project=project,
        name=set_name,
        image_folder=image_folder,
        annotation_file=path,
        images=images,
        sizes=np.array([_size(image) for image in images], np.int64).reshape(-1, 2),
        present=_find_images(images, image_folder, path, note),
        boxes=boxes,
        category_ids={class_index: category_id for category_id, class_index in class_of.items()},
        listed=frozenset(image["file_name"] for image in named),
        findings=findings,
    )


def raise_first_error(annotated: AnnotatedSet) -> None:
    """Raise InputError with the first of the set's errors, if it has any."""
    if annotated.findings:
        command = f"python -m efficientdet.check -p {annotated.project.path}"
        more = f"; {command} lists all" if len(annotated.findings) > 1 else ""
        raise InputError(format_short(group_by_kind(annotated.findings)[0]) + more)


def _read_content(path: Path, note: _Note) -> dict[str, list[dict]]:
    """Return the three lists of the file without incomplete entries; empty lists if it is not a COCO file."""

    def unusable(message: str, advice: str) -> dict[str, list[dict]]:
        note("unusable annotation files", "", message, advice)
        return {key: [] for key in _REQUIRED}

    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return unusable("does not exist", "it must hold the boxes of the set in COCO format")
    except (OSError, ValueError, RecursionError) as error:  # not readable, not UTF-8, or not JSON
        return unusable("cannot be read", str(error))
    for key in _REQUIRED:
        if not isinstance(content, dict) or not isinstance(content.get(key), list):
            return unusable(f"has no list {key!r}", "COCO format has the lists images, annotations and categories")
    return {key: _complete(content[key], key, note) for key in _REQUIRED}


def _complete(entries: list, key: str, note: _Note) -> list[dict]:
    complete = []
    for position, entry in enumerate(entries):
        absent = [name for name in _REQUIRED[key] if not isinstance(entry, dict) or name not in entry]
        if absent:
            message = f"of {key!r} has no {absent[0]!r}: {str(entry)[:100]}"
            note("incomplete entries", f"entry {position}", message, "complete or remove it")
        else:
            complete.append(entry)
    return complete


def _with_unique_ids(entries: list[dict], noun: str, note: _Note) -> list[dict]:
    """Return the entries whose id is a number or text that no earlier entry has."""
    by_id: dict[str, dict] = {}
    for entry in entries:
        subject = f"{noun} {entry['id']!r}"
        if not isinstance(entry["id"], int | str):
            note("invalid ids", subject, "has an id of another type", "it must be an integer or text")
        elif str(entry["id"]) in by_id:
            note("duplicate ids", subject, "has the id of an earlier entry", "give each entry its own id")
        else:
            by_id[str(entry["id"])] = entry
    return list(by_id.values())


def _with_file_names(images: list[dict], note: _Note) -> list[dict]:
    """Return the images whose file name is text, and check the sizes of all."""
    named = []
    for image in images:
        subject = f"image {image['id']!r}"
        for side in ("width", "height"):
            if side in image and not _is_side(image[side]):
                message, advice = f"has the {side} {image[side]!r}", "it must be a number of pixels, or left out"
                note("invalid image sizes", subject, message, advice)
        if isinstance(image["file_name"], str):
            named.append(image)
        else:
            note("invalid file names", subject, f"has the file_name {image['file_name']!r}", "it must be text")
    return named


def _is_side(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and 0 < value <= MAX_PIXELS


def _size(image: dict) -> tuple[int, int]:
    height, width = image.get("height"), image.get("width")
    return (height, width) if _is_side(height) and _is_side(width) else (0, 0)


def _match_categories(categories: list[dict], project: Project, note: _Note) -> dict[int | str, int]:
    """Map category ids to class indices, by name."""
    class_index = {name: index for index, name in enumerate(project.class_names) if name}
    names = [str(category["name"]) for category in categories]
    unused = class_index.keys() - set(names)
    class_of, seen = {}, set()
    for category, name in zip(categories, names):
        subject = f"category {category['id']!r}"
        if name in seen:
            message = f"is named {name!r}, like an earlier category"
            note("duplicate category names", subject, message, "give each category its own name")
        if name in class_index:
            class_of[category["id"]] = class_index[name]
        else:
            message = f"is named {name!r}, which is not in obj_list of {project.path}"
            note("categories missing from obj_list", subject, message, _advice_on_name(name, unused))
        seen.add(name)
    return class_of


def _advice_on_name(name: str, unused: set[str]) -> str:
    """Advise on a category that obj_list lacks, given the names in obj_list that no category has."""
    folded = {other.casefold(): other for other in sorted(unused)}
    close = difflib.get_close_matches(name.casefold(), folded, n=1)
    if close:
        return f"add it there, or use one spelling in both if {folded[close[0]]!r} is meant"
    return "add it there, or remove the category and its annotations"


def _read_boxes(
    annotations: list[dict], positions: dict[str, int | None], classes: dict[str, int], note: _Note
) -> Boxes:
    """Return the boxes of the images that have a position; annotations of the others are only checked."""
    kept: list[tuple[int, int, dict]] = []  # image, class, annotation
    for annotation in annotations:
        subject = f"annotation {annotation['id']!r}"
        image_id, category_id = str(annotation["image_id"]), str(annotation["category_id"])
        if image_id not in positions:
            message = f"belongs to image {annotation['image_id']!r}, which is not among the images"
            note("annotations of unknown images", subject, message, "add the image's entry or remove the annotation")
        if category_id not in classes:
            message = f"has category_id {annotation['category_id']!r}, which is not among the categories"
            advice = "add the category's entry or correct the annotation"
            note("annotations of unknown categories", subject, message, advice)
        malformed = _malformed_field(annotation)
        position = positions.get(image_id)
        if malformed:
            kind, message, advice = malformed
            note(kind, subject, message[:100], advice)
        elif position is not None:
            kept.append((position, classes.get(category_id, UNKNOWN_CLASS), annotation))
    kept.sort(key=lambda row: row[0])
    entries = [annotation for _, _, annotation in kept]
    xywh = np.array([entry["bbox"] for entry in entries], np.float64).reshape(-1, 4)
    box_areas = (xywh[:, 2] * xywh[:, 3]).tolist()
    areas = [area if entry.get("area") is None else entry["area"] for area, entry in zip(box_areas, entries)]
    crowd = np.array([bool(entry.get("iscrowd")) for entry in entries], bool)
    return Boxes(
        annotation_ids=[entry["id"] for entry in entries],
        images=np.array([position for position, _, _ in kept], np.int64),
        class_ids=np.array([class_id for _, class_id, _ in kept], np.int64),
        xywh=xywh,
        areas=np.array(areas, np.float64),
        crowd=crowd,
        learnable=~crowd & (xywh[:, 2:] >= MIN_BOX_SIDE).all(axis=1),
    )


def _malformed_field(annotation: dict) -> tuple[str, str, str] | None:
    """Return kind, message and advice for the first malformed field, or None."""
    bbox, area, crowd = annotation["bbox"], annotation.get("area"), annotation.get("iscrowd") or 0
    if not isinstance(bbox, list) or len(bbox) != 4 or not all(is_number(value, MAX_PIXELS) for value in bbox):
        return "malformed boxes", f"has the bbox {bbox!r}", "it must be [x, y, width, height] in pixels"
    if area is not None and not is_number(area, MAX_PIXELS**2):
        return "malformed areas", f"has the area {area!r}", "it must be a number of pixels, or left out"
    if crowd not in (0, 1):
        return "invalid crowd flags", f"has the iscrowd {crowd!r}", "it must be 0 or 1, or left out"
    return None


def is_number(value: object, limit: float) -> TypeGuard[float]:
    """Return whether `value` is a number between -limit and limit, and so finite."""
    return isinstance(value, int | float) and abs(value) <= limit


def _find_images(images: list[dict], folder: Path, annotation_file: Path, note: _Note) -> np.ndarray:
    """Return which image files exist: (N,) bool."""
    if not images:
        return np.zeros(0, bool)
    if not folder.is_dir():
        note("missing folders", "", "does not exist", f"the images of {annotation_file} belong there", folder)
        return np.zeros(len(images), bool)
    names = {file.name for file in folder.iterdir()}
    present = [image["file_name"] in names or os.path.isfile(folder / image["file_name"]) for image in images]
    for image, exists in zip(images, present):
        if not exists:
            advice = f"copy it there, or remove its entry and boxes from {annotation_file.name}"
            note("missing images", f"image {image['id']!r}", "is missing", advice, folder / image["file_name"])
    return np.array(present, bool)
