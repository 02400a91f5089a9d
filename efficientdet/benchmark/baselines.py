"""What ours is compared with: straightforward code that computes the same, and detectors of other packages."""

from collections.abc import Sequence

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from efficientdet.boxes import clip_boxes, decode, encode, pairwise_iou, yxyx_to_xyxy
from efficientdet.checkpoints.effdet import effdet_name
from efficientdet.config import EVALUATION_IOU_THRESHOLD, EVALUATION_SCORE_THRESHOLD
from efficientdet.data.dataset import CocoDataset
from efficientdet.data.loader import Batch
from efficientdet.data.results import coco_results
from efficientdet.data.transforms import Letterbox
from efficientdet.model.loss import Losses
from efficientdet.model.postprocess import batched_nms
from efficientdet.project import Project
from efficientdet.structures import PADDING_CLASS, Detections, Outputs, Targets
from utils.optional import quietly
from utils.stopwatch import Stopwatch

PEERS = {  # package -> contenders; torchvision's with the size to which each resizes an image of 640 x 480 pixels
    "effdet": ["effdet"],
    "torchvision": [
        "retinanet_resnet50_fpn_v2 (1066 x 800)",
        "ssdlite320_mobilenet_v3_large (320 x 320)",
        "fasterrcnn_mobilenet_v3_large_320_fpn (426 x 320)",
    ],
}


def baseline_image(letterbox: Letterbox, image: np.ndarray, mean: Sequence[float], std: Sequence[float]) -> np.ndarray:
    """`Letterbox.apply`, normalized in float64 before resizing."""
    height, width = letterbox.resized
    normalized = (image / 255 - np.array(mean)) / np.array(std)
    canvas = np.zeros((*letterbox.canvas, 3), np.float32)
    canvas[:height, :width] = cv2.resize(normalized, (width, height), interpolation=cv2.INTER_LINEAR)
    return canvas


@torch.inference_mode()
def baseline_postprocess(outputs: Outputs, side: int) -> list[Detections]:
    """`postprocess` at the thresholds of evaluation, image by image, decoding the boxes of all anchors."""
    detections = []
    for logits, deltas in zip(outputs.class_logits.float(), outputs.box_deltas.float()):
        scores, class_ids = logits.sigmoid().max(dim=-1)
        boxes = clip_boxes(decode(deltas, outputs.anchors), side, side)
        passed = scores > EVALUATION_SCORE_THRESHOLD
        boxes, scores, class_ids = boxes[passed], scores[passed], class_ids[passed]
        kept = batched_nms(boxes, scores, class_ids, EVALUATION_IOU_THRESHOLD)
        detections.append(Detections(boxes[kept].cpu(), scores[kept].cpu(), class_ids[kept].cpu()))
    return detections


@torch.inference_mode()
def baseline_detections(
    network: nn.Module, images: Sequence[np.ndarray], side: int, project: Project, stopwatch: Stopwatch
) -> list[Detections]:
    """`Detector.__call__` at the thresholds of evaluation, for a batch of images (H, W, 3) uint8 RGB."""
    device = next(network.parameters()).device
    letterboxes = [Letterbox.fit(image.shape[:2], (side, side)) for image in images]
    pixels = [baseline_image(box, image, project.mean, project.std) for image, box in zip(images, letterboxes)]
    outputs = network(torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2).contiguous().to(device))
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    with stopwatch.measuring("post-processing"):
        found = baseline_postprocess(outputs, side)
        return [letterbox.detections_to_image(raw) for raw, letterbox in zip(found, letterboxes)]


def baseline_evaluation(network: nn.Module, dataset: CocoDataset) -> list[dict]:
    """`detect_dataset`, one image at a time, without workers: the reference's way."""
    results = []
    for image_id in dataset.image_ids:
        images, side = [dataset.load_image(image_id)], dataset.canvas[0]
        (found,) = baseline_detections(network, images, side, dataset.project, Stopwatch())
        results += coco_results(image_id, found, dataset.category_ids)
    return results


