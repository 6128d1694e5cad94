"""Images to features, classes and CLIP scores: loaded and tried on two images before anything is sampled."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import NamedTemporaryFile

import numpy as np
import torch
from PIL import Image

from ..data.load import TrainingData
from ..errors import UserError
from .conditions import ModelCondition
from .config import EvaluationConfig
from .features import CLIPScore, Extractor, cached, extract, load_classifier, load_extractor, protocol_of
from .questions import Part
from .sampling import Plan, num_views, read_samples, to_image

_TRIED = 2  # images


@dataclass(frozen=True)
class Samples:
    """Drawn samples: the folder of their files, and their plan."""

    folder: Path
    plan: Plan

    def images(self) -> Iterator[np.ndarray]:
        """(H, W, C), in order."""
        return read_samples(self.folder, self.plan)


class Reader:
    """What an evaluation sees of images: the feature extractor, and the classifier and CLIP model where they are given.

    Args:
        folder: where features of real images are kept.
        conditions: of the model, of which captions have a CLIP score and labels are read by the classifier.

    Raises:
        ValueError: one of them cannot be loaded.
    """

    def __init__(
        self,
        config: EvaluationConfig,
        data: TrainingData,
        folder: Path,
        device: torch.device,
        conditions: Sequence[ModelCondition] = (),
    ):
        self.config, self.data, self.kept = config, data, Path(config.features_dir or folder)
        self.extractor = load_extractor(config.feature_extractor, device)
        self.clip = CLIPScore(config.clip_model, device) if config.clip_model else None
        self.captions = [each for each in conditions if each.has_captions]
        self.classifier: Extractor | None = None
        for each in conditions if config.classifier else ():
            if each.has_classes:
                self.classifier = load_classifier(config.classifier, each.id2label, device, each.has_several)

    def try_out(self, folder: Path) -> None:
        """Use everything on two real images, and write a file. Raises ValueError for the first thing that fails."""
        arrays = [real_pixels(self.data, row) for row in self.data.held_out[:_TRIED]]
        self._features(lambda: iter(arrays), len(arrays), "two images")
        images = [to_image(array) for array in arrays]
        if self.classifier is not None:
            self.classes(iter(arrays), len(arrays))
        if self.clip is not None:
            self.clip(images, ["a picture"] * len(images), self.config.batch_size)
        for place in {folder, self.kept}:
            try:
                place.mkdir(parents=True, exist_ok=True)
                with NamedTemporaryFile(dir=place, prefix="written-"):  # never the name of a file of the user's
                    pass
            except OSError as error:
                raise UserError(f"{place} cannot be written: {error.strerror or error}") from error

    def samples(self, samples: Samples, what: str) -> Part:
        """Features, conditions and CLIP scores of samples."""
        conditions = samples.plan.drawn
        features = self._features(samples.images, len(conditions), what)
        scored = [each for each in self._scored if any(map(each.read, conditions))]
        scores = {each.name: self._scores(samples.images(), each, conditions) for each in scored}
        return Part(features, conditions, scores)

    def real(self, rows: np.ndarray, conditions: list[object], what: str, scored: bool = False) -> Part:
        """The same of real images. Features are kept, under what decides them: data, preprocessing, extractor."""
        key = {
            "data": self.data.dataset.fingerprint(),
            "rows": rows.tolist(),
            "resolution": self.data.dataset.resolution,
            "extractor": self.config.feature_extractor,
            "protocol": protocol_of(self.extractor),
        }
        features = cached(self.kept, key, lambda: self._features(lambda: self._images(rows), len(rows), what))
        scores = {}
        for each in self._scored if scored else ():
            captions = [each.read(condition) for condition in conditions]
            of_clip = {"extractor": "CLIP score", "clip_model": self.config.clip_model, "captions": captions}
            scores[each.name] = cached(
                self.kept, key | of_clip, lambda each=each: self._scores(self._images(rows), each, conditions)
            )
        return Part(features, conditions, scores)

    def classes(self, images: Iterable[np.ndarray], count: int) -> np.ndarray:
        """What the classifier reads: see `load_classifier`."""
        pictures = (to_image(array) for array in images)
        return extract(self.classifier, pictures, count, self.config.batch_size, f"{self.config.classifier}'s view")

    def real_classes(self) -> np.ndarray:
        """The same of held-out images."""
        return self.classes(self._images(self.data.held_out), len(self.data.held_out))

    def _features(self, images: Callable[[], Iterable[np.ndarray]], count: int, what: str) -> np.ndarray:
        """(N, D) float32; of many channels those of three at a time, one after the other."""
        parts = []
        for view in range(num_views(self.data.dataset.channels)):
            pictures = (to_image(array, view) for array in images())
            parts.append(extract(self.extractor, pictures, count, self.config.batch_size, what))
        return np.concatenate(parts, axis=1)

    def _images(self, rows: np.ndarray) -> Iterator[np.ndarray]:
        return (real_pixels(self.data, row) for row in rows)

    @property
    def _scored(self) -> list[ModelCondition]:
        return [] if self.clip is None else self.captions

    def _scores(self, images: Iterable[np.ndarray], each: ModelCondition, conditions: list[object]) -> np.ndarray:
        captions = [each.read(condition) for condition in conditions]
        return self.clip((to_image(array) for array in images), captions, self.config.batch_size)


def real_pixels(data: TrainingData, row: int) -> np.ndarray:
    """As it is trained on, not flipped: (H, W, C) uint8, or float32 in [-1, 1]."""
    pixels: np.ndarray = data.dataset[0, int(row)].pixels
    return pixels


def real_image(data: TrainingData, row: int) -> Image.Image:
    """The same as a picture of 8 bits."""
    return to_image(real_pixels(data, row))
