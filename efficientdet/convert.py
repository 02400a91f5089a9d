"""Make a project of data that is labelled in Pascal VOC's XML files, YOLO's text files, or CSV tables.

  python -m efficientdet.convert VOCdevkit/VOC2007 -p voc         # Annotations/*.xml, JPEGImages/, ImageSets/Main/
  python -m efficientdet.convert exported/ -p birds               # any folder of pictures and XML files
  python -m efficientdet.convert exported/data.yaml -p birds      # YOLO; a folder with images/ and labels/ does, too
  python -m efficientdet.convert boxes.csv -p birds --images photos

It writes datasets/birds/{train,val}/, datasets/birds/annotations/instances_{train,val}.json in COCO's format, and
projects/birds.yml. The division into train, val and test is the data's own; without a val, --val_fraction of the
pictures for training are taken for it. Every picture is opened, and everything is checked, before anything is written.
"""

import argparse
import json
import os
import re
import shutil
import sys
from collections import Counter, defaultdict
from collections.abc import Callable
from pathlib import Path

import torch
import yaml
from numpy.random import RandomState
from tqdm import tqdm

from efficientdet.labels import Fault, LabelledPicture, Labels, check_pictures, files_below, read_class_names
from efficientdet.labels_csv import read_csv
from efficientdet.labels_voc import DIFFICULT, read_voc
from efficientdet.labels_yolo import NAMES_FILES, read_yolo
from utils.cli import default_workers, fraction, non_negative_int
from utils.errors import InputError, exit_on_input_error
from utils.files import folder_written_whole, make_writable_folder, written_whole

FORMATS = {"voc": "Pascal VOC", "yolo": "YOLO", "csv": "CSV"}
MOST_SHOWN = 20  # faults of a kind

PROJECT_FILE = """\
{project_name}
train_set: train
val_set: val
num_gpus: {num_gpus}  # 0 is the CPU

# Of red, green and blue in [0, 1]. Leave them as they are while your pictures resemble photographs.
mean: [0.485, 0.456, 0.406]
std: [0.229, 0.224, 0.225]

# Anchor sizes within an octave, and (width, height) factors; those of the published weights.
anchors_scales: '[2 ** 0, 2 ** (1.0 / 3.0), 2 ** (2.0 / 3.0)]'
anchors_ratios: '[(1.0, 1.0), (1.4, 0.7), (0.7, 1.4)]'

# image_size: 640  # side of the input, pixels, if it is to differ from the coefficient's own

# The names of the annotation files' categories. Their order is the order of the network's outputs.
{obj_list}
"""


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
    pictures: list[LabelledPicture] = []
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


def divide(pictures: list[LabelledPicture], val_fraction: float, seed: int) -> dict[str, list[LabelledPicture]]:
    """Set name -> its pictures: `train`, `val`, and `test` where the labels know one.

    Pictures of no set are for training. When the labels know no val, `val_fraction` of those for training, chosen by
    `seed`, become it. InputError when a set remains empty.
    """
    sets: dict[str, list[LabelledPicture]] = {"train": [], "val": []}
    for picture in pictures:
        sets.setdefault(picture.set_name or "train", []).append(picture)
    if not sets["val"] and len(sets["train"]) > 1:
        number = min(max(round(val_fraction * len(sets["train"])), 1), len(sets["train"]) - 1)
        chosen = set(RandomState(seed).permutation(len(sets["train"]))[:number].tolist())
        sets["val"] = [picture for index, picture in enumerate(sets["train"]) if index in chosen]
        sets["train"] = [picture for index, picture in enumerate(sets["train"]) if index not in chosen]
        print(f"the data has no set for validation: {number} pictures of those for training are taken (--val_fraction)")
    for set_name in ("train", "val"):
        if not sets[set_name]:
            raise InputError(f"no picture is left for the set {set_name}: a project needs one at least; label more")
    return sets


def write_project(
    folder: Path,
    project_file: Path,
    sets: dict[str, list[LabelledPicture]],
    class_names: list[str],
    place: Callable[[Path, Path], object],
) -> None:
    """Write pictures and annotations into `folder`, and the YAML file. Both appear when both are complete.

    Args:
        place: called with a picture's path and the one it shall have, which does not exist yet.

    Raises InputError when they cannot be written.
    """
    make_writable_folder(folder.parent)
    with written_whole(project_file) as unfinished_file, folder_written_whole(folder) as unfinished:
        unfinished_file.write_text(project_text(folder.name, class_names), encoding="utf-8")
        (unfinished / "annotations").mkdir()
        for set_name, pictures in sets.items():
            names = _file_names(pictures)
            for picture, name in zip(tqdm(pictures, f"writing {set_name}", unit="img", dynamic_ncols=True), names):
                target = unfinished / set_name / name
                target.parent.mkdir(parents=True, exist_ok=True)
                place(picture.path, target)
            content = json.dumps(coco_content(pictures, names, class_names))
            (unfinished / "annotations" / f"instances_{set_name}.json").write_text(content, encoding="utf-8")


