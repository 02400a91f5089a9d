"""Make the images of the READMEs anew, with the project's own detector, drawing and charts.

  python .github/make_images.py                all seven: 2.5 minutes on two cores, most of it the tutorial's training
  python .github/make_images.py hero speed     only these: seconds, as neither trains
  python .github/make_images.py training --run tutorial_run    keeps the trained tutorial there, or reuses it

The last three (training, samples, detections) come from the tutorial: its commands are read from projects/README.md
and run as they stand in a temporary folder. Speed bars show the figures below, which are copied from
efficientdet/benchmark/README.md by hand. Everything is written to .github/images/, at most 150 KB each.
"""

# ruff: noqa: E402 (the path must be set before the project's modules are imported)
import argparse
import csv
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from numpy.random import RandomState

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPOSITORY))

from architecture import draw_architecture

from efficientdet import load_detector
from efficientdet.benchmark.workloads import forward_flops
from efficientdet.config import model_config
from efficientdet.data.shapes import draw_image
from utils.charts import BarChart, LineChart, draw_bars, draw_lines, write_chart
from utils.images import read_image
from utils.visualize import draw_boxes

IMAGES = Path(__file__).resolve().parent / "images"
MAX_BYTES = 150_000

HERO_SEEDS = (122, 335, 4, 191, 379, 46)
HERO_COLUMNS = 3
TUTORIAL_IMAGES = (89, 101, 109, 219, 221, 76)  # of the validation set

PUBLISHED_AP = (33.1, 38.8, 42.1, 45.6, 48.8, 50.2, 50.7, 52.7, 53.9)  # COCO val, D0 to D7X

# Milliseconds for one image: D0 at 512 x 512, letterbox and post-processing included; two cores of an Intel Xeon.
# python benchmark.py --what end_to_end --mode plain fused compiled --precision float32 bf16 --compare effdet --runs 25
INFERENCE_MS = {
    "effdet 0.4.1, float32": 175,
    "plain, float32": 139,
    "fused (default), float32": 65,
    "fused, bfloat16": 56,
    "compiled, float32": 59,
    "compiled, bfloat16": 48,
}
# Time as a share of the straightforward implementation's, same machine.
# python benchmark.py --what train loss --precision float32 bf16
# python benchmark.py --what eval prepare postprocess -p shapes
SHARES = {
    "training step, float32": 0.59,
    "training step, bfloat16": 0.46,
    "loss": 0.14,
    "evaluation": 0.43,
    "image preparation": 0.24,
    "post-processing": 0.39,
}
OTHERS_COLOR, OWN_COLOR = "#b0b0b0", "#1f77b4"


def parse_args(args: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"{', '.join(MAKERS)} (default: all)")
    parser.add_argument("--run", type=Path, help="folder of a tutorial run, made if it does not exist (default: none)")
    parsed = parser.parse_args(args)
    for name in parsed.names:
        if name not in MAKERS:
            parser.error(f"no image is called {name}: choose from {', '.join(MAKERS)}")
    return parsed


def main(args: argparse.Namespace) -> None:
    names = args.names or list(MAKERS)
    IMAGES.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as temporary:
        run = args.run or Path(temporary)
        if set(names) & FROM_TUTORIAL and not (run / "logs").exists():
            run_tutorial(run)
        for name in names:
            path = MAKERS[name](run) if name in FROM_TUTORIAL else MAKERS[name]()
            print(f"{path.relative_to(REPOSITORY)}  {path.stat().st_size / 1000:.0f} KB")
            if path.stat().st_size > MAX_BYTES:
                raise SystemExit(f"error: {path} is larger than {MAX_BYTES} bytes")


