"""The three training recipes, side by side. `train.py` has a flag for each of their values."""

from collections.abc import Collection
from dataclasses import dataclass, field, fields, replace
from typing import Any

from efficientdet.data.augmentation import Augmentation
from utils.cli import BOOLEAN, fraction, non_negative_float, non_negative_int, positive_int


def _value(
    description: str, reference: object, official: object, quick: object, *choices: str, kind: Any = None
) -> Any:
    values = {"reference": reference, "official": official, "quick": quick}
    return field(metadata={"help": description, "choices": choices or None, "type": kind, **values})


def _off(description: str, kind: Any = fraction) -> Any:
    return _value(description, 0.0, 0.0, 0.0, kind=kind)


@dataclass(frozen=True)
class Recipe:
    """How to train a network. The metadata of each field are the help and choices of its flag, and its values in

    - `reference`, that of "Yet Another EfficientDet Pytorch": to fine-tune published weights,
    - `official`, that of google/automl (EfficientDet paper, section 5.1): to train from scratch or from a backbone,
    - `quick`: with few images or little time, from scratch or from weights.
    """

    batch_size: int = _value("images per step, all GPUs together", 12, 12, 4, kind=positive_int)
    num_steps: int = _value("steps of a run without --num_epochs and --minutes; 0: 500 epochs", 0, 0, 3000)
    # Optimizer and learning rate.
    optim: str = _value("optimizer; sgd has momentum 0.9", "adamw", "sgd", "muon", "adamw", "sgd", "muon")
    nesterov: bool = _value("Nesterov momentum for sgd", True, False, False)
    lr: float = _value("learning rate", 1e-4, 0.08, 1e-2)
    lr_images: int = _value("images per step that the lr is meant for, scaled to yours; 0: not scaled", 0, 64, 0)
    schedule: str = _value(
        "plateau: lr / 10 when the training loss stops falling; cosine: to 0",
        "plateau", "cosine", "cosine", "plateau", "cosine",
    )  # fmt: skip
    lr_patience: int = _value("plateau: epochs without improvement before the lr drops", 3, 3, 3)
    warmup_epochs: float = _value("epochs of linear warm-up, from a tenth of the lr", 0.0, 1.0, 0.0)
    warmup_steps: int = _value("steps of linear warm-up, at most a tenth of the run", 0, 0, 100)
    weight_decay: float | None = _value("None: the optimizer's own, 0.01 for adamw, else 0", None, 4e-5, 0.0)
    decay_kernels_only: bool = _value("weight decay for kernels only, as muon always does", False, True, True)
    clip_norm: float = _value("maximum gradient norm of a step; 0: no clipping", 0.0, 10.0, 10.0)
    ema_decay: float = _value("decay of the weights' moving average, the result; 0: no average", 0.0, 0.9998, 0.99)
    # Network in training.
    drop_connect: float | None = _value(
        "share of samples whose last MBConv block is skipped; None: 0.2, but 0 for D0", 0.2, None, 0.0
    )
    sync_bn: bool | None = _value("batch norms across GPUs; None: below 4 images per GPU", None, True, True)
    # Augmentation, besides a horizontal flip of half of the images.
    min_scale: float = _value("scale images by a random factor from here ...", 1.0, 0.1, 0.8)
    max_scale: float = _value("... to here, then crop; 1 and 1: fit them into the input", 1.0, 2.0, 1.3)
    photometric: float = _off("strength of changes of brightness, contrast, saturation and hue, 0 to 1")
    vertical_flip: float = _off("probability of turning an image upside down, as in a mirror")
    quarter_turns: float = _off("probability of rotating an image by 90, 180 or 270 degrees")
    rotate: float = _off("maximum rotation of an image, in degrees", non_negative_float)
    shear: float = _off("maximum shear of an image along each axis, in degrees", non_negative_float)
    cutout: float = _off("probability of hiding parts of an image behind up to three rectangles")
    blur: float = _off("probability of blurring an image or compressing it as a poor JPEG")
    mosaic: float = _off("probability of joining four images in one, each about half as large")
    mixup: float = _off("probability of blending an image with another")
    copy_paste: float = _off("probability of pasting objects of another image into an image")
    # Loss.
    focal_gamma: float = _value("focusing parameter of the focal loss", 2.0, 1.5, 1.5)
    negative_iou: float = _value("IoU below which anchors are background; up to 0.5 they are ignored", 0.4, 0.5, 0.5)
    force_best_anchor: bool = _value("assign each object its best anchor, however low the IoU", False, True, True)
    min_anchors: int = _value("assign each object at least so many anchors, however low the IoU", 0, 0, 4)
    box_loss: str = _value("smooth_l1: beta 1/9; huber: delta 0.1", "smooth_l1", "huber", "huber", "smooth_l1", "huber")
    normalize: str = _value("divide the loss by the positive anchors of", "image", "batch", "batch", "image", "batch")

    @property
    def augmentation(self) -> Augmentation:
        return Augmentation(**{value.name: getattr(self, value.name) for value in fields(Augmentation)})


RECIPES = {
    name: Recipe(**{value.name: value.metadata[name] for value in fields(Recipe)})
    for name in ("reference", "official", "quick")
}


def make_recipe(name: str, changes: dict[str, Any], accumulate: int = 1) -> Recipe:
    """Return the recipe `name` with `changes` (None leaves a value unchanged).

    Its `lr` is scaled to the images of a step, `accumulate` batches. A changed `lr` is not, unless `lr_images` is
    changed too.
    """
    changes = {key: value for key, value in changes.items() if value is not None}
    if "lr" in changes:
        changes = {"lr_images": 0, **changes}
    recipe = replace(RECIPES[name], **changes)
    if recipe.lr_images:
        images = recipe.batch_size * accumulate
        recipe = replace(recipe, lr=recipe.lr * images / recipe.lr_images, lr_images=images)
    return recipe


def add_recipe_flags(parser: Any, names: Collection[str] | None = None) -> None:
    """Add `--recipe` and a flag for each of its values, or of those in `names`, to an argument parser."""
    group = parser.add_argument_group("recipe", "each flag replaces one value of the recipe")
    group.add_argument("--recipe", choices=tuple(RECIPES), default="reference", help="(default: reference)")
    kinds = {bool: BOOLEAN, int: {"type": non_negative_int}, str: {}, float: {"type": non_negative_float}}
    values = [value for value in fields(Recipe) if names is None or value.name in names]
    for value in values:
        about = value.metadata
        of_recipes = ", ".join(f"{name}: {about[name]}" for name in RECIPES)
        kind = {"type": about["type"]} if about["type"] else kinds[type(about["quick"])]
        group.add_argument(f"--{value.name}", **kind, choices=about["choices"], help=f"{about['help']} ({of_recipes})")
    group.set_defaults(**{value.name: None for value in values})


def recipe_changes(args: object) -> dict[str, Any]:
    """Return the recipe's values among parsed flags; None where the flag was not passed."""
    names = {value.name for value in fields(Recipe)}
    return {name: value for name, value in vars(args).items() if name in names}
