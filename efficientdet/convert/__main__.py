"""Make a project of data that is labelled in Pascal VOC's XML files, YOLO's text files, or CSV tables.

  python -m efficientdet.convert VOCdevkit/VOC2007 -p voc         # Annotations/*.xml, JPEGImages/, ImageSets/Main/
  python -m efficientdet.convert exported/ -p birds               # any folder of images and XML files
  python -m efficientdet.convert exported/data.yaml -p birds      # YOLO; a folder with images/ and labels/ does, too
  python -m efficientdet.convert boxes.csv -p birds --images photos

It writes datasets/birds/{train,val}/, datasets/birds/annotations/instances_{train,val}.json in COCO's format, and
projects/birds.yml. The division into train, val and test is the data's own; without a val, --val_fraction of the
images for training are taken for it. Every image is opened, and everything is checked, before anything is written.
"""

import argparse
import re
import shutil
import sys
from collections import defaultdict
from pathlib import Path

from efficientdet.convert.csv_table import read_csv
from efficientdet.convert.labels import Fault, LabelledImage, Labels, check_images, files_below, read_class_names
from efficientdet.convert.voc import DIFFICULT, read_voc
from efficientdet.convert.writing import divide, link, summary, write_project
from efficientdet.convert.yolo import NAMES_FILES, read_yolo
from utils.cli import default_workers, fraction, non_negative_int
from utils.errors import InputError, exit_on_input_error

FORMATS = {"voc": "Pascal VOC", "yolo": "YOLO", "csv": "CSV"}


MOST_SHOWN = 20  # faults of a kind


def guess_format(source: Path) -> str:
    """The key of `FORMATS` that the files of `source` speak for. InputError when they speak for none or for several."""
    if not source.exists():
        raise InputError(f"there is no {source}: name the folder or the file with the labels")
    known = {".xml", ".yaml", ".yml", ".csv", *(Path(name).suffix for name in NAMES_FILES)}
    files = files_below(source, known) if source.is_dir() else [source]
    suffixes = {path.suffix.lower() for path in files}
    in_labels = (path.suffix == ".txt" and "labels" in path.relative_to(source).parts for path in files)
    holds = {
        "voc": ".xml" in suffixes and source.is_dir(),
        "yolo": bool({".yaml", ".yml"} & suffixes or {path.name for path in files} & set(NAMES_FILES))
        or any(in_labels),
        "csv": ".csv" in suffixes,
    }
    found = [label_format for label_format, is_held in holds.items() if is_held]
    if len(found) != 1:
        held = " and ".join(FORMATS[label_format] for label_format in found) or "no labels of a format that is known"
        raise InputError(f"{source} seems to hold {held}: name the file, or pass --format {{{','.join(FORMATS)}}}")
    return found[0]


def read_labels(args: argparse.Namespace) -> Labels:
    """The labels of all sources together; what was decided on the way is printed."""
    class_names = read_class_names(args.classes) if args.classes else None
    pictures: list[LabelledImage] = []
    named: dict[str, None] = dict.fromkeys(class_names or [])  # an ordered set
    for source in args.sources:
        label_format = args.format or guess_format(source)
        print(f"{source}: {FORMATS[label_format]}{'' if args.format else ' (guessed; --format names another)'}")
        if label_format != "voc" and (args.zero_based or args.difficult):
            raise InputError(f"--zero_based and --difficult are for Pascal VOC: {source} is {FORMATS[label_format]}")
        if label_format == "yolo" and args.images:
            raise InputError(f"--images is not for YOLO: {source} is a data.yaml or the folder that holds all")
        match label_format:
            case "voc":
                labels = read_voc(source, args.images, args.zero_based, args.difficult or DIFFICULT[0])
            case "yolo":
                labels = read_yolo(source, class_names)
            case "csv":
                labels = read_csv(source, args.images)
        pictures += labels.pictures
        named.update(dict.fromkeys(labels.class_names or []))
        for note in labels.notes:
            print(note)
    return Labels(pictures, list(named) or None)