def make_hero() -> Path:
    """Detections of the shipped weights on images drawn from seeds outside their training set."""
    detector = load_detector(0, REPOSITORY / "weights" / "efficientdet-d0_shapes.pth", "shapes", "cpu")
    tiles = []
    for seed in HERO_SEEDS:
        image, _ = draw_image(RandomState((7, seed)))
        (found,) = detector([image], score_threshold=0.4)
        height, width = image.shape[:2]
        large = cv2.resize(image, (2 * width, 2 * height), interpolation=cv2.INTER_CUBIC)
        labels = [
            f"{detector.project.class_names[class_id]} {score:.2f}"
            for class_id, score in zip(found.class_ids.tolist(), found.scores.tolist())
        ]
        order = slice(None, None, -1)  # the best last, on top
        boxes = 2 * found.boxes.numpy()
        tiles.append(draw_boxes(large, boxes[order], found.class_ids.numpy()[order], labels[order]))
    rows = [tiles[start : start + HERO_COLUMNS] for start in range(0, len(tiles), HERO_COLUMNS)]
    return write_small_jpeg("hero", stack([in_a_row(row, 1280) for row in rows]))


def make_architecture() -> Path:
    return write_png("architecture", draw_architecture())


def make_accuracy() -> Path:
    """Published AP over the operations of one forward pass at the standard input size."""
    gflop = [forward_flops(coef, model_config(coef).input_size) / 1e9 for coef in range(9)]
    points = list(zip(gflop, PUBLISHED_AP))
    figure = draw_lines(
        LineChart(
            "EfficientDet D0 to D7X: published AP over computation",
            {"published AP": points},
            x_label="GFLOP per image (a multiply-add counts as two)",
            y_label="published AP, COCO val2017",
            y_limits=(30, 58),
        )
    )
    figure.set_size_inches(9, 4.6)
    (axes,) = figure.axes
    axes.get_legend().remove()
    axes.set_xscale("log")
    axes.set_xlim(2, 1600)
    axes.set_xticks([5, 10, 20, 50, 100, 200, 500, 1000], ["5", "10", "20", "50", "100", "200", "500", "1000"])
    axes.minorticks_off()
    for coef, point in enumerate(points):
        name, side = ("D7X" if coef == 8 else f"D{coef}"), model_config(coef).input_size
        below = coef in (6, 7)  # close to their neighbors
        axes.annotate(
            f"{name} · {side} px",
            point,
            xytext=(8, -13) if below else (-6, 8),
            textcoords="offset points",
            ha="left" if below else "right",
            fontsize=9.5,
            color="#303030",
        )
    return write_png("accuracy", figure)


def make_speed() -> Path:
    figure = draw_bars(
        BarChart("D0, one image to detections (ms)", list(INFERENCE_MS), {"ms": list(INFERENCE_MS.values())}),
        BarChart("time relative to the plain implementation", list(SHARES), {"share": list(SHARES.values())}),
    )
    figure.set_size_inches(11, 2.9)
    times, shares = figure.axes
    for bar, name in zip(times.patches, INFERENCE_MS):
        bar.set_color(OTHERS_COLOR if name.startswith(("effdet", "plain")) else OWN_COLOR)
    for label, share in zip(shares.texts, SHARES.values()):
        label.set_text(f"{share:.2f}")
    for label in (*times.texts, *shares.texts):
        label.set_fontsize(9)
    shares.set_xlim(0, 1.08)
    shares.axvline(1, color=OTHERS_COLOR, linestyle="--")
    return write_png("speed", figure)


def make_training(run: Path) -> Path:
    """The curves of the tutorial's training, above parts of its evaluation report."""
    (history,) = run.glob("logs/*/history.csv")
    with open(history, newline="") as file:
        rows = list(csv.DictReader(file))

    def line(column: str) -> list[tuple[float, float]]:
        return [(float(row["epoch"]), float(row[column])) for row in rows]

    figure = draw_lines(
        LineChart(
            "loss", {"training": line("train_loss"), "validation": line("val_loss")}, "epoch", y_limits=(0, None)
        ),
        LineChart("average precision (AP)", {"AP50": line("AP50"), "AP": line("AP")}, "epoch", y_limits=(0, 1)),
    )
    figure.set_size_inches(12.4, 3.4)
    with tempfile.TemporaryDirectory() as temporary:
        curves = Path(temporary) / "curves.png"
        write_chart(curves, figure)
        top = scaled(read_image(curves), 1280)
    (report,) = run.glob("logs/*/eval-*")
    worst = next(iter(sorted((report / "worst").iterdir())))
    thumbnails = [read_image(path) for path in (report / "confusion.png", worst)]
    return write_small_jpeg("training", stack([top, in_a_row(thumbnails, 1280)]))


