"""The calls that people make: the right thing, or one line that names the argument."""

import logging
import re
import threading

import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, guiders
from diffusers.callbacks import MultiPipelineCallbacks, SDCFGCutoffCallback
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from parents_common import clip_text_encoder, clip_tokenizer, unet2d
from PIL import Image
from pipelines_common import UNetCalls, generators, make_components, quiet, tiny_unet, tiny_vae

from cond_pipelines import (
    ClassConditionalPipeline,
    ClassLabelAdapter,
    ConditionalPipeline,
    TextAdapter,
    TextToImagePipeline,
    UnconditionalPipeline,
)
from cond_pipelines.adapters.text import PromptAdapter
from cond_pipelines.networks.surgery import with_socket
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
@pytest.mark.filterwarnings("ignore:invalid value encountered in cast")
def test_black_pictures_of_damaged_weights_are_warned_of(caplog):
    pipe = quiet(ClassConditionalPipeline(**make_components("class")))
    logging.getLogger("cond_pipelines").propagate = True
    images_of(pipe, output_type="pil")
    assert not caplog.messages
    next(pipe.unet.parameters()).data.fill_(torch.nan)
    assert np.isnan(images_of(pipe)).all() and not caplog.messages  # an array says it itself
    images_of(pipe, output_type="pil")
    assert len(caplog.messages) == 1 and "values that are no numbers" in caplog.text


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


def test_an_image_of_another_size_or_type(pipe):
    """Alone it decides the size; with a mask both come to the model's size. Its type changes nothing."""
    rng = np.random.default_rng(0)
    wide = rng.random((8, 16, 3)).astype(np.float32)
    images = images_of(pipe, image=wide)
    assert images.shape == (2, 8, 16, 3)
    for same in (wide.astype(np.float64), torch.from_numpy(wide).permute(2, 0, 1), [wide, wide], wide[None]):
        assert np.allclose(images_of(pipe, image=same), images, atol=1e-6)
    mask = np.zeros((8, 16), dtype=np.float32)
    mask[:, 4:] = 1
    painted = images_of(pipe, image=wide, mask_image=mask, height=8, width=16, strength=1.0)
    kept = np.abs(painted - wide) < 1e-5
    assert kept[:, :, :4].all() and not kept[:, :, 4:].all(axis=(0, 1, 3)).any(), "white is where it paints"
    inverted = images_of(pipe, image=wide, mask_image=1 - mask, height=8, width=16, strength=1.0)
    assert np.allclose(inverted[:, :, 4:], wide[None, :, 4:], atol=1e-5)
    assert images_of(pipe, image=wide, mask_image=mask).shape == (2, 8, 8, 3)
    with pytest.raises(ValueError, match=r"height 6 and width 7 must be multiples of"):
        images_of(quiet(model_without_attention()), image=rng.random((6, 7, 3)).astype(np.float32))


def model_without_attention():
    """A model of diffusers' UNet2DModel, which takes only some sizes."""
    unet = with_socket(unet2d())
    adapter = ClassLabelAdapter.for_unet(unet, id2label={0: "circle", 1: "square", 2: "star"})
    return ClassConditionalPipeline(unet, FlowMatchEulerDiscreteScheduler(), adapter)


def test_attention_arguments_of_a_network_without_attention():
    with pytest.raises(ValueError, match="cross_attention_kwargs: UNet2DModel has no cross-attention"):
        images_of(quiet(model_without_attention()), cross_attention_kwargs={"scale": 0.5})


def test_numbers_of_numpy_and_torch(pipe):
    expected = images_of(pipe, num_inference_steps=3, guidance_scale=2.0)
    same = {"num_inference_steps": np.int64(3), "guidance_scale": np.float32(2.0), "height": torch.tensor(8)}
    assert np.array_equal(images_of(pipe, **same), expected)
    latents = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    half = images_of(pipe, latents=latents.half())
    assert np.array_equal(half, images_of(pipe, latents=latents.half().float()))
    assert np.isfinite(images_of(pipe, guidance_scale=-1.0)).all() and len(images_of(pipe, generator=(1, 2))) == 2
    twice = images_of(pipe, class_labels="star", num_images_per_prompt=np.int64(2))
    assert np.allclose(twice, images_of(pipe, class_labels=["star", "star"]), atol=1e-5)