def tell_faults(faults: list[Fault]) -> None:
    """Print the faults on stderr, by kind, the most frequent first."""
    by_problem = defaultdict(list)
    for fault in faults:
        by_problem[fault.problem].append(fault)
    for problem, alike in sorted(by_problem.items(), key=lambda item: -len(item[1])):
        print(f"\n{len(alike)} x {problem}", file=sys.stderr)
        for fault in alike[:MOST_SHOWN]:
            print(f"  {fault}", file=sys.stderr)
        if len(alike) > MOST_SHOWN:
            print(f"  and {len(alike) - MOST_SHOWN} more", file=sys.stderr)
    print(file=sys.stderr)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("sources", nargs="+", type=Path, metavar="SOURCE", help="folders, data.yaml or CSV files; several become one")
    add("-p", "--project", required=True, metavar="NAME", help="name of the project to make")
    add("--format", choices=FORMATS, help="of the labels (default: what the files look like; it says so)")
    add("--images", type=Path, metavar="FOLDER", help="where the images are, when not with the labels (VOC, CSV)")
    add(
        "--classes",
        type=Path,
        metavar="FILE",
        help="class names, one a line: their order, and no others are taken (default: YOLO's own, else alphabetical)",
    )
    add("--val_fraction", type=fraction, default=0.1, help="for validation, if the data has no val (default: 0.1)")
    add("--seed", type=non_negative_int, default=0, help="another seed takes other images for it (default: 0)")
    add("--link", action="store_true", help="link the images instead of copying them, which saves the space")
    add("--clip", action="store_true", help="cut boxes that reach beyond their image; else these are faults")
    add("--skip_faulty", action="store_true", help="list images with a fault, and leave them out with all their boxes")
    add(
        "--zero_based",
        action="store_true",
        help="VOC: coordinates begin at 0 and xmax is the edge, as some tools write them",
    )
    add(
        "--difficult",
        choices=DIFFICULT,
        help="VOC: objects marked so are ignored by evaluation and not trained on (iscrowd), kept as all others, "
        f"or dropped (default: {DIFFICULT[0]})",
    )
    add("--data_path", type=Path, default=Path("datasets"), help="folder of the projects' data (default: datasets/)")
    return parser.parse_args()


def main(args: argparse.Namespace) -> None:
    folder, project_file = args.data_path / args.project, Path("projects", f"{args.project}.yml")
    if not re.fullmatch(r"\w[\w.-]*", args.project) or args.project.endswith((".yml", ".yaml")):
        raise InputError(f"-p {args.project} is to name a folder and a YAML file: use letters, digits, '_' and '-'")
    for path in (folder, project_file):
        if path.exists():
            raise InputError(f"{path} exists already: move or remove it, or choose another name with -p")

    labels = read_labels(args)
    pictures = check_images(labels, args.clip, default_workers())
    faults = [fault for picture in pictures for fault in picture.faults]
    if faults:
        tell_faults(faults)
        faulty_paths = {picture.path for picture in pictures if picture.faults}  # an image may have labels in two sets
        whole = [picture for picture in pictures if picture.path not in faulty_paths]
        faulty = f"{len(faults)} faults in {len(pictures) - len(whole)} of {len(pictures)} images"
        if not args.skip_faulty:
            raise InputError(
                f"{faulty}, listed above: nothing was written; correct them, or pass --skip_faulty to leave these out"
            )
        print(f"{faulty}: these images are left out (--skip_faulty)")
        pictures = whole

    class_names = labels.class_names or sorted({box.class_name for picture in pictures for box in picture.boxes})
    if not class_names:
        raise InputError("the labels hold no object: there is nothing to learn")
    if ignored := sum(box.is_crowd for picture in pictures for box in picture.boxes):
        print(f"{ignored} objects are difficult: not trained on, and ignored by evaluation (--difficult)")
    sets = divide(pictures, args.val_fraction, args.seed)
    write_project(folder, project_file, sets, class_names, link if args.link else shutil.copyfile)

    elsewhere = "" if args.data_path == Path("datasets") else f" --data_path {args.data_path}"
    print(f"\n{summary(sets, class_names)}\n\n-> {folder}/, {project_file}\n\nNext:")
    print(f"  python -m efficientdet.check -p {args.project}{elsewhere}")
    print(
        f"  python train.py -p {args.project}{elsewhere} -c 0 --batch_size 8 --lr 1e-5 --num_epochs 10 "
        "-w weights/efficientdet-d0.pth"
    )


if __name__ == "__main__":
    with exit_on_input_error():
        main(parse_args())
