"""diffusers' guiders: what each computes at known inputs, and a pipeline that is saved with one."""

import json

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline, guiders
from diffusers.hooks import LayerSkipConfig
from pipelines_common import UNetCalls, generators, make_components, quiet
from torch import nn

from cond_pipelines import ClassConditionalPipeline, ConditionalPipeline, UnconditionalPipeline
from cond_pipelines.adapters.denoiser import denoise
from cond_pipelines.pipelines.guidance import Guider, Step

STACK = "mid_block.attentions.0.transformer_blocks"
SKIP = {"indices": [0], "fqn": STACK}
SEG = guiders.smoothed_energy_guidance.SmoothedEnergyGuidanceConfig
W = 3.0  # of guidance by the condition
# By class: what makes it compute one thing in the second of four steps.
GUIDERS = {
    "ClassifierFreeGuidance": {"guidance_scale": W},
    "AdaptiveProjectedGuidance": {"guidance_scale": W, "adaptive_projected_guidance_rescale": 2.0, "eta": 0.5},
    "AdaptiveProjectedMixGuidance": {
        "guidance_scale": W,
        "adaptive_projected_guidance_scale": 4.0,
        "adaptive_projected_guidance_start_step": 0,
    },
    "AutoGuidance": {"guidance_scale": W, "auto_guidance_config": LayerSkipConfig(**SKIP)},
    "ClassifierFreeZeroStarGuidance": {"guidance_scale": W},
    "FrequencyDecoupledGuidance": {"guidance_scales": [5.0, 2.0]},
    "LTX2Guidance": {"guidance_scale": W},
    "MagnitudeAwareGuidance": {"guidance_scale": W, "alpha": 2.0},
    "PerturbedAttentionGuidance": {
        "guidance_scale": W,
        "perturbed_guidance_config": LayerSkipConfig(
            **SKIP, skip_attention=False, skip_attention_scores=True, skip_ff=False
        ),
        "perturbed_guidance_start": 0.0,
        "perturbed_guidance_stop": 1.0,
    },
    "SkipLayerGuidance": {
        "guidance_scale": W,
        "skip_layer_config": LayerSkipConfig(**SKIP),
        "skip_layer_guidance_start": 0.0,
        "skip_layer_guidance_stop": 1.0,
    },
    "SmoothedEnergyGuidance": {
        "guidance_scale": W,
        "seg_guidance_config": SEG(**SKIP),
        "seg_blur_sigma": 1.0,
    },
    "TangentialClassifierFreeGuidance": {"guidance_scale": W},
}


@pytest.fixture(scope="module")
def pipe():
    return quiet(ClassConditionalPipeline(**make_components("class")))


def built(name: str, **changes) -> guiders.BaseGuidance:
    return getattr(guiders, name)(**GUIDERS[name] | changes)


class ValueAttention:
    """An attention processor whose map is the identity: each token attends to itself."""

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, attention_mask=None, **kwargs):
        return attn.to_out[0](attn.to_v(hidden_states))


