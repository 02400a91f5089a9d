"""From annotation files and images to batches, and from detections to COCO results."""
