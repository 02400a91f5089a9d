"""CSV: a row for each box."""

import csv
import itertools
import os
import re
from collections.abc import Iterator
from pathlib import Path

from efficientdet.convert.labels import (
    SET_NAMES,
    Fault,
    LabelledBox,
    LabelledImage,
    Labels,
    attempt,
    files_below,
    finite_number,
    set_named_in,
)
from utils.errors import InputError

# What is in a column -> what headers call it, in any case, with blanks for the underscores or without.
COLUMNS = {
    "picture": ("filename", "file_name", "file", "filepath", "path", "image", "image_path", "image_name", "img"),
    "class": ("class", "class_name", "label", "name", "category"),
    "x1": ("xmin", "x_min", "x1", "left"),
    "y1": ("ymin", "y_min", "y1", "top"),
    "x2": ("xmax", "x_max", "x2", "right"),
    "y2": ("ymax", "y_max", "y2", "bottom"),
    "x": ("x",),
    "y": ("y",),
    "width": ("width", "w"),  # of the image beside x1, y1, x2 and y2, else of the box
    "height": ("height", "h"),
    "image width": ("image_width", "img_width"),
    "image height": ("image_height", "img_height"),
    "set": ("split", "set", "subset"),
}
HEADERLESS = ("picture", "x1", "y1", "x2", "y2", "class")
CORNERS, SIDES = ("x1", "y1", "x2", "y2"), ("x", "y", "width", "height")


def read_csv(source: Path, images: Path | None = None) -> Labels:
    """The labels of `source`: a CSV file, or all of those in a folder.

    A file has a header with names of `COLUMNS`, or is without one and has the columns `path,x1,y1,x2,y2,class`. A row
    without a box and a class stands for an image without objects. Coordinates are pixels from the image's left and
    upper edge. The set is in a column, or else in the name of the file or a folder.

    Args:
        images: the folder that the images' paths begin in, when it is not that of the CSV file.

    Raises InputError when a file is not such a table. What is wrong with a row is among its image's faults.
    """
    files = files_below(source, {".csv"}) if source.is_dir() else [source]
    if not files:
        raise InputError(f"there are no CSV files in {source}: name the folder that holds them")
    pictures: dict[tuple[str | None, Path | None], LabelledImage] = {}
    for file in files:
        words = re.split(r"[\W_]+", file.stem.lower())
        set_name = next((SET_NAMES[word] for word in words if word in SET_NAMES), None)
        if source.is_dir():
            set_name = set_name or set_named_in(file, source)
        for line, columns, cells in _rows(file):
            _add_row(pictures, file, line, columns, cells, images or file.parent, set_name)
    root = images or (source if source.is_dir() else source.parent)
    listed = {os.path.abspath(picture.path) for picture in pictures.values() if picture.path}
    unlisted = sum(os.path.abspath(path) not in listed for path in files_below(root))
    notes = [f"{unlisted} images of {root} are in no row: they are left out"] if unlisted else []
    return Labels(list(pictures.values()), notes=notes)


