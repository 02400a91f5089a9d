"""Export a network for deployment, and prove that the exported file computes the same.

  python -m efficientdet.export -p shapes                        ONNX, of the weights that come with the project
  python -m efficientdet.export -p shapes --nms                  image in, boxes, scores, classes and count out
  python -m efficientdet.export -p my_project -c 2 -w best --format onnx torchscript pt2 openvino
  python -m efficientdet.export -p my_project -c 2 -w best --nms --dynamic      any height and width
  python -m efficientdet.export -p my_project -c 2 -w best --format openvino --half
  python -m efficientdet.export -p my_project -c 2 -w best --format openvino --int8

Formats: onnx for ONNX Runtime and most others; openvino (two files, .xml and .bin) for Intel's; pt2 is torch.export's
and torchscript its predecessor's, both for PyTorch without this project.

The file takes a batch of any size. Its images are uint8 RGB (N, height, width, 3): images scaled to fit, at the top
left, the rest filled with the padding colour. With --normalization outside they are float32 (N, 3, height, width),
normalised, the rest zero. It gives class_logits (N, A, classes), box_deltas (N, A, 4) and anchors (A, 4); with --nms
boxes (N, D, 4) as x1, y1, x2, y2 in pixels of the input, scores (N, D), classes (N, D) and count (N). Class names,
anchors, mean, std, size, padding and thresholds are in its metadata.

The proof runs the file in its own engine on real images, beside PyTorch in float32; with --nms, the same graph
without it as well. When an output differs by more than the tolerance, the command fails and no file is written.
"""

import argparse
import signal
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import fields, replace
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor

from efficientdet.checkpoints.find import EXPORT_SUFFIXES, chosen_weights, find_weights
from efficientdet.checkpoints.loading import load_weights
from efficientdet.config import EVALUATION_IOU_THRESHOLD, EVALUATION_SCORE_THRESHOLD
from efficientdet.data.dataset import CocoDataset
from efficientdet.data.shapes import draw_if_absent
from efficientdet.evaluation.coco import score
from efficientdet.export.formats import check_packages, write_exported
from efficientdet.export.proof import Proof, prove, time_in_turns
from efficientdet.export.quantization import CALIBRATION_IMAGES, quantize
from efficientdet.export.quantization import PACKAGES as QUANTIZATION_PACKAGES
from efficientdet.inference.dataset import detect_dataset
from efficientdet.inference.detector import DetectionOptions, Detector
from efficientdet.inference.sources import Entry, Failure, Frame, list_sources, load, open_sources
from efficientdet.model.network import EfficientDet
from efficientdet.project import SHAPES_IMAGES, SHAPES_WEIGHTS, Project, load_project
from efficientdet.runtime.exported import ExportedModel
from efficientdet.runtime.metadata import Metadata, Suppression
from utils.cli import default_workers, fraction, image_size, non_negative_int, positive_int
from utils.device import keep_freed_memory
from utils.errors import InputError, exit_on_input_error
from utils.files import atomic_write, make_writable_folder
from utils.optional import require_packages
from utils.stopwatch import Stopwatch

_CPU = torch.device("cpu")
_SUPPRESSION = Suppression(EVALUATION_SCORE_THRESHOLD, EVALUATION_IOU_THRESHOLD, max_detections=100)
_MAX_AP_LOSS = 0.01
_COUNT_WITH = {"score_threshold": "nms", "iou_threshold": "nms", "max_detections": "nms", "max_ap_loss": "int8"}


