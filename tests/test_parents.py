"""diffusers' own checkpoints as ours: the same images, in every mode; swapped; saved, loaded and given back."""

import copy
import json
import random
import shutil
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from parents_common import (
    PROMPTS,
    quiet,
    random_generator,
    random_prompts,
    random_scheduler,
    sd_unet,
    stable_diffusion,
    unconditional_parent,
    unet2d,
)
from PIL import Image
from pipelines_common import (
    CAPTIONS,
    LatentTester,
    PipelineTester,
    TextTester,
    generators,
    make_components,
    tiny_text,
    tiny_vae,
    trained,
)
from safetensors.torch import load_file, save_file

from cond_pipelines import (
    ClassConditionalPipeline,
    ClassLabelAdapter,
    ConditionalPipeline,
    PromptAdapter,
    TextAdapter,
    TextToImagePipeline,
    UnconditionalAdapter,
    UnconditionalPipeline,
)
from cond_pipelines.networks.surgery import with_socket

diffusers.logging.set_verbosity_error()
NUM_CONFIGURATIONS = 8


# ------------------------------------------------------------------------------ equality with Stable Diffusion
def picture(seed: int, mode: str = "RGB") -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    return Image.fromarray(pixels).convert(mode)


def mask(seed: int) -> Image.Image:
    left, top = np.random.default_rng(seed).integers(0, 8, 2)
    return Image.fromarray(np.pad(np.full((8, 8), 255, np.uint8), ((top, 8 - top), (left, 8 - left))))


def edit_inputs(rng: random.Random, n: int) -> dict[str, Any]:
    image = [picture(i) for i in range(n)] if rng.random() < 0.5 else picture(7)
    return {"image": image, "strength": rng.choice([0.5, 0.8, 1.0])}


def inpaint_inputs(rng: random.Random, n: int) -> dict[str, Any]:
    mask_image = [mask(i) for i in range(n)] if rng.random() < 0.5 else mask(7)
    return edit_inputs(rng, n) | {"mask_image": mask_image}


def parent_of(mode: str) -> diffusers.DiffusionPipeline:
    if mode == "inpainting with 9 channels":
        return stable_diffusion(9)
    name = {
        "image-to-image": "StableDiffusionImg2ImgPipeline",
        "inpainting": "StableDiffusionInpaintPipeline",
    }.get(mode)
    if name is None:
        return stable_diffusion()
    return quiet(getattr(diffusers, name)(**stable_diffusion().components, requires_safety_checker=False))


MODES = {
    "text-to-image": lambda rng, n: {"num_images_per_prompt": rng.choice([1, 2])},
    "image-to-image": edit_inputs,
    "inpainting": inpaint_inputs,
    "inpainting with 9 channels": inpaint_inputs,
}


@pytest.mark.filterwarnings("ignore:You have passed")
@pytest.mark.parametrize("number", range(NUM_CONFIGURATIONS))
@pytest.mark.parametrize("mode", MODES)
def test_the_images_of_stable_diffusion(mode, number):
    rng = random.Random(number)
    kwargs, scheduler = random_prompts(rng), random_scheduler(rng, number)
    n = 1 if isinstance(kwargs["prompt"], str) else len(kwargs["prompt"])
    kwargs |= MODES[mode](rng, n) | {"num_inference_steps": rng.choice([3, 4]), "output_type": "np"}
    if isinstance(scheduler, diffusers.PNDMScheduler):
        kwargs["num_inference_steps"] = 24  # in a few it leaves noise, and is refused
    generator = random_generator(rng, n * kwargs.get("num_images_per_prompt", 1))
    parent = parent_of(mode)
    parent = quiet(type(parent)(**parent.components | {"scheduler": scheduler}, requires_safety_checker=False))
    pipe = quiet(TextToImagePipeline.from_pipe(parent, scheduler=copy.deepcopy(scheduler)))
    expected = parent(**kwargs, generator=generator()).images
    images = pipe(**kwargs, generator=generator()).images
    assert np.abs(images - expected).max() == 0
    assert expected.std() > 0.01


def test_the_prompt_is_heard():
    """So that the test above compares something."""
    pipe = quiet(TextToImagePipeline.from_pipe(stable_diffusion()))
    a, b, c = (
        pipe(prompt, negative_prompt=negative, num_inference_steps=3, output_type="np", generator=generators(1)).images
        for prompt, negative in [(PROMPTS[0], None), (PROMPTS[1], None), (PROMPTS[0], PROMPTS[1])]
    )
    assert min(np.abs(a - b).max(), np.abs(a - c).max()) > 0.05


