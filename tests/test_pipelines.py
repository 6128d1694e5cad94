import copy
import inspect
import typing

import diffusers
import numpy as np
import pytest
import torch
from angle_adapter import AngleAdapter
from pipelines_common import (
    CAPTIONS,
    ID2LABEL,
    LatentTester,
    PipelineTester,
    TextTester,
    UNetCalls,
    assert_close,
    generators,
    make_components,
    new_adapter,
    quiet,
    sample,
    tiny_text,
    tiny_unet,
    tiny_vae,
    trained,
)
from second_network import AutoGuidance

from cond_pipelines import (
    ClassConditionalPipeline,
    ClassLabelAdapter,
    ConditionalPipeline,
    TextAdapter,
    TextToImagePipeline,
    UnconditionalPipeline,
)
from cond_pipelines.pipelines.guidance import rescale_guided
from cond_pipelines.pipelines.sampling import Sampling, SamplingArguments
from cond_pipelines.pipelines.vae import image_channels, vae_encode, vae_scale_factor

PIPELINES = {"none": UnconditionalPipeline, "class": ClassConditionalPipeline, "text": TextToImagePipeline}
CONDITIONS = {
    "none": {"batch_size": 2},
    "class": {"class_labels": ["star", 0]},
    "text": {"prompt": [CAPTIONS[0], CAPTIONS[1]]},
}
UNTOLD = {
    "none": {"batch_size": 2},
    "class": {"class_labels": [None, None]},
    "text": {"prompt": [None, None]},
}


# --------------------------------------------------------------------------------------- the testers, a setting
class TestUnconditionalPipeline(PipelineTester):
    pipeline_class = UnconditionalPipeline
    setting = "none"
    condition_argument = "batch_size"
    conditions = [None, None, None]

    def condition(self, rows):
        return {"batch_size": len(rows)}


class TestClassConditionalPipeline(PipelineTester):
    pipeline_class = ClassConditionalPipeline
    setting = "class"
    condition_argument = "class_labels"
    conditions = ["square", None, 2]

    def test_labels_by_name_and_by_id(self, pipe):
        by_name, by_id, mixed = (
            sample(pipe, class_labels=labels) for labels in (["circle", "star"], [0, 2], ["circle", 2])
        )
        assert np.array_equal(by_name, by_id) and np.array_equal(by_name, mixed)
        assert not np.allclose(by_name, sample(pipe, class_labels=["star", "circle"]), atol=1e-3)

    def test_one_label_need_not_be_a_list(self, pipe):
        one = [sample(pipe, class_labels=label, generator=generators(1)) for label in ("star", 2, ["star"])]
        assert np.array_equal(one[0], one[1]) and np.array_equal(one[0], one[2])

    def test_negative_labels(self, pipe):
        plain = sample(pipe, class_labels=["star", 0])
        assert_close(sample(pipe, class_labels=["star", 0], negative_class_labels=[None, None]), plain)
        pushed = sample(pipe, class_labels=["star", 0], negative_class_labels="square")
        assert_close(pushed, sample(pipe, class_labels=["star", 0], negative_class_labels=[1, "square"]), atol=0)
        assert not np.allclose(pushed, plain, atol=1e-3)

    @pytest.mark.parametrize(
        ("wrong", "line"),
        [
            ({"class_labels": ["stra"]}, "unknown class label 'stra'; did you mean 'star'?"),
            ({"class_labels": [3]}, "class label 3 is outside of 0 .. 2"),
            ({"class_labels": [-1]}, "class label -1 is outside of 0 .. 2"),
            ({"class_labels": [0, 1], "negative_class_labels": [0, 1, 2]}, "negative_class_labels has 3 entries for 2"),
        ],
    )
    def test_wrong_labels_give_one_line(self, pipe, wrong, line):
        with pytest.raises(ValueError) as error:
            pipe(**wrong)
        assert line in str(error.value) and "\n" not in str(error.value)

    def test_id2label_after_loading(self, saved):
        assert ConditionalPipeline.from_pretrained(saved).id2label == ID2LABEL


