"""Images to features, by any transformers vision model or a function of one's own."""

import hashlib
import itertools
import json
import math
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock
from PIL import Image, ImageOps
from torch import nn
from tqdm.auto import tqdm

from ..console import say
from ..data.images import convert
from ..errors import UserError, reading
from ..files import load_array, own_seal, save_array
from ..networks.readable import SAFE, readable_folder
from ..user_code import load_object

# (N images as RGB PIL) -> (N, D) float32
Extractor = Callable[[list[Image.Image]], np.ndarray]


class _Preprocessing:
    """A model's own preprocessing by transformers, with Pillow, so that torchvision is not needed."""

    def __init__(self, name_or_path: str | Path, device: torch.device | str):
        from transformers import AutoImageProcessor

        self.processor = AutoImageProcessor.from_pretrained(name_or_path, backend="pil", trust_remote_code=False)
        self.device = device

    def __str__(self) -> str:
        """What it does, for the report."""
        steps = []
        if getattr(self.processor, "do_resize", False):
            how = getattr(self.processor, "resample", None)
            filter_name = "" if how is None else f", {Image.Resampling(how).name.lower()}"
            steps.append(f"resize {_sides(self.processor.size)}{filter_name}")
        if getattr(self.processor, "do_center_crop", False):
            steps.append(f"crop {_sides(self.processor.crop_size)}")
        return f"{type(self.processor).__name__}: {', '.join(steps) or 'as they are'}"

    def __call__(self, images: list[Image.Image]) -> torch.Tensor:
        x: torch.Tensor = self.processor(images=images, return_tensors="pt").pixel_values  # (N, 3, S, S)
        return x.to(self.device)


def _sides(size: Any) -> str:
    """`{"shortest_edge": 256, ...}` in words."""
    return ", ".join(f"{name.replace('_', ' ')} {px}" for name, px in dict(size).items() if px is not None)


class VisionModel:
    """The pooled output of a transformers vision model: DINOv2, CLIP, ViT, ConvNeXt, ...

    Args:
        name_or_path: of the model, such as "facebook/dinov2-base".

    Example:
        >>> VisionModel("facebook/dinov2-base")([image]).shape
        (1, 768)
    """

    def __init__(self, name_or_path: str, device: torch.device | str = "cpu"):
        from transformers import AutoModel, CLIPVisionModelWithProjection

        folder = readable_folder(name_or_path)
        self.preprocess = _Preprocessing(folder, device)
        model = AutoModel.from_pretrained(folder, dtype=torch.float32, **SAFE)
        if hasattr(model, "vision_model") and hasattr(model, "text_model"):  # CLIP's image half, projected
            model = CLIPVisionModelWithProjection.from_pretrained(folder, dtype=torch.float32, **SAFE)
        self.model = model.eval().requires_grad_(False).to(device)
        self.protocol = f"the model's own preprocessing ({self.preprocess})"

    @torch.no_grad()
    def __call__(self, images: list[Image.Image]) -> np.ndarray:
        out = self.model(pixel_values=self.preprocess(images))
        names = ("image_embeds", "pooler_output")
        outputs = [x for x in (getattr(out, name, None) for name in names) if x is not None]
        pooled = outputs[0] if outputs else out.last_hidden_state[:, 0]  # (N, D): else the class token
        features: np.ndarray = pooled.flatten(1).float().cpu().numpy()
        return features


class FDDinov2:
    """Features for FD-DINOv2 as it is published (Stein et al. 2023, arXiv 2306.04675; the code of dgm-eval and EDM2).

    224 x 224 px by Pillow's bicubic filter, whatever the shape, without a crop; the class token of DINOv2 ViT-L/14.

    Args:
        name_or_path: of the model in the format of transformers.
    """

    protocol = "FD-DINOv2 as published (arXiv 2306.04675): 224 x 224 px by Pillow's bicubic filter, class token"
    side_px, mean, std = 224, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

    def __init__(self, name_or_path: str = "facebook/dinov2-large", device: torch.device | str = "cpu"):
        from transformers import Dinov2Model

        model = Dinov2Model.from_pretrained(readable_folder(name_or_path), dtype=torch.float32, **SAFE)
        self.model = model.eval().requires_grad_(False).to(device)
        self.device = device
        embeddings = self.model.embeddings
        embeddings.position_embeddings = nn.Parameter(self._positions(embeddings.position_embeddings.data), False)

    def _positions(self, table: torch.Tensor) -> torch.Tensor:
        """Of the patches, (1, 1 + n, D), as DINOv2's own code interpolates them: by (side + 0.1) / old side."""
        side, old = self.side_px // self.model.config.patch_size, math.isqrt(table.shape[1] - 1)
        if side == old:
            return table
        grid = table[:, 1:].reshape(1, old, old, -1).permute(0, 3, 1, 2)
        grid = nn.functional.interpolate(grid, scale_factor=((side + 0.1) / old,) * 2, mode="bicubic")
        return torch.cat([table[:, :1], grid.permute(0, 2, 3, 1).flatten(1, 2)], dim=1)

    @torch.no_grad()
    def __call__(self, images: list[Image.Image]) -> np.ndarray:
        small = [im.resize((self.side_px, self.side_px), Image.Resampling.BICUBIC) for im in images]
        x = torch.from_numpy(np.stack([np.asarray(im, dtype=np.float32) for im in small])) / 255  # (N, S, S, 3)
        x = (x - torch.tensor(self.mean)) / torch.tensor(self.std)
        out = self.model(pixel_values=x.permute(0, 3, 1, 2).to(self.device)).last_hidden_state
        features: np.ndarray = out[:, 0].float().cpu().numpy()
        return features


