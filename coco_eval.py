"""Evaluate weights on a project's validation set by COCO's average precision.

  python coco_eval.py -p coco -c 0                                     the published weights, downloaded on first use
  python coco_eval.py -p shapes                                        the weights and data that come with the project
  python coco_eval.py -p my_project -c 2 -w best                       the best that train.py has made so far
  python coco_eval.py -p my_project -c 2 -w logs/my_project/efficientdet-d2_30_4000.pth
  python coco_eval.py -p my_project -w model.onnx                      a file of efficientdet.export, in its own engine
  python coco_eval.py -p my_project -c 2 -w best --report              and a page on what is wrong
  python coco_eval.py -p my_project --results detections.json          any detector's results, without weights

The detections go to logs/{project}/{set}_bbox_results.json, in COCO's results format. With num_gpus above 1 in the
project's YAML file, so many GPUs share the images; torchrun works, too.
"""

import argparse
import sys
from pathlib import Path

import torch

from efficientdet.checkpoints.find import chosen_weights
from efficientdet.config import EVALUATION_IOU_THRESHOLD, EVALUATION_SCORE_THRESHOLD, model_config
from efficientdet.data.dataset import CocoDataset
from efficientdet.data.results import read_results, write_results
from efficientdet.data.shapes import draw_if_absent
from efficientdet.evaluation.analysis import analyse, class_table
from efficientdet.evaluation.coco import score_in_detail
from efficientdet.evaluation.report import report_folder, write_report
from efficientdet.inference.dataset import detect_dataset
from efficientdet.inference.detector import DetectionOptions, load_detector
from efficientdet.project import Project, load_project
from utils import distributed
from utils.cli import BOOLEAN, default_workers, fraction, image_size, non_negative_int, positive_int
from utils.device import chosen_device, inference_dtype, keep_freed_memory, network_mode
from utils.errors import exit_on_input_error
from utils.files import make_writable_folder
from utils.stopwatch import Stopwatch

LOGS = Path("logs")
WORKERS = default_workers()


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("-p", "--project", default="coco", help="a name under projects/, or a YAML file (default: coco)")
    add(
        "-c",
        "--compound_coef",
        type=int,
        default=0,
        choices=range(9),
        help="D0 to D7, 8 is D7X (default: 0, or the exported file's)",
    )
    add("-w", "--weights", metavar="FILE|best|last", help="weights, or an exported file (default: the one in weights/)")
    add(
        "--nms_threshold",
        type=fraction,
        default=EVALUATION_IOU_THRESHOLD,
        help="IoU above which the weaker of two boxes of a class goes (default: %(default)s)",
    )
    add("--max_detections", type=positive_int, help="of an image, the best so many (default: all; COCO scores 100)")
    add("--flip", **BOOLEAN, default=False, help="search the mirror images, too: twice the time, a little better")
    add("--cuda", **BOOLEAN, help="run on a GPU (default: if there is one)")
    add("--device", type=non_negative_int, help="which GPU (default: the first, or num_gpus of them)")
    add("--amp", choices=("off", "bf16", "fp16"), default="off", help="less precision, more speed (default: off)")
    add(
        "--compile",
        **BOOLEAN,
        default=False,
        help="compile the network first, for many images: takes a minute, from the cache ten seconds (needs a C++ "
        "compiler)",
    )
    add("--float16", **BOOLEAN, default=False, help="the same as --amp fp16: half precision, on a GPU")
    add("--override", **BOOLEAN, default=True, help="False scores the results file of an earlier run (default: True)")
    add("--results", type=Path, metavar="FILE", help="score this COCO results file; needs no weights")
    add(
        "--report",
        **BOOLEAN,
        default=False,
        help="also write logs/{project}/eval-.../ with report.html (classes, thresholds, confusions, causes of errors, "
        "worst images), its images, and report.json (default: False)",
    )
    add("--batch_size", type=positive_int, default=4, help="images per pass (default: 4)")
    add("-n", "--num_workers", type=non_negative_int, default=WORKERS, help=f"loading threads (default: {WORKERS})")
    add(
        "--saved_path",
        type=Path,
        default=Path("logs"),
        help="where -w best and last look (default: logs/)",
    )
    add("--data_path", type=Path, default=Path("datasets"), help="folder of the projects' data (default: datasets/)")
    add("--set", dest="set_name", help="which set to evaluate (default: the project's val_set)")
    add(
        "--image_size", type=image_size, help="side of the input, or WIDTHxHEIGHT (default: project's or coefficient's)"
    )
    add("--max_images", type=positive_int, help="use only the first so many images of the set")
    return parser.parse_args()


