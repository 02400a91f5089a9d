"""What a run has gone through, epoch by epoch: a table and a picture of its curves."""

import csv
import io
from pathlib import Path

from utils.charts import LineChart, draw_lines, write_chart
from utils.files import written_whole

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
    with written_whole(folder / "history.csv") as temporary:
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