class FID:
    """Features for FID as it is published (Heusel et al. 2017), by the network that StyleGAN2-ADA and EDM use.

    That network resizes images of any size itself, as TensorFlow 1 does: 299 x 299 px, bilinear, without a crop.

    Args:
        path: of `inception-2015-12-05.pt`, a TorchScript file of NVIDIA's.
    """

    protocol = "FID as published (arXiv 1706.08500): Inception of 2015-12-05, which resizes to 299 x 299 px itself"

    def __init__(self, path: str, device: torch.device | str = "cpu"):
        if not Path(path).is_file():
            raise ValueError(f"there is no file {path}")
        self.model = torch.jit.load(path, map_location=device).eval()
        self.device = device

    @torch.no_grad()
    def __call__(self, images: list[Image.Image]) -> np.ndarray:
        """Images of one size at a time."""
        features = {}
        for size in dict.fromkeys(im.size for im in images):
            mine = [i for i, im in enumerate(images) if im.size == size]
            x = torch.from_numpy(np.stack([np.asarray(images[i]) for i in mine])).permute(0, 3, 1, 2)  # uint8
            of_size = self.model(x.to(self.device), return_features=True).float().cpu().numpy()
            features |= dict(zip(mine, of_size, strict=True))
        return np.stack([features[i] for i in range(len(images))])


class CLIPScore:
    """How well images go with captions: 100 max(cos, 0) of CLIP's embeddings (Hessel et al. 2021, arXiv 2104.08718).

    Raises:
        ValueError: no CLIP model of that name.

    Example:
        >>> CLIPScore("openai/clip-vit-base-patch16")([image], ["a photo of a cat"]).shape
        (1,)
    """

    def __init__(self, name_or_path: str, device: torch.device | str = "cpu"):
        from transformers import AutoTokenizer, CLIPModel

        with reading(f"--clip_model {name_or_path}"):
            folder = readable_folder(name_or_path)
            self.preprocess = _Preprocessing(folder, device)
            self.tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
            self.model = CLIPModel.from_pretrained(folder, dtype=torch.float32, **SAFE)
        self.model.eval().requires_grad_(False).to(device)

    @torch.no_grad()
    def __call__(self, images: Iterable[Image.Image], captions: list[str | None], batch_size: int = 64) -> np.ndarray:
        """(N,) float32; an image without a caption counts as one with an empty one."""
        images, scores = iter(images), []
        for start in tqdm(range(0, len(captions), batch_size), desc="CLIP score"):
            batch = captions[start : start + batch_size]
            x = self.preprocess([convert(image, 3) for image in itertools.islice(images, len(batch))])
            words = self.tokenizer([c or "" for c in batch], padding=True, truncation=True, return_tensors="pt")
            out = self.model(pixel_values=x, **words.to(x.device))
            cosine = (out.image_embeds * out.text_embeds).sum(dim=-1)  # (B,), both of length 1
            scores.append((100 * cosine).clamp(min=0).cpu().numpy())
        return np.concatenate(scores)


def load_classifier(
    name: str, id2label: dict[int, str], device: torch.device | str = "cpu", has_several: bool = False
) -> Extractor:
    """Images to their classes as ids (N, 1): a transformers model with our labels, or `module:callable`.

    Args:
        has_several: an image has several labels; then it gives a number for each of `id2label`, (N, K), which is higher
            where an image seems to have the label: the logits of the model, or what the callable gives.

    Raises:
        ValueError: there is no such thing, or it does not know the classes of the data by the same names.
    """
    ids = {label: i for i, label in id2label.items()}
    if ":" in name:
        read = load_object(name, num_arguments=1)

        def read_names(images: list[Image.Image]) -> np.ndarray:
            labels = read(images)
            if has_several:
                return _scores_of_labels(name, labels, len(images), list(ids))
            try:
                return np.array([[ids[x] if isinstance(x, str) else int(x)] for x in labels], np.float32)
            except (TypeError, ValueError, KeyError) as error:
                raise UserError(f"--classifier {name}: it must give ids or names of classes: {error}") from error

        return read_names
    from transformers import AutoModelForImageClassification

    with reading(f"--classifier {name}"):
        folder = readable_folder(name)
        preprocess = _Preprocessing(folder, device)
        model = AutoModelForImageClassification.from_pretrained(folder, dtype=torch.float32, **SAFE)
    theirs = model.config.id2label
    missing = [label for label in ids if label not in theirs.values()]
    if missing:
        raise ValueError(f"--classifier {name} does not know {missing[0]!r}: it reads {', '.join(theirs.values())}")
    model.eval().requires_grad_(False).to(device)
    number = {label: i for i, label in theirs.items()}

    @torch.no_grad()
    def read_classes(images: list[Image.Image]) -> np.ndarray:
        logits = model(pixel_values=preprocess(images)).logits  # (N, K)
        if has_several:
            return logits[:, [number[label] for label in ids]].float().cpu().numpy()
        return np.array([[ids.get(theirs[i], -1)] for i in logits.argmax(dim=1).tolist()], np.float32)

    return read_classes


