"""Measure speed and memory, compared with straightforward code, other packages and exported files.

  python benchmark.py -c 0 1 2 3 4 5 6 7 8      the reference's table (90 seconds for D0 on two cores)
  python benchmark.py --what end_to_end --mode fused compiled --precision float32 bf16 --compare effdet -w model.onnx
  python benchmark.py --what loader train -p shapes             do images arrive as fast as training uses them?

The contenders take turns, each in its own process, so that their ratios hold even if the machine's speed drifts.
Ctrl+C shows and writes the results so far. Images and weights are random; 1,000 anchors pass the score threshold.

Modes:
  plain         not fused, contiguous in memory, eager; decodes all boxes; computes the loss image by image
  fused         what the other scripts run
  compiled      the same through torch.compile; the first pass includes compiling
  cudagraph     the same as CUDA graphs, on a GPU

Work:
"""

import argparse
import signal
import tempfile
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import product
from pathlib import Path

import torch

from efficientdet.benchmark.baselines import PEERS
from efficientdet.benchmark.report import Report
from efficientdet.benchmark.workloads import KINDS, PRECISIONS, Contender, make_workload, realistic_weights
from efficientdet.checkpoints.find import find_weights, is_exported, resolve_weights
from efficientdet.config import model_config
from efficientdet.data.shapes import draw_if_absent
from efficientdet.project import load_project
from efficientdet.runtime.exported import ExportedModel
from efficientdet.runtime.modes import MODES
from utils.cli import add_flags, make_parser, non_negative_int, positive_int
from utils.device import check_compiler, select_device
from utils.errors import InputError, exit_on_input_error
from utils.files import make_folder_for
from utils.measuring import Measured, matmul_speed, measure
from utils.optional import require_packages


def parse_args(args: Sequence[str] | None = None) -> argparse.Namespace:
    work = [f"  {what:<13} {kind.make.__doc__} Batches of {kind.batch_size}." for what, kind in KINDS.items()]
    parser = make_parser("\n".join([__doc__.strip(), *work]))
    add, default = parser.add_argument, ["end_to_end", "forward"]
    add("--what", nargs="+", choices=KINDS, metavar="WORK", default=default, help="(default: end_to_end forward)")
    add("--mode", nargs="+", choices=MODES, metavar="MODE", default=["plain", "fused"], help="(default: plain fused)")
    add("--precision", nargs="+", choices=PRECISIONS, default=["float32"], help="of the modes (default: float32)")
    add("--compare", nargs="+", choices=PEERS, default=[], help="packages, in end_to_end; effdet also in forward")
    size = "side of the input in pixels (default: the exported file's, else the coefficient's)"
    weights = "exported files that compete; or weights for eval (default: the project's own)"
    add_flags(parser, "cuda", "device", compound_coef={"nargs": "+", "default": [0], "metavar": "N"})
    add_flags(parser, batch_size={"nargs": "+", "metavar": "N", "help": "images per pass (default: see Work)"})
    add_flags(parser, image_size={"type": positive_int, "metavar": "SIDE", "help": size})
    add_flags(parser, weights={"nargs": "+", "default": [], "help": weights})
    add("--runs", type=positive_int, metavar="N", help="counted passes of each (default: 3 to 15, in 20 seconds)")
    add("--warmup", type=non_negative_int, default=1, help="passes between the first and those (default: 1)")
    add("--json", type=Path, metavar="FILE", help="write all figures to a file")
    add("--markdown", type=Path, metavar="FILE", help="write the tables to a file")
    group = parser.add_argument_group("loader, prepare, eval")
    add_flags(group, "project", "data_path", num_workers={"default": 2, "help": "loading workers (default: 2)"})
    return parser.parse_args(args)


def main(args: argparse.Namespace) -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)  # even if a shell started this in the background
    device = select_device(args.cuda, args.device)
    check(args, device)
    with tempfile.TemporaryDirectory() as folder:
        groups = list(plan(args, device, Path(folder)))
        limited = ("float32", *args.precision) if any(KINDS[what].forward_passes for what in args.what) else ()
        report = Report(device, {name: matmul_speed(device, PRECISIONS[name]) for name in limited})
        try:
            for number, group in enumerate(groups, 1):
                measure_group(args, group, f"{number}/{len(groups)}", report)
        except KeyboardInterrupt:
            print("stopped: the rest is not measured\n")
            raise
        finally:
            if report.rows:
                report.finish(args.json, args.markdown)


