"""ImageNet weights for the backbone: three families of files, what differs in them, and files that do not fit."""

import hashlib
import re
from functools import cache
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
import torchvision
from scripts import untrained
from torch import Tensor, nn

from efficientdet.checkpoints import loading as checkpoint
from efficientdet.checkpoints.loading import load_backbone
from efficientdet.model.network import EfficientDet, initialize
from efficientnet.model import EfficientNet
from efficientnet.pretrained import convert_backbone_weights
from utils.errors import InputError

INDICES = range(8)
LARGE_ONES_SLOW = [*range(5), *(pytest.param(index, marks=pytest.mark.slow) for index in range(5, 8))]
FAMILIES = ("EfficientNet-PyTorch", "torchvision", "timm tf_efficientnet", "timm efficientnet")
DETECTORS = {0: 0, 1: 1, 2: 2, 3: 3, 4: 4, 5: 5, 6: 6, 7: 6, 8: 7}  # coefficient: backbone
RELEASE = "https://github.com/lukemelas/EfficientNet-PyTorch/releases/download/1.0"
FILES = (
    "efficientnet-b0-355c32eb.pth",
    "efficientnet-b1-f1951068.pth",
    "efficientnet-b2-8bb594d6.pth",
    "efficientnet-b3-5fb5a3c3.pth",
    "efficientnet-b4-6ed6700e.pth",
    "efficientnet-b5-b6417697.pth",
    "efficientnet-b6-c76e70fd.pth",
    "efficientnet-b7-dcc49843.pth",
)
BATCH_NORM = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")


