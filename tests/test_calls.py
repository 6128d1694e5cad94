"""The calls that people make: the right thing, or one line that names the argument."""

import threading

import numpy as np
import pytest
import torch
from diffusers import guiders
from diffusers.callbacks import MultiPipelineCallbacks, SDCFGCutoffCallback
from diffusers.hooks import LayerSkipConfig
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from parents_common import clip_text_encoder, clip_tokenizer
from PIL import Image
from pipelines_common import UNetCalls, generators, make_components, quiet, tiny_unet, tiny_vae

from cond_pipelines import (
    ClassConditionalPipeline,
    ConditionalPipeline,
    TextAdapter,
    TextToImagePipeline,
    UnconditionalPipeline,
)
from cond_pipelines.adapters.text import PromptAdapter
from cond_pipelines.pipelines.vae import vae_decode


@pytest.fixture(scope="module")
def pipe():
    return quiet(ClassConditionalPipeline(**make_components("class")))


@pytest.fixture(scope="module")
def text():
    return quiet(TextToImagePipeline(**make_components("text")))


def images_of(pipe, **call):
    given = {"class_labels": ["star", 0], "num_inference_steps": 2, "output_type": "np", "generator": generators(2)}
    return pipe(**given | call).images


# ------------------------------------------------------------------------------------------------- the right thing
def test_an_int_is_a_seed(pipe):
    one = images_of(pipe, generator=torch.Generator().manual_seed(42))
    for seed in (42, np.int64(42)):
        assert np.array_equal(images_of(pipe, generator=seed), one)
    assert np.array_equal(images_of(pipe, generator=[3, 4]), images_of(pipe, generator=generators(2, first_seed=3)))


@pytest.mark.parametrize(
    "labels", [np.array([2, 0]), torch.tensor([2, 0]), np.array(["star", "circle"]), (2, np.int8(0))]
)
def test_labels_as_arrays_and_tensors(pipe, labels):
    assert np.array_equal(images_of(pipe, class_labels=labels), images_of(pipe))


def test_one_label_as_a_number_of_numpy_or_torch(pipe):
    expected = images_of(pipe, class_labels=1, generator=0)
    for label in (np.int64(1), torch.tensor(1), [torch.tensor(1)]):
        assert np.array_equal(images_of(pipe, class_labels=label, generator=0), expected)


def test_images_and_masks_of_any_kind(pipe):
    rng = np.random.default_rng(0)
    image, mask = rng.integers(0, 256, (8, 8, 3), dtype=np.uint8), rng.random((8, 8)) > 0.5
    rgba = Image.fromarray(np.dstack([np.repeat(255 * mask[..., None], 3, 2), np.full((8, 8), 7)]).astype(np.uint8))
    expected = images_of(pipe, image=Image.fromarray(image), mask_image=Image.fromarray(255 * mask.astype(np.uint8)))
    for same in (image, torch.from_numpy(image).permute(2, 0, 1), [image]):
        assert np.allclose(images_of(pipe, image=same, mask_image=mask.astype(np.float32)), expected, atol=1e-6)
    for same in (
        mask,
        mask.astype(int),
        255 * mask.astype(np.uint8),
        torch.from_numpy(mask),
        torch.from_numpy(mask).int(),
        rgba,
    ):
        assert np.allclose(images_of(pipe, image=image, mask_image=same), expected, atol=1e-6)


def test_a_guidance_scale_for_each_image(pipe):
    scales = [1.0, 4.0]
    images = images_of(pipe, guidance_scale=scales)
    for i, scale in enumerate(scales):
        assert np.allclose(images[i], images_of(pipe, guidance_scale=scale)[i], atol=1e-5)
    assert np.array_equal(images, images_of(pipe, guidance_scale=torch.tensor(scales)))


# ------------------------------------------------------------------------------------------------- errors in a line
@pytest.mark.parametrize(
    ("wrong", "line"),
    [
        ({"class_labels": []}, "class_labels is empty"),
        ({"class_labels": [1.7]}, "class label '1.7' is neither the name nor the number of a class"),
        ({"class_labels": True}, "class label 'True' is neither"),
        ({"num_inference_steps": 0}, "num_inference_steps 0 is not a whole number of at least 1"),
        ({"num_inference_steps": 2.5}, "num_inference_steps 2.5"),
        ({"height": 0}, "height 0 is not a whole number of at least 1"),
        ({"num_images_per_prompt": 0}, "num_images_per_prompt 0"),
        ({"output_type": "pli"}, "output_type 'pli' is not one of pil, np, pt, latent"),
        ({"generator": -1}, "generator -1 is neither a torch.Generator nor a seed"),
        ({"generator": "42"}, "generator '42'"),
        ({"guidance_scale": "high"}, "guidance_scale 'high' is not a number"),
        ({"guidance_scale": float("nan")}, "guidance_scale nan"),
        ({"guidance_scale": [1.0, 2.0, 4.0]}, "guidance_scale has 3 entries for 2 images"),
        ({"guidance_interval": 3}, "guidance_interval 3"),
        ({"strength": 2}, "strength 2 must be between 0 and 1"),
        ({"latents": 3}, "latents 3 is not a tensor"),
        ({"image": "cat.png"}, "image 'cat.png' is no PIL image, array or tensor"),
        ({"callback_on_step_end": 3}, "callback_on_step_end 3 is not a function"),
        ({"cross_attention_kwargs": 3}, "cross_attention_kwargs 3 is not a dict"),
        ({"guidance": 3}, "guidance 3 is not a Guidance"),
        ({"guider": 3}, "guider 3 is not one of diffusers' guiders"),
        ({"sigmas": "1"}, "sigmas '1' is not a list of numbers"),
    ],
)
def test_wrong_values_give_one_line(pipe, wrong, line):
    with pytest.raises(ValueError) as error:
        pipe(**{"class_labels": ["star", 0]} | wrong)
    assert line in str(error.value) and "\n" not in str(error.value)


