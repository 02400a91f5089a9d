"""EfficientNet B0 to B7: compound scaling, blocks, and the shapes of the three features."""

import pytest
import torch

from efficientnet.model import EfficientNet, MBConvBlock, round_channels, scaled_stages

# index -> (channels of P3, P4, P5; number of blocks) of the published networks
FAMILY = {
    0: ((40, 112, 320), 16),
    1: ((40, 112, 320), 23),
    2: ((48, 120, 352), 23),
    3: ((48, 136, 384), 26),
    4: ((56, 160, 448), 32),
    5: ((64, 176, 512), 39),
    6: ((72, 200, 576), 45),
    7: ((80, 224, 640), 55),
}


def on_meta_device(index: int) -> EfficientNet:
    """Return a backbone with shapes only."""
    with torch.device("meta"):
        return EfficientNet(index).eval()


@pytest.mark.parametrize(
    ("channels", "width", "expected"),
    [
        (32, 1.0, 32),
        (32, 1.1, 32),  # 35.2, down
        (24, 1.2, 32),  # 28.8, up
        (16, 1.4, 24),  # 22.4
        (320, 1.1, 352),
        (112, 1.1, 120),  # 123.2, down
        (10, 1.1, 16),  # 11: 8 would be more than 10 % below
        (1, 1.0, 8),  # never fewer than 8
    ],
)
def test_round_channels(channels, width, expected):
    assert round_channels(channels, width) == expected


@pytest.mark.parametrize(
    ("index", "repeats"),
    [(0, [1, 2, 2, 3, 3, 4, 1]), (1, [2, 3, 3, 4, 4, 5, 2]), (3, [2, 3, 3, 5, 5, 6, 2]), (7, [4, 7, 7, 10, 10, 13, 4])],
)
def test_repeats_are_rounded_up(index, repeats):
    assert [stage.repeats for stage in scaled_stages(index)] == repeats


@pytest.mark.parametrize("index", FAMILY)
def test_features_have_the_published_channels_and_strides_8_16_32(index):
    channels, _ = FAMILY[index]
    backbone = on_meta_device(index)
    features = backbone(torch.empty(2, 3, 64, 96, device="meta"))
    assert [tuple(feature.shape) for feature in features] == [
        (2, channels[0], 8, 12),
        (2, channels[1], 4, 6),
        (2, channels[2], 2, 3),
    ]
    assert backbone.feature_channels == channels


def test_feature_sizes_are_rounded_up():
    features = on_meta_device(0)(torch.empty(1, 3, 65, 33, device="meta"))
    assert [tuple(feature.shape[-2:]) for feature in features] == [(9, 5), (5, 3), (3, 2)]


@pytest.mark.parametrize("index", FAMILY)
def test_depth_and_drop_rates(index):
    _, depth = FAMILY[index]
    blocks = [module for module in on_meta_device(index).modules() if isinstance(module, MBConvBlock)]
    assert len(blocks) == depth
    assert blocks[0].drop_rate == 0
    assert blocks[-1].drop_rate == pytest.approx(0.2 * (depth - 1) / depth)


def test_block_adds_its_input_only_if_shapes_agree():
    x = torch.randn(1, 16, 4, 4)
    for out_channels, stride, adds in ((16, 1, True), (24, 1, False), (16, 2, False)):
        block = MBConvBlock(16, out_channels, 3, stride, expand_ratio=6, drop_rate=0.0).eval()
        torch.nn.init.zeros_(block._bn2.weight)  # only the identity remains
        expected = x if adds else torch.zeros(1, out_channels, 4 // stride, 4 // stride)
        torch.testing.assert_close(block(x), expected)


def test_drop_connect_acts_in_training_only():
    torch.manual_seed(0)
    block = MBConvBlock(8, 8, 3, 1, expand_ratio=1, drop_rate=0.999999)
    x = torch.randn(4, 8, 4, 4)
    torch.testing.assert_close(block.train()(x), x)  # every residual dropped
    assert not torch.allclose(block.eval()(x), x)


def test_squeezed_channels_are_a_quarter_of_the_input_but_at_least_one():
    assert MBConvBlock(18, 18, 3, 1, expand_ratio=6, drop_rate=0.0)._se_reduce.conv.out_channels == 4
    assert MBConvBlock(2, 2, 3, 1, expand_ratio=6, drop_rate=0.0)._se_reduce.conv.out_channels == 1


def test_evaluation_is_deterministic_and_independent_of_the_batch():
    torch.manual_seed(0)
    backbone = EfficientNet(0).double().eval()
    images = torch.randn(2, 3, 32, 64, dtype=torch.float64)
    with torch.no_grad():
        together, alone = backbone(images), backbone(images[1:])
    for both, one in zip(together, alone):
        torch.testing.assert_close(both[1:], one, rtol=1e-9, atol=1e-12)
