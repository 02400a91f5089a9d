"""`load_detector`: sizes, projects, weights, and what it refuses."""

import numpy as np
import pytest
import torch
from scripts import untrained, write_shapes_project, write_weights

from efficientdet import load_detector
from efficientdet.checkpoints.find import last_path
from efficientdet.project import load_project
from efficientdet.training.checkpoints import Checkpoints
from utils.errors import InputError


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    return load_project(write_shapes_project(tmp_path_factory.mktemp("drawn")).yml)


@pytest.mark.parametrize(("image_size", "canvas"), [(100, (128, 128)), (200, (256, 256)), ((100, 300), (128, 384))])
def test_image_size_is_rounded_up(project, image_size, canvas):
    assert load_detector(0, project=project, device="cpu", image_size=image_size).canvas == canvas


@pytest.mark.parametrize("image_size", [0, -128, (0, 128), (128, -1)])
def test_image_size_below_one_pixel_is_an_error(project, image_size):
    with pytest.raises(ValueError, match="pixel"):
        load_detector(0, project=project, device="cpu", image_size=image_size)


@pytest.mark.parametrize("compound_coef", [-1, 9, 1.5])
def test_unknown_coefficient_is_an_error(project, compound_coef):
    with pytest.raises(ValueError, match="compound_coef"):
        load_detector(compound_coef, project=project, device="cpu")


def test_unknown_project_is_an_error(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=r"projects/nope\.yml"):
        load_detector(project="nope")


def test_defaults_are_coco_at_the_coefficients_own_size(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    detector = load_detector(device="cpu")
    assert detector.canvas == (512, 512)
    assert detector.project.name == "coco" and detector.project.class_names[0] == "person"
    assert detector.device == torch.device("cpu") and detector.runner.input_dtype == torch.float32


def test_project_by_file_name(shapes_project):
    detector = load_detector(project=str(shapes_project.yml), device="cpu", image_size=128)
    assert detector.project.class_names == ("square", "disc")


def test_weights_are_loaded(project, tmp_path):
    weights = write_weights(tmp_path / "some.pth", 0, 2)
    image = np.random.default_rng(0).integers(0, 256, (60, 80, 3), np.uint8)
    some, other = (load_detector(0, weights, project, "cpu", 128)([image], 0.01)[0] for _ in range(2))
    assert len(some) > 0
    assert torch.equal(some.boxes, other.boxes) and torch.equal(some.scores, other.scores)


def test_weights_of_a_training_state_are_loaded(project, tmp_path):
    network = untrained(0, 2)
    checkpoints = Checkpoints(tmp_path, 0)
    weights = checkpoints.save(network, {"step": 1}, 0, 1)
    some, other = (load_detector(0, path, project, "cpu", 128) for path in (weights, last_path(tmp_path, 0)))
    state = some.runner.network.state_dict()
    assert all(torch.equal(value, state[key]) for key, value in other.runner.network.state_dict().items())


def test_weights_of_other_classes_are_an_error(tmp_path, project):
    with pytest.raises(InputError, match=r"some\.pth.*3 classes"):
        load_detector(0, write_weights(tmp_path / "some.pth", 0, 3), project, "cpu", 128)