def test_prompt_embeds_of_stable_diffusion():
    parent = stable_diffusion()
    pipe = quiet(TextToImagePipeline.from_pipe(parent))
    embeds, negative = parent.encode_prompt(PROMPTS[:2], "cpu", 1, True)
    ours = pipe.encode_prompt(PROMPTS[:2])
    assert torch.equal(ours[0], embeds) and torch.equal(ours[1], negative)
    kwargs = {"num_inference_steps": 3, "output_type": "np", "guidance_scale": 7.5}
    expected = parent(prompt_embeds=embeds, negative_prompt_embeds=negative, **kwargs, generator=generators(2)).images
    images = pipe(prompt_embeds=embeds, **kwargs, generator=generators(2)).images
    assert np.array_equal(images, expected)


def test_the_images_of_stable_diffusion_2(tmp_path):
    """v-prediction, linear projections, a number of heads a level, and an encoder that is told its mask."""
    torch.manual_seed(0)
    parts = stable_diffusion().components | {"unet": sd_unet(use_linear_projection=True, attention_head_dim=(1, 2))}
    parts["text_encoder"] = copy.deepcopy(parts["text_encoder"])
    parts["text_encoder"].config.use_attention_mask = True
    parts["scheduler"] = diffusers.DDIMScheduler(prediction_type="v_prediction", clip_sample=False, steps_offset=1)
    parent = diffusers.StableDiffusionPipeline(**parts, requires_safety_checker=False)
    parent.save_pretrained(tmp_path)
    expected = sd_images(parent)
    assert np.array_equal(sd_images(ConditionalPipeline.from_pretrained(tmp_path)), expected)
    parts["text_encoder"].config.use_attention_mask = False
    assert not np.allclose(sd_images(TextToImagePipeline.from_pipe(parent)), expected, atol=1e-3)


def test_callbacks_and_eta_of_stable_diffusion():
    scheduler = diffusers.DDIMScheduler(clip_sample=False, steps_offset=1)
    parts = stable_diffusion().components | {"scheduler": scheduler}
    parent = quiet(diffusers.StableDiffusionPipeline(**parts, requires_safety_checker=False))
    pipe = quiet(TextToImagePipeline.from_pipe(parent))
    seen = {}

    def look(pipe, i, t, tensors):
        seen.setdefault(type(pipe), []).append(tensors["latents"])
        return {}

    for p in (parent, pipe):
        p(PROMPTS[0], num_inference_steps=3, eta=0.7, generator=generators(1), callback_on_step_end=look)
    assert all(torch.equal(a, b) for a, b in zip(*seen.values(), strict=True)) and len(seen[type(pipe)]) == 3


# ------------------------------------------------------------------------------ equality with DDPM, DDIM, LDM
@pytest.mark.parametrize("number", range(NUM_CONFIGURATIONS))
@pytest.mark.parametrize("kind", ["DDPM", "DDIM", "LDM"])
def test_the_images_of_an_unconditional_parent(kind, number):
    rng = random.Random(number)
    batch_size = rng.choice([1, 2, 3])
    parent = unconditional_parent(kind)
    config = {
        "prediction_type": rng.choice(["epsilon", "v_prediction", "sample"]),
        "clip_sample": rng.choice([True, False]),
        "beta_schedule": rng.choice(["linear", "squaredcos_cap_v2"]),
    }
    scheduler = (diffusers.DDPMScheduler if kind == "DDPM" else diffusers.DDIMScheduler)(**config)
    parts = {"unet": parent.unet, "scheduler": scheduler}
    parent = quiet(type(parent)(**parts, **({"vqvae": parent.vqvae} if kind == "LDM" else {})))
    pipe = quiet(UnconditionalPipeline.from_pipe(parent))
    generator = random_generator(rng, batch_size)
    kwargs = {"batch_size": batch_size, "num_inference_steps": rng.choice([3, 4]), "output_type": "np"}
    if kind == "DDIM":
        kwargs["eta"] = rng.choice([0.0, 0.5])
    expected = parent(**kwargs, generator=generator()).images
    images = pipe(**kwargs, generator=generator()).images
    assert np.abs(images - expected).max() == 0 and expected.std() > 0.01


def test_defaults_are_those_of_the_parent():
    expected = {"DDPM": 1000, "DDIM": 50, "LDM": 50}
    for kind, steps in expected.items():
        assert UnconditionalPipeline.from_pipe(unconditional_parent(kind)).config.default_num_inference_steps == steps
    config = TextToImagePipeline.from_pipe(stable_diffusion()).config
    assert (config.default_num_inference_steps, config.default_guidance_scale) == (50, 7.5)


