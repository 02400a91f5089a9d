"""What the benchmark has measured: as figures, as a table, and as JSON."""

import json
import platform
import shlex
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path

import torch

from efficientdet.benchmark.peers import TORCHVISION_MODELS
from efficientdet.benchmark.workloads import KINDS, Contender, forward_flops
from efficientdet.config import CONFIGS
from efficientdet.runtime.modes import MODES
from utils.files import atomic_write
from utils.measuring import Measured

MIB = 2**20
REFERENCE_TITLE = (
    "the reference's table: FPS one by one with post-processing, extreme FPS of the network in batches of 32"
)
# The table of "Yet Another EfficientDet Pytorch": images per second one by one with post-processing ("FPS"), and in
# batches of 32 by the network alone ("extreme FPS"); MB of GPU memory.
REFERENCE_MACHINE = "reference, RTX 2080 Ti, April 2020"
REFERENCE = {
    0: (36.20, 163.14, 1049),
    1: (29.69, 63.08, 1159),
    2: (26.50, 40.99, 1321),
    3: (22.73, None, 1647),
    4: (14.75, None, 1903),
    5: (7.11, None, 2255),
    6: (5.30, None, 2985),
    7: (3.73, None, 3819),
}
COLUMNS = {  # figure -> title and format
    "contender": ("", "{}"),
    "precision": ("precision", "{}"),
    "median_ms": ("median ms", "{:.1f}"),
    "min_ms": ("min", "{:.1f}"),
    "max_ms": ("max", "{:.1f}"),
    "images_per_second": ("images/s", "{:.2f}"),
    "time_of_plain": ("/ plain", "{:.2f}"),
    "time_of_effdet": ("/ effdet", "{:.2f}"),
    "postprocessing_share": ("post", "{:.1%}"),
    "first_pass_seconds": ("first s", "{:.2f}"),
    "peak_mib": ("peak MiB", "{:.0f}"),
    "matmul_peak_share": ("of limit", "{:.0%}"),
}
LEGEND = """\
median, min, max  milliseconds of a pass through the batch
/ plain, / effdet  the median as a share of that of plain, and of effdet, in float32
post  share of the time from the network's outputs to the detections (compiled, exported: from the candidates on)
first  seconds of the first pass, compiling and recording included
peak  memory of the first pass beyond what was held before it (by the process; on a GPU, by its tensors there)
limit  the speed at which the machine multiplies large matrices in this precision
FPS  from the decoded image on; the reference's, from the network's input on
memory  at the peak of FPS, all that was held (by the process; on a GPU, by its tensors there)
train  three times the operations of forward"""


@dataclass
class Results:
    """What a run of the benchmark has found out so far."""

    device: torch.device
    date: str = field(default_factory=lambda: datetime.now().strftime("%Y-%m-%d %H:%M"))  # when it began
    matmul_speeds: dict[str, float] = field(default_factory=dict)  # floating-point operations per second, by precision
    groups: list[dict[Contender, Measured]] = field(default_factory=list)  # that took turns

    def head(self) -> dict[str, str]:
        """What a reader must know of the run: when, on which machine, with which command."""
        head = {
            "date": self.date,
            "machine": machine_name(self.device),
            "threads": str(torch.get_num_threads()),
            "software": f"torch {torch.__version__}, Python {platform.python_version()}",
            "command": f"python {shlex.join(sys.argv)}",
        }
        if self.matmul_speeds:
            limits = (f"{speed / 1e9:.0f} GFLOP/s in {name}" for name, speed in self.matmul_speeds.items())
            head["limit"] = f"matrix multiplication, {', '.join(limits)}"
        return head

    def rows(self) -> list[dict]:
        return [row for group in self.groups for row in figures(group, self.matmul_speeds)]

    def table(self, group: Mapping[Contender, Measured]) -> list[list[str]]:
        return group_table(figures(group, self.matmul_speeds))


def machine_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def title(group: Mapping[Contender, Measured]) -> str:
    """What the contenders that took turns have in common."""
    contender, measured = next(iter(group.items()))
    parts = [
        f"{contender.what}: D{contender.compound_coef} at {contender.side} x {contender.side}",
        f"batch {contender.batch_size}",
    ]
    if measured.images not in (0, contender.batch_size):
        parts.append(f"{measured.images} images a pass")
    flops = _flops(contender)
    if flops:
        parts.append(f"{flops / 1e9:.1f} GFLOP an image")
    return ", ".join(parts)


def figures(group: Mapping[Contender, Measured], matmul_speeds: Mapping[str, float]) -> list[dict]:
    """The figures of contenders that took turns, by name. None stands for what is not known."""
    rows = []
    for contender, measured in group.items():
        seconds = [result.seconds for result in measured.passes]
        median = _median(measured)
        flops = _flops(contender)
        limit = matmul_speeds.get(contender.precision)
        after = [
            result.postprocessing_seconds for result in measured.passes if result.postprocessing_seconds is not None
        ]
        first = measured.first
        rows.append(
            {
                "what": contender.what,
                "model": f"D{contender.compound_coef}",
                "side": contender.side,
                "batch_size": contender.batch_size,
                "contender": _label(contender),
                "precision": contender.precision,
                "seconds": seconds,
                "median_ms": median and 1e3 * median,
                "min_ms": 1e3 * min(seconds) if seconds else None,
                "max_ms": 1e3 * max(seconds) if seconds else None,
                "images_per_second": median and measured.images / median,
                "time_of_plain": _share_of("plain", contender, group),
                "time_of_effdet": _share_of("effdet", contender, group),
                "postprocessing_share": sum(after) / sum(seconds) if seconds and len(after) == len(seconds) else None,
                "first_pass_seconds": first and first.seconds,
                "peak_mib": first and (first.bytes_at_peak - first.bytes_before) / MIB,
                "process_mib": first and first.bytes_at_peak / MIB,
                "gflop_per_image": flops and flops / 1e9,
                "matmul_peak_share": flops and median and limit and flops * measured.images / median / limit,
                "out_of_memory": measured.out_of_memory,
            }
        )
    return rows


