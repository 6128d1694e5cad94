"""Networks in the shape of EDM's (Karras et al. 2022, arXiv 2206.00364, table 7), for the recipes named after them.

They are diffusers' UNet2DModel with the papers' channels, blocks, attention, dropout and embedding. Not the same as in
the papers' own code: its residual blocks divide their sum by the square root of 2, and its initial weights differ.
"""

from .unet_sizes import NetworkSize


def _unet2d(
    millions: float,
    learning_rate: float,
    channels: tuple[int, ...],
    attention: tuple[bool, ...],
    layers: int,
    head_dim: int,
    dropout: float,
    embedding: int,
) -> NetworkSize:
    """A row of UNet2DModel.

    Args:
        channels: of each level. attention: at each level; in the middle there always is one.
        layers: residual blocks of a level. dropout: within them. embedding: dimensions of that of the time.
    """
    arguments = {
        "block_out_channels": channels,
        "down_block_types": tuple("AttnDownBlock2D" if a else "DownBlock2D" for a in attention),
        "up_block_types": tuple("AttnUpBlock2D" if a else "UpBlock2D" for a in reversed(attention)),
        "layers_per_block": layers,
        "attention_head_dim": head_dim,
        "dropout": dropout,
        "resnet_time_scale_shift": "scale_shift",
        "time_embedding_dim": embedding,
        "class_embed_type": "identity",  # the adapter's vector is added to the embedding of the time
        "norm_num_groups": 32,
    }
    return NetworkSize(millions, learning_rate, arguments, "diffusers:UNet2DModel", num_halvings=len(channels) - 1)


# fmt: off
#                     millions rate channels              attention                  layers head_dim dropout embedding
CIFAR10 = _unet2d(    58, 1e-3, (256, 256, 256),      (False, True, False),        4, 256, 0.13, 512)  # DDPM++
FFHQ64 = _unet2d(     63, 2e-4, (128, 256, 256, 256), (False, False, True, False), 4, 256, 0.05, 512)  # DDPM++
IMAGENET64 = _unet2d(276, 1e-4, (192, 384, 576, 768), (False, True, True, True),   3, 64,  0.10, 768)  # ADM
# fmt: on
