"""Read Pascal VOC: an XML file for each image."""

import os
from collections import defaultdict
from pathlib import Path, PureWindowsPath
from xml.etree.ElementTree import Element, TreeBuilder
from xml.parsers import expat

from tqdm import tqdm

from efficientdet.convert.labels import MISSING_IMAGE, Fault, LabeledBox, LabeledImage, Labels, call_or_record
from efficientdet.convert.reading import files_below, finite_number, read_lines, set_named_in
from utils.errors import InputError

DIFFICULT = ("ignore", "keep", "drop")  # what to do with objects marked as difficult


def read_voc(
    source: Path, images_folder: Path | None = None, zero_based: bool = False, difficult: str = "ignore"
) -> Labels:
    """Read the labels in the folder `source`.

    If it has Pascal VOC's layout (`Annotations/`, `JPEGImages/`, `ImageSets/Main/`), or is a folder of such folders,
    the lists in `ImageSets/Main` define the sets. Otherwise all its XML files are read, and folders named train, val
    or test define the sets.

    Args:
        images_folder: where the images are, if not in `source`.
        zero_based: coordinates are distances from the image's left and upper edge, as in most other formats, not
            Pascal VOC's pixel numbers, which count from 1 and include xmax and ymax in the box.
        difficult: keep difficult objects for evaluation to ignore ("ignore"), keep them as any other, or drop them.

    Raises InputError if there are no XML files. Faults of an XML file are recorded with its image.
    """
    voc_folders = [source] if (source / "Annotations").is_dir() else [p.parent for p in source.glob("*/Annotations")]
    images: list[LabeledImage] = []
    notes: list[str] = []
    for root in sorted(voc_folders) or [source]:
        xml_files = files_below(root, {".xml"})
        if not xml_files:
            raise InputError(f"no XML files in {root}: name the folder that holds them")
        used = _read_set_lists(root)
        if used is None:
            used = [(file, str(file), set_named_in(file, source)) for file in xml_files]
        elif unlisted := len(set(xml_files) - {file for file, _, _ in used}):
            notes.append(f"{unlisted} XML files of {root} are in no list of ImageSets/Main: left out")
        inner = root / "JPEGImages"
        image_paths = files_below(images_folder or (inner if inner.is_dir() else root))
        by_name = defaultdict(list)  # with and without suffix
        for path in image_paths:
            for name in {path.name, path.stem}:
                by_name[name].append(path)
        for file, place, set_name in tqdm(used, desc=f"reading {root.name}", unit="file", dynamic_ncols=True):
            images.append(_read_annotation(file, place, set_name, by_name, zero_based, difficult))
        if unused := len(set(image_paths) - {image.path for image in images}):
            notes.append(f"{unused} images of {root} have no XML file in use: left out")
    return Labels(images, notes=notes)


def _read_set_lists(root: Path) -> list[tuple[Path, str, str | None]] | None:
    """Return (XML file, place in the list, set) for each line of the lists in ImageSets/Main, or None without lists.

    The list trainval, whose images belong to no set, counts only if there is neither train nor val.
    """
    list_files = {name: root / "ImageSets" / "Main" / f"{name}.txt" for name in ("train", "val", "test", "trainval")}
    sets = {name: file for name, file in list_files.items() if file.is_file()}
    if "train" in sets or "val" in sets:
        sets.pop("trainval", None)
    listed = []
    for name, list_file in sets.items():
        set_name = None if name == "trainval" else name
        for line, text in enumerate(read_lines(list_file), 1):
            if text:
                # Names may contain blanks; lists of one class append 1 or -1.
                candidates = [root / "Annotations" / f"{stem}.xml" for stem in (text, text.split()[0])]
                xml_file = next(filter(os.path.isfile, candidates), candidates[0])
                listed.append((xml_file, f"{list_file}, line {line}", set_name))
    return listed if sets else None


def _read_annotation(
    xml_file: Path, place: str, set_name: str | None, by_name: dict[str, list[Path]], zero_based: bool, difficult: str
) -> LabeledImage:
    faults: list[Fault] = []
    root = call_or_record(faults, _parse, xml_file, place)
    if root is None:
        return LabeledImage(None, place, set_name, faults=faults)
    boxes = []
    for element in root.iterfind("object"):
        is_difficult = element.findtext("difficult", "").strip() == "1"
        if not (is_difficult and difficult == "drop"):
            is_crowd = is_difficult and difficult == "ignore"
            boxes.append(call_or_record(faults, _read_object, element, zero_based, is_crowd))
    path = call_or_record(faults, _find_image, xml_file, root, by_name)
    size = call_or_record(faults, _read_size, root)
    return LabeledImage(path, _place(root), set_name, size, [*filter(None, boxes)], faults)


