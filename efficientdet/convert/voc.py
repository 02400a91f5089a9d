"""Pascal VOC: an XML file for each image."""

import os
from pathlib import Path, PureWindowsPath
from xml.etree.ElementTree import Element, TreeBuilder
from xml.parsers import expat

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
    read_lines,
    set_named_in,
)
from utils.errors import InputError

DIFFICULT = ("ignore", "keep", "drop")  # what can become of the objects that are marked so


def read_voc(source: Path, images: Path | None = None, zero_based: bool = False, difficult: str = "ignore") -> Labels:
    """The labels in the folder `source`.

    With `Annotations/`, `JPEGImages/` and `ImageSets/Main/`, or as a folder of such folders, it has Pascal VOC's own
    layout, and the lists in `ImageSets/Main` name the sets. Else all XML files in it are taken, and folders that are
    called train, val or test name the sets.

    Args:
        images: the folder of the images, when it is not in `source`.
        zero_based: coordinates are distances from the image's left and upper edge, as in most other formats.
            Without it they are Pascal VOC's: numbers of pixels from 1 on, xmax and ymax being the last of the box.
        difficult: objects so marked are kept for evaluation to ignore, kept as any other, or dropped.

    Raises InputError when there are no XML files. What is wrong with one of them is among its image's faults.
    """
    own_layout = [source] if (source / "Annotations").is_dir() else [p.parent for p in source.glob("*/Annotations")]
    pictures: list[LabelledImage] = []
    notes: list[str] = []
    for root in sorted(own_layout) or [source]:
        xml_files = files_below(root, {".xml"})
        if not xml_files:
            raise InputError(f"there are no XML files in {root}: name the folder that holds them")
        lists = _set_lists(root)
        if lists:
            used, absent = _read_set_lists(lists, root / "Annotations")
            pictures += absent
            if unlisted := len(set(xml_files) - {xml_file for xml_file, _ in used}):
                notes.append(f"{unlisted} XML files of {root} are in no list of ImageSets/Main: they are left out")
        else:
            used = [(xml_file, set_named_in(xml_file, source)) for xml_file in xml_files]
        inner = root / "JPEGImages"
        found = files_below(images or (inner if inner.is_dir() else root))
        by_name = _by_name(found)
        for xml_file, set_name in tqdm(used, desc=f"reading {root.name}", unit="file", dynamic_ncols=True):
            pictures.append(_read_annotation(xml_file, set_name, by_name, zero_based, difficult))
        if unused := len(set(found) - {picture.path for picture in pictures}):
            notes.append(f"{unused} images of {root} have no XML file in use: they are left out")
    return Labels(pictures, notes=notes)


def _set_lists(root: Path) -> dict[Path, str | None]:
    """The files that list a set's images -> the set; None for trainval, which counts only where it is not divided."""
    folder = root / "ImageSets" / "Main"
    found: dict[Path, str | None] = {
        folder / f"{name}.txt": name for name in ("train", "val", "test") if (folder / f"{name}.txt").is_file()
    }
    if not {"train", "val"} & set(found.values()) and (folder / "trainval.txt").is_file():
        found[folder / "trainval.txt"] = None
    return found


def _read_set_lists(
    lists: dict[Path, str | None], annotations: Path
) -> tuple[list[tuple[Path, str | None]], list[LabelledImage]]:
    """The XML files that are listed, each with its set, and faults for those that do not exist."""
    present, absent = [], []
    for list_file, set_name in lists.items():
        for line, text in enumerate(read_lines(list_file), 1):
            if not text:
                continue
            # A name may hold blanks, and lists of one class have 1 or -1 behind it.
            files = [annotations / f"{name}.xml" for name in (text, text.split()[0])]
            xml_file = next(filter(os.path.isfile, files), files[0])
            if os.path.isfile(xml_file):
                present.append((xml_file, set_name))
            else:
                fault = Fault(list_file, line, "an image of the list without an XML file", str(xml_file))
                absent.append(LabelledImage(None, list_file, line, set_name, faults=[fault]))
    return present, absent


def _by_name(pictures: list[Path]) -> dict[str, list[Path]]:
    """File names, with suffix and without -> the images of that name."""
    found: dict[str, list[Path]] = {}
    for path in pictures:
        for name in {path.name, path.stem}:
            found.setdefault(name, []).append(path)
    return found