def _flops(contender: Contender) -> int | None:
    """Floating-point operations of the network for an image."""
    passes = KINDS[contender.what].forward_passes
    if not passes or contender.name in TORCHVISION_MODELS:
        return None
    return passes * forward_flops(contender.compound_coef, contender.side)


def _median(measured: Measured) -> float | None:
    return statistics.median(result.seconds for result in measured.passes) if measured.passes else None


def _share_of(name: str, contender: Contender, group: Mapping[Contender, Measured]) -> float | None:
    """The contender's time as a share of the time of `name` in float32."""
    mine = _median(group[contender])
    other = _median(group.get(replace(contender, name=name, precision="float32"), Measured()))
    return mine / other if mine and other else None


def _label(contender: Contender) -> str:
    if contender.name in TORCHVISION_MODELS:
        height, width = TORCHVISION_MODELS[contender.name]
        return f"{contender.name} ({width} x {height})"
    return contender.name


def group_table(rows: Sequence[dict]) -> list[list[str]]:
    """A group's titles and rows, without the columns of which nothing is known."""
    known = {"median_ms", *(key for key in COLUMNS for row in rows if row[key] is not None)}
    columns = {key: column for key, column in COLUMNS.items() if key in known}
    cells = [[_cell(row[key], form) for key, (_, form) in columns.items()] for row in rows]
    for row, line in zip(rows, cells):
        if row["out_of_memory"]:
            line[list(columns).index("median_ms")] += " (out of memory)"
    return [[name for name, _ in columns.values()], *cells]


def reference_table(rows: Sequence[dict]) -> list[list[str]]:
    """The reference's own table with the figures measured here; empty when none of them belongs into it."""
    table = []
    for coef, config in enumerate(CONFIGS):
        ours = [row for row in rows if (row["model"], row["side"]) == (f"D{coef}", config.input_size)]
        one_by_one, in_batches = (
            {
                (row["contender"], row["precision"]): row
                for row in ours
                if (row["what"], row["batch_size"]) == column and row["contender"] in MODES
            }
            for column in (("end_to_end", 1), ("forward", 32))
        )
        contenders = dict.fromkeys((*one_by_one, *in_batches))
        for key in contenders:
            one, many = one_by_one.get(key, {}), in_batches.get(key, {})
            figures_of_key = one.get("images_per_second"), many.get("images_per_second"), one.get("process_mib")
            table.append([f"D{coef}", *key, *_reference_cells(*figures_of_key)])
        if contenders and coef in REFERENCE:
            table.append([f"D{coef}", REFERENCE_MACHINE, "", *_reference_cells(*REFERENCE[coef])])
    return [["", "", "precision", "FPS", "extreme FPS", "memory MiB"], *table] if table else []


def _reference_cells(fps: float | None, extreme_fps: float | None, mib: float | None) -> list[str]:
    return [_cell(fps, "{:.2f}"), _cell(extreme_fps, "{:.2f}"), _cell(mib, "{:.0f}")]


def _cell(value: object, form: str) -> str:
    return "-" if value is None else form.format(value)


def as_text(table: Sequence[Sequence[str]]) -> str:
    """Aligned, the first column and texts on the left, numbers on the right."""
    widths = [max(map(len, column)) for column in zip(*table)]
    lines = (
        "  ".join(cell.ljust(width) if number == 0 else cell.rjust(width) for number, (cell, width) in cells)
        for cells in (enumerate(zip(row, widths)) for row in table)
    )
    return "\n".join(line.rstrip() for line in lines)


def as_markdown(table: Sequence[Sequence[str]]) -> str:
    titles, *rows = table
    lines = [titles, ["---"] * len(titles), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def write_json(path: Path, results: Results) -> None:
    """Everything that is known, for other programs."""
    content = {**results.head(), "matmul_flops_per_second": results.matmul_speeds, "rows": results.rows()}
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n", encoding="utf-8")


def write_markdown(path: Path, results: Results) -> None:
    """What the terminal shows."""
    tables = {title(group): results.table(group) for group in results.groups}
    reference = reference_table(results.rows())
    if reference:
        tables[REFERENCE_TITLE] = reference
    parts = ["\n".join(f"- {name}: `{text}`" for name, text in results.head().items())]
    parts += [f"### {name}\n\n{as_markdown(table)}" for name, table in tables.items()]
    parts.append("\n".join(f"- {line}" for line in LEGEND.splitlines()))
    with atomic_write(path) as temporary:
        temporary.write_text("\n\n".join(parts) + "\n", encoding="utf-8")