def project_text(name: str, class_names: list[str]) -> str:
    """The project's YAML file to begin with."""
    return PROJECT_FILE.format(
        project_name=yaml.safe_dump({"project_name": name}).strip(),
        num_gpus=int(torch.cuda.is_available()),
        obj_list=yaml.safe_dump({"obj_list": class_names}, allow_unicode=True).strip(),  # a line for each
    )


def coco_content(pictures: list[LabelledPicture], file_names: list[str], class_names: list[str]) -> dict:
    """A set in COCO's format; ids are counted from 1."""
    category_ids = {name: number for number, name in enumerate(class_names, 1)}
    images: list[dict] = []
    annotations: list[dict] = []
    for image_id, (picture, file_name) in enumerate(zip(pictures, file_names), 1):
        assert picture.size is not None, "the picture has not been checked"
        height, width = picture.size
        images.append({"id": image_id, "file_name": file_name, "width": width, "height": height})
        for box in picture.boxes:
            x1, y1, x2, y2 = box.xyxy
            bbox = [round(value, 3) for value in (x1, y1, x2 - x1, y2 - y1)]
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image_id,
                    "category_id": category_ids[box.class_name],
                    "bbox": bbox,
                    "area": round(bbox[2] * bbox[3], 3),
                    "iscrowd": int(box.is_crowd),
                }
            )
    categories = [{"id": number, "name": name} for name, number in category_ids.items()]
    return {"images": images, "annotations": annotations, "categories": categories}


def _file_names(pictures: list[LabelledPicture]) -> list[str]:
    """Paths from the deepest folder that holds all of the pictures: short, and no two alike."""
    paths = [os.path.abspath(str(picture.path)) for picture in pictures]
    folder = os.path.commonpath([os.path.dirname(path) for path in paths])
    return [os.path.relpath(path, folder) for path in paths]


def link(picture: Path, target: Path) -> None:
    """A hard link to the picture; where the file system has none to it, a symbolic one."""
    try:
        os.link(picture.resolve(), target)
    except OSError:
        os.symlink(picture.resolve(), target)


def summary(sets: dict[str, list[LabelledPicture]], class_names: list[str]) -> str:
    """Images and boxes by set and class."""
    boxes = {name: Counter(box.class_name for p in pictures for box in p.boxes) for name, pictures in sets.items()}
    rows = [
        ("", sets),
        ("images", [len(pictures) for pictures in sets.values()]),
        ("without boxes", [sum(not picture.boxes for picture in pictures) for pictures in sets.values()]),
        ("boxes", [count.total() for count in boxes.values()]),
        *((f"  {name}", [count[name] for count in boxes.values()]) for name in class_names),
    ]
    longest = max(len(title) for title, _ in rows)
    return "\n".join(f"{title:{longest}}" + "".join(f"{value:>9}" for value in values) for title, values in rows)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("sources", nargs="+", type=Path, metavar="SOURCE", help="folders, data.yaml or CSV files; several become one")
    add("-p", "--project", required=True, metavar="NAME", help="name of the project to make")
    add("--format", choices=FORMATS, help="of the labels (default: what the files look like; it says so)")
    add("--images", type=Path, metavar="FOLDER", help="where the pictures are, when not with the labels (VOC, CSV)")
    add(
        "--classes",
        type=Path,
        metavar="FILE",
        help="class names, one a line: their order, and no others are taken (default: YOLO's own, else alphabetical)",
    )
    add("--val_fraction", type=fraction, default=0.1, help="for validation, if the data has no val (default: 0.1)")
    add("--seed", type=non_negative_int, default=0, help="another seed takes other pictures for it (default: 0)")
    add("--link", action="store_true", help="link the pictures instead of copying them, which saves the space")
    add("--clip", action="store_true", help="cut boxes that reach beyond their picture; else these are faults")
    add(
        "--skip_faulty", action="store_true", help="list pictures with a fault, and leave them out with all their boxes"
    )
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
    pictures = check_pictures(labels, args.clip, default_workers())
    faults = [fault for picture in pictures for fault in picture.faults]
    if faults:
        tell_faults(faults)
        faulty_paths = {picture.path for picture in pictures if picture.faults}  # a picture may have labels in two sets
        whole = [picture for picture in pictures if picture.path not in faulty_paths]
        faulty = f"{len(faults)} faults in {len(pictures) - len(whole)} of {len(pictures)} pictures"
        if not args.skip_faulty:
            raise InputError(
                f"{faulty}, listed above: nothing was written; correct them, or pass --skip_faulty to leave these out"
            )
        print(f"{faulty}: these pictures are left out (--skip_faulty)")
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
