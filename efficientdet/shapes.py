"""The data set that comes with the project: images of shapes, drawn from a seed, with exact boxes.

  python -m efficientdet.shapes         # datasets/shapes: 1,000 images to train on, 200 to validate
  python -m efficientdet.shapes --train 50000 --seed 7 --output datasets/more_shapes

Shapes overlap, are turned, stretched, textured and cut by the border, 16 to 400 pixels long, on noisy backgrounds in
images of several aspect ratios, some without any. A box encloses what is visible of its shape. The same seed gives
the same pixels everywhere: chance comes from numpy's frozen generator, and from the corners on, which are rounded to
quarters of a pixel, all drawing is integer arithmetic. (OpenCV before 4.11 fills other pixels along a polygon's edges.)
"""

import argparse
from pathlib import Path

from efficientdet.data.shapes import TRAIN_IMAGES, VAL_IMAGES, write_shapes
from utils.cli import non_negative_int
from utils.errors import exit_on_input_error


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--output", type=Path, default=Path("datasets/shapes"), help="a folder to make (default: datasets/shapes)")
    add("--train", type=non_negative_int, default=TRAIN_IMAGES, help="images to train on (default: %(default)s)")
    add("--val", type=non_negative_int, default=VAL_IMAGES, help="images to validate on (default: %(default)s)")
    add("--seed", type=non_negative_int, default=0, help="another seed draws other images (default: 0)")
    return parser.parse_args()


def main(args: argparse.Namespace) -> None:
    write_shapes(args.output, args.train, args.val, args.seed)


if __name__ == "__main__":
    with exit_on_input_error():
        main(parse_args())
