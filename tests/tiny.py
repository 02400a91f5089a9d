"""A network and batches so small that their training steps can be computed by hand."""

import torch
from torch import Tensor, nn

from efficientdet.data.loader import Batch
from efficientdet.data.transforms import Letterbox
from efficientdet.model.anchors import make_anchors
from efficientdet.structures import Outputs, Targets


class TinyNetwork(nn.Module):
    """A convolution over cells of 8 x 8 pixels, and two headers: one anchor per cell, of its size."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Conv2d(3, 8, 8, stride=8, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.classifier = nn.Conv2d(8, 2, 1)
        self.regressor = nn.Conv2d(8, 4, 1)
        self.fails = False

    def forward(self, images: Tensor) -> Outputs:
        features = self.norm(self.stem(images)).relu()
        if self.fails:
            raise RuntimeError("something went wrong in a layer")
        anchors = make_anchors(*images.shape[-2:], (3,), 1.0, (1.0,), ((1.0, 1.0),)).float()
        return Outputs(self.classifier(features).flatten(2).mT, self.regressor(features).flatten(2).mT, anchors)


def tiny_batch(seed: int = 0, images: int = 2, objects: int = 1) -> Batch:
    """Noise of 32 x 32 pixels; the object overlaps the anchor of one cell by 64 / 81."""
    pixels = torch.randn(images, 3, 32, 32, generator=torch.Generator().manual_seed(seed))
    boxes = torch.tensor([8.0, 8.0, 17.0, 17.0]).repeat(images, objects, 1)
    ground_truth = Targets(boxes, torch.ones(images, objects, dtype=torch.int64))
    return Batch(pixels, ground_truth, [Letterbox.fit((32, 32), (32, 32))] * images, list(range(images)))