class TestTextToImagePipeline(TextTester, PipelineTester):
    pipeline_class = TextToImagePipeline
    setting = "text"
    condition_argument = "prompt"
    conditions = [CAPTIONS[0], None, CAPTIONS[1]]


class TestLatentTextToImagePipeline(TextTester, LatentTester):
    pipeline_class = TextToImagePipeline
    setting = "text"
    condition_argument = "prompt"
    conditions = [CAPTIONS[0], None, CAPTIONS[1]]


class TestCustomAdapterPipeline(PipelineTester):
    """The base class with the adapter of another package."""

    pipeline_class = ConditionalPipeline
    setting = "angle"
    condition_argument = "condition"
    conditions = [30.0, None, 215.0]

    def make_components(self):
        unet = tiny_unet()
        scheduler = diffusers.FlowMatchEulerDiscreteScheduler()
        return {"unet": unet, "scheduler": scheduler, "adapter": trained(AngleAdapter.for_unet(unet), std=2.0)}

    def test_callback_changes_the_condition(self, pipe, expected):
        """This adapter tells nothing by tokens, so changing them to zeros changes nothing."""

        def forget(pipe, step, t, tensors):
            return {name: torch.zeros_like(x) for name, x in tensors.items() if name != "latents"}

        inputs = self.inputs(2, callback_on_step_end=forget)
        images = pipe(**inputs, callback_on_step_end_tensor_inputs=pipe._callback_tensor_inputs).images
        assert np.array_equal(images, expected)

    def test_negative_condition(self, pipe):
        plain = sample(pipe, condition=[30.0, 90.0])
        assert_close(sample(pipe, condition=[30.0, 90.0], negative_condition=[None, None]), plain)
        assert not np.allclose(plain, sample(pipe, condition=[30.0, 90.0], negative_condition=[0.0, 0.0]), atol=1e-3)


