"""Read Pascal VOC: an XML file for each image."""

import os
from pathlib import Path, PureWindowsPath
from xml.etree.ElementTree import Element, TreeBuilder
from xml.parsers import expat

from tqdm import tqdm

from efficientdet.convert.labels import (
    MISSING_IMAGE,
    SET_NAMES,
    Fault,
    LabelledBox,
    LabelledImage,
    Labels,
    call_or_record,
    files_below,
    finite_number,
    read_lines,
    set_named_in,
)
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
    images: list[LabelledImage] = []
    notes: list[str] = []
    for root in sorted(voc_folders) or [source]:
        xml_files = files_below(root, {".xml"})
        if not xml_files:
            raise InputError(f"no XML files in {root}: name the folder that holds them")
        if listed := _read_set_lists(root):
            used, absent = listed
            images += absent
            if unlisted := len(set(xml_files) - {xml_file for xml_file, _ in used}):
                notes.append(f"{unlisted} XML files of {root} are in no list of ImageSets/Main: left out")
        else:
            used = [(xml_file, set_named_in(xml_file, source)) for xml_file in xml_files]
        inner = root / "JPEGImages"
        image_paths = files_below(images_folder or (inner if inner.is_dir() else root))
        by_name = _by_name(image_paths)
        for xml_file, set_name in tqdm(used, desc=f"reading {root.name}", unit="file", dynamic_ncols=True):
            images.append(_read_annotation(xml_file, set_name, by_name, zero_based, difficult))
        if unused := len(set(image_paths) - {image.path for image in images}):
            notes.append(f"{unused} images of {root} have no XML file in use: left out")
    return Labels(images, notes=notes)


def _read_set_lists(root: Path) -> tuple[list[tuple[Path, str | None]], list[LabelledImage]] | None:
    """Return the XML files that ImageSets/Main lists, with their sets, and a faulty image for each that is missing.

    The list trainval, whose images belong to no set, counts only if there is neither train nor val. None without lists.
    """
    folder = root / "ImageSets" / "Main"
    names = [name for name in ("train", "val", "test", "trainval") if (folder / f"{name}.txt").is_file()]
    if "train" in names or "val" in names:
        names = [name for name in names if name != "trainval"]
    present, absent = [], []
    for name in names:
        list_file, set_name = folder / f"{name}.txt", SET_NAMES.get(name)
        for line, text in enumerate(read_lines(list_file), 1):
            if not text:
                continue
            # Names may contain blanks; lists of one class append 1 or -1.
            candidates = [root / "Annotations" / f"{stem}.xml" for stem in (text, text.split()[0])]
            xml_file = next(filter(os.path.isfile, candidates), None)
            if xml_file:
                present.append((xml_file, set_name))
            else:
                fault = Fault(list_file, line, "a listed image without an XML file", str(candidates[0]))
                absent.append(LabelledImage(None, list_file, line, set_name, faults=[fault]))
    return (present, absent) if names else None


def _by_name(paths: list[Path]) -> dict[str, list[Path]]:
    """Index images by file name, with and without suffix."""
    found: dict[str, list[Path]] = {}
    for path in paths:
        for name in {path.name, path.stem}:
            found.setdefault(name, []).append(path)
    return found


def _read_annotation(
    xml_file: Path, set_name: str | None, by_name: dict[str, list[Path]], zero_based: bool, difficult: str
) -> LabelledImage:
    faults: list[Fault] = []
    root = call_or_record(faults, _parse, xml_file)
    if root is None:
        return LabelledImage(None, xml_file, faults[0].line, set_name, faults=faults)
    boxes = []
    for element in root.iterfind("object"):
        is_difficult = element.findtext("difficult", "").strip() == "1"
        if not (is_difficult and difficult == "drop"):
            is_crowd = is_difficult and difficult == "ignore"
            boxes.append(call_or_record(faults, _read_object, xml_file, element, zero_based, is_crowd))
    return LabelledImage(
        path=call_or_record(faults, _find_image, xml_file, root, by_name),
        file=xml_file,
        line=_line(root),
        set_name=set_name,
        size=call_or_record(faults, _read_size, xml_file, root),
        boxes=[box for box in boxes if box],
        faults=faults,
    )


