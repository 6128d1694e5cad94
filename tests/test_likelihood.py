"""Likelihoods, against data whose likelihood is known: normal pixels, and the model that is exact for them."""

import math

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler, EDMEulerScheduler, FlowMatchEulerDiscreteScheduler
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from PIL import Image
from pipelines_common import make_components, quiet, tiny_vae

from cond_pipelines import ClassConditionalPipeline, ClassLabelAdapter, TextToImagePipeline, UnconditionalPipeline
from cond_pipelines.evaluation.likelihood import flow_bits_per_dim, noised_at_snr
from cond_pipelines.objectives import Objective

MEANS, SPREAD, SIDE = (-0.2, 0.0, 0.3), 0.3, 4


class NormalPixels(ModelMixin, ConfigMixin):
    """The UNet that training would end in on pixels N(mean of the class, SPREAD^2): dx/dsigma, in closed form."""

    @register_to_config
    def __init__(self, in_channels: int = 1, out_channels: int = 1, sample_size: int = SIDE):
        super().__init__()
        self.calls = 0
        self.unused = torch.nn.Parameter(torch.zeros(1))

    def forward(self, x, t, encoder_hidden_states=None, encoder_attention_mask=None, class_labels=None, **_):
        self.calls += len(x)
        mean = class_labels[:, :1, None, None]
        sigma = (t / 1000)[:, None, None, None]
        centred = x - (1 - sigma) * mean
        variance = (1 - sigma) ** 2 * SPREAD**2 + sigma**2
        x_0 = mean + (1 - sigma) * SPREAD**2 / variance * centred
        return (sigma / variance * centred - x_0,)


@pytest.fixture()
def pipe():
    adapter = ClassLabelAdapter(
        id2label={"0": "low", "1": "middle", "2": "high"}, token_dim=1, pooled_dim=1, embedding_dim=1
    )
    with torch.no_grad():
        adapter.embedding.weight.zero_()
        adapter.embedding.weight[:3, 0] = torch.tensor(MEANS)
        adapter.pooled_proj.weight.fill_(1.0)
    return quiet(ClassConditionalPipeline(NormalPixels(), FlowMatchEulerDiscreteScheduler(), adapter))


def drawn(count, label, eight_bits=True):
    x = MEANS[label] + SPREAD * torch.randn(count, 1, SIDE, SIDE, generator=torch.Generator().manual_seed(label))
    return ((x + 1) * 127.5).round().clamp(0, 255) / 127.5 - 1 if eight_bits else x


def log_density(x, label):
    log = -0.5 * ((x - MEANS[label]) / SPREAD).square() - math.log(SPREAD * math.sqrt(2 * math.pi))
    return log.flatten(1).sum(dim=1)


SCHEDULERS = [
    FlowMatchEulerDiscreteScheduler(),
    DDPMScheduler(),
    DDPMScheduler(prediction_type="v_prediction"),
    DDPMScheduler(prediction_type="sample"),
    EDMEulerScheduler(),
]


