"""The detector that other programs use: images in, `Detections` in their own pixels out."""

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from efficientdet.boxes import clip_boxes, flip_boxes
from efficientdet.checkpoints.find import find_weights, is_exported
from efficientdet.checkpoints.loading import load_weights
from efficientdet.config import DEMO_IOU_THRESHOLD, DEMO_SCORE_THRESHOLD
from efficientdet.data.transforms import Letterbox, detections_to_image
from efficientdet.inference.tiling import Window, join, windows
from efficientdet.model.network import EfficientDet
from efficientdet.model.postprocess import Candidates, choose_detections, suppress
from efficientdet.project import Project, load_project
from efficientdet.runtime.exported import ExportedFinder, ExportedModel
from efficientdet.runtime.metadata import Suppression
from efficientdet.runtime.modes import CandidateFinder, CompiledFinder, optimize
from efficientdet.structures import Detections, concatenate
from utils.device import available_device
from utils.errors import InputError
from utils.images import read_image
from utils.stopwatch import Stopwatch


@dataclass(frozen=True)
class DetectionOptions:
    """What to look for, and how."""

    score_threshold: float = DEMO_SCORE_THRESHOLD
    iou_threshold: float = DEMO_IOU_THRESHOLD
    max_detections: int | None = None  # of an image, the best; None: all
    classes: Sequence[str] | None = None  # names; others are left out
    flip: bool = False  # search the mirror image, too
    rect: bool = False  # no more padding than the images of a batch need
    tile: int | None = None  # search windows of this side, too, in pixels of the image


class PreparedBatch(NamedTuple):
    """Windows of images, ready for the network."""

    images: Tensor  # (N, 3, H, W) float, normalised; uint8 for an exported network that normalises by itself
    letterboxes: list[Letterbox]
    windows: list[tuple[int, Window]]  # of which image, and which part of it


class Prepared(NamedTuple):
    """Images, ready for the network."""

    sizes: list[tuple[int, int]]  # (height, width) of each
    batches: Iterable[PreparedBatch]


