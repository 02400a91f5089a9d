"""The figure of the network: backbone, BiFPN, heads, and what stands before and behind them."""

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Circle, FancyArrowPatch, FancyBboxPatch

INK, PALE = "#303030", "#6b6b6b"
BLUE, GREEN, ORANGE, VIOLET, GRAY = "#dbe9f6", "#dff0d8", "#fde8cf", "#e8e0f3", "#f0f0f0"
LEVEL_Y = {3: 1.6, 4: 2.6, 5: 3.6, 6: 4.6, 7: 5.6}
LEVEL_COLORS = {3: "#c6dbef", 4: "#9ecae1", 5: "#6baed6", 6: "#fdd0a2", 7: "#fdae6b"}
IN_X, MIDDLE_X, OUT_X = 5.3, 6.3, 7.3
RADIUS = 0.27


def draw_architecture() -> Figure:
    figure = Figure(figsize=(10.6, 5.1), layout="constrained")
    axes = figure.subplots()
    axes.set(xlim=(0, 14), ylim=(0.3, 6.75), aspect="equal")
    axes.set_axis_off()
    _draw_backbone(axes)
    _draw_bifpn(axes)
    _draw_heads(axes)
    return figure


def _draw_backbone(axes: Axes) -> None:
    _panel(axes, (0.1, 0.9), 1.35, 5.3, GRAY, "input", "efficientdet/\ndata/transforms.py")
    _box(axes, (0.25, 3.1), 1.05, 1.0, "white", "letterbox\n512 to 1536\npixels")
    _panel(axes, (1.85, 0.9), 2.3, 5.3, BLUE, "backbone", "efficientnet/\nmodel.py")
    axes.text(3.0, 5.72, "EfficientNet\nB0 to B7", ha="center", va="center", fontsize=9, color=INK)
    _arrow(axes, (1.3, 3.6), (1.85, 3.6))
    for level, stride in ((1, 2), (2, 4), (3, 8), (4, 16), (5, 32)):
        width = 2.0 - 0.2 * level
        y = 0.75 + 0.75 * level
        color = LEVEL_COLORS.get(level, "white")
        _box(axes, (3.0 - width / 2, y), width, 0.52, color, f"P{level}   /{stride}")


def _draw_bifpn(axes: Axes) -> None:
    _panel(axes, (4.6, 0.9), 3.5, 5.3, GREEN, "BiFPN", "efficientdet/\nmodel/bifpn.py")
    axes.text(6.35, 1.08, "3 to 8 such cells in a row", ha="center", va="center", fontsize=8.5, color=PALE)
    for level, y in LEVEL_Y.items():
        start = 0.75 + 0.75 * level + 0.26
        if level <= 5:
            _arrow(axes, (3.0 + (2.0 - 0.2 * level) / 2, start), (IN_X - RADIUS, y))
    _arrow(axes, (3.5, 0.75 + 0.75 * 5 + 0.36), (IN_X - RADIUS, LEVEL_Y[6]))  # P6 comes from the backbone's P5, too
    _arrow(axes, (IN_X, LEVEL_Y[6] + RADIUS), (IN_X, LEVEL_Y[7] - RADIUS), PALE)
    for level in (4, 5, 6):
        _connect(axes, (IN_X, LEVEL_Y[level]), (MIDDLE_X, LEVEL_Y[level]))
        above = MIDDLE_X if level < 6 else IN_X
        _connect(axes, (above, LEVEL_Y[level + 1]), (MIDDLE_X, LEVEL_Y[level]))
        _connect(axes, (MIDDLE_X, LEVEL_Y[level]), (OUT_X, LEVEL_Y[level]))
        _connect(axes, (IN_X, LEVEL_Y[level]), (OUT_X, LEVEL_Y[level]), bend=-0.6, color=PALE)
        _connect(axes, (OUT_X, LEVEL_Y[level - 1]), (OUT_X, LEVEL_Y[level]))
    _connect(axes, (OUT_X, LEVEL_Y[6]), (OUT_X, LEVEL_Y[7]))
    _connect(axes, (IN_X, LEVEL_Y[7]), (OUT_X, LEVEL_Y[7]))
    _connect(axes, (IN_X, LEVEL_Y[3]), (OUT_X, LEVEL_Y[3]))
    _connect(axes, (MIDDLE_X, LEVEL_Y[4]), (OUT_X, LEVEL_Y[3]))
    for level, y in LEVEL_Y.items():
        for x in (IN_X, MIDDLE_X, OUT_X) if level in (4, 5, 6) else (IN_X, OUT_X):
            axes.add_patch(
                Circle((x, y), RADIUS, facecolor=LEVEL_COLORS[level], edgecolor=INK, linewidth=0.9, zorder=3)
            )
            axes.text(x, y, f"P{level}", ha="center", va="center", fontsize=8, color=INK, zorder=4)


