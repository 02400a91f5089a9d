"""Read CSV tables with a row for each box."""

import csv
import io
import itertools
import os
import re
from collections.abc import Iterator
from pathlib import Path

from efficientdet.convert.labels import Fault, LabeledBox, LabeledImage, Labels, call_or_record
from efficientdet.convert.reading import SET_NAMES, files_below, finite_number, read_text, set_named_in
from utils.errors import InputError

# Content of a column -> its names in headers, in any case; blanks and dashes count as underscores.
COLUMN_NAMES = {
    "image": ("filename", "file_name", "file", "filepath", "path", "image", "image_path", "image_name", "img"),
    "class": ("class", "class_name", "label", "name", "category"),
    "x1": ("xmin", "x_min", "x1", "left"),
    "y1": ("ymin", "y_min", "y1", "top"),
    "x2": ("xmax", "x_max", "x2", "right"),
    "y2": ("ymax", "y_max", "y2", "bottom"),
    "x": ("x",),
    "y": ("y",),
    "width": ("width", "w"),  # of the image if the table has x1, y1, x2 and y2, else of the box
    "height": ("height", "h"),
    "image width": ("image_width", "img_width"),
    "image height": ("image_height", "img_height"),
    "set": ("split", "set", "subset"),
}
HEADERLESS = ["image", "x1", "y1", "x2", "y2", "class"]
XYXY, XYWH = ("x1", "y1", "x2", "y2"), ("x", "y", "width", "height")


def read_csv(source: Path, images_folder: Path | None = None) -> Labels:
    """Read the labels in `source`, a CSV file or a folder of CSV files.

    The header names columns of `COLUMN_NAMES`; without a header the columns are `path,x1,y1,x2,y2,class`. A row with
    neither box nor class is an image without objects. Coordinates are pixels from the image's left and upper edge.
    The set is in a column, or else in the name of the file or of a folder. The images' paths start in `images_folder`,
    or else in the CSV file's folder.

    Raises InputError for a file that is not such a table. Faults of a row are recorded with its image.
    """
    root = source if source.is_dir() else source.parent
    files = files_below(source, {".csv"}) if source.is_dir() else [source]
    if not files:
        raise InputError(f"no CSV files in {source}: name the folder that holds them")
    images: dict[tuple[str | None, Path | None], LabeledImage] = {}
    for file in files:
        words = re.split(r"[\W_]+", file.stem.lower())
        named = next((SET_NAMES[word] for word in words if word in SET_NAMES), None) or set_named_in(file, root)
        for place, columns, cells in _rows(file):
            faults: list[Fault] = []
            parsed = call_or_record(faults, _parse_row, place, columns, cells)
            own_set, size, box = parsed or (None, None, None)
            file_name = dict(zip(columns, cells)).get("image", "").replace("\\", "/")
            path = Path(os.path.normpath((images_folder or file.parent) / file_name)) if file_name else None
            set_name = own_set or named
            image = images.setdefault((set_name, path), LabeledImage(path, place, set_name, size))
            if size and image.size and size != image.size:
                faults.append(Fault(place, "a row with another image size than the image's first row", str(path)))
            image.faults.extend(faults)
            image.boxes.extend([box] if box else [])
    listed = {os.path.abspath(image.path) for image in images.values() if image.path}
    root = images_folder or root
    unlisted = sum(os.path.abspath(path) not in listed for path in files_below(root))
    notes = [f"{unlisted} images of {root} are in no row: left out"] if unlisted else []
    return Labels(list(images.values()), notes=notes)


def _rows(file: Path) -> Iterator[tuple[str, list[str], list[str]]]:
    """Yield (place, content of the columns, cells) for every non-empty row."""
    text = read_text(file)
    delimiter = max(",;\t", key=text.partition("\n")[0].count)
    rows = csv.reader(io.StringIO(text), delimiter=delimiter, strict=True)
    try:
        first = next(rows, [])
        columns, has_header = _columns(f"{file}, line 1", first)
        for cells in rows if has_header else itertools.chain([first], rows):
            if any(cells):
                yield f"{file}, line {rows.line_num}", columns, [cell.strip() for cell in cells]
    except csv.Error as error:
        raise InputError(f"{file}, line {rows.line_num}: invalid CSV: {error}") from error


def _columns(place: str, first: list[str]) -> tuple[list[str], bool]:
    """Return the content of each column, given the table's first row, and whether that row is a header."""
    names = [re.sub(r"[\s_-]+", "_", cell.strip().lower()) for cell in first]
    columns = [next((key for key, known in COLUMN_NAMES.items() if name in known), "") for name in names]
    if "image" not in columns:
        if len(first) == len(HEADERLESS) and not any(re.search("[^-+.0-9e]", cell.strip()) for cell in first[1:5]):
            return HEADERLESS, False
        raise InputError(
            f"{place}: neither a header with a column of file names ({', '.join(COLUMN_NAMES['image'])}) nor a row "
            "path,x1,y1,x2,y2,class: name the CSV files that hold boxes, or add a header"
        )
    if set(XYXY) <= set(columns):
        columns = [f"image {column}" if column in ("width", "height") else column for column in columns]
    elif not set(XYWH) <= set(columns):
        raise InputError(f"{place}: the header has neither xmin, ymin, xmax, ymax nor x, y, width, height")
    if "class" not in columns:
        raise InputError(f"{place}: the header has no column of classes ({', '.join(COLUMN_NAMES['class'])})")
    for key in set(columns) - {""}:
        if columns.count(key) > 1:
            both = " and ".join(cell for cell, column in zip(first, columns) if column == key)
            raise InputError(f"{place}: the columns {both} both hold the {key}: rename the one to ignore")
    return columns, True


def _parse_row(
    place: str, columns: list[str], cells: list[str]
) -> tuple[str | None, tuple[int, int] | None, LabeledBox | None]:
    """Return a row's set, image size (height, width) and box, each None if unspecified."""
    row = dict(zip(columns, cells))
    if len(cells) < len(columns) or any(cells[len(columns) :]):
        problem = "a row with another number of columns than the first row"
        raise Fault(place, problem, f"{len(cells)} instead of {len(columns)}")
    if not row["image"]:
        raise Fault(place, "a row without the name of an image")
    set_name = row.get("set", "")
    if set_name and set_name.lower() not in SET_NAMES:
        raise Fault(place, "a set other than train, val and test", repr(set_name))
    sides = [int(finite_number(row[key], place)) for key in ("image height", "image width") if row.get(key)]
    size = (sides[0], sides[1]) if len(sides) == 2 and all(sides) else None
    is_xyxy = row.keys() >= set(XYXY)
    texts = [row[key] for key in (XYXY if is_xyxy else XYWH)]
    box = None
    if any(texts) or row["class"]:
        if not row["class"]:
            raise Fault(place, "an object without a class")
        x1, y1, *rest = (finite_number(text, place) for text in texts)
        x2, y2 = rest if is_xyxy else (x1 + rest[0], y1 + rest[1])
        box = LabeledBox(row["class"], (x1, y1, x2, y2), place)
    return SET_NAMES.get(set_name.lower()), size, box