def test_the_parent_is_left_as_it_was():
    parent = unconditional_parent("DDPM")
    before = dict(parent.unet.config)
    pipe = UnconditionalPipeline.from_pipe(parent)
    assert dict(parent.unet.config) == before and parent.unet.class_embedding is None
    assert pipe.unet.config.class_embed_type == "identity"
    half = UnconditionalPipeline.from_pipe(copy.deepcopy(parent), dtype=torch.float16)
    assert half.unet.dtype == half.adapter.dtype == torch.float16 and parent.unet.dtype == torch.float32
    old, new = parent.unet.state_dict(), pipe.unet.state_dict()
    assert old.keys() == new.keys() and all(old[k].data_ptr() == new[k].data_ptr() for k in old)


# ------------------------------------------------------------------------------------- the formats of the Hub
def sd_images(pipe: Any, **kwargs: Any) -> np.ndarray:
    given = {"prompt": PROMPTS[:2], "num_inference_steps": 3, "guidance_scale": 7.5, "output_type": "np"}
    return quiet(pipe)(**given | kwargs, generator=generators(2)).images


def drawn(pipe: Any) -> np.ndarray:
    return quiet(pipe)(batch_size=2, num_inference_steps=3, output_type="np", generator=generators(2)).images


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def rename_keys(file: Any, **names: str) -> None:
    """Give the weights of a checkpoint the names that they had years ago."""
    weights = load_file(file)
    renamed = {}
    for key, value in weights.items():
        for new, old in names.items():
            key = key.replace(f".{new}.".replace("__", "."), f".{old}.") if "attentions" in key else key
        renamed[key] = value
    assert renamed.keys() != weights.keys()
    save_file(renamed, file, metadata={"format": "pt"})


OLD_NAMES = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out__0": "proj_attn"}


@pytest.fixture(scope="module")
def sd_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sd") / "model"
    stable_diffusion().save_pretrained(folder)
    return folder


@pytest.fixture
def sd_copy(sd_folder, tmp_path):
    return shutil.copytree(sd_folder, tmp_path / "model")


@pytest.mark.parametrize("cls", [ConditionalPipeline, TextToImagePipeline])
def test_from_pretrained(sd_folder, cls):
    pipe = cls.from_pretrained(sd_folder)
    assert type(pipe) is TextToImagePipeline and type(pipe.adapter) is PromptAdapter
    assert np.array_equal(sd_images(pipe), sd_images(stable_diffusion()))


def test_from_the_hub(sd_folder, hub):
    hub.add("me/sd", files_of(sd_folder))
    pipe = ConditionalPipeline.from_pretrained("me/sd")
    assert np.array_equal(sd_images(pipe), sd_images(stable_diffusion()))


def test_variant_and_dtype(sd_folder, tmp_path):
    parent = diffusers.StableDiffusionPipeline.from_pretrained(sd_folder, dtype=torch.float16)
    parent.save_pretrained(tmp_path, variant="fp16")
    with pytest.raises(ValueError, match="holds weights of the variant fp16 only"):
        ConditionalPipeline.from_pretrained(tmp_path)
    pipe = ConditionalPipeline.from_pretrained(tmp_path, variant="fp16", dtype=torch.float16)
    assert pipe.unet.dtype == pipe.text_encoder.dtype == pipe.adapter.dtype == pipe.adapter.null_tokens.dtype
    assert np.array_equal(sd_images(pipe), sd_images(parent))


@pytest.mark.parametrize("version", ["2022", "2023", "pickles beside"])
def test_old_formats(sd_copy, version, caplog):
    """A safety checker that is there or not, an image processor of a name that is gone, old names of weights."""
    index = json.loads((sd_copy / "model_index.json").read_text())
    if version == "2022":
        index |= {"safety_checker": ["stable_diffusion", "StableDiffusionSafetyChecker"]}
        index |= {"feature_extractor": ["transformers", "CLIPFeatureExtractor"], "_diffusers_version": "0.6.0"}
        index.pop("image_encoder")
        index.pop("requires_safety_checker")
        (sd_copy / "safety_checker").mkdir()
        (sd_copy / "safety_checker/pytorch_model.bin").write_bytes(b"not read")
        rename_keys(sd_copy / "vae/diffusion_pytorch_model.safetensors", **OLD_NAMES)
    elif version == "2023":
        index |= {"safety_checker": [None, None], "feature_extractor": ["transformers", "CLIPImageProcessor"]}
    else:
        (sd_copy / "unet/diffusion_pytorch_model.bin").write_bytes(b"not read")
    (sd_copy / "model_index.json").write_text(json.dumps(index))
    assert np.array_equal(sd_images(ConditionalPipeline.from_pretrained(sd_copy)), sd_images(stable_diffusion()))
    assert ("its safety checker is not loaded" in caplog.text) == (version == "2022")


def test_pickles_alone_are_refused(sd_copy):
    torch.save({}, sd_copy / "unet/diffusion_pytorch_model.bin")
    (sd_copy / "unet/diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(ValueError, match="lacks weights as safetensors") as error:
        ConditionalPipeline.from_pretrained(sd_copy)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["diffusion_pytorch_model.fp16", "diffusion_pytorch_model.non_ema-00001-of-00002"])
