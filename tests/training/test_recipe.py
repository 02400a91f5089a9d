"""The numbers of the recipes, and how flags change them."""

from argparse import ArgumentParser
from dataclasses import asdict, fields, replace
from types import SimpleNamespace

import pytest

from efficientdet.data.augmentation import Augmentation
from efficientdet.model.loss import DetectionLoss
from efficientdet.training.recipe import RECIPES, Recipe, add_recipe_flags, make_recipe, recipe_changes

NAMES = [value.name for value in fields(Recipe)]
# Augmentation that neither of the two faithful recipes has.
OFF = dict.fromkeys(
    (
        "photometric", "vertical_flip", "quarter_turns", "rotate", "shear", "cutout", "blur", "mosaic", "mixup",
        "copy_paste",
    ),
    0,
)  # fmt: skip


def of_images(name: str, images: int, changes: dict) -> Recipe:
    return make_recipe(name, {**changes, "batch_size": images})


@pytest.mark.parametrize("name", RECIPES)
def test_no_changes_give_the_recipe_of_the_table(name):
    images = RECIPES[name].lr_images or 5
    expected = replace(RECIPES[name], batch_size=images)
    assert of_images(name, images, {}) == of_images(name, images, dict.fromkeys(NAMES)) == expected


def test_reference_recipe():
    """shared/DESIGN.md, section 3: for fine-tuning."""
    assert asdict(RECIPES["reference"]) == OFF | {
        "batch_size": 12,
        "num_steps": 0,
        "optim": "adamw",
        "nesterov": True,  # of sgd, if it is chosen
        "lr": 1e-4,
        "lr_images": 0,
        "schedule": "plateau",
        "lr_patience": 3,
        "warmup_epochs": 0,
        "warmup_steps": 0,
        "weight_decay": None,
        "decay_kernels_only": False,
        "clip_norm": 0,
        "ema_decay": 0,
        "drop_connect": 0.2,
        "sync_bn": None,  # below 4 images per GPU
        "min_scale": 1,
        "max_scale": 1,
        "focal_gamma": 2,
        "negative_iou": 0.4,
        "force_best_anchor": False,
        "min_anchors": 0,
        "box_loss": "smooth_l1",
        "normalize": "image",
    }


def test_official_recipe():
    """shared/DESIGN.md, section 5: google/automl's, for training from scratch."""
    assert asdict(RECIPES["official"]) == OFF | {
        "batch_size": 12,
        "num_steps": 0,
        "optim": "sgd",
        "nesterov": False,
        "lr": 0.08,
        "lr_images": 64,
        "schedule": "cosine",
        "lr_patience": 3,  # of the plateau, if it is chosen
        "warmup_epochs": 1,
        "warmup_steps": 0,
        "weight_decay": 4e-5,
        "decay_kernels_only": True,
        "clip_norm": 10,
        "ema_decay": 0.9998,
        "drop_connect": None,  # 0 for D0
        "sync_bn": True,
        "min_scale": 0.1,
        "max_scale": 2.0,
        "focal_gamma": 1.5,
        "negative_iou": 0.5,
        "force_best_anchor": True,
        "min_anchors": 0,
        "box_loss": "huber",
        "normalize": "batch",
    }


@pytest.mark.parametrize(("images", "lr"), [(64, 0.08), (128, 0.16), (16, 0.02), (1, 0.00125)])
def test_official_rate_grows_with_the_images_of_a_step(images, lr):
    recipe = of_images("official", images, {})
    assert recipe.lr == pytest.approx(lr, rel=1e-12)
    assert replace(recipe, lr=0.08, lr_images=64, batch_size=12) == RECIPES["official"]


@pytest.mark.parametrize("images", [1, 64, 1000])
def test_reference_rate_does_not_depend_on_the_images_of_a_step(images):
    assert of_images("reference", images, {}).lr == 1e-4


