"""The two recipes of training. `train.py` has a flag of the same name for every value."""

from dataclasses import dataclass, field, fields, replace
from typing import Any


def _value(description: str, choices: tuple[str, ...] = ()) -> Any:
    return field(metadata={"help": description, "choices": choices})


@dataclass(frozen=True)
class Recipe:
    """How a network is trained. Each field's metadata holds its `help` and, for texts, its `choices`."""

    # The optimizer and its learning rate.
    optim: str = _value("the optimizer; sgd has momentum 0.9", ("adamw", "sgd"))
    nesterov: bool = _value("Nesterov's momentum for sgd")
    lr: float = _value("learning rate")
    lr_images: int = _value("the lr is for so many images per step, and is scaled to yours; 0 takes it as it is")
    schedule: str = _value("plateau: lr / 10 when the training loss stagnates; cosine: to 0", ("plateau", "cosine"))
    lr_patience: int = _value("plateau: epochs without gain before the lr falls")
    warmup_epochs: float = _value("epochs over which the lr rises from a tenth")
    weight_decay: float | None = _value("None is the optimizer's own: 0.01 for adamw, 0 for sgd")
    decay_kernels_only: bool = _value("weight decay for convolution kernels only, not for biases and batch norms")
    clip_norm: float = _value("longest gradient of a step; 0 does not clip")
    ema_decay: float = _value("decay of the running average of the weights, which is evaluated, too; 0 has none")
    # Images. An image is also mirrored in half of the cases.
    min_scale: float = _value("images are scaled by a random factor from here ...")
    max_scale: float = _value("... to here, and cropped; 1 and 1 fit them into the input")
    # The loss.
    focal_gamma: float = _value("how much the focal loss plays down easy anchors")
    negative_iou: float = _value("anchors that overlap less are background; from here to 0.5 they are left out")
    force_best_anchor: bool = _value("the best anchor of each object learns it, however little they overlap")
    box_loss: str = _value("smooth_l1: beta 1/9; huber: delta 0.1", ("smooth_l1", "huber"))
    normalize: str = _value("the loss is divided by the positive anchors of each image or batch", ("image", "batch"))


RECIPES = {
    # "Yet Another EfficientDet Pytorch": for fine-tuning published weights.
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
    # google/automl (EfficientDet paper, section 5.1): for training from scratch or from an ImageNet backbone.
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
    """The recipe `name` with `changes` (values of None change nothing), and its `lr` for so many images per step.

    A changed `lr` is taken as it is, unless `lr_images` is changed too.
    """
    changes = {key: value for key, value in changes.items() if value is not None}
    if "lr" in changes:
        changes = {"lr_images": 0, **changes}
    recipe = replace(RECIPES[name], **changes)
    if recipe.lr_images:
        recipe = replace(recipe, lr=recipe.lr * images_per_step / recipe.lr_images, lr_images=images_per_step)
    return recipe


def recipe_changes(args: object) -> dict[str, Any]:
    """The recipe's values among parsed flags."""
    return {value.name: getattr(args, value.name) for value in fields(Recipe)}