def _scores_of_labels(name: str, scores: Any, count: int, labels: list[str]) -> np.ndarray:
    """(N, K) float32. Raises UserError where it is not."""
    try:
        scores = np.asarray(scores, np.float32)
    except (TypeError, ValueError):
        scores = np.zeros(0)
    if scores.shape != (count, len(labels)):
        raise UserError(
            f"--classifier {name}: images have several labels, so for {count} images it must give {count} x "
            f"{len(labels)} numbers, higher where an image seems to have the label, in the order {', '.join(labels)}"
        )
    return scores


def pixels(images: list[Image.Image]) -> np.ndarray:
    """The middle square of the image, reduced to 16 x 16 px: (N, 768). Needs no model; good for tiny images only."""
    small = [ImageOps.fit(im.convert("RGB"), (16, 16), Image.Resampling.BOX) for im in images]
    return np.stack([np.asarray(im, dtype=np.float32).reshape(-1) / 255 for im in small])


_PUBLISHED = {"fd-dinov2": FDDinov2, "fid": FID}


def protocol_of(extractor: Extractor) -> str:
    """How images become features, for the report."""
    if extractor is pixels:
        return "the middle square, 16 x 16 px by area"
    return str(getattr(extractor, "protocol", "a function of the user's"))


def load_extractor(name: str, device: torch.device | str = "cpu") -> Extractor:
    """A vision model by name or path, `module:callable`, "pixels", or a published protocol.

    Args:
        name: "fd-dinov2" or "fd-dinov2=MODEL", "fid=inception-2015-12-05.pt": see `FDDinov2` and `FID`.

    Raises:
        ValueError: there is no such thing.
    """
    if name == "pixels":
        return pixels
    published, _, where = name.partition("=")
    if published in _PUBLISHED:
        if published == "fid" and not where:
            raise UserError("--feature_extractor fid needs a file: fid=inception-2015-12-05.pt")
        with reading(f"--feature_extractor {name}"):
            return _PUBLISHED[published](*[where] * bool(where), device=device)
    if ":" in name:
        return load_object(name, num_arguments=1)
    with reading(f"--feature_extractor {name}"):
        return VisionModel(name, device)


def extract(
    extractor: Extractor, images: Iterable[Image.Image], total: int, batch_size: int = 64, what: str = ""
) -> np.ndarray:
    """Features of `total` images, (N, D) float32, with a progress bar."""
    parts: list[np.ndarray] = []
    batch: list[Image.Image] = []
    with tqdm(total=total, desc=f"Features of {what}") as bar:
        for image in images:
            batch.append(convert(image, 3))  # transparency on white
            if len(batch) == batch_size:
                parts.append(_checked(extractor(batch), len(batch)))
                bar.update(len(batch))
                batch = []
        if batch:
            parts.append(_checked(extractor(batch), len(batch)))
            bar.update(len(batch))
    return np.concatenate(parts)


def _checked(features: np.ndarray, count: int) -> np.ndarray:
    try:
        features = np.asarray(features, dtype=np.float32)
    except (TypeError, ValueError) as error:
        raise UserError(f"the feature extractor gave a {type(features).__name__}, not numbers: {error}") from error
    if features.ndim != 2 or len(features) != count:
        raise ValueError(f"the feature extractor gave {features.shape} for {count} images: it must be ({count}, D)")
    if not np.isfinite(features).all():
        raise ValueError("the feature extractor gave values that are not finite")
    return features


def cached(folder: Path, key: dict, make: Callable[[], np.ndarray]) -> np.ndarray:
    """What `make` gives, kept in `folder` under a hash of `key`; made again where the file is damaged."""
    name = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:16]
    path = folder / f"features-{name}.npy"
    if path.is_file():
        try:
            return load_array(path, own_seal(key))
        except ValueError as error:
            say(f"warning: {error}: it is made again")
    features = make()
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{path}.lock"):  # several evaluations may share the folder
        save_array(path, features, own_seal(key))
    return features
