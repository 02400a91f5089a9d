"""Draw the data set of the project shapes: images of shapes with exact boxes, from a seed.

  python -m efficientdet.shapes         # datasets/shapes: 1,000 training and 200 validation images
  python -m efficientdet.shapes --train 50000 --seed 7 --output datasets/more_shapes

Shapes are 16 to 400 pixels long, rotated, stretched, textured, partly hidden and cut by the border, on noisy
backgrounds of several aspect ratios; some images are empty. A box encloses what is visible of its shape. The same seed
gives the same pixels on every machine: random numbers come from numpy's frozen generator, corners are rounded to
quarters of a pixel, and all drawing is integer arithmetic. (OpenCV before 4.11 fills polygon edges differently.)
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from efficientdet.data.shapes import TRAIN_IMAGES, VAL_IMAGES, write_shapes
from utils.cli import add_flags, make_parser, non_negative_int
from utils.errors import exit_on_input_error


def parse_args(args: Sequence[str] | None = None) -> argparse.Namespace:
    parser = make_parser(__doc__, prog="python -m efficientdet.shapes")
    output = {"default": Path("datasets/shapes"), "help": "folder to create (default: %(default)s)"}
    add_flags(parser, output=output, seed={"help": "another seed draws other images (default: %(default)s)"})
    add = parser.add_argument
    add("--train", type=non_negative_int, default=TRAIN_IMAGES, help="training images (default: %(default)s)")
    add("--val", type=non_negative_int, default=VAL_IMAGES, help="validation images (default: %(default)s)")
    return parser.parse_args(args)


def main(args: argparse.Namespace) -> None:
    write_shapes(args.output, args.train, args.val, args.seed)


if __name__ == "__main__":
    with exit_on_input_error():
        main(parse_args())