@pytest.mark.parametrize("scheduler", SCHEDULERS, ids=lambda s: f"{type(s).__name__}-{s.config.get('prediction_type')}")
def test_signal_to_noise(scheduler):
    """What is noised at a ratio has it; what is right for the noise has no loss, what is off has that of the noise."""
    objective = Objective.from_scheduler(scheduler)
    log_snr = torch.linspace(-4, 6, 11)
    ones, nothing = torch.ones(11, 1, 2, 2), torch.zeros(11, 1, 2, 2)
    signal = noised_at_snr(objective, ones, nothing, log_snr).x_t[:, 0, 0, 0]
    noise = noised_at_snr(objective, nothing, ones, log_snr).x_t[:, 0, 0, 0]
    # A discrete schedule has only the levels that it has.
    tolerance = 0.05 if isinstance(scheduler, DDPMScheduler) else 1e-4
    assert torch.allclose(2 * (signal / noise).abs().log(), log_snr, atol=tolerance)

    x_0, eps, other = (torch.randn(11, 1, 2, 2, generator=torch.Generator().manual_seed(i)) for i in range(3))
    noised = noised_at_snr(objective, x_0, eps, log_snr)
    assert noised.loss(noised.target).max() == 0
    # The same x_t, explained by other noise: x_0' = x_0 + (eps - other) noise / signal.
    ratio = (noise / signal)[:, None, None, None]
    explained = noised_at_snr(objective, x_0 + (eps - other) * ratio, other, log_snr)
    assert torch.allclose(explained.x_t, noised.x_t, atol=1e-4)
    expected = (eps - other).square().flatten(1).mean(dim=1)
    assert torch.allclose(noised.loss(explained.target), expected, rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize("label", [0, 2])
def test_the_flow_gives_the_density(pipe, label):
    """Of each image by itself, and of another class the density under that."""
    x = drawn(40, label)
    for told in (label, 1):
        expected = -log_density(x, told) / math.log(2) / SIDE**2 + math.log2(127.5)
        found = flow_bits_per_dim(pipe, x, [told] * 40, num_inference_steps=40)
        assert torch.allclose(found, expected, atol=0.04)
        assert abs((found - expected).mean()) < 0.01


def test_the_bound_is_tight_for_the_model_that_is_exact(pipe):
    x = drawn(200, 2)
    expected = -log_density(x, 2) / math.log(2) / SIDE**2 + math.log2(127.5)
    found = pipe.bits_per_dim(x, [2] * 200, num_noise=128)
    assert abs((found - expected).mean()) < 0.05
    assert np.corrcoef(found, expected)[0, 1] > 0.5
    # ... and is a bound for one that is not.
    wrong = pipe.bits_per_dim(x, [0] * 200, num_noise=128)
    assert (wrong - expected).mean() > 0.5


def test_differences_are_those_of_the_densities(pipe):
    """log p(x|y) - log p(x|y'), within what 256 noises leave of chance; and the probabilities by Bayes' rule."""
    x = torch.cat([drawn(30, label) for label in range(3)])
    true = torch.stack([log_density(x, label) for label in range(3)], dim=1)
    found = pipe.classify(x, [0, 1, 2], num_noise=256)
    expected = true - true.max(dim=1, keepdim=True).values
    close = expected > -6  # those far off are given up before they are known well
    assert (found.log_likelihoods - expected)[close].abs().mean() < 0.3
    assert torch.allclose(found.probabilities, expected.softmax(dim=1), atol=0.25)
    assert (found.probabilities - expected.softmax(dim=1)).abs().mean() < 0.03
    assert (found.best == true.argmax(dim=1)).float().mean() > 0.95
    assert torch.allclose(found.probabilities.sum(dim=1), torch.ones(90))


def test_hopeless_conditions_are_given_up(pipe):
    x = drawn(20, 2)
    found = pipe.classify(x, ["low", "high"], num_noise=64)
    assert (found.best == 1).all()
    assert (found.num_evaluations[:, 1] == 64).all()
    assert found.num_evaluations[:, 0].float().mean() < 40
    assert pipe.unet.calls == found.num_evaluations.sum()


def test_it_does_not_depend_on_the_batch(pipe):
    x = drawn(6, 1)
    a, b = (pipe.classify(x, [0, 1, 2], num_noise=8, batch_size=size).log_likelihoods for size in (7, 1000))
    assert torch.allclose(a, b, atol=1e-4)
    a, b = (pipe.bits_per_dim(x, num_noise=8, batch_size=size) for size in (7, 1000))
    assert torch.allclose(a, b, atol=1e-4)


@pytest.mark.parametrize("vae", [False, True])
def test_any_setting_and_pil_images(vae):
    pipe = quiet(TextToImagePipeline(**make_components("text", vae=tiny_vae() if vae else None)))
    size = pipe.unet.config.sample_size * pipe.vae_scale_factor
    rng = np.random.default_rng(0)
    images = [Image.fromarray(rng.integers(0, 255, (size, size, 3), dtype=np.uint8)) for _ in range(3)]
    found = pipe.classify(images, ["a red circle", "a small blue square on a white background"], num_noise=4)
    assert found.probabilities.shape == (3, 2) and (found.num_evaluations == 4).all()
    if vae:
        with pytest.raises(ValueError, match="a model with a VAE would be of its latents"):
            pipe.bits_per_dim(images)
    else:
        assert pipe.bits_per_dim(images, num_noise=4).isfinite().all()


def test_what_cannot_be_asked(pipe):
    with pytest.raises(ValueError, match=r"1 condition\(s\): there is nothing to choose between"):
        pipe.classify(drawn(1, 0), [0])
    with pytest.raises(ValueError, match="the model has 1 channels"):
        pipe.classify(torch.zeros(1, 3, 4, 4), [0, 1])
    ddpm = quiet(UnconditionalPipeline(**make_components("none") | {"scheduler": DDPMScheduler()}))
    with pytest.raises(ValueError, match="needs a flow-matching model of pixels"):
        flow_bits_per_dim(ddpm, torch.zeros(1, 3, 8, 8))