def test_weights_of_another_variant_are_named(sd_copy, name):
    (sd_copy / "unet/diffusion_pytorch_model.safetensors").rename(sd_copy / f"unet/{name}.safetensors")
    with pytest.raises(
        ValueError, match=r"unet holds weights of the variant (fp16|non_ema) only: give --variant"
    ) as error:
        ConditionalPipeline.from_pretrained(sd_copy)
    assert name.split(".")[1].split("-")[0] in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("part", ["unet/diffusion_pytorch_model", "text_encoder/model", "vae/diffusion_pytorch_model"])
@pytest.mark.parametrize("num_bytes", [0, 1000])
def test_damaged_weights_are_named(sd_copy, part, num_bytes):
    path = sd_copy / f"{part}.safetensors"
    path.write_bytes(path.read_bytes()[:num_bytes])
    with pytest.raises(ValueError, match=rf"^{path} is damaged \({num_bytes:,} bytes; ") as error:
        ConditionalPipeline.from_pretrained(sd_copy)
    assert "\n" not in str(error.value) and "lacks weights" not in str(error.value)


@pytest.mark.parametrize("component", ["unet", "scheduler", "vae"])
def test_a_component_of_another_library_is_refused(sd_copy, component):
    index = json.loads((sd_copy / "model_index.json").read_text())
    (sd_copy / "model_index.json").write_text(json.dumps(index | {component: ["stable_diffusion", "Anything"]}))
    with pytest.raises(ValueError, match=f"component '{component}' of 'stable_diffusion', which is not loaded"):
        ConditionalPipeline.from_pretrained(sd_copy)


@pytest.mark.parametrize("trust", [{}, {"trust_remote_code": True}])
@pytest.mark.parametrize("component", ["_class_name", "unet"])
def test_code_in_the_repository_is_not_run(sd_copy, component, trust, tmp_path):
    """A pipeline, or a network, under a known name in a file of the repository."""
    names = {"_class_name": "StableDiffusionPipeline", "unet": "UNet2DConditionModel"}
    index = json.loads((sd_copy / "model_index.json").read_text()) | {component: ["evil", names[component]]}
    (sd_copy / "model_index.json").write_text(json.dumps(index))
    code = f"from pathlib import Path\nPath({str(tmp_path / 'ran')!r}).write_text('')\n"
    for folder in (sd_copy, sd_copy / "unet"):
        (folder / "evil.py").write_text(code + f"from diffusers import {names[component]}\n")
    with pytest.raises(ValueError, match=r"trust_remote_code|not loaded without trust"):
        ConditionalPipeline.from_pretrained(sd_copy, **trust)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("layout", ["DDPM", "DDIM", "LDM", "at the root", "without an index"])
def test_unconditional_formats(layout, tmp_path, hub):
    """google/ddpm-* has UNet and scheduler at its root, with or without a model_index.json, and old names."""
    kind = layout if layout in ("DDPM", "DDIM", "LDM") else "DDPM"
    parent = unconditional_parent(kind)
    if kind == layout:
        parent.save_pretrained(tmp_path)
    else:
        parent.unet.save_pretrained(tmp_path)
        parent.scheduler.save_pretrained(tmp_path)
        rename_keys(tmp_path / "diffusion_pytorch_model.safetensors", **OLD_NAMES)
    if layout == "at the root":
        index = {name: ["diffusers", type(part).__name__] for name, part in parent.components.items()}
        (tmp_path / "model_index.json").write_text(json.dumps(index | {"_class_name": "DDPMPipeline"}))
    repo_id = f"me/{layout.replace(' ', '-')}"
    hub.add(repo_id, files_of(tmp_path))
    for place in (tmp_path, repo_id):
        pipe = ConditionalPipeline.from_pretrained(place)
        assert type(pipe) is UnconditionalPipeline
        assert np.array_equal(drawn(pipe), drawn(parent))
        with pytest.raises(ValueError, match=r"use UnconditionalPipeline.from_pretrained, then Text.*\.from_pipe"):
            TextToImagePipeline.from_pretrained(place)


def test_saved_as_ours_and_loaded_by_diffusers_alone(tmp_path):
    for name, parent, draw in [
        ("sd", stable_diffusion(), sd_images),
        ("ddpm", unconditional_parent("DDPM"), drawn),
        ("ldm", unconditional_parent("LDM"), drawn),
    ]:
        cls = TextToImagePipeline if name == "sd" else UnconditionalPipeline
        cls.from_pipe(parent).save_pretrained(tmp_path / name)
        loaded = ConditionalPipeline.from_pretrained(tmp_path / name)
        assert type(loaded) is cls and np.array_equal(draw(loaded), draw(parent))
        trusted = diffusers.DiffusionPipeline.from_pretrained(tmp_path / name, trust_remote_code=True)
        assert np.array_equal(draw(trusted), draw(parent))
        with pytest.raises(ImportError, match=r"pip install \. in a clone"):
            trusted.to_stable_diffusion()
        with pytest.raises(ImportError, match=r"pip install \. in a clone"):
            trusted.grid()
        assert trusted._repr_html_() is None  # a notebook shows its text


