"""The public API: names and signatures that other programs rely on."""

import dataclasses
import inspect

import efficientdet
from efficientdet import Detections, Detector, EfficientDet, InputError, Outputs, Project

SIGNATURES = {
    "load_detector": "compound_coef=0, weights=None, project=None, device=None, image_size=None, dtype=torch.float32, "
    "mode='fused'",
    "load_project": "name_or_path",
    "load_weights": "network, path, new_class_header=False",
}
DETECTOR_CALL = (
    "images, score_threshold=0.2, iou_threshold=0.2, batch_size=1, max_detections=None, classes=None, flip=False, "
    "rect=False, tile=None, soft_nms=False"
)


def signature(function) -> str:
    """The parameters and defaults of a function, without `self` and annotations."""
    parameters = [p.replace(annotation=p.empty) for p in inspect.signature(function).parameters.values()]
    return ", ".join(str(parameter) for parameter in parameters if parameter.name != "self")


def test_names():
    assert efficientdet.__all__ == [
        "Detections", "Detector", "EfficientDet", "InputError", "Outputs", "Project",
        "load_detector", "load_project", "load_weights",
    ]  # fmt: skip
    assert all(hasattr(efficientdet, name) for name in efficientdet.__all__)


def test_signatures_of_functions():
    assert {name: signature(getattr(efficientdet, name)) for name in SIGNATURES} == SIGNATURES


def test_signatures_of_classes():
    assert signature(Detector.__call__) == DETECTOR_CALL
    network = list(inspect.signature(EfficientDet).parameters.values())
    assert [parameter.name for parameter in network] == ["compound_coef", "num_classes", "ratios", "scales"]
    assert [parameter.default for parameter in network[:2]] == [0, 90]
    assert issubclass(InputError, ValueError)


def test_fields_of_results():
    assert [field.name for field in dataclasses.fields(Detections)] == ["boxes", "scores", "class_ids"]
    assert Outputs._fields == ("class_logits", "box_deltas", "anchors")
    assert [field.name for field in dataclasses.fields(Project)] == [
        "path", "name", "train_set", "val_set", "num_gpus", "mean", "std", "anchor_scales", "anchor_ratios",
        "class_names", "image_size",
    ]  # fmt: skip
