"""Convert state dicts between rwightman's `effdet` (`tf_efficientdet_d0` to `d7x`) and this project.

Both networks are google/automl's, layer by layer, so each key has a counterpart and no number changes.
(`efficientdet.convert_weights` lists the differences that weights cannot express.)
- Classes: output i is COCO category id i + 1 in both. There is no background class and no permutation.
- Anchors of a cell: all ratios of the first scale, then of the next. Header channels are ordered by anchor, within an
  anchor by class or (dy, dx, dh, dw).
- BiFPN: effdet numbers the nodes of a cell in order of computation. The inputs of a node, and so its fusion weights,
  are ordered own level, top-down, level below. P4 and P5 are projected once for each node of the first cell that
  reads them.
- Batch norms of the heads: effdet lists them by layer, this project by level.
- D6 and up fuse by plain sum: effdet has no fusion weights there, this project unused ones. D6 and D7 have equal keys.
"""

import re
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from efficientdet.config import CONFIGS
from efficientdet.model.network import BOX_HEADER, CLASS_HEADER, EfficientDet
from efficientnet.pretrained import rename_keys, timm_key

EFFDET_BOX_BIAS = "box_net.predict.conv_pw.bias"  # every detector of effdet has this key
_OUR_BACKBONE = "backbone_net.model."

# Applied in turn to our keys outside the backbone. {conv6_up} is the node's number in effdet.
_REPLACEMENTS = (
    (r"^bifpn\.(\d)\.(conv\d_(?:up|down))\.", r"fpn.cell.\1.fnode.{\2}.after_combine.conv."),
    (r"^bifpn\.(\d)\.(p\d_w[12])$", r"fpn.cell.\1.fnode.{\2}.combine.edge_weights"),
    (r"^bifpn\.0\.p3_down_channel\.", "fpn.cell.0.fnode.{conv3_up}.combine.resample.0.conv."),
    (r"^bifpn\.0\.p4_down_channel\.", "fpn.cell.0.fnode.{conv4_up}.combine.resample.1.conv."),
    (r"^bifpn\.0\.p5_down_channel\.", "fpn.cell.0.fnode.{conv5_up}.combine.resample.2.conv."),
    (r"^bifpn\.0\.p4_down_channel_2\.", "fpn.cell.0.fnode.{conv4_down}.combine.resample.1.conv."),
    (r"^bifpn\.0\.p5_down_channel_2\.", "fpn.cell.0.fnode.{conv5_down}.combine.resample.2.conv."),
    (r"^bifpn\.0\.p5_to_p6\.", "fpn.resample.3.conv."),
    (r"\.conv\.0\.conv\.", ".conv.conv."),  # the convolution of a projection
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
    """Return effdet's name of the network."""
    return "tf_efficientdet_d7x" if compound_coef == 8 else f"tf_efficientdet_d{compound_coef}"


def from_effdet(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Convert effdet's state dict, with any number of classes and anchors, to ours. Tensors are shared, not copied.

    Raises ValueError if `weights` are of another network, or incomplete, or have more entries.
    """
    levels = sum(re.fullmatch(r"box_net\.bn_rep\.0\.\d\.bn\.bias", key) is not None for key in weights)
    channels = len(weights.get("fpn.cell.0.fnode.0.after_combine.conv.conv_pw.weight", ()))
    coefs = compound_coefs_of_pyramid(levels, channels)
    if not coefs:
        raise ValueError(f"its pyramid of {levels} levels of {channels} channels is none of tf_efficientdet_d0 to d7x")
    expected = _empty_state_dict(coefs[0], weights, "class_net.predict.conv_pw.bias", EFFDET_BOX_BIAS)
    found = rename_keys(weights, _effdet_keys(coefs[0], expected), expected, effdet_name(coefs[0]))
    return {key: found[key] if key in found else torch.ones(value.shape) for key, value in expected.items()}


def to_effdet(weights: Mapping[str, Tensor], compound_coef: int) -> dict[str, Tensor]:
    """Convert our state dict to effdet's. Tensors are shared, not copied.

    Raises ValueError if `weights` have missing or additional entries.
    """
    shapes = _empty_state_dict(compound_coef, weights, f"{CLASS_HEADER}.conv.bias", f"{BOX_HEADER}.conv.bias")
    ours = {theirs: key for key, theirs in _effdet_keys(compound_coef, shapes).items()}
    unused = shapes.keys() - ours.values()
    used = {key: value for key, value in weights.items() if key not in unused}
    return rename_keys(used, ours, {theirs: shapes[key] for theirs, key in ours.items()}, f"D{compound_coef}")


def _effdet_keys(compound_coef: int, keys: Iterable[str]) -> dict[str, str]:
    """Map those of our `keys` that effdet has to effdet's."""
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
            theirs = key
            for pattern, replacement in _REPLACEMENTS:
                theirs = re.sub(pattern, replacement, theirs)
            result[key] = theirs.format(**nodes)
    return result


def compound_coefs_of_pyramid(levels: int, channels: int) -> list[int]:
    """Return the coefficients with such a pyramid: none, one, or both D6 and D7, whose weights have the same shapes."""
    pyramids = [(len(config.pyramid_levels), config.bifpn_channels) for config in CONFIGS]
    return [coef for coef, pyramid in enumerate(pyramids) if pyramid == (levels, channels)]


def _empty_state_dict(coef: int, weights: Mapping[str, Tensor], class_bias: str, box_bias: str) -> dict[str, Tensor]:
    """Return our state dict on the meta device, for the classes and anchors of the header biases in `weights`."""
    for name in (class_bias, box_bias):
        if name not in weights:
            raise ValueError(f"it lacks {name}")
    anchors = max(weights[box_bias].numel() // 4, 1)
    num_classes = max(weights[class_bias].numel() // anchors, 1)
    with torch.device("meta"):
        return EfficientDet(coef, num_classes, ratios=((1, 1),), scales=(1,) * anchors).state_dict()