# --------------------------------------------------------------------------------------------------- other VAEs
@pytest.mark.parametrize("kind", ["kl", "tiny", "dc"])
class TestVAEs:
    @pytest.mark.parametrize("setting", ["none", "class"])
    def test_sample_save_and_load(self, kind, setting, tmp_path):
        pipe = PIPELINES[setting](**make_components(setting, vae=tiny_vae(kind)))
        images = sample(pipe, **CONDITIONS[setting], width=24)
        assert images.shape == (2, 16, 24, 3) and np.isfinite(images).all() and images.std() > 0
        pipe.save_pretrained(tmp_path)
        loaded = ConditionalPipeline.from_pretrained(tmp_path)
        assert type(loaded.vae) is type(pipe.vae)
        assert np.array_equal(sample(loaded, **CONDITIONS[setting], width=24), images)

    def test_scale_factor_is_what_the_encoder_does(self, kind):
        vae = tiny_vae(kind)
        factor = vae_scale_factor(vae)
        assert factor == 2
        assert vae_encode(vae, torch.zeros(1, 3, 16, 24)).shape == (1, 4, 16 // factor, 24 // factor)

    def test_decode_undoes_the_scaling_of_encode(self, kind):
        pipe = UnconditionalPipeline(**make_components("none", vae=tiny_vae(kind)))
        images = torch.rand(2, 3, 16, 16) * 2 - 1
        with torch.no_grad():
            latents = pipe.encode_images(images, torch.Generator().manual_seed(0))
            encoded = pipe.vae.encode(images)
            if kind == "kl":
                raw = encoded.latent_dist.sample(torch.Generator().manual_seed(0))
                assert_close(latents, (raw - 0.1) * 0.5, atol=1e-6)
            else:
                raw = encoded[0]
            assert_close(pipe.decode(latents), pipe.vae.decode(raw)[0])

    def test_half_precision_vae_under_a_float32_unet(self, kind):
        vae = tiny_vae(kind).to(torch.bfloat16)
        pipe = UnconditionalPipeline(**make_components("none", vae=vae))
        assert pipe.encode_images(torch.zeros(1, 3, 16, 16)).dtype == torch.bfloat16
        assert np.isfinite(sample(pipe, batch_size=2)).all()


def test_a_vae_whose_decoder_is_a_consistency_model():
    """Its configuration names neither in_channels nor block_out_channels."""
    blocks = {"encoder_block_out_channels": (4, 8), "encoder_down_block_types": ("DownEncoderBlock2D",) * 2}
    blocks |= {"decoder_block_out_channels": (4, 8), "decoder_down_block_types": ("ResnetDownsampleBlock2D",) * 2}
    blocks |= {"decoder_up_block_types": ("ResnetUpsampleBlock2D",) * 2, "decoder_layers_per_block": 1}
    blocks |= {"encoder_norm_num_groups": 2, "decoder_norm_num_groups": 2, "encoder_layers_per_block": 1}
    vae = diffusers.ConsistencyDecoderVAE(**blocks, scaling_factor=1.0).eval()
    assert vae_scale_factor(vae) == 2 and image_channels(vae) == 3
    pipe = UnconditionalPipeline(**make_components("none", vae=vae))
    assert sample(pipe, batch_size=2).shape[1:] == (16, 16, 3)


def test_pixels_are_their_own_latents():
    pipe = UnconditionalPipeline(**make_components("none"))
    images = torch.rand(1, 3, 8, 8)
    assert pipe.encode_images(images) is images and pipe.decode(images) is images


# ----------------------------------------------------------------------------------------- swaps of the setting
@pytest.fixture(scope="module")
def parents(tmp_path_factory):
    """A pipeline of each setting with a trained adapter, and where it is saved."""
    found = {}
    for setting, pipeline_class in PIPELINES.items():
        pipe = quiet(pipeline_class(**make_components(setting)))
        path = tmp_path_factory.mktemp(setting)
        pipe.save_pretrained(path)
        found[setting] = (pipe, path)
    return found


@pytest.mark.parametrize("through_disk", [False, True])
@pytest.mark.parametrize("target", PIPELINES)
@pytest.mark.parametrize("source", PIPELINES)
def test_a_swapped_adapter_starts_as_its_parent(parents, source, target, through_disk, tmp_path):
    """A new adapter's images equal the parent's unconditional ones, whatever it is told and however it is guided."""
    parent, path = parents[source]
    expected = sample(parent, **UNTOLD[source], output_type="pt")
    if through_disk:
        parent = ConditionalPipeline.from_pretrained(path)
    text = tiny_text() if target == "text" else {}
    adapter = new_adapter(target, parent.unet, text.get("text_encoder"))
    child = PIPELINES[target].from_pipe(parent, adapter=adapter, **text)
    if through_disk:
        child.save_pretrained(tmp_path)
        child = ConditionalPipeline.from_pretrained(tmp_path)
    assert type(child) is PIPELINES[target]
    weights, kept = parents[source][0].unet.state_dict(), child.unet.state_dict()
    assert weights.keys() == kept.keys() and all(torch.equal(weights[name], kept[name]) for name in weights)
    for told in (CONDITIONS[target], UNTOLD[target]):
        images = sample(child, **told, output_type="pt")
        if "text" in (source, target):
            assert (images - expected).norm() <= 1e-5 * expected.norm()
        else:
            assert torch.equal(images, expected)


@pytest.mark.parametrize("setting", ["class", "text"])
def test_a_trained_condition_changes_the_images(parents, setting):
    """So that the test above compares something."""
    parent, _ = parents[setting]
    assert not np.allclose(sample(parent, **CONDITIONS[setting]), sample(parent, **UNTOLD[setting]), atol=1e-2)


def test_swap_keeps_vae_scheduler_and_defaults():
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
    components = make_components("none", vae=tiny_vae()) | {"scheduler": scheduler}
    parent = UnconditionalPipeline(**components, default_num_inference_steps=12, default_guidance_scale=1.5)
    adapter = ClassLabelAdapter.for_unet(parent.unet, num_classes=4)
    child = ClassConditionalPipeline.from_pipe(parent, adapter=adapter)
    assert child.vae is parent.vae and child.scheduler is parent.scheduler
    assert (child.config.default_num_inference_steps, child.config.default_guidance_scale) == (12, 1.5)
    assert child.vae_scale_factor == 2


def test_swap_keeps_half_precision():
    parent = UnconditionalPipeline(**make_components("none")).to(torch.float16)
    child = ClassConditionalPipeline.from_pipe(parent, adapter=new_adapter("class", parent.unet))
    assert child.unet.dtype == child.adapter.dtype == torch.float16


# ----------------------------------------------------------------------------------------- the class of a model
@pytest.mark.parametrize("source", PIPELINES)
@pytest.mark.parametrize("asked", PIPELINES)
def test_the_wrong_class_names_the_right_one(parents, source, asked):
    path = parents[source][1]
    right = PIPELINES[source]
    if issubclass(right, PIPELINES[asked]):
        assert type(PIPELINES[asked].from_pretrained(path)) is right
        return
    with pytest.raises(ValueError, match=f"holds a {right.__name__}: use {right.__name__}.from_pretrained"):
        PIPELINES[asked].from_pretrained(path)


def test_a_foreign_pipeline_is_named(tmp_path):
    transformer = diffusers.DiTTransformer2DModel(
        num_attention_heads=1, attention_head_dim=8, num_layers=1, sample_size=8, norm_num_groups=4
    )
    diffusers.DiTPipeline(transformer, tiny_vae(), diffusers.DDIMScheduler()).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"holds a DiTPipeline.*diffusers.DiTPipeline.from_pretrained"):
        ConditionalPipeline.from_pretrained(tmp_path)


