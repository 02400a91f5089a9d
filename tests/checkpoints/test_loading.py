"""Loading weights: round trips, files that do not fit, and files that hold something else."""

import pickle
import re
from pathlib import Path

import pytest
import torch
from scripts import untrained

from efficientdet.checkpoints.effdet import to_effdet
from efficientdet.checkpoints.loading import guess_compound_coefs, load_weights, read_state_dict
from efficientdet.model.network import EfficientDet
from efficientdet.training.checkpoints import load_last
from utils.errors import InputError

HEADER = "classifier.header.pointwise_conv.conv"


@pytest.fixture(scope="module")
def two_classes():
    """Return the state dict of an untrained D0 with two classes. Must not be modified."""
    return untrained(0, 2).state_dict()


@pytest.fixture
def weights_file(tmp_path, two_classes):
    path = tmp_path / "two.pth"
    torch.save(two_classes, path)
    return path


def save(path: Path, content) -> Path:
    torch.save(content, path)
    return path


def assert_unchanged(network: EfficientDet, before: dict[str, torch.Tensor]) -> None:
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())


# Files that fit.


def test_empty_file_is_refused(tmp_path):
    (tmp_path / "empty.pth").write_bytes(b"")
    with pytest.raises(InputError, match=r"empty\.pth"):
        read_state_dict(tmp_path / "empty.pth")


def test_empty_state_dict_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"none\.pth"):
        load_weights(EfficientDet(0, 2), save(tmp_path / "none.pth", {}))


def test_weights_are_loaded_unchanged(weights_file, two_classes):
    network = EfficientDet(0, 2)
    assert load_weights(network, weights_file) is False
    assert network.state_dict().keys() == two_classes.keys()
    assert_unchanged(network, two_classes)


def test_only_the_class_header_is_initialized_for_other_classes(weights_file, two_classes):
    network = EfficientDet(0, 5)
    with torch.no_grad():
        network.get_submodule(HEADER).weight.fill_(100.0)
    assert load_weights(network, weights_file, new_class_header=True) is True
    state = network.state_dict()
    for key, value in two_classes.items():
        if not key.startswith(HEADER):
            assert torch.equal(state[key], value), key
    assert state[f"{HEADER}.bias"].shape == (45,)
    # Every score starts at 0.01.
    torch.testing.assert_close(state[f"{HEADER}.bias"].sigmoid(), torch.full((45,), 0.01))
    weight = state[f"{HEADER}.weight"]
    assert weight.shape == (45, 64, 1, 1)
    assert weight.std().item() == pytest.approx(0.01, rel=0.1)


def test_new_class_header_is_not_needed_when_the_classes_agree(weights_file, two_classes):
    network = EfficientDet(0, 2)
    assert load_weights(network, weights_file, new_class_header=True) is False
    assert_unchanged(network, two_classes)


def test_other_classes_are_refused_without_a_new_class_header(weights_file):
    network = EfficientDet(0, 5)
    before = {key: value.clone() for key, value in network.state_dict().items()}
    with pytest.raises(InputError, match=r"two\.pth.*2 classes.*5"):
        load_weights(network, weights_file)
    assert_unchanged(network, before)


# Files that do not fit.


@pytest.mark.parametrize("new_class_header", [False, True])
def test_weights_of_another_coefficient_are_recognized(tmp_path, new_class_header):
    path = save(tmp_path / "one.pth", untrained(1, 2).state_dict())
    with pytest.raises(InputError, match=r"one\.pth.*D1.*-c 0"):
        load_weights(EfficientDet(0, 2), path, new_class_header)


@pytest.mark.parametrize("new_class_header", [False, True])
def test_other_number_of_anchors_is_reported(weights_file, new_class_header):
    network = EfficientDet(0, 2, scales=(1.0, 1.5))
    with pytest.raises(InputError, match=r"9 anchors.*anchors_scales.* 6"):
        load_weights(network, weights_file, new_class_header)


def test_keys_of_dataparallel_are_recognized(tmp_path, two_classes):
    path = save(tmp_path / "wrapped.pth", {f"module.{key}": value for key, value in two_classes.items()})
    with pytest.raises(InputError, match=r"wrapped\.pth.*'module\.'"):
        load_weights(EfficientDet(0, 2), path)


def test_effdet_file_is_recognized(tmp_path, two_classes):
    path = save(tmp_path / "theirs.pth", to_effdet(two_classes, 0))
    with pytest.raises(InputError, match=r"theirs\.pth.*effdet.*efficientdet\.convert_weights"):
        load_weights(EfficientDet(0, 2), path)


