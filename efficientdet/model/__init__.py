"""The network of the EfficientDet paper, its loss and its post-processing."""

from efficientdet.model.network import EfficientDet
from efficientdet.structures import Outputs

__all__ = ["EfficientDet", "Outputs"]
