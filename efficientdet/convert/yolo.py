"""Read YOLO: a text file for each image, with lines `class cx cy width height` in fractions of the image's sides."""

import os
import re
from collections.abc import Iterator
from pathlib import Path

from tqdm import tqdm

from efficientdet.convert.labels import MISSING_IMAGE, Fault, LabeledBox, LabeledImage, Labels, call_or_record
from efficientdet.convert.reading import files_below, finite_number, read_class_names, read_lines, set_named_in
from utils.errors import InputError
from utils.yaml_file import read_yaml

NAMES_FILES = {"classes.txt", "obj.names", "_darknet.labels"}
NAMES_SUFFIXES = {".txt", ".names", ".labels"}
FRACTION_TOLERANCE = 0.001  # values may be this far outside 0 to 1: rounding explains it


def read_yolo(source: Path, class_names: list[str] | None = None) -> Labels:
    """Read the labels in `source`: a YAML file such as `data.yaml`, or a folder with or without one.

    The YAML file names the classes and each set's images. Without it, all images in `images/`, or else in `source`,
    are read; folders named train, val or test define the sets, `classes.txt` or `obj.names` the classes.
    The labels of `.../images/.../a.jpg` are in `.../labels/.../a.txt`, or next to it. An image without a label file has
    no objects. `class_names`, by class index, override the data's own.

    Raises InputError if images, labels or classes cannot be located. Faults of a label file stay with its image.
    """
    yaml_file = _find_yaml(source)
    folder = source.parent if source.is_file() else source
    content = read_yaml(yaml_file, "names, and the folders train and val") if yaml_file else {}
    if "kpt_shape" in content:
        raise InputError(f"{yaml_file} describes key points (kpt_shape), not boxes: export boxes or polygons")
    if class_names is not None:
        names = dict(enumerate(class_names))
    elif yaml_file and "names" in content:
        names = _parse_names(content["names"], yaml_file)
    else:
        names = dict(enumerate(read_class_names(_find_names_file(folder))))

    notes: list[str] = []
    if yaml_file and {"train", "val"} & content.keys():
        found = list(_images_of_yaml(content, yaml_file, notes))
    else:
        root = folder / "images" if (folder / "images").is_dir() else folder
        found = [(path, str(path), set_named_in(path, folder)) for path in files_below(root)]
    paths = [path for path, _, _ in found]
    label_files = [_label_file(path) for path in paths]
    if not any(label_files):
        example = f", such as {paths[0].with_suffix('.txt')} for {paths[0]}" if paths else ""
        raise InputError(f"{folder} has {len(paths)} images and no label files{example}")
    bar = tqdm(found, desc=f"reading {folder.name}", unit="file", dynamic_ncols=True)
    images = [
        _read_image(path, place, set_name, file, names) for (path, place, set_name), file in zip(bar, label_files)
    ]
    if num_unlabeled := label_files.count(None):
        notes.append(f"{num_unlabeled} images have no label file: they count as images without objects")
    return Labels(images + _labels_without_image(paths), [names[index] for index in sorted(names)], notes)


def _find_yaml(source: Path) -> Path | None:
    """Return `source` if it is a file, else the YAML file in this folder that describes the data, if any."""
    files = [source] if source.is_file() else sorted([*source.glob("*.yaml"), *source.glob("*.yml")])
    files = [file for file in files if file.stem in ("data", "dataset")] or files
    if len(files) > 1:
        shown = ", ".join(file.name for file in files)
        raise InputError(f"{source} holds several YAML files ({shown}): name the one that describes the data")
    return files[0] if files else None


def _parse_names(names: object, yaml_file: Path) -> dict[int, str]:
    """Return class index -> name from a YAML list or mapping."""
    indexed = dict(enumerate(names)) if isinstance(names, list) else names
    if not isinstance(indexed, dict) or not indexed or not all(isinstance(index, int) for index in indexed):
        raise InputError(f"{yaml_file}: names must be a list, or lines such as '0: car', not {names!r}")
    result: dict[int, str] = {}
    for index, name in indexed.items():
        if not isinstance(name, str | int) or isinstance(name, bool):  # YAML reads yes and no as bool
            raise InputError(f"{yaml_file}: the name {name!r} in names is not text: put it in quotes")
        text = str(name).strip()
        if not text or text in result.values():
            raise InputError(f"{yaml_file}: the name {name!r} in names is {'a duplicate' if text else 'empty'}")
        result[index] = text
    return result


