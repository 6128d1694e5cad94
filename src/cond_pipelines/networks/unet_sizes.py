"""One table of network sizes. A new size, or another backbone, is one row.

Nothing heavy is imported before a network is built, so that `--help` can name the sizes at once.
"""

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ..user_code import load_object

if TYPE_CHECKING:
    from diffusers import ModelMixin


@dataclass(frozen=True)
class NetworkSize:
    """A row: how a new network is made, and what suits it.

    Args:
        millions: of parameters, about; a pretrained network takes the learning rate of the row nearest to it.
        learning_rate: peak of AdamW for new weights.
        arguments: of the backbone's constructor, except `sample_size`, `in_channels` and `out_channels`.
        backbone: the class, or "module:Class". Which inputs it needs stands in `adapters/denoiser.py`.
        num_halvings: how often it halves height and width; the sample size must be at least 2 ** num_halvings.

    Example:
        >>> TINY = NetworkSize(0.1, 1e-3, {"hidden_size": 64}, "my_package:UViT")  # --unet_size my_package:TINY
    """

    millions: float
    learning_rate: float
    arguments: Mapping[str, object] = field(default_factory=dict)
    backbone: "str | type[ModelMixin]" = "diffusers:UNet2DConditionModel"
    num_halvings: int = 0

    def build(self, sample_size: int | tuple[int, int], channels: int, **overrides: object) -> "ModelMixin":
        """A new network for images or latents of this size, with random weights."""
        backbone = load_object(self.backbone) if isinstance(self.backbone, str) else self.backbone
        shape: dict[str, object] = {"sample_size": sample_size, "in_channels": channels}
        if "out_channels" in inspect.signature(backbone).parameters:
            shape["out_channels"] = channels
        network: ModelMixin = backbone(**shape | dict(self.arguments) | overrides)
        return network


def _unet(
    millions: float,
    learning_rate: float,
    channels: tuple[int, ...],
    attention: tuple[bool, ...],
    layers: int | tuple[int, ...],
    head_dim: int,
    socket: tuple[int, int],
    groups: int | None = None,
) -> NetworkSize:
    """A row of UNet2DConditionModel.

    Args:
        channels: of each level. attention: at each level; in the middle there always is one.
        layers: residual blocks of every level, or of each; 0: it only halves, and the way up has one block there.
        socket: (token_dim, pooled_dim), which every adapter fits. groups: of the group norms; None: see below.
    """
    arguments = {
        "block_out_channels": channels,
        "down_block_types": tuple("CrossAttnDownBlock2D" if a else "DownBlock2D" for a in attention),
        "up_block_types": tuple("CrossAttnUpBlock2D" if a else "UpBlock2D" for a in reversed(attention)),
        "layers_per_block": layers,
        # diffusers reads this argument as the NUMBER of heads (its issue 2011).
        "attention_head_dim": tuple(max(1, c // head_dim) for c in channels),
        # With the usual 32, a layer of 32 channels forgets the mean of each of them, so its colours: on the drawn
        # shapes, in equal time, a class-conditional model had 32 % of its shapes right with 32 groups, 58 % with 8.
        "norm_num_groups": groups or min(32, channels[0] // 4),
        "cross_attention_dim": socket[0],
        "class_embed_type": "projection",
        "projection_class_embeddings_input_dim": socket[1],
    }
    return NetworkSize(millions, learning_rate, arguments, num_halvings=len(channels) - 1)


# fmt: off
# More attention costs a small CPU more than it gives.
#             millions  rate  channels                attention at level         layers head_dim socket
SIZES = {
    "xxs": _unet(1.0,   2e-3, (32, 64),               (False, True),              1,    32,  (64, 64)),    # tests
    "xs":  _unet(1.7,   2e-3, (48, 96),               (False, False),             1,    32,  (96, 96)),    # 8 px
    "s":   _unet(2.8,   2e-3, (32, 64, 128),          (False, False, False),      1,    32,  (128, 128)),  # 16 px
    # "s" spends most of its time at full size; "s32" has one block there, and learns sooner. One group a norm suits
    # channels_last, with which a CPU's convolutions are faster.
    "s32": _unet(3.5,   2e-3, (32, 48, 96, 128),      (False,) * 4, (0, 1, 1, 1),       32,  (128, 128), 1),  # 32 px
    "m":   _unet(16,    8e-4, (64, 128, 256),         (False, False, True),       1,    32,  (256, 256)),
    "l":   _unet(139,   2e-4, (128, 256, 384, 512),   (False, True, True, True),  2,    64,  (512, 512)),
    "xl":  _unet(416,   1e-4, (192, 384, 576, 768),   (False, True, True, True),  3,    64,  (768, 768)),  # ADM
    "xxl": _unet(863,   1e-4, (320, 640, 1280, 1280), (True, True, True, False),  2,    64,  (768, 1280)), # SD
}
# fmt: on
UNET_SIZES = tuple(SIZES)


def find_size(name: str) -> NetworkSize:
    """A row by its name, or a third party's by its import path.

    Raises:
        ValueError: there is no such row.

    Example:
        >>> find_size("s").learning_rate, find_size("my_package:TINY").millions
        (0.002, 0.1)
    """
    if name in SIZES:
        return SIZES[name]
    if ":" not in name:
        raise ValueError(f"--unet_size {name!r} is not one of {', '.join(UNET_SIZES)}, nor module:SIZE")
    size: NetworkSize = load_object(name, instance_of=NetworkSize)
    return size


def nearest_size(num_parameters: float) -> NetworkSize:
    """The row whose number of parameters is nearest, as a factor."""
    return min(SIZES.values(), key=lambda row: max(ratio := num_parameters / (1e6 * row.millions), 1 / ratio))


def build_unet(
    size: str = "s", *, sample_size: int | tuple[int, int] = 32, channels: int = 3, **overrides: object
) -> "ModelMixin":
    """A new network of a named size with random weights.

    Args:
        size: one of UNET_SIZES, or module:SIZE; see the table above.
        sample_size: height and width of what it denoises, in pixels (or in latent pixels with a VAE).
        channels: of what it denoises: 1 gray, 3 RGB, 4 RGBA or Stable Diffusion's latents.
        overrides: any argument of the network's constructor.

    Raises:
        ValueError: unknown size, or a sample_size too small for it.

    Example:
        >>> unet = build_unet("s", sample_size=32, channels=3)
        >>> unet.config.cross_attention_dim, unet.config.projection_class_embeddings_input_dim  # the socket
        (128, 128)
    """
    row = find_size(size)
    shortest = min(sample_size) if isinstance(sample_size, tuple | list) else sample_size
    if shortest < 2**row.num_halvings:
        raise ValueError(f"UNet size {size!r} halves {row.num_halvings} times: sample_size {sample_size} is too small")
    return row.build(sample_size, channels, **overrides)
