"""ImageNet weights of three publishers: their keys, their arithmetic, and weights that do not fit."""

import re
from functools import cache
from itertools import product

import pytest
import torch
import torch.nn.functional as F
import torchvision
from backbones import (
    as_efficientnet_pytorch,
    random_state,
    randomize,
    timm_network,
    torchvision_features,
    torchvision_network,
)
from torch import Tensor, nn

from efficientnet.model import EfficientNet
from efficientnet.pretrained import convert_backbone_weights

INDICES = range(8)
SMALL_AND_LARGE = (0, pytest.param(5, marks=pytest.mark.slow))  # torchvision's B5 has another epsilon than its B0
FAMILIES = ("EfficientNet-PyTorch", "torchvision", "tf_efficientnet", "efficientnet")  # the last two are timm's
EPS_RATIO = 1.4071950894605838  # sqrt((0.001 + 1e-3) / (0.001 + 1e-5))


@cache
def on_meta_device(family: str, index: int) -> dict[str, Tensor]:
    """Return a published state dict of B`index` with shapes only. Do not modify it."""
    with torch.device("meta"):
        if family == "torchvision":
            return getattr(torchvision.models, f"efficientnet_b{index}")(weights=None).state_dict()
        if family == "EfficientNet-PyTorch":
            return as_efficientnet_pytorch(EfficientNet(index).state_dict())
        return pytest.importorskip("timm").create_model(f"{family}_b{index}").state_dict()


@cache
def our_shapes(index: int) -> dict[str, torch.Size]:
    with torch.device("meta"):
        return {key: value.shape for key, value in EfficientNet(index).state_dict().items()}


def constant_weights(family: str, index: int) -> dict[str, Tensor]:
    """Return a published state dict with variances of 0.001 and threes elsewhere."""
    return {
        key: torch.full_like(value, 0.001 if key.endswith("running_var") else 3.0, device="cpu")
        for key, value in on_meta_device(family, index).items()
    }


def convert(family: str, weights: dict[str, Tensor], index: int) -> dict[str, Tensor]:
    """Convert the weights of a file with the family's name."""
    return convert_backbone_weights(weights, index, f"weights/{family}_b{index}.pth")


def converted_network(network: nn.Module, index: int, path: str = "") -> EfficientNet:
    backbone = EfficientNet(index).double()
    backbone.load_state_dict(convert_backbone_weights(network.state_dict(), index, path), strict=True)
    return backbone.eval()


def assert_equal_features(found: list[Tensor], expected: list[Tensor]) -> None:
    assert min(feature.std() for feature in expected) > 0.1
    torch.testing.assert_close(found, list(expected), rtol=1e-10, atol=1e-10)


def pad_as_same(network: nn.Module) -> nn.Module:
    """Give stride-2 convolutions SAME padding for even sides: (0, 1) pixels for 3x3 kernels, (1, 2) for 5x5."""
    for conv in network.modules():
        if isinstance(conv, nn.Conv2d) and conv.stride == (2, 2):
            before, after = {3: (0, 1), 5: (1, 2)}[conv.kernel_size[0]]
            conv.padding = (0, 0)
            padding = (before, after, before, after)
            conv.register_forward_pre_hook(lambda _, inputs, padding=padding: F.pad(inputs[0], padding))
    return network


# Weights that fit.


# timm's efficientnet has the keys and shapes of its tf_efficientnet: the smallest and the largest suffice.
@pytest.mark.parametrize(
    ("family", "index"), [*product(FAMILIES[:3], INDICES), ("efficientnet", INDICES[0]), ("efficientnet", INDICES[-1])]
)
def test_every_entry_comes_from_its_counterpart(family, index):
    weights = on_meta_device(family, index)
    converted = convert(family, weights, index)
    assert {key: value.shape for key, value in converted.items()} == our_shapes(index)
    # All publishers define their layers in the order of the forward pass; the head comes last.
    has_other_eps = family == "efficientnet" or (family == "torchvision" and index < 5)
    for (key, value), source in zip(converted.items(), weights):
        rescaled = has_other_eps and re.search(r"_bn\d\.weight$", key)
        assert (value is weights[source]) != bool(rescaled), (key, source)


