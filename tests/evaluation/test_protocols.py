"""Features by the published protocols and by a model's own preprocessing, against what those codes do."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from torchmetrics.image.fid import FrechetInceptionDistance
from transformers import Dinov2Config, Dinov2Model

from cond_pipelines.evaluation import measures as m
from cond_pipelines.evaluation.features import extract, load_classifier, load_extractor, pixels, protocol_of


@pytest.fixture(scope="module")
def images():
    rng = np.random.default_rng(0)
    shapes = [(32, 32, 3), (20, 40, 3)] * 8
    return [Image.fromarray(rng.integers(0, 256, shape, dtype=np.uint8)) for shape in shapes]


def test_fd_dinov2(images, tmp_path):
    """As in EDM2's calculate_metrics.py with resize_mode="pil", and DINOv2's own way of interpolating positions."""
    torch.manual_seed(0)
    config = Dinov2Config(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, image_size=518, patch_size=14)
    model = Dinov2Model(config).eval()
    model.save_pretrained(tmp_path)
    found = load_extractor(f"fd-dinov2={tmp_path}")(images)
    table = model.embeddings.position_embeddings.data
    grid = table[:, 1:].reshape(1, 37, 37, 32).permute(0, 3, 1, 2)
    grid = torch.nn.functional.interpolate(grid, scale_factor=(16.1 / 37, 16.1 / 37), mode="bicubic", antialias=False)
    assert grid.shape[2:] == (16, 16)
    positions = torch.cat([table[:, :1], grid.flatten(2).transpose(1, 2)], dim=1)
    model.embeddings.interpolate_pos_encoding = lambda *_: positions
    for image, features in zip(images[:4], found, strict=False):
        x = np.uint8(image.resize((224, 224), Image.Resampling.BICUBIC))
        x = torch.from_numpy(x).permute(2, 0, 1)[None].to(torch.float32) / 255
        x = (x - torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1)) / torch.tensor([0.229, 0.224, 0.225]).view(
            1, 3, 1, 1
        )
        with torch.no_grad():
            expected = model(pixel_values=x).pooler_output[0]  # the class token after the last layer norm
        assert np.allclose(features, expected, atol=1e-4)
    assert "FD-DINOv2 as published" in protocol_of(load_extractor(f"fd-dinov2={tmp_path}"))


class Inception(torch.nn.Module):
    """Called as NVIDIA's network is."""

    def forward(self, x: torch.Tensor, return_features: bool = False) -> torch.Tensor:
        assert x.dtype == torch.uint8 and return_features
        small = torch.nn.functional.adaptive_avg_pool2d(x.float(), 2)
        return small.flatten(1) / 64


class WithNumber(torch.nn.Module):
    num_features = 12

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, x):
        return self.model(x, return_features=True)


def test_fid(images, tmp_path):
    """A TorchScript file is called as EDM calls it, and the distance is torchmetrics' with the same network."""
    model = Inception()
    torch.jit.script(model).save(tmp_path / "inception.pt")
    extractor = load_extractor(f"fid={tmp_path / 'inception.pt'}")
    a, b = (images[i::2] for i in (0, 1))
    theirs = FrechetInceptionDistance(feature=WithNumber(model), normalize=False)
    for some, is_real in ((a, True), (b, False)):
        theirs.update(torch.stack([torch.from_numpy(np.array(x)).permute(2, 0, 1) for x in some]), real=is_real)
    features = [extract(extractor, some, len(some)) for some in (a, b)]
    mine = m.frechet_distance(*map(m.Gaussian.of, features))
    assert mine == pytest.approx(theirs.compute().item(), rel=1e-4)
    assert np.allclose(extract(extractor, images, 16)[::2], features[0])  # of two sizes in a batch
    for name, words in (("fid", "fid needs a file"), ("fid=nowhere.pt", "no file nowhere.pt")):
        with pytest.raises(ValueError, match=words):
            load_extractor(name)


def test_pixels_press_nothing_into_a_square():
    oblong = Image.new("RGB", (64, 32))
    oblong.paste((255, 0, 0), (0, 0, 16, 32))  # outside of the middle
    assert not pixels([oblong]).any()


def test_transparency_is_white():
    clear = Image.new("RGBA", (8, 8), (0, 0, 0, 0))
    assert np.allclose(extract(pixels, [clear], 1), 1)


def test_a_classifier_sees_what_its_processor_makes(tmp_path):
    """A crop of the middle, in the filter and the range that its files name."""
    from transformers import AutoImageProcessor, ViTConfig, ViTForImageClassification

    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 16, "patch_size": 8}
    vit = ViTForImageClassification(ViTConfig(**sizes, id2label={0: "a", 1: "b"}, label2id={"a": 0, "b": 1})).eval()
    vit.save_pretrained(tmp_path)
    preprocessing = {"image_processor_type": "CLIPImageProcessor", "size": {"shortest_edge": 16}, "crop_size": 16}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(preprocessing | {"resample": 3}))
    rng = np.random.default_rng(0)
    images = [Image.fromarray(rng.integers(0, 256, (24, 48, 3), dtype=np.uint8)) for _ in range(32)]
    read = load_classifier(str(tmp_path), {0: "a", 1: "b"})(images)[:, 0]
    x = AutoImageProcessor.from_pretrained(tmp_path, backend="pil")(images=images, return_tensors="pt").pixel_values
    assert x.shape == (32, 3, 16, 16)
    with torch.no_grad():
        assert read.tolist() == vit(x).logits.argmax(dim=1).tolist()
    middle = [image.crop((12, 0, 36, 24)) for image in images]
    assert np.array_equal(load_classifier(str(tmp_path), {0: "a", 1: "b"})(middle)[:, 0], read)
