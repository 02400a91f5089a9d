"""Boxes and labels drawn on images."""

import colorsys
import math
import unicodedata
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
_UNICODE_FONT = hasattr(cv2, "FontFace")  # OpenCV 5 draws most scripts; 4 has ASCII only
_LEAST_SCALE = 0.35  # of letters that can be read
_USUAL_SIDE = 554  # pixels; of a square with as many as 640 x 480
_USUAL_BOX_SIDE = 80  # pixels; a smaller box gets smaller letters, or they would hide its neighbours


def class_color(class_id: int) -> tuple[int, int, int]:
    """The (red, green, blue) of a class, the same in every run, for any number of classes."""
    if class_id < len(_NAMED_COLORS):
        red, green, blue = webcolors.name_to_rgb(_NAMED_COLORS[class_id])
        return red, green, blue
    # Multiples of the golden ratio spread hues evenly however many there are.
    hue = class_id * _GOLDEN_RATIO % 1
    saturation = 0.6 + 0.4 * (class_id // 7 % 2)
    red, green, blue = (round(255 * channel) for channel in colorsys.hsv_to_rgb(hue, saturation, 1.0))
    return red, green, blue


def draw_boxes(
    image: np.ndarray, boxes: np.ndarray, class_ids: Sequence[int] | np.ndarray, labels: Sequence[str]
) -> np.ndarray:
    """A copy of `image` (H, W, 3) uint8 RGB with boxes (K, 4) xyxy in its pixels, each with its label.

    Lines and letters suit the image's size, those of small boxes also the box. Boxes drawn later lie above, so pass
    the best last: its label also has the first choice of a place where it hides no other.
    """
    canvas = image.copy()
    height, width = image.shape[:2]
    # Far outside the image OpenCV's fixed-point coordinates would overflow.
    limit = np.array([width, height, width, height])
    corners = [[int(v) for v in np.rint(np.clip(box, -limit, 2 * limit))] for box in boxes]
    colors = [class_color(int(class_id)) for class_id in class_ids]
    units = [_unit(box, height, width) for box in corners]
    for (left, top, right, bottom), color, unit in zip(corners, colors, units):
        cv2.rectangle(canvas, (left, top), (right, bottom), color, max(1, round(2 * unit)), cv2.LINE_AA)

    texts = [_Text(label, unit, width) for label, unit in zip(labels, units)]
    places, taken = [], np.zeros((0, 4))
    for text, box in zip(reversed(texts), reversed(corners)):
        places.append(_free_place(text.size, box, (width, height), taken))
        taken = np.vstack([taken, [*places[-1], places[-1][0] + text.size[0], places[-1][1] + text.size[1]]])
    for text, place, color in zip(texts, reversed(places), colors):
        text.draw(canvas, *place, color)
    return canvas


def _unit(box: Sequence[int], height: int, width: int) -> float:
    """How thick the lines and how large the letters of a box are: 1 is that of a usual box in a usual image."""
    left, top, right, bottom = box
    box_side = math.sqrt(max(0, (right - left) * (bottom - top)))
    return min(math.sqrt(height * width) / _USUAL_SIDE, box_side / _USUAL_BOX_SIDE)


class _Text:
    """A label and the plate that it stands on, in letters of the size `unit`; `size` is (width, height)."""

    def __init__(self, label: str, unit: float, image_width: int):
        self._label = label if _UNICODE_FONT else _ascii(label)
        self._set_scale(max(_LEAST_SCALE, 0.5 * unit))
        if self.size[0] > image_width:
            self._set_scale(max(_LEAST_SCALE, self._scale * image_width / self.size[0]))

    def _set_scale(self, scale: float) -> None:
        self._scale = scale
        self._thickness = max(1, round(1.5 * scale))
        (width, _), _ = cv2.getTextSize(self._label, _FONT, scale, self._thickness)
        # All plates are as high as these letters are, one of which goes up and one down.
        (_, above), below = cv2.getTextSize("Ag", _FONT, scale, self._thickness)
        self._margin = max(1, round(4 * scale))
        self._baseline = above + self._margin
        self.size = (width + 2 * self._margin, above + below + 2 * self._margin) if self._label else (0, 0)

    def draw(self, canvas: np.ndarray, left: int, top: int, color: tuple[int, int, int]) -> None:
        """Black or white letters, whichever reads better, on a plate of `color`."""
        if not self._label:
            return
        corner = left + self.size[0] - 1, top + self.size[1] - 1
        cv2.rectangle(canvas, (left, top), corner, color, cv2.FILLED)
        luminance = 0.299 * color[0] + 0.587 * color[1] + 0.114 * color[2]
        ink = (0, 0, 0) if luminance > 128 else (255, 255, 255)
        start = left + self._margin, top + self._baseline
        cv2.putText(canvas, self._label, start, _FONT, self._scale, ink, self._thickness, cv2.LINE_AA)


def _free_place(
    size: tuple[int, int], box: Sequence[int], picture: tuple[int, int], taken: np.ndarray
) -> tuple[int, int]:
    """(left, top) for a plate at a box: inside the image, and if possible off the areas (N, 4) xyxy in `taken`."""
    left, top, right, bottom = box
    width, height = size
    columns, rows = (left, right - width), (top - height, top, bottom, bottom - height)
    places = [
        (min(max(x, 0), max(0, picture[0] - width)), min(max(y, 0), max(0, picture[1] - height)))
        for y in rows
        for x in columns
    ]
    for x, y in places:
        apart = (x >= taken[:, 2]) | (x + width <= taken[:, 0]) | (y >= taken[:, 3]) | (y + height <= taken[:, 1])
        if apart.all():
            return x, y
    return places[0]


def _ascii(text: str) -> str:
    """Letters without their accents, and ? for what OpenCV 4 cannot draw."""
    letters = (letter for letter in unicodedata.normalize("NFKD", text) if not unicodedata.combining(letter))
    return "".join(letters).encode("ascii", "replace").decode()


def side_by_side(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Two images of the same height in one, with a white line between."""
    line = np.full((left.shape[0], max(2, left.shape[1] // 100), 3), 255, np.uint8)
    return np.concatenate((left, line, right), axis=1)


def contact_sheet(pictures: Sequence[np.ndarray], captions: Sequence[str]) -> np.ndarray:
    """Images of one size, (H, W, 3) uint8 RGB, in rows of one sheet, each below its caption. At least one."""
    columns = math.ceil(math.sqrt(len(pictures)))
    height, width = pictures[0].shape[:2]
    gap, strip = max(4, width // 64), max(16, width // 20)
    rows = math.ceil(len(pictures) / columns)
    sheet = np.full((rows * (height + strip) + gap, columns * (width + gap) + gap, 3), 255, np.uint8)
    for number, (picture, caption) in enumerate(zip(pictures, captions)):
        top = number // columns * (height + strip) + strip
        left = number % columns * (width + gap) + gap
        text_width, text_height = cv2.getTextSize(caption or " ", _FONT, 1, 1)[0]
        scale = min(0.6 * strip / max(1, text_height), width / max(1, text_width))
        thickness = max(1, round(1.5 * scale))
        cv2.putText(sheet, caption, (left, top - strip // 4), _FONT, scale, (0, 0, 0), thickness, cv2.LINE_AA)
        sheet[top : top + height, left : left + width] = picture  # over the tails of letters
    return sheet