def _parse(path: Path, listed_at: str) -> Element:
    """Return the root of an annotation file. Its elements have their place as their only attribute."""
    if not os.path.isfile(path):
        raise Fault(listed_at, "a listed image without an XML file", str(path))
    builder, parser = TreeBuilder(), expat.ParserCreate()

    def place() -> str:
        return f"{path}, line {parser.CurrentLineNumber}"

    def refuse(*declaration: object) -> None:
        # A document type can declare entities that fetch files or grow without bound.
        raise Fault(place(), "an XML file with a document type: remove <!DOCTYPE ...>")

    parser.StartDoctypeDeclHandler = refuse
    parser.StartElementHandler = lambda tag, _: builder.start(tag, {"place": place()})
    parser.EndElementHandler = builder.end
    parser.CharacterDataHandler = builder.data
    try:
        parser.Parse(path.read_bytes(), True)
    except OSError as error:
        raise Fault(str(path), "an unreadable file", error.strerror or "") from error
    except expat.ExpatError as error:
        raise Fault(f"{path}, line {error.lineno}", "invalid XML", expat.ErrorString(error.code)) from error
    except (ValueError, LookupError) as error:  # an encoding unknown to Python or expat
        raise Fault(place(), "invalid XML", str(error)) from error
    root = builder.close()
    if root.tag != "annotation":
        raise Fault(_place(root), "an XML file that is not a Pascal VOC annotation", f"<{root.tag}>")
    return root


def _find_image(xml_file: Path, root: Element, by_name: dict[str, list[Path]]) -> Path:
    """Return the image with the XML file's name, else the one in <filename>, often outdated by a renaming.

    Of several, the one in the nearest folder. Raises Fault if there is none, or no nearest one.
    """
    element = root.find("filename")
    filename = PureWindowsPath(root.findtext("filename", "").strip())  # accepts both kinds of slashes

    def nearness(path: Path) -> tuple[int, bool, bool]:
        shared_folders = len(os.path.commonprefix([path.parts, xml_file.parts]))
        return shared_folders, path.parent.name == xml_file.parent.name, path.name == filename.name

    found = next((by_name[name] for name in (xml_file.stem, filename.name, filename.stem) if name in by_name), [])
    best = max(map(nearness, found), default=None)
    nearest = [path for path in found if nearness(path) == best]
    if len(nearest) == 1:
        return nearest[0]
    place = _place(root if element is None else element)
    if nearest:
        problem = "a file that may belong to several images: give them different names"
        raise Fault(place, problem, " or ".join(map(str, nearest)))
    raise Fault(place, MISSING_IMAGE, " or ".join(filter(None, (f"{xml_file.stem}.*", filename.name))))


def _read_size(root: Element) -> tuple[int, int] | None:
    """Return (height, width), or None if <size> is missing or holds zeros, as some tools write."""
    if (element := root.find("size")) is None:
        return None
    height, width = (int(_number(element, tag)) for tag in ("height", "width"))
    return (height, width) if height and width else None


def _read_object(element: Element, zero_based: bool, is_crowd: bool) -> LabeledBox:
    class_name = (_child(element, "name").text or "").strip()
    if not class_name:
        raise Fault(_place(element), "an object without a class")
    box = _child(element, "bndbox")
    x1, y1, x2, y2 = (_number(box, tag) for tag in ("xmin", "ymin", "xmax", "ymax"))
    if not zero_based:
        if 0 <= x1 < 1 or 0 <= y1 < 1:
            problem = "a coordinate below 1, where Pascal VOC starts: pass --zero_based if yours start at 0"
            raise Fault(_place(box), problem, f"xmin {x1:g}, ymin {y1:g}")
        x1, y1 = x1 - 1, y1 - 1
    return LabeledBox(class_name, (x1, y1, x2, y2), _place(element), is_crowd)


def _place(element: Element) -> str:
    return element.attrib["place"]  # recorded by `_parse`


def _child(element: Element, tag: str) -> Element:
    if (child := element.find(tag)) is None:
        raise Fault(_place(element), f"an element <{element.tag}> without <{tag}>")
    return child


def _number(element: Element, tag: str) -> float:
    child = _child(element, tag)
    return finite_number((child.text or "").strip(), _place(child))
