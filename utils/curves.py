"""Line charts as pictures."""

import math
from collections.abc import Mapping, Sequence

import cv2
import numpy as np

from utils.visualize import class_color

_WIDTH, _HEIGHT = 640, 400  # pixels of one chart
_LEFT, _RIGHT, _TOP, _BOTTOM = 76, 16, 40, 40  # margins around its axes
_FONT = cv2.FONT_HERSHEY_SIMPLEX
_INK, _GRID = (40, 40, 40), (225, 225, 225)

Points = Sequence[tuple[float, float]]


def draw_charts(charts: Mapping[str, Mapping[str, Points]]) -> np.ndarray:
    """Charts side by side: (H, W, 3) uint8 RGB. `charts` maps each title to its named lines of (x, y) points.

    Points that are not finite are left out; a line of one point is a dot.
    """
    return np.concatenate([_draw_chart(title, lines) for title, lines in charts.items()], axis=1)


def _draw_chart(title: str, lines: Mapping[str, Points]) -> np.ndarray:
    canvas = np.full((_HEIGHT, _WIDTH, 3), 255, np.uint8)
    cv2.putText(canvas, title, (_LEFT, 24), _FONT, 0.55, _INK, 1, cv2.LINE_AA)
    finite = {name: [p for p in points if all(map(math.isfinite, p))] for name, points in lines.items()}
    everything = np.array([point for points in finite.values() for point in points]).reshape(-1, 2)
    if not len(everything):
        return canvas
    (x_ticks, x_first, x_last), (y_ticks, y_first, y_last) = (_axis(values) for values in everything.T)

    def place(x: float, y: float) -> tuple[int, int]:
        across = (x - x_first) / (x_last - x_first) * (_WIDTH - _LEFT - _RIGHT)
        up = (y - y_first) / (y_last - y_first) * (_HEIGHT - _TOP - _BOTTOM)
        return round(_LEFT + across), round(_HEIGHT - _BOTTOM - up)

    for tick in x_ticks:
        cv2.line(canvas, place(tick, y_first), place(tick, y_last), _GRID, 1)
        _centred_text(canvas, f"{tick:g}", (place(tick, y_first)[0], _HEIGHT - _BOTTOM + 20))
    for tick in y_ticks:
        cv2.line(canvas, place(x_first, tick), place(x_last, tick), _GRID, 1)
        _centred_text(canvas, f"{tick:g}", (_LEFT // 2, place(x_first, tick)[1] + 4))
    for number, (name, points) in enumerate(finite.items()):
        color = tuple(channel * 3 // 4 for channel in class_color(number))  # darker, as it lies on white
        places = [place(*point) for point in points]
        cv2.polylines(canvas, [np.array(places, np.int32).reshape(-1, 1, 2)], False, color, 2, cv2.LINE_AA)
        if len(places) == 1:
            cv2.circle(canvas, places[0], 3, color, cv2.FILLED, cv2.LINE_AA)
        top = _TOP + 8 + 20 * number
        cv2.line(canvas, (_WIDTH - 190, top), (_WIDTH - 166, top), color, 2, cv2.LINE_AA)
        cv2.putText(canvas, name, (_WIDTH - 158, top + 4), _FONT, 0.42, _INK, 1, cv2.LINE_AA)
    return canvas


def _axis(values: np.ndarray) -> tuple[list[float], float, float]:
    """About five round ticks around `values`, and the first and last of them."""
    low, high = float(values.min()), float(values.max())
    if high - low <= 1e-9 * max(abs(low), abs(high)):  # one value, or nothing that a float could divide into ticks
        margin = abs(low) / 2 or 0.5
        low, high = low - margin, high + margin
    rough = (high - low) / 5
    magnitude = 10 ** math.floor(math.log10(rough))
    step = magnitude * next(factor for factor in (1, 2, 5, 10) if rough <= factor * magnitude)
    first, last = math.floor(low / step), math.ceil(high / step)
    ticks = [number * step for number in range(first, last + 1)]
    return ticks, ticks[0], ticks[-1]


def _centred_text(canvas: np.ndarray, text: str, place: tuple[int, int]) -> None:
    (width, _), _ = cv2.getTextSize(text, _FONT, 0.42, 1)
    cv2.putText(canvas, text, (place[0] - width // 2, place[1]), _FONT, 0.42, _INK, 1, cv2.LINE_AA)