def make_samples(run: Path) -> Path:
    """The sheet of augmented training samples that the tutorial's check draws."""
    (sheet,) = run.glob("test/check_*_train.jpg")
    return write_small_jpeg("samples", scaled(read_image(sheet), 1100))


def make_detections(run: Path) -> Path:
    """Some of the images that the tutorial's last command annotates."""
    tiles = [read_image(run / "test" / f"{number:06d}.png") for number in TUTORIAL_IMAGES]
    return write_small_jpeg("detections", stack([in_a_row(tiles[:3], 1100), in_a_row(tiles[3:], 1100)]))


MAKERS = {
    "hero": make_hero,
    "architecture": make_architecture,
    "accuracy": make_accuracy,
    "speed": make_speed,
    "training": make_training,
    "samples": make_samples,
    "detections": make_detections,
}
FROM_TUTORIAL = {"training", "samples", "detections"}


def run_tutorial(folder: Path) -> None:
    """Run the bash blocks of the section "Tutorial" of projects/README.md in `folder`."""
    text = (REPOSITORY / "projects" / "README.md").read_text()
    section = re.split(r"^## ", text.partition("\n## Tutorial")[2], maxsplit=1, flags=re.MULTILINE)[0]
    folder.mkdir(parents=True, exist_ok=True)
    for name in (
        "train.py",
        "coco_eval.py",
        "efficientdet_test.py",
        "efficientdet",
        "efficientnet",
        "utils",
        "weights",
    ):
        (folder / name).symlink_to(REPOSITORY / name)
    shutil.copytree(REPOSITORY / "projects", folder / "projects")
    for block in re.findall(r"^```bash\n(.*?)^```", section, flags=re.MULTILINE | re.DOTALL):
        print(block.rstrip(), flush=True)
        subprocess.run(["bash", "-euc", block], cwd=folder, check=True)


def scaled(image: np.ndarray, width: int) -> np.ndarray:
    height = round(image.shape[0] * width / image.shape[1])
    return cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)


def in_a_row(images: Sequence[np.ndarray], width: int, gap: int = 8) -> np.ndarray:
    """Images side by side at equal height, white gaps between them, `width` pixels altogether."""
    aspects = [image.shape[1] / image.shape[0] for image in images]
    height = round((width - gap * (len(images) - 1)) / sum(aspects))
    row = np.full((height, width, 3), 255, np.uint8)
    left = 0
    for number, image in enumerate(images):
        last = number == len(images) - 1
        right = width if last else left + round(height * aspects[number])
        row[:, left:right] = cv2.resize(image, (right - left, height), interpolation=cv2.INTER_AREA)
        left = right + gap
    return row


def stack(rows: Sequence[np.ndarray], gap: int = 8) -> np.ndarray:
    """Images of equal width below each other, with white gaps."""
    line = np.full((gap, rows[0].shape[1], 3), 255, np.uint8)
    return np.concatenate([part for row in rows for part in (line, row)][1:])


def write_small_jpeg(name: str, image: np.ndarray) -> Path:
    """Write a JPEG file at the best quality that fits into MAX_BYTES."""
    path = IMAGES / f"{name}.jpg"
    for quality in range(92, 40, -3):
        _, data = cv2.imencode(".jpg", image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality])
        if data.size <= MAX_BYTES:
            break
    path.write_bytes(data.tobytes())
    return path


def write_png(name: str, figure) -> Path:
    path = IMAGES / f"{name}.png"
    write_chart(path, figure)
    return path


if __name__ == "__main__":
    main(parse_args())