def _find_names_file(folder: Path) -> Path:
    """Return the file with the class names, anywhere in `folder`."""
    files = [file for file in files_below(folder, NAMES_SUFFIXES) if file.name in NAMES_FILES]
    if not files:
        raise InputError(f"{folder} has no data.yaml, classes.txt or obj.names: name the classes with --classes FILE")
    if any(read_class_names(file) != read_class_names(files[0]) for file in files):
        raise InputError(f"the class names in {' and '.join(map(str, files))} differ: choose one with --classes FILE")
    return files[0]


def _images_of_yaml(content: dict, yaml_file: Path, notes: list[str]) -> Iterator[tuple[Path, str, str | None]]:
    """Yield (path, place, set) of the images in the folders and list files that the YAML file names."""
    for set_name in ("train", "val", "test"):
        entries = content.get(set_name) or []
        for entry in map(str, entries if isinstance(entries, list) else [entries]):
            path = _locate(entry, str(content.get("path") or ""), yaml_file)
            missing = f"{yaml_file}: {entry}, the folder of the set {set_name}, does not exist"
            if path is None and set_name == "test":  # exporters write this line with or without a test set
                notes.append(f"{missing}: left out")
            elif path is None:
                raise InputError(f"{missing}: correct it")
            elif path.is_dir():
                yield from ((file, str(file), set_name) for file in files_below(path))
            else:
                for line, text in enumerate(read_lines(path), 1):
                    if text:
                        yield Path(os.path.normpath(path.parent / text)), f"{path}, line {line}", set_name


def _locate(entry: str, data_path: str, yaml_file: Path) -> Path | None:
    """Return the place of `entry`: below the YAML file's `path` or next to the file, with or without leading `../`."""
    below = re.sub(r"^(\.\./)+", "", entry)
    folder = yaml_file.parent
    candidates = (base / text for base in (folder / data_path, folder) for text in (entry, below))
    return next((Path(os.path.normpath(path)) for path in candidates if os.path.exists(path)), None)


def _images_folder(path: Path) -> Path | None:
    return next((parent for parent in path.parents if parent.name == "images"), None)


def _label_file(image_path: Path) -> Path | None:
    """Return the label file of an image, or None if there is none."""
    candidates = [image_path.with_suffix(".txt")]
    if folder := _images_folder(image_path):
        candidates.insert(0, folder.with_name("labels") / candidates[0].relative_to(folder))
    return next(filter(os.path.isfile, candidates), None)


def _read_image(
    path: Path, place: str, set_name: str | None, label_file: Path | None, names: dict[int, str]
) -> LabeledImage:
    lines: list[str] = []
    faults: list[Fault] = []
    if label_file:
        place = f"{label_file}, line 1"
        try:
            lines = read_lines(label_file)
        except InputError as error:
            faults.append(Fault(str(label_file), "an unreadable file", str(error)))
    places = [f"{label_file}, line {line}" for line in range(1, len(lines) + 1)]
    boxes = [call_or_record(faults, _read_line, place, text, names) for place, text in zip(places, lines) if text]
    return LabeledImage(path, place, set_name, None, [*filter(None, boxes)], faults, normalized=True)


def _read_line(place: str, text: str, names: dict[int, str]) -> LabeledBox:
    class_index, *values = (finite_number(value, place) for value in text.split())
    if len(values) != 4 and (len(values) < 6 or len(values) % 2):
        problem = "a line with neither 5 values (class, center x and y, width, height) nor a class and a polygon"
        raise Fault(place, problem, f"{1 + len(values)} values")
    if class_index not in names:
        raise Fault(place, "a class index without a class name", f"{class_index:g}, with {len(names)} names")
    for value in values:
        if not -FRACTION_TOLERANCE <= value <= 1 + FRACTION_TOLERANCE:
            problem = "a value outside 0 to 1: YOLO's coordinates are fractions of the image's sides"
            raise Fault(place, problem, f"{value:g}")
    if len(values) == 4:
        cx, cy, width, height = values
        xyxy = (cx - width / 2, cy - height / 2, cx + width / 2, cy + height / 2)
    else:
        xyxy = (min(values[::2]), min(values[1::2]), max(values[::2]), max(values[1::2]))
    return LabeledBox(names[int(class_index)], xyxy, place)


def _labels_without_image(image_paths: list[Path]) -> list[LabeledImage]:
    """Return an image with a fault for each file in a `labels` folder without a counterpart in `images`."""
    faults = []
    for folder in sorted({folder for path in image_paths if (folder := _images_folder(path))}):
        labels = folder.with_name("labels")
        present = {path.relative_to(folder).with_suffix("") for path in files_below(folder)}
        for file in files_below(labels, {".txt"}):
            if file.name not in NAMES_FILES and file.relative_to(labels).with_suffix("") not in present:
                faults.append(Fault(f"{file}, line 1", MISSING_IMAGE))
    return [LabeledImage(None, fault.place, faults=[fault]) for fault in faults]