def main(args: argparse.Namespace) -> None:
    project = load_project(args.project)
    gpus = min(project.num_gpus, torch.cuda.device_count())
    if gpus > 1 and args.cuda is not False and args.device is None and not distributed.is_started():
        distributed.start_processes(gpus)
    device = chosen_device(args.cuda, distributed.local_rank() if args.device is None else args.device)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if device.type == "cpu":
        keep_freed_memory()
    with distributed.report_once(), distributed.process_group(device):
        evaluate(args, project, device)


def evaluate(args: argparse.Namespace, project: Project, device: torch.device) -> None:
    dtype = inference_dtype("fp16" if args.float16 else args.amp, device)
    mode = network_mode(args.compile, device)
    if distributed.rank() == 0:
        draw_if_absent(project, args.data_path)
    distributed.any_rank()  # the others wait for it
    canvas = model_config(args.compound_coef).input_shape(args.image_size or project.image_size)
    set_name = args.set_name or project.val_set
    dataset = CocoDataset(args.data_path / project.name, set_name, project, canvas, max_images=args.max_images)
    results_path = LOGS / project.name / f"{set_name}_bbox_results.json"
    make_writable_folder(results_path.parent)

    stopwatch = Stopwatch()
    source = args.results or (results_path if not args.override and results_path.is_file() else None)
    if source:
        facts = {"results": str(source)}
        distributed.print_rank0(f"scoring {source} as it is")
        results = read_results(source, dataset)
    else:
        weights = chosen_weights(args.weights, project.name, args.compound_coef, args.saved_path)
        detector = load_detector(args.compound_coef, weights, project, device, args.image_size, dtype, mode)
        height, width = detector.canvas
        facts = {"weights": str(weights), "input": f"{width} x {height}"}
        if args.compile:
            distributed.print_rank0("compiling the network with the first batch ...")
        options = DetectionOptions(
            EVALUATION_SCORE_THRESHOLD, args.nms_threshold, max_detections=args.max_detections, flip=args.flip
        )
        results = detect_dataset(detector, dataset, options, args.batch_size, args.num_workers, stopwatch)
        if distributed.rank() == 0:
            write_results(results_path, results)
        distributed.print_rank0(f"{len(results)} detections in {len(dataset)} images -> {results_path}")
    if distributed.rank() > 0:
        return

    print(f"scoring {len(results):,} detections ...", file=sys.stderr)  # COCO's way takes a minute for a large set
    with stopwatch.measuring("scoring"):
        evaluation, details = score_in_detail(dataset, results)
    if not source:
        print(stopwatch.summary(len(dataset)))
    if args.report:
        analysis = analyse(details, project.class_names, dataset.image_ids)
        folder = report_folder(LOGS / project.name, set_name, source or weights)
        write_report(folder, dataset, evaluation, details, analysis, facts, None if source else stopwatch.seconds)
        print(class_table(analysis.classes))
        print(f"report -> {folder / 'report.html'}")
    print(evaluation.summary)


def command() -> None:
    """The script, and `efficientdet-eval`."""
    with exit_on_input_error():
        main(parse_args())


if __name__ == "__main__":
    command()