@pytest.mark.parametrize(("setting", "adapter"), [("class", "none"), ("text", "class"), ("none", "text")])
def test_the_wrong_adapter_names_the_right_one(setting, adapter):
    components = make_components(setting)
    components["adapter"] = new_adapter(adapter, components["unet"], tiny_text()["text_encoder"])
    right = type(new_adapter(setting, components["unet"], tiny_text()["text_encoder"])).__name__
    with pytest.raises(ValueError, match=f"setting '{setting}' and got .*adapter={right}.for_unet"):
        PIPELINES[setting](**components)


def test_help_shows_the_sampling_arguments():
    for pipeline_class in (ConditionalPipeline, *PIPELINES.values()):
        names = list(inspect.signature(pipeline_class.__call__).parameters)
        assert names[0] == "self" and {"num_inference_steps", "generator", "guidance_interval"} <= set(names)


def test_the_arguments_have_the_same_types_for_a_call_and_for_type_checkers():
    names = {"ConditionalPipeline": ConditionalPipeline, "StepCallback": object, "BaseGuidance": object}
    types = [typing.get_type_hints(cls, localns=names) for cls in (Sampling, SamplingArguments)]
    assert types[0] == types[1]


@pytest.mark.parametrize("setting", ["class", "text"])
def test_sample_is_the_call_under_one_name(parents, setting):
    """`pipe.sample(conditions)` gives bit for bit what the setting's own call gives."""
    pipe, _ = parents[setting]
    ((name, conditions),) = CONDITIONS[setting].items()
    sampling = {"num_inference_steps": 2, "guidance_scale": 3.0, "output_type": "np"}
    for negative in (None, conditions[::-1]):
        expected = pipe(**{name: conditions, f"negative_{name}": negative}, **sampling, generator=generators(2)).images
        assert np.array_equal(pipe.sample(conditions, negative, **sampling, generator=generators(2)).images, expected)


class MaskFirst(TextAdapter):
    """Its features come in another order."""

    def encode(self, inputs, encoder=None):
        return dict(reversed(super().encode(inputs, encoder).items()))


class OneMore(TextAdapter):
    """It has one feature more than hidden states and mask."""

    def encode(self, inputs, encoder=None):
        return super().encode(inputs, encoder) | {"length": inputs["attention_mask"].sum(dim=1)}


