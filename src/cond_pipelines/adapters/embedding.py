"""p(x|v) for any vector v of each image: CLIP's image embeddings, attributes, regression targets.

This file travels with a checkpoint. It needs adapters/base.py only.
"""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import torch
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn

from cond_pipelines.adapters.base import Conditioning, ConditioningAdapter, Features, RawConditions, zero_init

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Vector: TypeAlias = Tensor | np.ndarray | Sequence[float] | float


class EmbeddingAdapter(ConditioningAdapter):
    """p(x | a vector), as the decoder of unCLIP (Ramesh et al. 2022, arXiv 2204.06125, section 2.1) is given its image.

    The vector is normalised and passes one hidden layer. It is added to the time embedding and given as `num_tokens`
    tokens.

    Args:
        embedding_dim: of the vectors; 1 for a single number.
        mean, std: one number, or one for each dimension, that are taken off and divided by. Default: 0 and 1, until
            `fit` has seen data. They are saved with the weights.
        num_tokens, hidden_dim: of the network.
        token_dim, pooled_dim: the UNet's socket; see `for_unet`.

    Raises:
        ValueError: for a vector of another length, or one that is not finite; None means no condition.

    Example:
        >>> adapter = EmbeddingAdapter.for_unet(unet, embedding_dim=512).fit(clip_embeddings)  # (N, 512)
        >>> pipe = ConditionalPipeline(unet, scheduler, adapter)  # then trained
        >>> a, b = clip.get_image_features(**processor(images=[one, other], return_tensors="pt"))  # (512,) each
        >>> variations = pipe([a] * 8).images
        >>> in_between = pipe([torch.lerp(a, b, w) for w in (0.0, 0.25, 0.5, 0.75, 1.0)]).images
    """

    conditioning = "embedding"

    @register_to_config
    def __init__(
        self,
        embedding_dim: int,
        mean: float | list[float] | None = None,
        std: float | list[float] | None = None,
        num_tokens: int = 4,
        hidden_dim: int = 256,
        token_dim: int | None = None,
        pooled_dim: int | None = None,
    ):
        super().__init__()
        shift = torch.zeros(embedding_dim) if mean is None else torch.tensor(mean).float()
        scale = torch.ones(embedding_dim) if std is None else torch.tensor(std).float()
        self.register_buffer("data_mean", shift.expand(embedding_dim).clone())  # (D,)
        self.register_buffer("data_std", scale.expand(embedding_dim).clone())  # (D,)
        self.hidden = nn.Sequential(nn.Linear(embedding_dim, hidden_dim), nn.SiLU())
        if token_dim is not None:
            self.token_proj = zero_init(nn.Linear(hidden_dim, num_tokens * token_dim))
        if pooled_dim is not None:
            self.pooled_proj = zero_init(nn.Linear(hidden_dim, pooled_dim))

    def fit(self, embeddings: Iterable[Vector]) -> "EmbeddingAdapter":
        """Take mean and standard deviation from data: vectors (N, D), as `preprocess` takes them. Returns itself."""
        vectors = self.preprocess(list(embeddings))
        known = vectors["vector"][vectors["known"]].double()  # (N, D)
        if not len(known):
            raise ValueError("there is no embedding to take the mean of: all are None")
        std = known.std(dim=0, correction=0)
        self.data_mean.copy_(known.mean(dim=0))
        self.data_std.copy_(torch.where(std > 0, std, 1.0))  # a dimension that never varies
        return self

    def vector_of(self, raw: Vector | None) -> Tensor | None:
        """One raw condition to a vector (D,); None for None. Raises ValueError."""
        if raw is None:
            return None
        vector = torch.as_tensor(raw, dtype=torch.float32).detach().cpu().reshape(-1)
        if len(vector) != self.config.embedding_dim:
            raise ValueError(f"an embedding of {len(vector)} numbers, and this model takes {self.config.embedding_dim}")
        if not vector.isfinite().all():
            raise ValueError("an embedding with a number that is not finite; None means no condition")
        return vector

    def preprocess(self, raw: RawConditions, processor: "PreTrainedTokenizerBase | None" = None) -> Features:
        vectors = [self.vector_of(value) for value in raw]
        nothing = torch.zeros(self.config.embedding_dim)
        return {
            "vector": torch.stack([nothing if v is None else v for v in vectors]),  # (B, D)
            "known": torch.tensor([v is not None for v in vectors]),  # (B,)
        }

    def forward(self, features: Features) -> Conditioning:
        known = features["known"][:, None]  # (B, 1)
        hidden = self.hidden((features["vector"] - self.data_mean) / self.data_std)  # (B, hidden_dim)
        tokens = pooled = None
        if self.config.token_dim is not None:
            tokens = (self.token_proj(hidden) * known).reshape(
                hidden.shape[0], self.config.num_tokens, -1
            )  # (B, T, token_dim)
        if self.config.pooled_dim is not None:
            pooled = self.pooled_proj(hidden) * known  # (B, pooled_dim)
        return self.to_conditioning(tokens, None, pooled)
