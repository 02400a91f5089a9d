"""What a run shows: progress bars, TensorBoard, the history's table and curves, images of detections."""

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from tensorboardX import SummaryWriter
from tqdm import tqdm

from efficientdet.data.dataset import CocoDataset
from efficientdet.data.loader import Batch, BatchLoader
from efficientdet.model.postprocess import MAX_CANDIDATES, postprocess
from efficientdet.project import Project
from efficientdet.structures import PADDING_CLASS, Detections, Outputs
from efficientdet.training.step import StepResult
from efficientdet.training.validation import Validated
from utils.charts import LineChart, draw_lines, write_chart
from utils.distributed import rank, world_size
from utils.files import atomic_write
from utils.images import write_image
from utils.visualize import draw_boxes, side_by_side

SHOWN_SCORE_THRESHOLD = 0.2
SHOWN_IOU_THRESHOLD = 0.2
HISTORY_COLUMNS = (
    "epoch", "step", "lr", "train_loss", "train_class", "train_box", "skipped",
    "val_loss", "val_class", "val_box", "AP", "AP50", "AP75",
)  # fmt: skip
_CHARTS = {
    "loss": ("train_loss", "val_loss"),
    "average precision on the validation set": ("AP", "AP50", "AP75"),
    "learning rate": ("lr",),
}
_TAGS = {"val_class": "classification_loss", "val_box": "regression_loss", "val_loss": "loss"}
_TAGS |= {name: name for name in ("AP", "AP50", "AP75")}


class Monitor:
    """Write `tensorboard/`, `history.csv` and `curves.png` into `folder`.

    Args:
        steps_before: steps of the run so far; TensorBoard hides later ones that an interrupted part of it has logged.
        debug_folder: where each step draws its detections next to the ground truth; None draws nothing.
    """

    def __init__(self, folder: Path, project: Project, steps_before: int, debug_folder: Path | None = None):
        self._folder = folder
        self._project = project
        self._debug_folder = debug_folder
        self._writer = SummaryWriter(str(folder / "tensorboard"), purge_step=steps_before + 1)

    def step(self, number: int, batches: Sequence[Batch], result: StepResult, learning_rate: float) -> None:
        """Log the figures of a step; draw its last micro-batch if debugging."""
        for tag, value in (
            ("classification_loss", result.losses.classification),
            ("regression_loss", result.losses.regression),
            ("loss", result.losses.total),
            ("gradient_norm", result.gradient_norm),
            ("learning_rate", learning_rate),
        ):
            self._writer.add_scalar(f"train/{tag}", value, number)
        if self._debug_folder is not None:
            write_debug_images(batches[-1], result.outputs, self._project, self._debug_folder)

    def epoch(self, history: list[dict], validated: Validated | None, dataset: CocoDataset) -> None:
        """Write the history up to this epoch; log and print the epoch's validation on `dataset` if it had one."""
        write_history(history, self._folder)
        if not validated:
            return
        row = history[-1]
        tqdm.write(epoch_summary(row))
        for name, tag in _TAGS.items():
            if name in row:
                self._writer.add_scalar(f"val/{tag}", row[name], row["step"])
        for image_id, detections in validated.shown.items():
            shown = detections[detections.scores >= SHOWN_SCORE_THRESHOLD]
            pixels, ground_truth = dataset.load_image(image_id), dataset.target(image_id)
            drawn = draw_beside_ground_truth(pixels, shown, *ground_truth, dataset.project)
            self._writer.add_image(f"val/{image_id}", drawn, row["step"], dataformats="HWC")

    def flush(self) -> None:
        """Write to disk what TensorBoard would lose if the process were killed."""
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


class NoMonitor:
    """The monitor of all ranks but 0: shows nothing."""

    def step(self, number: int, batches: Sequence[Batch], result: StepResult, learning_rate: float) -> None: ...

    def epoch(self, history: list[dict], validated: Validated | None, dataset: CocoDataset) -> None: ...

    def flush(self) -> None: ...

    def close(self) -> None: ...