def test_unknown_arguments_are_named(pipe):
    for name in ("seed", "prompt"):
        with pytest.raises(TypeError, match=f"'{name}'"):
            pipe("star", **{name: 1})


def test_batch_sizes():
    pipe = quiet(UnconditionalPipeline(**make_components("none")))
    for wrong in (0, -1, 1.5, True, "2"):
        with pytest.raises(ValueError, match=r"batch_size .* is not a whole number of at least 1"):
            pipe(batch_size=wrong)
    assert len(pipe(batch_size=np.int64(2), num_inference_steps=1).images) == 2


def test_text_embeddings_that_do_not_fit(text):
    embeds, _, mask, _ = text.encode_prompt(["a red circle", "two stars"])
    with pytest.raises(ValueError, match="negative_prompt_embeds has 1 entries for 2 images"):
        text(prompt_embeds=embeds, prompt_attention_mask=mask, negative_prompt_embeds=embeds[:1])
    parts = text.components | {"text_encoder": None}
    with pytest.raises(ValueError, match="needs the text encoder"):
        TextToImagePipeline(**parts)("a red circle")


def test_two_calls_at_once_are_refused(pipe):
    """From another thread while a call runs, and from its own callback."""
    errors = []

    def again(pipe, step, t, tensors):
        def call():
            try:
                images_of(pipe)
            except RuntimeError as error:
                errors.append(str(error))

        thread = threading.Thread(target=call)
        thread.start()
        thread.join()

    images = images_of(pipe, callback_on_step_end=again)
    assert len(errors) == 2 and all("is sampling already" in e and "\n" not in e for e in errors)
    assert np.array_equal(images, images_of(pipe))


VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-2, 3),
    st.floats(allow_nan=True, allow_subnormal=False),
    st.text(max_size=3),
    st.lists(st.floats(0, 1, allow_subnormal=False), max_size=3),
    st.just(np.zeros((8, 8, 3))),
    st.just(torch.zeros(2, 3, 8, 8)),
    st.just({}),
)
NAMES = ["class_labels", "negative_class_labels", "height", "width", "num_inference_steps", "sigmas", "guidance_scale"]
NAMES += ["guidance_interval", "guidance_rescale", "num_images_per_prompt", "generator", "latents", "image", "eta"]
NAMES += ["mask_image", "strength", "output_type", "return_dict", "guidance", "guider", "cross_attention_kwargs"]