def _rows(file: Path) -> Iterator[tuple[int, list[str], list[str]]]:
    """(line, what is in the columns, cells) of every row that is not empty."""
    try:
        with open(file, encoding="utf-8-sig", newline="") as lines:
            delimiter = max(",;\t", key=lines.readline().count)
            lines.seek(0)
            rows = csv.reader(lines, delimiter=delimiter, strict=True)
            first = next(rows, [])
            columns, has_header = _columns(file, first)
            for cells in rows if has_header else itertools.chain([first], rows):
                if any(cells):
                    yield rows.line_num, columns, [cell.strip() for cell in cells]
    except csv.Error as error:
        raise InputError(f"{file}, line {rows.line_num}: this is not valid CSV: {error}") from error
    except OSError as error:
        raise InputError(f"cannot read {file}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"cannot read {file}: it is not UTF-8 text; save it as such") from error


def _columns(file: Path, first: list[str]) -> tuple[list[str], bool]:
    """What is in the columns of the table whose first row this is, and whether that row is a header."""
    names = [re.sub(r"[\s_-]+", "_", cell.strip().lower()) for cell in first]
    columns = [next((key for key, known in COLUMNS.items() if name in known), "") for name in names]
    if "picture" not in columns:
        if len(first) == len(HEADERLESS) and not any(re.search("[^-+.0-9e]", cell.strip()) for cell in first[1:5]):
            return list(HEADERLESS), False
        raise InputError(
            f"{file}, line 1: this is neither a header with a column of file names ({', '.join(COLUMNS['picture'])}) "
            "nor a row path,x1,y1,x2,y2,class: name the CSV files that hold boxes, or add a header"
        )
    if set(CORNERS) <= set(columns):
        columns = [f"image {column}" if column in ("width", "height") else column for column in columns]
    elif not set(SIDES) <= set(columns):
        raise InputError(f"{file}, line 1: the header has neither xmin, ymin, xmax, ymax nor x, y, width, height")
    if "class" not in columns:
        raise InputError(f"{file}, line 1: the header has no column of classes ({', '.join(COLUMNS['class'])})")
    for key in set(columns) - {""}:
        if columns.count(key) > 1:
            both = " and ".join(cell for cell, column in zip(first, columns) if column == key)
            raise InputError(f"{file}, line 1: the columns {both} both hold the {key}: rename the one to leave out")
    return columns, True


def _add_row(
    pictures: dict[tuple[str | None, Path | None], LabelledImage],
    file: Path,
    line: int,
    columns: list[str],
    cells: list[str],
    images: Path,
    set_name: str | None,
) -> None:
    faults: list[Fault] = []
    row = dict(zip(columns, cells))
    file_name = row.get("picture", "").replace("\\", "/")
    path = Path(os.path.normpath(images / file_name)) if file_name else None
    own_set, size, box = attempt(faults, _read_row, file, line, columns, cells) or (None, None, None)
    key = (own_set or set_name, path)
    picture = pictures.setdefault(key, LabelledImage(path, file, line, key[0], size))
    if size and picture.size and size != picture.size:
        faults.append(Fault(file, line, "a row with another size of the image than its first row", file_name))
    picture.faults.extend(faults)
    if box:
        picture.boxes.append(box)


def _read_row(
    file: Path, line: int, columns: list[str], cells: list[str]
) -> tuple[str | None, tuple[int, int] | None, LabelledBox | None]:
    """The set that the row names, the (height, width) of the image, and the box, each None where it says nothing."""
    row = dict(zip(columns, cells))
    if len(cells) < len(columns) or any(cells[len(columns) :]):
        problem = "a row with another number of columns than the first row"
        raise Fault(file, line, problem, f"{len(cells)} instead of {len(columns)}")
    if not row["picture"]:
        raise Fault(file, line, "a row without the name of an image")
    set_name = row.get("set", "")
    if set_name and set_name.lower() not in SET_NAMES:
        raise Fault(file, line, "a set that is none of train, val and test", repr(set_name))
    sides = [row[key] for key in ("image height", "image width") if row.get(key)]
    height_width = [int(finite_number(text, file, line)) for text in sides]
    size = (height_width[0], height_width[1]) if len(height_width) == 2 and all(height_width) else None
    return SET_NAMES.get(set_name.lower()), size, _read_box(file, line, row)


def _read_box(file: Path, line: int, row: dict[str, str]) -> LabelledBox | None:
    has_corners = row.keys() >= set(CORNERS)
    texts = [row[key] for key in (CORNERS if has_corners else SIDES)]
    if not any(texts) and not row["class"]:
        return None
    if not row["class"]:
        raise Fault(file, line, "an object without a class")
    x1, y1, *rest = (finite_number(text, file, line) for text in texts)
    x2, y2 = rest if has_corners else (x1 + rest[0], y1 + rest[1])
    return LabelledBox(row["class"], (x1, y1, x2, y2), line)
