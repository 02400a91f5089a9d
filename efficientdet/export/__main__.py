"""Export a network for deployment, and prove that the exported file computes the same.

  python -m efficientdet.export -p shapes                        ONNX, from the weights that come with the project
  python -m efficientdet.export -p shapes --nms                  image in; boxes, scores, classes and count out
  python -m efficientdet.export -p my_project -c 2 -w best --format onnx torchscript pt2 openvino
  python -m efficientdet.export -p my_project -c 2 -w best --nms --dynamic      any height and width
  python -m efficientdet.export -p my_project -c 2 -w best --format openvino --half
  python -m efficientdet.export -p my_project -c 2 -w best --format openvino --int8

Formats: onnx for ONNX Runtime and most others; openvino (.xml and .bin) for Intel's runtime; pt2 (torch.export) and
its predecessor torchscript for PyTorch without this project.

Input: a batch of uint8 RGB images (N, height, width, 3), resized to fit into the top left and padded with the padding
color; with --normalization outside float32 (N, 3, height, width), normalized and padded with zeros. Output:
class_logits (N, A, classes), box_deltas (N, A, 4), anchors (A, 4); with --nms boxes (N, D, 4) as x1, y1, x2, y2 in
pixels of the input, scores (N, D), classes (N, D), count (N). Class names, sizes and thresholds are in the metadata.

The proof runs the file in its own engine on real images and compares it with PyTorch in float32; with --nms, also the
same graph without NMS. If an output differs by more than the tolerance, the command fails and writes no file.
"""

import argparse
import signal
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import fields, replace
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor

from efficientdet.checkpoints.find import EXPORT_SUFFIXES, find_weights, resolve_weights
from efficientdet.checkpoints.loading import load_weights
from efficientdet.config import EVALUATION_IOU_THRESHOLD, EVALUATION_SCORE_THRESHOLD
from efficientdet.data.dataset import CocoDataset
from efficientdet.data.shapes import draw_if_absent
from efficientdet.evaluation.coco import score
from efficientdet.export.formats import PACKAGES, write_exported
from efficientdet.export.proof import compare_speed, prove
from efficientdet.export.quantization import CALIBRATION_IMAGES, INT8_PACKAGES, quantize
from efficientdet.inference.dataset import detect_dataset
from efficientdet.inference.detector import DetectionOptions, Detector
from efficientdet.inference.sources import Entry, Failure, Frame, list_sources, load, open_sources
from efficientdet.model.network import EfficientDet
from efficientdet.project import SHAPES_IMAGES, SHAPES_WEIGHTS, Project, load_project
from efficientdet.runtime.exported import ExportedModel
from efficientdet.runtime.metadata import Metadata, Suppression
from utils.cli import BOOLEAN, add_flags, default_workers, fraction, make_parser, non_negative_int, positive_int
from utils.device import keep_freed_memory
from utils.errors import InputError, exit_on_input_error
from utils.files import atomic_write, make_folder_for
from utils.optional import require_packages
from utils.stopwatch import Stopwatch

_CPU = torch.device("cpu")
_SUPPRESSION = Suppression(EVALUATION_SCORE_THRESHOLD, EVALUATION_IOU_THRESHOLD, max_detections=100)
_MAX_AP_LOSS = 0.01


