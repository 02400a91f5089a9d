"""Check a project's data before training on it: every annotation, every image, and both sets against each other.

  python -m efficientdet.check -p my_project                  at the input's size of D0, or of the project
  python -m efficientdet.check -p my_project -c 2 --anchors   at D2's; proposes anchors that suit the boxes
  python -m efficientdet.check -p my_project --show 16        draws 16 samples, as training sees them, into test/
  python -m efficientdet.check -p my_project --show 16 --recipe official

Errors spoil what is learnt or measured, and make the exit status 1. Warnings may be as they should be: look at them.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from efficientdet.check.anchors import anchor_report
from efficientdet.check.images import (
    ImageScan,
    equal_images,
    image_findings,
    repeated_images,
    scan_images,
    with_scanned_sizes,
)
from efficientdet.check.objects import Objects, objects_on_canvas
from efficientdet.check.report import class_table, headline, size_table
from efficientdet.check.rules import empty_images, overlap_findings, quick_findings, shared_names, unlisted_images
from efficientdet.config import model_config
from efficientdet.data.annotations import AnnotatedSet, read_set
from efficientdet.data.dataset import CocoDataset, SampleKey
from efficientdet.data.findings import Finding, by_kind, in_full
from efficientdet.data.shapes import draw_if_absent
from efficientdet.project import load_project
from efficientdet.training.recipe import RECIPES
from utils.cli import (
    BOOLEAN,
    default_workers,
    image_size,
    non_negative_float,
    non_negative_int,
    positive_int,
)
from utils.errors import exit_on_input_error
from utils.images import write_image
from utils.visualize import contact_sheet, draw_boxes

WORKERS = default_workers()
CASES = 5  # of each kind that are listed without --all


def parse_args(args: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("-p", "--project", default="coco", help="a name under projects/, or a YAML file (default: coco)")
    add("-c", "--compound_coef", type=int, default=0, choices=range(9), help="D0 to D7, 8 is D7X (default: 0)")
    add("-n", "--num_workers", type=positive_int, default=WORKERS, help=f"decoding threads (default: {WORKERS})")
    add("--data_path", type=Path, default=Path("datasets"), help="folder of the projects' data (default: datasets/)")
    add("--image_size", type=image_size, help="side of the input, or WIDTHxHEIGHT (default: the project's)")
    add("--max_images", type=positive_int, help="decode only the first so many images of each set")
    add("--all", **BOOLEAN, default=False, help=f"list all cases of each finding, not the first {CASES}")
    add("--anchors", **BOOLEAN, default=False, help="propose scales and ratios of anchors, by k-means on IoU")
    add("--show", type=positive_int, metavar="N", help="draw N random training samples and their boxes on one sheet")
    add("--output", type=Path, default=Path("test"), help="folder of the sheet (default: test/)")
    add("--recipe", choices=tuple(RECIPES), default="reference", help="whose augmentation to show (default: reference)")
    add("--min_scale", type=non_negative_float, help="... with images scaled from here (default: the recipe's)")
    add("--max_scale", type=non_negative_float, help="... to here (default: the recipe's)")
    add("--seed", type=non_negative_int, default=0, help="of the samples shown, and of their augmentation (default: 0)")
    return parser.parse_args(args)


def main(args: argparse.Namespace) -> int:
    """The exit status."""
    project = load_project(args.project)
    config = model_config(args.compound_coef)
    canvas = config.input_shape(args.image_size or project.image_size)
    draw_if_absent(project, args.data_path)
    folder = args.data_path / project.name
    names = dict.fromkeys((project.train_set, project.val_set))
    sets = [read_set(folder, name, project, args.max_images) for name in names]
    scans = [scan_images(annotated, args.num_workers) for annotated in sets]

    findings: list[Finding] = []
    objects: dict[str, Objects] = {}
    for annotated, scanned in zip(sets, scans):
        sized = with_scanned_sizes(annotated, scanned)
        objects[annotated.name] = found = objects_on_canvas(sized, canvas, config)
        print(headline(annotated))
        if len(found.rows):
            for line in (*class_table(annotated, found), *size_table(found)):
                print(f"  {line}")
        findings += annotated.findings
        findings += image_findings(annotated, scanned)
        findings += repeated_images(annotated, scanned)
        findings += quick_findings(sized, found)
        findings += empty_images(annotated)
    pairs = equal_images(scans[0], scans[-1])
    findings += overlap_findings(sets[0], sets[-1], pairs)
    if len(sets) > 1:
        findings += shared_names(sets[0], sets[-1], pairs)
    findings += unlisted_images(sets)

    if args.anchors:
        print(*anchor_report(objects, project, config), sep="\n")
    if args.show:
        print(show_samples(args, sets[0], scans[0], canvas))
    for group in by_kind(findings):
        print(*in_full(group, None if args.all else CASES), sep="\n")
    errors = sum(finding.level == "error" for finding in findings)
    print(
        f"{errors:,} errors, {len(findings) - errors:,} warnings in {sum(map(len, scans)):,} images"
        + (": correct the errors before you train" if errors else "")
    )
    return 1 if errors else 0


def show_samples(
    args: argparse.Namespace, train: AnnotatedSet, scans: Sequence[ImageScan | None], canvas: tuple[int, int]
) -> str:
    """Draw random samples on a sheet, just as training gets them. Returns what to tell of it."""
    if train.findings:
        return f"no samples are shown: training does not take {train.annotation_file} before its errors are corrected"
    faulty = {finding.file for finding in image_findings(train, scans) if finding.level == "error"}
    usable = [index for index in range(len(scans)) if train.image_path(index) not in faulty]
    if not usable:
        return f"no samples are shown: no image in {train.image_folder} can be used"
    recipe, project = RECIPES[args.recipe], train.project
    least = recipe.min_scale if args.min_scale is None else args.min_scale
    most = recipe.max_scale if args.max_scale is None else args.max_scale
    data = args.data_path / project.name
    dataset = CocoDataset(data, train.name, project, canvas, args.seed, (least, most), args.max_images)
    chosen = np.random.default_rng(args.seed).permutation(usable)[: args.show]
    drawn, captions = [], []
    for index in chosen.tolist():
        sample = dataset[SampleKey(index, epoch=0)]
        pixels = (sample.image * np.asarray(project.std, np.float32) + np.asarray(project.mean, np.float32)) * 255
        boxes, class_ids = sample.target
        labels = [project.class_names[class_id] for class_id in class_ids]
        drawn.append(draw_boxes(np.rint(pixels).clip(0, 255).astype(np.uint8), boxes, class_ids, labels))
        scale = sample.letterbox.resized[1] / sample.letterbox.original[1]
        captions.append(f"{train.images[index]['file_name']}, scaled by {scale:.2f}")
    path = args.output / f"check_{project.name}_{train.name}.jpg"
    write_image(path, contact_sheet(drawn, captions))
    return f"{len(drawn)} samples of {train.name} as training sees them -> {path}"


if __name__ == "__main__":
    with exit_on_input_error():
        sys.exit(main(parse_args()))
