"""Measure speed and memory: ours beside the network as one would first write it, and beside other packages.

  python benchmark.py -c 0                      the reference's table for D0: one by one, and batches of 32 (2 minutes)
  python benchmark.py -c 0 1 2 3 4 5 6 7 8      the whole table: for a GPU; on a CPU, batches of 32 take hours
  python benchmark.py --what end_to_end --compare effdet torchvision               other packages (1 minute)
  python benchmark.py --what end_to_end --mode plain fused compiled --precision float32 bf16        (3 minutes)
  python benchmark.py --what forward --batch_size 1 8 32 --json speed.json --markdown speed.md      (3 minutes)
  python benchmark.py --what train --precision float32 bf16                        training steps (1 minute)
  python benchmark.py --what end_to_end --compare effdet -w model.onnx model.xml   and files of efficientdet.export
  python benchmark.py --what loader train -p shapes           do the images come as fast as they are used? (1 minute)
  python benchmark.py --what eval prepare -p shapes           on the way through a validation set (4 minutes)

The times are those of D0 on two cores. Ctrl+C shows, and writes, what is known so far.

What is measured:
  end_to_end    decoded image (640 x 480) -> detections in its pixels, letterbox and post-processing included
  forward       the network alone
  train         a training step: forward, loss, backward, AdamW
  loss          the loss of random predictions, forward and backward
  postprocess   the network's outputs -> detections
  prepare       decoded images of a project -> the network's input, on the CPU
  loader        batches of a project's images to train on, from the loading processes
  eval          a project's validation set -> its results, as coco_eval.py but for the scoring

Modes:
  plain         not fused, contiguous in memory, eager; every anchor's box is decoded; a loss image by image
  fused         what the other scripts run ("ours" where there is nothing to fuse)
  compiled      the same through torch.compile; the first pass waits for the compiler
  cudagraph     the same recorded as CUDA graphs, on a GPU

The contenders take turns, each in a process of its own, so that their ratios hold when the machine's speed drifts.
Weights and image are random, but such that 1,000 anchors pass the score threshold of evaluation. Other packages
detect the same image with random weights in float32: effdet by the same coefficient, torchvision by three detectors
at their own input sizes. An exported file finds what its own weights find.
"""

import argparse
import math
import signal
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import torch

