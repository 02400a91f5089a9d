"""Detect objects in images, videos, streams and cameras: print them, draw them, write them down.

  python efficientdet_test.py                                  six drawn images, by weights that come with the project
  python efficientdet_test.py photo.jpg                        the published D0, downloaded on first use
  python efficientdet_test.py holiday/ 'films/**/*.mp4' -c 3   folders and patterns; of a video a video is made
  python efficientdet_test.py 0 --show                         the first camera, in a window
  python efficientdet_test.py rtsp://10.0.0.7/live --save csv  a stream, until Ctrl+C
  find . -name '*.jpg' | python efficientdet_test.py - --json - --save none | jq .objects
  python efficientdet_test.py photo.jpg -p my_project -c 2 -w best
  python efficientdet_test.py photo.jpg -w model.onnx          a file of efficientdet.export (.xml, .pt2, .torchscript)

What cannot be used is told in one sentence and counted, and the rest goes on; the exit status is then 1. Ctrl+C
finishes all files with what was found so far.
"""

import argparse
import io
import os
import signal
import sys
import time
from collections import Counter
from contextlib import ExitStack, closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from efficientdet import Detections, Detector, load_detector
from efficientdet.checkpoints.find import chosen_weights, is_exported
from efficientdet.config import DEMO_IOU_THRESHOLD, DEMO_SCORE_THRESHOLD
from efficientdet.inference.detector import DetectionOptions
from efficientdet.inference.pipeline import detect_frames
from efficientdet.inference.sources import Failure, Frame, list_sources, open_sources
from efficientdet.inference.writers import (
    FORMATS,
    JsonLines,
    Outputs,
    annotate,
    check_folder,
    check_json_target,
    text_table,
)
from efficientdet.project import SHAPES_IMAGES, load_project
from utils.cli import boolean, fraction, image_size, non_negative_int, positive_int
from utils.device import chosen_device, inference_dtype, keep_freed_memory, network_mode
from utils.errors import InputError, exit_on_input_error
from utils.files import make_writable_folder
from utils.stop import StopRequest
from utils.video import Window

TILE = 640  # pixels, for --tile without a number


def formats(text: str) -> tuple[str, ...]:
    """`csv,crops` -> the names of formats, `none` -> nothing."""
    chosen = () if text == "none" else tuple(dict.fromkeys(text.split(",")))
    if not set(chosen) <= set(FORMATS):
        raise argparse.ArgumentTypeError(f"choose from {', '.join(FORMATS)}, with commas between, or none: {text!r}")
    return chosen


