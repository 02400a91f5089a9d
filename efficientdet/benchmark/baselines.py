"""Straightforward ways to do what the package does, for the benchmark. Each computes the same as ours."""

from collections.abc import Callable, Sequence

import cv2
import numpy as np
import torch
from torch import Tensor, nn

from efficientdet.boxes import clip_boxes, decode, encode, pairwise_iou, yxyx_to_xyxy
from efficientdet.config import EVALUATION_IOU_THRESHOLD, EVALUATION_SCORE_THRESHOLD
from efficientdet.data.dataset import CocoDataset
from efficientdet.data.results import coco_results
from efficientdet.data.transforms import Letterbox
from efficientdet.model.loss import Losses
from efficientdet.model.postprocess import batched_nms
from efficientdet.project import Project
from efficientdet.structures import PADDING_CLASS, Detections, Outputs, Targets
from utils.measuring import synchronize
from utils.stopwatch import Stopwatch


def baseline_prepare(picture: np.ndarray, letterbox: Letterbox, project: Project) -> np.ndarray:
    """`Letterbox.image`, normalised in float64 before the resizing."""
    height, width = letterbox.resized
    normalized = (picture / 255 - np.array(project.mean)) / np.array(project.std)
    canvas = np.zeros((*letterbox.canvas, 3), np.float32)
    canvas[:height, :width] = cv2.resize(normalized, (width, height), interpolation=cv2.INTER_LINEAR)
    return canvas


@torch.inference_mode()
def baseline_postprocess(outputs: Outputs, height: int, width: int, score_threshold: float) -> list[Detections]:
    """`postprocess` of every anchor's box and all its scores, image by image."""
    detections = []
    for logits, deltas in zip(outputs.class_logits.float(), outputs.box_deltas.float()):
        scores, class_ids = logits.sigmoid().max(dim=-1)
        boxes = clip_boxes(decode(deltas, outputs.anchors), height, width)
        passed = scores > score_threshold
        found = Detections(boxes[passed], scores[passed], class_ids[passed])
        kept = batched_nms(found.boxes, found.scores, found.class_ids, EVALUATION_IOU_THRESHOLD)
        detections.append(Detections(found.boxes[kept].cpu(), found.scores[kept].cpu(), found.class_ids[kept].cpu()))
    return detections


@torch.inference_mode()
def baseline_detections(
    network: nn.Module,
    pictures: Sequence[np.ndarray],
    canvas: tuple[int, int],
    project: Project,
    stopwatch: Stopwatch,
) -> list[Detections]:
    """`Detector.__call__` at the thresholds of evaluation, with all images (H, W, 3) uint8 RGB as one batch.

    The time of post-processing goes to `stopwatch`.
    """
    device = next(network.parameters()).device
    letterboxes = [Letterbox.fit(picture.shape[:2], canvas) for picture in pictures]
    pixels = np.stack([baseline_prepare(picture, box, project) for picture, box in zip(pictures, letterboxes)])
    images = torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous().to(device)
    outputs = network(images)
    synchronize(device)
    with stopwatch.measuring("post-processing"):
        found = baseline_postprocess(outputs, *canvas, EVALUATION_SCORE_THRESHOLD)
        return [letterbox.detections_to_image(raw) for raw, letterbox in zip(found, letterboxes)]


def baseline_evaluation(network: nn.Module, dataset: CocoDataset, stopwatch: Stopwatch) -> list[dict]:
    """`detect_dataset`, one image at a time, without workers: the reference's way."""
    results = []
    for image_id in dataset.image_ids:
        picture = dataset.load_image(image_id)
        (found,) = baseline_detections(network, [picture], dataset.canvas, dataset.project, stopwatch)
        results += coco_results(image_id, found, dataset.category_ids)
    return results


def baseline_step(network: nn.Module, images: Tensor, targets: Targets) -> Callable[[], None]:
    """What updates `network` by the batch (N, 3, H, W), as `TrainingStep` does, each time that it is called."""
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-4)

    def step() -> None:
        loss = baseline_loss(network(images), targets).total
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


def baseline_loss(outputs: Outputs, targets: Targets) -> Losses:
    """The reference recipe's loss, `DetectionLoss(empty_image_normalizer=1)`.

    A loop over the images, with a one-hot target for every logit and everything left to autograd.
    """
    anchors = outputs.anchors
    classification, regression = [], []
    for logits, deltas, boxes, class_ids in zip(outputs.class_logits, outputs.box_deltas, *targets):
        boxes, class_ids = boxes[class_ids != PADDING_CLASS].to(anchors), class_ids[class_ids != PADDING_CLASS]
        if len(boxes):
            best_iou, best_object = pairwise_iou(yxyx_to_xyxy(anchors), boxes).max(dim=1)
        else:
            best_iou = best_object = torch.zeros(len(anchors), dtype=torch.int64, device=anchors.device)
        positive = best_iou >= 0.5
        objects = best_object[positive]
        divisor = positive.sum().clamp(min=1)

        probabilities = logits.sigmoid().clamp(1e-4, 1 - 1e-4)
        one_hot = torch.full_like(probabilities, -1)  # where it stays, the anchor is left out
        one_hot[best_iou < 0.4] = 0
        one_hot[positive] = 0
        one_hot[positive, class_ids[objects]] = 1
        alpha_factor = torch.full_like(one_hot, 0.25)
        alpha_factor = torch.where(one_hot == 1, alpha_factor, 1 - alpha_factor)
        focal_weight = alpha_factor * torch.where(one_hot == 1, 1 - probabilities, probabilities) ** 2
        cross_entropy = -(one_hot * probabilities.log() + (1 - one_hot) * (1 - probabilities).log())
        losses = torch.where(one_hot != -1, focal_weight * cross_entropy, 0.0)
        classification.append(losses.sum() / divisor)

        distances = (deltas[positive] - encode(boxes[objects], anchors[positive])).abs()
        losses = torch.where(distances < 1 / 9, 0.5 * 9 * distances**2, distances - 0.5 / 9)
        regression.append(losses.sum() / (4 * divisor))
    return Losses(torch.stack(classification).mean(), 50 * torch.stack(regression).mean())