def baseline_step(network: nn.Module, optimizer: torch.optim.Optimizer, batch: Batch) -> None:
    """`TrainingStep.__call__`."""
    loss = baseline_loss(network(batch.images), batch.targets).total
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


def baseline_loss(outputs: Outputs, targets: Targets) -> Losses:
    """`DetectionLoss` of the reference recipe, image by image, with one-hot targets and gradients by autograd."""
    anchors = outputs.anchors
    classification, regression = [], []
    for logits, deltas, boxes, class_ids in zip(outputs.class_logits, outputs.box_deltas, *targets):
        boxes, class_ids = boxes[class_ids != PADDING_CLASS].to(anchors), class_ids[class_ids != PADDING_CLASS]
        ious = F.pad(pairwise_iou(yxyx_to_xyxy(anchors), boxes), (0, 1))  # one column at least
        best_iou, best_object = ious.max(dim=1)
        positive = best_iou >= 0.5
        objects = best_object[positive]
        divisor = positive.sum().clamp(min=1)

        probabilities = logits.sigmoid().clamp(1e-4, 1 - 1e-4)
        one_hot = torch.full_like(probabilities, -1)  # -1: ignored
        one_hot[(best_iou < 0.4) | positive] = 0
        one_hot[positive, class_ids[objects]] = 1
        alpha = torch.full_like(one_hot, 0.25)
        alpha = torch.where(one_hot == 1, alpha, 1 - alpha)
        focal_weight = alpha * torch.where(one_hot == 1, 1 - probabilities, probabilities) ** 2
        cross_entropy = -(one_hot * probabilities.log() + (1 - one_hot) * (1 - probabilities).log())
        classification.append(torch.where(one_hot != -1, focal_weight * cross_entropy, 0.0).sum() / divisor)

        distances = (deltas[positive] - encode(boxes[objects], anchors[positive])).abs()
        losses = torch.where(distances < 1 / 9, 4.5 * distances**2, distances - 0.5 / 9)
        regression.append(losses.sum() / (4 * divisor))
    return Losses(torch.stack(classification).mean(), 50 * torch.stack(regression).mean())


def effdet_network(compound_coef: int, side: int, device: torch.device, bench_task: str = "") -> nn.Module:
    """Return effdet's network, with its post-processing if `bench_task` is "predict"."""
    with quietly():  # its scripted functions are deprecated in PyTorch
        from effdet import create_model
    options = {"image_size": (side, side), "pretrained": False, "pretrained_backbone": False}
    return create_model(effdet_name(compound_coef), bench_task, **options).eval().to(device)


@torch.inference_mode()
def effdet_detections(network: nn.Module, images: Sequence[np.ndarray], side: int, project: Project) -> Tensor:
    """Return the detections in images (H, W, 3) uint8 RGB: (N, 100, 6), xyxy in their pixels, score, class."""
    device = next(network.parameters()).device
    letterboxes = [Letterbox.fit(image.shape[:2], (side, side)) for image in images]
    pixels = np.stack([box.apply(image, project.mean, project.std) for image, box in zip(images, letterboxes)])
    scales = [max(image.shape[:2]) / max(box.resized) for image, box in zip(images, letterboxes)]
    sizes = [image.shape[1::-1] for image in images]  # (width, height)
    info = {"img_scale": torch.tensor(scales, device=device), "img_size": torch.tensor(sizes, device=device)}
    return network(torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous().to(device), info).cpu()


def torchvision_network(name: str, device: torch.device) -> nn.Module:
    from torchvision.models import get_model  # here, since it takes a second

    return get_model(name.split()[0], weights=None, weights_backbone=None).eval().to(device)


@torch.inference_mode()
def torchvision_detections(network: nn.Module, images: Sequence[np.ndarray]) -> list[dict[str, Tensor]]:
    """Return the detections in images (H, W, 3) uint8 RGB."""
    device = next(network.parameters()).device
    inputs = [torch.from_numpy(image).permute(2, 0, 1).to(device).float() / 255 for image in images]
    return [{key: value.cpu() for key, value in found.items()} for found in network(inputs)]