@pytest.mark.parametrize("parent", ["a folder without anything", "another pipeline of diffusers"])
def test_what_is_no_checkpoint(parent, tmp_path):
    if parent == "another pipeline of diffusers":
        with pytest.raises(ValueError, match="a DiTPipeline cannot be converted: only StableDiffusionPipeline, "):
            transformer = diffusers.DiTTransformer2DModel(num_attention_heads=1, attention_head_dim=8, num_layers=1)
            scheduler = diffusers.DDIMScheduler()
            pipe = diffusers.DiTPipeline(transformer, stable_diffusion().vae, scheduler)
            UnconditionalPipeline.from_pipe(pipe)
        return
    with pytest.raises(OSError, match=r"model_index\.json"):
        ConditionalPipeline.from_pretrained(tmp_path)


def test_a_unet_that_no_adapter_fits():
    with pytest.raises(ValueError, match=r"class embedding of its own .*num_class_embeds=3"):
        unet = unet2d(num_class_embeds=3)
        UnconditionalPipeline.from_pipe(diffusers.DDPMPipeline(unet, diffusers.DDPMScheduler()))
    parts = stable_diffusion().components | {"unet": sd_unet(time_cond_proj_dim=8)}
    with pytest.raises(ValueError, match="whose UNet has time_cond_proj_dim=8 cannot"):
        TextToImagePipeline.from_pipe(diffusers.StableDiffusionPipeline(**parts, requires_safety_checker=False))
    with pytest.raises(ValueError, match=r"ClassConditionalPipeline\.from_pipe needs an adapter"):
        ClassConditionalPipeline.from_pipe(stable_diffusion())


# ------------------------------------------------------------------------------------------------- and out again
def test_to_stable_diffusion(tmp_path):
    parent = stable_diffusion()
    pipe = TextToImagePipeline.from_pipe(parent)
    back = pipe.to_stable_diffusion()
    assert type(back) is diffusers.StableDiffusionPipeline
    assert np.array_equal(sd_images(back), sd_images(parent))
    back.save_pretrained(tmp_path)
    again = diffusers.StableDiffusionPipeline.from_pretrained(tmp_path)
    assert np.array_equal(sd_images(again), sd_images(pipe))
    inpaint = TextToImagePipeline.from_pipe(stable_diffusion(9)).to_stable_diffusion()
    assert type(inpaint) is diffusers.StableDiffusionInpaintPipeline


def test_to_stable_diffusion_refuses_what_would_not_be_equal():
    parent = stable_diffusion()
    pipe = TextToImagePipeline.from_pipe(parent)

    def refused(pipe: ConditionalPipeline, why: str) -> None:
        with pytest.raises(ValueError, match=f"no equal as a StableDiffusionPipeline: .*{why}") as error:
            pipe.to_stable_diffusion()
        assert "\n" not in str(error.value)

    refused(UnconditionalPipeline.from_pipe(parent), "UnconditionalAdapter gives the UNet something else")
    text = tiny_text()
    adapter = TextAdapter.for_unet(parent.unet, text_encoder=text["text_encoder"])
    refused(TextToImagePipeline.from_pipe(parent, adapter=adapter, **text), "TextAdapter gives the UNet something else")
    refused(TextToImagePipeline.from_pipe(pipe, scheduler=diffusers.DDIMScheduler()), "steps_offset=0 to 1")
    flow = diffusers.FlowMatchEulerDiscreteScheduler()
    refused(TextToImagePipeline.from_pipe(pipe, scheduler=flow), "flow-matching")
    trained_encoder = PromptAdapter.for_unet(parent.unet, null_prompt=None)
    refused(TextToImagePipeline.from_pipe(pipe, adapter=trained_encoder), "text encoder was trained")


# --------------------------------------------------------------------------------------------- swaps of the setting
ID2LABEL = {0: "circle", 1: "square", 2: "star"}


def new_child(setting: str, parent: Any) -> ConditionalPipeline:
    """Of another setting, with a new adapter."""
    unet = parent.unet
    if setting == "none":
        return UnconditionalPipeline.from_pipe(parent, adapter=UnconditionalAdapter.for_unet(unet))
    if setting == "class":
        adapter = ClassLabelAdapter.for_unet(unet, id2label=ID2LABEL)
        return ClassConditionalPipeline.from_pipe(parent, adapter=adapter)
    text = tiny_text()
    adapter = TextAdapter.for_unet(unet, text_encoder=text["text_encoder"])
    return TextToImagePipeline.from_pipe(parent, adapter=adapter, **text)