def check(args: argparse.Namespace, device: torch.device) -> None:
    """Raise InputError for flags that do not go together, before anything is measured."""
    if device.type == "cpu" and {"fp16", "cudagraph"}.intersection(args.precision + args.mode):
        raise InputError("--precision fp16 and --mode cudagraph need a GPU: choose others")
    if "compiled" in args.mode:
        check_compiler(device)
    exportable = [name for name, kind in KINDS.items() if kind.accepts_exported]
    suitable = {f"-w {path}": exportable if is_exported(path) else ["eval"] for path in args.weights}
    for package in args.compare:
        suitable[f"--compare {package}"] = [name for name, kind in KINDS.items() if package in kind.peers]
    for flag, work in suitable.items():
        if not set(work) & set(args.what):
            raise InputError(f"{flag} is for --what {', '.join(work)}, not {' '.join(args.what)}")
    require_packages(args.compare, f"--compare {' '.join(args.compare)}")
    if len(weights := [path for path in args.weights if not is_exported(path)]) > 1:
        raise InputError(f"-w {' '.join(weights)}: eval measures one weights file")
    for path in filter(None, (args.json, args.markdown)):
        make_folder_for(path)


def plan(args: argparse.Namespace, device: torch.device, folder: Path) -> Iterator[list[Contender]]:
    """Yield groups of contenders that take turns, with random weights in `folder`. Raises InputError for bad files."""
    models = {path: ExportedModel(path, device) for path in args.weights if is_exported(path)}
    for path, model in models.items():
        if model.compound_coef not in args.compound_coef:
            raise InputError(f"{path} is D{model.compound_coef}: pass -c {model.compound_coef}")
    for coef in dict.fromkeys(args.compound_coef):
        files = {path: model for path, model in models.items() if model.compound_coef == coef}
        precisions = {path: model.metadata.precision for path, model in files.items()}
        sizes = {model.canvas(args.image_size) for model in files.values()}
        (side, width), *others = sizes or {model_config(coef).input_shape(args.image_size)}
        if others or side != width:
            raise InputError(f"{', '.join(files)}: all must have the same square input; measure them separately")
        for what in dict.fromkeys(args.what):
            kind, weights = KINDS[what], folder / f"d{coef}.pth"
            everyone: list[tuple[str, str]] = []
            for mode in dict.fromkeys(mode for mode in args.mode if mode in kind.modes):
                everyone += product([mode], args.precision if mode in kind.in_precisions else ["float32"])
            peers = [name for package in args.compare if package in kind.peers for name in PEERS[package]]
            everyone += [*product(peers, ["float32"]), *(precisions.items() if kind.accepts_exported else [])]
            if not everyone:
                raise InputError(f"--what {what} has the modes {', '.join(kind.modes)}, not {' '.join(args.mode)}")
            project = load_project(args.project if kind.needs_data else "coco")
            if what == "eval":
                requested = next((path for path in args.weights if path not in models), None)
                weights = find_weights(resolve_weights(requested, project.name, coef, Path("logs")))
            for size in dict.fromkeys(args.batch_size or [kind.batch_size]):
                common = coef, side, size, device, project, args.data_path, weights, args.num_workers
                yield [Contender(what, name, precision, *common) for name, precision in everyone]


def measure_group(args: argparse.Namespace, group: list[Contender], number: str, report: Report) -> None:
    """Let a group take turns and report the results, even after Ctrl+C."""
    first, measured = group[0], dict[Contender, Measured]()
    if KINDS[first.what].needs_data:
        draw_if_absent(first.project, first.data_path)
    elif first.what in ("end_to_end", "forward") and not first.weights.exists():
        torch.save(realistic_weights(first), first.weights)
    torch.cuda.empty_cache()  # leaves the GPU to the contenders
    try:
        makers = {contender: partial(make_workload, contender) for contender in group}
        measure(makers, f"{number} {first.what} D{first.compound_coef}", measured, args.runs, args.warmup)
    finally:
        if measured:
            report.add(measured)


def command() -> None:
    """Run the script or `efficientdet-benchmark`."""
    with exit_on_input_error():
        main(parse_args())


if __name__ == "__main__":
    command()
