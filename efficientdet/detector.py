"""The detector that other programs use: pictures in, `Detections` in their own pixels out."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from efficientdet.checkpoint import find_weights, load_weights
from efficientdet.config import check_image_size
from efficientdet.fuse import fuse_for_inference
from efficientdet.model import EfficientDet
from efficientdet.postprocess import Detections, in_picture, postprocess
from efficientdet.project import Project, load_project
from efficientdet.transforms import Letterbox
from utils.device import available_device
from utils.images import read_image

DEMO_SCORE_THRESHOLD = 0.2
DEMO_IOU_THRESHOLD = 0.2


class Detector:
    """A network made ready for inference, with the project's normalisation and class names.

    Make one with `load_detector`.
    """

    def __init__(
        self,
        network: EfficientDet,
        project: Project,
        device: torch.device,
        image_size: int | None = None,
        half: bool = False,
    ):
        self.project = project
        self.device = device
        sizes = (image_size, project.image_size, network.config.input_size)
        self.image_size = next(size for size in sizes if size is not None)
        check_image_size(network.compound_coef, self.image_size, self.image_size)
        self.dtype = torch.float16 if half else torch.float32
        self.network = fuse_for_inference(network).to(device=device, dtype=self.dtype)

    def __call__(
        self,
        images: Sequence[str | Path | np.ndarray],
        score_threshold: float = DEMO_SCORE_THRESHOLD,
        iou_threshold: float = DEMO_IOU_THRESHOLD,
        batch_size: int = 1,
    ) -> list[Detections]:
        """The objects in each image, on the CPU, boxes (x1, y1, x2, y2) in the image's own pixels.

        Args:
            images: file names, or (H, W, 3) uint8 RGB arrays.
            batch_size: how many images go through the network together.

        Raises InputError for a file that is no picture, ValueError for an array of another shape or type.
        """
        if isinstance(images, str | Path | np.ndarray):
            raise ValueError("the detector takes a list of images: put a single one into a list")
        if batch_size < 1:
            raise ValueError(f"batch_size must be 1 or more, not {batch_size}")
        detections = []
        for start in range(0, len(images), batch_size):
            batch, letterboxes = self.prepare([self._array(image) for image in images[start : start + batch_size]])
            detections += self.detect_batch(batch, letterboxes, score_threshold, iou_threshold)
        return detections

    def prepare(self, arrays: Sequence[np.ndarray]) -> tuple[Tensor, list[Letterbox]]:
        """(H, W, 3) uint8 RGB arrays -> what `detect_batch` takes."""
        letterboxes = [Letterbox.fit(array.shape[:2], (self.image_size, self.image_size)) for array in arrays]
        mean, std = self.project.mean, self.project.std
        pixels = [letterbox.image(array, mean, std) for letterbox, array in zip(letterboxes, arrays)]
        return torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2), letterboxes

    def detect_batch(
        self, images: Tensor, letterboxes: Sequence[Letterbox], score_threshold: float, iou_threshold: float
    ) -> list[Detections]:
        """As `__call__`, for a batch (N, 3, H, W) that is letterboxed and normalised already."""
        with torch.inference_mode():
            outputs = self.network(images.to(self.device, self.dtype, non_blocking=True))
            detections = postprocess(outputs, *images.shape[-2:], score_threshold, iou_threshold)
        return [in_picture(*pair) for pair in zip(detections, letterboxes)]

    @staticmethod
    def _array(image: str | Path | np.ndarray) -> np.ndarray:
        if not isinstance(image, np.ndarray):
            return read_image(image)
        if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or image.size == 0:
            raise ValueError(f"an image must be an (H, W, 3) uint8 RGB array, not {image.shape} {image.dtype}")
        return image


def load_detector(
    compound_coef: int = 0,
    weights: str | Path | None = None,
    project: str | Path | Project = "coco",
    device: torch.device | str | None = None,
    image_size: int | None = None,
    half: bool = False,
) -> Detector:
    """A detector ready for inference.

    Args:
        compound_coef: 0 (D0) to 7 (D7), 8 for D7X.
        weights: a weights file; published ones are downloaded into `weights/` on first use. None leaves the weights
            random, for benchmarks.
        project: a name under `projects/`, a YAML file, or a `Project`.
        device: None takes the first GPU if there is one, else the CPU.
        image_size: side of the square input, pixels; None takes the project's or the coefficient's own.
        half: float16 instead of float32.

    Raises InputError for files that cannot be used, ValueError for values that make no detector.
    """
    if not isinstance(project, Project):
        project = load_project(project)
    network = EfficientDet(compound_coef, project.num_classes, project.anchor_ratios, project.anchor_scales)
    if weights is not None:
        load_weights(network, find_weights(weights))
    device = available_device() if device is None else torch.device(device)
    return Detector(network, project, device, image_size, half)
