"""Convert Pascal VOC, YOLO and CSV labels to a project."""
