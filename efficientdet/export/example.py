"""Run an exported detector without PyTorch and without this project. Copy this file and adapt it.

python -m efficientdet.export -p shapes --nms -o detector.onnx     once, where the project is installed
python example.py detector.onnx photo.jpg found.jpg                anywhere: pip install numpy opencv-python onnxruntime
"""

import json
import sys

import cv2
import numpy as np
import onnxruntime


class OnnxDetector:
    """An ONNX file written by efficientdet.export --nms."""

    def __init__(self, path: str):
        self.session = onnxruntime.InferenceSession(path)
        entries = self.session.get_modelmeta().custom_metadata_map
        self.metadata = {name: json.loads(text) for name, text in entries.items()}
        if not self.metadata.get("suppression") or self.metadata.get("normalization") != "inside":
            sys.exit(f"{path}: export it with --nms and without --normalization outside")
        self.class_names = self.metadata["class_names"]

    def __call__(self, image: np.ndarray, score_threshold: float = 0.2) -> list[tuple[str, float, np.ndarray]]:
        """Detect objects in an (H, W, 3) uint8 RGB image.

        Returns class name, score and box (x1, y1, x2, y2) in pixels of the image for each object, best first.
        """
        # Letterbox: resize the image to fit into the top left of the input, and pad the rest.
        height, width = self.metadata["image_size"]
        scale = min(height / image.shape[0], width / image.shape[1])
        resized_height, resized_width = (max(1, int(side * scale + 1e-6)) for side in image.shape[:2])
        batch = np.full((1, height, width, 3), self.metadata["padding"], np.uint8)
        batch[0, :resized_height, :resized_width] = cv2.resize(image, (resized_width, resized_height))

        boxes, scores, classes, _ = self.session.run(None, {"images": batch})
        found = scores[0] > score_threshold
        ratios = np.array([resized_width / image.shape[1], resized_height / image.shape[0]] * 2)
        names = [self.class_names[index] for index in classes[0, found]]
        return list(zip(names, scores[0, found].tolist(), boxes[0, found] / ratios))


def draw_box(image: np.ndarray, text: str, x1: int, y1: int, x2: int, y2: int) -> None:
    """Draw a box with a label into an image."""
    cv2.rectangle(image, (x1, y1), (x2, y2), (0, 200, 0), 2)
    (width, height), _ = cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, 0.4, 1)
    left, bottom = max(0, min(x1, image.shape[1] - width)), max(y1, height + 4)
    cv2.rectangle(image, (left, bottom - height - 4), (left + width, bottom), (255, 255, 255), cv2.FILLED)
    cv2.putText(image, text, (left, bottom - 2), cv2.FONT_HERSHEY_SIMPLEX, 0.4, (0, 0, 0), 1, cv2.LINE_AA)


def main(model_path: str, image_path: str, output_path: str) -> None:
    image = cv2.imread(image_path)
    if image is None:
        sys.exit(f"cannot read {image_path} as an image")
    objects = OnnxDetector(model_path)(cv2.cvtColor(image, cv2.COLOR_BGR2RGB))
    labels = [(f"{name} {score:.2f}", box.round().astype(int).tolist()) for name, score, box in objects]
    for text, box in labels:
        print(text, *box)
    for text, box in reversed(labels):  # the best on top
        draw_box(image, text, *box)
    if not cv2.haveImageWriter(output_path) or not cv2.imwrite(output_path, image):
        sys.exit(f"cannot write {output_path}")


if __name__ == "__main__":
    if len(sys.argv) != 4:
        sys.exit(__doc__)
    main(*sys.argv[1:])