@pytest.mark.parametrize("name", RECIPES)
def test_given_rate_is_taken_as_it_is(name):
    assert of_images(name, 16, {"lr": 0.3}).lr == 0.3
    assert of_images(name, 16, {"lr": 0.3, "lr_images": None}).lr == 0.3
    assert of_images(name, 16, {"lr": 0.0}).lr == 0


@pytest.mark.parametrize("name", RECIPES)
def test_given_rate_for_a_number_of_images_is_scaled(name):
    assert of_images(name, 16, {"lr": 0.3, "lr_images": 32}).lr == pytest.approx(0.15)


def test_number_of_images_may_change_without_the_rate():
    assert of_images("official", 16, {"lr_images": 32}).lr == pytest.approx(0.04)
    assert of_images("official", 16, {"lr_images": 0}).lr == 0.08
    assert of_images("reference", 16, {"lr_images": 8}).lr == pytest.approx(2e-4)


def test_changes_take_the_place_of_values_and_of_nothing_else():
    changes = {"optim": "adamw", "clip_norm": 0.0, "force_best_anchor": False, "weight_decay": 0.0, "max_scale": None}
    recipe = of_images("official", 64, changes)
    assert recipe == replace(
        RECIPES["official"], batch_size=64, optim="adamw", clip_norm=0.0, force_best_anchor=False, weight_decay=0.0
    )
    assert RECIPES["official"].optim == "sgd"


def test_flags_are_read_by_the_names_of_the_values():
    flags = dict.fromkeys(NAMES)
    changes = recipe_changes(SimpleNamespace(**flags | {"optim": "sgd", "lr": 0.5}, project="shapes"))
    assert changes == flags | {"optim": "sgd", "lr": 0.5}
    assert make_recipe("reference", changes) == replace(RECIPES["reference"], optim="sgd", lr=0.5)


def test_accumulated_batches_count_as_images_of_a_step():
    assert make_recipe("official", {"batch_size": 16}, accumulate=4).lr == pytest.approx(0.08)


def test_every_value_is_described_and_every_word_is_among_its_choices():
    for value in fields(Recipe):
        assert value.metadata["help"]
        for recipe in RECIPES.values():
            word = getattr(recipe, value.name)
            assert isinstance(word, str) == bool(value.metadata["choices"])
            assert not isinstance(word, str) or word in value.metadata["choices"]


def test_some_flags_of_the_recipe():
    parser = ArgumentParser()
    add_recipe_flags(parser, ["max_scale", "mosaic"])
    args = parser.parse_args(["--recipe", "official", "--mosaic", "0.5"])
    assert recipe_changes(args) == {"max_scale": None, "mosaic": 0.5}
    assert make_recipe(args.recipe, recipe_changes(args)) == make_recipe("official", {"mosaic": 0.5})
    for flags in (["--mosaic", "1.5"], ["--max_scale", "-1"], ["--lr", "1"]):
        with pytest.raises(SystemExit):
            parser.parse_args(flags)


def test_loss_knows_every_choice():
    choices = {value.name: value.metadata["choices"] for value in fields(Recipe)}
    for name in ("box_loss", "normalize"):
        for word in choices[name]:
            DetectionLoss(**{name: word})


def test_recipe_has_every_setting_of_the_augmentation():
    changes = {value.name: 0.25 for value in fields(Augmentation)}
    recipe = replace(RECIPES["reference"], **changes)
    assert recipe.augmentation == Augmentation(**changes)
    assert RECIPES["reference"].augmentation == Augmentation()
    assert RECIPES["official"].augmentation == Augmentation(min_scale=0.1, max_scale=2.0)


def test_reference_recipe_has_the_losss_own_values():
    loss, recipe = DetectionLoss(), RECIPES["reference"]
    for name in ("focal_gamma", "negative_iou", "force_best_anchor", "min_anchors", "box_loss", "normalize"):
        assert getattr(loss, name) == getattr(recipe, name)