@pytest.mark.parametrize("adapter_class", [MaskFirst, OneMore])
def test_the_features_of_a_text_adapter_are_read_by_name(parents, adapter_class):
    pipe, _ = parents["text"]
    adapter = adapter_class.for_unet(pipe.unet, text_encoder=pipe.text_encoder)
    adapter.load_state_dict(pipe.adapter.state_dict())
    other = quiet(TextToImagePipeline(**pipe.components | {"adapter": adapter}))
    given = CONDITIONS["text"] | {"negative_prompt": CAPTIONS[2]}
    assert np.array_equal(sample(other, **given), sample(pipe, **given))
    if adapter_class is MaskFirst:
        found, expected = other.encode_prompt(CAPTIONS[0]), pipe.encode_prompt(CAPTIONS[0])
        assert torch.equal(found[0], expected[0]) and torch.equal(found[2], expected[2])
    else:
        with pytest.raises(ValueError, match=r"OneMore encodes a prompt as \['hidden_states', 'length', 'mask'\]"):
            other.encode_prompt(CAPTIONS[0])


# --------------------------------------------------------------------------------------------------- schedulers
DIFFUSION = {"num_train_timesteps": 1000, "beta_schedule": "scaled_linear"}
FLOW_SWAPS = [
    ("FlowMatchHeunDiscreteScheduler", {}),
    ("FlowMatchEulerDiscreteScheduler", {"shift": 3.0}),
    ("DPMSolverMultistepScheduler", {"use_flow_sigmas": True, "prediction_type": "flow_prediction"}),
    ("UniPCMultistepScheduler", {"use_flow_sigmas": True, "prediction_type": "flow_prediction"}),
]
NEEDS_TORCHSDE = "DPMSolverSDEScheduler"
KARRAS_SWAPS = [(k.name, {}) for k in diffusers.schedulers.KarrasDiffusionSchedulers if k.name != NEEDS_TORCHSDE]
EDM_SWAPS = [("EDMEulerScheduler", {}), ("EDMDPMSolverMultistepScheduler", {})]


