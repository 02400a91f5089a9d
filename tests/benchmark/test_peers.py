"""Detectors of other packages."""

import importlib.util

import pytest
import torch
from torchvision.models import detection

from efficientdet.benchmark.inputs import IMAGE, random_image
from efficientdet.benchmark.peers import (
    TORCHVISION_MODELS,
    effdet_detections,
    effdet_network,
    require_peer,
    torchvision_detector,
)
from efficientdet.project import load_project
from utils.errors import InputError

CPU = torch.device("cpu")


def test_a_package_that_is_not_there_says_how_to_get_it(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match="--compare effdet needs that package: pip install effdet"):
        require_peer("effdet")


def test_a_package_that_is_there():
    require_peer("torchvision")


@pytest.mark.parametrize(("name", "size"), TORCHVISION_MODELS.items())
def test_sizes_of_torchvisions_inputs(name, size):
    model = getattr(detection, name)(weights=None, weights_backbone=None)
    images, _ = model.transform([torch.zeros(3, *IMAGE)])
    assert images.image_sizes == [size]


def test_torchvision_detects():
    (found,) = torchvision_detector("ssdlite320_mobilenet_v3_large", CPU)([random_image()])
    assert found["boxes"].shape == (len(found["scores"]), 4)


def test_effdet_detects_in_the_images_pixels():
    pytest.importorskip("effdet")
    model = effdet_network(0, 128, CPU, "predict")
    found = effdet_detections(model, [random_image()] * 2, 128, load_project("coco"))
    assert found.shape == (2, 100, 6)
    corners = found[..., :4].reshape(-1, 2).amax(dim=0)
    assert 600 < corners[0] <= 640 and 450 < corners[1] <= 480  # to the image's border, not the input's
