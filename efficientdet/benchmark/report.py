"""The benchmark's results: figures, tables (in Markdown, aligned for the terminal) and files."""

import json
import platform
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path

import torch

from efficientdet.benchmark.baselines import PEERS
from efficientdet.benchmark.workloads import KINDS, Contender, forward_flops
from efficientdet.config import CONFIGS
from efficientdet.runtime.modes import MODES
from utils.files import atomic_write
from utils.measuring import Measured

MIB = 2**20
COLUMNS = {  # figure -> heading and format
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
REFERENCE_COLUMNS = {
    "model": ("", "{}"),
    "contender": ("", "{}"),
    "precision": ("precision", "{}"),
    "fps": ("FPS", "{:.2f}"),
    "extreme_fps": ("extreme FPS", "{:.2f}"),
    "mib": ("memory MiB", "{:.0f}"),
}
REFERENCE_TITLE = (
    "the reference's table: FPS one by one with post-processing, extreme FPS of the network in batches of 32"
)
REFERENCE = "reference, RTX 2080 Ti, April 2020"  # "Yet Another EfficientDet Pytorch", D0 to D7
REFERENCE_FPS = (36.20, 29.69, 26.50, 22.73, 14.75, 7.11, 5.30, 3.73)
REFERENCE_EXTREME_FPS = (163.14, 63.08, 40.99, None, None, None, None, None)
REFERENCE_MIB = (1049, 1159, 1321, 1647, 1903, 2255, 2985, 3819)
LEGEND = """\
- median, min, max: milliseconds per pass; / plain, / effdet: the median relative to theirs in float32
- post: share of the time from the network's outputs (compiled, exported: from the candidates) to the detections
- first: seconds of the first pass, including compiling and recording
- peak: memory of the first pass beyond what was held before it (by the process; on a GPU, by its tensors there)
- limit: the speed of multiplying large matrices in this precision; a training step counts as three forward passes
- FPS: from the decoded image (reference: from the network's input); memory: all that is held at the peak of FPS"""


class Report:
    """The figures of each contender in `rows`, and what is printed in `sections`."""

    def __init__(self, device: torch.device, matmul_speeds: Mapping[str, float]):
        machine = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if device.type == "cpu" and line.startswith("model name"):
                machine = line.split(":")[1].strip()
        self.matmul_speeds = matmul_speeds  # precision -> FLOP/s
        self.rows: list[dict] = []
        self.sections: list[str] = []
        limits = [f"{speed / 1e9:.0f} GFLOP/s in {precision}" for precision, speed in matmul_speeds.items()]
        self.head = {
            "date": datetime.now().strftime("%Y-%m-%d %H:%M"),
            "machine": machine,
            "threads": str(torch.get_num_threads()),
            "software": f"torch {torch.__version__}, Python {platform.python_version()}",
            "command": f"python {shlex.join(sys.argv)}",
            **({"limit": f"matrix multiplication, {', '.join(limits)}"} if limits else {}),
        }
        self._show("\n".join(f"- {name}: `{text}`" for name, text in self.head.items()))

    def add(self, group: Mapping[Contender, Measured]) -> None:
        """Add contenders that took turns."""
        contender, measured = next(iter(group.items()))
        rows = [figures(one, group, self.matmul_speeds.get(one.precision)) for one in group]
        title = f"{contender.what}: D{contender.compound_coef} at {contender.side} x {contender.side}"
        title += f", batch {contender.batch_size}"
        if measured.images not in (0, contender.batch_size):
            title += f", {measured.images} images a pass"
        if rows[0]["gflop_per_image"]:
            title += f", {rows[0]['gflop_per_image']:.1f} GFLOP an image"
        self.rows += rows
        known = [key for key in COLUMNS if key == "median_ms" or any(row[key] is not None for row in rows)]
        self._show(as_markdown(title, rows, {key: COLUMNS[key] for key in known}))

    def finish(self, json_path: Path | None, markdown_path: Path | None) -> None:
        """Add the reference's table and the legend, and write the files."""
        if reference := reference_rows(self.rows):
            self._show(as_markdown(REFERENCE_TITLE, reference, REFERENCE_COLUMNS))
        self._show(LEGEND)
        content = {**self.head, "matmul_flops_per_second": self.matmul_speeds, "rows": self.rows}
        texts = json.dumps(content, indent=1, allow_nan=False), "\n\n".join(self.sections)
        for path, text in zip((json_path, markdown_path), texts):
            if path is not None:
                with atomic_write(path) as temporary:
                    temporary.write_text(f"{text}\n", encoding="utf-8")

    def _show(self, section: str) -> None:
        self.sections.append(section)
        print(f"{section}\n", flush=True)


def figures(contender: Contender, group: Mapping[Contender, Measured], matmul_speed: float | None) -> dict:
    """Return the figures of one contender of a group; None means unknown."""
    measured, passes = group[contender], KINDS[contender.what].forward_passes
    median, first, images = measured.median, measured.first, measured.images
    flops = None
    if passes and contender.name not in PEERS["torchvision"]:
        flops = passes * forward_flops(contender.compound_coef, contender.side)
    seconds = [result.seconds for result in measured.passes]
    after_network = [result.postprocessing_seconds for result in measured.passes if result.postprocessing_seconds]

    def relative_to(name: str) -> float | None:
        other = group.get(replace(contender, name=name, precision="float32"), Measured()).median
        return median / other if median and other else None

    return {
        "what": contender.what,
        "model": f"D{contender.compound_coef}",
        "side": contender.side,
        "batch_size": contender.batch_size,
        "contender": contender.name,
        "precision": contender.precision,
        "seconds": seconds,
        "median_ms": median and 1e3 * median,
        "min_ms": 1e3 * min(seconds) if seconds else None,
        "max_ms": 1e3 * max(seconds) if seconds else None,
        "images_per_second": median and images / median,
        "time_of_plain": relative_to("plain"),
        "time_of_effdet": relative_to("effdet"),
        "postprocessing_share": sum(after_network) / sum(seconds) if after_network else None,
        "first_pass_seconds": first and first.seconds,
        "peak_mib": first and (first.bytes_at_peak - first.bytes_before) / MIB,
        "process_mib": first and first.bytes_at_peak / MIB,
        "gflop_per_image": flops and flops / 1e9,
        "matmul_peak_share": flops and median and matmul_speed and flops * images / median / matmul_speed,
        "out_of_memory": measured.out_of_memory,
    }


def reference_rows(rows: Sequence[dict]) -> list[dict]:
    """Return the rows of the reference's own table with the figures measured here; none if none are comparable."""
    table: dict[tuple, dict] = {}
    for row in rows:
        values = {}
        if (row["what"], row["batch_size"]) == ("end_to_end", 1):
            values = {"fps": row["images_per_second"], "mib": row["process_mib"]}
        elif (row["what"], row["batch_size"]) == ("forward", 32):
            values = {"extreme_fps": row["images_per_second"]}
        if values and row["contender"] in MODES and row["side"] == CONFIGS[int(row["model"][1:])].input_size:
            names = {key: row[key] for key in ("model", "contender", "precision")}
            table.setdefault(tuple(names.values()), names).update(values)
    for coef, fps, extreme_fps, mib in zip(range(8), REFERENCE_FPS, REFERENCE_EXTREME_FPS, REFERENCE_MIB):
        names = {"model": f"D{coef}", "contender": REFERENCE, "precision": ""}
        if any(model == names["model"] for model, *_ in table):
            table[tuple(names.values())] = {**names, "fps": fps, "extreme_fps": extreme_fps, "mib": mib}
    return sorted(table.values(), key=lambda row: row["model"])


def as_markdown(title: str, rows: Sequence[dict], columns: Mapping[str, tuple[str, str]]) -> str:
    """Return an aligned table of the figures named in `columns` (figure -> heading and format), under a title."""
    cells = [[heading for heading, _ in columns.values()]]
    for row in rows:
        cells.append(["-" if row.get(key) is None else form.format(row[key]) for key, (_, form) in columns.items()])
        cells[-1][0] += " (out of memory)" if row.get("out_of_memory") else ""
    first, *widths = (max(map(len, column)) for column in zip(*cells))
    lines = [f"| {' | '.join([name.ljust(first), *map(str.rjust, numbers, widths)])} |" for name, *numbers in cells]
    rule = "|".join(["-" * (first + 2), *("-" * (width + 1) + ":" for width in widths)])
    return "\n".join([f"### {title}\n", lines[0], f"|{rule}|", *lines[1:]])