@pytest.mark.parametrize(
    ("original", "name", "extra"),
    [(diffusers.FlowMatchEulerDiscreteScheduler(), *swap) for swap in FLOW_SWAPS]
    + [(diffusers.DDPMScheduler(**DIFFUSION), *swap) for swap in KARRAS_SWAPS]
    + [(diffusers.EDMEulerScheduler(), *swap) for swap in EDM_SWAPS],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_swapped_scheduler(parents, original, name, extra):
    pipe, _ = parents["class"]
    pipe = ClassConditionalPipeline(**pipe.components | {"scheduler": original})
    pipe.scheduler = getattr(diffusers, name).from_config(pipe.scheduler.config, **extra)
    steps = 6 if "KDPM2" in name else 4
    latents = sample(pipe, class_labels=["star", 0], num_inference_steps=steps, output_type="latent")
    assert latents.shape == (2, 3, 8, 8) and latents.dtype == torch.float32
    assert torch.isfinite(latents).all() and latents.std() > 0
    again = sample(pipe, class_labels=["star", 0], num_inference_steps=steps, output_type="latent")
    assert torch.equal(latents, again), "a scheduler's state must not leak into the next call"


# ----------------------------------------------------------------------------------------------------- guidance
@pytest.mark.parametrize(
    ("setting", "kwargs", "batch_sizes"),
    [
        ("none", {}, [2, 2, 2, 2]),
        ("class", {}, [4, 4, 4, 4]),
        ("text", {}, [4, 4, 4, 4]),
        ("class", {"guidance_scale": 1.0}, [2, 2, 2, 2]),
        ("text", {"guidance_scale": 1.0}, [2, 2, 2, 2]),
        ("class", {"guidance_scale": 0.0}, [4, 4, 4, 4]),
        ("class", {"guidance_interval": (0.25, 0.75)}, [2, 4, 4, 2]),
        ("text", {"guidance_interval": (0.5, 1.0)}, [2, 2, 4, 4]),
        ("class", {"guidance_interval": (0.0, 0.0)}, [2, 2, 2, 2]),
        ("class", {"class_labels": [None, None]}, [2, 2, 2, 2]),
        ("class", {"class_labels": [None, 1]}, [4, 4, 4, 4]),
        ("text", {"prompt": [None, None]}, [2, 2, 2, 2]),
        ("text", {"prompt": CAPTIONS[:2], "negative_prompt": CAPTIONS[:2]}, [2, 2, 2, 2]),
        ("class", {"class_labels": ["star", 0], "negative_class_labels": [2, "circle"]}, [2, 2, 2, 2]),
    ],
)
def test_guidance_skips_the_second_pass_where_it_has_no_effect(parents, setting, kwargs, batch_sizes):
    pipe = PIPELINES[setting](**parents[setting][0].components | {"unet": tiny_unet()})
    calls = UNetCalls(pipe)
    sample(pipe, **CONDITIONS[setting] | kwargs, num_inference_steps=4)
    assert calls.batch_sizes == batch_sizes


def test_guidance_is_the_line_through_both_predictions(parents):
    pipe, _ = parents["class"]
    latents = pipe.prepare_latents(2, 8, 8, generators(2))
    outputs = {}
    for scale in (0.0, 1.0, 4.0):
        outputs[scale] = sample(
            pipe,
            class_labels=[0, 1],
            latents=latents,
            num_inference_steps=1,
            guidance_scale=scale,
            output_type="latent",
        )
    # One Euler step is linear in the prediction.
    assert_close(outputs[4.0], outputs[0.0] + 4.0 * (outputs[1.0] - outputs[0.0]), atol=1e-4)
    untold = sample(pipe, class_labels=[None, None], latents=latents, num_inference_steps=1, output_type="latent")
    assert_close(outputs[0.0], untold)


def test_guidance_interval_equals_both_of_its_halves(parents):
    """With the interval (0, 1/2) the first step is the guided one and the second the plain one."""
    pipe, _ = parents["class"]
    steps = {}
    for name, kwargs in {"half": {"guidance_interval": (0.0, 0.5)}, "all": {}, "off": {"guidance_scale": 1.0}}.items():
        steps[name] = []
        look = steps[name].append
        sample(
            pipe, class_labels=[0, 1], callback_on_step_end=lambda p, i, t, x, look=look: look(x["latents"]), **kwargs
        )
    assert torch.equal(steps["half"][0], steps["all"][0])
    assert not torch.allclose(steps["half"][0], steps["off"][0], atol=1e-3)
    assert not torch.allclose(steps["half"][1], steps["all"][1], atol=1e-3)


def test_guidance_rescale(parents):
    cond, guided = torch.randn(2, 3, 8, 8), torch.randn(2, 3, 8, 8) * 5 + 1
    assert torch.equal(rescale_guided(guided, cond, 0.0), guided)
    full = rescale_guided(guided, cond, 1.0)
    assert_close(full.std(dim=(1, 2, 3)), cond.std(dim=(1, 2, 3)))
    assert_close(rescale_guided(guided, cond, 0.7), 0.7 * full + 0.3 * guided)
    pipe, _ = parents["class"]
    plain, rescaled = (sample(pipe, class_labels=[0, 1], guidance_rescale=phi) for phi in (0.0, 0.7))
    assert pipe.guidance_rescale == 0.7 and not np.allclose(plain, rescaled, atol=1e-3)


def another_unet():
    unet = tiny_unet()
    torch.nn.init.normal_(unet.conv_out.weight, std=0.1, generator=generators(1)[0])
    return unet


def test_guidance_with_a_second_network(parents):
    pipe, _ = parents["class"]
    weaker = another_unet()
    calls = UNetCalls(pipe)
    given = {"class_labels": [0, None], "num_inference_steps": 1, "guidance_scale": None, "output_type": "latent"}
    guided = sample(pipe, **given, guidance=AutoGuidance(weaker, 3.0))
    assert calls.batch_sizes == [2]
    both = pipe.components
    main, weak = (
        sample(ClassConditionalPipeline(**both | {"unet": unet}), **given | {"guidance_scale": 1.0})
        for unet in (pipe.unet, weaker)
    )
    assert_close(guided, weak + 3.0 * (main - weak))  # one step of Euler is linear in the prediction
    assert torch.equal(sample(pipe, **given, guidance=AutoGuidance(pipe.unet, 3.0)), main)
    with pytest.raises(ValueError, match="pass guidance or guidance_scale, not both: AutoGuidance"):
        sample(pipe, **given | {"guidance_scale": 2.0}, guidance=AutoGuidance(weaker, 3.0))


def test_guidance_of_ones_own_has_the_interval_and_the_rescale(parents):
    pipe, _ = parents["class"]
    own, given = AutoGuidance(another_unet(), 3.0), {"class_labels": [0, 1], "guidance_scale": None}
    plain = sample(pipe, **given | {"guidance_scale": 1.0})
    assert np.array_equal(sample(pipe, **given, guidance=own, guidance_interval=(0.0, 0.0)), plain)
    guided = sample(pipe, **given, guidance=own)
    for change in ({"guidance_interval": (0.0, 0.5)}, {"guidance_rescale": 0.7}):
        assert not np.allclose(sample(pipe, **given, guidance=own, **change), guided, atol=1e-3)


def test_cross_attention_kwargs_reach_the_unet(parents):
    pipe, _ = parents["text"]
    sample(pipe, prompt=CAPTIONS[:2], cross_attention_kwargs={"scale": 1.0})
    assert pipe.cross_attention_kwargs == {"scale": 1.0}
    seen = []
    pipe = TextToImagePipeline(**pipe.components | {"unet": tiny_unet()})
    pipe.unet.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs["cross_attention_kwargs"]), with_kwargs=True
    )
    sample(pipe, prompt=CAPTIONS[:2], cross_attention_kwargs={"scale": 0.5})
    assert seen == [{"scale": 0.5}] * 2