@pytest.mark.parametrize("new_class_header", [False, True])
def test_missing_key_is_named(tmp_path, two_classes, new_class_header):
    key = "backbone_net.model._conv_stem.conv.weight"
    path = save(tmp_path / "less.pth", {name: value for name, value in two_classes.items() if name != key})
    with pytest.raises(InputError, match=re.escape(key)):
        load_weights(EfficientDet(0, 2), path, new_class_header)


def test_missing_class_header_is_not_taken_for_other_classes(tmp_path, two_classes):
    path = save(tmp_path / "bare.pth", {name: value for name, value in two_classes.items() if HEADER not in name})
    with pytest.raises(InputError, match=re.escape(HEADER)):
        load_weights(EfficientDet(0, 2), path, new_class_header=True)


def test_unknown_key_is_named(tmp_path, two_classes):
    path = save(tmp_path / "more.pth", {**two_classes, "extra.weight": torch.zeros(1)})
    with pytest.raises(InputError, match=r"extra\.weight"):
        load_weights(EfficientDet(0, 2), path)


def test_entry_of_another_shape_is_named_with_both_shapes(tmp_path, two_classes):
    key = "backbone_net.model._conv_stem.conv.weight"
    path = save(tmp_path / "odd.pth", {**two_classes, key: torch.zeros(32, 3, 5, 5)})
    with pytest.raises(InputError, match=rf"{re.escape(key)}.*\(32, 3, 5, 5\), not \(32, 3, 3, 3\)"):
        load_weights(EfficientDet(0, 2), path)


@pytest.mark.parametrize(
    "content",
    [[1, 2], torch.zeros(3), {"epoch": 3}, {"state_dict": {"a": torch.zeros(1)}}, {0: torch.zeros(1)}, "text", None],
    ids=repr,
)
def test_file_without_a_state_dict_is_refused(tmp_path, content):
    with pytest.raises(InputError, match=r"other\.pth"):
        load_weights(EfficientDet(0, 2), save(tmp_path / "other.pth", content))


@pytest.mark.parametrize("coef", range(9))
def test_coefficient_is_guessed_from_the_shapes(coef):
    with torch.device("meta"):
        weights = EfficientDet(coef, 7).state_dict()
    assert guess_compound_coefs(weights) == ([6, 7] if coef in (6, 7) else [coef])


def test_no_coefficient_is_guessed_for_other_weights():
    assert guess_compound_coefs({}) == []
    assert guess_compound_coefs({"fc.weight": torch.zeros(2, 2)}) == []


@pytest.mark.parametrize("share", [0.01, 0.5, 0.99])
def test_truncated_file_is_refused(weights_file, share):
    data = weights_file.read_bytes()
    weights_file.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(InputError, match=r"two\.pth"):
        load_weights(EfficientDet(0, 2), weights_file)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("content", [b"not tensors\n", b"\x80", b"\x80\x04.", b"PK\x03\x04" + b"\0" * 100, bytes(1000)])
def test_garbage_is_refused(tmp_path, content):
    (tmp_path / "bad.pth").write_bytes(content)
    with pytest.raises(InputError, match=r"bad\.pth"):
        read_state_dict(tmp_path / "bad.pth")


class _MakesAFile:
    """Creates a file when unpickled without restrictions."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("write", [torch.save, lambda content, path: path.write_bytes(pickle.dumps(content))])
def test_code_in_a_file_is_never_executed(tmp_path, write):
    made = tmp_path / "made"
    path = tmp_path / "evil.pth"
    write({"weight": _MakesAFile(made)}, path)
    pickle.loads(pickle.dumps(_MakesAFile(made)))  # works without restrictions
    assert made.exists()
    made.unlink()

    with pytest.raises(InputError, match=r"evil\.pth"):
        read_state_dict(path)
    assert not made.exists()
    path.rename(tmp_path / "efficientdet-d0_last.state")
    with pytest.raises(InputError, match=r"last\.state"):
        load_last(tmp_path, 0)
    assert not made.exists()


@pytest.mark.parametrize("content", [[], {}, {"weights": "efficientdet-d0_0_1.pth"}, {"network": 3}])
def test_state_without_a_network_is_refused(tmp_path, content):
    path = save(tmp_path / "efficientdet-d0_last.state", content)
    with pytest.raises(InputError, match=r"last\.state"):
        load_weights(EfficientDet(0, 1), path)


def test_exported_file_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"d0\.onnx"):
        read_state_dict(tmp_path / "d0.onnx")
