"""The forward pass and the loss cause no host-device sync. Tested without a GPU.

PyTorch's fake tensors have shapes, types and devices, but no values: whatever needs values (`.item()`, `nonzero`, a
mask as an index) is an error. Copies between CPU and GPU are not, so `NoBlockingCopies` detects them.
"""

from collections.abc import Callable

import pytest
import torch
from scripts import untrained
from torch import Tensor
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensorMode,
)
from torch.fx.experimental.symbolic_shapes import ShapeEnv
from torch.utils._python_dispatch import TorchDispatchMode

from efficientdet.data.transforms import Letterbox
from efficientdet.model.loss import DetectionLoss
from efficientdet.model.postprocess import find_candidates
from efficientdet.structures import Targets
from efficientdet.training.recipe import RECIPES

pytestmark = pytest.mark.skipif(not torch.backends.cuda.is_built(), reason="needs a CUDA build of PyTorch")

COPIES = (torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default)


class BlockingCopy(Exception):
    """A tensor is copied between CPU and GPU, and the host waits for it."""


class NoBlockingCopies(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.counted = 0  # calls of nonzero

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        self.counted += func is torch.ops.aten.nonzero.default
        if func in COPIES and not kwargs.get("non_blocking"):
            devices = {x.device.type for x in (*args, result) if isinstance(x, Tensor)}
            if len(devices) > 1:
                raise BlockingCopy(f"{func}: {devices}")
        return result


@pytest.fixture(autouse=True)
def fake_gpu():
    """Make all new tensors of a test fake, on the device "cuda"."""
    with FakeTensorMode(), torch.device("cuda"):
        yield


@pytest.mark.parametrize(
    ("error", "use"),
    [
        (DataDependentOutputException, lambda x: x.sum().item()),
        (DataDependentOutputException, lambda x: x.tolist()),
        (DataDependentOutputException, lambda x: bool(x.any())),
        (DynamicOutputShapeException, lambda x: x.nonzero()),
        (DynamicOutputShapeException, lambda x: x[x > 0]),
        (BlockingCopy, lambda x: x[..., [1, 0]]),
        (BlockingCopy, lambda x: x.new_tensor([1, 2])),
        (BlockingCopy, lambda x: torch.tensor([1.0, 2.0], device="cuda")),
        (BlockingCopy, lambda x: x.cpu()),
    ],
)
def test_syncs_are_detected(error: type[Exception], use: Callable[[Tensor], object]):
    x = torch.rand(3, 4)
    with pytest.raises(error), NoBlockingCopies():
        use(x)


def test_forward_pass_in_training():
    network = untrained().train()
    images = torch.randn(2, 3, 128, 128)
    with NoBlockingCopies():
        pyramid = network.features(images)
        outputs = network.classifier(pyramid), network.regressor(pyramid)
    assert {part.device.type for part in outputs} == {"cuda"}


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("objects", [0, 5])
def test_assignment_and_loss(recipe, objects):
    logits = torch.randn(2, 100, 3, dtype=torch.bfloat16, requires_grad=True)
    outputs = logits, torch.randn(2, 100, 4), torch.rand(100, 4)
    targets = Targets(torch.rand(2, objects, 4), torch.zeros(2, objects, dtype=torch.int64))
    with NoBlockingCopies():
        losses = DetectionLoss.from_recipe(RECIPES[recipe])(outputs, targets)
        # backward() itself would query the driver for the GPU.
        gradient = losses.classification.grad_fn.apply(torch.ones(()))[0]
    assert losses.total.device.type == gradient.device.type == "cuda"
    assert gradient.shape == logits.shape


def test_preparation_of_images():
    pixels = torch.zeros(300, 400, 3, dtype=torch.uint8)
    letterbox = Letterbox.fit((300, 400), (128, 128))
    with NoBlockingCopies():
        image = letterbox.apply_on_device(pixels, torch.ones(3, 1, 1), torch.ones(3, 1, 1))
    assert (image.device.type, image.shape, image.dtype) == ("cuda", (3, 128, 128), torch.float32)


def test_choice_of_candidates_waits_for_their_number_alone():
    # This mode allows unknown sizes.
    with FakeTensorMode(shape_env=ShapeEnv()), torch.device("cuda"), NoBlockingCopies() as watch:
        outputs = torch.zeros(2, 100, 3), torch.zeros(2, 100, 4), torch.rand(100, 4)
        found = find_candidates(outputs, 128, 128, 0.4)
    assert {part.device.type for part in found} == {"cuda"}
    assert watch.counted == 1