TOLD = {
    "none": {"batch_size": 2},
    "class": {"class_labels": ["star", None]},
    "text": {"prompt": ["a red circle", "a very small blue square, left of a star"]},
}


@pytest.mark.parametrize("through_disk", [False, True])
@pytest.mark.parametrize("setting", TOLD)
@pytest.mark.parametrize("kind", ["SD", "DDPM", "LDM"])
def test_a_swapped_adapter_starts_as_its_parent(kind, setting, through_disk, tmp_path):
    """Stable Diffusion told nothing is Stable Diffusion told the empty prompt."""
    sampling = {"num_inference_steps": 3, "output_type": "pt"}
    if kind == "SD":
        parent = stable_diffusion()
        untold = {"prompt": ["", ""], "guidance_scale": 1.0}
    else:
        parent, untold = unconditional_parent(kind), {"batch_size": 2}
    expected = torch.as_tensor(
        quiet(parent)(**untold, num_inference_steps=3, output_type="np", generator=generators(2))[0]
    )
    expected = expected.permute(0, 3, 1, 2)
    child = new_child(setting, parent)
    if through_disk:
        child.save_pretrained(tmp_path)
        child = ConditionalPipeline.from_pretrained(tmp_path)
    for guidance_scale in (1.0, 3.0):
        images = quiet(child)(
            **TOLD[setting], **sampling, guidance_scale=guidance_scale, generator=generators(2)
        ).images
        if setting == "text":
            assert (images - expected).norm() <= 1e-5 * expected.norm()
        else:
            assert torch.equal(images, expected)
    weights, kept = parent.unet.state_dict(), child.unet.state_dict()
    assert weights.keys() == kept.keys() and all(torch.equal(weights[name], kept[name]) for name in weights)


@pytest.mark.parametrize("setting", ["class", "text"])
def test_a_swapped_adapter_can_learn(setting):
    """Every parameter of a new adapter behind null tokens has a gradient, and a trained one changes the images."""
    child = new_child(setting, stable_diffusion())
    before = child(**TOLD[setting], num_inference_steps=2, output_type="pt", generator=generators(2)).images
    raw = next(iter(TOLD[setting].values()))
    cond, null = child.encode_condition(raw)
    assert cond.tokens.shape == null.tokens.shape == child.adapter.null_tokens.expand(2, -1, -1).shape
    assert cond.mask is None and cond.equal(null)
    x_t = torch.randn(2, 4, 8, 8)
    child.unet(x_t, torch.tensor([10, 500]), **cond.unet_kwargs(child.unet)).sample.square().mean().backward()
    assert child.adapter.token_proj.weight.grad.abs().max() > 0
    trained(child.adapter)
    after = child(**TOLD[setting], num_inference_steps=2, output_type="pt", generator=generators(2)).images
    assert not torch.allclose(before, after, atol=1e-2)


def test_null_tokens_go_on_from_swap_to_swap():
    """SD -> class -> nothing -> text: each told what the empty prompt was."""
    pipe = TextToImagePipeline.from_pipe(stable_diffusion())
    null = pipe.adapter.null_tokens
    for setting in ("class", "none", "text"):
        pipe = new_child(setting, pipe)
        assert torch.equal(pipe.adapter.null_tokens, null)


def test_an_adapters_own_null_tokens_stay():
    adapter = UnconditionalAdapter.for_unet(sd_unet())
    own = torch.randn(1, 5, 16)
    adapter.set_null_tokens(own)
    pipe = UnconditionalPipeline.from_pipe(stable_diffusion(), adapter=adapter)
    assert torch.equal(pipe.adapter.null_tokens, own)


def test_no_caption_is_the_empty_prompt():
    pipe = quiet(TextToImagePipeline.from_pipe(stable_diffusion()))
    told = pipe._condition(pipe._features(["", None, "a red circle"]))
    assert torch.allclose(told.tokens[0], told.tokens[1], atol=1e-6)
    assert not torch.allclose(told.tokens[0], told.tokens[2], atol=1e-3)
    assert told.mask is None


def test_the_prompt_adapter_says_what_does_not_fit():
    parent = stable_diffusion()
    text = tiny_text()
    with pytest.raises(ValueError, match="32 numbers a token, and the UNet takes 16: use TextAdapter"):
        PromptAdapter.for_unet(parent.unet, **text)
    with pytest.raises(ValueError, match="needs the tokenizer"):
        PromptAdapter.for_unet(parent.unet).preprocess(["a"])


