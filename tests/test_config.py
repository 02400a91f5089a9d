"""The configurations D0 to D7X, and the input sizes that they allow."""

import dataclasses

import pytest

from efficientdet.config import ANCHOR_RATIOS, ANCHOR_SCALES, CONFIGS, check_image_size, model_config

# EfficientDet paper, table 1; google/automl for D7X
BACKBONES = [0, 1, 2, 3, 4, 5, 6, 6, 7]
INPUT_SIZES = [512, 640, 768, 896, 1024, 1280, 1280, 1536, 1536]
BIFPN = [(64, 3), (88, 4), (112, 5), (160, 6), (224, 7), (288, 7), (384, 8), (384, 8), (384, 8)]
HEAD_LAYERS = [3, 3, 3, 4, 4, 4, 5, 5, 5]


def test_table_equals_the_papers():
    assert [config.backbone for config in CONFIGS] == BACKBONES
    assert [config.input_size for config in CONFIGS] == INPUT_SIZES
    assert [(config.bifpn_channels, config.bifpn_cells) for config in CONFIGS] == BIFPN
    assert [config.head_layers for config in CONFIGS] == HEAD_LAYERS
    assert [config.fast_attention for config in CONFIGS] == [True] * 6 + [False] * 3
    assert [config.pyramid_levels for config in CONFIGS] == [(3, 4, 5, 6, 7)] * 8 + [(3, 4, 5, 6, 7, 8)]
    assert [config.anchor_scale for config in CONFIGS] == [4, 4, 4, 4, 4, 4, 4, 5, 4]


def test_default_anchors_are_those_of_the_published_weights():
    assert pytest.approx((1.0, 1.2599210498948732, 1.5874010519681994)) == ANCHOR_SCALES
    assert ANCHOR_RATIOS == ((1.0, 1.0), (1.4, 0.7), (0.7, 1.4))


def test_configurations_are_immutable():
    with pytest.raises(dataclasses.FrozenInstanceError):
        model_config(0).input_size = 1024


@pytest.mark.parametrize("compound_coef", range(9))
def test_default_input_size_is_allowed(compound_coef):
    size = model_config(compound_coef).input_size
    check_image_size(compound_coef, size, size)


@pytest.mark.parametrize("compound_coef", [-1, 9, 100, 1.0, "0", None, True])
def test_unknown_coefficient_is_refused(compound_coef):
    with pytest.raises(ValueError, match="0 .* to 8"):
        model_config(compound_coef)


@pytest.mark.parametrize(
    ("compound_coef", "height", "width"),
    [
        (0, 0, 128),
        (0, 128, 0),
        (0, -128, 128),
        (0, 64, 128),
        (0, 128, 192),
        (7, 300, 300),
        (8, 128, 256),
        (8, 256, 384),
    ],
)
def test_input_size_that_does_not_fit_the_pyramid_is_refused(compound_coef, height, width):
    with pytest.raises(ValueError, match=f"multiples of {256 if compound_coef == 8 else 128} .*{height} x {width}"):
        check_image_size(compound_coef, height, width)


@pytest.mark.parametrize(("compound_coef", "height", "width"), [(0, 128, 384), (7, 1536, 128), (8, 256, 512)])
def test_rectangular_input_is_allowed(compound_coef, height, width):
    check_image_size(compound_coef, height, width)


@pytest.mark.parametrize(
    ("compound_coef", "image_size", "shape"),
    [
        (0, None, (512, 512)),
        (8, None, (1536, 1536)),
        (0, 512, (512, 512)),
        (0, 513, (640, 640)),
        (0, 1, (128, 128)),
        (8, 129, (256, 256)),
        (3, (100, 300), (128, 384)),
    ],
)
def test_input_shape_is_rounded_up_to_fit_the_pyramid(compound_coef, image_size, shape):
    assert model_config(compound_coef).input_shape(image_size) == shape
    check_image_size(compound_coef, *shape)


@pytest.mark.parametrize("image_size", [0, -1, (0, 128), (128, 0)])
def test_empty_input_shape_is_refused(image_size):
    with pytest.raises(ValueError, match="1 pixel or more"):
        model_config(0).input_shape(image_size)
