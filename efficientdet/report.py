"""What there is to learn, and whether the anchors can: told before training begins."""

import torch

from efficientdet.anchors import best_anchor_iou
from efficientdet.config import ModelConfig
from efficientdet.dataset import CocoDataset
from efficientdet.loss import POSITIVE_IOU
from efficientdet.transforms import Letterbox

LEAST_COVERAGE = 0.9


def data_report(dataset: CocoDataset, config: ModelConfig) -> str:
    """Lines on a set's images, its boxes per class, and the share of boxes that some anchor reaches by IoU 0.5."""
    project = dataset.project
    targets = [dataset.target(image_id) for image_id in dataset.image_ids]
    empty = sum(len(target.class_ids) == 0 for target in targets)
    counts = torch.bincount(
        torch.cat([torch.from_numpy(target.class_ids) for target in targets]), minlength=project.num_classes
    ).tolist()
    per_class = [f"{name} {count:,}" for name, count in zip(project.class_names, counts) if name]
    lines = [
        f"{dataset.set_name}: {len(targets):,} images ({empty:,} without objects), {sum(counts):,} boxes",
        f"  {', '.join(per_class)}",
    ]
    unseen = [name for name, count in zip(project.class_names, counts) if name and not count]
    if unseen and sum(counts):
        lines.append(f"  warning: this set has no box of {', '.join(unseen)}")

    boxes = [
        torch.from_numpy(Letterbox.fit((entry["height"], entry["width"]), dataset.canvas).boxes_to_canvas(target.boxes))
        for entry, target in zip(dataset.coco.loadImgs(dataset.image_ids), targets)
        if "height" in entry and "width" in entry
    ]
    boxes = torch.cat(boxes) if boxes else torch.zeros(0, 4)
    if len(boxes):
        reached = best_anchor_iou(
            boxes,
            *dataset.canvas,
            config.pyramid_levels,
            config.anchor_scale,
            project.anchor_scales,
            project.anchor_ratios,
        )
        coverage = (reached >= POSITIVE_IOU).double().mean().item()
        height, width = dataset.canvas
        lines.append(f"  {coverage:.1%} of the boxes overlap some anchor by IoU {POSITIVE_IOU} at {width} x {height}")
        if coverage < LEAST_COVERAGE:
            missed = boxes[reached < POSITIVE_IOU]
            side = (missed[:, 2:] - missed[:, :2]).prod(dim=1).sqrt().median().item()
            lines.append(
                f"  warning: boxes that no anchor reaches are hardly learnt; their median size is {side:.0f} pixels at "
                f"this input: take another --image_size, or other anchors_scales and anchors_ratios in {project.path}"
            )
    return "\n".join(lines)