def as_efficientnet_pytorch(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A file of EfficientNet-PyTorch with the numbers of our state dict, and a head."""
    head = {f"_bn1.{entry}": torch.ones(1280) for entry in BATCH_NORM}
    head |= {"_conv_head.weight": torch.ones(1280, 320, 1, 1), "_fc.weight": torch.ones(1000, 1280)}
    return {re.sub(r"\.conv\.(weight|bias)$", r".\1", key): value for key, value in state.items()} | head


@cache
def on_meta_device(family: str, index: int) -> dict[str, Tensor]:
    """A file of B`index` without numbers. Not to be changed."""
    with torch.device("meta"):
        if family == "torchvision":
            return getattr(torchvision.models, f"efficientnet_b{index}")(weights=None).state_dict()
        if family.startswith("timm"):
            return pytest.importorskip("timm").create_model(f"{family.removeprefix('timm ')}_b{index}").state_dict()
        return as_efficientnet_pytorch(EfficientNet(index).state_dict())


def convert(family: str, weights: dict[str, Tensor], index: int) -> dict[str, Tensor]:
    """Of a file that is named as the family does it."""
    return convert_backbone_weights(weights, index, f"weights/{family.removeprefix('timm ')}_b{index}.pth")


def randomize(network: nn.Module) -> nn.Module:
    """Random entries in every batch norm, with variances where the epsilons 1e-5 and 1e-3 make a difference."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.05, 0.15)
            nn.init.normal_(module.bias)
            nn.init.normal_(module.running_mean)
            nn.init.uniform_(module.running_var, 1e-4, 5e-3)
            nn.init.constant_(module.num_batches_tracked, 7)
    return network


@cache
def numbers(index: int) -> dict[str, Tensor]:
    """Our state dict of B`index`, with random numbers in every entry. Not to be changed."""
    torch.manual_seed(index)
    return randomize(EfficientNet(index)).state_dict()


def torchvision_network(index: int) -> nn.Module:
    torch.manual_seed(index)
    network = getattr(torchvision.models, f"efficientnet_b{index}")(weights=None)
    return randomize(network).double().eval()


def torchvision_features(network: nn.Module, images: Tensor) -> list[Tensor]:
    """P3, P4 and P5: what stages 3, 5 and 7 give. Stage 0 is the stem."""
    features = []
    for stage, layers in enumerate(network.features[:8]):
        images = layers(images)
        if stage in (3, 5, 7):
            features.append(images)
    return features


def pad_as_same(network: nn.Module) -> nn.Module:
    """Give the stride-2 convolutions SAME padding for even sides: 3x3 kernels (0, 1) pixels, 5x5 kernels (1, 2)."""
    for conv in network.modules():
        if isinstance(conv, nn.Conv2d) and conv.stride == (2, 2):
            before, after = {3: (0, 1), 5: (1, 2)}[conv.kernel_size[0]]
            conv.padding = (0, 0)
            padding = (before, after, before, after)
            conv.register_forward_pre_hook(lambda _, inputs, padding=padding: F.pad(inputs[0], padding))
    return network


def timm_network(name: str) -> nn.Module:
    """It gives P3, P4 and P5."""
    torch.manual_seed(0)
    network = pytest.importorskip("timm").create_model(name, features_only=True, out_indices=(2, 3, 4))
    initialize(network)
    randomize(network)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.weight.data /= 3  # else the activations would grow from block to block
    return network.double().eval()


def converted_network(network: nn.Module, index: int, path: str = "") -> EfficientNet:
    backbone = EfficientNet(index).double()
    backbone.load_state_dict(convert_backbone_weights(network.state_dict(), index, path), strict=True)
    return backbone.eval()


def assert_same(found: list[Tensor], expected: list[Tensor]) -> None:
    assert min(feature.std() for feature in expected) > 0.1
    torch.testing.assert_close(found, list(expected), rtol=1e-10, atol=1e-10)


# What fits.


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("index", INDICES)
def test_every_entry_comes_from_its_counterpart(family, index):
    weights = on_meta_device(family, index)
    with torch.device("meta"):
        ours = EfficientNet(index).state_dict()
    converted = convert(family, weights, index)
    assert converted.keys() == ours.keys()
    # All networks define their layers in the order in which an image passes them; the head comes last.
    has_other_eps = family == "timm efficientnet" or (family == "torchvision" and index < 5)
    for (key, value), source in zip(ours.items(), weights):
        assert converted[key].shape == value.shape
        rescaled = has_other_eps and re.search(r"_bn\d\.weight$", key)
        assert (converted[key] is weights[source]) != bool(rescaled), (key, source)


def test_efficientnet_pytorch_is_taken_as_it_is():
    weights = as_efficientnet_pytorch(numbers(0))
    backbone = EfficientNet(0)
    backbone.load_state_dict(convert_backbone_weights(weights, 0), strict=True)
    assert all(torch.equal(value, numbers(0)[key]) for key, value in backbone.state_dict().items())


@pytest.mark.parametrize("index", LARGE_ONES_SLOW)
def test_features_are_those_of_efficientnet_pytorch(index):
    package = pytest.importorskip("efficientnet_pytorch")
    torch.manual_seed(index)
    network = package.EfficientNet.from_name(f"efficientnet-b{index}", image_size=None)  # padding by the input's size
    network = randomize(network).double().eval()
    images = torch.randn(1, 3, 64, 96, dtype=torch.float64)
    with torch.no_grad():
        expected = network.extract_endpoints(images)
        assert_same(converted_network(network, index)(images), [expected[f"reduction_{level}"] for level in (3, 4, 5)])


@pytest.mark.parametrize("index", LARGE_ONES_SLOW)
def test_features_are_those_of_timms_tf_efficientnet(index):
    network = timm_network(f"tf_efficientnet_b{index}")
    images = torch.randn(1, 3, 64, 32, dtype=torch.float64)
    with torch.no_grad():
        assert_same(converted_network(network, index, f"tf_efficientnet_b{index}.pth")(images), network(images))


@pytest.mark.parametrize("index", LARGE_ONES_SLOW)
@pytest.mark.parametrize("family", ["torchvision", "timm"])
def test_features_are_those_of_others_where_both_pad_alike(family, index):
    images = torch.randn(1, 3, 65, 33, dtype=torch.float64)  # odd all the way down: 33, 17, 9, 5, 3
    with torch.no_grad():
        if family == "timm":
            network = timm_network(f"efficientnet_b{index}")
            expected = network(images)
        else:
            network = torchvision_network(index)
            expected = torchvision_features(network, images)
        assert_same(converted_network(network, index, f"efficientnet_b{index}.pth")(images), expected)


@pytest.mark.parametrize(("family", "index"), [("torchvision", 0), ("torchvision", 5), ("timm", 0)])
def test_padding_alone_sets_them_apart_on_even_sides(family, index):
    is_timm = family == "timm"
    network = timm_network(f"efficientnet_b{index}") if is_timm else torchvision_network(index)
    images = torch.randn(1, 3, 64, 32, dtype=torch.float64)
    with torch.no_grad():
        found = converted_network(network, index, f"efficientnet_b{index}.pth")(images)
        as_published = network(images) if is_timm else torchvision_features(network, images)
        pad_as_same(network)
        assert_same(found, network(images) if is_timm else torchvision_features(network, images))
    assert all((feature - other).abs().max() > 0.1 for feature, other in zip(found, as_published))


@pytest.mark.parametrize(
    ("path", "scale"),
    [
        ("tf_efficientnet_b0_ns-c0e6a31c.pth", 3.0),
        ("efficientnet_b0_ra-3dd342df.pth", 3.0 * 1.4071950894605838),
        ("hub/models--timm--tf_efficientnet_b0.aa_in1k/model.safetensors", 3.0),
        ("efficientnet_b0/like/tf_efficientnet_b0.pth", 3.0),  # the last name counts
        ("tf_efficientnet_b0/like/efficientnet_b0.pth", 3.0 * 1.4071950894605838),
    ],
)
def test_path_tells_timms_networks_apart(path, scale):
    weights = {
        key: torch.full_like(value, 0.001 if key.endswith("running_var") else 3.0, device="cpu")
        for key, value in on_meta_device("timm efficientnet", 0).items()
    }
    converted = convert_backbone_weights(weights, 0, path)["_blocks.1._bn2.weight"]
    torch.testing.assert_close(converted, torch.full_like(converted, scale))


def test_path_that_does_not_tell_timms_networks_apart_is_refused():
    weights = on_meta_device("timm efficientnet", 0)
    with pytest.raises(ValueError, match="tf_efficientnet_b0 or efficientnet_b0, .* rename the file or its folder"):
        convert_backbone_weights(weights, 0, "efficientnet/model.safetensors")


@pytest.mark.parametrize(("index", "ratio"), [(0, 1.4071950894605838), (4, 1.4071950894605838), (5, 1.0), (7, 1.0)])
def test_scale_makes_up_for_epsilon(index, ratio):
    # sqrt((0.001 + 1e-3) / (0.001 + 1e-5)); torchvision's B5 to B7 have our epsilon
    weights = {
        key: torch.full_like(value, 0.001 if key.endswith("running_var") else 3.0, device="cpu")
        for key, value in on_meta_device("torchvision", index).items()
    }
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
        for key, value in on_meta_device(family, 1).items()
        if not key.startswith(head) and not key.endswith("num_batches_tracked")
    }
    converted = convert(family, weights, 1)
    assert converted["_bn0.num_batches_tracked"] == 0
    with torch.device("meta"):
        assert converted.keys() == EfficientNet(1).state_dict().keys()


