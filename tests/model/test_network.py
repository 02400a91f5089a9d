"""The whole network: published keys, parameter counts, shapes, invalid arguments and initial weights."""

import pytest
import torch
from golden_fill import published_shapes
from torch import Tensor, nn

from efficientdet.model import EfficientDet
from efficientdet.model.anchors import AnchorSpec, make_anchors
from efficientdet.model.loss import DetectionLoss
from efficientdet.model.network import BOX_HEADER, CLASS_HEADER
from efficientdet.structures import Targets
from efficientnet.layers import SameConv2d, SameMaxPool2d

# (trainable, fusion weights that plain sum does not use), 90 classes; google/automl counts the same for D0 to D7
PARAMETERS = {
    0: (3_880_067, 0),
    1: (6_625_898, 0),
    2: (8_097_039, 0),
    3: (12_032_296, 0),
    4: (20_723_675, 0),
    5: (33_653_315, 0),
    6: (51_871_782, 152),
    7: (51_871_782, 152),
    8: (77_147_166, 152),
}


def on_meta_device(compound_coef: int, **arguments) -> EfficientDet:
    """Return a network that has shapes but no values."""
    with torch.device("meta"):
        return EfficientDet(compound_coef, **arguments)


@pytest.fixture(scope="module")
def d0() -> EfficientDet:
    """A new D0 with 3 classes. Do not modify it."""
    torch.manual_seed(0)
    return EfficientDet(0, num_classes=3).eval()


