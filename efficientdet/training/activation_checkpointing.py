"""Train in less memory: recompute most activations in the backward pass instead of keeping them."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from efficientdet.model.bifpn import BiFPNCell
from efficientdet.model.heads import PredictionHead
from efficientdet.model.network import EfficientDet
from efficientnet.model import MBConvBlock


def checkpoint_activations(network: EfficientDet) -> None:
    """Make each MBConv block, BiFPN cell and prediction head of `network` keep only its inputs for the backward pass.

    Losses, gradients and batch norm statistics are unchanged, on a CPU bit for bit, and so are modules and state dict.
    Nothing is computed twice where no gradients are needed (evaluation, frozen parts).
    """
    for module in network.modules():
        if isinstance(module, MBConvBlock | BiFPNCell | PredictionHead):
            contexts = partial(_forward_and_recompute, module)
            # An attribute of the instance takes precedence over the method of its class.
            forward = partial(checkpoint, module.forward, use_reentrant=False, context_fn=contexts)
            module.forward = forward  # type: ignore[method-assign]


def _forward_and_recompute(module: nn.Module) -> tuple[AbstractContextManager, AbstractContextManager]:
    """Return the contexts of the forward pass through `module` and of its recomputation."""
    return nullcontext(), _frozen_statistics(module)


@contextmanager
def _frozen_statistics(module: nn.Module) -> Iterator[None]:
    """Let the batch norms of `module` normalize as before without counting the batch in their statistics again."""
    norms = [part for part in module.modules() if isinstance(part, nn.modules.batchnorm._BatchNorm)]
    before = [(norm.momentum, norm.num_batches_tracked) for norm in norms]
    for norm in norms:
        norm.momentum, norm.num_batches_tracked = 0.0, torch.zeros((), dtype=torch.int64)
    try:
        yield
    finally:
        for norm, (momentum, batches) in zip(norms, before):
            norm.momentum, norm.num_batches_tracked = momentum, batches