# What does not.


def test_empty_state_dict_is_no_efficientnet():
    with pytest.raises(ValueError, match="no EfficientNet B0 to B7"):
        convert_backbone_weights({}, 0)


@pytest.mark.parametrize(
    "name", ["efficientnet_v2_s", "mobilenet_v2", "mobilenet_v3_large", "convnext_tiny", "resnet18"]
)
def test_other_networks_are_no_efficientnet(name):
    with torch.device("meta"):
        weights = getattr(torchvision.models, name)(weights=None).state_dict()
    with pytest.raises(ValueError, match="no EfficientNet B0 to B7"):
        convert_backbone_weights(weights, 0)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("index", INDICES)
def test_other_coefficient_is_recognised(family, index):
    for needed in {(index + 1) % 8, (index + 7) % 8}:
        with pytest.raises(ValueError, match=f"looks like EfficientNet B{index}, B{needed} is needed$"):
            convert_backbone_weights(on_meta_device(family, index), needed)


@pytest.mark.parametrize(
    ("family", "key"),
    [
        ("EfficientNet-PyTorch", "_blocks.3._se_reduce.bias"),
        ("EfficientNet-PyTorch", "_blocks.15._bn2.bias"),  # of the last block, by which coefficients are told
        ("torchvision", "features.3.0.block.1.0.weight"),
        ("torchvision", "features.7.0.block.3.1.bias"),
        ("timm tf_efficientnet", "blocks.2.0.conv_pwl.weight"),
        ("timm tf_efficientnet", "blocks.6.0.bn3.bias"),
    ],
)
def test_missing_and_misshapen_entries_are_named(family, key):
    weights = dict(on_meta_device(family, 0))
    shape = tuple(weights[key].shape)
    weights[key] = torch.empty(7, device="meta")
    with pytest.raises(ValueError, match=re.escape(f"{key} is shaped (7,), not {shape}")):
        convert(family, weights, 0)
    del weights[key]
    with pytest.raises(ValueError, match=re.escape(f"lacks {key} of EfficientNet B0")):
        convert(family, weights, 0)


