"""Detect objects in pictures: print them, draw them, and measure the speed.

python efficientdet_test.py                                 six drawn pictures, by weights that come with the project
python efficientdet_test.py photo.jpg                       the published D0, downloaded on first use
python efficientdet_test.py holiday/ -c 3 --threshold 0.4   every picture of a folder, D3
python efficientdet_test.py photo.jpg -p my_project -c 2 -w best
"""

import argparse
import sys
import time
from pathlib import Path

import numpy as np

from efficientdet import Detections, Detector, load_detector
from efficientdet.checkpoint import chosen_weights
from efficientdet.config import model_config
from efficientdet.detector import DEMO_IOU_THRESHOLD, DEMO_SCORE_THRESHOLD
from efficientdet.project import load_project
from utils.cli import boolean, chosen_image_size, fraction, non_negative_int, positive_int
from utils.device import chosen_device
from utils.errors import InputError, exit_on_input_error
from utils.files import make_writable_folder
from utils.images import PICTURE_SUFFIXES, list_pictures, read_image, write_image
from utils.visualize import draw_boxes

EXAMPLES = Path(__file__).resolve().parent / "projects" / "shapes"  # pictures that come with the project


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("images", nargs="*", metavar="IMAGE_OR_FOLDER", help="pictures, or folders of them (default: projects/shapes/)")
    add("-p", "--project", help="a name under projects/, or a YAML file (default: coco; shapes without pictures)")
    add("-c", "--compound_coef", type=int, default=0, choices=range(9), help="D0 to D7, 8 is D7X (default: 0)")
    add("-w", "--weights", metavar="FILE|best|last", help="weights file (default: the one in weights/)")
    add("--threshold", type=fraction, default=DEMO_SCORE_THRESHOLD, help="least score of an object (%(default)s)")
    add(
        "--iou_threshold",
        type=fraction,
        default=DEMO_IOU_THRESHOLD,
        help="IoU above which the weaker of two boxes of a class goes (default: %(default)s)",
    )
    add("--output", type=Path, default=Path("test"), help="folder of the annotated pictures (default: test/)")
    add(
        "--saved_path",
        type=Path,
        default=Path("logs"),
        help="where -w best and last look (default: logs/)",
    )
    add("--image_size", type=positive_int, help="side of the input in pixels (default: the project's)")
    add("--cuda", type=boolean, metavar="True|False", help="run on a GPU (default: if there is one)")
    add("--device", type=non_negative_int, default=0, help="which GPU (default: 0)")
    add("--speed_runs", type=non_negative_int, default=10, help="runs of the speed test, 0 for none (default: 10)")
    return parser.parse_args()


def main(args: argparse.Namespace) -> None:
    project = load_project(args.project or ("coco" if args.images else "shapes"))
    config = model_config(args.compound_coef)
    image_size = chosen_image_size(args.image_size or project.image_size, config.input_size, config.size_divisor)
    pictures = list_pictures(args.images or [str(EXAMPLES)])
    outputs = output_paths(pictures, args.output)
    make_writable_folder(args.output)
    device = chosen_device(args.cuda, args.device)
    weights = chosen_weights(args.weights, project.name, args.compound_coef, args.saved_path)
    detector = load_detector(args.compound_coef, weights, project, device, image_size)

    unusable = 0
    image = None
    for picture, output in zip(pictures, outputs):
        try:
            image = read_image(picture)
        except InputError as error:
            print(f"error: {error}", file=sys.stderr)
            unusable += 1
            continue
        (found,) = detector([image], args.threshold, args.iou_threshold)
        write_image(output, annotate(image, found, project.class_names))
        print(f"{picture} ({image.shape[1]} x {image.shape[0]}): {objects(len(found))} -> {output}")
        print_table(found, project.class_names)

    if image is not None and args.speed_runs:
        seconds = time_runs(detector, image, args)
        print(
            f"speed of D{args.compound_coef} at {image_size} x {image_size} on {device}: {seconds:.4f} s a picture, "
            f"{1 / seconds:.2f} FPS (batch 1, network and post-processing, mean of {args.speed_runs} runs)"
        )
    if unusable:
        raise InputError(f"{unusable} of {len(pictures)} pictures could not be read, as said above")


def output_paths(pictures: list[Path], folder: Path) -> list[Path]:
    """A file in `folder` for each picture, by its name; a number is added where two have the same.

    InputError when one would replace a picture that is to be read.
    """
    sources = {picture.resolve() for picture in pictures}
    paths: dict[Path, None] = {}
    for picture in pictures:
        suffix = picture.suffix if picture.suffix.lower() in PICTURE_SUFFIXES else ".jpg"
        path, number = folder / f"{picture.stem}{suffix}", 2
        while path in paths:
            path, number = folder / f"{picture.stem}_{number}{suffix}", number + 1
        if path.resolve() in sources:
            raise InputError(f"the annotated {picture} would replace the picture {path}: choose another --output")
        paths[path] = None
    return list(paths)


def annotate(image: np.ndarray, found: Detections, class_names: tuple[str, ...]) -> np.ndarray:
    """The picture with its detections drawn, the best on top."""
    weakest_first = found.scores.argsort()
    class_ids = found.class_ids[weakest_first].tolist()
    scores = found.scores[weakest_first].tolist()
    labels = [f"{class_names[class_id]} {score:.2f}" for class_id, score in zip(class_ids, scores)]
    return draw_boxes(image, found.boxes[weakest_first].numpy(), class_ids, labels)


def print_table(found: Detections, class_names: tuple[str, ...]) -> None:
    """One line for each object: class, score, box in pixels of the picture."""
    for box, score, class_id in zip(found.boxes.tolist(), found.scores.tolist(), found.class_ids.tolist()):
        corners = " ".join(f"{value:7.1f}" for value in box)
        print(f"  {class_names[class_id]:<16} {score:.2f}  x1 y1 x2 y2: {corners}")


def objects(number: int) -> str:
    return "1 object" if number == 1 else f"{number} objects"


def time_runs(detector: Detector, image: np.ndarray, args: argparse.Namespace) -> float:
    """Mean seconds from a prepared picture to its detections, as the reference's speed test measures them."""
    batch, letterboxes = detector.prepare([image])
    batch = batch.to(detector.device)
    start = time.perf_counter()
    for _ in range(args.speed_runs):
        detector.detect_batch(batch, letterboxes, args.threshold, args.iou_threshold)
    return (time.perf_counter() - start) / args.speed_runs


if __name__ == "__main__":
    with exit_on_input_error():
        main(parse_args())
