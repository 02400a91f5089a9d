"""The EfficientDet family, D0 to D7X: input sizes, widths, depths and anchors, and the default thresholds."""

from dataclasses import dataclass


@dataclass(frozen=True)
class ModelConfig:
    """One row of the family's table (EfficientDet paper, table 1; google/automl for D7X)."""

    backbone: int  # EfficientNet B-index
    input_size: int  # side of the square input that the published weights were trained on, in pixels
    bifpn_channels: int
    bifpn_cells: int
    head_layers: int
    fast_attention: bool  # fast normalized fusion; D6 and larger networks use a plain sum
    pyramid_levels: tuple[int, ...] = (3, 4, 5, 6, 7)  # level l has stride 2 ** l
    anchor_scale: float = 4.0  # side of the basic square anchor, in strides

    @property
    def size_divisor(self) -> int:
        """The stride of the coarsest level, of which the input's sides must be multiples."""
        return 2 ** self.pyramid_levels[-1]

    def input_shape(self, image_size: int | tuple[int, int] | None = None) -> tuple[int, int]:
        """Return the (height, width) of the input for `image_size`: one side or (height, width), in pixels.

        Sides are rounded up to multiples of `size_divisor`; None selects `input_size`. ValueError if a side is below 1.
        """
        image_size = self.input_size if image_size is None else image_size
        sides = (image_size, image_size) if isinstance(image_size, int) else image_size
        if min(sides) < 1:
            raise ValueError(f"the sides of the input must be 1 pixel or more, not {sides[0]} x {sides[1]}")
        height, width = (-(-side // self.size_divisor) * self.size_divisor for side in sides)
        return height, width


# Indexed by the compound coefficient. D7X is 8, as in the published file names.
CONFIGS = (
    ModelConfig(0, 512, 64, 3, 3, True),
    ModelConfig(1, 640, 88, 4, 3, True),
    ModelConfig(2, 768, 112, 5, 3, True),
    ModelConfig(3, 896, 160, 6, 4, True),
    ModelConfig(4, 1024, 224, 7, 4, True),
    ModelConfig(5, 1280, 288, 7, 4, True),
    ModelConfig(6, 1280, 384, 8, 5, False),
    ModelConfig(6, 1536, 384, 8, 5, False, anchor_scale=5.0),
    ModelConfig(7, 1536, 384, 8, 5, False, pyramid_levels=(3, 4, 5, 6, 7, 8)),
)

# The anchors of the published weights: sizes within an octave, and (width, height) factors.
ANCHOR_SCALES = (2**0, 2 ** (1 / 3), 2 ** (2 / 3))
ANCHOR_RATIOS = ((1.0, 1.0), (1.4, 0.7), (0.7, 1.4))

DEMO_SCORE_THRESHOLD = 0.2
DEMO_IOU_THRESHOLD = 0.2
EVALUATION_SCORE_THRESHOLD = 0.05
EVALUATION_IOU_THRESHOLD = 0.5
AUTOML_SCORE_THRESHOLD = 0.001  # google/automl's evaluation
AUTOML_MAX_DETECTIONS = 100


def model_config(compound_coef: int) -> ModelConfig:
    """Return the configuration of D`compound_coef`. Raises ValueError if no such network exists."""
    if isinstance(compound_coef, bool) or not isinstance(compound_coef, int) or not 0 <= compound_coef < len(CONFIGS):
        raise ValueError(f"compound_coef must be an integer from 0 (D0) to 8 (D7X), not {compound_coef!r}")
    return CONFIGS[compound_coef]


def check_image_size(compound_coef: int, height: int, width: int) -> None:
    """Raise ValueError unless D`compound_coef` accepts an input of `height` x `width` pixels."""
    divisor = model_config(compound_coef).size_divisor
    if height < 1 or width < 1 or height % divisor or width % divisor:
        sizes = f"multiples of {divisor} pixels, not {height} x {width} (height x width)"
        raise ValueError(f"the sides of the input of D{compound_coef} must be {sizes}")