from efficientdet.benchmark.inputs import realistic_weights
from efficientdet.benchmark.peers import PEERS, require_peer
from efficientdet.benchmark.report import (
    LEGEND,
    REFERENCE_TITLE,
    Results,
    as_text,
    reference_table,
    title,
    write_json,
    write_markdown,
)
from efficientdet.benchmark.workloads import KINDS, PRECISIONS, Contender, Material, contenders, make_workload
from efficientdet.checkpoints.find import chosen_weights, is_exported
from efficientdet.config import model_config
from efficientdet.data.shapes import draw_if_absent
from efficientdet.project import load_project
from efficientdet.runtime.exported import ExportedModel
from efficientdet.runtime.metadata import Metadata
from efficientdet.runtime.modes import MODES
from utils.cli import BOOLEAN, non_negative_int, positive_int
from utils.device import check_compiler, chosen_device
from utils.errors import InputError, exit_on_input_error
from utils.files import make_writable_folder
from utils.measuring import Measured, Rounds, matmul_speeds, measure


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add(
        "--what",
        nargs="+",
        choices=KINDS,
        metavar="WORK",
        default=["end_to_end", "forward"],
        help="see above (default: end_to_end forward)",
    )
    add(
        "-c",
        "--compound_coef",
        nargs="+",
        type=int,
        default=[0],
        choices=range(9),
        metavar="N",
        help="0 to 8, which is D7X (default: 0)",
    )
    sizes = ", ".join(f"{kind.batch_size} for {what}" for what, kind in KINDS.items())
    add("--batch_size", nargs="+", type=positive_int, metavar="N", help=f"images per pass (default: {sizes})")
    add(
        "--mode",
        nargs="+",
        choices=MODES,
        metavar="MODE",
        default=["plain", "fused"],
        help="see above (default: plain fused)",
    )
    add(
        "--precision",
        nargs="+",
        choices=PRECISIONS,
        metavar="PRECISION",
        default=["float32"],
        help="of ours: float32, bf16, fp16 (default: float32)",
    )
    add(
        "--compare",
        nargs="+",
        choices=PEERS,
        metavar="PACKAGE",
        default=[],
        help="effdet, torchvision; end_to_end, effdet also forward",
    )
    add(
        "-w",
        "--weights",
        nargs="+",
        metavar="FILE|best|last",
        default=[],
        help="exported files take part in end_to_end, forward, eval; weights are eval's (default: the project's)",
    )
    add(
        "--image_size",
        type=positive_int,
        help="side of the input, pixels (default: the exported file's or the coefficient's, 512 for D0)",
    )
    add("--cuda", **BOOLEAN, help="run on a GPU (default: if there is one)")
    add("--device", type=non_negative_int, default=0, help="which GPU (default: 0)")
    add("--runs", type=positive_int, help="counted passes of each contender (default: 3 to 15, in 20 seconds)")
    add("--warmup", type=non_negative_int, default=1, help="passes of each between the first and these (default: 1)")
    add("--json", type=Path, metavar="FILE", help="write all figures there")
    add("--markdown", type=Path, metavar="FILE", help="write the tables there")
    add = parser.add_argument_group("loader, prepare, eval").add_argument
    add("-p", "--project", default="coco", help="whose images (default: coco)")
    add("--data_path", type=Path, default=Path("datasets"), help="the projects' data (default: datasets/)")
    add("-n", "--num_workers", type=non_negative_int, default=2, help="loading processes, or threads (default: 2)")
    return parser.parse_args()


def main(args: argparse.Namespace) -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)  # also where a shell's background job would ignore it
    results = Results(chosen_device(args.cuda, args.device))
    check(args, results.device)
    exported = read_exported(args, results.device)
    try:
        measure_all(args, results, exported)
    except KeyboardInterrupt:
        print("\nstopped: the rest is not measured")
        raise
    finally:
        if any(results.groups):
            conclude(args, results)


def check(args: argparse.Namespace, device: torch.device) -> None:
    """InputError for what cannot be measured, before anything is."""
    if device.type == "cpu" and "fp16" in args.precision:
        raise InputError("--precision fp16 needs a GPU: pass bf16 or float32")
    if device.type == "cpu" and "cudagraph" in args.mode:
        raise InputError("--mode cudagraph needs a GPU: pass plain, fused or compiled")
    if "compiled" in args.mode:
        check_compiler(device)
    for peer in args.compare:
        takers = [what for what, kind in KINDS.items() if peer in kind.peers]
        if not set(takers) & set(args.what):
            raise InputError(f"--compare {peer} is for --what {' and '.join(takers)}, not {' '.join(args.what)}")
        require_peer(peer)
    files, weights = ([path for path in args.weights if is_exported(path) == wanted] for wanted in (True, False))
    if files and not any(KINDS[what].takes_exported for what in args.what):
        raise InputError(f"-w {files[0]} takes part in end_to_end, forward and eval, not in {' '.join(args.what)}")
    if len(weights) > 1 or weights and "eval" not in args.what:
        raise InputError(f"-w {weights[-1]}: weights are for --what eval, and one file of them")
    for what in args.what:
        if not contenders(what, args.mode, args.precision, args.compare, 0, 0, 0):
            raise InputError(f"--what {what} has the modes {', '.join(KINDS[what].names)}, not {' '.join(args.mode)}")
    for path in (args.json, args.markdown):
        if path is not None:
            if path.is_dir():
                raise InputError(f"{path} is a folder: name a file in it")
            make_writable_folder(path.parent)


