"""COCO annotation files: read, checked entry by entry, and laid out as arrays."""

import difflib
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

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

    content = _read_lists(path, note)
    all_images = _by_id(content["images"], "image", note)
    categories = _by_id(content["categories"], "category", note)
    named = _with_file_names(all_images, note)
    images = sorted(named, key=lambda image: (str(type(image["id"])), image["id"]))[:max_images]
    sizes = [(image.get("height"), image.get("width")) for image in images]
    classes = _match_categories(categories, project, note)
    positions: dict[str, int | None] = dict.fromkeys(all_images)
    positions.update((str(image["id"]), position) for position, image in enumerate(images))
    boxes = _read_boxes(content["annotations"], positions, classes, note)
    if not images and not findings:
        note("empty sets", "", "lists no images", "add images, or choose another set")
    return AnnotatedSet(
        project=project,
        name=set_name,
        image_folder=image_folder,
        annotation_file=path,
        images=images,
        sizes=np.array([size if all(map(_is_side, size)) else (0, 0) for size in sizes], np.int64).reshape(-1, 2),
        present=_find_images(images, image_folder, path, note),
        boxes=boxes,
        category_ids={class_id: categories[key]["id"] for key, class_id in classes.items() if class_id >= 0},
        listed=frozenset(image["file_name"] for image in named),
        findings=findings,
    )


def raise_first_error(annotated: AnnotatedSet) -> None:
    """Raise InputError with the first of the set's errors, if it has any."""
    if annotated.findings:
        command = f"python -m efficientdet.check -p {annotated.project.path}"
        more = f"; {command} lists all" if len(annotated.findings) > 1 else ""
        raise InputError(format_short(group_by_kind(annotated.findings)[0]) + more)


def _read_lists(path: Path, note: _Note) -> dict[str, list[dict]]:
    """Return the three lists of the file without incomplete entries; empty lists if it is not a COCO file."""
    lists: dict[str, list[dict]] = {key: [] for key in _REQUIRED}
    problem: tuple[str, ...] = ()
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        absent = [key for key in _REQUIRED if not isinstance(content, dict) or not isinstance(content.get(key), list)]
        if absent:
            problem = f"has no list {absent[0]!r}", "COCO format has the lists images, annotations and categories"
    except FileNotFoundError:
        problem = "does not exist", "it must hold the boxes of the set in COCO format"
    except (OSError, ValueError, RecursionError) as error:  # not readable, not UTF-8, or not JSON
        problem = "cannot be read", str(error)
    if problem:
        note("unusable annotation files", "", *problem)
        return lists
    for key, fields in _REQUIRED.items():
        for position, entry in enumerate(content[key]):
            absent = [field for field in fields if not isinstance(entry, dict) or field not in entry]
            if absent:
                message = f"of {key!r} has no {absent[0]!r}: {str(entry)[:100]}"
                note("incomplete entries", f"entry {position}", message, "complete or remove it")
            else:
                lists[key].append(entry)
    return lists


def _by_id(entries: list[dict], noun: str, note: _Note) -> dict[str, dict]:
    """Map ids, as text, to entries: 7 and "7" are the same id. The first entry of an id counts."""
    by_id: dict[str, dict] = {}
    for entry in entries:
        subject = f"{noun} {entry['id']!r}"
        if not isinstance(entry["id"], int | str):
            note("invalid ids", subject, "has an id of another type", "it must be an integer or text")
        elif str(entry["id"]) in by_id:
            note("duplicate ids", subject, "has the id of an earlier entry", "give each entry its own id")
        else:
            by_id[str(entry["id"])] = entry
    return by_id


def _with_file_names(images: dict[str, dict], note: _Note) -> list[dict]:
    """Return the images whose file name is text, and check the sizes of all."""
    named = []
    for image in images.values():
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


def _is_side(value: object) -> bool:
    return isinstance(value, int) and 0 < value <= MAX_PIXELS


