"""The two training recipes. `train.py` has a flag for each of their values."""

from dataclasses import dataclass, field, fields, replace
from typing import Any

from utils.cli import BOOLEAN, non_negative_float, non_negative_int


def _value(description: str, choices: tuple[str, ...] = ()) -> Any:
    return field(metadata={"help": description, "choices": choices})


@dataclass(frozen=True)
class Recipe:
    """How to train a network. The metadata of each field are the help text and the choices of its flag."""

    # Optimizer and learning rate.
    optim: str = _value("optimizer; sgd has momentum 0.9", ("adamw", "sgd"))
    nesterov: bool = _value("Nesterov momentum for sgd")
    lr: float = _value("learning rate")
    lr_images: int = _value("images per step that the lr is meant for; scaled linearly to yours. 0: not scaled")
    schedule: str = _value(
        "plateau: divide the lr by 10 when the training loss stops falling; cosine: decay it to 0",
        ("plateau", "cosine"),
    )
    lr_patience: int = _value("plateau: epochs without improvement before the lr drops")
    warmup_epochs: float = _value("epochs of linear warm-up, from a tenth of the lr")
    weight_decay: float | None = _value("None: the optimizer's default, 0.01 for adamw and 0 for sgd")
    decay_kernels_only: bool = _value("apply weight decay to convolution kernels only, not to biases and batch norms")
    clip_norm: float = _value("maximum gradient norm of a step; 0: no clipping")
    ema_decay: float = _value("decay of the weights' moving average, which is validated too; 0: no average")
    # Augmentation, besides a horizontal flip of half of the images.
    min_scale: float = _value("scale images by a random factor from here ...")
    max_scale: float = _value("... to here, then crop; 1 and 1: fit them into the input")
    # Loss.
    focal_gamma: float = _value("focusing parameter of the focal loss")
    negative_iou: float = _value("anchors with a lower IoU are background; from here to 0.5 they are ignored")
    force_best_anchor: bool = _value("assign each object its best anchor, however low the IoU")
    box_loss: str = _value("smooth_l1: beta 1/9; huber: delta 0.1", ("smooth_l1", "huber"))
    normalize: str = _value(
        "divide the loss by the positive anchors of each image, or of the batch", ("image", "batch")
    )


RECIPES = {
    # The reference, "Yet Another EfficientDet Pytorch": to fine-tune published weights.
    "reference": Recipe(
        optim="adamw",
        nesterov=True,
        lr=1e-4,
        lr_images=0,
        schedule="plateau",
        lr_patience=3,
        warmup_epochs=0.0,
        weight_decay=None,
        decay_kernels_only=False,
        clip_norm=0.0,
        ema_decay=0.0,
        min_scale=1.0,
        max_scale=1.0,
        focal_gamma=2.0,
        negative_iou=0.4,
        force_best_anchor=False,
        box_loss="smooth_l1",
        normalize="image",
    ),
    # google/automl (EfficientDet paper, section 5.1): to train from scratch or from an ImageNet backbone.
    "official": Recipe(
        optim="sgd",
        nesterov=False,
        lr=0.08,
        lr_images=64,
        schedule="cosine",
        lr_patience=3,
        warmup_epochs=1.0,
        weight_decay=4e-5,
        decay_kernels_only=True,
        clip_norm=10.0,
        ema_decay=0.9998,
        min_scale=0.1,
        max_scale=2.0,
        focal_gamma=1.5,
        negative_iou=0.5,
        force_best_anchor=True,
        box_loss="huber",
        normalize="batch",
    ),
}


def make_recipe(name: str, images_per_step: int, changes: dict[str, Any]) -> Recipe:
    """Return the recipe `name` with `changes` (None leaves a value unchanged) and its `lr` scaled to `images_per_step`.

    A changed `lr` is not scaled, unless `lr_images` is changed too.
    """
    changes = {key: value for key, value in changes.items() if value is not None}
    if "lr" in changes:
        changes = {"lr_images": 0, **changes}
    recipe = replace(RECIPES[name], **changes)
    if recipe.lr_images:
        recipe = replace(recipe, lr=recipe.lr * images_per_step / recipe.lr_images, lr_images=images_per_step)
    return recipe


def add_recipe_flags(parser: Any) -> None:
    """Add `--recipe` and a flag for each of its values to an argument parser."""
    group = parser.add_argument_group("recipe", "each flag replaces one value of the recipe")
    group.add_argument("--recipe", choices=tuple(RECIPES), default="reference", help="(default: reference)")
    kinds = {bool: BOOLEAN, int: {"type": non_negative_int}, str: {}, float: {"type": non_negative_float}}
    for value in fields(Recipe):
        kind = kinds[type(getattr(RECIPES["official"], value.name))]
        choices = {"choices": value.metadata["choices"]} if value.metadata["choices"] else {}
        values = ", ".join(f"{name}: {getattr(recipe, value.name)}" for name, recipe in RECIPES.items())
        group.add_argument(f"--{value.name}", **kind, **choices, help=f"{value.metadata['help']} ({values})")
    group.set_defaults(**{value.name: None for value in fields(Recipe)})


def recipe_changes(args: object) -> dict[str, Any]:
    """Return the recipe's values among parsed flags; None where the flag was not passed."""
    return {value.name: getattr(args, value.name) for value in fields(Recipe)}
