"""The detector that other programs use: images in, `Detections` in pixels of each image out."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from efficientdet.checkpoints.find import find_weights, is_exported
from efficientdet.checkpoints.loading import load_weights
from efficientdet.config import DEMO_IOU_THRESHOLD, DEMO_SCORE_THRESHOLD
from efficientdet.data.transforms import Letterbox
from efficientdet.inference.options import DetectionOptions, class_indices
from efficientdet.inference.views import Tile, join_mirrored, join_tiles, make_tiles, mirror
from efficientdet.model.network import EfficientDet
from efficientdet.model.postprocess import MAX_CANDIDATES, choose_detections
from efficientdet.project import Project, load_project
from efficientdet.runtime.exported import ExportedModel
from efficientdet.runtime.modes import optimize
from efficientdet.runtime.runner import Runner, measuring
from efficientdet.structures import Detections
from utils.device import select_device
from utils.errors import InputError
from utils.images import read_image
from utils.stopwatch import Stopwatch


class PreparedBatch(NamedTuple):
    """Tiles of images, ready for the network."""

    images: Tensor  # (N, 3, H, W) of the network's input dtype
    letterboxes: list[Letterbox]
    tiles: list[tuple[int, Tile]]  # index of the image, and which part of it


class Prepared(NamedTuple):
    """Images, ready for the network."""

    sizes: list[tuple[int, int]]  # (height, width) of each image
    batches: Iterable[PreparedBatch]


class Detector:
    """A network ready for inference, with a project's normalization and class names. `load_detector` makes one."""

    def __init__(
        self,
        network: EfficientDet | Runner,
        project: Project,
        device: torch.device,
        image_size: int | tuple[int, int] | None = None,
        dtype: torch.dtype = torch.float32,
        mode: str = "fused",
    ):
        import torchvision  # noqa: F401  (a second, which would count as the first image's post-processing)

        self.project = project
        self.device = device
        self.runner: Runner = optimize(network, device, dtype, mode) if isinstance(network, EfficientDet) else network
        self.compound_coef = self.runner.compound_coef
        self.canvas = self.runner.canvas(image_size, project)  # (height, width) of the network's input, in pixels
        self._mean_255 = 255 * torch.tensor(project.mean, device=device).view(3, 1, 1)
        self._std_255 = 255 * torch.tensor(project.std, device=device).view(3, 1, 1)

    def __call__(
        self,
        images: Sequence[str | Path | np.ndarray],
        score_threshold: float = DEMO_SCORE_THRESHOLD,
        iou_threshold: float = DEMO_IOU_THRESHOLD,
        batch_size: int = 1,
        max_detections: int | None = None,
        classes: Sequence[str] | None = None,
        flip: bool = False,
        rect: bool = False,
        tile: int | None = None,
        soft_nms: bool = False,
    ) -> list[Detections]:
        """Return the detections in each image, on the CPU, with boxes (x1, y1, x2, y2) in pixels of the image.

        Args:
            images: file names, or (H, W, 3) uint8 RGB arrays.
            score_threshold: lowest score of a detection.
            iou_threshold: IoU above which NMS drops the lower-scoring of two boxes of a class.
            batch_size: how many images, or tiles of images, pass through the network together.
            max_detections: keep the best of each image; None keeps all.
            classes: names; detections of other classes are dropped.
            flip: also detect in the mirror image, and join both by NMS.
            rect: pad no more than the images of a batch need. Faster; results differ by the padding's effect only.
            tile: also detect in overlapping square tiles of this side, in pixels of the image. For small objects.
            soft_nms: lower the scores of overlapping boxes instead of dropping these; `iou_threshold` has no effect.

        Raises InputError for a file that is no image, for an unknown class and for `soft_nms` with `flip` or `tile`,
        ValueError for an unsuitable array.
        """
        if isinstance(images, str | Path | np.ndarray):
            raise ValueError("the detector accepts a list of images: pass [image]")
        if batch_size < 1:
            raise ValueError(f"batch_size must be 1 or more, not {batch_size}")
        options = DetectionOptions(score_threshold, iou_threshold, max_detections, classes, flip, rect, tile, soft_nms)
        detections = []
        for start in range(0, len(images), batch_size):
            arrays = [_as_array(image) for image in images[start : start + batch_size]]
            detections += self.detect(self.prepare(arrays, options, batch_size), options)
        return detections

    def prepare(self, arrays: Sequence[np.ndarray], options: DetectionOptions, batch_size: int) -> Prepared:
        """Prepare (H, W, 3) uint8 RGB arrays for `detect`, in batches of up to `batch_size` tiles.

        May run in another thread than `detect`. Raises InputError for options that the network cannot follow.
        """
        if options.rect and not self.runner.takes_any_shape:
            raise InputError("--rect changes the input's shape from batch to batch; this network accepts one: omit it")
        limits = self.runner.limits
        if limits is not None and (
            options.soft_nms
            or options.multi_label
            or options.score_threshold < limits.score_threshold
            or options.iou_threshold > limits.iou_threshold
            or (options.max_detections or 0) > limits.max_detections
        ):
            raise InputError(
                f"{self.project.path} was exported with --nms: pass hard NMS, a score threshold from "
                f"{limits.score_threshold:g}, an IoU threshold up to {limits.iou_threshold:g}, "
                f"and max_detections up to {limits.max_detections}"
            )
        sizes = [array.shape[:2] for array in arrays]
        tiles = [(n, tile) for n, (h, w) in enumerate(sizes) for tile in make_tiles(h, w, options.tile)]
        parts = (tiles[start : start + batch_size] for start in range(0, len(tiles), batch_size))
        batches = (self._prepare_batch(part, arrays, options.rect) for part in parts)
        # A large image has thousands of tiles: those are prepared when they are due.
        return Prepared(sizes, list(batches) if options.tile is None else batches)

    def _prepare_batch(self, tiles: list[tuple[int, Tile]], arrays: Sequence[np.ndarray], rect: bool) -> PreparedBatch:
        letterboxes = [Letterbox.fit((tile.height, tile.width), self.canvas) for _, tile in tiles]
        if rect:
            divisor = self.runner.size_divisor
            needed = (max(letterbox.resized[axis] for letterbox in letterboxes) for axis in (0, 1))
            height, width = (-(-side // divisor) * divisor for side in needed)
            letterboxes = [replace(letterbox, canvas=(height, width)) for letterbox in letterboxes]
        crops = (tile.crop(arrays[n]) for n, tile in tiles)
        images = torch.stack(list(map(self._network_input, crops, letterboxes)))
        return PreparedBatch(images.permute(0, 3, 1, 2), letterboxes, tiles)

    def _network_input(self, image: np.ndarray, letterbox: Letterbox) -> Tensor:
        """Return an image (H, W, 3), uint8 RGB, as the network's input (canvas height, canvas width, 3)."""
        if self.runner.input_dtype == torch.uint8:
            return _to_device(letterbox.apply_uint8(image, self.runner.padding), self.device)
        canvas_bytes = 4 * 3 * letterbox.canvas[0] * letterbox.canvas[1]
        if self.device.type == "cpu" or image.nbytes > canvas_bytes:
            return _to_device(letterbox.apply(image, self.project.mean, self.project.std), self.device)
        # Transfer the smaller of the two, and let the GPU do the rest.
        pixels = _to_device(np.array(image), self.device)
        return letterbox.apply_on_device(pixels, self._mean_255, self._std_255).permute(1, 2, 0)

    def detect(
        self, prepared: Prepared, options: DetectionOptions, stopwatch: Stopwatch | None = None
    ) -> list[Detections]:
        """Return the detections in each image, as `__call__` does.

        The time goes to `stopwatch`, as "network" and "post-processing". Measuring adds a host-device sync per batch.
        """
        parts: list[list[tuple[Tile, Detections]]] = [[] for _ in prepared.sizes]
        # The best detections in a tile may be parts of objects that another tile shows entirely.
        in_tiles = options if options.tile is None else replace(options, max_detections=None)
        for batch in prepared.batches:
            for (n, tile), found in zip(batch.tiles, self._detect_batch(batch, in_tiles, stopwatch)):
                parts[n].append((tile, found))
        return [join_tiles(of_image, options.iou_threshold, options.max_detections) for of_image in parts]

    @torch.inference_mode()
    def _detect_batch(
        self, batch: PreparedBatch, options: DetectionOptions, stopwatch: Stopwatch | None
    ) -> list[Detections]:
        """Return the detections in each tile of a batch, with boxes in pixels of the tile."""
        class_ids = None if options.classes is None else class_indices(options.classes, self.project)
        max_detections = None if options.flip else options.max_detections  # applied once both views are joined
        soft_score_threshold = options.score_threshold if options.soft_nms else None
        choice = options.iou_threshold, max_detections, class_ids, MAX_CANDIDATES, soft_score_threshold
        images = batch.images.to(self.device, self.runner.input_dtype)
        views = []
        for view in [images, mirror(images, batch.letterboxes)] if options.flip else [images]:
            candidates = self.runner.find(view, options.score_threshold, stopwatch, options.multi_label)
            with measuring(stopwatch, "post-processing", self.device):
                views.append(choose_detections(candidates, len(view), *choice))
        with measuring(stopwatch, "post-processing", self.device):
            found = views[0]
            if options.flip:
                limits = options.iou_threshold, options.max_detections
                found = [join_mirrored(*parts, *limits) for parts in zip(views[0], views[1], batch.letterboxes)]
            return list(map(Letterbox.detections_to_image, batch.letterboxes, found))


def _as_array(image: str | Path | np.ndarray) -> np.ndarray:
    if not isinstance(image, np.ndarray):
        return read_image(image)
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or image.size == 0:
        raise ValueError(f"an image must be an (H, W, 3) uint8 RGB array, not {image.shape} {image.dtype}")
    return image


def _to_device(array: np.ndarray, device: torch.device) -> Tensor:
    """Copy an array to a GPU without waiting for it; on the CPU, share its memory."""
    tensor = torch.from_numpy(array)
    return tensor if device.type == "cpu" else tensor.pin_memory().to(device, non_blocking=True)


def load_detector(
    compound_coef: int = 0,
    weights: str | Path | None = None,
    project: str | Path | Project | None = None,
    device: torch.device | str | None = None,
    image_size: int | tuple[int, int] | None = None,
    dtype: torch.dtype = torch.float32,
    mode: str = "fused",
) -> Detector:
    """Load a network and return a `Detector`.

    Args:
        compound_coef: 0 (D0) to 7 (D7), 8 for D7X. Exported files contain their own.
        weights: a weights file (published ones are downloaded on first use), or a file written by
            `efficientdet.export`, which runs in its own engine. None leaves the weights random, for benchmarks.
        project: a name in `projects/`, a YAML file, or a `Project`. None means an exported file's own, else "coco".
        device: None means the first GPU if there is one, else the CPU.
        image_size: side of the square input, or its (height, width), in pixels, rounded up to what the pyramid
            accepts. None means the project's, else the coefficient's.
        dtype: bfloat16 (or float16 on a GPU) is faster where the hardware supports it, and less precise.
        mode: how the network runs, see `efficientdet.runtime.modes.optimize`. Not for exported files.

    Raises InputError for unusable files, ValueError for invalid values.
    """
    device = select_device() if device is None else torch.device(device)
    if isinstance(project, str | Path):
        project = load_project(project)
    if weights is not None and is_exported(weights):
        if mode != "fused":
            raise InputError(f"{weights} is an exported graph, which cannot be compiled: leave --compile out")
        exported = ExportedModel(weights, device, dtype)
        return Detector(exported, exported.project(project), device, image_size)
    project = project or load_project("coco")
    network = EfficientDet(compound_coef, project.num_classes, project.anchor_ratios, project.anchor_scales)
    if weights is not None:
        load_weights(network, find_weights(weights))
    return Detector(network, project, device, image_size, dtype, mode)
