"""Weights of rwightman's `effdet`, its `tf_efficientdet_d0` to `d7x`, under our keys, and ours under its keys.

Both networks are google/automl's, layer by layer, so a key has its counterpart and no number changes:
- Classes: output i is label i + 1, for COCO category id i + 1 as here. No background, no permutation.
- Anchors in a cell: scale by scale, in each the (width, height) ratios, as here. A header's channels are anchor by
  anchor, in each the classes, or (dy, dx, dh, dw).
- BiFPN: effdet numbers a cell's nodes as they are computed. A node's inputs, and so its fusion weights, come in the
  order own level, way down, level below. P4 and P5 are projected once for each node of the first cell that reads them.
- Batch norms of the heads: effdet lists them layer by layer, we level by level.
- D6 and up add plainly: effdet has no fusion weights there, ours are unused ones. D6 and D7 have the same keys.

What no weight can make up for is in `efficientdet.convert_weights`.
"""

import re
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from efficientdet.config import CONFIGS
from efficientdet.model.network import EfficientDet
from efficientnet.pretrained import renamed, timm_key

EFFDET_MARK = "box_net.predict.conv_pw.bias"  # a key of every detector of effdet's
_EFFDET_HEADERS = ("class_net.predict.conv_pw.bias", EFFDET_MARK)
_OUR_HEADERS = ("classifier.header.pointwise_conv.conv.bias", "regressor.header.pointwise_conv.conv.bias")
_OUR_BACKBONE = "backbone_net.model."
_FIRST_NODE = "fpn.cell.0.fnode.0.after_combine.conv.conv_pw.weight"

# Outside the backbone: what is replaced in one of our keys, row after row. {conv6_up} stands for the node's number.
_REPLACEMENTS = (
    (r"^bifpn\.(\d)\.(conv\d_(?:up|down))\.", r"fpn.cell.\1.fnode.{\2}.after_combine.conv."),
    (r"^bifpn\.(\d)\.(p\d_w[12])$", r"fpn.cell.\1.fnode.{\2}.combine.edge_weights"),
    (r"^bifpn\.0\.p3_down_channel\.", "fpn.cell.0.fnode.{conv3_up}.combine.resample.0.conv."),
    (r"^bifpn\.0\.p4_down_channel\.", "fpn.cell.0.fnode.{conv4_up}.combine.resample.1.conv."),
    (r"^bifpn\.0\.p5_down_channel\.", "fpn.cell.0.fnode.{conv5_up}.combine.resample.2.conv."),
    (r"^bifpn\.0\.p4_down_channel_2\.", "fpn.cell.0.fnode.{conv4_down}.combine.resample.1.conv."),
    (r"^bifpn\.0\.p5_down_channel_2\.", "fpn.cell.0.fnode.{conv5_down}.combine.resample.2.conv."),
    (r"^bifpn\.0\.p5_to_p6\.", "fpn.resample.3.conv."),
    (r"\.conv\.0\.conv\.", ".conv.conv."),  # a projection's convolution
    (r"\.conv\.1\.", ".conv.bn."),  # and its batch norm
    (r"^classifier\.", "class_net."),
    (r"^regressor\.", "box_net."),
    (r"\.conv_list\.", ".conv_rep."),
    (r"\.bn_list\.(\d)\.(\d)\.", r".bn_rep.\2.\1.bn."),
    (r"\.header\.", ".predict."),
    (r"\.depthwise_conv\.conv\.", ".conv_dw."),
    (r"\.pointwise_conv\.conv\.", ".conv_pw."),
)


def effdet_name(compound_coef: int) -> str:
    """What effdet calls the network of a coefficient."""
    return "tf_efficientdet_d7x" if compound_coef == 8 else f"tf_efficientdet_d{compound_coef}"


def from_effdet(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Our state dict from one of effdet's, for any number of classes and of anchors. Its tensors are `weights`' own.

    Raises ValueError when `weights` belong to another network, or lack or exceed something.
    """
    compound_coef = _guess_compound_coef(weights)
    expected = _without_numbers(compound_coef, weights, _EFFDET_HEADERS)
    found = renamed(weights, _effdet_keys(compound_coef, expected), expected, effdet_name(compound_coef))
    return {key: found[key] if key in found else torch.ones(value.shape) for key, value in expected.items()}


def to_effdet(weights: Mapping[str, Tensor], compound_coef: int) -> dict[str, Tensor]:
    """effdet's state dict from ours of that coefficient. Its tensors are `weights`' own.

    Raises ValueError when `weights` lack or exceed something.
    """
    shapes = _without_numbers(compound_coef, weights, _OUR_HEADERS)
    keys = _effdet_keys(compound_coef, shapes)
    unused = shapes.keys() - keys.keys()
    used = {key: value for key, value in weights.items() if key not in unused}
    expected = {theirs: shapes[ours] for ours, theirs in keys.items()}
    return renamed(used, {theirs: ours for ours, theirs in keys.items()}, expected, f"D{compound_coef}")


def _effdet_keys(compound_coef: int, keys: Iterable[str]) -> dict[str, str]:
    """Those of our `keys` that effdet has, too -> effdet's."""
    config = CONFIGS[compound_coef]
    levels = config.pyramid_levels
    order = [(f"conv{level}_up", f"p{level}_w1") for level in reversed(levels[:-1])]
    order += [(f"conv{level}_down", f"p{level}_w2") for level in levels[1:]]
    nodes = {name: number for number, names in enumerate(order) for name in names}

    result = {}
    for key in keys:
        if key.startswith(_OUR_BACKBONE):
            result[key] = f"backbone.{timm_key(key.removeprefix(_OUR_BACKBONE), config.backbone)}"
        elif config.fast_attention or not re.search(r"\.p\d_w[12]$", key):
            result[key] = _replaced(key).format(**nodes)
    return result


def _replaced(key: str) -> str:
    """`key` after `_REPLACEMENTS`."""
    for pattern, replacement in _REPLACEMENTS:
        key = re.sub(pattern, replacement, key)
    return key


def _guess_compound_coef(weights: Mapping[str, Tensor]) -> int:
    """The smallest coefficient with as many channels and levels. ValueError when there is none."""
    width = len(weights.get(_FIRST_NODE, ()))
    levels = sum(re.fullmatch(r"box_net\.bn_rep\.0\.\d\.bn\.bias", key) is not None for key in weights)
    for compound_coef, config in enumerate(CONFIGS):
        if (config.bifpn_channels, len(config.pyramid_levels)) == (width, levels):
            return compound_coef
    raise ValueError(f"its pyramid has {levels} levels of {width} channels")


def _without_numbers(compound_coef: int, weights: Mapping[str, Tensor], headers: tuple[str, str]) -> dict[str, Tensor]:
    """Our state dict on the meta device, for as many classes and anchors as the biases named `headers` are for."""
    for name in headers:
        if name not in weights:
            raise ValueError(f"it lacks {name}")
    class_outputs, box_outputs = (weights[name].numel() for name in headers)
    anchors = max(box_outputs // 4, 1)
    with torch.device("meta"):
        network = EfficientDet(compound_coef, max(class_outputs // anchors, 1), ratios=((1, 1),), scales=(1,) * anchors)
    return network.state_dict()
