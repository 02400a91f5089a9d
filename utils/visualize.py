"""Boxes and labels drawn on pictures."""

import colorsys
import math
from collections.abc import Sequence

import cv2
import numpy as np
import webcolors

# Well told apart, on photographs and from each other.
_NAMED_COLORS = (
    "orangered", "dodgerblue", "limegreen", "gold", "magenta", "cyan", "darkorange", "mediumpurple", "chartreuse",
    "hotpink", "turquoise", "tomato", "royalblue", "yellow", "orchid", "springgreen", "salmon", "deepskyblue",
)  # fmt: skip
_GOLDEN_RATIO = 0.618033988749895
_FONT = cv2.FONT_HERSHEY_SIMPLEX


def class_color(class_id: int) -> tuple[int, int, int]:
    """The (red, green, blue) of a class, the same in every run, for any number of classes."""
    if class_id < len(_NAMED_COLORS):
        return tuple(webcolors.name_to_rgb(_NAMED_COLORS[class_id]))
    # Multiples of the golden ratio spread hues evenly however many there are.
    hue = class_id * _GOLDEN_RATIO % 1
    saturation = 0.6 + 0.4 * (class_id // 7 % 2)
    return tuple(round(255 * channel) for channel in colorsys.hsv_to_rgb(hue, saturation, 1.0))


def draw_boxes(image: np.ndarray, boxes: np.ndarray, class_ids: np.ndarray, labels: Sequence[str]) -> np.ndarray:
    """A copy of `image` (H, W, 3) uint8 RGB with boxes (K, 4) xyxy in its pixels, each with its label.

    Line and letter sizes suit the picture. Boxes drawn later lie above, so pass the best last.
    """
    canvas = image.copy()
    unit = max(image.shape[:2]) / 640
    thickness = max(1, round(1.5 * unit))
    for box, class_id, label in zip(boxes, class_ids, labels):
        # Far outside the picture OpenCV's fixed-point coordinates would overflow.
        height, width = image.shape[:2]
        limit = np.array([width, height, width, height])
        left, top, right, bottom = (int(v) for v in np.rint(np.clip(box, -limit, 2 * limit)))
        color = class_color(int(class_id))
        cv2.rectangle(canvas, (left, top), (right, bottom), color, thickness, cv2.LINE_AA)
        _draw_label(canvas, label, left, top, color, max(0.35, 0.5 * unit))
    return canvas


def _draw_label(canvas: np.ndarray, label: str, left: int, top: int, color: tuple[int, int, int], scale: float) -> None:
    """Black or white letters, whichever reads better, on a plate of `color` above (left, top), kept inside."""
    thickness = max(1, round(1.5 * scale))
    (width, height), baseline = cv2.getTextSize(label, _FONT, scale, thickness)
    left = min(max(left, 0), max(0, canvas.shape[1] - width))
    bottom = max(top, height + baseline)
    cv2.rectangle(canvas, (left, bottom - height - baseline), (left + width, bottom), color, cv2.FILLED)
    luminance = 0.299 * color[0] + 0.587 * color[1] + 0.114 * color[2]
    ink = (0, 0, 0) if luminance > 128 else (255, 255, 255)
    cv2.putText(canvas, label, (left, bottom - baseline // 2 - 1), _FONT, scale, ink, thickness, cv2.LINE_AA)


def side_by_side(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Two pictures of the same height in one, with a white line between."""
    line = np.full((left.shape[0], max(2, left.shape[1] // 100), 3), 255, np.uint8)
    return np.concatenate((left, line, right), axis=1)


def contact_sheet(pictures: Sequence[np.ndarray], captions: Sequence[str]) -> np.ndarray:
    """Pictures of one size, (H, W, 3) uint8 RGB, in rows of one sheet, each below its caption. At least one."""
    columns = math.ceil(math.sqrt(len(pictures)))
    height, width = pictures[0].shape[:2]
    gap, strip = max(4, width // 64), max(16, width // 20)
    rows = math.ceil(len(pictures) / columns)
    sheet = np.full((rows * (height + strip) + gap, columns * (width + gap) + gap, 3), 255, np.uint8)
    for number, (picture, caption) in enumerate(zip(pictures, captions)):
        top = number // columns * (height + strip) + strip
        left = number % columns * (width + gap) + gap
        sheet[top : top + height, left : left + width] = picture
        text_width, text_height = cv2.getTextSize(caption or " ", _FONT, 1, 1)[0]
        scale = min(0.6 * strip / max(1, text_height), width / max(1, text_width))
        thickness = max(1, round(1.5 * scale))
        cv2.putText(sheet, caption, (left, top - strip // 4), _FONT, scale, (0, 0, 0), thickness, cv2.LINE_AA)
    return sheet
