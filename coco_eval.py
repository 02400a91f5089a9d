"""Evaluate weights on a project's validation set by COCO's average precision.

  python coco_eval.py -p coco -c 0                                     the published weights, downloaded on first use
  python coco_eval.py -p shapes                                        the weights and data of the project shapes
  python coco_eval.py -p my_project -c 2 -w best                       the best weights of train.py so far
  python coco_eval.py -p my_project -c 2 -w logs/my_project/efficientdet-d2_30_4000.pth
  python coco_eval.py -p my_project -w model.onnx                      a file of efficientdet.export, in its own engine
  python coco_eval.py -p shapes --protocol automl                      by google/automl's protocol, see --help
  python coco_eval.py -p my_project -c 2 -w best --report              also a page that analyzes the errors
  python coco_eval.py -p my_project --results detections.json          any detector's results, without weights

Detections are written to logs/{project}/{set}_bbox_results.json, in COCO's results format. If num_gpus in the
project's YAML file is above 1, that many GPUs share the images; torchrun works as well.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from efficientdet.checkpoints.find import resolve_weights
from efficientdet.config import (
    AUTOML_MAX_DETECTIONS,
    AUTOML_SCORE_THRESHOLD,
    EVALUATION_IOU_THRESHOLD,
    EVALUATION_SCORE_THRESHOLD,
    model_config,
)
from efficientdet.data.dataset import CocoDataset
from efficientdet.data.results import read_results, write_results
from efficientdet.data.shapes import draw_if_absent
from efficientdet.evaluation.analysis import analyze, class_table
from efficientdet.evaluation.coco import score_in_detail
from efficientdet.evaluation.report import report_folder, write_report
from efficientdet.inference.dataset import detect_dataset
from efficientdet.inference.detector import load_detector
from efficientdet.inference.options import DetectionOptions, resolve_iou_threshold
from efficientdet.project import Project, load_project
from utils import distributed
from utils.cli import BOOLEAN, IOU_THRESHOLD, WORKERS, add_flags, make_parser
from utils.device import inference_dtype, keep_freed_memory, network_mode, select_device
from utils.errors import InputError, exit_on_input_error
from utils.files import make_folder_for
from utils.stopwatch import Stopwatch

LOGS = Path("logs")


def parse_args(args: Sequence[str] | None = None) -> argparse.Namespace:
    parser = make_parser(__doc__)
    add = parser.add_argument
    add_flags(parser, "project", "compound_coef", "weights")
    automl = "automl: --nms soft of the 5,000 best (anchor, class) pairs, scores above 0.001, the best 100 of an image"
    add("--protocol", choices=("reference", "automl"), default="reference", help=f"{automl} (default: reference)")
    add_flags(parser, nms={"default": None})
    add_flags(parser, iou_threshold={"help": IOU_THRESHOLD.format(EVALUATION_IOU_THRESHOLD)})
    best = "keep the N best detections of each image (default: all; COCO scores 100)"
    add_flags(parser, "flip", "cuda", "amp", "compile", max_detections={"help": best})
    add_flags(parser, device={"default": None, "help": "index of the GPU (default: the first, or num_gpus of them)"})
    add("--float16", **BOOLEAN, default=False, help="the same as --amp fp16: half precision, on a GPU")
    add("--override", **BOOLEAN, default=True, help="False scores the results file of an earlier run (default: True)")
    add("--results", type=Path, metavar="FILE", help="score this COCO results file; needs no weights")
    report = "report.html (classes, thresholds, confusions, causes of errors, worst images), its images and report.json"
    add("--report", **BOOLEAN, default=False, help=f"also write logs/{{project}}/eval-.../ with {report}")
    add("--set", dest="set_name", help="the set to evaluate (default: the project's val_set)")
    add_flags(parser, "saved_path", "data_path", "image_size", "max_images")
    threads = f"loading threads (default: {WORKERS})"
    add_flags(parser, batch_size={"default": 4, "help": "images per pass (default: 4)"}, num_workers={"help": threads})
    return parser.parse_args(args)


def main(args: argparse.Namespace) -> None:
    project = load_project(args.project)
    gpus = min(project.num_gpus, torch.cuda.device_count())
    if gpus > 1 and args.cuda is not False and args.device is None and not distributed.is_launched():
        distributed.launch_processes(gpus)
    device = select_device(args.cuda, distributed.local_rank() if args.device is None else args.device)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    else:
        keep_freed_memory()
    with distributed.report_once(), distributed.process_group(device):
        evaluate(args, project, device)


def detection_options(args: argparse.Namespace) -> DetectionOptions:
    """Return the options of the protocol. Raises InputError for flags that contradict it."""
    automl = args.protocol == "automl"
    if automl and args.nms == "hard":
        raise InputError("--protocol automl detects by soft-NMS: leave --nms hard out")
    soft_nms = automl or args.nms == "soft"
    return DetectionOptions(
        AUTOML_SCORE_THRESHOLD if automl else EVALUATION_SCORE_THRESHOLD,
        resolve_iou_threshold(args.iou_threshold, EVALUATION_IOU_THRESHOLD, soft_nms),
        args.max_detections or (AUTOML_MAX_DETECTIONS if automl else None),
        flip=args.flip,
        soft_nms=soft_nms,
        multi_label=automl,
    )


def evaluate(args: argparse.Namespace, project: Project, device: torch.device) -> None:
    options = detection_options(args)
    dtype = inference_dtype("fp16" if args.float16 else args.amp, device)
    mode = network_mode(args.compile, device)
    if distributed.rank() == 0:
        draw_if_absent(project, args.data_path)
    distributed.any_rank()  # the others wait for it
    canvas = model_config(args.compound_coef).input_shape(args.image_size or project.image_size)
    set_name = args.set_name or project.val_set
    dataset = CocoDataset(args.data_path / project.name, set_name, project, canvas, max_images=args.max_images)
    results_path = LOGS / project.name / f"{set_name}_bbox_results.json"
    make_folder_for(results_path)

    stopwatch = Stopwatch()
    source = args.results or (results_path if not args.override and results_path.is_file() else None)
    if source:
        facts = {"results": str(source)}
        distributed.print_rank0(f"scoring {source} unchanged")
        results = read_results(source, dataset)
    else:
        weights = resolve_weights(args.weights, project.name, args.compound_coef, args.saved_path)
        detector = load_detector(args.compound_coef, weights, project, device, args.image_size, dtype, mode)
        height, width = detector.canvas
        facts = {"weights": str(weights), "input": f"{width} x {height}"}
        if args.compile:
            distributed.print_rank0("compiling the network with the first batch ...")
        results = detect_dataset(detector, dataset, options, args.batch_size, args.num_workers, stopwatch)
        if distributed.rank() == 0:
            write_results(results_path, results)
        distributed.print_rank0(f"{len(results)} detections in {len(dataset)} images -> {results_path}")
    if distributed.rank() > 0:
        return

    print(f"scoring {len(results):,} detections ...", file=sys.stderr)  # takes a minute for a large set
    with stopwatch.measuring("scoring"):
        evaluation, details = score_in_detail(dataset, results)
    if not source:
        print(stopwatch.summary(len(dataset)))
    if args.report:
        analysis = analyze(details, project.class_names, dataset.image_ids)
        folder = report_folder(LOGS / project.name, set_name, source or weights)
        write_report(folder, dataset, evaluation, details, analysis, facts, None if source else stopwatch.seconds)
        print(class_table(analysis.classes))
        print(f"report -> {folder / 'report.html'}")
    print(evaluation.summary)


def command() -> None:
    """Run the script; also the command `efficientdet-eval`."""
    with exit_on_input_error():
        main(parse_args())


if __name__ == "__main__":
    command()