def names(text: str) -> tuple[str, ...]:
    """`person, traffic light` -> the two."""
    return tuple(name.strip() for name in text.split(","))


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument_group("what to search").add_argument
    add(
        "sources",
        nargs="*",
        metavar="SOURCE",
        help="image, video, folder, pattern, URL (http, https, rtsp and others), number of a camera, or - for a list "
        "of these on stdin, one a line (default: projects/shapes/)",
    )
    add = parser.add_argument_group("with which detector").add_argument
    add("-p", "--project", help="a name under projects/, or a YAML file (default: coco; shapes without sources)")
    add(
        "-c",
        "--compound_coef",
        type=int,
        default=0,
        choices=range(9),
        help="D0 to D7, 8 is D7X (default: 0, or the exported file's)",
    )
    add("-w", "--weights", metavar="FILE|best|last", help="weights, or an exported file (default: the one in weights/)")
    add("--saved_path", type=Path, default=Path("logs"), help="where -w best and last look (default: logs/)")
    add(
        "--image_size",
        type=image_size,
        metavar="SIDE|WIDTHxHEIGHT",
        help="of the network's input in pixels, rounded up to what it can take (default: the project's)",
    )
    add("--cuda", type=boolean, metavar="True|False", help="run on a GPU (default: if there is one)")
    add("--device", type=non_negative_int, default=0, help="which GPU (default: 0)")
    add("--amp", choices=("off", "bf16", "fp16"), default="off", help="less precision, more speed (default: off)")
    add(
        "--compile",
        action="store_true",
        help="compile the network first, for many frames: takes a minute, from the cache ten seconds (needs a C++ "
        "compiler)",
    )
    add("--batch_size", type=positive_int, default=1, help="frames per pass, of any sizes (default: 1)")
    add = parser.add_argument_group("what counts as found").add_argument
    add("--threshold", type=fraction, default=DEMO_SCORE_THRESHOLD, help="least score of an object (%(default)s)")
    add(
        "--iou_threshold",
        type=fraction,
        default=DEMO_IOU_THRESHOLD,
        help="IoU above which the weaker of two boxes of a class goes (default: %(default)s)",
    )
    add("--classes", type=names, metavar="NAME,NAME", help="look for these only (default: all)")
    add("--max_detections", type=positive_int, help="keep the best so many of a frame (default: all)")
    add("--rect", action="store_true", help="less padding: faster for images that are not square")
    add("--flip", action="store_true", help="search the mirror image, too: better, and half as fast")
    add(
        "--tile",
        type=positive_int,
        nargs="?",
        const=TILE,
        metavar="PIXELS",
        help=f"search overlapping windows of this side, too, for small objects in large images (alone: {TILE})",
    )
    add = parser.add_argument_group("what to make of it").add_argument
    add("--output", type=Path, default=Path("test"), help="folder of all that is written (default: test/)")
    add(
        "--save",
        type=formats,
        default=("image",),
        metavar="FORMAT,FORMAT",
        help=f"{', '.join(FORMATS)} or none: annotated images and videos, COCO results, a table, YOLO's labels, a "
        "image of each object (default: image)",
    )
    add("--json", metavar="FILE|-", help="one JSON object per line and frame; to stdout (-), all else goes to stderr")
    add("--quiet", action="store_true", help="print the summary and errors only")
    add("--show", action="store_true", help="show all in a window; q or Esc ends, other keys go on to the next image")
    add("--speed_runs", type=non_negative_int, default=10, help="runs of the speed test, 0 for none (default: 10)")
    return parser.parse_args()


def main(args: argparse.Namespace) -> int:
    """Returns the exit status."""
    for stream in (sys.stdin, sys.stdout):  # names of files may hold bytes that are no text
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="surrogateescape")
    for number in (signal.SIGINT, signal.SIGTERM):  # also where a shell's background job would ignore the first
        signal.signal(number, signal.default_int_handler)
    entries = list(list_sources(args.sources or [str(SHAPES_IMAGES)], sys.stdin or ()))
    failures = [entry for entry in entries if isinstance(entry, Failure)]
    if len(failures) == len(entries):
        raise InputError("; ".join(entry.reason for entry in failures) or "the list of sources on stdin is empty")
    if args.json:
        check_json_target(args.json, args.output)
    if "image" in args.save:  # the other files are called like no source
        check_folder(args.output, entries)
    if args.save:
        make_writable_folder(args.output)
    project = None  # an exported file knows what it was made with
    if args.project or not is_exported(args.weights):
        project = load_project(args.project or ("coco" if args.sources else "shapes"))
    device = chosen_device(args.cuda, args.device)
    dtype = inference_dtype(args.amp, device)
    if args.compile and args.rect:
        raise InputError("--compile would begin anew with each shape of input that --rect makes: leave one of them out")
    mode = network_mode(args.compile, device)
    if device.type == "cpu":
        keep_freed_memory()
    project_name = "" if project is None else project.name
    weights = chosen_weights(args.weights, project_name, args.compound_coef, args.saved_path)
    detector = load_detector(args.compound_coef, weights, project, device, args.image_size, dtype, mode)
    options = DetectionOptions(
        args.threshold, args.iou_threshold, args.max_detections, args.classes, args.flip, args.rect, args.tile
    )
    detector.class_ids(args.classes or ())  # an unknown name is told before the work begins
    if args.compile:
        print("compiling the network with the first batch ...", file=sys.stderr)

    interrupted = False
    with ExitStack() as stack:
        report = stack.enter_context(closing(Report(args, detector.project.class_names)))
        results = stack.enter_context(closing(detect_frames(detector, open_sources(entries), options, args.batch_size)))
        try:
            for result in results:
                with StopRequest() as stop:  # Ctrl+C waits until the frame is written
                    report.add(result)
                if stop.received:
                    raise KeyboardInterrupt
                if not report.show():
                    break
        except KeyboardInterrupt:
            interrupted = True
        except torch.OutOfMemoryError as error:
            less = "a smaller --image_size or --amp bf16" if args.batch_size == 1 else "less"
            raise InputError(f"the GPU's memory cannot hold --batch_size {args.batch_size}: take {less}") from error
        with StopRequest():  # and until the files are whole
            stack.close()

    print(report.summary(), file=report.messages)
    if interrupted:
        return 130  # the shell's convention for Ctrl+C
    if report.frame is not None and args.speed_runs and not args.quiet:
        seconds = time_runs(detector, report.frame.image, options, args.speed_runs)
        height, width = detector.canvas
        print(
            f"speed of D{detector.compound_coef} at {width} x {height} on {device}: {seconds:.4f} s an image, "
            f"{1 / seconds:.2f} FPS (batch 1, network and post-processing, mean of {args.speed_runs} runs)",
            file=report.messages,
        )
    return 1 if report.counts["failure"] else 0


