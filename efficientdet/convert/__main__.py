"""Convert labels to a project: Pascal VOC's XML files, YOLO's text files, or CSV tables.

  python -m efficientdet.convert VOCdevkit/VOC2007 -p voc         # Annotations/*.xml, JPEGImages/, ImageSets/Main/
  python -m efficientdet.convert exported/ -p birds               # any folder of images and XML files
  python -m efficientdet.convert exported/data.yaml -p birds      # YOLO; or a folder with images/ and labels/
  python -m efficientdet.convert boxes.csv -p birds --images photos

It writes datasets/birds/{train,val}/, datasets/birds/annotations/instances_{train,val}.json in COCO's format, and
projects/birds.yml. Train, val and test are the data's own; if it has no val, --val_fraction of the training images
become it. Every image is opened and every box is checked before anything is written.
"""

import argparse
import re
import shutil
import sys
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from efficientdet.convert.csv_table import read_csv
from efficientdet.convert.labels import LabeledImage, Labels, check_images
from efficientdet.convert.reading import files_below, read_class_names
from efficientdet.convert.voc import DIFFICULT, read_voc
from efficientdet.convert.writing import link_image, split_into_sets, summary_table, write_project
from efficientdet.convert.yolo import NAMES_FILES, NAMES_SUFFIXES, read_yolo
from utils.cli import BOOLEAN, add_flags, default_workers, fraction, make_parser
from utils.errors import InputError, exit_on_input_error

LABEL_FORMATS = {"voc": "Pascal VOC", "yolo": "YOLO", "csv": "CSV"}
MAX_SHOWN = 20  # faults of a kind


def parse_args(args: Sequence[str] | None = None) -> argparse.Namespace:
    parser = make_parser(__doc__, prog="python -m efficientdet.convert")
    add = parser.add_argument
    flag = {**BOOLEAN, "default": False}
    add("sources", nargs="+", type=Path, metavar="SOURCE", help="folders, data.yaml or CSV files, merged into one")
    add("-p", "--project", required=True, metavar="NAME", help="name of the new project")
    add("--format", choices=LABEL_FORMATS, help="of the labels (default: guessed from the files, and printed)")
    add("--images", type=Path, metavar="FOLDER", help="where the images are, if not with the labels (VOC, CSV)")
    text = "class names, one per line: sets their order, allows no others (default: YOLO's own, else alphabetical)"
    add("--classes", type=Path, metavar="FILE", help=text)
    add("--val_fraction", type=fraction, default=0.1, help="size of val, if the data has none (default: 0.1)")
    add_flags(parser, seed={"help": "selects the images of that val (default: 0)"})
    add("--link", **flag, help="link the images instead of copying them, which saves disk space")
    add("--clip", **flag, help="clip boxes that reach beyond their image; otherwise these are faults")
    add("--skip_faulty", **flag, help="report images with faults and leave them out with all their boxes")
    add("--zero_based", **flag, help="VOC: coordinates start at 0 and xmax is the edge, as some tools write them")
    text = "VOC's difficult objects: ignored in training and evaluation (iscrowd), kept as any other, or dropped"
    add("--difficult", choices=DIFFICULT, help=f"{text} (default: {DIFFICULT[0]})")
    add_flags(parser, "data_path")
    return parser.parse_args(args)


def main(args: argparse.Namespace) -> None:
    if not re.fullmatch(r"\w[\w.-]*", args.project) or args.project.endswith((".yml", ".yaml")):
        raise InputError(f"-p {args.project} must name a folder and a YAML file: use letters, digits, '_' and '-'")
    folder, project_file = args.data_path / args.project, Path("projects", f"{args.project}.yml")
    for path in (folder, project_file):
        if path.exists():
            raise InputError(f"{path} already exists: move or remove it, or choose another name with -p")

    labels = read_labels(args)
    images = without_faulty(check_images(labels, args.clip, default_workers()), args.skip_faulty)
    class_names = labels.class_names or sorted({box.class_name for image in images for box in image.boxes})
    if not class_names:
        raise InputError("the labels hold no object, hence nothing to learn: check what SOURCE names")
    if ignored := sum(box.is_crowd for image in images for box in image.boxes):
        print(f"{ignored} objects are difficult: ignored in training and evaluation (--difficult)")
    sets = split_into_sets(images, args.val_fraction, args.seed)
    write_project(folder, project_file, sets, class_names, link_image if args.link else shutil.copyfile)

    data_flag = "" if args.data_path == Path("datasets") else f" --data_path {args.data_path}"
    print(f"\n{summary_table(sets, class_names)}\n\n-> {folder}/, {project_file}\n\nNext:")
    print(f"  python -m efficientdet.check -p {args.project}{data_flag}")
    print(
        f"  python train.py -p {args.project}{data_flag} -c 0 --recipe quick --lr 2e-3 -w weights/efficientdet-d0.pth"
    )


