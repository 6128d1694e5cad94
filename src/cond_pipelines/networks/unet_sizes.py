"""One aligned table of UNet sizes, all diffusers' own `UNet2DConditionModel` with the same kind of socket."""

from diffusers import UNet2DConditionModel

# fmt: off
#        block_out_channels          attention at level     layers  head_dim  token_dim  pooled_dim
_SIZES = {
    # Every size also has attention in its middle. More of it costs a small CPU more than it gives.
    "xxs": ((32, 64),                (False, True),              1,       32,        64,         64),  # tests
    "xs":  ((48, 96),                (False, False),             1,       32,        96,         96),  # 8 px
    "s":   ((32, 64, 128),           (False, False, False),      1,       32,       128,        128),  # 16 to 32 px
    "m":   ((64, 128, 256),          (False, False, True),       1,       32,       256,        256),
    "l":   ((128, 256, 384, 512),    (False, True, True, True),  2,       64,       512,        512),
    "xl":  ((192, 384, 576, 768),    (False, True, True, True),  3,       64,       768,        768),  # ADM
    "xxl": ((320, 640, 1280, 1280),  (True, True, True, False),  2,       64,       768,       1280),  # SD
}
# fmt: on

UNET_SIZES = tuple(_SIZES)


def build_unet(
    size: str = "s", *, sample_size: int | tuple[int, int] = 32, channels: int = 3, **overrides: object
) -> UNet2DConditionModel:
    """A new UNet of a named size with random weights.

    Args:
        size: one of UNET_SIZES; see the table above.
        sample_size: height and width of what it denoises, in pixels (or in latent pixels with a VAE).
        channels: of what it denoises: 1 gray, 3 RGB, 4 RGBA or Stable Diffusion's latents.
        overrides: any argument of UNet2DConditionModel.

    Raises:
        ValueError: unknown size, or a sample_size too small for the number of levels.

    Example:
        >>> unet = build_unet("s", sample_size=32, channels=3)
        >>> unet.config.cross_attention_dim, unet.config.projection_class_embeddings_input_dim  # the socket
        (128, 128)
    """
    if size not in _SIZES:
        raise ValueError(f"unknown UNet size {size!r}; choose one of {', '.join(UNET_SIZES)}")
    block_out_channels, attention, layers_per_block, head_dim, token_dim, pooled_dim = _SIZES[size]
    shortest = min(sample_size) if isinstance(sample_size, tuple | list) else sample_size
    levels = len(block_out_channels)
    if shortest < 2 ** (levels - 1):
        raise ValueError(f"UNet size {size!r} halves {levels - 1} times: sample_size {sample_size} is too small")
    return UNet2DConditionModel(
        **{
            "sample_size": sample_size,
            "in_channels": channels,
            "out_channels": channels,
            "block_out_channels": block_out_channels,
            "down_block_types": tuple("CrossAttnDownBlock2D" if a else "DownBlock2D" for a in attention),
            "up_block_types": tuple("CrossAttnUpBlock2D" if a else "UpBlock2D" for a in reversed(attention)),
            "layers_per_block": layers_per_block,
            # diffusers reads this argument as the NUMBER of heads (its issue 2011).
            "attention_head_dim": tuple(max(1, c // head_dim) for c in block_out_channels),
            # With the usual 32, a layer of 32 channels forgets the mean of each of them, so its colours: on the drawn
            # shapes, in equal time, a class-conditional model had 32 % of its shapes right with 32 groups, 58 % with 8.
            "norm_num_groups": min(32, block_out_channels[0] // 4),
            "cross_attention_dim": token_dim,
            "class_embed_type": "projection",
            "projection_class_embeddings_input_dim": pooled_dim,
        }
        | overrides
    )
