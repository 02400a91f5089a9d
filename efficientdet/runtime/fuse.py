"""Turn a trained network into an equivalent one that runs faster, for inference only."""

import copy
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from efficientdet.model.bifpn import BiFPNCell, SeparableConv
from efficientdet.model.heads import PredictionHead
from efficientdet.model.network import EfficientDet
from efficientnet.layers import SameConv2d, SameMaxPool2d
from efficientnet.model import EfficientNet, MBConvBlock
from efficientnet.padding import same_padding


def fuse_for_inference(network: EfficientDet, device: torch.device) -> EfficientDet:
    """Return a copy of `network` on `device`, with every batch norm folded into the convolution before it.

    The BiFPN's fusion weights become constants. The copy is in evaluation mode, channels-last in memory, without
    gradients, and overwrites activations in place. Its state dict no longer has the published keys.
    """
    # Any, because modules are replaced by modules of other types.
    fused: Any = copy.deepcopy(network).eval().requires_grad_(False)
    for module in list(fused.modules()):
        match module:
            case EfficientNet():
                module._bn0 = _fold(module._conv_stem, module._bn0)
            case MBConvBlock():
                if module.has_expansion:
                    module._bn0 = _fold(module._expand_conv, module._bn0)
                module._bn1 = _fold(module._depthwise_conv, module._bn1)
                if module._depthwise_conv.stride == 2 and device.type == "cpu":
                    module._depthwise_conv = _with_even_padding(module._depthwise_conv)
                module._bn2 = _fold(module._project_conv, module._bn2)
            case BiFPNCell():
                if module.fast_attention:
                    module._fuse = _constant_fusion(module)  # type: ignore[method-assign]
                for child in module.children():
                    if isinstance(child, SeparableConv):
                        child.bn = _fold(child.pointwise_conv, child.bn)
                    elif isinstance(child, nn.Sequential):  # the projection of a backbone feature
                        child[1] = _fold(child[0], child[1])
            case PredictionHead():  # levels share convolutions but not norms; folded, each has its own
                for norms in module.bn_list.children():
                    for (name, norm), conv in zip(norms.named_children(), copy.deepcopy(module.conv_list)):
                        _fold(conv.pointwise_conv, norm)
                        setattr(norms, name, conv)
                module.conv_list = nn.ModuleList(nn.Identity() for _ in module.conv_list)
            case nn.SiLU():
                module.inplace = True
    for module in list(fused.modules()):
        for name, child in module.named_children():
            if isinstance(child, SameConv2d | SameMaxPool2d):
                setattr(module, name, _with_fixed_padding(child))
    return fused.to(device, memory_format=torch.channels_last)


def _fold(conv: Any, norm: Any) -> Any:
    """Fold a batch norm into a `SameConv2d`, in place. Return the norm's replacement, which does nothing."""
    conv.conv.weight, conv.conv.bias = fuse_conv_bn_weights(
        conv.conv.weight, conv.conv.bias, norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias
    )
    return nn.Identity()


def _with_even_padding(conv: SameConv2d) -> Any:
    """Return an equivalent depthwise convolution of stride 2 that needs no padded copy of its input.

    All sides are even, so SAME padding adds one pixel more after the image than before it. With a first row and column
    of zeros in the kernel, padding is the same on both sides. Twice as fast on a CPU.
    """
    weight = F.pad(conv.conv.weight, (1, 0, 1, 0))
    channels, kernel_size = len(weight), weight.shape[-1]
    wide = nn.Conv2d(channels, channels, kernel_size, stride=2, padding=kernel_size // 2 - 1, groups=channels)
    wide.weight, wide.bias = nn.Parameter(weight, requires_grad=False), conv.conv.bias
    return wide


def _with_fixed_padding(layer: SameConv2d | SameMaxPool2d) -> nn.Module:
    """Return the layer with constant padding, so that an exported graph needs no arithmetic on shapes.

    The padding never varies, because sides are multiples of every stride.
    """
    before, after = same_padding(2 * layer.stride, layer.kernel_size, layer.stride)
    if isinstance(layer, SameConv2d) and before == after:
        layer.conv.padding = (before, before)
        return layer.conv
    unpadded = layer.conv if isinstance(layer, SameConv2d) else nn.MaxPool2d(layer.kernel_size, layer.stride)
    return nn.Sequential(nn.ZeroPad2d((before, after, before, after)), unpadded)


def _constant_fusion(cell: BiFPNCell) -> Callable[..., Tensor]:
    """Return `BiFPNCell._fuse` with precomputed weights and one pass over memory less per input."""
    weights = {name: cell.fusion_weights(name).tolist() for name, _ in cell.named_parameters(recurse=False)}

    def fuse(weight_name: str, first: Tensor, *others: Tensor) -> Tensor:
        first_weight, *other_weights = weights[weight_name]
        total = first * first_weight
        for weight, x in zip(other_weights, others):
            total.add_(x, alpha=weight)
        return F.silu(total, inplace=True)

    return fuse