def read_labels(args: argparse.Namespace) -> Labels:
    """Read all sources and merge them. Prints each source's format and what was left out or assumed."""
    class_names = read_class_names(args.classes) if args.classes else None
    images: list[LabeledImage] = []
    merged_names: dict[str, None] = dict.fromkeys(class_names or [])  # an ordered set
    for source in args.sources:
        label_format = args.format or guess_format(source)
        shown = LABEL_FORMATS[label_format]
        print(f"{source}: {shown}{'' if args.format else ' (guessed; override with --format)'}")
        if label_format != "voc" and (args.zero_based or args.difficult):
            raise InputError(f"--zero_based and --difficult are for Pascal VOC, but {source} is {shown}")
        if label_format == "yolo" and args.images:
            raise InputError(f"--images is not for YOLO: SOURCE {source} must be a data.yaml or hold the images, too")
        match label_format:
            case "voc":
                labels = read_voc(source, args.images, args.zero_based, args.difficult or DIFFICULT[0])
            case "yolo":
                labels = read_yolo(source, class_names)
            case "csv":
                labels = read_csv(source, args.images)
        images += labels.images
        merged_names.update(dict.fromkeys(labels.class_names or []))
        for note in labels.notes:
            print(note)
    return Labels(images, list(merged_names) or None)


def guess_format(source: Path) -> str:
    """Return the key of `LABEL_FORMATS` that the files of `source` suggest. Raises InputError unless there is one."""
    if not source.exists():
        raise InputError(f"{source} does not exist: name the folder or the file with the labels")
    known = {".xml", ".yaml", ".yml", ".csv", *NAMES_SUFFIXES}
    files = files_below(source, known) if source.is_dir() else [source]
    suffixes = {path.suffix.lower() for path in files}
    is_described = suffixes & {".yaml", ".yml"} or {path.name for path in files} & NAMES_FILES
    has_labels = any(path.suffix == ".txt" and "labels" in path.relative_to(source).parts for path in files)
    holds = {
        "voc": ".xml" in suffixes and source.is_dir(),
        "yolo": is_described or has_labels,
        "csv": ".csv" in suffixes,
    }
    found = [label_format for label_format, is_held in holds.items() if is_held]
    if len(found) != 1:
        shown = " and ".join(LABEL_FORMATS[key] for key in found) or "no labels of a known format"
        formats = ",".join(LABEL_FORMATS)
        raise InputError(f"{source} seems to hold {shown}: name the file, or pass --format {{{formats}}}")
    return found[0]


def without_faulty(images: list[LabeledImage], skip_faulty: bool) -> list[LabeledImage]:
    """Print all faults to stderr and return the other images. Raises InputError for faults unless `skip_faulty`."""
    by_problem = defaultdict(list)
    for image in images:
        for fault in image.faults:
            by_problem[fault.problem].append(fault)
    if not by_problem:
        return images
    for problem, faults in sorted(by_problem.items(), key=lambda item: -len(item[1])):
        print(f"\n{len(faults)} x {problem}", *faults[:MAX_SHOWN], sep="\n  ", file=sys.stderr)
        if len(faults) > MAX_SHOWN:
            print(f"  and {len(faults) - MAX_SHOWN} more", file=sys.stderr)
    print(file=sys.stderr)
    faulty_paths = {image.path for image in images if image.faults}  # an image may have labels in two sets
    good = [image for image in images if image.path not in faulty_paths]
    num_faults = sum(map(len, by_problem.values()))
    shown = f"{num_faults} faults in {len(images) - len(good)} of {len(images)} images"
    if not skip_faulty:
        raise InputError(f"{shown}, listed above; nothing was written: correct them, or leave these out: --skip_faulty")
    print(f"{shown}: these images are left out (--skip_faulty)")
    return good


if __name__ == "__main__":
    with exit_on_input_error():
        main(parse_args())