def test_efficientnet_pytorch_is_unchanged():
    backbone = EfficientNet(0)
    backbone.load_state_dict(convert_backbone_weights(as_efficientnet_pytorch(random_state(0)), 0), strict=True)
    assert all(torch.equal(value, random_state(0)[key]) for key, value in backbone.state_dict().items())


@pytest.mark.parametrize("index", SMALL_AND_LARGE)
def test_features_are_those_of_efficientnet_pytorch(index):
    package = pytest.importorskip("efficientnet_pytorch")
    torch.manual_seed(index)
    network = package.EfficientNet.from_name(f"efficientnet-b{index}", image_size=None)  # padding by the input's size
    network = randomize(network).double().eval()
    images = torch.randn(1, 3, 64, 96, dtype=torch.float64)
    with torch.no_grad():
        endpoints = network.extract_endpoints(images)
        expected = [endpoints[f"reduction_{level}"] for level in (3, 4, 5)]
        assert_equal_features(converted_network(network, index)(images), expected)


@pytest.mark.parametrize("index", SMALL_AND_LARGE)
def test_features_are_those_of_timms_tf_efficientnet(index):
    network = timm_network(f"tf_efficientnet_b{index}")
    images = torch.randn(1, 3, 64, 32, dtype=torch.float64)
    with torch.no_grad():
        found = converted_network(network, index, f"tf_efficientnet_b{index}.pth")(images)
        assert_equal_features(found, network(images))


@pytest.mark.parametrize("index", SMALL_AND_LARGE)
@pytest.mark.parametrize("family", ["torchvision", "timm"])
def test_features_are_those_of_others_where_both_pad_alike(family, index):
    images = torch.randn(1, 3, 65, 33, dtype=torch.float64)  # odd at every level: 33, 17, 9, 5, 3
    with torch.no_grad():
        if family == "timm":
            network = timm_network(f"efficientnet_b{index}")
            expected = network(images)
        else:
            network = torchvision_network(index)
            expected = torchvision_features(network, images)
        assert_equal_features(converted_network(network, index, f"efficientnet_b{index}.pth")(images), expected)


@pytest.mark.parametrize("family", ["torchvision", "timm"])
def test_only_padding_differs_on_even_sides(family):
    is_timm = family == "timm"
    network = timm_network("efficientnet_b0") if is_timm else torchvision_network(0)
    images = torch.randn(1, 3, 64, 32, dtype=torch.float64)
    with torch.no_grad():
        found = converted_network(network, 0, "efficientnet_b0.pth")(images)
        as_published = network(images) if is_timm else torchvision_features(network, images)
        pad_as_same(network)
        assert_equal_features(found, network(images) if is_timm else torchvision_features(network, images))
    assert all((feature - other).abs().max() > 0.1 for feature, other in zip(found, as_published))


@pytest.mark.parametrize(
    ("path", "scale"),
    [
        ("tf_efficientnet_b0_ns-c0e6a31c.pth", 3.0),
        ("efficientnet_b0_ra-3dd342df.pth", 3.0 * EPS_RATIO),
        ("hub/models--timm--tf_efficientnet_b0.aa_in1k/model.safetensors", 3.0),
        ("efficientnet_b0/like/tf_efficientnet_b0.pth", 3.0),  # the last name counts
        ("tf_efficientnet_b0/like/efficientnet_b0.pth", 3.0 * EPS_RATIO),
    ],
)
def test_path_tells_timms_networks_apart(path, scale):
    converted = convert_backbone_weights(constant_weights("efficientnet", 0), 0, path)["_blocks.1._bn2.weight"]
    torch.testing.assert_close(converted, torch.full_like(converted, scale))