@pytest.mark.parametrize("kind", ["SD", "DDPM"])
def test_offloading(kind):
    parent = stable_diffusion() if kind == "SD" else unconditional_parent("DDPM")
    cls, draw = (TextToImagePipeline, sd_images) if kind == "SD" else (UnconditionalPipeline, drawn)
    expected = draw(cls.from_pipe(parent))
    pipe = copy.deepcopy(cls.from_pipe(parent))
    pipe.enable_model_cpu_offload(device="cpu")
    assert np.array_equal(draw(pipe), expected)
    pipe.remove_all_hooks()
    pipe.to(torch.bfloat16)
    assert pipe.adapter.dtype == torch.bfloat16 and np.isfinite(draw(pipe)).all()


# ----------------------------------------------------------------- all that a pipeline of diffusers should be able to
class TestPromptPipeline(TextTester, LatentTester):
    pipeline_class = TextToImagePipeline
    setting = "text"
    condition_argument = "prompt"
    conditions = [CAPTIONS[0], None, CAPTIONS[1]]

    def make_components(self):
        components = TextToImagePipeline.from_pipe(stable_diffusion()).components
        return copy.deepcopy(components | {"scheduler": diffusers.FlowMatchEulerDiscreteScheduler()})

    def test_encode_prompt_in_isolation(self, components, expected):
        """As in `TextTester`, but for the empty prompt, which is encoded with the others."""
        text = {k: v if k in ("text_encoder", "tokenizer", "adapter") else None for k, v in components.items()}
        rest = {k: None if k in ("text_encoder", "tokenizer") else v for k, v in components.items()}
        inputs = self.inputs(2)
        names = ("prompt_embeds", "negative_prompt_embeds", "prompt_attention_mask", "negative_prompt_attention_mask")
        encoded = self.pipeline_class(**text).encode_prompt(inputs.pop("prompt"))
        images = quiet(self.pipeline_class(**rest))(**inputs, **dict(zip(names, encoded, strict=True))).images
        assert np.array_equal(images, expected)


class TestUNet2DPipeline(PipelineTester):
    pipeline_class = ClassConditionalPipeline
    setting = "class"
    condition_argument = "class_labels"
    conditions = ["square", None, 2]
    test_attention_slicing = test_fused_qkv_projections = test_freeu = None  # a UNet2DModel cannot do these

    def make_components(self):
        torch.manual_seed(0)
        unet = with_socket(unet2d())
        adapter = trained(ClassLabelAdapter.for_unet(unet, id2label=ID2LABEL))
        return {"unet": unet, "scheduler": diffusers.FlowMatchEulerDiscreteScheduler(), "adapter": adapter, "vae": None}

    def test_callback_changes_the_condition(self, pipe):
        """It is told nothing by tokens."""
        seen = []
        inputs = self.inputs(2, callback_on_step_end=lambda pipe, i, t, tensors: seen.append(tensors))
        pipe(**inputs, callback_on_step_end_tensor_inputs=pipe._callback_tensor_inputs)
        assert {name for name, x in seen[0].items() if x is not None} == {"latents"}


# ------------------------------------------------------------------------------------ image modes in all settings
SCHEDULERS = [
    "DDIMScheduler",
    "EulerAncestralDiscreteScheduler",
    "HeunDiscreteScheduler",  # two network evaluations a step
    "EDMEulerScheduler",
    "FlowMatchEulerDiscreteScheduler",
]


def small_pipe(setting: str, scheduler: str, latent: bool = False) -> ConditionalPipeline:
    parts = make_components(setting, vae=tiny_vae() if latent else None)
    classes = {"none": UnconditionalPipeline, "class": ClassConditionalPipeline, "text": TextToImagePipeline}
    return quiet(classes[setting](**parts | {"scheduler": getattr(diffusers, scheduler)()}))


def small_picture(size_px: int) -> Image.Image:
    return picture(0).resize((size_px, size_px))