class Inputs:
    """One step: x_t, the predictions under the condition p and under none q, and those of changed networks."""

    def __init__(self, pipe):
        self.pipe, self.unet = pipe, pipe.unet
        self.x_t = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            self.cond, self.null = pipe.encode_condition(["star", "circle"])
        self.step = Step(1, 4, torch.tensor(500.0))
        self.p, self.q = self.predict(None, self.cond), self.predict(None, self.null)
        self.block = self.unet.get_submodule(f"{STACK}.0")

    @torch.no_grad()
    def predict(self, network, cond):
        return denoise(self.unet, self.x_t.repeat(len(cond) // 2, 1, 1, 1), self.step.t, cond)

    def guided(self, guider):
        if isinstance(guider, guiders.AdaptiveProjectedMixGuidance):  # its average of earlier steps, of none here
            guider.momentum_buffer = None
        return Guider(guider).guided(self.cond, self.null, self.step, self.predict, self.unet)

    def without_block(self, cond):
        stack = self.unet.get_submodule(STACK)
        stack[0] = Nothing()
        try:
            return self.predict(None, cond)
        finally:
            stack[0] = self.block

    def with_attention_to_oneself(self, cond):
        before = self.block.attn1.processor
        self.block.attn1.set_processor(ValueAttention())
        try:
            return self.predict(None, cond)
        finally:
            self.block.attn1.set_processor(before)

    def with_mean_queries(self, cond):
        handle = self.block.attn1.to_q.register_forward_hook(
            lambda module, args, q: q.mean(1, keepdim=True).expand_as(q)
        )
        try:
            return self.predict(None, cond)
        finally:
            handle.remove()


class Nothing(nn.Module):
    def forward(self, hidden_states, **kwargs):
        return hidden_states


@pytest.fixture(scope="module")
def known(pipe):
    return Inputs(pipe)


def dot(a, b):
    return (a * b).sum(dim=(1, 2, 3), keepdim=True)


def projected(p, q, scale, longest, eta):
    """Sadat et al. 2024, arXiv 2410.02416, section 5."""
    d = p - q
    d = d * (longest / dot(d, d).sqrt()).clamp(max=1)
    parallel = dot(d, p) / dot(p, p) * p
    return q + scale * (d - parallel + eta * parallel)


def tangential(p, q):
    """Kwon et al. 2025, arXiv 2503.18137: what q has in common with p."""
    rows = torch.stack([p.flatten(1), q.flatten(1)], dim=1)  # (B, 2, D)
    first = torch.linalg.svd(rows, full_matrices=False).Vh[:, :1]  # (B, 1, D)
    common = ((rows[:, 1:] * first).sum(-1, keepdim=True) * first).view_as(q)
    return common + W * (p - common)


EXPECTED = {
    "ClassifierFreeGuidance": lambda i: i.q + W * (i.p - i.q),
    "AdaptiveProjectedGuidance": lambda i: projected(i.p, i.q, W, 2.0, 0.5),
    "AdaptiveProjectedMixGuidance": lambda i: projected(i.p, i.q, 4.0, 10.0, 0.0),
    "AutoGuidance": lambda i: (weak := i.without_block(i.null)) + W * (i.p - weak),
    "ClassifierFreeZeroStarGuidance": lambda i: (near := dot(i.p, i.q) / dot(i.q, i.q) * i.q) + W * (i.p - near),
    "LTX2Guidance": lambda i: i.q + W * (i.p - i.q),
    "MagnitudeAwareGuidance": lambda i: (
        i.q + (1 + (W - 1) * torch.exp(-2 * (dot(i.p - i.q, i.p - i.q) / dot(i.q, i.q)).sqrt())) * (i.p - i.q)
    ),
    "PerturbedAttentionGuidance": lambda i: i.q + W * (i.p - i.q) + 2.8 * (i.p - i.with_attention_to_oneself(i.cond)),
    "SkipLayerGuidance": lambda i: i.q + W * (i.p - i.q) + 2.8 * (i.p - i.without_block(i.cond)),
    "SmoothedEnergyGuidance": lambda i: i.q + W * (i.p - i.q) + 2.8 * (i.p - i.with_mean_queries(i.cond)),
    "TangentialClassifierFreeGuidance": lambda i: tangential(i.p, i.q),
}


@pytest.mark.parametrize("name", EXPECTED)
def test_what_a_guider_computes(known, name):
    before = known.predict(None, known.cond)
    guided = known.guided(built(name))
    torch.testing.assert_close(guided, EXPECTED[name](known), atol=2e-4, rtol=1e-4)
    assert torch.equal(known.predict(None, known.cond), before), "the network is as it was"
    if name not in ("ClassifierFreeGuidance", "LTX2Guidance"):
        assert not torch.allclose(guided, known.q + W * (known.p - known.q), atol=1e-2), "more than guidance by a scale"


def test_frequency_decoupled_guidance(known):
    """Equal scales are guidance by that scale; a difference that is the same in all pixels has the lowest frequency."""
    torch.testing.assert_close(
        known.guided(built("FrequencyDecoupledGuidance", guidance_scales=[W, W])),
        known.q + W * (known.p - known.q),
        atol=1e-4,
        rtol=1e-4,
    )
    shifted = Inputs(known.pipe)
    shifted.predict = lambda network, cond: torch.cat([known.q, known.q + 0.5])[: len(cond)]
    guided = shifted.guided(built("FrequencyDecoupledGuidance"))
    torch.testing.assert_close(guided, known.q + 2.0 * 0.5, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("name", "changed"),
    [
        ("SkipLayerGuidance", Inputs.without_block),
        ("PerturbedAttentionGuidance", Inputs.with_attention_to_oneself),
        ("SmoothedEnergyGuidance", Inputs.with_mean_queries),
    ],
)
def test_guidance_by_a_worse_network_alone(known, name, changed):
    """With scale 1 for the condition there are two branches: of the network, and of the changed one."""
    worse = changed(known, known.cond)
    guided = known.guided(built(name, guidance_scale=1.0))
    torch.testing.assert_close(guided, worse + 2.8 * (known.p - worse), atol=1e-4, rtol=1e-4)


def test_a_rescaled_guider_is_our_rescaled_guidance(known):
    guided = known.guided(built("ClassifierFreeGuidance", guidance_rescale=0.7))
    plain = known.q + W * (known.p - known.q)
    ratio = known.p.std(dim=(1, 2, 3), keepdim=True) / plain.std(dim=(1, 2, 3), keepdim=True)
    torch.testing.assert_close(guided, 0.7 * plain * ratio + 0.3 * plain)


def test_momentum_of_projected_guidance(pipe):
    """The average of the differences of all steps so far starts anew with each call."""
    guider = built("AdaptiveProjectedGuidance", adaptive_projected_guidance_momentum=-0.5)
    images = [images_of(pipe, guider=guider) for _ in range(2)]
    assert np.array_equal(*images)
    assert not np.allclose(images[0], images_of(pipe, guider=built("AdaptiveProjectedGuidance")), atol=1e-3)


# ------------------------------------------------------------------------------------------------- as a component
def images_of(pipe, **call):
    given = {"class_labels": ["star", 0], "num_inference_steps": 4, "output_type": "np", "generator": generators(2)}
    return pipe(**given | call).images


@pytest.mark.parametrize("name", GUIDERS)
def test_saved_with_a_guider(pipe, name, tmp_path):
    """It is used where a call gives no guidance, also after save and load, and loads without trust."""
    guider = built(name)
    guided = quiet(ClassConditionalPipeline(**pipe.components, guider=guider))
    images = images_of(guided)
    assert np.isfinite(images).all() and np.array_equal(images, images_of(pipe, guider=built(name)))
    guided.save_pretrained(tmp_path)
    loaded = quiet(ConditionalPipeline.from_pretrained(tmp_path))
    assert type(loaded.guider) is type(guider)
    assert np.array_equal(images_of(loaded), images)
    assert np.array_equal(images_of(loaded, guidance_scale=2.0), images_of(pipe, guidance_scale=2.0))
    other = guiders.ClassifierFreeGuidance(2.0)
    assert np.array_equal(images_of(loaded, guider=other), images_of(pipe, guidance_scale=2.0))


def test_a_guider_is_registered_and_removed(pipe, tmp_path):
    guided = quiet(ClassConditionalPipeline(**pipe.components))
    plain = images_of(guided)
    guided.register_modules(guider=built("AdaptiveProjectedGuidance"))
    images = images_of(guided)
    assert not np.allclose(images, plain, atol=1e-3)
    again = quiet(ClassConditionalPipeline.from_pipe(guided))
    assert again.guider is guided.guider and np.array_equal(images_of(again), images)
    made = quiet(ClassConditionalPipeline(**guided.components))
    assert made.guider is guided.guider and np.array_equal(images_of(made), images)
    guided.guider = None
    assert np.array_equal(images_of(guided), plain)
    guided.save_pretrained(tmp_path)
    assert ConditionalPipeline.from_pretrained(tmp_path).guider is None


def test_diffusers_alone_loads_the_guider(pipe, tmp_path):
    """The code in the folder is what runs; without it diffusers says that it needs trust."""
    for name, library in (("SkipLayerGuidance", "diffusers"), ("MagnitudeAwareGuidance", "diffusers.guiders")):
        guided = quiet(ClassConditionalPipeline(**pipe.components, guider=built(name)))
        guided.save_pretrained(tmp_path)
        assert json.loads((tmp_path / "model_index.json").read_text())["guider"] == [library, name]
        with pytest.raises(ValueError, match="trust_remote_code"):
            DiffusionPipeline.from_pretrained(tmp_path)
        alone = quiet(DiffusionPipeline.from_pretrained(tmp_path, trust_remote_code=True))
        assert type(alone).__module__.startswith("diffusers_modules.")
        assert np.array_equal(images_of(alone), images_of(guided))


def test_an_unconditional_model_is_guided_by_a_worse_network():
    pipe = quiet(UnconditionalPipeline(**make_components("none")))
    calls = UNetCalls(pipe)
    call = {"batch_size": 2, "num_inference_steps": 3, "output_type": "np"}
    plain = pipe(**call, generator=generators(2)).images
    guider = built("PerturbedAttentionGuidance", guidance_scale=1.0)
    guided = pipe(**call, generator=generators(2), guider=guider).images
    assert not np.allclose(plain, guided, atol=1e-3) and calls.batch_sizes == [2, 2, 2, *[2] * 5]


def test_guiders_that_do_not_fit_are_named(pipe):
    for options in ({"skip_layer_guidance_layers": [0]}, {"skip_layer_config": LayerSkipConfig([7], fqn=STACK)}):
        guider = guiders.SkipLayerGuidance(**options, skip_layer_guidance_start=0.0, skip_layer_guidance_stop=1.0)
        with pytest.raises(ValueError, match=f"SkipLayerGuidance does not fit this model: .*{STACK}") as error:
            images_of(pipe, guider=guider)
        assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match="LTX2Guidance does not fit this model"):
        images_of(pipe, guider=guiders.LTX2Guidance(stg_scale=1.0))
    with pytest.raises(ValueError, match="guider dict is not one of diffusers' guiders"):
        ClassConditionalPipeline(**pipe.components, guider={})


def test_options_that_a_guider_would_ignore(pipe):
    guider = built("ClassifierFreeGuidance")
    for option in ({"guidance_interval": (0.0, 0.5)}, {"guidance_rescale": 0.5}):
        with pytest.raises(ValueError, match="have no effect with the guider ClassifierFreeGuidance"):
            images_of(pipe, guider=guider, **option)
        guided = ClassConditionalPipeline(**pipe.components, guider=guider)
        with pytest.raises(ValueError, match="or pass guidance_scale too, which replaces it"):
            images_of(guided, **option)
    with pytest.raises(ValueError, match="pass guider or guidance_scale, not both"):
        images_of(pipe, guider=guider, guidance_scale=2.0)
