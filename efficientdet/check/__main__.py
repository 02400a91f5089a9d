"""Check a project's data before training on it: every annotation, every image, and both sets against each other.

  python -m efficientdet.check -p my_project                  at the input size of the project, or else of D0
  python -m efficientdet.check -p my_project -c 2 --anchors   of D2; proposes anchors that fit the boxes
  python -m efficientdet.check -p my_project --show 16        draws 16 samples, as training sees them, into test/
  python -m efficientdet.check -p my_project --show 16 --recipe official --mosaic 0.5   with these flags of train.py

Errors spoil training or evaluation, and make the exit status 1. Warnings may be intended: look at them.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

import numpy as np

from efficientdet.check import images, rules
from efficientdet.check.anchors import anchor_report
from efficientdet.check.images import ImageScan
from efficientdet.check.objects import Objects, objects_on_canvas
from efficientdet.check.report import box_tables, headline
from efficientdet.config import model_config
from efficientdet.data.annotations import AnnotatedSet, read_set
from efficientdet.data.augmentation import Augmentation
from efficientdet.data.dataset import CocoDataset, SampleKey
from efficientdet.data.findings import Finding, format_full, group_by_kind
from efficientdet.data.shapes import draw_if_absent
from efficientdet.project import load_project
from efficientdet.training.recipe import add_recipe_flags, make_recipe, recipe_changes
from utils.cli import BOOLEAN, WORKERS, add_flags, make_parser, positive_int
from utils.errors import exit_on_input_error
from utils.images import write_image
from utils.visualize import contact_sheet, draw_boxes

MAX_CASES = 5  # of each kind that are listed without --all


def parse_args(args: Sequence[str] | None = None) -> argparse.Namespace:
    parser = make_parser(__doc__, prog="python -m efficientdet.check")
    add = parser.add_argument
    add_flags(parser, "project", "compound_coef", "data_path", "image_size", "max_images")
    add_flags(parser, num_workers={"type": positive_int, "help": f"decoding threads (default: {WORKERS})"})
    add("--all", **BOOLEAN, default=False, help=f"list all cases of each finding, not only {MAX_CASES}")
    add("--anchors", **BOOLEAN, default=False, help="propose anchor scales and ratios, by k-means on IoU")
    add("--show", type=positive_int, metavar="N", help="draw N random training samples with their boxes on one sheet")
    add_flags(parser, output={"default": Path("test"), "help": "folder of the sheet (default: test/)"})
    add_flags(parser, seed={"help": "selects the samples and their augmentation (default: 0)"})
    add_recipe_flags(parser, [value.name for value in fields(Augmentation)])
    return parser.parse_args(args)


def main(args: argparse.Namespace) -> int:
    """Check both sets of a project. Returns the exit status."""
    project = load_project(args.project)
    config = model_config(args.compound_coef)
    canvas = config.input_shape(args.image_size or project.image_size)
    draw_if_absent(project, args.data_path)
    names = dict.fromkeys((project.train_set, project.val_set))
    sets = [read_set(args.data_path / project.name, name, project, args.max_images) for name in names]
    scans = [images.scan_images(annotated, args.num_workers) for annotated in sets]

    findings: list[Finding] = []
    objects: dict[str, Objects] = {}
    for annotated, scanned in zip(sets, scans):
        sized = images.with_scanned_sizes(annotated, scanned)
        objects[annotated.name] = learnable = objects_on_canvas(sized, canvas, config)
        print(headline(annotated), *box_tables(annotated, learnable), sep="\n")
        findings += [*annotated.findings, *images.image_findings(annotated, scanned)]
        findings += [*rules.annotation_findings(sized, learnable), *rules.empty_images(annotated)]
    pairs = images.same_pixels(scans[0], scans[-1])
    findings += rules.shared_images(sets[0], sets[-1], pairs)
    if len(sets) > 1:
        findings += rules.shared_file_names(sets[0], sets[-1], pairs)
    findings += rules.unlisted_images(sets)

    if args.anchors:
        print(*anchor_report(objects, project.path), sep="\n")
    if args.show:
        print(show_samples(args, sets[0], scans[0], canvas))
    for group in group_by_kind(findings):
        print(*format_full(group, None if args.all else MAX_CASES), sep="\n")
    errors = sum(finding.level == "error" for finding in findings)
    remedy = ": correct the errors before training" if errors else ""
    print(f"{errors:,} errors, {len(findings) - errors:,} warnings in {sum(map(len, scans)):,} images{remedy}")
    return 1 if errors else 0


def show_samples(args: argparse.Namespace, train: AnnotatedSet, scans: list[ImageScan], canvas: tuple[int, int]) -> str:
    """Draw random samples on a sheet, exactly as training gets them. Returns a line on the result."""
    if train.findings:
        return f"no samples drawn: training rejects {train.annotation_file} until its errors are corrected"
    faulty = {finding.file for finding in images.image_findings(train, scans) if finding.level == "error"}
    usable = [index for index in range(len(scans)) if train.image_path(index) not in faulty]
    if not usable:
        return f"no samples drawn: {train.image_folder} has no usable image"
    project, recipe = train.project, make_recipe(args.recipe, recipe_changes(args))
    folder, augmentation = args.data_path / project.name, recipe.augmentation
    dataset = CocoDataset(folder, train.name, project, canvas, args.seed, augmentation, args.max_images)
    selected = np.random.default_rng(args.seed).permutation(usable)[: args.show]
    drawn, captions = [], []
    for index in selected.tolist():
        sample = dataset[SampleKey(index, epoch=0)]
        pixels = (sample.image * np.asarray(project.std, np.float32) + np.asarray(project.mean, np.float32)) * 255
        boxes, class_ids = sample.target
        labels = [project.class_names[class_id] for class_id in class_ids]
        drawn.append(draw_boxes(np.rint(pixels).clip(0, 255).astype(np.uint8), boxes, class_ids, labels))
        scale = sample.letterbox.resized[1] / sample.letterbox.original[1]
        # Of a mosaic, the scale would be that of four images together.
        captions.append(train.images[index]["file_name"] + ("" if recipe.mosaic else f", scaled by {scale:.2f}"))
    path = args.output / f"check_{project.name}_{train.name}.jpg"
    write_image(path, contact_sheet(drawn, captions))
    return f"{len(drawn)} samples of {train.name} as training sees them -> {path}"


if __name__ == "__main__":
    with exit_on_input_error():
        sys.exit(main(parse_args()))
