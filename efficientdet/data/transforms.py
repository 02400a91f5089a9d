"""Images on their way into the network: the letterbox, and the flip and scale jitter of training."""

from dataclasses import dataclass
from typing import NamedTuple

import cv2
import numpy as np
import torch.nn.functional as F
from torch import Tensor

from efficientdet.structures import Detections

MIN_BOX_SIDE = 1  # pixels of the image
# Share of a box that must remain visible: less of an object rarely shows what it is. Below a quarter, because a scale
# of 2 keeps a quarter of an object as large as the image, which then fills the window.
MIN_VISIBLE = 0.2
_HUGE = 2**27  # values of an image; above, a float copy of it costs too much memory


class Target(NamedTuple):
    """The objects of one image."""

    boxes: np.ndarray  # (M, 4) float32 xyxy, in pixels of the image
    class_ids: np.ndarray  # (M,) int64


AnnotatedImage = tuple[np.ndarray, Target]  # the image is (H, W, 3) uint8 RGB


@dataclass(frozen=True)
class Letterbox:
    """How an image lies in the network's input: resized, at the top left, rest zero. Sizes are (height, width)."""

    original: tuple[int, int]
    resized: tuple[int, int]
    canvas: tuple[int, int]

    @classmethod
    def fit(cls, original: tuple[int, int], canvas: tuple[int, int]) -> "Letterbox":
        """Return the largest letterbox that keeps the aspect ratio, its sides truncated to at least one pixel."""
        height, width = original
        if canvas[0] * width < canvas[1] * height:
            return cls(original, (canvas[0], max(1, canvas[0] * width // height)), canvas)
        return cls(original, (max(1, canvas[1] * height // width), canvas[1]), canvas)

    def apply(self, image: np.ndarray, mean: tuple[float, ...], std: tuple[float, ...]) -> np.ndarray:
        """Resize, normalize and pad an image: (H, W, 3) uint8 RGB -> (canvas height, canvas width, 3) float32.

        Normalized is (RGB / 255 - mean) / std. Floats are resized, because resizing uint8 changed the normalized values
        of photographs by up to 0.013, and AP by 0.01.
        """
        height, width = self.resized
        enlarged = height * width > image.shape[0] * image.shape[1]
        is_huge = image.size > _HUGE and len(image) > height
        pixels = _shrink_rows(image, height) if is_huge else image.astype(np.float32)
        if enlarged:  # resizing and normalizing commute: normalize where there are fewer pixels
            _normalize(pixels, mean, std)
        canvas = np.zeros((*self.canvas, 3), np.float32)
        cv2.resize(pixels, (width, height), dst=canvas[:height, :width], interpolation=cv2.INTER_LINEAR)
        if not enlarged:
            _normalize(canvas[:height, :width], mean, std)
        return canvas

    def apply_uint8(self, image: np.ndarray, padding: tuple[int, int, int]) -> np.ndarray:
        """Resize and pad with the color `padding`, in uint8, for exported networks that normalize themselves."""
        height, width = self.resized
        canvas = np.empty((*self.canvas, 3), np.uint8)
        canvas[height:] = canvas[:, width:] = padding
        contiguous = np.ascontiguousarray(image)  # OpenCV rejects mirrored views
        cv2.resize(contiguous, (width, height), dst=canvas[:height, :width], interpolation=cv2.INTER_LINEAR)
        return canvas

    def apply_on_device(self, image: Tensor, mean_255: Tensor, std_255: Tensor) -> Tensor:
        """Compute `apply` on the device of `image`: (H, W, 3) uint8 -> (3, canvas height, canvas width) float32.

        `mean_255` and `std_255`, (3, 1, 1) float32 on that device, are 255 times the project's.
        """
        pixels = image.permute(2, 0, 1)[None].float()
        resized = F.interpolate(pixels, self.resized, mode="bilinear", align_corners=False)[0]
        normalized = resized.sub_(mean_255).div_(std_255)
        return F.pad(normalized, (0, self.canvas[1] - self.resized[1], 0, self.canvas[0] - self.resized[0]))

    def boxes_to_canvas(self, boxes_xyxy: np.ndarray) -> np.ndarray:
        """Convert boxes (..., 4) from pixels of the image to pixels of the canvas."""
        return boxes_xyxy * np.array(self._factors(), boxes_xyxy.dtype)

    def detections_to_image(self, detections: Detections) -> Detections:
        """Convert detections from canvas to image pixels: not as inference tensors, so the caller may modify them."""
        boxes = detections.boxes / detections.boxes.new_tensor(self._factors())
        return Detections(boxes, detections.scores.clone(), detections.class_ids.clone())

    def _factors(self) -> list[float]:
        """Return the ratios canvas / image of x1, y1, x2, y2."""
        return [self.resized[1] / self.original[1], self.resized[0] / self.original[0]] * 2


def _shrink_rows(image: np.ndarray, height: int) -> np.ndarray:
    """Interpolate rows as OpenCV does, without a float copy of the image: (H, W, 3) uint8 -> (height, W, 3) float32."""
    position = (np.arange(height) + 0.5) * (len(image) / height) - 0.5
    above = position.astype(np.int64)
    share_below = (position - above).astype(np.float32)[:, None, None]
    rows = image[above].astype(np.float32)
    return rows + (image[np.minimum(above + 1, len(image) - 1)] - rows) * share_below


def _normalize(pixels: np.ndarray, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
    """Normalize (H, W, 3) float32 RGB from 0 to 255 in place."""
    rows = pixels.reshape(len(pixels), -1)  # a view; broadcasting three values would be four times slower
    mean_255, std_255 = (np.tile(np.asarray(values, np.float32) * 255, pixels.shape[1]) for values in (mean, std))
    rows -= mean_255
    rows /= std_255


def visible_objects(target: Target, size: tuple[int, int], hidden: np.ndarray | float = 0.0) -> Target:
    """Clip boxes to an image of `size` (height, width), and drop objects that are hardly visible.

    Dropped is a box with a side below MIN_BOX_SIDE, or less than MIN_VISIBLE of its area left. `hidden`, (M,), is the
    area of each clipped box that something covers.
    """
    clipped = target.boxes.clip(0, np.array([size[1], size[0]] * 2, np.float32))
    whole, visible = target.boxes[:, 2:] - target.boxes[:, :2], clipped[:, 2:] - clipped[:, :2]
    enough = visible.prod(axis=1) - hidden >= MIN_VISIBLE * whole.prod(axis=1)
    kept = (visible >= MIN_BOX_SIDE).all(axis=1) & enough
    return Target(clipped[kept], target.class_ids[kept])


def horizontal_flip(image: np.ndarray, target: Target) -> tuple[np.ndarray, Target]:
    """Mirror an image (H, W, 3) and its objects."""
    boxes = target.boxes.copy()
    boxes[:, [0, 2]] = image.shape[1] - target.boxes[:, [2, 0]]
    return image[:, ::-1], Target(boxes, target.class_ids)


def random_horizontal_flip(image: np.ndarray, target: Target, rng: np.random.Generator) -> tuple[np.ndarray, Target]:
    """Apply `horizontal_flip` with probability 0.5."""
    return horizontal_flip(image, target) if rng.random() < 0.5 else (image, target)


def random_scale_crop(
    image: np.ndarray,
    target: Target,
    canvas: tuple[int, int],
    rng: np.random.Generator,
    scale_range: tuple[float, float],
) -> tuple[np.ndarray, Target, Letterbox]:
    """Return a random window of an image (H, W, 3), its objects and its letterbox: google/automl's scale jitter.

    The image is scaled to fit the canvas times a factor drawn uniformly from `scale_range`; an axis that exceeds the
    canvas is cropped at a random offset. Cropping comes first, in whole pixels, so that no pixel is resized in vain.

    Boxes are clipped to the window, and hardly visible objects dropped. (google/automl keeps every remainder, and
    learns to detect objects in slivers.)
    """
    factor = rng.uniform(*scale_range)
    size = image.shape[:2]
    scaled_canvas = max(1, int(canvas[0] * factor)), max(1, int(canvas[1] * factor))
    scaled = Letterbox.fit(size, scaled_canvas).resized
    resized = min(scaled[0], canvas[0]), min(scaled[1], canvas[1])
    height, width = (max(1, round(side * part / full)) for side, part, full in zip(size, resized, scaled))
    top, left = rng.integers(0, (size[0] - height + 1, size[1] - width + 1)).tolist()

    moved = Target(target.boxes - np.array([left, top, left, top], np.float32), target.class_ids)
    window, objects = image[top : top + height, left : left + width], visible_objects(moved, (height, width))
    return window, objects, Letterbox((height, width), resized, canvas)
