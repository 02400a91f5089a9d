"""Weights of effdet and ours: its own networks, with random weights, give the same outputs.

`python -m pytest tests/test_effdet_weights.py -s` prints the largest differences of class logits and of box deltas: in
float64, in float32, and in float32 with effdet's own padding of its max-pools.
"""

import re
import warnings

import pytest
import torch
from scripts import untrained
from torch import Tensor, nn

from efficientdet.boxes import encode, yxyx_to_xyxy
from efficientdet.checkpoints.effdet import effdet_name, from_effdet, to_effdet
from efficientdet.model.network import EfficientDet, initialize
from efficientdet.project import load_project

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of its scripted functions
    effdet = pytest.importorskip("effdet")
pool2d_same = pytest.importorskip("timm.layers.pool2d_same")

SMALLEST_SIDE = {coef: 256 if coef == 8 else 128 for coef in range(9)}
COEFS = [*range(5), *(pytest.param(coef, marks=pytest.mark.slow) for coef in range(5, 9))]
UNUSED = re.compile(r"bifpn\.\d\.p\d_w[12]")  # fusion weights where inputs are added plainly


def effdet_network(coef: int, num_classes: int = 90) -> nn.Module:
    """A network of effdet's with random weights, which make activations of about 1; in evaluation mode."""
    torch.manual_seed(coef)
    side = SMALLEST_SIDE[coef]
    network = effdet.create_model(
        effdet_name(coef), pretrained_backbone=False, image_size=(side, side), num_classes=num_classes
    )
    initialize(network)
    for name, parameter in network.named_parameters():
        if name.endswith("edge_weights"):
            nn.init.uniform_(parameter, -0.2, 1.5)  # negative ones count as 0
        elif name.endswith("bias"):
            nn.init.normal_(parameter, std=0.2)
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        nn.init.uniform_(norm.weight, 0.5, 1.5)
        norm.momentum = 1.0
    with torch.no_grad():
        network.train()(torch.randn(2, 3, side, side))  # statistics that fit
    for norm in norms:
        norm.running_var.clamp_(min=0.5)  # at the top of the pyramid they are those of two pixels
    return network.eval()


def converted(network: nn.Module, coef: int, num_classes: int = 90) -> EfficientDet:
    ours = EfficientDet(coef, num_classes)
    ours.load_state_dict(from_effdet(network.state_dict()), strict=True)
    return ours.eval()


@torch.no_grad()
def outputs(network: nn.Module, images: Tensor) -> list[Tensor]:
    """Class logits (N, A, classes) and box deltas (N, A, 4), as effdet's post-processing flattens its levels."""
    return [
        torch.cat([level.permute(0, 2, 3, 1).reshape(len(images), -1, values) for level in levels], dim=1)
        for levels, values in zip(network(images), (network.config.num_classes, 4))
    ]


@pytest.fixture
def pad_pools_with_zeros(monkeypatch):
    """A function that lets the max-pooling of effdet pad as ours does, and changes nothing else."""

    def pad() -> None:
        pad_same = pool2d_same.pad_same
        monkeypatch.setattr(pool2d_same, "pad_same", lambda *args, value: pad_same(*args, value=0.0))

    return pad


def largest(found: list[Tensor], expected: list[Tensor]) -> list[float]:
    return [(a - b).abs().max().item() for a, b in zip(found, expected)]


@pytest.mark.parametrize("coef", COEFS)
def test_outputs_are_those_of_effdet_but_for_the_padding_of_its_pools(coef, pad_pools_with_zeros):
    network = effdet_network(coef)
    ours = converted(network, coef)
    images = torch.randn(1, 3, SMALLEST_SIDE[coef], SMALLEST_SIDE[coef])
    as_published = outputs(network, images)
    pad_pools_with_zeros()
    expected32 = outputs(network, images)
    expected = outputs(network.double(), images.double())
    with torch.no_grad():
        found32 = list(ours(images)[:2])
        found = list(ours.double()(images.double())[:2])

    numbers = [*largest(found, expected), *largest(found32, expected32), *largest(as_published, expected32)]
    print(f"\n| {effdet_name(coef)} |", " | ".join(f"{number:.1e}" for number in numbers), "|")
    assert all(0.1 < values.std(dim=1).mean() < 10 for values in expected)  # from place to place
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(found32, expected32, rtol=1e-3, atol=1e-3)
    assert all(number > 0.01 for number in largest(as_published, expected32))  # the padding does matter


