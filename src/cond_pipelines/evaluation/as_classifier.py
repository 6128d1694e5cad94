"""What a model makes of held-out images as a classifier: p(y|x) from p(x|y)."""

import numpy as np
import torch

from ..data.load import TrainingData
from ..evaluation import measures as m
from ..evaluation import probes
from ..pipelines.conditional import ConditionalPipeline
from .config import EvaluationConfig, Row
from .questions import mean_row, row
from .reader import real_pixels


def classification_rows(
    config: EvaluationConfig, pipe: ConditionalPipeline, data: TrainingData, conditions: list[object]
) -> list[Row]:
    """How often it is right, and whether as sure as it should be; `conditions`: of the held-out images."""
    known = [i for i, label in enumerate(conditions) if label is not None][: config.num_classified]
    classes = list(data.id2label or {})
    right, sure = np.zeros(len(known)), np.zeros(len(known))
    pixels = [signed_pixels(data, data.held_out[i]) for i in known]
    for rows in of_one_shape(pixels):
        result = pipe.classify(torch.stack([pixels[j] for j in rows]), classes, seed=config.seed)
        asked = [conditions[known[j]] for j in rows]
        right[rows] = [classes[best] == label for best, label in zip(result.best, asked, strict=True)]
        sure[rows] = result.probabilities.max(dim=1).values.numpy()
    return [
        mean_row("obeys y?", "held-out images classified right", right),
        row(
            *("obeys y?", "calibration error of that", probes.calibration_error(sure, right)),
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