def progress_bar(title: str, batches: BatchLoader) -> tqdm:
    """Return a bar that counts images, on rank 0. A terminal of 80 columns cuts the bar itself only."""
    layout = "{desc} {percentage:3.0f}% {rate_noinv_fmt}{postfix} {n_fmt}/{total_fmt} {remaining} |{bar}|"
    images = batches.num_images * world_size()
    return tqdm(desc=title, total=images, unit="img", bar_format=layout, dynamic_ncols=True, disable=rank() > 0)


def step_summary(number: int, result: StepResult, learning_rate: float, skipped: int) -> str:
    """Return what the bar says about a step; `skipped` counts the run's skipped steps."""
    losses = f"class {result.losses.classification:.4f}, box {result.losses.regression:.4f}"
    return f"step {number}, {losses}, lr {learning_rate:g}" + (f", {skipped} skipped" if skipped else "")


def epoch_summary(row: Mapping[str, float]) -> str:
    """Return a line on an epoch with validation, from its row of the history."""
    precision = "no objects to measure average precision on"
    if "AP" in row:
        precision = f"AP {row['AP']:.3f}, AP50 {row['AP50']:.3f}"
    return (
        f"epoch {row['epoch']}: train loss {row['train_loss']:.4f}; validation loss {row['val_loss']:.4f} "
        f"(class {row['val_class']:.4f}, box {row['val_box']:.4f}), {precision}"
    )


def write_history(rows: Sequence[Mapping[str, float]], folder: Path) -> None:
    """Write `history.csv` and `curves.png` into `folder`. Keys that are no HISTORY_COLUMNS are left out."""
    table = io.StringIO()
    writer = csv.DictWriter(table, HISTORY_COLUMNS, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    with atomic_write(folder / "history.csv") as temporary:
        temporary.write_text(table.getvalue())
    charts = []
    for title, columns in _CHARTS.items():
        lines = {name: [(row["epoch"], row[name]) for row in rows if row.get(name) is not None] for name in columns}
        charts.append(LineChart(title, lines, x_label="epoch"))
    write_chart(folder / "curves.png", draw_lines(*charts))


def write_debug_images(batch: Batch, outputs: Outputs, project: Project, folder: Path) -> None:
    """Write `{project}_{image_id}.jpg` for each image of the batch, drawn by `draw_beside_ground_truth`."""
    height, width = batch.images.shape[-2:]
    detections = postprocess(outputs, height, width, SHOWN_SCORE_THRESHOLD, SHOWN_IOU_THRESHOLD, MAX_CANDIDATES)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (project.mean, project.std))
    for i, (image_id, found) in enumerate(zip(batch.image_ids, detections)):
        pixels = (batch.images[i].cpu() * std + mean).mul(255).round().clamp(0, 255).byte().permute(1, 2, 0).numpy()
        real = batch.targets.class_ids[i] != PADDING_CLASS
        boxes, class_ids = batch.targets.boxes[i][real], batch.targets.class_ids[i][real]
        drawn = draw_beside_ground_truth(pixels, found, boxes.cpu().numpy(), class_ids.cpu().numpy(), project)
        write_image(folder / f"{project.name}_{image_id}.jpg", drawn)


def draw_beside_ground_truth(
    image: np.ndarray, detections: Detections, boxes: np.ndarray, class_ids: np.ndarray, project: Project
) -> np.ndarray:
    """Return two drawn copies of `image` (H, W, 3): detections on the left, ground truth `boxes` xyxy on the right."""
    names = project.class_names
    scored = zip(detections.class_ids.tolist(), detections.scores.tolist())
    labels = [f"{names[class_id]} {score:.2f}" for class_id, score in scored]
    found = draw_boxes(image, detections.boxes.numpy(), detections.class_ids.numpy(), labels)
    return side_by_side(found, draw_boxes(image, boxes, class_ids, [names[class_id] for class_id in class_ids]))