@pytest.mark.parametrize(("index", "ratio"), [(0, EPS_RATIO), (4, EPS_RATIO), (5, 1.0)])
def test_scale_compensates_for_torchvisions_epsilon(index, ratio):
    weights = constant_weights("torchvision", index)
    converted = convert_backbone_weights(weights, index)
    scale = converted["_blocks.1._bn2.weight"]
    torch.testing.assert_close(scale, torch.full_like(scale, 3.0 * ratio))
    for key in ("_blocks.1._bn2.bias", "_blocks.1._bn2.running_mean", "_blocks.1._project_conv.conv.weight"):
        assert (converted[key] == 3.0).all()
    assert all((value == (0.001 if key.endswith("running_var") else 3)).all() for key, value in weights.items())


@pytest.mark.parametrize("family", FAMILIES)
def test_head_and_counters_may_be_missing(family):
    head = ("_conv_head.", "_bn1.", "_fc.", "features.8.", "conv_head.", "bn2.", "classifier.")
    weights = {
        key: value
        for key, value in on_meta_device(family, 0).items()
        if not key.startswith(head) and not key.endswith("num_batches_tracked")
    }
    converted = convert(family, weights, 0)
    assert converted["_bn0.num_batches_tracked"] == 0
    assert converted.keys() == our_shapes(0).keys()


# Weights that do not fit.


def test_empty_state_dict_is_no_efficientnet():
    with pytest.raises(ValueError, match="B0 to B7"):
        convert_backbone_weights({}, 0)


@pytest.mark.parametrize(
    "name", ["efficientnet_v2_s", "mobilenet_v2", "mobilenet_v3_large", "convnext_tiny", "resnet18"]
)
def test_other_networks_are_no_efficientnet(name):
    with torch.device("meta"):
        weights = getattr(torchvision.models, name)(weights=None).state_dict()
    with pytest.raises(ValueError, match="B0 to B7"):
        convert_backbone_weights(weights, 0)


def test_path_that_does_not_tell_timms_networks_apart_is_refused():
    weights = on_meta_device("efficientnet", 0)
    with pytest.raises(ValueError, match="tf_efficientnet_b0 or efficientnet_b0"):
        convert_backbone_weights(weights, 0, "efficientnet/model.safetensors")


@pytest.mark.parametrize("family", FAMILIES[:3])
@pytest.mark.parametrize("index", INDICES)
def test_other_index_is_recognized(family, index):
    for needed in {(index + 1) % 8, (index + 7) % 8}:
        with pytest.raises(ValueError, match=f"B{index}, B{needed}"):
            convert_backbone_weights(on_meta_device(family, index), needed)


@pytest.mark.parametrize(
    ("family", "key"),
    [
        ("EfficientNet-PyTorch", "_blocks.3._se_reduce.bias"),
        ("EfficientNet-PyTorch", "_blocks.15._bn2.bias"),  # of the last block, which tells the index
        ("torchvision", "features.3.0.block.1.0.weight"),
        ("torchvision", "features.7.0.block.3.1.bias"),
        ("tf_efficientnet", "blocks.2.0.conv_pwl.weight"),
        ("tf_efficientnet", "blocks.6.0.bn3.bias"),
    ],
)
def test_missing_and_misshapen_entries_are_named(family, key):
    weights = dict(on_meta_device(family, 0))
    shape = tuple(weights[key].shape)
    weights[key] = torch.empty(7, device="meta")
    with pytest.raises(ValueError, match=re.escape(f"{key} is shaped (7,), not {shape}")):
        convert(family, weights, 0)
    del weights[key]
    with pytest.raises(ValueError, match=f"{re.escape(key)} .*B0"):
        convert(family, weights, 0)


@pytest.mark.parametrize(
    ("family", "key"),
    [
        ("EfficientNet-PyTorch", "_blocks.16._bn1.bias"),
        ("torchvision", "features.7.1.block.0.0.weight"),
        ("tf_efficientnet", "blocks.6.1.conv_pw.weight"),
    ],
)
def test_unexpected_entry_is_named(family, key):
    weights = on_meta_device(family, 0) | {key: torch.empty(3)}
    with pytest.raises(ValueError, match=f"{re.escape(key)}.*B0"):
        convert(family, weights, 0)
