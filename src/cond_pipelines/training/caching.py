"""Work done once instead of at every step, and kept on disk for the next run: VAE latents and text features.

What is kept is named by a fingerprint of all that it depends on, so it is never stale. What is random stays so: a VAE's
posterior is kept, not a draw from it; condition dropout and the choice of a caption come later.
"""

import hashlib
import itertools
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from ..data.array_file import ArrayFile, stored
from ..data.batches import Batch, signed
from ..data.draws import draw_generators
from ..data.labels import all_of
from ..data.load import TrainingData, cache_home
from ..pipelines.conditional import ConditionalPipeline
from ..pipelines.vae import sample_posterior, vae_posterior
from .conditions import ConditionEncoder
from .config import TrainingConfig
from .fingerprint import fingerprint_of
from .run import Run

_BATCH = 32


def cache_folder(config: TrainingConfig, kind: str, *depends_on: str) -> Path:
    """Where something that depends on these is kept."""
    key = hashlib.sha256("\n".join(depends_on).encode()).hexdigest()[:16]
    return cache_home(config) / f"{kind}-{key}"


# ------------------------------------------------------------------------------------------------------- latents
def cache_latents(config: TrainingConfig, data: TrainingData, pipe: ConditionalPipeline, device: torch.device) -> None:
    """Let `data.dataset` give the VAE's posterior of each image, of flipped ones too where they are, for its pixels.

    Raises:
        ValueError: there is no VAE, or what it would see is not the same at every step.
    """
    dataset = data.dataset
    if pipe.vae is None:
        raise ValueError("--cache_latents needs a VAE: give --pretrained_vae_model_name_or_path")
    if data.train is None or not dataset.center_crop:
        raise ValueError("--cache_latents needs images that are the same at every step: not --streaming, --center_crop")
    flips = (False, True) if dataset.random_flip else (False,)
    depends_on = (dataset.images_fingerprint(), fingerprint_of(pipe.vae), str(flips))

    @torch.no_grad()
    def make(_: dict[int, str]) -> Iterator[np.ndarray | None]:
        usable = set(dataset.usable.tolist())
        for rows in tqdm(_batches(list(range(len(dataset.rows)))), desc="Encoding images", unit="batch"):
            pixels = {row: dataset.centre(row) for row in rows if row in usable}  # (H, W, C) each
            posteriors: dict[tuple[int, bool], np.ndarray] = {}
            for flip, shape in itertools.product(flips, {p.shape for p in pixels.values()}):
                same_size = [row for row, p in pixels.items() if p.shape == shape]
                batch = torch.from_numpy(np.stack([pixels[row][:, ::-1] if flip else pixels[row] for row in same_size]))
                batch = signed(batch.permute(0, 3, 1, 2).contiguous().to(device))  # (B, C, H, W)
                for row, posterior in zip(same_size, vae_posterior(pipe.vae, batch).float().cpu().numpy(), strict=True):
                    posteriors[row, flip] = posterior
            yield from (posteriors.get((row, flip)) for row in rows for flip in flips)

    dataset.latents = stored(cache_folder(config, "latents", *depends_on), make)


def cache(run: Run, conditions: ConditionEncoder) -> None:
    """Keep latents and text features where --cache_latents and --cache_text_embeddings say so."""
    if run.config.cache_latents:
        cache_latents(run.config, run.data, run.pipe, run.device)
    if run.config.cache_text_embeddings:
        cache_text(run.config, run.data, conditions, run.device)


def x_0_of(pipe: ConditionalPipeline, batch: Batch, seed: int, device: torch.device) -> Tensor:
    """What the UNet learns to denoise: images, or latents drawn from the VAE's posterior; (B, C, h, w)."""
    generators = draw_generators(seed, batch.positions, device) if pipe.vae is not None else None
    if batch.latents is not None:
        return sample_posterior(pipe.vae, batch.latents.to(device, non_blocking=True), generators)
    return pipe.encode_images(batch.images(device), generators)


# ---------------------------------------------------------------------------------------------------------- text
class StoredFeatures:
    """Features of captions on disk, by their token ids; on the CPU.

    Args:
        keys: of each caption, as `ConditionEncoder.keys` makes them.
        dtypes: of each feature. file: the features of each caption in turn, as float32.
    """

    def __init__(self, keys: list[bytes], dtypes: dict[str, torch.dtype], file: ArrayFile):
        self.rows, self.dtypes, self.file = {key: row for row, key in enumerate(keys)}, dtypes, file

    def __contains__(self, key: bytes) -> bool:
        return key in self.rows

    def __getitem__(self, key: bytes) -> dict[str, Tensor]:
        first = self.rows[key] * len(self.dtypes)
        return {
            name: torch.tensor(self.file[first + number]).to(dtype)
            for number, (name, dtype) in enumerate(self.dtypes.items())
        }


def cache_text(config: TrainingConfig, data: TrainingData, conditions: ConditionEncoder, device: torch.device) -> None:
    """Let `conditions` take the frozen text encoder's features of every caption of the data from disk.

    Raises:
        ValueError: there is no frozen text encoder, or the captions are not known beforehand.
    """
    if conditions.trainable or conditions.encoder is None:
        raise ValueError("--cache_text_embeddings needs a frozen text encoder: give --text_encoder_name_or_path")
    if data.train is None:
        raise ValueError("--cache_text_embeddings needs the captions beforehand: not --streaming")
    texts = set(all_of(data.dataset.conditions()))
    text_of: dict[bytes, str] = {}
    for some in _batches(sorted(texts)):
        text_of |= zip(conditions.keys(conditions.preprocess(some)), some, strict=True)
    keys = sorted(text_of, key=lambda key: (len(key), key))  # of like length together: little padding
    one = conditions.preprocess([text_of[keys[0]]])
    dtypes = {name: x.dtype for name, x in conditions.encode_each(one, [0], device)[0].items()}

    def make(_: dict[int, str]) -> Iterator[np.ndarray]:
        for some in tqdm(_batches(keys), desc="Encoding captions", unit="batch"):
            inputs = conditions.preprocess([text_of[key] for key in some])
            for features in conditions.encode_each(inputs, list(range(len(some))), device):
                yield from (features[name].float().cpu().numpy() for name in dtypes)

    depends_on = (type(conditions.adapter).__name__, fingerprint_of(conditions.encoder), *(key.hex() for key in keys))
    conditions.stored = StoredFeatures(keys, dtypes, stored(cache_folder(config, "text", *depends_on), make))


def _batches(items: list) -> list[list]:
    return [items[start : start + _BATCH] for start in range(0, len(items), _BATCH)]