def parse_args(args: Sequence[str] | None = None) -> argparse.Namespace:
    parser = make_parser(__doc__, prog="python -m efficientdet.export")
    flag = {**BOOLEAN, "default": False}
    names = "project", "compound_coef", "weights", "saved_path"
    weights = {"help": "weights file (default: the project's own in weights/)"}
    add_flags(parser.add_argument_group("what to export"), *names, weights=weights)
    group = parser.add_argument_group("how")
    add = group.add_argument
    add("--format", nargs="+", choices=EXPORT_SUFFIXES, default=["onnx"], help="one or several (default: onnx)")
    add("-o", "--output", type=Path, metavar="FILE", help="default: next to the weights, by its format")
    add_flags(group, "image_size")
    add("--dynamic", **flag, help="accept any height and width that the pyramid accepts (onnx, openvino)")
    add("--normalization", choices=("inside", "outside"), default="inside", help="see above (default: inside)")
    add("--half", **flag, help="weights in float16: half the size")
    add("--int8", **flag, help="8-bit integers for CPUs, calibrated on the training images (openvino)")
    group = parser.add_argument_group("detections")
    group.add_argument("--nms", **flag, help="select the detections in the graph")
    add_flags(
        group,
        score_threshold={"help": f"of --nms (default: {_SUPPRESSION.score_threshold})"},
        iou_threshold={"help": f"of --nms (default: {_SUPPRESSION.iou_threshold})"},
        max_detections={"help": f"of --nms, per image (default: {_SUPPRESSION.max_detections})"},
    )
    group = parser.add_argument_group("the proof")
    add = group.add_argument
    add("--images", "--pictures", metavar="SOURCE", help="image, folder or pattern (default: the validation set)")
    add("--max_images", "--num_pictures", type=positive_int, default=8, help="how many of them (default: 8)")
    add_flags(group, "data_path")
    add("--max_ap_loss", type=fraction, help=f"AP that --int8 may cost on the validation set (default: {_MAX_AP_LOSS})")
    add("--runs", type=non_negative_int, default=10, help="timed passes, 0 for none (default: 10)")
    return parser.parse_args(args)


def main(args: argparse.Namespace) -> None:
    check_args(args)
    keep_freed_memory()
    project = load_project(args.project)
    weights = find_weights(resolve_weights(args.weights, project.name, args.compound_coef, args.saved_path))
    network = EfficientDet(args.compound_coef, project.num_classes, project.anchor_ratios, project.anchor_scales)
    load_weights(network, weights)
    metadata = make_metadata(args, network.eval(), project)
    # The weights of shapes may be where programs are installed: write into the current folder instead.
    template = args.output or (Path(weights.name) if weights == SHAPES_WEIGHTS else weights)
    paths = [template.with_suffix(EXPORT_SUFFIXES[export_format]) for export_format in args.format]
    for path in paths:
        make_folder_for(path)
    frames = proof_images(args, project)
    dataset = int8_validation_set(args, project, metadata) if args.int8 else None

    for export_format, path in zip(args.format, paths):
        print(f"D{args.compound_coef} from {weights} as {export_format} ...", flush=True)
        with TemporaryDirectory(dir=path.parent, prefix=".export-") as folder:
            file = Path(folder) / path.name
            if args.nms:  # hides the raw outputs: prove these with the same graph without NMS
                raw_file = Path(folder) / "raw" / path.name
                raw_file.parent.mkdir()
                write_exported(network, replace(metadata, suppression=None), export_format, raw_file)
                check_file(raw_file, network, project, frames)
                print("  with --nms:")
            write_exported(network, metadata, export_format, file)
            inputs = check_file(file, network, project, frames)
            files = [file]
            if dataset is not None:
                files.append(quantize_within_loss(args, file, project, dataset))
            if args.runs:
                speeds = compare_speed(files, network, inputs[0], args.runs).items()
                shown = ", ".join(f"{name} {1000 * seconds:.1f} ms" for name, seconds in speeds)
                print(f"  per image: {shown} (batch 1, {torch.get_num_threads()} threads, {args.runs} runs)")
            move_into_place(files[-1], path)