@pytest.mark.parametrize("coef", range(9))
def test_there_and_back_every_tensor_is_as_it_was(coef):
    with torch.device("meta"):
        weights = EfficientDet(coef, 7).state_dict()
        expected = effdet.create_model(effdet_name(coef), pretrained_backbone=False, num_classes=7).state_dict()
    theirs = to_effdet(weights, coef)
    assert {key: value.shape for key, value in theirs.items()} == {key: value.shape for key, value in expected.items()}
    back = from_effdet(theirs)
    assert list(back) == list(weights)
    for key, value in weights.items():
        assert back[key] is value or (
            coef >= 6 and UNUSED.fullmatch(key) and torch.equal(back[key], torch.ones(value.shape))
        )


def test_another_number_of_classes_and_its_way_back(pad_pools_with_zeros):
    network = effdet_network(0, 5).double()
    ours = converted(network, 0, 5).double()
    pad_pools_with_zeros()
    images = torch.randn(2, 3, 128, 128, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(list(ours(images)[:2]), outputs(network, images), rtol=1e-9, atol=1e-9)
    back = to_effdet(ours.state_dict(), 0)
    assert all(torch.equal(back[key], value) for key, value in network.state_dict().items())


@pytest.mark.parametrize("coef", [0, 7, 8])
def test_anchors_are_those_of_effdet(coef):
    config = effdet.get_efficientdet_config(effdet_name(coef))
    config.image_size = (512, 256)
    with torch.device("meta"):
        ours = EfficientDet(coef)
    torch.testing.assert_close(
        ours.anchors(torch.zeros(1, 3, 512, 256)), effdet.anchors.Anchors.from_config(config).boxes
    )


def test_classes_and_deltas_mean_the_same():
    """What effdet's labeler asks of its network for a box of label 18, COCO's dog."""
    config = effdet.get_efficientdet_config("tf_efficientdet_d0")
    config.image_size = (128, 128)
    anchors = effdet.anchors.Anchors.from_config(config)
    box_yxyx = torch.tensor([[20.0, 30.0, 61.0, 96.0]])
    labels, deltas, positives = effdet.anchors.AnchorLabeler(anchors, 90).label_anchors(box_yxyx, torch.tensor([18]))
    labels = torch.cat([level.flatten() for level in labels])
    deltas = torch.cat([level.reshape(-1, 4) for level in deltas])
    is_positive = labels >= 0
    assert is_positive.sum() == positives > 0
    (index,) = labels[is_positive].unique().tolist()
    assert load_project("coco").class_names[index] == "dog"
    torch.testing.assert_close(deltas[is_positive], encode(yxyx_to_xyxy(box_yxyx), anchors.boxes[is_positive]))


# What does not fit.


def test_empty_state_dict_is_refused():
    with pytest.raises(ValueError, match="its pyramid has 0 levels of 0 channels"):
        from_effdet({})
    with pytest.raises(ValueError, match=r"it lacks classifier\.header"):
        to_effdet({}, 0)


@pytest.mark.parametrize(
    ("name", "lacks"),
    [
        ("efficientdet_d0", "it lacks .*conv_pw.bias of tf_efficientdet_d0"),  # other padding, other epsilon
        ("tf_efficientdet_lite0", "it lacks .*edge_weights of tf_efficientdet_d0"),
        ("efficientdetv2_dt", "its pyramid has 0 levels of 128 channels"),
    ],
)
def test_other_networks_of_effdet_are_refused(name, lacks):
    weights = effdet.create_model(name, pretrained_backbone=False).state_dict()
    with pytest.raises(ValueError, match=lacks):
        from_effdet(weights)


def test_missing_misshapen_and_additional_entries_are_named():
    key = "fpn.cell.2.fnode.7.after_combine.conv.bn.running_var"
    weights = to_effdet(untrained(0, 2).state_dict(), 0)
    with pytest.raises(ValueError, match=re.escape(f"{key} is shaped (7,), not (64,)")):
        from_effdet({**weights, key: torch.ones(7)})
    with pytest.raises(ValueError, match=re.escape("it has extra.weight, which tf_efficientdet_d0 has not")):
        from_effdet({**weights, "extra.weight": torch.ones(7)})
    del weights[key]
    with pytest.raises(ValueError, match=re.escape(f"it lacks {key} of tf_efficientdet_d0")):
        from_effdet(weights)
    with pytest.raises(ValueError, match=r"it has extra, which D0 has not"):
        to_effdet({**untrained(0, 2).state_dict(), "extra": torch.ones(7)}, 0)


def test_headers_that_are_no_classes_are_told_by_their_shape():
    weights = to_effdet(untrained(0, 2).state_dict(), 0)
    key = "class_net.predict.conv_pw.bias"
    with pytest.raises(ValueError, match=r"class_net.predict.conv_pw.\w+ is shaped"):
        from_effdet({**weights, key: torch.ones(5)})
    del weights[key]
    with pytest.raises(ValueError, match=f"it lacks {re.escape(key)}"):
        from_effdet(weights)
