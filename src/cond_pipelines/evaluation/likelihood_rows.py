"""What a model makes of images that it has not drawn: how likely they are, and which class they have."""

import numpy as np
import torch

from ..data.load import TrainingData
from ..evaluation import measures as m
from ..evaluation import probes
from ..networks.denoiser import unwrapped
from ..objectives.base import Objective
from ..pipelines.conditional import ConditionalPipeline
from .conditions import ModelCondition
from .config import EvaluationConfig, Row
from .likelihood import noised_at_snr
from .questions import mean_row, row
from .reader import real_pixels

_NUM_NOISE = 8  # of an image: many images with few noise levels each say more than few with many


def bits_rows(config: EvaluationConfig, pipe: ConditionalPipeline, data: TrainingData, train: np.ndarray) -> list[Row]:
    """Bits per dimension of held-out images under their own conditions, and how many fewer training images need.

    None of a model of latents or of images of more than 8 bits, nor of an objective without noise levels. A model that
    has memorised its training images needs fewer bits for them.
    """
    if not has_bits(pipe) or not config.num_likelihood:
        return []
    rows = data.held_out[: config.num_likelihood]
    held_out = _bits(config, pipe, data, rows)
    of_train = _bits(config, pipe, data, np.random.default_rng(config.seed).permutation(train)[: len(rows)])
    ends = m.interval_of_mean(held_out)
    more = held_out.mean() - of_train.mean()
    error = 1.96 * (held_out.var(ddof=1) / len(held_out) + of_train.var(ddof=1) / len(of_train)) ** 0.5
    name = "bits per dimension, held-out minus training images"
    return [
        row("likely?", "bits per dimension of held-out images", held_out.mean(), ends, better="lower"),
        row("new?", name, more, (more - error, more + error), 0.0, "lower"),
    ]


def has_bits(pipe: ConditionalPipeline) -> bool:
    """Whether `pipe.bits_per_dim` is defined."""
    config = unwrapped(pipe.unet).config
    is_of_pixels = pipe.vae is None and pipe.config.value_range is None
    has_levels = noised_at_snr.dispatch(type(Objective.from_pipeline(pipe))) is not noised_at_snr.dispatch(object)
    return is_of_pixels and has_levels and config.in_channels == config.out_channels


def _bits(config: EvaluationConfig, pipe: ConditionalPipeline, data: TrainingData, rows: np.ndarray) -> np.ndarray:
    """(N,)."""
    conditions = [None] * len(rows) if data.dataset.columns.condition is None else data.conditions(rows)
    bits, pixels = np.zeros(len(rows)), [signed_pixels(data, i) for i in rows]
    for mine in of_one_shape(pixels):
        images, shown = torch.stack([pixels[j] for j in mine]), [conditions[j] for j in mine]
        bits[mine] = pipe.bits_per_dim(images, shown, num_noise=_NUM_NOISE, seed=config.seed).double().numpy()
    return bits


def classification_rows(
    config: EvaluationConfig, pipe: ConditionalPipeline, data: TrainingData, each: ModelCondition, raws: list[object]
) -> list[Row]:
    """How often it is right, and whether as sure as it should be; of a composite with no other condition.

    Args:
        each: the label. raws: the conditions of the held-out images.
    """
    conditions = [each.read(raw) for raw in raws]
    known = [i for i, label in enumerate(conditions) if label is not None][: config.num_classified]
    classes = list(each.id2label)
    right, sure = np.zeros(len(known)), np.zeros(len(known))
    pixels = [signed_pixels(data, data.held_out[i]) for i in known]
    for rows in of_one_shape(pixels):
        tried = [each.only(label) for label in classes]
        result = pipe.classify(torch.stack([pixels[j] for j in rows]), tried, seed=config.seed)
        labels = [conditions[known[j]] for j in rows]
        right[rows] = [classes[best] == label for best, label in zip(result.best, labels, strict=True)]
        sure[rows] = result.probabilities.max(dim=1).values.numpy()
    return [
        mean_row("obeys y?", each.title("held-out images classified right"), right),
        row(
            *("obeys y?", each.title("calibration error of that"), probes.calibration_error(sure, right)),
            m.interval_of(probes.calibration_error, sure, right, high=1.0),
            better="lower",
        ),
    ]


def signed_pixels(data: TrainingData, row: int) -> torch.Tensor:
    """(C, H, W) float32 in [-1, 1], as the network is trained on."""
    pixels = real_pixels(data, row)
    signed = pixels.astype(np.float32) / 127.5 - 1 if pixels.dtype == np.uint8 else pixels
    return torch.from_numpy(np.ascontiguousarray(signed)).permute(2, 0, 1)


def of_one_shape(images: list[torch.Tensor]) -> list[list[int]]:
    """The numbers of the images of each shape."""
    shapes = dict.fromkeys(image.shape for image in images)
    return [[i for i, image in enumerate(images) if image.shape == shape] for shape in shapes]
