"""Another backbone in one file: a small U-ViT (Bao et al. 2023, arXiv 2209.12152), in which everything is a token.

Its `forward` takes what UNet2DConditionModel's takes, its configuration has the names of that one's socket, and
`size_multiple` says which sizes it takes. That is all that pipelines, adapters and training need. `TINY_UVIT` is a row
of the table of sizes, outside of it: `--unet_size tiny_uvit:TINY_UVIT` trains a new one.
"""

import torch
from diffusers import ModelMixin
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.embeddings import TimestepEmbedding, Timesteps
from torch import Tensor, nn

from cond_pipelines.networks.unet_sizes import NetworkSize


class TinyUViT(ModelMixin, ConfigMixin):
    @register_to_config
    def __init__(
        self,
        sample_size: int = 8,
        in_channels: int = 3,
        patch_size: int = 2,
        hidden_size: int = 16,
        cross_attention_dim: int = 8,
        projection_class_embeddings_input_dim: int = 12,
    ):
        super().__init__()
        self.size_multiple = patch_size
        self.time_proj = Timesteps(hidden_size, flip_sin_to_cos=True, downscale_freq_shift=0)
        self.time_embedding = TimestepEmbedding(hidden_size, hidden_size)
        self.pooled_in = nn.Linear(projection_class_embeddings_input_dim, hidden_size)
        self.token_in = nn.Linear(cross_attention_dim, hidden_size)
        self.patch_in = nn.Conv2d(in_channels, hidden_size, patch_size, stride=patch_size)
        self.position = nn.Parameter(torch.randn(1, (sample_size // patch_size) ** 2, hidden_size))
        layers = [nn.TransformerEncoderLayer(hidden_size, 2, 32, 0.0, batch_first=True) for _ in range(2)]
        self.down, self.up = layers
        self.skip = nn.Linear(2 * hidden_size, hidden_size)
        self.patch_out = nn.ConvTranspose2d(hidden_size, in_channels, patch_size, stride=patch_size)

    def forward(
        self,
        sample: Tensor,
        timestep: Tensor,
        encoder_hidden_states: Tensor,
        encoder_attention_mask: Tensor | None = None,
        class_labels: Tensor | None = None,
        return_dict: bool = True,
    ) -> tuple[Tensor]:
        batch_size, _, height, width = sample.shape
        size = height // self.size_multiple, width // self.size_multiple
        time = self.time_embedding(self.time_proj(timestep.expand(batch_size)).to(sample.dtype))  # (B, D)
        time = time + self.pooled_in(class_labels)
        condition = torch.cat([time[:, None], self.token_in(encoder_hidden_states)], dim=1)  # (B, 1 + L, D)
        patches = self.patch_in(sample).flatten(2).transpose(1, 2) + self.position  # (B, N, D)
        x = torch.cat([condition, patches], dim=1)  # (B, 1 + L + N, D)
        ignored = None
        if encoder_attention_mask is not None:
            others = encoder_attention_mask.new_zeros(batch_size, 1 + patches.shape[1])
            ignored = torch.cat([others[:, :1], ~encoder_attention_mask, others[:, 1:]], dim=1)
        first = self.down(x, src_key_padding_mask=ignored)
        x = self.up(self.skip(torch.cat([first, x], dim=2)), src_key_padding_mask=ignored)
        image = x[:, condition.shape[1] :].transpose(1, 2).unflatten(2, size)  # (B, D, h, w)
        return (self.patch_out(image),)


TINY_UVIT = NetworkSize(0.01, 3e-3, {"hidden_size": 16}, TinyUViT, num_halvings=1)  # --unet_size tiny_uvit:TINY_UVIT