@pytest.mark.parametrize(
    ("family", "key"),
    [
        ("EfficientNet-PyTorch", "_blocks.16._bn1.bias"),
        ("torchvision", "features.7.1.block.0.0.weight"),
        ("timm tf_efficientnet", "blocks.6.1.conv_pw.weight"),
    ],
)
def test_entry_too_many_is_named(family, key):
    weights = on_meta_device(family, 0) | {key: torch.empty(3)}
    with pytest.raises(ValueError, match=re.escape(f"it has {key}, which EfficientNet B0 has not")):
        convert(family, weights, 0)


# From files.


@pytest.fixture
def backbone_file(tmp_path) -> Path:
    """A file of EfficientNet-PyTorch with the numbers of `numbers(0)`."""
    path = tmp_path / "b0.pth"
    torch.save(as_efficientnet_pytorch(numbers(0)), path)
    return path


def assert_backbone_alone_is_loaded(network: EfficientDet, before: dict[str, Tensor]) -> None:
    """Its backbone has the numbers of `numbers(0)`, and the rest those of `before`."""
    for key, value in network.state_dict().items():
        expected = numbers(0).get(key.removeprefix("backbone_net.model."), before[key])
        assert torch.equal(value, expected), key


def copied(network: nn.Module) -> dict[str, Tensor]:
    return {key: value.clone() for key, value in network.state_dict().items()}


def test_file_is_loaded_into_the_backbone_alone(backbone_file):
    network = EfficientDet(0, 2)
    before = copied(network)
    load_backbone(network, str(backbone_file))
    assert_backbone_alone_is_loaded(network, before)


def test_file_of_torchvision_is_loaded(tmp_path):
    torchvision_b0 = torchvision_network(0).float()
    torch.save(torchvision_b0.state_dict(), tmp_path / "b0.pth")
    network = EfficientDet(0, 2).eval()
    load_backbone(network, str(tmp_path / "b0.pth"))
    images = torch.randn(1, 3, 65, 65)
    with torch.no_grad():
        features = network.backbone_net["model"](images)
        torch.testing.assert_close(features, torchvision_features(torchvision_b0, images), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", ["tf_efficientnet_b0.pth", "tf_efficientnet_b0/model.safetensors"])
def test_files_of_timm_are_loaded(tmp_path, name):
    timm_b0 = timm_network("tf_efficientnet_b0").float()
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    if path.suffix == ".safetensors":
        pytest.importorskip("safetensors.torch").save_file(timm_b0.state_dict(), path)
    else:
        torch.save(timm_b0.state_dict(), path)
    network = EfficientDet(0, 2)
    load_backbone(network, str(path))
    for ours, theirs in zip(network.backbone_net["model"].state_dict().values(), timm_b0.state_dict().values()):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (dict, r"file\.pth does not fit the backbone of D0: it is no EfficientNet"),
        (lambda: numbers(0), r"file\.pth does not fit the backbone of D0: it is no EfficientNet"),
        (
            lambda: as_efficientnet_pytorch(numbers(1)),
            r"file\.pth does not fit .* D0: it looks like EfficientNet B1, B0 is needed",
        ),
        (
            lambda: {"backbone_net.model._bn0.bias": torch.ones(32)},
            r"file\.pth holds a whole EfficientDet.* pass it with -w",
        ),
        (
            lambda: {"box_net.predict.conv_pw.bias": torch.ones(36), "backbone.conv_stem.weight": torch.ones(1)},
            r"file\.pth holds a whole detector of effdet's: .*convert_weights, and pass it with -w",
        ),
        (lambda: {"state_dict": {}}, r"file\.pth does not hold a plain state dict"),
    ],
    ids=["empty", "bare keys of ours", "other coefficient", "detector", "effdet's detector", "nested"],
)
def test_file_that_does_not_fit_is_told_and_leaves_the_network_as_it_was(tmp_path, make, message):
    torch.save(make(), tmp_path / "file.pth")
    network = EfficientDet(0, 2)
    before = copied(network)
    with pytest.raises(InputError, match=message):
        load_backbone(network, str(tmp_path / "file.pth"))
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())


