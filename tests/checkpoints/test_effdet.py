"""Weights of effdet, converted: its own networks with random weights give the same outputs as this project's.

`python -m pytest tests/checkpoints/test_effdet.py -s` prints the largest differences of class logits and box deltas: in
float64, in float32, and in float32 with effdet's own max-pool padding.
"""

import re
import warnings

import pytest
import torch
from scripts import spread_activations, untrained
from torch import Tensor, nn

from efficientdet.boxes import encode, yxyx_to_xyxy
from efficientdet.checkpoints.effdet import effdet_name, from_effdet, to_effdet
from efficientdet.model.network import EfficientDet
from efficientdet.project import load_project

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # about its scripted functions
    effdet = pytest.importorskip("effdet")
pool2d_same = pytest.importorskip("timm.layers.pool2d_same")

SMALLEST_SIDE = {coef: 256 if coef == 8 else 128 for coef in range(9)}
SLOW = pytest.mark.slow
LARGE_SLOW = [*range(5), *(pytest.param(coef, marks=SLOW) for coef in range(5, 9))]
# Fast attention with heads of 3 and 4 layers, plain sum, and a sixth level.
EACH_ARCHITECTURE = [0, *(pytest.param(coef, marks=SLOW) for coef in (3, 6, 8))]
UNUSED = re.compile(r"bifpn\.\d\.p\d_w[12]")  # fusion weights of a plain sum


def effdet_network(coef: int, num_classes: int = 90) -> nn.Module:
    """Return a network of effdet in evaluation mode, with random weights that keep activations near 1."""
    torch.manual_seed(coef)
    side = SMALLEST_SIDE[coef]
    network = effdet.create_model(
        effdet_name(coef), pretrained_backbone=False, image_size=(side, side), num_classes=num_classes
    )
    spread_activations(network)
    for name, parameter in network.named_parameters():
        if name.endswith("edge_weights"):
            nn.init.uniform_(parameter, -0.2, 1.5)  # negative weights count as 0
        elif name.endswith("bias"):
            nn.init.normal_(parameter, std=0.2)
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        nn.init.uniform_(norm.weight, 0.5, 1.5)
        norm.momentum = 1.0
    with torch.no_grad():
        network.train()(torch.randn(2, 3, side, side))  # matching statistics
    for norm in norms:
        norm.running_var.clamp_(min=0.5)  # the top levels have only two pixels
    return network.eval()


def converted(network: nn.Module, coef: int, num_classes: int = 90) -> EfficientDet:
    ours = EfficientDet(coef, num_classes)
    ours.load_state_dict(from_effdet(network.state_dict()), strict=True)
    return ours.eval()


@torch.no_grad()
def outputs(network: nn.Module, images: Tensor) -> list[Tensor]:
    """Return class logits (N, A, classes) and box deltas (N, A, 4), flattened as in effdet's post-processing."""
    return [
        torch.cat([level.permute(0, 2, 3, 1).reshape(len(images), -1, values) for level in levels], dim=1)
        for levels, values in zip(network(images), (network.config.num_classes, 4))
    ]


@pytest.fixture
def pad_pools_with_zeros(monkeypatch):
    """Return a function that makes effdet's max-pools pad with zeros, and changes nothing else."""

    def pad() -> None:
        pad_same = pool2d_same.pad_same
        monkeypatch.setattr(pool2d_same, "pad_same", lambda *args, value: pad_same(*args, value=0.0))

    return pad


def largest(found: list[Tensor], expected: list[Tensor]) -> list[float]:
    return [(a - b).abs().max().item() for a, b in zip(found, expected)]


@pytest.mark.parametrize("coef", EACH_ARCHITECTURE)
def test_outputs_equal_effdets_except_for_max_pool_padding(coef, pad_pools_with_zeros):
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
    assert all(0.1 < values.std(dim=1).mean() < 10 for values in expected)  # over positions
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(found32, expected32, rtol=1e-3, atol=1e-3)
    assert all(number > 0.01 for number in largest(as_published, expected32))  # the padding matters


@pytest.mark.parametrize("coef", LARGE_SLOW)
def test_converting_there_and_back_changes_no_tensor(coef):
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


def test_another_number_of_classes_there_and_back(pad_pools_with_zeros):
    network = effdet_network(0, 5).double()
    ours = converted(network, 0, 5).double()
    pad_pools_with_zeros()
    images = torch.randn(2, 3, 128, 128, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(list(ours(images)[:2]), outputs(network, images), rtol=1e-9, atol=1e-9)
    back = to_effdet(ours.state_dict(), 0)
    assert all(torch.equal(back[key], value) for key, value in network.state_dict().items())


@pytest.mark.parametrize("coef", [0, 7, 8])
def test_anchors_equal_effdets(coef):
    config = effdet.get_efficientdet_config(effdet_name(coef))
    config.image_size = (512, 256)
    with torch.device("meta"):
        ours = EfficientDet(coef)
    torch.testing.assert_close(
        ours.anchors(torch.zeros(1, 3, 512, 256)), effdet.anchors.Anchors.from_config(config).boxes
    )


def test_classes_and_deltas_mean_the_same():
    """Compare with effdet's targets for a box with label 18, COCO's dog."""
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


# Weights that do not fit.


def test_empty_state_dict_is_refused():
    with pytest.raises(ValueError, match="0 levels of 0 channels"):
        from_effdet({})
    with pytest.raises(ValueError, match=r"classifier\.header"):
        to_effdet({}, 0)


@pytest.mark.parametrize(
    ("name", "lacks"),
    [
        ("efficientdet_d0", "conv_pw.bias of tf_efficientdet_d0"),  # other padding, other epsilon
        ("tf_efficientdet_lite0", "edge_weights of tf_efficientdet_d0"),
        ("efficientdetv2_dt", "0 levels of 128 channels"),
    ],
)
def test_other_networks_of_effdet_are_refused(name, lacks):
    weights = effdet.create_model(name, pretrained_backbone=False).state_dict()
    with pytest.raises(ValueError, match=lacks):
        from_effdet(weights)


def test_missing_misshapen_and_additional_entries_are_named():
    key = "fpn.cell.2.fnode.7.after_combine.conv.bn.running_var"
    weights = to_effdet(untrained(0, 2).state_dict(), 0)
    with pytest.raises(ValueError, match=rf"{re.escape(key)} .*\(7,\), not \(64,\)"):
        from_effdet({**weights, key: torch.ones(7)})
    with pytest.raises(ValueError, match=r"extra\.weight.* tf_efficientdet_d0"):
        from_effdet({**weights, "extra.weight": torch.ones(7)})
    del weights[key]
    with pytest.raises(ValueError, match=re.escape(f"{key} of tf_efficientdet_d0")):
        from_effdet(weights)
    with pytest.raises(ValueError, match="extra.* D0"):
        to_effdet({**untrained(0, 2).state_dict(), "extra": torch.ones(7)}, 0)


def test_header_of_another_shape_is_named():
    weights = to_effdet(untrained(0, 2).state_dict(), 0)
    key = "class_net.predict.conv_pw.bias"
    with pytest.raises(ValueError, match=r"class_net.predict.conv_pw"):
        from_effdet({**weights, key: torch.ones(5)})
    del weights[key]
    with pytest.raises(ValueError, match=re.escape(key)):
        from_effdet(weights)