def test_prompts_of_any_kind(text):
    call = {"num_inference_steps": 1, "output_type": "np"}
    expected = text(["a red circle", ""], **call, generator=[0, 1]).images
    for prompts in (("a red circle", None), np.array(["a red circle", ""])):
        assert np.array_equal(text(prompts, **call, generator=[0, 1]).images, expected)
    for wrong, line in (
        ([], "prompt is empty"),
        ((), "prompt is empty"),
        ([1], "prompt 1 is not a string"),
        (3.5, "prompt 3.5 is not a string"),
        ({"a": 1}, "is not a string"),
        (["a", ["b"]], "is not a string"),
    ):
        with pytest.raises(ValueError, match=re.escape(line)) as error:
            text(wrong, **call)
        assert "\n" not in str(error.value)


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
        ({"strength": 0.4}, "strength 0.4 has no effect without image: pass one, or leave strength out"),
        ({"latents": 3}, "latents 3 is not a tensor"),
        ({"image": "cat.png"}, "image 'cat.png' is no PIL image, array or tensor"),
        ({"callback_on_step_end": 3}, "callback_on_step_end 3 is not a function"),
        ({"cross_attention_kwargs": 3}, "cross_attention_kwargs 3 is not a dict"),
        ({"guidance": 3}, "guidance 3 is not a Guidance"),
        ({"guider": 3}, "guider 3 is not one of diffusers' guiders"),
        ({"sigmas": "1"}, "sigmas '1' is not a list of numbers"),
        ({"sigmas": []}, "sigmas [] is not a list of numbers"),
        ({"class_labels": np.array([True, False])}, "class label 'True' is neither"),
        ({"class_labels": torch.tensor([2.0, 0.0])}, "class label '2.0' is neither"),
        ({"class_labels": ["1", 0]}, "unknown class label '1'"),
        ({"class_labels": {}}, "class label '{}' is neither"),
        ({"class_labels": 3}, "class label 3 is outside of 0 .. 2"),
        ({"negative_class_labels": [0, 1, 2]}, "negative_class_labels has 3 entries for 2 images"),
        ({"negative_class_labels": []}, "negative_class_labels is empty"),
        ({"generator": [0, 1, 2]}, "got 3 generators for 2 images"),
        ({"generator": [0, None]}, "generator[1] None is neither a torch.Generator nor a seed"),
        ({"generator": []}, "got 0 generators for 2 images"),
        ({"generator": True}, "generator True"),
        ({"guidance_scale": float("inf")}, "guidance_scale inf is not a number"),
        ({"guidance_scale": [1.0, "2"]}, "guidance_scale[1] '2' is not a number"),
        ({"guidance_scale": []}, "guidance_scale [] is not a list of numbers"),
        ({"guidance_scale": {"size": 2.0}}, "needs conditions with names"),
        ({"guidance_rescale": 1.5}, "guidance_rescale 1.5 must be between 0 and 1"),
        ({"eta": "0.5"}, "eta '0.5' is not a number"),
        ({"eta": 2}, "eta 2 must be between 0 and 1"),
        ({"height": -8}, "height -8 is not a whole number of at least 1"),
        ({"width": 8.5}, "width 8.5"),
        ({"num_images_per_prompt": 1.5}, "num_images_per_prompt 1.5"),
        ({"num_images_per_prompt": True}, "num_images_per_prompt True"),
        ({"num_inference_steps": "4"}, "num_inference_steps '4'"),
        ({"num_inference_steps": -1}, "num_inference_steps -1"),
        ({"latents": torch.zeros(1, 3, 8, 8)}, "latents have the shape (1, 3, 8, 8), and (2, 3, 8, 8) is needed"),
        ({"latents": torch.zeros(2, 3, 8, 8, dtype=torch.int64)}, "latents are torch.int64, and numbers with a fract"),
        ({"latents": np.zeros((2, 3, 8, 8))}, "is not a tensor"),
        ({"image": []}, "image is an empty list"),
        ({"image": torch.zeros(3, 1, 8, 8)}, "image has 1 channels, and the model 3"),
        ({"image": torch.zeros(3, 3, 8, 8)}, "image: 3 for 2 conditions"),
        ({"mask_image": Image.new("L", (8, 8))}, "mask_image says where to paint: pass the image too"),
        ({"strength": 0.0, "image": Image.new("RGB", (8, 8))}, "strength 0.0 leaves none of 2 steps"),
        ({"callback_on_step_end": lambda pipe, i, t: None}, "must take (pipeline, step_index, timestep, callback_kw"),
        ({"callback_on_step_end": lambda *_: torch.zeros(1)}, "returned tensor([0.]): return a dictionary, or None"),
        ({"callback_on_step_end": lambda *_: {"latents": torch.zeros(1)}}, "not of the shape (2, 3, 8, 8)"),
        ({"callback_on_step_end_tensor_inputs": "latents"}, "is not a list of names"),
        ({"output_type": None}, "output_type None is not one of"),
        ({"return_dict": 1}, "return_dict 1 is not True or False"),
        ({"guider": guiders.ClassifierFreeGuidance}, "is not one of diffusers' guiders"),  # the class
        ({"sigmas": [0.5, 1.0]}, "sigmas [0.5, 1.0] must go down: from noise to the image"),
        ({"sigmas": [14.6, 0.5]}, "sigmas [14.6, 0.5] must lie between 0 and 1, as in the training of this model"),
        ({"image": np.full((8, 8, 3), 255.0)}, "image has values up to 255: numbers with a fraction are from 0 to 1"),
        ({"callback_on_step_end": lambda *_: {"latent": 1}}, "returned ['latent'], not among ['latents', "),
        ({"guidance_interval": (0, 1, 1)}, "guidance_interval (0, 1, 1) is not two fractions"),
    ],
)
def test_wrong_values_give_one_line(pipe, wrong, line):
    with pytest.raises(ValueError) as error:
        pipe(**{"class_labels": ["star", 0]} | ({} if "sigmas" in wrong else {"num_inference_steps": 2}) | wrong)
    assert line in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "remedy"),
    [
        ("seed", "use generator=42"),
        ("prompt", "use class_labels"),
        ("negative_prompt", "use negative_class_labels"),
        ("labels", "use class_labels"),
        ("steps", "use num_inference_steps"),
        ("num_inference_step", "use num_inference_steps"),
        ("cfg_scale", "use guidance_scale"),
        ("num_images", "use num_images_per_prompt"),
        ("callback", "use callback_on_step_end"),
        ("clip_skip", "it has class_labels, negative_class_labels, height"),
    ],
)
def test_an_unknown_argument_names_the_right_one(pipe, name, remedy):
    """With the condition of the class, and without: `prompt=` in its place is what people write."""
    for labels in (("star",), ()):
        with pytest.raises(TypeError, match=f"ClassConditionalPipeline has no argument '{name}': {remedy}") as error:
            pipe(*labels, **{name: 1})
        assert "\n" not in str(error.value)
    with pytest.raises(TypeError, match=f"no argument '{name}'"):
        pipe.sample(["star"], **{name: 1})