@settings(max_examples=500, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(st.dictionaries(st.sampled_from(NAMES), VALUES, min_size=1, max_size=2))
def test_random_calls_are_right_or_one_line(pipe, wrong):
    try:
        out = pipe(**{"class_labels": ["star", 0], "num_inference_steps": 1} | wrong)
    except ValueError as error:
        assert "\n" not in str(error) and len(str(error)) < 400, wrong
    else:
        assert len(out[0]) > 0


# ------------------------------------------------------------------------------------------- diffusers' conventions
@pytest.mark.parametrize("cls", [TextAdapter, PromptAdapter])
def test_a_word_of_several_vectors_expands(cls):
    """Textual inversion, as in StableDiffusionPipeline: "<cat>" stands for "<cat> <cat>_1 <cat>_2"."""
    tokenizer = clip_tokenizer()
    adapter = cls.for_unet(tiny_unet(cross_attention_dim=16), text_encoder=clip_text_encoder(tokenizer))
    before = adapter.preprocess(["a cat"], tokenizer)["input_ids"]
    tokenizer.add_tokens(["<cat>", "<cat>_1", "<cat>_2"])
    assert torch.equal(adapter.preprocess(["a cat"], tokenizer)["input_ids"], before)
    ids = adapter.preprocess(["a <cat>"], tokenizer)["input_ids"][0].tolist()
    vectors = tokenizer.convert_tokens_to_ids(["<cat>", "<cat>_1", "<cat>_2"])
    first = ids.index(vectors[0])
    assert ids[first : first + 3] == vectors and not set(ids[first + 3 :]) & set(vectors)


MIDDLE = {"indices": [0], "fqn": "mid_block.attentions.0.transformer_blocks"}
GUIDERS = {
    "AdaptiveProjectedGuidance": {},
    "AdaptiveProjectedMixGuidance": {},
    "AutoGuidance": {"auto_guidance_config": LayerSkipConfig(**MIDDLE)},
    "ClassifierFreeZeroStarGuidance": {},
    "PerturbedAttentionGuidance": {"perturbed_guidance_config": LayerSkipConfig(**MIDDLE, skip_ff=False)},
    "SkipLayerGuidance": {"skip_layer_config": LayerSkipConfig(**MIDDLE)},
    "SmoothedEnergyGuidance": {
        "seg_guidance_config": guiders.smoothed_energy_guidance.SmoothedEnergyGuidanceConfig(**MIDDLE)
    },
    "TangentialClassifierFreeGuidance": {},
}


def test_classifier_free_guidance_through_a_guider_is_ours(pipe):
    for options, ours in (
        ({"guidance_scale": 3.0}, {"guidance_scale": 3.0}),
        (
            {"guidance_scale": 3.0, "start": 0.25, "stop": 0.75},
            {"guidance_scale": 3.0, "guidance_interval": (0.25, 0.75)},
        ),
        ({"guidance_scale": 1.0}, {"guidance_scale": 1.0}),
    ):
        guider = guiders.ClassifierFreeGuidance(**options)
        images = images_of(pipe, guider=guider, num_inference_steps=4)
        assert np.array_equal(images, images_of(pipe, **ours, num_inference_steps=4))


@pytest.mark.parametrize("name", GUIDERS)
def test_every_guider_that_fits_a_unet(pipe, name):
    """It changes the images, leaves the network as it was, and serves the next call."""
    guider = getattr(guiders, name)(**GUIDERS[name])
    plain = images_of(pipe, guidance_scale=1.0, num_inference_steps=4)
    images = [images_of(pipe, guider=guider.new(), num_inference_steps=4) for _ in range(2)]
    assert np.isfinite(images[0]).all() and not np.allclose(images[0], plain, atol=1e-3)
    assert np.array_equal(*images)
    assert np.array_equal(images_of(pipe, guidance_scale=1.0, num_inference_steps=4), plain)


def test_a_guider_that_does_not_fit_is_named(pipe):
    with pytest.raises(ValueError, match="MagnitudeAwareGuidance does not fit predictions of images") as error:
        images_of(pipe, guider=guiders.MagnitudeAwareGuidance())
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("wrap", [lambda callback: callback, lambda callback: MultiPipelineCallbacks([callback])])
def test_diffusers_own_callbacks(pipe, wrap):
    """From its step on SDCFGCutoffCallback makes one pass instead of two, under the condition."""
    calls = UNetCalls(pipe)
    callback = wrap(SDCFGCutoffCallback(cutoff_step_ratio=0.5))
    images = images_of(pipe, callback_on_step_end=callback, num_inference_steps=4, guidance_scale=3.0)
    assert calls.batch_sizes == [4, 4, 4, 2]
    same = images_of(pipe, num_inference_steps=4, guidance_scale=3.0, guidance_interval=(0.0, 0.75))
    assert np.array_equal(images, same)


# ------------------------------------------------------------------------------------------------- files and parts
def test_saved_sharded_and_then_whole(pipe, tmp_path):
    pipe.save_pretrained(tmp_path, max_shard_size="100KB")
    assert list(tmp_path.glob("unet/*.index.json"))
    with torch.no_grad():
        pipe.unet.conv_out.bias.add_(0.25)
    try:
        pipe.save_pretrained(tmp_path)
        assert not list(tmp_path.glob("unet/*.index.json")) and not list(tmp_path.glob("unet/*-of-*"))
        loaded = ConditionalPipeline.from_pretrained(tmp_path)
        assert torch.equal(loaded.unet.conv_out.bias, pipe.unet.conv_out.bias)
    finally:
        with torch.no_grad():
            pipe.unet.conv_out.bias.sub_(0.25)


def test_single_files_are_read_or_named(tmp_path):
    for name, line in (("model.ckpt", "is no .safetensors file"), ("model.safetensors", "cannot be read as one file")):
        (tmp_path / name).write_bytes(b"no weights")
        with pytest.raises(ValueError, match=line) as error:
            TextToImagePipeline.from_pretrained(tmp_path / name)
        assert "\n" not in str(error.value)


def test_a_vae_that_overflows_in_half_precision_is_upcast():
    vae = tiny_vae().half()
    with torch.no_grad():
        vae.post_quant_conv.weight.mul_(3e4)
        latents = torch.full((1, 4, 8, 8), 30.0, dtype=torch.float16)
        assert not vae.decode(latents / vae.config.scaling_factor, return_dict=False)[0].isfinite().all()
        assert vae_decode(vae, latents).isfinite().all() and vae.dtype == torch.float16
