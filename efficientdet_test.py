"""Detect objects in images, videos, streams and cameras: print them, draw them, write them to files.

  python efficientdet_test.py                                  six drawn images, with the weights of the project shapes
  python efficientdet_test.py photo.jpg                        the published D0, downloaded on first use
  python efficientdet_test.py holiday/ 'films/**/*.mp4' -c 3   folders and patterns; a video becomes a video
  python efficientdet_test.py 0 --show                         the first camera, in a window
  python efficientdet_test.py rtsp://10.0.0.7/live --save csv  a stream, until Ctrl+C
  find . -name '*.jpg' | python efficientdet_test.py - --json - --save none | jq .objects
  python efficientdet_test.py photo.jpg -p my_project -c 2 -w best
  python efficientdet_test.py photo.jpg -w model.onnx          a file of efficientdet.export (.xml, .pt2, .torchscript)

Unusable sources are reported and counted while the rest continues; the exit status is then 1. Ctrl+C completes all
files with the detections so far.
"""

import argparse
import io
import os
import signal
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack, closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from efficientdet import Detector, load_detector
from efficientdet.checkpoints.find import is_exported, resolve_weights
from efficientdet.config import DEMO_IOU_THRESHOLD, DEMO_SCORE_THRESHOLD
from efficientdet.inference.options import DetectionOptions, class_indices, resolve_iou_threshold
from efficientdet.inference.pipeline import detect_frames
from efficientdet.inference.report import DetectionReport
from efficientdet.inference.sources import Entry, Failure, list_sources, open_sources
from efficientdet.inference.writers import SAVE_FORMATS, check_targets
from efficientdet.project import SHAPES_IMAGES, load_project
from utils.cli import BOOLEAN, IOU_THRESHOLD, add_flags, make_parser, non_negative_int, positive_int
from utils.device import inference_dtype, keep_freed_memory, network_mode, select_device
from utils.errors import InputError, exit_on_input_error
from utils.files import make_writable_folder
from utils.stop import StopRequest


def formats(text: str) -> tuple[str, ...]:
    """Parse `csv,crops` to names of formats, and `none` to none of them."""
    chosen = () if text == "none" else tuple(dict.fromkeys(text.split(",")))
    if not set(chosen) <= set(SAVE_FORMATS):
        choices = ", ".join(SAVE_FORMATS)
        raise argparse.ArgumentTypeError(f"{text!r}: choose from {choices}, separated by commas, or none")
    return chosen


def parse_args(args: Sequence[str] | None = None) -> argparse.Namespace:
    parser = make_parser(__doc__)
    sources = "image, video, folder, pattern, URL (http, rtsp, ...), camera number, or - for a list of these on stdin"
    parser.add_argument("sources", nargs="*", metavar="SOURCE", help=f"{sources} (default: projects/shapes/)")
    group = parser.add_argument_group("detector")
    project = "name in projects/, or a YAML file (default: coco; without sources, shapes)"
    add_flags(group, project={"default": None, "help": project})
    add_flags(group, "compound_coef", "weights", "saved_path", "image_size", "cuda", "device", "amp", "compile")
    add_flags(group, batch_size={"default": 1, "help": "images per pass, of any sizes (default: 1)"})
    group = parser.add_argument_group("detections")
    add_flags(group, score_threshold={"default": DEMO_SCORE_THRESHOLD})
    add_flags(group, "nms", iou_threshold={"help": IOU_THRESHOLD.format(DEMO_IOU_THRESHOLD)})
    add_flags(group, "max_detections", "flip")
    add = group.add_argument
    add("--classes", metavar="NAME,NAME", help="detect these only (default: all)")
    add("--rect", **BOOLEAN, default=False, help="less padding: faster for images that are not square")
    tile = "also detect in overlapping tiles of this side, for small objects in large images (alone: %(const)s)"
    add("--tile", type=positive_int, nargs="?", const=640, metavar="PIXELS", help=tile)
    group = parser.add_argument_group("output")
    add_flags(group, output={"default": Path("test"), "help": "folder of all files written (default: test/)"})
    add = group.add_argument
    save = "annotated images and videos, COCO results, a table, YOLO labels, a crop of each detection (default: image)"
    save = f"{', '.join(SAVE_FORMATS)} or none: {save}"
    add("--save", type=formats, default=("image",), metavar="FORMAT,FORMAT", help=save)
    add("--json", metavar="FILE|-", help="one JSON object per line and image; with - to stdout, all else to stderr")
    add("--quiet", **BOOLEAN, default=False, help="print only the summary and errors")
    add("--show", **BOOLEAN, default=False, help="show results in a window; q or Esc ends, any other key continues")
    add("--speed_runs", type=non_negative_int, default=10, metavar="N", help="runs of the speed test (default: 10)")
    return parser.parse_args(args)