def check_args(args: argparse.Namespace) -> None:
    """Raise InputError for flags that exclude each other and for missing packages."""
    args.format = list(dict.fromkeys(args.format))
    for export_format in args.format:
        require_packages(PACKAGES[export_format], f"--format {export_format}")
        if args.dynamic and export_format not in ("onnx", "openvino"):
            raise InputError(f"--format {export_format} has a fixed height and width: leave --dynamic out")
    if not args.nms and given_suppression(args):
        raise InputError(f"--{min(given_suppression(args))} needs --nms: add that, or leave it out")
    if args.max_ap_loss is not None and not args.int8:
        raise InputError("--max_ap_loss needs --int8: add that, or leave it out")
    if args.int8:
        if args.format != ["openvino"] or args.half:
            raise InputError("--int8 is for --format openvino only, without --half")
        require_packages(INT8_PACKAGES, "--int8")
    if args.output is not None:
        if len(args.format) > 1:
            raise InputError("--output names a single file: pass a single --format, or leave it out")
        suffix = EXPORT_SUFFIXES[args.format[0]]
        if args.output.suffix != suffix:
            raise InputError(f"--output {args.output} must end in {suffix}, by which other scripts know the format")


def given_suppression(args: argparse.Namespace) -> dict[str, Any]:
    """Return the fields of `Suppression` that the user set."""
    names = {field.name for field in fields(Suppression)}
    return {name: value for name, value in vars(args).items() if name in names and value is not None}


def make_metadata(args: argparse.Namespace, network: EfficientDet, project: Project) -> Metadata:
    """Return what the exported files say about themselves."""
    config = network.config
    red, green, blue = (round(255 * value) for value in project.mean)
    return Metadata(
        compound_coef=args.compound_coef,
        class_names=project.class_names,
        mean=project.mean,
        std=project.std,
        normalization=args.normalization,
        image_size=config.input_shape(args.image_size or project.image_size),
        dynamic=args.dynamic,
        size_divisor=config.size_divisor,
        padding=(red, green, blue),  # the nearest to zero when normalized
        precision="float16" if args.half else "float32",
        suppression=replace(_SUPPRESSION, **given_suppression(args)) if args.nms else None,
        pyramid_levels=config.pyramid_levels,
        anchor_scale=config.anchor_scale,
        anchor_scales=project.anchor_scales,
        anchor_ratios=project.anchor_ratios,
    )


def proof_images(args: argparse.Namespace, project: Project) -> list[Frame]:
    """Return the first of --images, else of the validation set, else of the images that come with the project."""
    folder = args.data_path / project.name / project.val_set
    source = args.images or str(folder if folder.is_dir() else SHAPES_IMAGES)
    return list(islice(read_frames(list_sources([source])), args.max_images))


def read_frames(entries: Iterable[Entry | Failure]) -> Iterator[Frame]:
    """Yield the images of sources. Raises InputError for an unusable one."""
    for item in open_sources(entries):
        frame = load(item)
        if isinstance(frame, Failure):
            raise InputError(frame.reason)
        yield frame


def evaluation_detector(exported: ExportedModel, project: Project) -> tuple[Detector, DetectionOptions]:
    """Return a detector with the options of evaluation, within the thresholds of the file's own NMS."""
    limits = exported.metadata.suppression or _SUPPRESSION
    score_threshold = max(EVALUATION_SCORE_THRESHOLD, limits.score_threshold)
    iou_threshold = min(EVALUATION_IOU_THRESHOLD, limits.iou_threshold)
    return Detector(exported, project, _CPU), DetectionOptions(score_threshold, iou_threshold)


def network_inputs(exported: ExportedModel, project: Project, frames: Iterable[Frame]) -> Iterator[Tensor]:
    """Yield each image letterboxed for the exported file: (1, 3, H, W)."""
    detector, options = evaluation_detector(exported, project)
    for frame in frames:
        yield from (batch.images for batch in detector.prepare([frame.image], options, 1).batches)


