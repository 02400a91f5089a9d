"""What a run shows of itself: TensorBoard, the history's table and curves, images of predictions beside the truth."""

import csv
import io
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from tensorboardX import SummaryWriter

from efficientdet.data.dataset import CocoDataset
from efficientdet.data.loader import Batch
from efficientdet.model.postprocess import postprocess
from efficientdet.project import Project
from efficientdet.structures import PADDING_CLASS, Detections, Outputs
from efficientdet.training.step import StepResult
from utils.charts import LineChart, draw_lines, write_chart
from utils.files import atomic_write
from utils.images import write_image
from utils.visualize import draw_boxes, side_by_side

COLUMNS = (
    "epoch", "step", "lr", "train_loss", "train_class", "train_box", "skipped",
    "val_loss", "val_class", "val_box", "AP", "AP50", "AP75", "average_AP",
)  # fmt: skip


_CHARTS = {
    "loss": ("train_loss", "val_loss"),
    "average precision on the validation set": ("AP", "AP50", "AP75", "average_AP"),
    "learning rate": ("lr",),
}


def write_history(rows: list[dict[str, float]], folder: Path) -> None:
    """Write `history.csv` and `curves.png` into `folder`. Each row has COLUMNS for its keys, or some of them."""
    table = io.StringIO()
    writer = csv.DictWriter(table, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    with atomic_write(folder / "history.csv") as temporary:
        temporary.write_text(table.getvalue())
    charts = [
        LineChart(
            title,
            {
                column: [(row["epoch"], row[column]) for row in rows if row.get(column) is not None]
                for column in columns
            },
            x_label="epoch",
        )
        for title, columns in _CHARTS.items()
    ]
    write_chart(folder / "curves.png", draw_lines(*charts))


SHOWN_SCORE_THRESHOLD = 0.2


SHOWN_IOU_THRESHOLD = 0.2


_TAGS = {"val_class": "classification_loss", "val_box": "regression_loss", "val_loss": "loss"}


_TAGS |= {name: name for name in ("AP", "AP50", "AP75", "average_AP")}


class Monitor:
    """Writes into `folder`: `tensorboard/`, `history.csv`, `curves.png`.

    Args:
        steps_before: of the run so far; what an earlier part of it wrote of later steps is hidden.
    """

    def __init__(self, folder: Path, steps_before: int):
        self.folder = folder
        self._writer = SummaryWriter(str(folder / "tensorboard"), purge_step=steps_before + 1)

    def step(self, number: int, result: StepResult, learning_rate: float) -> None:
        """The losses of a step."""
        for tag, value in (
            ("classification_loss", result.losses.classification),
            ("regression_loss", result.losses.regression),
            ("loss", result.losses.total),
            ("gradient_norm", result.gradient_norm),
            ("learning_rate", learning_rate),
        ):
            self._writer.add_scalar(f"train/{tag}", value, number)

    def validation(self, row: Mapping[str, float], shown: Mapping[int | str, Detections], dataset: CocoDataset) -> None:
        """An epoch's validation losses and average precision, and the detections `shown` in images of `dataset`."""
        for name, tag in _TAGS.items():
            if name in row:
                self._writer.add_scalar(f"val/{tag}", row[name], row["step"])
        for image_id, found in shown.items():
            sure = found.scores >= SHOWN_SCORE_THRESHOLD
            found = Detections(found.boxes[sure], found.scores[sure], found.class_ids[sure])
            picture = beside_truth(dataset.picture(image_id), found, *dataset.target(image_id), dataset.project)
            self._writer.add_image(f"val/{image_id}", picture, row["step"], dataformats="HWC")

    def epoch(self, history: list[dict[str, float]]) -> None:
        """The table and the image of all epochs so far."""
        write_history(history, self.folder)

    def flush(self) -> None:
        """Put what TensorBoard is to show on the disk."""
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


def write_debug_images(batch: Batch, outputs: Outputs, project: Project, folder: Path) -> None:
    """For each image of the batch `{project}_{image_id}.jpg`: predictions on the left, the truth on the right."""
    height, width = batch.images.shape[-2:]
    detections = postprocess(outputs, height, width, SHOWN_SCORE_THRESHOLD, SHOWN_IOU_THRESHOLD)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (project.mean, project.std))
    for i, (image_id, found) in enumerate(zip(batch.image_ids, detections)):
        pixels = (batch.images[i].cpu() * std + mean).mul(255).round().clamp(0, 255).byte().permute(1, 2, 0).numpy()
        real = batch.targets.class_ids[i] != PADDING_CLASS
        truth = batch.targets.boxes[i][real].cpu().numpy(), batch.targets.class_ids[i][real].cpu().numpy()
        write_image(folder / f"{project.name}_{image_id}.jpg", beside_truth(pixels, found, *truth, project))


def beside_truth(
    image: np.ndarray, found: Detections, boxes: np.ndarray, class_ids: np.ndarray, project: Project
) -> np.ndarray:
    """Two drawn copies of an image (H, W, 3): what was found in it on the left, the true boxes on the right."""
    names = project.class_names
    labels = [f"{names[class_id]} {score:.2f}" for class_id, score in zip(found.class_ids, found.scores.tolist())]
    predicted = draw_boxes(image, found.boxes.numpy(), found.class_ids.numpy(), labels)
    true = draw_boxes(image, boxes, class_ids, [names[class_id] for class_id in class_ids])
    return side_by_side(predicted, true)
