"""YOLO: a text file for each image, with a line `class cx cy width height` in shares of the image's sides."""

import os
from dataclasses import replace
from pathlib import Path

from tqdm import tqdm

from efficientdet.convert.labels import (
    MISSING_IMAGE,
    Fault,
    LabelledBox,
    LabelledImage,
    Labels,
    attempt,
    files_below,
    finite_number,
    read_class_names,
    read_lines,
    set_named_in,
)
from utils.errors import InputError
from utils.yaml_file import read_yaml

NAMES_FILES = ("classes.txt", "obj.names", "_darknet.labels")
ROUNDING = 0.001  # how far values may lie beyond 0 and 1


def read_yolo(source: Path, class_names: list[str] | None = None) -> Labels:
    """The labels of `source`: a YAML file such as `data.yaml`, or a folder with such a file or without.

    The YAML file names the classes and the sets' images. Without it all images in `images/`, or else in `source`,
    are taken, folders that are called train, val or test name the sets, and `classes.txt` or `obj.names` the classes.
    The labels of `.../images/.../a.jpg` are in `.../labels/.../a.txt`, or beside it. An image without has no objects.

    Args:
        class_names: class index -> name, where `source` does not say it.

    Raises InputError when it is not clear where images, labels or classes are. What is wrong with a label file or
    one of its lines is among its image's faults.
    """
    yaml_file = _data_yaml(source)
    folder = source.parent if source.is_file() else source
    content = read_yaml(yaml_file, "names, and the folders train and val") if yaml_file else {}
    if "kpt_shape" in content:
        raise InputError(
            f"{yaml_file} is of key points (kpt_shape), which cannot be converted: export boxes or polygons"
        )
    notes: list[str] = []
    if class_names is not None:
        names = dict(enumerate(class_names))
    elif yaml_file and "names" in content:
        names = _names(content["names"], yaml_file)
    else:
        names = dict(enumerate(read_class_names(_names_file(folder))))
    if yaml_file and {"train", "val"} & content.keys():
        unlabelled = _images_of_yaml(content, yaml_file, notes)
    else:
        images = folder / "images" if (folder / "images").is_dir() else folder
        unlabelled = [_unlabelled(path, set_named_in(path, folder)) for path in files_below(images)]
    bar = tqdm(unlabelled, desc=f"reading {folder.name}", unit="file", dynamic_ncols=True)
    pictures = [_with_labels(picture, names) for picture in bar]
    without = sum(after is before for before, after in zip(unlabelled, pictures))
    paths = [picture.path for picture in unlabelled if picture.path]
    if without == len(pictures):
        example = f", such as {_label_file(paths[0])} for {paths[0]}" if paths else ""
        raise InputError(f"{len(pictures)} images and no label file were found in {folder}{example}")
    if without:
        notes.append(f"{without} images have no label file: they have no objects")
    return Labels(pictures + _labels_without_image(paths), [names[index] for index in sorted(names)], notes)


def _data_yaml(source: Path) -> Path | None:
    """`source` itself when it is a file, or the YAML file in this folder that describes the data, if any."""
    if source.is_file():
        return source
    files = sorted([*source.glob("*.yaml"), *source.glob("*.yml")])
    files = [file for file in files if file.stem in ("data", "dataset")] or files
    if len(files) > 1:
        shown = ", ".join(file.name for file in files)
        raise InputError(f"{source} holds several YAML files ({shown}): name the one that describes the data")
    return files[0] if files else None


def _names(names: object, yaml_file: Path) -> dict[int, str]:
    """Class index -> name, of a list or a mapping."""
    indexed = dict(enumerate(names)) if isinstance(names, list) else names
    if not isinstance(indexed, dict) or not indexed or not all(isinstance(index, int) for index in indexed):
        raise InputError(f"{yaml_file}: names must be a list, or lines such as '0: car', not {names!r}")
    texts = []
    for name in indexed.values():
        if not isinstance(name, str | int) or isinstance(name, bool):  # YAML reads yes and no as bool
            raise InputError(f"{yaml_file}: the name {name!r} in names is no text: put it between quotes")
        texts.append(str(name).strip())
    for name in texts:
        if not name or texts.count(name) > 1:
            raise InputError(f"{yaml_file}: names holds {name!r} {'twice' if name else 'for a name'}")
    return dict(zip(indexed, texts))


def _names_file(folder: Path) -> Path:
    """The file with the class names, wherever it is in `folder`."""
    suffixes = {Path(name).suffix for name in NAMES_FILES}
    files = [file for file in files_below(folder, suffixes) if file.name in NAMES_FILES]
    if not files:
        raise InputError(
            f"{folder} has no data.yaml, classes.txt or obj.names: pass the class names with --classes FILE"
        )
    if any(read_class_names(file) != read_class_names(files[0]) for file in files):
        raise InputError(f"the class names in {' and '.join(map(str, files))} differ: choose one with --classes FILE")
    return files[0]


