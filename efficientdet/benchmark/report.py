"""The benchmark's results: figures, tables (in Markdown, aligned for the terminal) and files."""

import json
import platform
import re
import shlex
import sys
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path

import torch

from efficientdet.benchmark.baselines import PEERS
from efficientdet.benchmark.workloads import KINDS, Contender, forward_flops
from efficientdet.config import CONFIGS
from efficientdet.runtime.modes import MODES
from utils.files import atomic_write
from utils.measuring import Measured

COLUMNS = {  # figure -> heading and format
    "model": ("", "{}"),
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
    "fps": ("FPS", "{:.2f}"),
    "extreme_fps": ("extreme FPS", "{:.2f}"),
    "mib": ("memory MiB", "{:.0f}"),
}
REFERENCE = "reference, RTX 2080 Ti, April 2020"
REFERENCE_FIGURES = {  # of "Yet Another EfficientDet Pytorch", D0 to D7
    "fps": (36.20, 29.69, 26.50, 22.73, 14.75, 7.11, 5.30, 3.73),
    "extreme_fps": (163.14, 63.08, 40.99, None, None, None, None, None),
    "mib": (1049, 1159, 1321, 1647, 1903, 2255, 2985, 3819),
}
REFERENCE_WORK = {  # work and batch size -> column -> figure
    ("end_to_end", 1): {"fps": "images_per_second", "mib": "process_mib"},
    ("forward", 32): {"extreme_fps": "images_per_second"},
}
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
        self.matmul_speeds = matmul_speeds  # precision -> FLOP/s
        self.rows: list[dict] = []
        self.sections: list[str] = []
        cpus = re.findall(r"^model name\s*: *(.*)", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
        cpu = cpus[0] if cpus else platform.machine()
        limits = [f"{speed / 1e9:.0f} GFLOP/s in {precision}" for precision, speed in matmul_speeds.items()]
        self.head = {
            "date": datetime.now().strftime("%Y-%m-%d %H:%M"),
            "machine": torch.cuda.get_device_name(device) if device.type == "cuda" else cpu,
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
        side, batch_size = contender.side, contender.batch_size
        title = f"{contender.what}: D{contender.compound_coef} at {side} x {side}, batch {batch_size}"
        if measured.images not in (0, batch_size):
            title += f", {measured.images} images a pass"
        if rows[0]["gflop_per_image"]:
            title += f", {rows[0]['gflop_per_image']:.1f} GFLOP an image"
        self.rows += rows
        known = {key for row in rows for key, value in row.items() if value is not None} - {"model"} | {"median_ms"}
        self._show(as_markdown(title, rows, [key for key in COLUMNS if key in known]))

    def finish(self, json_path: Path | None, markdown_path: Path | None) -> None:
        """Add the reference's table and the legend, and write the files."""
        if rows := reference_rows(self.rows):
            title = "the reference's table: FPS end to end, one by one; extreme FPS of the network in batches of 32"
            self._show(as_markdown(title, rows, ["model", "contender", "precision", *REFERENCE_FIGURES]))
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
    medians = {other.name: result.median for other, result in group.items() if other.precision == "float32"}
    ratios = {name: median / other for name, other in medians.items() if median and other}
    has_flops = passes and contender.name not in PEERS["torchvision"]
    flops = passes * forward_flops(contender.compound_coef, contender.side) if has_flops else None
    seconds = [result.seconds for result in measured.passes]
    after_network = [result.postprocessing_seconds for result in measured.passes if result.postprocessing_seconds]
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
        **{f"time_of_{name}": ratios.get(name) for name in ("plain", "effdet")},
        "postprocessing_share": sum(after_network) / sum(seconds) if after_network else None,
        "first_pass_seconds": first and first.seconds,
        "peak_mib": first and (first.bytes_at_peak - first.bytes_before) / 2**20,
        "process_mib": first and first.bytes_at_peak / 2**20,
        "gflop_per_image": flops and flops / 1e9,
        "matmul_peak_share": flops and median and matmul_speed and flops * images / median / matmul_speed,
        "out_of_memory": measured.out_of_memory,
    }


def reference_rows(rows: Sequence[dict]) -> list[dict]:
    """Return the reference's table with the comparable figures of `rows`; empty if there are none."""
    table: dict[tuple, dict] = {}
    for row in rows:
        figures = REFERENCE_WORK.get((row["what"], row["batch_size"]))
        if figures and row["contender"] in MODES and row["side"] == CONFIGS[int(row["model"][1:])].input_size:
            names = {key: row[key] for key in ("model", "contender", "precision")}
            table.setdefault(tuple(names.values()), names).update({key: row[figure] for key, figure in figures.items()})
    for model in {row["model"] for row in table.values()} - {"D8"}:
        published = {key: values[int(model[1:])] for key, values in REFERENCE_FIGURES.items()}
        table[model, REFERENCE] = {"model": model, "contender": REFERENCE, "precision": "", **published}
    return sorted(table.values(), key=lambda row: row["model"])


def as_markdown(title: str, rows: Sequence[dict], figures: Sequence[str]) -> str:
    """Return an aligned table of some of COLUMNS, under a title."""
    headings, formats = zip(*(COLUMNS[figure] for figure in figures))
    cells = [list(headings)]
    for row in rows:
        cells.append(["-" if row.get(key) is None else form.format(row[key]) for key, form in zip(figures, formats)])
        cells[-1][0] += " (out of memory)" if row.get("out_of_memory") else ""
    first, *widths = (max(map(len, column)) for column in zip(*cells))
    lines = [f"| {' | '.join([name.ljust(first), *map(str.rjust, numbers, widths)])} |" for name, *numbers in cells]
    rule = "|".join(["-" * (first + 2), *("-" * (width + 1) + ":" for width in widths)])
    return "\n".join([f"### {title}\n", lines[0], f"|{rule}|", *lines[1:]])