def measure_all(args: argparse.Namespace, results: Results, exported: dict[str, Metadata]) -> None:
    """Fills in the results as they come."""
    if any(KINDS[what].forward_passes for what in args.what):
        dtypes = {name: PRECISIONS[name] for name in ("float32", *args.precision)}
        results.matmul_speeds = matmul_speeds(results.device, dtypes)
    for name, text in results.head().items():
        print(f"{name:<9} {text}")
    rounds = Rounds(args.warmup)
    if args.runs is not None:
        rounds = Rounds(args.warmup, least=args.runs, most=args.runs, seconds=math.inf)
    planned = list(plan(args, exported))
    with tempfile.TemporaryDirectory() as folder:
        for number, group in enumerate(planned, 1):
            material = make_material(args, results.device, group[0], Path(folder))
            makes = {contender: partial(make_workload, contender, material) for contender in group}
            measured: dict[Contender, Measured] = {}
            try:
                measure(makes, rounds, f"{number}/{len(planned)} {group[0].what} D{group[0].compound_coef}", measured)
            finally:  # also after Ctrl+C
                if measured:
                    results.groups.append(measured)
                    print(f"\n{title(measured)}\n{as_text(results.table(measured))}", flush=True)


def read_exported(args: argparse.Namespace, device: torch.device) -> dict[str, Metadata]:
    """Path -> what the file says of itself. InputError for one that cannot take part."""
    exported = {}
    for path in filter(is_exported, args.weights):
        model = ExportedModel(path, device)
        if model.compound_coef not in args.compound_coef:
            raise InputError(f"{path} is D{model.compound_coef}: pass -c {model.compound_coef}")
        height, width = model.canvas(args.image_size)
        if height != width:
            raise InputError(f"{path} takes {width} x {height} pixels: square inputs alone are measured")
        exported[path] = model.metadata
    return exported


def plan(args: argparse.Namespace, exported: dict[str, Metadata]) -> Iterator[list[Contender]]:
    """The contenders that are to take turns, group by group."""
    for coef in dict.fromkeys(args.compound_coef):
        files = {path: metadata for path, metadata in exported.items() if metadata.compound_coef == coef}
        sides = {metadata.image_size[0] for metadata in files.values()} if args.image_size is None else set()
        if len(sides) > 1:
            raise InputError(f"the files of D{coef} take inputs of several sizes: measure each by itself")
        side, _ = model_config(coef).input_shape(sides.pop() if sides else args.image_size)
        precisions = {path: metadata.precision for path, metadata in files.items()}
        for what in dict.fromkeys(args.what):
            for batch_size in dict.fromkeys(args.batch_size or [KINDS[what].batch_size]):
                yield contenders(what, args.mode, args.precision, args.compare, coef, side, batch_size, precisions)


def make_material(args: argparse.Namespace, device: torch.device, contender: Contender, folder: Path) -> Material:
    """The project and the weights for a group; random weights are written into `folder`."""
    what, coef = contender.what, contender.compound_coef
    project, weights = load_project("coco"), None
    if KINDS[what].needs_data:
        project = load_project(args.project)
        draw_if_absent(project, args.data_path)
    if what == "eval":
        requested = next((weights for weights in args.weights if not is_exported(weights)), None)
        weights = chosen_weights(requested, project.name, coef, Path("logs"))
    elif what in ("end_to_end", "forward"):
        weights = folder / f"d{coef}.pth"
        if not weights.exists():
            torch.save(realistic_weights(coef, contender.side, project, device), weights)
            torch.cuda.empty_cache()  # the GPU is the contenders'
    return Material(device, project, args.data_path, weights, args.num_workers)


def conclude(args: argparse.Namespace, results: Results) -> None:
    """What all groups amount to, and the files."""
    reference = reference_table(results.rows())
    if reference:
        print(f"\n{REFERENCE_TITLE}\n{as_text(reference)}")
    print(f"\n{LEGEND}")
    if args.json:
        write_json(args.json, results)
    if args.markdown:
        write_markdown(args.markdown, results)


def command() -> None:
    """The script, and `efficientdet-benchmark`."""
    with exit_on_input_error():
        main(parse_args())


if __name__ == "__main__":
    command()
