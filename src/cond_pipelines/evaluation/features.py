"""Images to features, by any transformers vision model or a function of one's own."""

import hashlib
import itertools
import json
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import torch
from filelock import FileLock
from PIL import Image
from tqdm.auto import tqdm

from ..console import say
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

    def __call__(self, images: list[Image.Image]) -> torch.Tensor:
        x: torch.Tensor = self.processor(images=images, return_tensors="pt").pixel_values  # (N, 3, S, S)
        return x.to(self.device)


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

    @torch.no_grad()
    def __call__(self, images: list[Image.Image]) -> np.ndarray:
        out = self.model(pixel_values=self.preprocess(images))
        names = ("image_embeds", "pooler_output")
        outputs = [x for x in (getattr(out, name, None) for name in names) if x is not None]
        pooled = outputs[0] if outputs else out.last_hidden_state[:, 0]  # (N, D): else the class token
        features: np.ndarray = pooled.flatten(1).float().cpu().numpy()
        return features


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
            x = self.preprocess([image.convert("RGB") for image in itertools.islice(images, len(batch))])
            words = self.tokenizer([c or "" for c in batch], padding=True, truncation=True, return_tensors="pt")
            out = self.model(pixel_values=x, **words.to(x.device))
            cosine = (out.image_embeds * out.text_embeds).sum(dim=-1)  # (B,), both of length 1
            scores.append((100 * cosine).clamp(min=0).cpu().numpy())
        return np.concatenate(scores)


def load_classifier(name: str, id2label: dict[int, str], device: torch.device | str = "cpu") -> Extractor:
    """Images to their classes as ids (N, 1): a transformers model with our labels, or `module:callable`.

    Raises:
        ValueError: there is no such thing, or it does not know the classes of the data by the same names.
    """
    ids = {label: i for i, label in id2label.items()}
    if ":" in name:
        read = load_object(name, num_arguments=1)

        def read_names(images: list[Image.Image]) -> np.ndarray:
            labels = read(images)
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

    @torch.no_grad()
    def read_classes(images: list[Image.Image]) -> np.ndarray:
        logits = model(pixel_values=preprocess(images)).logits  # (N, K)
        return np.array([[ids.get(theirs[i], -1)] for i in logits.argmax(dim=1).tolist()], np.float32)

    return read_classes


def pixels(images: list[Image.Image]) -> np.ndarray:
    """The image itself, reduced to 16 x 16 px: (N, 768). Needs no model; good for tiny images and nothing else."""
    small = [im.convert("RGB").resize((16, 16), Image.Resampling.BOX) for im in images]
    return np.stack([np.asarray(im, dtype=np.float32).reshape(-1) / 255 for im in small])


def load_extractor(name: str, device: torch.device | str = "cpu") -> Extractor:
    """A vision model by name or path, or `module:callable`.

    Raises:
        ValueError: there is no such thing.
    """
    if name == "pixels":
        return pixels
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
            batch.append(image.convert("RGB"))
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