@pytest.mark.parametrize("embeds", [torch.zeros(5, 32), torch.zeros(1, 5, 4), np.zeros((1, 5, 32)), [0.0]])
def test_wrong_embeds_give_one_line(text, embeds):
    with pytest.raises(ValueError, match=r"^prompt_embeds .* is not a tensor of the shape \(images, tokens, 32\)$"):
        text(prompt_embeds=embeds)


def test_timesteps_of_a_flow_lie_within_the_training(pipe):
    for timesteps, line in (([500, 1000], "must go down"), ([5000, 500], "must lie between 0 and 1000")):
        with pytest.raises(ValueError, match=f"timesteps .* {line}"):
            pipe(class_labels=[0], timesteps=timesteps)
    assert np.isfinite(pipe(class_labels=[0], timesteps=[1000, 500], output_type="np").images).all()


def test_the_other_settings_name_their_own_condition(text):
    with pytest.raises(TypeError, match="TextToImagePipeline has no argument 'class_labels': use prompt"):
        text(class_labels=1)
    none = UnconditionalPipeline(**make_components("none"))
    with pytest.raises(TypeError, match="UnconditionalPipeline has no argument 'prompt': use batch_size"):
        none(prompt="a cat")


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


def test_two_pipelines_with_one_guider(pipe):
    """Each has a scheduler of its own, and a guider keeps state too."""
    guider = guiders.ClassifierFreeGuidance(2.0)
    scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config)
    other = quiet(ClassConditionalPipeline(**pipe.components | {"scheduler": scheduler}))

    def inner(guider):
        def call(*_):
            images_of(other, guider=guider)

        return call

    assert len(images_of(pipe, callback_on_step_end=inner(guider.new()), guider=guider)) == 2
    with pytest.raises(RuntimeError, match="its guider serve one call at a time"):
        images_of(pipe, callback_on_step_end=inner(guider), guider=guider)
    assert len(images_of(pipe, guider=guider)) == 2


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


@pytest.fixture(scope="module")
def small():
    """The least network that has every input, for many calls."""
    blocks = {"block_out_channels": (4,), "down_block_types": ("CrossAttnDownBlock2D",), "attention_head_dim": 1}
    blocks |= {"up_block_types": ("CrossAttnUpBlock2D",), "norm_num_groups": 1, "mid_block_type": None}
    return quiet(ClassConditionalPipeline(**make_components("class", **blocks)))


@settings(max_examples=500, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
@given(st.dictionaries(st.sampled_from(NAMES), VALUES, min_size=1, max_size=2))
def test_random_calls_are_right_or_one_line(small, wrong):
    try:
        out = small(**{"class_labels": ["star", 0], "num_inference_steps": 1} | wrong)
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


def test_a_vae_that_overflows_in_half_precision_is_upcast():
    vae = tiny_vae().half()
    with torch.no_grad():
        vae.post_quant_conv.weight.mul_(3e4)
        latents = torch.full((1, 4, 8, 8), 30.0, dtype=torch.float16)
        assert not vae.decode(latents / vae.config.scaling_factor, return_dict=False)[0].isfinite().all()
        assert vae_decode(vae, latents).isfinite().all() and vae.dtype == torch.float16