# --------------------------------------------------------------------------------------------- images and sizes
@pytest.mark.parametrize(("channels", "mode"), [(1, "L"), (3, "RGB"), (4, "RGBA")])
def test_output_types_of_gray_rgb_and_rgba(channels, mode):
    pipe = UnconditionalPipeline(**make_components("none", channels=channels))
    array, tensor, pil = (sample(pipe, batch_size=2, output_type=kind) for kind in ("np", "pt", "pil"))
    assert array.shape == (2, 8, 8, channels) and tensor.shape == (2, channels, 8, 8)
    assert [image.mode for image in pil] == [mode] * 2
    assert_close(array, tensor.permute(0, 2, 3, 1), atol=0)
    assert_close(np.stack([np.asarray(image).reshape(8, 8, channels) for image in pil]), (array * 255).round(), atol=0)


@pytest.mark.parametrize(("height", "width"), [(12, 8), (8, 20), (10, 6), (7, 9), (28, 28)])
def test_any_size_of_pixels(parents, height, width):
    for setting, (pipe, _) in parents.items():
        images = sample(pipe, **CONDITIONS[setting], height=height, width=width)
        assert images.shape == (2, height, width, 3) and np.isfinite(images).all()


def test_a_unet_trained_on_oblong_images_samples_them():
    pipe = UnconditionalPipeline(**make_components("none", sample_size=(8, 12)))
    assert sample(pipe, batch_size=2).shape == (2, 8, 12, 3)


# ---------------------------------------------------------------------------------------------- missing entries
def test_none_in_a_list_is_unconditional(parents):
    untold = sample(parents["none"][0], batch_size=2)
    labels = sample(parents["class"][0], class_labels=["star", None])
    prompts = sample(parents["text"][0], prompt=[CAPTIONS[1], None])
    assert_close(labels[1], untold[1])
    assert_close(prompts[1], untold[1])
    assert not np.allclose(labels[0], untold[0], atol=1e-3) and not np.allclose(prompts[0], untold[0], atol=1e-3)


def test_pipelines_of_one_unet_share_it(parents):
    parent, _ = parents["none"]
    child = ClassConditionalPipeline.from_pipe(parent, adapter=new_adapter("class", parent.unet))
    assert child.unet is parent.unet
    assert copy.copy(child.components).keys() == {"unet", "scheduler", "adapter", "vae"}


def test_a_vae_decodes_in_its_own_dtype_within_autocast():
    """Stable Diffusion's overflows in fp16, which a training run on an older GPU computes in."""
    pipe = UnconditionalPipeline(**make_components("none", vae=tiny_vae("kl")))
    latents = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = pipe.decode(latents)
        with torch.autocast("cpu", torch.bfloat16):
            found = pipe.decode(latents)
    assert found.dtype == torch.float32 and torch.equal(found, expected)
