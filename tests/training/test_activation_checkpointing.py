"""Checkpointed activations: less is kept, and nothing else changes by a single bit."""

import copy

import pytest
import torch
from scripts import untrained
from torch import nn
from torch.multiprocessing.reductions import StorageWeakRef

from efficientdet.data.loader import Batch
from efficientdet.model.loss import DetectionLoss
from efficientdet.model.network import EfficientDet
from efficientdet.runtime.fuse import fuse_for_inference
from efficientdet.structures import Targets
from efficientdet.training.activation_checkpointing import checkpoint_activations
from efficientdet.training.step import TrainingStep, set_training_mode

CPU = torch.device("cpu")


@pytest.fixture
def networks() -> tuple[EfficientDet, EfficientDet]:
    """Two networks of the same weights in training mode, the second checkpointed."""
    plain, checkpointed = untrained().train(), untrained().train()
    checkpoint_activations(checkpointed)
    return plain, checkpointed


def batch(seed: int, dtype: torch.dtype = torch.float32) -> Batch:
    images = torch.randn(2, 3, 128, 128, generator=torch.Generator().manual_seed(seed), dtype=dtype)
    boxes = torch.tensor([[[10.0, 10, 60, 50]], [[30, 40, 100, 120]]], dtype=dtype)
    return Batch(images, Targets(boxes, torch.tensor([[0], [1]])), [], [1, 2])


def assert_same(actual: object, expected: object) -> None:
    torch.testing.assert_close(actual, expected, rtol=0, atol=0)


def calls(module: nn.Module) -> list[None]:
    """A list that grows with each pass through `module`."""
    counted: list[None] = []
    module.register_forward_hook(lambda *_: counted.append(None))
    return counted


@pytest.mark.parametrize(
    ("dtype", "amp", "freeze_bn"),
    [
        (torch.float64, None, False),
        (torch.float32, None, False),
        (torch.float32, torch.bfloat16, False),
        (torch.float32, torch.bfloat16, True),
    ],
)
def test_step_changes_the_same_by_the_same(networks, dtype, amp, freeze_bn):
    outcomes = []
    for network in networks:
        network.to(dtype, memory_format=torch.channels_last)
        set_training_mode(network, freeze_bn=freeze_bn)
        step = TrainingStep(network, DetectionLoss(), torch.optim.SGD(network.parameters(), 0.1), amp)
        torch.manual_seed(3)  # of drop-connect
        result = step([batch(0, dtype), batch(1, dtype)])
        gradients = {name: parameter.grad for name, parameter in network.named_parameters()}
        outcomes.append((network.state_dict(), gradients, tuple(result.losses), tuple(result.outputs)))
        outcomes[-1] += (result.gradient_norm, torch.get_rng_state())
    assert_same(outcomes[1], outcomes[0])
    assert outcomes[0][4] > 0
    batches_seen = outcomes[1][0]["backbone_net.model._blocks.3._bn1.num_batches_tracked"]
    assert batches_seen == (0 if freeze_bn else 2)


def test_drop_connect_had_a_part_in_that(networks):
    losses = []
    for seed in (3, 4):
        torch.manual_seed(seed)
        losses.append(networks[1](batch(0).images).class_logits.sum().item())
    assert losses[0] != losses[1]


def kept_bytes(network: EfficientDet) -> int:
    """Bytes of all modules' outputs that wait for the backward pass when the forward pass has ended."""
    outputs: dict[StorageWeakRef, int] = {}

    def note(module: nn.Module, inputs: object, output: object) -> None:
        for tensor in output if isinstance(output, list | tuple) else [output]:
            storage = tensor.untyped_storage()
            outputs[StorageWeakRef(storage)] = storage.nbytes()

    for module in network.modules():
        module.register_forward_hook(note)
    result = network(batch(0).images)
    kept = sum(size for storage, size in outputs.items() if not storage.expired())
    assert result.class_logits.requires_grad
    return kept


def test_a_fraction_of_the_activations_is_kept(networks):
    plain, checkpointed = map(kept_bytes, networks)
    assert checkpointed < 0.3 * plain, (checkpointed, plain)


def test_modules_and_state_dict_stay_the_same(networks):
    plain, checkpointed = networks
    assert list(checkpointed.state_dict()) == list(plain.state_dict())
    assert [(name, type(part)) for name, part in checkpointed.named_modules()] == [
        (name, type(part)) for name, part in plain.named_modules()
    ]


def test_frozen_parts_are_computed_once(networks):
    network = networks[1]
    set_training_mode(network, head_only=True)
    in_backbone, in_head = calls(network.backbone_net["model"]._blocks[3]._bn1), calls(network.regressor.conv_list[0])
    trainable = [parameter for parameter in network.parameters() if parameter.requires_grad]
    TrainingStep(network, DetectionLoss(), torch.optim.SGD(trainable, 0.1))([batch(0)])
    assert len(in_backbone) == 1
    assert len(in_head) == 2 * 5  # levels


def test_evaluation_computes_the_same_once(networks):
    counted = calls(networks[1].regressor.conv_list[0])
    with torch.no_grad():
        plain, checkpointed = (network.eval()(batch(0).images) for network in networks)
    assert_same(tuple(checkpointed), tuple(plain))
    assert len(counted) == 5


def test_copies_are_networks_of_their_own(networks):
    plain, checkpointed = networks
    copied = copy.deepcopy(checkpointed).eval()
    fused = fuse_for_inference(checkpointed, CPU)
    with torch.no_grad():
        for parameter in checkpointed.parameters():
            parameter.zero_()
        assert_same(tuple(copied(batch(0).images)), tuple(plain.eval()(batch(0).images)))
        assert_same(tuple(fused(batch(0).images)), tuple(fuse_for_inference(plain, CPU)(batch(0).images)))


def test_an_error_in_the_second_pass_leaves_the_batch_norms_as_they_were(networks):
    network = networks[1]
    norm = network.backbone_net["model"]._blocks[3]._bn1
    counted = calls(norm)

    def fail(*_) -> None:
        if len(counted) == 2:
            raise torch.OutOfMemoryError("out of memory in the second pass")

    norm.register_forward_hook(fail)
    batches_seen = norm.num_batches_tracked
    with pytest.raises(torch.OutOfMemoryError, match="second pass"):
        network(batch(0).images).class_logits.sum().backward()
    assert norm.momentum == 0.01 and norm.num_batches_tracked is batches_seen and batches_seen == 1