def test_weights_of_a_detector_are_recognised(tmp_path):
    torch.save(untrained(0, 2).state_dict(), tmp_path / "efficientdet-d0_1_20.pth")
    with pytest.raises(InputError, match=r"d0_1_20\.pth holds a whole EfficientDet.* pass it with -w$"):
        load_backbone(EfficientDet(0, 2), str(tmp_path / "efficientdet-d0_1_20.pth"))


def test_file_that_does_not_exist_is_told(backbone_file):
    with pytest.raises(InputError, match=r"no weights file .*b7\.pth; that folder has b0\.pth$"):
        load_backbone(EfficientDet(0, 2), str(backbone_file.with_name("b7.pth")))


# "imagenet".


@pytest.mark.parametrize(("compound_coef", "index"), DETECTORS.items())
def test_published_file_of_each_coefficient(tmp_path, monkeypatch, compound_coef, index):
    def no_network(url, path):
        assert path == Path("weights", FILES[index])
        raise InputError(f"cannot download {url}")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(checkpoint, "download", no_network)
    with torch.device("meta"):
        network = EfficientDet(compound_coef, 1)
    with pytest.raises(InputError, match=f"^cannot download {re.escape(f'{RELEASE}/{FILES[index]}')}$"):
        load_backbone(network, "imagenet")


def test_imagenet_is_downloaded_once(tmp_path, monkeypatch, backbone_file):
    content = backbone_file.read_bytes()
    begin = hashlib.sha256(content).hexdigest()[:8]
    fetched = []

    def fetch(url, path):
        fetched.append(url)
        path.parent.mkdir()
        path.write_bytes(content)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(checkpoint, "_BACKBONE_SHA256", (begin,))
    monkeypatch.setattr(checkpoint, "download", fetch)
    for _ in range(2):
        network = EfficientDet(0, 2)
        before = copied(network)
        load_backbone(network, "imagenet")
        assert_backbone_alone_is_loaded(network, before)
    assert fetched == [f"{RELEASE}/efficientnet-b0-{begin}.pth"]
    assert Path("weights", f"efficientnet-b0-{begin}.pth").read_bytes() == content


def test_imagenet_with_other_bytes_is_refused_but_can_be_passed_by_name(tmp_path, monkeypatch, backbone_file):
    path = Path("weights", FILES[0])
    monkeypatch.chdir(tmp_path)
    path.parent.mkdir()
    path.write_bytes(backbone_file.read_bytes())
    begin = hashlib.sha256(path.read_bytes()).hexdigest()[:8]
    network = EfficientDet(0, 2)
    before = copied(network)
    with pytest.raises(InputError, match=f"{path} is not the published file: .* {begin}, not 355c32eb; remove it"):
        load_backbone(network, "imagenet")
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())
    load_backbone(network, str(path))
    assert_backbone_alone_is_loaded(network, before)