class Report:
    """What is written, printed and shown of the results, and their numbers."""

    def __init__(self, args: argparse.Namespace, class_names: tuple[str, ...]):
        self.messages = sys.stderr if args.json == "-" else sys.stdout
        self.counts: Counter[str] = Counter()
        self.frame: Frame | None = None  # the last one
        self._drawn: np.ndarray | None = None  # the same, annotated, for the window
        self._args = args
        self._class_names = class_names
        self._start = time.perf_counter()
        with ExitStack() as stack:
            self._window = stack.enter_context(closing(Window("EfficientDet"))) if args.show else None
            self._outputs = stack.enter_context(closing(Outputs(args.output, args.save, class_names)))
            self._lines = stack.enter_context(closing(JsonLines(args.json, class_names))) if args.json else None
            self._stack = stack.pop_all()

    def add(self, result: tuple[Frame, Detections] | Failure) -> None:
        if isinstance(result, Failure):
            self.counts["failure"] += 1
            print(f"error: {result.reason}", file=sys.stderr)
            if self._lines is not None:
                self._lines.write_failure(result)
            return
        frame, found = result
        self.frame = frame
        self.counts["image" if frame.number is None else "video frame"] += 1
        self.counts["object"] += len(found)
        wanted = self._args.show or "image" in self._args.save
        drawn = annotate(frame.image, found, self._class_names) if wanted else None
        path = self._outputs.write(frame, found, drawn)
        if self._args.show:
            self._drawn = drawn
        if self._lines is not None:
            self._lines.write(frame, found)
        if not self._args.quiet:
            print(text_table(frame, found, self._class_names, path), file=self.messages, flush=True)

    def show(self) -> bool:
        """Show the last frame, once, if `--show` asks for it; False when the user has seen enough."""
        drawn, self._drawn = self._drawn, None
        if drawn is None or self._window is None or self.frame is None:
            return True
        return self._window.show(drawn, wait=self.frame.number is None)

    def summary(self) -> str:
        seconds = time.perf_counter() - self._start
        parts = [plural(self.counts[noun], noun) for noun in ("image", "video frame", "object", "failure")]
        rate = (self.counts["image"] + self.counts["video frame"]) / seconds
        written = f"; results in {self._args.output}/" if self._args.save else ""
        return f"{', '.join(parts)} in {seconds:.1f} s ({rate:.1f} images and frames a second){written}"

    def close(self) -> None:
        self._stack.close()


def plural(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def time_runs(detector: Detector, image: np.ndarray, options: DetectionOptions, runs: int) -> float:
    """Mean seconds from a prepared image to its detections, as the reference's speed test measures them."""
    options = replace(options, flip=False, rect=False, tile=None)
    prepared = detector.prepare([image], options, batch_size=1)
    detector.detect(prepared, options)  # may be the first single one, and compiled for it
    start = time.perf_counter()
    for _ in range(runs):
        detector.detect(prepared, options)
    return (time.perf_counter() - start) / runs


def command() -> None:
    """The script, and `efficientdet-test`."""
    with exit_on_input_error():
        try:
            sys.exit(main(parse_args()))
        except BrokenPipeError:  # the reader of the pipe has seen enough, as `head` does
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            sys.exit(128 + signal.SIGPIPE)


if __name__ == "__main__":
    command()