def parse_args(args: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m efficientdet.export", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument_group("what to export").add_argument
    add("-p", "--project", default="coco", help="a name under projects/, or a YAML file (default: coco)")
    add("-c", "--compound_coef", type=int, default=0, choices=range(9), help="D0 to D7, 8 is D7X (default: 0)")
    add("-w", "--weights", metavar="FILE|best|last", help="weights file (default: the one in weights/)")
    add("--saved_path", type=Path, default=Path("logs"), help="where -w best and last look (default: logs/)")
    add = parser.add_argument_group("how").add_argument
    add("--format", nargs="+", choices=EXPORT_SUFFIXES, default=["onnx"], help="one or several (default: onnx)")
    add("-o", "--output", type=Path, metavar="FILE", help="default: named and placed as the weights, by its format")
    add("--image_size", type=image_size, metavar="SIDE|WIDTHxHEIGHT", help="of the input (default: the project's)")
    add("--dynamic", action="store_true", help="any height and width the pyramid can take (onnx, openvino)")
    add("--normalization", choices=("inside", "outside"), default="inside", help="see above (default: inside)")
    add("--half", action="store_true", help="weights in float16: half the size")
    add("--int8", action="store_true", help="8-bit integers for CPUs, calibrated on the training images (openvino)")
    add = parser.add_argument_group("what counts as found").add_argument
    add("--nms", action="store_true", help="choose the detections in the graph")
    add("--score_threshold", type=fraction, help=f"with --nms ({_SUPPRESSION.score_threshold})")
    add("--iou_threshold", type=fraction, help=f"with --nms ({_SUPPRESSION.iou_threshold})")
    add("--max_detections", type=positive_int, help=f"with --nms, of an image ({_SUPPRESSION.max_detections})")
    add = parser.add_argument_group("the proof").add_argument
    add(
        "--images",
        "--pictures",
        metavar="SOURCE",
        help="image, folder or pattern (default: the project's validation set)",
    )
    add("--max_images", "--num_pictures", type=positive_int, default=8, help="how many of them (default: 8)")
    add("--data_path", type=Path, default=Path("datasets"), help="folder of the projects' data (default: datasets/)")
    add("--max_ap_loss", type=fraction, help=f"that --int8 may cost on the validation set ({_MAX_AP_LOSS})")
    add("--runs", type=non_negative_int, default=10, help="passes to measure the speed, 0 for none (default: 10)")
    return parser.parse_args(args)


def main(args: argparse.Namespace) -> None:
    for number in (signal.SIGINT, signal.SIGTERM):  # also where a shell's background job would ignore the first
        signal.signal(number, signal.default_int_handler)
    check(args)
    keep_freed_memory()
    project = load_project(args.project)
    weights = find_weights(chosen_weights(args.weights, project.name, args.compound_coef, args.saved_path))
    network = EfficientDet(args.compound_coef, project.num_classes, project.anchor_ratios, project.anchor_scales)
    load_weights(network, weights)
    metadata = describe(args, network.eval(), project)
    beside = Path(weights.name) if weights == SHAPES_WEIGHTS else weights  # these may lie where programs are installed
    make_writable_folder((args.output or beside).parent)
    frames = images_for_proof(args, project)
    dataset = validation_set(args, project, metadata) if args.int8 else None
    for export_format in args.format:
        path = args.output or beside.with_suffix(EXPORT_SUFFIXES[export_format])
        with TemporaryDirectory(dir=path.parent, prefix=".export-") as folder:
            files = [Path(folder) / path.name]
            print(f"D{args.compound_coef} from {weights} as {export_format} ...", flush=True)
            if args.nms:  # hides the raw outputs, so these are proven by the same graph without it
                raw = Path(folder) / "raw" / path.name
                raw.parent.mkdir()
                write_exported(network, replace(metadata, suppression=None), export_format, raw)
                prove_and_tell(raw, network, project, frames)
                print("  with --nms:")
            write_exported(network, metadata, export_format, files[0])
            inputs = prove_and_tell(files[0], network, project, frames)
            if dataset is not None:
                files.append(quantize_and_tell(args, files[0], project, dataset))
            if args.runs:
                speeds = time_in_turns(files, network, inputs[0], args.runs)
                texts = [f"{name} {1000 * seconds:.1f} ms" for name, seconds in speeds]
                print(f"  an image: {', '.join(texts)} (batch 1, {torch.get_num_threads()} threads, {args.runs} runs)")
            # OpenVINO's weights before what names them.
            results = sorted(file for file in files[-1].parent.iterdir() if file.is_file())
            print(f"  -> {path} ({sum(file.stat().st_size for file in results) / 1e6:.1f} MB)")
            for file in results:
                with atomic_write(path.with_suffix(file.suffix)) as temporary:
                    file.replace(temporary)


def prove_and_tell(path: Path, network: EfficientDet, project: Project, frames: Sequence[Frame]) -> list[Tensor]:
    """InputError when the file at `path` does not compute what `network` computes. Returns what both were given."""
    exported = ExportedModel(path, _CPU)
    inputs = list(network_inputs(exported, project, frames))
    proof = prove(exported, network, inputs)
    print_proof(proof, len(frames))
    if not proof.matches.found:
        if exported.metadata.suppression is not None:
            raise InputError(
                "nothing is detected in these images, which proves nothing of a file with --nms: name others by "
                "--images, or lower --score_threshold"
            )
        print("  (nothing is detected in these images: the raw outputs alone are the proof)")
    failure = proof.first_failure
    if failure is not None:
        raise InputError(
            f"{path.name} does not compute what PyTorch computes, and is not kept: {failure.name} differs by "
            f"{failure.largest:.2g}, and {failure.allowed:.2g} is allowed; leave --half out, or try another --format"
        )
    return inputs


def validation_set(args: argparse.Namespace, project: Project, metadata: Metadata) -> CocoDataset:
    """What tells the cost of --int8. InputError when it, or the images to calibrate with, are not there."""
    draw_if_absent(project, args.data_path)
    folder = args.data_path / project.name
    if not (folder / project.train_set).is_dir():
        raise InputError(
            f"--int8 is calibrated on the training images, and there is no folder {folder / project.train_set}"
        )
    return CocoDataset(folder, project.val_set, project, metadata.image_size)


def quantize_and_tell(args: argparse.Namespace, path: Path, project: Project, dataset: CocoDataset) -> Path:
    """The INT8 form of an OpenVINO file. InputError when that costs more than --max_ap_loss."""
    exported = ExportedModel(path, _CPU)
    train_folder = args.data_path / project.name / project.train_set
    pictures = list(list_sources([str(train_folder)]))
    spread = pictures[:: max(1, len(pictures) // CALIBRATION_IMAGES)][:CALIBRATION_IMAGES]
    inputs = network_inputs(exported, project, read_frames(spread))
    calibration = [exported.graph_input(images).numpy() for images in inputs]
    quantized = path.parent / "int8" / path.name
    quantized.parent.mkdir()
    quantize(path, calibration, quantized)

    before, after = (average_precision(file, project, dataset) for file in (path, quantized))
    print(f"  AP on the {len(dataset)} images of {dataset.set_name}: float32 {before:.4f}, INT8 {after:.4f}")
    allowed = _MAX_AP_LOSS if args.max_ap_loss is None else args.max_ap_loss
    if not before - after <= allowed:
        raise InputError(
            f"{path.name} loses {before - after:.4f} AP by --int8, and --max_ap_loss {allowed:g} is allowed: "
            "it is not kept; leave --int8 out, or allow more"
        )
    return quantized


def average_precision(path: Path, project: Project, dataset: CocoDataset) -> float:
    """Of the file at `path`, as coco_eval.py scores it."""
    detector = Detector(ExportedModel(path, _CPU), project, _CPU)
    limits = detector.limits or _SUPPRESSION
    options = DetectionOptions(
        max(EVALUATION_SCORE_THRESHOLD, limits.score_threshold), min(EVALUATION_IOU_THRESHOLD, limits.iou_threshold)
    )
    results = detect_dataset(detector, dataset, options, 1, default_workers(), Stopwatch())
    return score(dataset, results).numbers[0]


def check(args: argparse.Namespace) -> None:
    """InputError for what cannot be exported, before any work."""
    args.format = list(dict.fromkeys(args.format))
    for export_format in args.format:
        check_packages(export_format)
        if args.dynamic and export_format not in ("onnx", "openvino"):
            raise InputError(f"--format {export_format} has a fixed height and width: leave --dynamic out")
    for flag, other in _COUNT_WITH.items():
        if getattr(args, flag) is not None and not getattr(args, other):
            raise InputError(f"--{flag} counts with --{other} alone: add that, or leave it out")
    if args.int8:
        if args.format != ["openvino"] or args.half:
            raise InputError("--int8 is for --format openvino alone, without --half")
        require_packages(QUANTIZATION_PACKAGES, "--int8")
    if args.output is not None:
        if len(args.format) > 1:
            raise InputError("--output names one file: pass one --format, or leave it out")
        suffix = EXPORT_SUFFIXES[args.format[0]]
        if args.output.suffix != suffix:
            raise InputError(
                f"--output {args.output} must end with {suffix}, by which the other scripts know the format"
            )


def describe(args: argparse.Namespace, network: EfficientDet, project: Project) -> Metadata:
    """What the files will say of themselves."""
    given = {field.name: getattr(args, field.name) for field in fields(Suppression)}
    limits = replace(_SUPPRESSION, **{name: value for name, value in given.items() if value is not None})
    red, green, blue = (round(255 * value) for value in project.mean)
    return Metadata(
        compound_coef=args.compound_coef,
        class_names=project.class_names,
        mean=project.mean,
        std=project.std,
        normalization=args.normalization,
        image_size=network.config.input_shape(args.image_size or project.image_size),
        dynamic=args.dynamic,
        size_divisor=network.config.size_divisor,
        padding=(red, green, blue),  # the nearest to zero when normalised
        precision="float16" if args.half else "float32",
        suppression=limits if args.nms else None,
        pyramid_levels=network.config.pyramid_levels,
        anchor_scale=network.config.anchor_scale,
        anchor_scales=project.anchor_scales,
        anchor_ratios=project.anchor_ratios,
    )


def images_for_proof(args: argparse.Namespace, project: Project) -> list[Frame]:
    """The first images of --images, of the validation set, or of those that come with the project."""
    validation_set = args.data_path / project.name / project.val_set
    chosen = args.pictures or str(validation_set if validation_set.is_dir() else SHAPES_IMAGES)
    return list(islice(read_frames(list_sources([chosen])), args.max_images))


def read_frames(entries: Iterable[Entry | Failure]) -> Iterator[Frame]:
    """The images of `entries`. InputError for one that cannot be used."""
    for item in open_sources(entries):
        frame = load(item)
        if isinstance(frame, Failure):
            raise InputError(frame.reason)
        yield frame


def network_inputs(exported: ExportedModel, project: Project, frames: Iterable[Frame]) -> Iterator[Tensor]:
    """Each image as the file takes it: (1, 3, H, W)."""
    detector = Detector(exported, project, _CPU)
    for frame in frames:
        yield from (batch.images for batch in detector.prepare([frame.image], DetectionOptions(), 1).batches)


def print_proof(proof: Proof, num_images: int) -> None:
    print(f"  {f'beside PyTorch, on {num_images} pictures':<38} largest difference      allowed")
    for difference in proof.differences:
        print(f"  {difference.name:<38} {difference.largest:>18.1e} {difference.allowed:>12.1e}")
    matches = proof.matches
    print(
        f"  detections of both: {matches.found}, {matches.unmatched} without a match; of {matches.clear} clear ones "
        f"{matches.clear_unmatched}"
    )


if __name__ == "__main__":
    with exit_on_input_error():
        main(parse_args())