def _parse(path: Path) -> Element:
    """Return the root of an annotation file. Its elements have their line as their only attribute."""
    builder, parser = TreeBuilder(), expat.ParserCreate()

    def refuse(*declaration: object) -> None:
        # A document type can declare entities that fetch files or grow without bound.
        raise Fault(path, parser.CurrentLineNumber, "an XML file with a document type: remove <!DOCTYPE ...>")

    parser.StartDoctypeDeclHandler = refuse
    parser.StartElementHandler = lambda tag, _: builder.start(tag, {"line": parser.CurrentLineNumber})
    parser.EndElementHandler = builder.end
    parser.CharacterDataHandler = builder.data
    try:
        parser.Parse(path.read_bytes(), True)
    except OSError as error:
        raise Fault(path, None, "an unreadable file", error.strerror or "") from error
    except expat.ExpatError as error:
        raise Fault(path, error.lineno, "invalid XML", expat.ErrorString(error.code)) from error
    except (ValueError, LookupError) as error:  # an encoding unknown to Python or expat
        raise Fault(path, parser.CurrentLineNumber, "invalid XML", str(error)) from error
    root = builder.close()
    if root.tag != "annotation":
        raise Fault(path, _line(root), "an XML file that is not a Pascal VOC annotation", f"<{root.tag}>")
    return root


def _find_image(xml_file: Path, root: Element, by_name: dict[str, list[Path]]) -> Path:
    """Return the image with the XML file's name, else the one in <filename>, often outdated by a renaming.

    Of several, the one in the nearest folder. Raises Fault if there is none, or no nearest one.
    """
    filename = PureWindowsPath(root.findtext("filename", "").strip())  # accepts both kinds of slashes

    def nearness(path: Path) -> tuple[int, bool, bool]:
        shared_folders = len(os.path.commonprefix([path.parts, xml_file.parts]))
        return shared_folders, path.parent.name == xml_file.parent.name, path.name == filename.name

    found = next((by_name[name] for name in (xml_file.stem, filename.name, filename.stem) if name in by_name), [])
    best = max(map(nearness, found), default=None)
    nearest = [path for path in found if nearness(path) == best]
    if len(nearest) == 1:
        return nearest[0]
    element = root.find("filename")
    line = _line(root if element is None else element)
    if nearest:
        problem = "a file that may belong to several images: give them different names"
        raise Fault(xml_file, line, problem, " or ".join(map(str, nearest)))
    names = [f"{xml_file.stem}.*", *([filename.name] if filename.name else [])]
    raise Fault(xml_file, line, MISSING_IMAGE, " or ".join(names))


def _read_size(xml_file: Path, root: Element) -> tuple[int, int] | None:
    """Return (height, width), or None if <size> is missing or holds zeros, as some tools write."""
    if (element := root.find("size")) is None:
        return None
    height, width = (int(_number(xml_file, element, tag)) for tag in ("height", "width"))
    return (height, width) if height and width else None


def _read_object(xml_file: Path, element: Element, zero_based: bool, is_crowd: bool) -> LabelledBox:
    line = _line(element)
    class_name = (_child(xml_file, element, "name").text or "").strip()
    if not class_name:
        raise Fault(xml_file, line, "an object without a class")
    box = _child(xml_file, element, "bndbox")
    x1, y1, x2, y2 = (_number(xml_file, box, tag) for tag in ("xmin", "ymin", "xmax", "ymax"))
    if not zero_based:
        if 0 <= x1 < 1 or 0 <= y1 < 1:
            problem = "a coordinate below 1, where Pascal VOC starts: pass --zero_based if yours start at 0"
            raise Fault(xml_file, _line(box), problem, f"xmin {x1:g}, ymin {y1:g}")
        x1, y1 = x1 - 1, y1 - 1
    return LabelledBox(class_name, (x1, y1, x2, y2), line, is_crowd)


def _line(element: Element) -> int:
    return int(element.attrib["line"])  # recorded by `_parse`


def _child(xml_file: Path, element: Element, tag: str) -> Element:
    if (child := element.find(tag)) is None:
        raise Fault(xml_file, _line(element), f"an element <{element.tag}> without <{tag}>")
    return child


def _number(xml_file: Path, element: Element, tag: str) -> float:
    child = _child(xml_file, element, tag)
    return finite_number((child.text or "").strip(), xml_file, _line(child))