def main(args: argparse.Namespace) -> int:
    """Return the exit status."""
    soft_nms = args.nms == "soft"
    iou_threshold = resolve_iou_threshold(args.iou_threshold, DEMO_IOU_THRESHOLD, soft_nms)
    classes = None if args.classes is None else [name.strip() for name in args.classes.split(",")]
    options = DetectionOptions(
        args.score_threshold, iou_threshold, args.max_detections, classes, args.flip, args.rect, args.tile, soft_nms
    )
    entries = usable_entries(args)
    detector = make_detector(args)
    class_indices(classes or (), detector.project)  # reports an unknown name before the work begins
    if args.compile:
        print("compiling the network with the first batch ...", file=sys.stderr)
    interrupted = False
    with ExitStack() as stack:
        class_names = detector.project.class_names
        report = stack.enter_context(
            closing(DetectionReport(class_names, args.output, args.save, args.json, args.show))
        )
        results = stack.enter_context(closing(detect_frames(detector, open_sources(entries), options, args.batch_size)))
        try:
            for result in results:
                with StopRequest() as stop:  # Ctrl+C waits until the frame is written
                    report.add(result, args.quiet)
                if stop.received:
                    raise KeyboardInterrupt
                if not report.show():
                    break
        except KeyboardInterrupt:
            interrupted = True
        except torch.OutOfMemoryError as error:
            less = "a smaller --image_size or --amp bf16" if args.batch_size == 1 else "a smaller one"
            message = f"--batch_size {args.batch_size} does not fit into the GPU's memory: pass {less}"
            raise InputError(message) from error
        with StopRequest():  # Ctrl+C waits until all files are complete
            stack.close()
    written = f"; results in {args.output}/" if args.save else ""
    print(f"{report.summary()}{written}", file=report.messages)
    if interrupted:
        return 130  # the shell's convention for Ctrl+C
    if report.frame is not None and args.speed_runs and not args.quiet:
        print(measure_speed(detector, report.frame.image, options, args.speed_runs), file=report.messages)
    return 1 if report.counts["failure"] else 0


def usable_entries(args: argparse.Namespace) -> list[Entry | Failure]:
    """Return the sources. Raises InputError if none is usable, or if results would replace one of them."""
    entries = list(list_sources(args.sources or [str(SHAPES_IMAGES)], sys.stdin or ()))
    reasons = [entry.reason for entry in entries if isinstance(entry, Failure)]
    if len(reasons) == len(entries):
        raise InputError("; ".join(reasons) or "the list of sources on stdin is empty")
    check_targets(args.output, args.save, args.json, entries)
    if args.save:
        make_writable_folder(args.output)
    return entries


def make_detector(args: argparse.Namespace) -> Detector:
    project = None  # an exported file contains its own
    if args.project or not is_exported(args.weights):
        project = load_project(args.project or ("coco" if args.sources else "shapes"))
    device = select_device(args.cuda, args.device)
    dtype = inference_dtype(args.amp, device)
    if args.compile and args.rect:
        raise InputError("--compile compiles for each input shape, and --rect makes many: leave one of them out")
    mode = network_mode(args.compile, device)
    if device.type == "cpu":
        keep_freed_memory()
    weights = resolve_weights(args.weights, project.name if project else "", args.compound_coef, args.saved_path)
    return load_detector(args.compound_coef, weights, project, device, args.image_size, dtype, mode)


def measure_speed(detector: Detector, image: np.ndarray, options: DetectionOptions, runs: int) -> str:
    """Return a line on the time from a prepared image to its detections, as the reference's speed test measures it."""
    options = replace(options, flip=False, rect=False, tile=None)
    prepared = detector.prepare([image], options, batch_size=1)
    detector.detect(prepared, options)  # the first pass of a single image may compile
    start = time.perf_counter()
    for _ in range(runs):
        detector.detect(prepared, options)
    seconds = (time.perf_counter() - start) / runs
    height, width = detector.canvas
    return (
        f"speed of D{detector.compound_coef} at {width} x {height} on {detector.device}: {seconds:.4f} s an image, "
        f"{1 / seconds:.2f} FPS (batch 1, network and post-processing, mean of {runs} runs)"
    )


def command() -> None:
    """Run the script; also the command `efficientdet-test`."""
    with exit_on_input_error():
        for stream in (sys.stdin, sys.stdout):  # file names may contain bytes that are not text
            if isinstance(stream, io.TextIOWrapper):
                stream.reconfigure(errors="surrogateescape")
        for number in (signal.SIGINT, signal.SIGTERM):  # even where a shell's background job ignores SIGINT
            signal.signal(number, signal.default_int_handler)
        try:
            sys.exit(main(parse_args()))
        except BrokenPipeError:  # the reader of the pipe has ended, as `head` does
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            sys.exit(128 + signal.SIGPIPE)


if __name__ == "__main__":
    command()