def check_file(path: Path, network: EfficientDet, project: Project, frames: Sequence[Frame]) -> list[Tensor]:
    """Print the proof that an exported file computes what `network` computes, and return the inputs of both.

    Raises InputError if it computes something else, or if nothing is detected to prove NMS with.
    """
    exported = ExportedModel(path, _CPU)
    inputs = list(network_inputs(exported, project, frames))
    proof = prove(exported, network, inputs)
    print(f"  {f'compared with PyTorch on {len(frames)} images':<38} largest difference      allowed")
    for difference in proof.differences:
        print(f"  {difference.name:<38} {difference.largest:>18.1e} {difference.allowed:>12.1e}")
    found, clear = proof.matches.found, proof.matches.clear
    missed, clear_missed = found - proof.matches.matched, clear - proof.matches.clear_matched
    print(f"  detections of both: {found}, {missed} without a match; of {clear} clear ones {clear_missed}")
    if not found:
        if exported.metadata.suppression is not None:
            remedy = "name others with --images, or lower --score_threshold"
            raise InputError(f"nothing is detected in these images, which proves nothing about --nms: {remedy}")
        print("  (nothing is detected in these images: the proof rests on the raw outputs)")
    if failure := proof.first_failure:
        difference_found = f"{failure.name} differs by {failure.largest:.2g}, above {failure.allowed:.2g}"
        remedy = "leave --half out, or try another --format"
        raise InputError(f"{path.name} does not match PyTorch, so it is not kept: {difference_found}; {remedy}")
    return inputs


def int8_validation_set(args: argparse.Namespace, project: Project, metadata: Metadata) -> CocoDataset:
    """Return the images that measure what --int8 costs. Raises InputError if they or the training set are missing."""
    draw_if_absent(project, args.data_path)
    folder = args.data_path / project.name
    if not (folder / project.train_set).is_dir():
        raise InputError(f"--int8 is calibrated on training images, but {folder / project.train_set} does not exist")
    return CocoDataset(folder, project.val_set, project, metadata.image_size)


def quantize_within_loss(args: argparse.Namespace, path: Path, project: Project, dataset: CocoDataset) -> Path:
    """Write the INT8 form of an OpenVINO file and return its path. Raises InputError if it loses too much AP."""
    exported = ExportedModel(path, _CPU)
    images = list(list_sources([str(args.data_path / project.name / project.train_set)]))
    spread = images[:: max(1, len(images) // CALIBRATION_IMAGES)][:CALIBRATION_IMAGES]
    inputs = network_inputs(exported, project, read_frames(spread))
    quantized = path.parent / "int8" / path.name
    quantized.parent.mkdir()
    quantize(path, [exported.graph_input(batch).numpy() for batch in inputs], quantized)

    before, after = (average_precision(file, project, dataset) for file in (path, quantized))
    print(f"  AP on the {len(dataset)} images of {dataset.set_name}: float32 {before:.4f}, INT8 {after:.4f}")
    allowed = _MAX_AP_LOSS if args.max_ap_loss is None else args.max_ap_loss
    if not before - after <= allowed:
        loss = f"{path.name} loses {before - after:.4f} AP by --int8, above --max_ap_loss {allowed:g}"
        raise InputError(f"{loss}, so it is not kept: leave --int8 out, or allow more")
    return quantized


def average_precision(path: Path, project: Project, dataset: CocoDataset) -> float:
    """Return the AP of an exported file, as coco_eval.py reports it."""
    detector, options = evaluation_detector(ExportedModel(path, _CPU), project)
    results = detect_dataset(detector, dataset, options, 1, default_workers(), Stopwatch())
    return score(dataset, results).numbers[0]


def move_into_place(file: Path, path: Path) -> None:
    """Move an exported file, and the .bin next to an .xml, to `path`."""
    # Sorted: OpenVINO's weights before the file that refers to them.
    results = sorted(result for result in file.parent.iterdir() if result.is_file())
    print(f"  -> {path} ({sum(result.stat().st_size for result in results) / 1e6:.1f} MB)")
    for result in results:
        with atomic_write(path.with_suffix(result.suffix)) as temporary:
            result.replace(temporary)


if __name__ == "__main__":
    with exit_on_input_error():
        for number in (signal.SIGINT, signal.SIGTERM):  # a shell's background job would ignore SIGINT
            signal.signal(number, signal.default_int_handler)
        main(parse_args())
