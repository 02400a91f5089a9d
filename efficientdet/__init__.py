"""EfficientDet D0 to D7X in PyTorch, with the published weights' keys and arithmetic."""

from efficientdet.detector import Detector, load_detector
from efficientdet.model import EfficientDet, Outputs
from efficientdet.postprocess import Detections

__all__ = ["Detections", "Detector", "EfficientDet", "Outputs", "load_detector"]