def _match_categories(categories: dict[str, dict], project: Project, note: _Note) -> dict[str, int]:
    """Map category ids to class indices, by name."""
    class_index = {name: index for index, name in enumerate(project.class_names) if name}
    names = [str(category["name"]) for category in categories.values()]
    unused = {name.casefold(): name for name in sorted(class_index.keys() - set(names))}
    classes, seen = {}, set()
    for key, name in zip(categories, names):
        subject = f"category {categories[key]['id']!r}"
        classes[key] = class_index.get(name, UNKNOWN_CLASS)
        if name in seen:
            message = f"is named {name!r}, like an earlier category"
            note("duplicate category names", subject, message, "give each category its own name")
        if name not in class_index:
            message = f"is named {name!r}, which is not in obj_list of {project.path}"
            close = difflib.get_close_matches(name.casefold(), unused, n=1)
            remedy = "remove the category and its annotations"
            if close:
                remedy = f"use one spelling in both if {unused[close[0]]!r} is meant"
            note("categories missing from obj_list", subject, message, f"add it there, or {remedy}")
        seen.add(name)
    return classes


def _read_boxes(entries: list[dict], positions: dict[str, int | None], classes: dict[str, int], note: _Note) -> Boxes:
    """Return the boxes of the images that have a position; annotations of the others are only checked."""
    kept: list[tuple[int, int, dict]] = []  # image, class, annotation
    for annotation in entries:
        subject = f"annotation {annotation['id']!r}"
        image_id, category_id = annotation["image_id"], annotation["category_id"]
        if str(image_id) not in positions:
            message = f"belongs to image {image_id!r}, which is not among the images"
            note("annotations of unknown images", subject, message, "add the image's entry or remove the annotation")
        if str(category_id) not in classes:
            message = f"has category_id {category_id!r}, which is not among the categories"
            advice = "add the category's entry or correct the annotation"
            note("annotations of unknown categories", subject, message, advice)
        bbox, area, crowd = annotation["bbox"], annotation.get("area"), annotation.get("iscrowd") or 0
        position = positions.get(str(image_id))
        if not is_box(bbox, MAX_PIXELS):
            message, advice = f"has the bbox {bbox!r}", "it must be [x, y, width, height] in pixels"
            note("malformed boxes", subject, message[:100], advice)
        elif area is not None and not is_number(area, MAX_PIXELS**2):
            message, advice = f"has the area {area!r}", "it must be a number of pixels, or left out"
            note("malformed areas", subject, message[:100], advice)
        elif crowd not in (0, 1):
            message = f"has the iscrowd {crowd!r}"
            note("invalid crowd flags", subject, message[:100], "it must be 0 or 1, or left out")
        elif position is not None:
            kept.append((position, classes.get(str(category_id), UNKNOWN_CLASS), annotation))
    kept.sort(key=lambda row: row[0])
    annotations = [annotation for _, _, annotation in kept]
    xywh = np.array([annotation["bbox"] for annotation in annotations], np.float64).reshape(-1, 4)
    areas = xywh[:, 2] * xywh[:, 3]
    for row, annotation in enumerate(annotations):
        if annotation.get("area") is not None:
            areas[row] = annotation["area"]
    is_crowd = np.array([bool(annotation.get("iscrowd")) for annotation in annotations], bool)
    return Boxes(
        annotation_ids=[annotation["id"] for annotation in annotations],
        images=np.array([position for position, _, _ in kept], np.int64),
        class_ids=np.array([class_id for _, class_id, _ in kept], np.int64),
        xywh=xywh,
        areas=areas,
        crowd=is_crowd,
        learnable=~is_crowd & (xywh[:, 2:] >= MIN_BOX_SIDE).all(axis=1),
    )


def is_number(value: object, limit: float) -> bool:
    """Return whether `value` is a number between -limit and limit, and so finite."""
    return isinstance(value, int | float) and abs(value) <= limit


def is_box(value: object, limit: float) -> bool:
    """Return whether `value` is a list of four such numbers."""
    return isinstance(value, list) and len(value) == 4 and all(is_number(number, limit) for number in value)


def _find_images(images: list[dict], folder: Path, annotation_file: Path, note: _Note) -> np.ndarray:
    """Return which image files exist: (N,) bool."""
    present = np.zeros(len(images), bool)
    if images and not folder.is_dir():
        note("missing folders", "", "does not exist", f"the images of {annotation_file} belong there", folder)
    elif images:
        names = set(os.listdir(folder))
        advice = f"copy it there, or remove its entry and boxes from {annotation_file.name}"
        for index, image in enumerate(images):
            present[index] = image["file_name"] in names or os.path.isfile(folder / image["file_name"])
            if not present[index]:
                note("missing images", f"image {image['id']!r}", "is missing", advice, folder / image["file_name"])
    return present
