"""The network of the EfficientDet paper, its loss and its post-processing."""
