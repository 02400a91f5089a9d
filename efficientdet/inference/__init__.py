"""From images, videos, streams and data sets to detections in files."""