def _draw_heads(axes: Axes) -> None:
    _panel(axes, (8.55, 0.9), 2.2, 5.3, ORANGE, "heads", "efficientdet/\nmodel/heads.py")
    _box(axes, (8.75, 4.15), 1.8, 1.1, "white", "classifier\nlogits\n(N, A, classes)")
    _box(axes, (8.75, 1.85), 1.8, 1.1, "white", "regressor\ndeltas\n(N, A, 4)")
    axes.text(9.65, 3.55, "3 to 5 layers,\nshared by all levels", ha="center", va="center", fontsize=8.5, color=PALE)
    for y in LEVEL_Y.values():
        _arrow(axes, (OUT_X + RADIUS, y), (8.75, 4.7), PALE, width=0.6)
        _arrow(axes, (OUT_X + RADIUS, y), (8.75, 2.4), PALE, width=0.6)
    _panel(axes, (11.2, 0.9), 2.7, 5.3, VIOLET, "detections / loss", "efficientdet/\nmodel/")
    _box(axes, (11.4, 4.55), 2.3, 1.0, "white", "postprocess.py\ndecoding, NMS")
    _box(axes, (11.4, 2.85), 2.3, 1.0, "white", "anchors.py\n9 per grid cell")
    _box(axes, (11.4, 1.2), 2.3, 1.0, "white", "loss.py\ntraining only")
    for y in (4.7, 2.4):
        _arrow(axes, (10.55, y), (11.4, 5.05))
        _arrow(axes, (10.55, y), (11.4, 1.7), PALE)
    _arrow(axes, (12.55, 3.85), (12.55, 4.55))
    _arrow(axes, (12.55, 2.85), (12.55, 2.2), PALE)


def _panel(
    axes: Axes, corner: tuple[float, float], width: float, height: float, color: str, title: str, file: str
) -> None:
    style = "round,pad=0,rounding_size=0.12"
    axes.add_patch(FancyBboxPatch(corner, width, height, boxstyle=style, facecolor=color, edgecolor="none", zorder=0))
    center = corner[0] + width / 2
    axes.text(center, corner[1] + height + 0.3, title, ha="center", va="center", fontsize=13, weight="bold", color=INK)
    axes.text(center, corner[1] - 0.12, file, ha="center", va="top", fontsize=8.5, family="monospace", color=INK)


def _box(axes: Axes, corner: tuple[float, float], width: float, height: float, color: str, text: str) -> None:
    style = "round,pad=0,rounding_size=0.08"
    axes.add_patch(
        FancyBboxPatch(corner, width, height, boxstyle=style, facecolor=color, edgecolor=INK, linewidth=0.8, zorder=3)
    )
    center = corner[0] + width / 2, corner[1] + height / 2
    axes.text(*center, text, ha="center", va="center", fontsize=8.5, color=INK, zorder=4, linespacing=1.4)


def _arrow(
    axes: Axes,
    start: tuple[float, float],
    end: tuple[float, float],
    color: str = INK,
    width: float = 0.9,
    bend: float = 0.0,
) -> None:
    axes.add_patch(
        FancyArrowPatch(
            start,
            end,
            arrowstyle="-|>",
            mutation_scale=8,
            color=color,
            linewidth=width,
            shrinkA=0,
            shrinkB=0,
            connectionstyle=f"arc3,rad={bend}",
            zorder=2,
        )
    )


def _connect(
    axes: Axes, start: tuple[float, float], end: tuple[float, float], bend: float = 0.0, color: str = INK
) -> None:
    """Draw an arrow from the rim of a node to the rim of another."""
    length = ((end[0] - start[0]) ** 2 + (end[1] - start[1]) ** 2) ** 0.5
    step = (end[0] - start[0]) / length * RADIUS, (end[1] - start[1]) / length * RADIUS
    _arrow(axes, (start[0] + step[0], start[1] + step[1]), (end[0] - step[0], end[1] - step[1]), color, bend=bend)
