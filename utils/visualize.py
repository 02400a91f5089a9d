"""Drawing boxes and labels on images, and arranging images on sheets."""

import colorsys
import math
import unicodedata
from collections.abc import Sequence

import cv2
import numpy as np
import webcolors

# Easy to tell apart, on photographs and from each other.
_NAMED_COLORS = (
    "orangered", "dodgerblue", "limegreen", "gold", "magenta", "cyan", "darkorange", "mediumpurple", "chartreuse",
    "hotpink", "turquoise", "tomato", "royalblue", "yellow", "orchid", "springgreen", "salmon", "deepskyblue",
)  # fmt: skip
_FONT = cv2.FONT_HERSHEY_SIMPLEX
_UNICODE_FONT = hasattr(cv2, "FontFace")  # OpenCV 5 draws most scripts, OpenCV 4 ASCII only
_MIN_FONT_SCALE = 0.35  # still legible


def class_color(class_id: int) -> tuple[int, int, int]:
    """Return the RGB color of a class: the same in every run, for any number of classes."""
    if class_id < len(_NAMED_COLORS):
        red, green, blue = webcolors.name_to_rgb(_NAMED_COLORS[class_id])
        return red, green, blue
    hue = class_id * 0.618033988749895 % 1  # multiples of the golden ratio spread any number of hues evenly
    saturation = 0.6 + 0.4 * (class_id // 7 % 2)
    red, green, blue = (round(255 * channel) for channel in colorsys.hsv_to_rgb(hue, saturation, 1.0))
    return red, green, blue


def draw_boxes(
    image: np.ndarray, boxes: np.ndarray, class_ids: Sequence[int] | np.ndarray, labels: Sequence[str]
) -> np.ndarray:
    """Return a copy of `image`, (H, W, 3) uint8 RGB, with boxes, (K, 4) xyxy in pixels, and their labels.

    Line width and font size follow the image's size and, for small boxes, the box's. Later boxes are drawn over earlier
    ones, and their labels are placed first: pass the best detection last.
    """
    canvas = image.copy()
    height, width = image.shape[:2]
    # OpenCV's fixed-point coordinates overflow far outside the image.
    limit = np.array([width, height, width, height])
    corners = [[int(v) for v in np.rint(np.clip(box, -limit, 2 * limit))] for box in boxes]
    colors = [class_color(int(class_id)) for class_id in class_ids]
    sides = (math.sqrt(max(0, (right - left) * (bottom - top))) for left, top, right, bottom in corners)
    # 1 for a box of 80 x 80 in an image with the area of 640 x 480. Large text would hide the neighbors of small boxes.
    scales = [min(math.sqrt(height * width) / 554, side / 80) for side in sides]
    for (left, top, right, bottom), color, scale in zip(corners, colors, scales):
        cv2.rectangle(canvas, (left, top), (right, bottom), color, max(1, round(2 * scale)), cv2.LINE_AA)

    texts = [_Label(text, scale, width) for text, scale in zip(labels, scales)]
    areas: list[tuple[int, int, int, int]] = []  # xyxy, of the labels from last to first
    for text, box in zip(reversed(texts), reversed(corners)):
        left, top = _find_free_place(text.size, box, (width, height), areas)
        areas.append((left, top, left + text.size[0], top + text.size[1]))
    for text, (left, top, _, _), color in zip(texts, reversed(areas), colors):
        text.draw(canvas, left, top, color)
    return canvas


class _Label:
    """Text on a filled rectangle of `size` (width, height) pixels; (0, 0) if the text is empty."""

    def __init__(self, text: str, scale: float, image_width: int):
        self._text = text if _UNICODE_FONT else _to_ascii(text)
        self._set_font_scale(max(_MIN_FONT_SCALE, 0.5 * scale))
        if self.size[0] > image_width:
            self._set_font_scale(max(_MIN_FONT_SCALE, self._font_scale * image_width / self.size[0]))

    def _set_font_scale(self, font_scale: float) -> None:
        self._font_scale = font_scale
        self._thickness = max(1, round(1.5 * font_scale))
        (width, _), _ = cv2.getTextSize(self._text, _FONT, font_scale, self._thickness)
        # All labels are as high as these letters, with their ascender and descender.
        (_, above), below = cv2.getTextSize("Ag", _FONT, font_scale, self._thickness)
        self._margin = max(1, round(4 * font_scale))
        self._baseline = above + self._margin
        self.size = (width + 2 * self._margin, above + below + 2 * self._margin) if self._text else (0, 0)

    def draw(self, canvas: np.ndarray, left: int, top: int, color: tuple[int, int, int]) -> None:
        """Draw on a background of `color`, in black or white, whichever has more contrast."""
        if not self._text:
            return
        corner = left + self.size[0] - 1, top + self.size[1] - 1
        cv2.rectangle(canvas, (left, top), corner, color, cv2.FILLED)
        luminance = 0.299 * color[0] + 0.587 * color[1] + 0.114 * color[2]
        ink = (0, 0, 0) if luminance > 128 else (255, 255, 255)
        start = left + self._margin, top + self._baseline
        cv2.putText(canvas, self._text, start, _FONT, self._font_scale, ink, self._thickness, cv2.LINE_AA)


def _find_free_place(
    size: tuple[int, int], box: Sequence[int], image_size: tuple[int, int], areas: Sequence[tuple[int, int, int, int]]
) -> tuple[int, int]:
    """Return a label's (left, top): in the image, if possible outside `areas` (xyxy). Sizes are (width, height)."""
    left, top, right, bottom = box
    width, height = size
    max_x, max_y = max(0, image_size[0] - width), max(0, image_size[1] - height)
    corners = [(x, y) for y in (top - height, top, bottom, bottom - height) for x in (left, right - width)]
    places = [(min(max(x, 0), max_x), min(max(y, 0), max_y)) for x, y in corners]
    taken = np.array(areas).reshape(-1, 4)
    for x, y in places:
        apart = (x >= taken[:, 2]) | (x + width <= taken[:, 0]) | (y >= taken[:, 3]) | (y + height <= taken[:, 1])
        if apart.all():
            return x, y
    return places[0]


def _to_ascii(text: str) -> str:
    """Remove accents, and replace what OpenCV 4 cannot draw by question marks."""
    letters = (letter for letter in unicodedata.normalize("NFKD", text) if not unicodedata.combining(letter))
    return "".join(letters).encode("ascii", "replace").decode()


def side_by_side(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Join two images of the same height, with a white line between them."""
    line = np.full((left.shape[0], max(2, left.shape[1] // 100), 3), 255, np.uint8)
    return np.concatenate((left, line, right), axis=1)


def contact_sheet(images: Sequence[np.ndarray], captions: Sequence[str]) -> np.ndarray:
    """Arrange one or more images of the same size, (H, W, 3) uint8 RGB, in a grid, with a caption above each."""
    columns = math.ceil(math.sqrt(len(images)))
    rows = math.ceil(len(images) / columns)
    height, width = images[0].shape[:2]
    gap, strip = max(4, width // 64), max(16, width // 20)
    sheet = np.full((rows * (height + strip) + gap, columns * (width + gap) + gap, 3), 255, np.uint8)
    for number, (image, caption) in enumerate(zip(images, captions)):
        top = number // columns * (height + strip) + strip
        left = number % columns * (width + gap) + gap
        text_width, text_height = cv2.getTextSize(caption or " ", _FONT, 1, 1)[0]
        scale = min(0.6 * strip / max(1, text_height), width / max(1, text_width))
        thickness = max(1, round(1.5 * scale))
        cv2.putText(sheet, caption, (left, top - strip // 4), _FONT, scale, (0, 0, 0), thickness, cv2.LINE_AA)
        sheet[top : top + height, left : left + width] = image  # covers the descenders of the caption
    return sheet