def _read_annotation(
    xml_file: Path, set_name: str | None, by_name: dict[str, list[Path]], zero_based: bool, difficult: str
) -> LabelledImage:
    faults: list[Fault] = []
    root = attempt(faults, _parse, xml_file)
    if root is None:
        return LabelledImage(None, xml_file, faults[0].line, set_name, faults=faults)
    boxes = []
    for element in root.iterfind("object"):
        is_difficult = element.findtext("difficult", "").strip() == "1"
        if not (is_difficult and difficult == "drop"):
            is_crowd = is_difficult and difficult == "ignore"
            boxes.append(attempt(faults, _read_object, xml_file, element, zero_based, is_crowd))
    return LabelledImage(
        path=attempt(faults, _find_image, xml_file, root, by_name),
        file=xml_file,
        line=_line(root),
        set_name=set_name,
        size=attempt(faults, _read_size, xml_file, root),
        boxes=[box for box in boxes if box],
        faults=faults,
    )


def _parse(path: Path) -> Element:
    """The root of an XML file; every element has its line as its only attribute. Fault when it is no annotation."""
    builder, parser = TreeBuilder(), expat.ParserCreate()

    def refuse(*declaration: object) -> None:
        # A document type can declare entities, which fetch files or grow without bound.
        raise Fault(path, parser.CurrentLineNumber, "an XML file with a document type: take out <!DOCTYPE ...>")

    parser.StartDoctypeDeclHandler = refuse
    parser.StartElementHandler = lambda tag, _: builder.start(tag, {"line": parser.CurrentLineNumber})
    parser.EndElementHandler = builder.end
    parser.CharacterDataHandler = builder.data
    try:
        parser.Parse(path.read_bytes(), True)
    except OSError as error:
        raise Fault(path, None, "a file that cannot be read", error.strerror or "") from error
    except expat.ExpatError as error:
        raise Fault(path, error.lineno, "a file that is not valid XML", expat.ErrorString(error.code)) from error
    except (ValueError, LookupError) as error:  # of encodings that Python or expat do not know
        raise Fault(path, parser.CurrentLineNumber, "a file that is not valid XML", str(error)) from error
    root = builder.close()
    if root.tag != "annotation":
        raise Fault(path, _line(root), "an XML file that is no Pascal VOC annotation", f"<{root.tag}>")
    return root


def _find_image(xml_file: Path, root: Element, by_name: dict[str, list[Path]]) -> Path:
    """The image of the XML file's own name; else the one in <filename>, which is often left from before a renaming.

    Of several, the one in the nearest folder. Fault when there is none, or no nearest.
    """
    told = PureWindowsPath(root.findtext("filename", "").strip())  # takes both kinds of slashes

    def nearness(path: Path) -> tuple[int, bool, bool]:
        shared_folders = len(os.path.commonprefix([path.parts, xml_file.parts]))
        return shared_folders, path.parent.name == xml_file.parent.name, path.name == told.name

    found = next((by_name[name] for name in (xml_file.stem, told.name, told.stem) if name in by_name), [])
    most = max(map(nearness, found), default=None)
    nearest = [path for path in found if nearness(path) == most]
    if len(nearest) == 1:
        return nearest[0]
    filename = root.find("filename")
    line = _line(root if filename is None else filename)
    if nearest:
        detail = " or ".join(map(str, nearest))
        raise Fault(xml_file, line, "a file that may belong to several images: give them different names", detail)
    names = dict.fromkeys((f"{xml_file.stem}.*", *filter(None, [told.name])))
    raise Fault(xml_file, line, MISSING_IMAGE, " or ".join(names))


def _read_size(xml_file: Path, root: Element) -> tuple[int, int] | None:
    """(height, width); None where <size> is missing, or 0 as some tools write."""
    element = root.find("size")
    if element is None:
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
            problem = "a coordinate below 1, where Pascal VOC begins: pass --zero_based if yours begin at 0"
            raise Fault(xml_file, _line(box), problem, f"xmin {x1:g}, ymin {y1:g}")
        x1, y1 = x1 - 1, y1 - 1
    return LabelledBox(class_name, (x1, y1, x2, y2), line, is_crowd)


def _line(element: Element) -> int:
    """Where in its file the element begins; `_parse` has noted it."""
    return int(element.attrib["line"])


def _child(xml_file: Path, element: Element, tag: str) -> Element:
    child = element.find(tag)
    if child is None:
        raise Fault(xml_file, _line(element), f"an element <{element.tag}> without <{tag}>")
    return child


def _number(xml_file: Path, element: Element, tag: str) -> float:
    child = _child(xml_file, element, tag)
    return finite_number((child.text or "").strip(), xml_file, _line(child))