def _images_of_yaml(content: dict, yaml_file: Path, notes: list[str]) -> list[LabelledImage]:
    """The images of the folders and list files that the YAML file names, not yet with their boxes."""
    pictures = []
    for set_name in ("train", "val", "test"):
        entries = content.get(set_name) or []
        for entry in map(str, entries if isinstance(entries, list) else [entries]):
            path = _located(entry, str(content.get("path") or ""), yaml_file)
            if path is None and set_name == "test":  # exporters write this line whether there is a test set or not
                notes.append(f"{yaml_file}: the folder {entry} of the set test does not exist: it is left out")
            elif path is None:
                raise InputError(
                    f"{yaml_file}: there is no {entry}, the folder of the set {set_name}: correct its path"
                )
            elif path.is_dir():
                pictures += [_unlabelled(picture, set_name) for picture in files_below(path)]
            else:
                pictures += [
                    LabelledImage(_normal(path.parent / text), path, line, set_name, normalised=True)
                    for line, text in enumerate(read_lines(path), 1)
                    if text
                ]
    return pictures


def _located(entry: str, data_path: str, yaml_file: Path) -> Path | None:
    """Where `entry` is: below `path` of the YAML file, or beside the file, with the `../` in front or without."""
    below = entry
    while below.startswith("../"):
        below = below[3:]
    beside = yaml_file.parent
    candidates = (base / text for base in (beside / data_path, beside) for text in (entry, below))
    return next((_normal(path) for path in candidates if os.path.exists(path)), None)


def _normal(path: Path) -> Path:
    return Path(os.path.normpath(path))


def _unlabelled(path: Path, set_name: str | None) -> LabelledImage:
    return LabelledImage(path, path, None, set_name, normalised=True)


def _images_folder(picture: Path) -> Path | None:
    return next((parent for parent in picture.parents if parent.name == "images"), None)


def _label_file(picture: Path) -> Path:
    images = _images_folder(picture)
    if images:
        path = images.with_name("labels") / picture.relative_to(images).with_suffix(".txt")
        if os.path.isfile(path):
            return path
    return picture.with_suffix(".txt")


def _with_labels(picture: LabelledImage, names: dict[int, str]) -> LabelledImage:
    """The image with the boxes of its label file; itself when there is none."""
    if picture.path is None or not os.path.isfile(file := _label_file(picture.path)):
        return picture
    try:
        lines = read_lines(file)
    except InputError as error:
        return replace(picture, file=file, faults=[Fault(file, None, "a file that cannot be read", str(error))])
    faults: list[Fault] = []
    boxes = [attempt(faults, _read_line, file, line, text, names) for line, text in enumerate(lines, 1) if text]
    return replace(picture, file=file, line=1, boxes=[box for box in boxes if box], faults=faults)


def _read_line(file: Path, line: int, text: str, names: dict[int, str]) -> LabelledBox:
    class_index, *values = (finite_number(value, file, line) for value in text.split())
    if len(values) != 4 and (len(values) < 6 or len(values) % 2):
        problem = "a line with neither 5 values (class, centre x and y, width, height) nor a class and a polygon"
        raise Fault(file, line, problem, f"{1 + len(values)} values")
    if class_index not in names:
        raise Fault(file, line, "a class index without a class name", f"{class_index:g}, with {len(names)} names")
    outside = [value for value in values if not -ROUNDING <= value <= 1 + ROUNDING]
    if outside:
        raise Fault(file, line, "a value outside 0 to 1: YOLO counts in shares of the image", f"{outside[0]:g}")
    if len(values) == 4:
        cx, cy, width, height = values
        xyxy = (cx - width / 2, cy - height / 2, cx + width / 2, cy + height / 2)
    else:
        xyxy = (min(values[::2]), min(values[1::2]), max(values[::2]), max(values[1::2]))
    return LabelledBox(names[int(class_index)], xyxy, line)


def _labels_without_image(pictures: list[Path]) -> list[LabelledImage]:
    """Faults for the files in `labels` that correspond to no image in `images`."""
    alone = []
    for images in sorted({folder for picture in pictures if (folder := _images_folder(picture))}):
        labels = images.with_name("labels")
        present = {path.relative_to(images).with_suffix("") for path in files_below(images)}
        for file in files_below(labels, {".txt"}):
            if file.name not in NAMES_FILES and file.relative_to(labels).with_suffix("") not in present:
                alone.append(LabelledImage(None, file, 1, faults=[Fault(file, 1, MISSING_IMAGE)]))
    return alone
