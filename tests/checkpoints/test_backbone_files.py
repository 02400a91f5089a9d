"""ImageNet weights from files and from their publisher, loaded into the backbone of a detector."""

import hashlib
import io
import re
import urllib.error
import urllib.request
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from backbones import as_efficientnet_pytorch, random_state, timm_network, torchvision_features, torchvision_network
from scripts import untrained
from torch import Tensor

from efficientdet.checkpoints.loading import load_backbone
from efficientdet.model.network import EfficientDet
from utils.errors import InputError

DETECTORS = {0: 0, 1: 1, 2: 2, 3: 3, 4: 4, 5: 5, 6: 6, 7: 6, 8: 7}  # coefficient -> backbone
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


@pytest.fixture
def backbone_file(tmp_path) -> Path:
    """A file of EfficientNet-PyTorch with the numbers of `random_state(0)`."""
    path = tmp_path / "b0.pth"
    torch.save(as_efficientnet_pytorch(random_state(0)), path)
    return path


def cloned_state(network: EfficientDet) -> dict[str, Tensor]:
    return {key: value.clone() for key, value in network.state_dict().items()}


def assert_only_the_backbone_is_loaded(network: EfficientDet, before: dict[str, Tensor]) -> None:
    """The backbone has the numbers of `random_state(0)`, the rest those of `before`."""
    for key, value in network.state_dict().items():
        expected = random_state(0).get(key.removeprefix("backbone_net.model."), before[key])
        assert torch.equal(value, expected), key


def assert_unchanged(network: EfficientDet, before: dict[str, Tensor]) -> None:
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())


# Files of the user.


def test_file_is_loaded_into_the_backbone_only(backbone_file):
    network = EfficientDet(0, 2)
    before = cloned_state(network)
    load_backbone(network, str(backbone_file))
    assert_only_the_backbone_is_loaded(network, before)


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
    ("make", "named"),
    [
        (dict, "D0"),
        (lambda: random_state(0), "D0"),
        (lambda: as_efficientnet_pytorch(random_state(1)), "D0.* B1, B0"),
        (lambda: {"backbone_net.model._bn0.bias": torch.ones(32)}, "-w"),
        (
            lambda: {"box_net.predict.conv_pw.bias": torch.ones(36), "backbone.conv_stem.weight": torch.ones(1)},
            "effdet.*convert_weights.* -w",
        ),
        (lambda: {"state_dict": {}}, "state dict"),
    ],
    ids=["empty", "our keys without prefix", "other index", "our detector", "effdet's detector", "nested"],
)
def test_file_that_does_not_fit_is_refused_and_the_network_is_unchanged(tmp_path, make, named):
    torch.save(make(), tmp_path / "file.pth")
    network = EfficientDet(0, 2)
    before = cloned_state(network)
    with pytest.raises(InputError, match=rf"file\.pth.*{named}"):
        load_backbone(network, str(tmp_path / "file.pth"))
    assert_unchanged(network, before)


def test_weights_of_a_whole_detector_are_recognized(tmp_path):
    torch.save(untrained(0, 2).state_dict(), tmp_path / "efficientdet-d0_1_20.pth")
    with pytest.raises(InputError, match=r"d0_1_20\.pth .*-w$"):
        load_backbone(EfficientDet(0, 2), str(tmp_path / "efficientdet-d0_1_20.pth"))


def test_missing_file_is_named_with_its_neighbors(backbone_file):
    with pytest.raises(InputError, match=r"b7\.pth.* b0\.pth$"):
        load_backbone(EfficientDet(0, 2), str(backbone_file.with_name("b7.pth")))


# "imagenet".


@pytest.mark.parametrize(("compound_coef", "index"), DETECTORS.items())
def test_each_coefficient_asks_for_its_published_file(tmp_path, monkeypatch, compound_coef, index):
    def refuse(request, timeout):
        raise urllib.error.URLError("no network")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(urllib.request, "urlopen", refuse)
    with torch.device("meta"):
        network = EfficientDet(compound_coef, 1)
    url, path = f"{RELEASE}/{FILES[index]}", Path("weights", FILES[index])
    with pytest.raises(InputError, match=f"{re.escape(url)} .*{re.escape(str(path))}"):
        load_backbone(network, "imagenet")


def test_imagenet_is_downloaded_once(tmp_path, monkeypatch, backbone_file):
    content = backbone_file.read_bytes()
    urls = []

    def respond(request, timeout):
        urls.append(request.full_url)
        response = io.BytesIO(content)
        response.status, response.headers = 200, {"Content-Length": str(len(content))}
        return response

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(urllib.request, "urlopen", respond)
    # The content is not the published one, so let it have the published hash.
    monkeypatch.setattr(hashlib, "sha256", lambda data: SimpleNamespace(hexdigest=lambda: "355c32eb" + 56 * "0"))
    for _ in range(2):
        network = EfficientDet(0, 2)
        before = cloned_state(network)
        load_backbone(network, "imagenet")
        assert_only_the_backbone_is_loaded(network, before)
    assert urls == [f"{RELEASE}/{FILES[0]}"]
    assert Path("weights", FILES[0]).read_bytes() == content


def test_imagenet_with_other_bytes_is_refused_but_can_be_passed_by_name(tmp_path, monkeypatch, backbone_file):
    path = Path("weights", FILES[0])
    monkeypatch.chdir(tmp_path)
    path.parent.mkdir()
    path.write_bytes(backbone_file.read_bytes())
    actual_hash = hashlib.sha256(path.read_bytes()).hexdigest()[:8]
    network = EfficientDet(0, 2)
    before = cloned_state(network)
    with pytest.raises(InputError, match=f"{path} .*{actual_hash}.*355c32eb"):
        load_backbone(network, "imagenet")
    assert_unchanged(network, before)
    load_backbone(network, str(path))
    assert_only_the_backbone_is_loaded(network, before)