# Every setting with every scheduler and both kinds of space, though not all three at once.
@pytest.mark.parametrize(
    ("setting", "scheduler", "latent"),
    [(setting, name, (i + j) % 2 == 1) for i, setting in enumerate(TOLD) for j, name in enumerate(SCHEDULERS)],
)
def test_image_modes(setting, scheduler, latent):
    pipe, size = small_pipe(setting, scheduler, latent), 16 if latent else 8
    image = small_picture(size)
    given = TOLD[setting] | {"num_inference_steps": 8, "guidance_scale": 2.0}

    def run(**kwargs: Any) -> np.ndarray:
        return pipe(**given | {"output_type": "np"} | kwargs, generator=generators(2)).images

    started = [run(image=image, strength=strength) for strength in (0.125, 0.25, 0.875)]
    assert all(x.shape == (2, size, size, 3) and np.isfinite(x).all() for x in started)
    assert len({x.tobytes() for x in started}) == 3
    # one image for all, one a condition, as PIL, numpy, tensor, or as latents
    pixels = np.asarray(image) / np.float32(255)
    tensor = torch.from_numpy(pixels).permute(2, 0, 1)[None]
    for same in ([image] * 2, pixels[None], tensor):
        assert np.allclose(run(image=same, strength=0.25), started[1], atol=1e-5)
    mask_image = Image.fromarray(np.pad(np.full((size, size // 2), 255, np.uint8), ((0, 0), (size // 2, 0))))
    painted = run(image=image, mask_image=mask_image)
    assert np.isfinite(painted).all()
    if not latent:  # what is not painted stays as it was
        assert np.abs(painted[:, :, : size // 2] - pixels[None, :, : size // 2]).max() < 1e-6
        assert np.abs(painted[:, :, size // 2 :] - pixels[None, :, size // 2 :]).max() > 0.05
    assert not np.allclose(painted[0], painted[1], atol=1e-3)


def test_less_strength_stays_nearer_to_the_image():
    pipe = small_pipe("none", "DDIMScheduler")
    image = small_picture(8)
    pixels = np.asarray(image) / 255
    kwargs = {"batch_size": 4, "image": image, "num_inference_steps": 20, "output_type": "np"}
    near, far = (pipe(**kwargs, strength=s, generator=generators(4)).images for s in (0.05, 1.0))
    assert np.abs(near - pixels).mean() < 0.1 < np.abs(far - pixels).mean()


def test_variations_do_not_depend_on_their_batch():
    pipe = small_pipe("class", "DDIMScheduler", latent=True)
    kwargs = {"image": small_picture(16), "strength": 0.5, "num_inference_steps": 4, "output_type": "np"}
    batch = pipe("star", **kwargs, num_images_per_prompt=3, generator=generators(3)).images
    for i, generator in enumerate(generators(3)):
        alone = pipe("star", **kwargs, generator=[generator]).images[0]
        assert np.allclose(alone, batch[i], atol=1e-5)


@pytest.mark.parametrize(("channels", "mode"), [(1, "L"), (4, "RGBA")])
def test_images_in_the_models_mode(channels, mode):
    pipe = quiet(UnconditionalPipeline(**make_components("none", channels=channels)))
    kwargs = {"num_inference_steps": 4, "strength": 0.5, "output_type": "np"}
    rgb = picture(0).resize((8, 8))
    images = [pipe(image=x, **kwargs, generator=generators(1)).images for x in (rgb, rgb.convert(mode))]
    assert images[0].shape == (1, 8, 8, channels) and np.array_equal(*images)
    tensor = torch.from_numpy(np.asarray(rgb.convert(mode)) / np.float32(255)).reshape(1, 8, 8, channels)
    as_tensor = pipe(image=tensor.permute(0, 3, 1, 2), **kwargs, generator=generators(1)).images
    assert np.allclose(as_tensor, images[0], atol=1e-5)


def test_images_of_a_unet2d_model():
    parent = unconditional_parent("DDPM")
    pipe = quiet(new_child("class", parent))
    image = picture(0).resize((16, 8))
    images = pipe("star", image=image, num_inference_steps=4, output_type="np", generator=generators(1)).images
    assert images.shape == (1, 8, 16, 3)
    with pytest.raises(ValueError, match="height 7 and width 8 must be multiples of 2"):
        pipe("star", height=7)
    with pytest.raises(ValueError, match="height 9 and width 16 must be multiples of 2"):
        pipe("star", image=image.resize((16, 9)))


@pytest.mark.parametrize(
    ("wrong", "line"),
    [
        ({"strength": 1.2}, "strength 1.2 must be between 0 and 1"),
        ({"strength": 0.1}, "strength 0.1 leaves none of 4 steps: raise one of them"),
        ({"image": None, "mask_image": mask(0)}, "mask_image says where to paint: pass the image too"),
        ({"image": [picture(0)] * 3}, "image: 3 for 2 conditions: pass one, or one for each"),
        ({"generator": generators(3)}, "got 3 generators for 2 images"),
        ({"image": torch.zeros(1, 5, 8, 8)}, "image has 5 channels, and the model 3"),
    ],
)
def test_wrong_images_give_one_line(wrong, line):
    pipe = small_pipe("none", "DDIMScheduler")
    with pytest.raises(ValueError, match=line) as error:
        pipe(**{"batch_size": 2, "image": picture(0), "num_inference_steps": 4} | wrong)
    assert "\n" not in str(error.value)


def test_an_inpainting_unet_needs_a_mask():
    pipe = TextToImagePipeline.from_pipe(stable_diffusion(9))
    with pytest.raises(ValueError, match="takes 9 channels, it is for inpainting: pass image and mask_image"):
        pipe("a red circle")