class Detector:
    """A network made ready for inference, with the project's normalisation and class names.

    Make one with `load_detector`.
    """

    def __init__(
        self,
        network: EfficientDet | ExportedModel,
        project: Project,
        device: torch.device,
        image_size: int | tuple[int, int] | None = None,
        dtype: torch.dtype = torch.float32,
        mode: str = "fused",
    ):
        self.project = project
        self.device = device
        self.compound_coef = network.compound_coef
        self.size_divisor = network.config.size_divisor
        self.dtype = dtype
        self.mode = mode
        self.limits: Suppression | None = None  # inside of an exported graph
        self._padding = (0, 0, 0)
        self._takes_any_shape = mode != "compiled"
        self._input_dtype = torch.promote_types(dtype, torch.float32)
        self.finder: CandidateFinder | CompiledFinder | ExportedFinder
        if isinstance(network, ExportedModel):
            self.canvas = network.canvas(image_size)
            self.finder = ExportedFinder(network)
            self._takes_any_shape = network.metadata.dynamic
            self._input_dtype = network.input_dtype
            self._padding = network.metadata.padding
            self.limits = network.metadata.suppression
        else:
            self.canvas = network.config.input_shape(project.image_size if image_size is None else image_size)
            self.finder = optimize(network, device, dtype, mode)
        self._normalization = [
            255 * torch.tensor(values, device=device).view(3, 1, 1) for values in (project.mean, project.std)
        ]

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
    ) -> list[Detections]:
        """The objects in each image, on the CPU, boxes (x1, y1, x2, y2) in the image's own pixels.

        Args:
            images: file names, or (H, W, 3) uint8 RGB arrays.
            score_threshold: least score of an object.
            iou_threshold: IoU above which the weaker of two boxes of a class goes.
            batch_size: how many images, or windows of images, go through the network together.
            max_detections: of an image, the best; None gives all.
            classes: names; objects of other classes are left out.
            flip: search the mirror image, too, and join what both give.
            rect: no more padding than the images of a batch need. Faster, and alike but for the padding's effect.
            tile: search overlapping square windows of this side, too, in pixels of the image. For small objects.

        Raises InputError for a file that is no image and for an unknown class, ValueError for an array of another
        shape or type.
        """
        if isinstance(images, str | Path | np.ndarray):
            raise ValueError("the detector takes a list of images: put a single one into a list")
        if batch_size < 1:
            raise ValueError(f"batch_size must be 1 or more, not {batch_size}")
        options = DetectionOptions(score_threshold, iou_threshold, max_detections, classes, flip, rect, tile)
        detections = []
        for start in range(0, len(images), batch_size):
            arrays = [self._array(image) for image in images[start : start + batch_size]]
            detections += self.detect(self.prepare(arrays, options, batch_size), options)
        return detections

    def prepare(self, arrays: Sequence[np.ndarray], options: DetectionOptions, batch_size: int) -> Prepared:
        """(H, W, 3) uint8 RGB arrays -> what `detect` takes, in batches of up to `batch_size` of their windows.

        May run in a thread, beside `detect`. InputError for options that this network cannot follow.
        """
        self._check(options)
        sizes = [array.shape[:2] for array in arrays]
        parts = [(n, window) for n, (h, w) in enumerate(sizes) for window in windows(h, w, options.tile)]
        batches = (
            self._prepare_batch(parts[start : start + batch_size], arrays, options.rect)
            for start in range(0, len(parts), batch_size)
        )
        # A large image has thousands of windows: these are prepared when their turn comes.
        return Prepared(sizes, list(batches) if options.tile is None else batches)

    def _check(self, options: DetectionOptions) -> None:
        """InputError for another shape than a network takes, and for more than an exported file's graph gives."""
        if options.rect and not self._takes_any_shape:
            raise InputError(
                "less padding (--rect) changes the input's shape from batch to batch, and this network takes one only: "
                "leave it out"
            )
        if self.limits is None:
            return
        score, iou, most = self.limits.score_threshold, self.limits.iou_threshold, self.limits.max_detections
        asked = ""
        if options.score_threshold < score:
            asked = f"scores of {options.score_threshold:g} (its threshold is {score:g})"
        elif options.iou_threshold > iou:
            asked = f"boxes that overlap by {options.iou_threshold:g} (its suppression leaves {iou:g})"
        elif options.max_detections is not None and options.max_detections > most:
            asked = f"{options.max_detections} detections of an image (it gives {most})"
        if asked:
            raise InputError(
                f"{self.project.path} was exported with --nms and cannot give {asked}: ask for less, or export it anew"
            )

    def _prepare_batch(
        self, parts: Sequence[tuple[int, Window]], arrays: Sequence[np.ndarray], rect: bool
    ) -> PreparedBatch:
        letterboxes = [Letterbox.fit((window.height, window.width), self.canvas) for _, window in parts]
        if rect:
            needed = (max(letterbox.resized[axis] for letterbox in letterboxes) for axis in (0, 1))
            height, width = (-(-side // self.size_divisor) * self.size_divisor for side in needed)
            letterboxes = [replace(letterbox, canvas=(height, width)) for letterbox in letterboxes]
        cuts = [window.of(arrays[n]) for n, window in parts]
        images = torch.stack([self._input(*pair) for pair in zip(cuts, letterboxes)])
        return PreparedBatch(images.permute(0, 3, 1, 2), letterboxes, list(parts))

    def _input(self, picture: np.ndarray, letterbox: Letterbox) -> Tensor:
        """(H, W, 3) uint8 RGB -> (canvas height, canvas width, 3), as the network takes it, on the device."""
        if self._input_dtype == torch.uint8:
            return _sent(torch.from_numpy(letterbox.pixels(picture, self._padding)), self.device)
        canvas_bytes = 4 * 3 * letterbox.canvas[0] * letterbox.canvas[1]
        if self.device.type == "cpu" or picture.nbytes > canvas_bytes:
            prepared = letterbox.image(picture, self.project.mean, self.project.std)
            return _sent(torch.from_numpy(prepared), self.device)
        # Fewer bytes travel, and the GPU does the rest.
        pixels = _sent(torch.from_numpy(np.array(picture)), self.device)
        return letterbox.image_on_device(pixels, *self._normalization).permute(1, 2, 0)

    def detect(
        self, prepared: Prepared, options: DetectionOptions, stopwatch: Stopwatch | None = None
    ) -> list[Detections]:
        """The objects in each image, as `__call__` gives them; the time of its parts goes to `stopwatch`."""
        parts: list[list[tuple[Window, Detections]]] = [[] for _ in prepared.sizes]
        # The best of a window may be parts of objects that another window shows whole.
        in_windows = options if options.tile is None else replace(options, max_detections=None)
        for images, letterboxes, batch_windows in prepared.batches:
            for (n, window), found in zip(batch_windows, self.detect_batch(images, letterboxes, in_windows, stopwatch)):
                parts[n].append((window, found))
        return [
            join(image_parts, *size, options.iou_threshold, options.max_detections)
            for image_parts, size in zip(parts, prepared.sizes)
        ]

    def detect_batch(
        self,
        images: Tensor,
        letterboxes: Sequence[Letterbox],
        options: DetectionOptions,
        stopwatch: Stopwatch | None = None,
    ) -> list[Detections]:
        """As `__call__`, for a batch (N, 3, H, W) that is letterboxed and normalised already."""
        stopwatch = stopwatch or Stopwatch()
        with stopwatch.measuring("network"):
            candidates = self.find(images, letterboxes, options)
        with stopwatch.measuring("post-processing"):
            return self.choose(candidates, letterboxes, options)

    @torch.inference_mode()
    def find(self, images: Tensor, letterboxes: Sequence[Letterbox], options: DetectionOptions) -> list[Candidates]:
        """What may be objects in a batch (N, 3, H, W), and with `options.flip` in its images' mirror images."""
        images = images.to(self.device, self._input_dtype)
        found = [self.finder(images, options.score_threshold)]
        if options.flip:
            mirrored = images.clone()
            for image, letterbox in zip(mirrored, letterboxes):  # the image stays at the left, as in training
                height, width = letterbox.resized
                image[:, :height, :width] = image[:, :height, :width].flip(-1)
            found.append(self.finder(mirrored, options.score_threshold))
        return found

    @torch.inference_mode()
    def choose(
        self, candidates: Sequence[Candidates], letterboxes: Sequence[Letterbox], options: DetectionOptions
    ) -> list[Detections]:
        """What `find` gives for a batch -> as `__call__`."""
        class_ids = None if options.classes is None else self.class_ids(options.classes)
        most = options.max_detections if len(candidates) == 1 else None  # counted when both directions are joined
        limits = len(letterboxes), options.iou_threshold, most, class_ids
        found, *of_mirrored = (choose_detections(part, *limits) for part in candidates)
        for mirrored in of_mirrored:
            for n, (there, letterbox) in enumerate(zip(mirrored, letterboxes)):
                boxes = clip_boxes(flip_boxes(there.boxes, letterbox.resized[1]), *letterbox.canvas)
                both = concatenate([found[n], Detections(boxes, there.scores, there.class_ids)])
                found[n] = suppress(both, options.iou_threshold, options.max_detections)
        return [detections_to_image(*pair) for pair in zip(found, letterboxes)]

    def class_ids(self, names: Sequence[str]) -> list[int]:
        """The indices of classes by their names; InputError for a name that the project does not know."""
        known = [name for name in self.project.class_names if name]
        for name in names:
            if name not in known:
                close = difflib.get_close_matches(name, known, n=1)
                hint = f"did you mean {close[0]!r}?" if close else f"it has {', '.join(known)}"
                raise InputError(f"{self.project.path} has no class {name!r}: {hint}")
        return [self.project.class_names.index(name) for name in names]

    @staticmethod
    def _array(image: str | Path | np.ndarray) -> np.ndarray:
        if not isinstance(image, np.ndarray):
            return read_image(image)
        if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or image.size == 0:
            raise ValueError(f"an image must be an (H, W, 3) uint8 RGB array, not {image.shape} {image.dtype}")
        return image


def _sent(tensor: Tensor, device: torch.device) -> Tensor:
    """A copy on `device`, for which nobody waits; on the CPU the tensor itself."""
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
    """A detector ready for inference.

    Args:
        compound_coef: 0 (D0) to 7 (D7), 8 for D7X. Exported files know their own.
        weights: a weights file; published ones are downloaded into `weights/` on first use. Or a file of
            `efficientdet.export`, which runs in its own engine. None leaves the weights random, for benchmarks.
        project: a name under `projects/`, a YAML file, or a `Project`. None is what an exported file was made with,
            and "coco" for all others.
        device: None takes the first GPU if there is one, else the CPU.
        image_size: side of the square input, or its (height, width), in pixels, rounded up to what the pyramid can
            take; None takes the project's or the coefficient's own.
        dtype: bfloat16 (or float16 on a GPU) is faster where the hardware has it, and less exact.
        mode: how the network runs, see `efficientdet.runtime.modes.optimize`. Not for exported files.

    Raises InputError for files that cannot be used, ValueError for values that make no detector.
    """
    device = available_device() if device is None else torch.device(device)
    if isinstance(project, str | Path):
        project = load_project(project)
    if weights is not None and is_exported(weights):
        if mode != "fused":
            raise InputError(f"{weights} is a finished graph, which cannot be compiled: leave --compile out")
        exported = ExportedModel(weights, device, dtype)
        return Detector(exported, exported.project(project), device, image_size)
    if project is None:
        project = load_project("coco")
    network = EfficientDet(compound_coef, project.num_classes, project.anchor_ratios, project.anchor_scales)
    if weights is not None:
        load_weights(network, find_weights(weights))
    return Detector(network, project, device, image_size, dtype, mode)