def images(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("compound_coef", range(9))
def test_keys_order_and_shapes_equal_the_published_weights(compound_coef):
    state = {key: tuple(value.shape) for key, value in on_meta_device(compound_coef).state_dict().items()}
    published = published_shapes(compound_coef)
    assert list(state) == list(published)
    assert state == published


def test_headers_produce_the_outputs(d0):
    state = d0.state_dict()
    assert state[f"{CLASS_HEADER}.conv.bias"].shape == (9 * 3,)
    assert state[f"{BOX_HEADER}.conv.bias"].shape == (9 * 4,)


def test_channels_last_memory_format_is_preserved():
    network = EfficientDet(0, num_classes=3).to(memory_format=torch.channels_last)
    contiguous = []

    def check(module: nn.Module, inputs: object, output: Tensor) -> None:
        if not output.is_contiguous(memory_format=torch.channels_last):
            contiguous.append(module)

    layers = [module for module in network.modules() if isinstance(module, SameConv2d | nn.BatchNorm2d | SameMaxPool2d)]
    for layer in layers:
        layer.register_forward_hook(check)
    with torch.autocast("cpu", torch.bfloat16):
        network(images(2, 3, 128, 128).contiguous(memory_format=torch.channels_last))
    assert layers and not contiguous


@pytest.mark.parametrize("compound_coef", PARAMETERS)
def test_parameter_counts(compound_coef):
    parameters = list(on_meta_device(compound_coef).parameters())
    trained = sum(p.numel() for p in parameters if p.requires_grad)
    unused = sum(p.numel() for p in parameters if not p.requires_grad)
    assert (trained, unused) == PARAMETERS[compound_coef]


@pytest.mark.parametrize("compound_coef", [-1, 9, 1.5, "0", None])
def test_unknown_coefficient_is_refused(compound_coef):
    with pytest.raises(ValueError, match="compound_coef"):
        EfficientDet(compound_coef)


@pytest.mark.parametrize("arguments", [{"num_classes": 0}, {"num_classes": -1}, {"ratios": ()}, {"scales": ()}])
def test_network_without_classes_or_anchors_is_refused(arguments):
    with pytest.raises(ValueError, match="at least one"):
        on_meta_device(0, **arguments)


@pytest.mark.parametrize(
    ("compound_coef", "height", "width"),
    [(0, 64, 128), (0, 128, 200), (0, 0, 128), (7, 192, 128), (8, 128, 256), (8, 256, 384)],
)
def test_input_size_that_does_not_fit_the_pyramid_is_refused(compound_coef, height, width):
    network = on_meta_device(compound_coef)
    with pytest.raises(ValueError, match=f"multiples of {256 if compound_coef == 8 else 128}"):
        network(torch.empty(1, 3, height, width, device="meta"))


@pytest.mark.parametrize("shape", [(1, 1, 128, 128), (1, 4, 128, 128), (3, 128, 128), (1, 128, 128, 3)])
def test_images_of_wrong_shape_are_refused(d0, shape):
    with pytest.raises(ValueError, match=r"\(N, 3, H, W\)"):
        d0(torch.zeros(shape))


@pytest.mark.parametrize("compound_coef", range(9))
def test_rectangular_input(compound_coef):
    network = on_meta_device(compound_coef, num_classes=5).eval()
    outputs = network(torch.empty(2, 3, 256, 512, device="meta"))
    cells = sum((256 >> level) * (512 >> level) for level in network.config.pyramid_levels)
    assert outputs.class_logits.shape == (2, 9 * cells, 5)
    assert outputs.box_deltas.shape == (2, 9 * cells, 4)
    assert outputs.anchors.shape == (9 * cells, 4)
    assert [tuple(level.shape[-2:]) for level in network.features(torch.empty(1, 3, 256, 512, device="meta"))] == [
        (256 >> level, 512 >> level) for level in network.config.pyramid_levels
    ]


def test_custom_ratios_and_scales():
    network = on_meta_device(0, num_classes=2, ratios=[(1, 1), (2, 0.5)], scales=[1])
    outputs = network.eval()(torch.empty(1, 3, 128, 128, device="meta"))
    assert outputs.box_deltas.shape == (1, 2 * 341, 4)
    assert network.anchor_spec == AnchorSpec((3, 4, 5, 6, 7), 4.0, (1.0,), ((1.0, 1.0), (2.0, 0.5)))
    on_cpu = network.anchors(torch.empty(1, 3, 128, 128))
    assert torch.equal(on_cpu, make_anchors(128, 128, network.anchor_spec).float())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_anchors_are_float32_for_half_precision_images(d0, dtype):
    anchors = d0.anchors(images(1, 3, 128, 256).to(dtype))
    assert anchors.dtype == torch.float32
    assert torch.equal(anchors, d0.anchors(images(1, 3, 128, 256)))


def test_half_precision_network_returns_half_outputs_and_float32_anchors():
    torch.manual_seed(0)
    network = EfficientDet(0, num_classes=3).eval().bfloat16()
    with torch.no_grad():
        outputs = network(images(1, 3, 128, 128).bfloat16())
    assert outputs.class_logits.dtype == torch.bfloat16
    assert outputs.anchors.dtype == torch.float32


def test_anchors_are_float64_in_a_float64_network(d0):
    assert d0.anchors(images(1, 3, 128, 128).double()).dtype == torch.float64


def test_initial_scores_are_one_in_a_hundred(d0):
    bias = d0.classifier.header.pointwise_conv.conv.bias
    torch.testing.assert_close(bias.sigmoid(), torch.full_like(bias, 0.01))
    with torch.no_grad():
        scores = d0(images(2, 3, 128, 128)).class_logits.sigmoid()
    assert 0.005 < scores.median() < 0.02


def test_network_used_for_inference_can_be_trained_afterwards():
    torch.manual_seed(0)
    network = EfficientDet(0, num_classes=3)
    batch = images(1, 3, 384, 128)  # no other test uses this shape, so its anchors are not cached yet
    with torch.inference_mode():
        network.eval()(batch)
    targets = Targets(torch.tensor([[[10.0, 20, 70, 90]]]), torch.tensor([[1]]))
    DetectionLoss()(network.train()(batch), targets).total.backward()
    assert all(torch.isfinite(p.grad).all() for p in network.parameters())
