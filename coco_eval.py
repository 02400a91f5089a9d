"""Evaluate weights on a project's validation set by COCO's average precision.

  python coco_eval.py -p coco -c 0                                     the published weights, downloaded on first use
  python coco_eval.py -p shapes                                        the weights and data that come with the project
  python coco_eval.py -p my_project -c 2 -w best                       the best that train.py has made so far
  python coco_eval.py -p my_project -c 2 -w logs/my_project/efficientdet-d2_30_4000.pth

The detections go to logs/{project}/{set}_bbox_results.json, in COCO's results format.
"""

import argparse
from pathlib import Path

from tqdm import tqdm

from efficientdet.checkpoint import chosen_weights
from efficientdet.config import model_config
from efficientdet.dataset import BatchLoader, CocoDataset
from efficientdet.detector import load_detector
from efficientdet.evaluate import (
    EVALUATION_IOU_THRESHOLD,
    EVALUATION_SCORE_THRESHOLD,
    coco_results,
    read_results,
    score,
    write_results,
)
from efficientdet.project import load_project
from efficientdet.shapes import draw_if_absent
from utils.cli import BOOLEAN, chosen_image_size, default_workers, fraction, non_negative_int, positive_int
from utils.device import chosen_device
from utils.errors import InputError, exit_on_input_error
from utils.files import make_writable_folder

LOGS = Path("logs")
WORKERS = default_workers()


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("-p", "--project", default="coco", help="a name under projects/, or a YAML file (default: coco)")
    add("-c", "--compound_coef", type=int, default=0, choices=range(9), help="D0 to D7, 8 is D7X (default: 0)")
    add("-w", "--weights", metavar="FILE|best|last", help="weights file (default: the one in weights/)")
    add(
        "--nms_threshold",
        type=fraction,
        default=EVALUATION_IOU_THRESHOLD,
        help="IoU above which the weaker of two boxes of a class goes (default: %(default)s)",
    )
    add("--cuda", **BOOLEAN, help="run on a GPU (default: if there is one)")
    add("--device", type=non_negative_int, default=0, help="which GPU (default: 0)")
    add("--float16", **BOOLEAN, default=False, help="half precision, on a GPU")
    add("--override", **BOOLEAN, default=True, help="False scores the results file of an earlier run (default: True)")
    add("--batch_size", type=positive_int, default=4, help="images per pass (default: 4)")
    add("-n", "--num_workers", type=non_negative_int, default=WORKERS, help=f"loading processes (default: {WORKERS})")
    add(
        "--saved_path",
        type=Path,
        default=Path("logs"),
        help="where -w best and last look (default: logs/)",
    )
    add("--data_path", type=Path, default=Path("datasets"), help="folder of the projects' data (default: datasets/)")
    add("--set", dest="set_name", help="which set to evaluate (default: the project's val_set)")
    add("--image_size", type=positive_int, help="side of the input in pixels (default: the project's)")
    add("--max_images", type=positive_int, help="use only the first so many images of the set")
    return parser.parse_args()


def main(args: argparse.Namespace) -> None:
    project = load_project(args.project)
    config = model_config(args.compound_coef)
    image_size = chosen_image_size(args.image_size or project.image_size, config.input_size, config.size_divisor)
    device = chosen_device(args.cuda, args.device)
    if args.float16 and device.type == "cpu":
        raise InputError("--float16 needs a GPU: leave it out to evaluate on the CPU")
    draw_if_absent(project, args.data_path)
    set_name = args.set_name or project.val_set
    canvas = (image_size, image_size)
    dataset = CocoDataset(args.data_path / project.name, set_name, project, canvas, max_images=args.max_images)
    results_path = LOGS / project.name / f"{set_name}_bbox_results.json"
    make_writable_folder(results_path.parent)

    if not args.override and results_path.is_file():
        print(f"scoring {results_path} as it is (--override False)")
        results = read_results(results_path)
    else:
        weights = chosen_weights(args.weights, project.name, args.compound_coef, args.saved_path)
        detector = load_detector(args.compound_coef, weights, project, device, image_size, args.float16)
        batches = BatchLoader(dataset, args.batch_size, args.num_workers, pin_memory=device.type == "cuda")
        results = []
        with tqdm(desc=f"{set_name} on {device}", total=len(dataset), unit="image", dynamic_ncols=True) as bar:
            for batch in batches:
                detections = detector.detect_batch(
                    batch.images, batch.letterboxes, EVALUATION_SCORE_THRESHOLD, args.nms_threshold
                )
                for image_id, found in zip(batch.image_ids, detections):
                    results += coco_results(image_id, found, dataset.category_ids)
                bar.update(len(detections))
        write_results(results_path, results)
        print(f"{len(results)} detections in {len(dataset)} images -> {results_path}")
    print(score(dataset, results).summary)


if __name__ == "__main__":
    with exit_on_input_error():
        main(parse_args())
