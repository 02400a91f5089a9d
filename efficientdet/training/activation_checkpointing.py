"""Training in less memory: most activations are not kept for the backward pass, which computes them once more."""

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
    """Let each MBConv block, BiFPN cell and prediction head of `network` keep only its inputs for the backward pass.

    Losses, gradients and batch norm statistics stay the same, on a CPU bit for bit, and so do modules and state dict.
    Where no gradients are wanted (evaluation, frozen parts) nothing is computed twice.
    """
    for module in network.modules():
        if isinstance(module, MBConvBlock | BiFPNCell | PredictionHead):
            contexts = partial(_contexts, module)
            # An attribute of the instance goes before the method of its class.
            forward = partial(checkpoint, module.forward, use_reentrant=False, context_fn=contexts)
            module.forward = forward  # type: ignore[method-assign]


def _contexts(module: nn.Module) -> tuple[AbstractContextManager, AbstractContextManager]:
    """What surrounds the first pass through `module`, and the second."""
    return nullcontext(), _statistics_kept(module)


@contextmanager
def _statistics_kept(module: nn.Module) -> Iterator[None]:
    """The batch norms of `module` normalise as before, but their running statistics have counted the batch already."""
    norms = [part for part in module.modules() if isinstance(part, nn.modules.batchnorm._BatchNorm)]
    before = [(norm.momentum, norm.num_batches_tracked) for norm in norms]
    for norm in norms:
        norm.momentum, norm.num_batches_tracked = 0.0, torch.zeros((), dtype=torch.int64)
    try:
        yield
    finally:
        for norm, (momentum, batches) in zip(norms, before):
            norm.momentum, norm.num_batches_tracked = momentum, batches
