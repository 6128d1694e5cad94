"""A tester for every pipeline of this library, on the ideas of diffusers' `PipelineTesterMixin`.

Subclass `PipelineTester` under a name that starts with `Test`, say what the pipeline is made of and what it is told,
and all tests run for it. What diffusers tests on an accelerator alone runs on the CPU here too, through the same hooks.
"""

import copy
import inspect
import json
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import cpu_offload
from accelerate.hooks import AlignDevicesHook, CpuOffload, SequentialHook
from conftest import CAPTIONS
from diffusers import AutoencoderDC, AutoencoderKL, AutoencoderTiny, FlowMatchEulerDiscreteScheduler
from diffusers.hooks import apply_group_offloading
from torch import nn

from cond_pipelines import ClassLabelAdapter, ConditionalPipeline, TextAdapter, UnconditionalAdapter, build_unet
from cond_pipelines.networks.text_encoders import new_text_encoder

DEVICES = [
    "cpu",
    pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")),
]
ID2LABEL = {0: "circle", 1: "square", 2: "star"}

# What every `__call__` offers, whatever it is conditioned on.
SAMPLING_ARGUMENTS = {
    "height": None,
    "width": None,
    "num_inference_steps": None,
    "sigmas": None,
    "timesteps": None,
    "guidance_scale": None,
    "guidance_interval": (0.0, 1.0),
    "guidance_rescale": 0.0,
    "guidance": None,
    "guider": None,
    "guide": None,
    "num_images_per_prompt": 1,
    "generator": None,
    "latents": None,
    "image": None,
    "mask_image": None,
    "strength": None,
    "eta": 0.0,
    "output_type": "pil",
    "return_dict": True,
    "cross_attention_kwargs": None,
    "callback_on_step_end": None,
    "callback_on_step_end_tensor_inputs": None,
}


# ----------------------------------------------------------------------------------------- tiny real components
def tiny_unet(channels: int = 3, sample_size: int = 8, **overrides: Any) -> nn.Module:
    torch.manual_seed(0)
    tiny = {
        "block_out_channels": (16, 32),
        "norm_num_groups": 8,
        "cross_attention_dim": 16,
        "projection_class_embeddings_input_dim": 24,
    }
    return build_unet("xxs", sample_size=sample_size, channels=channels, **tiny | overrides).eval()


def trained(module: nn.Module, std: float = 0.5, seed: int = 1) -> nn.Module:
    """With random weights everywhere, as if it had learned something (new adapters are all zeros)."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in filter(lambda p: p.requires_grad, module.parameters()):
        nn.init.normal_(parameter, std=std, generator=generator)
    return module.eval()


def tiny_vae(kind: str = "kl") -> nn.Module:
    """A VAE with 4 latent channels that halves the sides of a 16 px image once."""
    torch.manual_seed(0)
    if kind == "kl":
        return AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            block_out_channels=(8, 16),
            latent_channels=4,
            norm_num_groups=8,
            sample_size=16,
            scaling_factor=0.5,
            shift_factor=0.1,
        ).eval()
    if kind == "tiny":
        blocks = {"encoder_block_out_channels": (8, 8), "decoder_block_out_channels": (8, 8)}
        return AutoencoderTiny(num_encoder_blocks=(1, 1), num_decoder_blocks=(1, 1), **blocks).eval()
    sides = {
        f"{side}_{name}": value
        for side in ("encoder", "decoder")
        for name, value in {
            "block_types": ("ResBlock", "EfficientViTBlock"),
            "block_out_channels": (8, 8),
            "qkv_multiscales": ((), (5,)),
            "layers_per_block": (1, 1),
        }.items()
    }
    return AutoencoderDC(latent_channels=4, attention_head_dim=2, scaling_factor=0.4, **sides).eval()


def tiny_text() -> dict[str, Any]:
    torch.manual_seed(0)
    text_encoder, tokenizer = new_text_encoder(CAPTIONS, hidden_size=32, num_layers=2, max_length=16)
    return {"text_encoder": text_encoder.eval(), "tokenizer": tokenizer}


def new_adapter(setting: str, unet: nn.Module, text_encoder: nn.Module | None = None) -> nn.Module:
    if setting == "none":
        return UnconditionalAdapter.for_unet(unet)
    if setting == "class":
        return ClassLabelAdapter.for_unet(unet, id2label=ID2LABEL)
    return TextAdapter.for_unet(unet, text_encoder=text_encoder)


def make_components(setting: str, vae: nn.Module | None = None, **unet: Any) -> dict[str, Any]:
    """Components of a pipeline with a trained adapter."""
    text = tiny_text() if setting == "text" else {}
    denoiser = tiny_unet(channels=3 if vae is None else 4, **unet) if "channels" not in unet else tiny_unet(**unet)
    return {
        "unet": denoiser,
        "scheduler": FlowMatchEulerDiscreteScheduler(),
        "adapter": trained(new_adapter(setting, denoiser, text.get("text_encoder"))),
        "vae": vae,
        **text,
    }


def generators(n: int, first_seed: int = 0) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(first_seed + i) for i in range(n)]


def quiet(pipe: Any) -> Any:
    pipe.set_progress_bar_config(disable=True)
    return pipe


def sample(pipe, **kwargs):
    given = {"num_inference_steps": 2, "guidance_scale": 3.0, "output_type": "np", "generator": generators(2)} | kwargs
    return quiet(pipe)(**given).images


def offload_sequentially(pipe: Any, device: str) -> None:
    """`enable_sequential_cpu_offload`; on the CPU the same hooks, because accelerate trips over the name "cpu:0"."""
    if device != "cpu":
        pipe.enable_sequential_cpu_offload(device=device)
        return
    pipe.remove_all_hooks()
    for model in pipe.components.values():
        if isinstance(model, nn.Module):
            cpu_offload(model, torch.device("cpu"), offload_buffers=len(model._parameters) > 0)


def assert_close(a: Any, b: Any, atol: float = 1e-5) -> None:
    np.testing.assert_allclose(np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64), rtol=0, atol=atol)


class UNetCalls:
    """Batch sizes that the UNet saw, by a real forward hook."""

    def __init__(self, pipe: Any):
        self.batch_sizes: list[int] = []
        pipe.unet.register_forward_pre_hook(lambda module, args: self.batch_sizes.append(len(args[0])))


# --------------------------------------------------------------------------------------------------- the tester
class PipelineTester:
    pipeline_class: type[ConditionalPipeline]
    setting: str
    condition_argument: str
    negative_argument: str | None = None
    conditions: list[Any]  # three different ones
    channels = 3
    image_size_px = 8

    def make_components(self) -> dict[str, Any]:
        return make_components(self.setting)

    def condition(self, rows: list[Any]) -> dict[str, Any]:
        """Arguments of a call for one image a row."""
        return {self.condition_argument: list(rows)}

    def inputs(self, n: int = 1, **overrides: Any) -> dict[str, Any]:
        """Arguments of a call for `n` images."""
        given = self.condition(self.conditions[:n])
        sampling = {"generator": generators(n), "num_inference_steps": 2, "guidance_scale": 3.0, "output_type": "np"}
        return given | sampling | overrides

    @property
    def is_guided(self) -> bool:
        return self.setting != "none"

    @pytest.fixture(scope="class")
    def built(self):
        return self.make_components()

    @pytest.fixture
    def components(self, built):
        return copy.deepcopy(built)

    @pytest.fixture
    def pipe(self, components):
        return quiet(self.pipeline_class(**components))

    @pytest.fixture(scope="class")
    def expected(self, built):
        """Images of the untouched pipeline for `inputs(2)`."""
        return quiet(self.pipeline_class(**copy.deepcopy(built)))(**self.inputs(2)).images

    @pytest.fixture(scope="class")
    def saved(self, built, tmp_path_factory):
        path = tmp_path_factory.mktemp("pipeline")
        self.pipeline_class(**copy.deepcopy(built)).save_pretrained(path)
        return path

    def models(self, pipe: Any) -> dict[str, nn.Module]:
        return {name: c for name, c in pipe.components.items() if isinstance(c, nn.Module)}

    # ---------------------------------------------------------------------------------- calls and outputs
    def test_call_signature(self):
        parameters = inspect.signature(self.pipeline_class.__call__).parameters
        assert {name: p.default for name, p in parameters.items() if name in SAMPLING_ARGUMENTS} == SAMPLING_ARGUMENTS
        assert self.condition_argument in parameters
        assert all(p.kind != p.VAR_KEYWORD for p in parameters.values())

    def test_unknown_argument_is_an_error(self, pipe):
        with pytest.raises(TypeError, match="num_inference_stepz"):
            pipe(**self.inputs(num_inference_stepz=3))

    def test_images_have_the_asked_size(self, expected):
        assert expected.shape == (2, self.image_size_px, self.image_size_px, self.channels)
        assert np.isfinite(expected).all() and expected.min() >= 0 and expected.max() <= 1 and expected.std() > 0.01

    def test_dict_and_tuple_outputs_are_equal(self, pipe, expected):
        images = pipe(**self.inputs(2), return_dict=False)
        assert isinstance(images, tuple) and len(images) == 1
        assert np.array_equal(images[0], expected)

    def test_the_same_seed_gives_the_same_image_and_another_another(self, pipe, expected):
        assert np.array_equal(pipe(**self.inputs(2)).images, expected)
        assert not np.allclose(
            pipe(**self.inputs(2, generator=generators(2, first_seed=7))).images, expected, atol=0.01
        )

    @pytest.mark.parametrize("n", [1, 2, 3])
    def test_batch_consistent(self, pipe, n):
        one_generator = torch.Generator().manual_seed(0)
        images = pipe(**self.inputs(n, generator=one_generator)).images
        assert len(images) == n and np.isfinite(images).all()

    def test_an_image_does_not_depend_on_its_batch(self, pipe):
        batch = pipe(**self.inputs(3)).images
        for i, generator in enumerate(generators(3)):
            alone = pipe(**self.inputs(1) | self.condition(self.conditions[i : i + 1]) | {"generator": [generator]})
            assert_close(alone.images[0], batch[i])

    def test_components(self, pipe, components):
        assert {k: v for k, v in pipe.components.items() if v is not None} == {
            k: v for k, v in components.items() if v is not None
        }

    def test_a_pipeline_made_of_the_components_keeps_the_defaults(self, components):
        """Also of a copy of them, and of another class; what is given counts more, and the first keeps its own."""
        own = {"default_num_inference_steps": 3, "default_guidance_scale": 1.5}
        own |= {"value_range": {"low": 0.0, "high": 1000.0}, "objective": {"name": "flow_matching"}}
        pipe = self.pipeline_class(**components, **own)
        copied = copy.deepcopy(pipe.components)
        for parts in (pipe.components, copied):
            again = self.pipeline_class(**parts)
            assert {name: again.config[name] for name in own} == own
            assert {name: ConditionalPipeline(**parts).config[name] for name in own} == own
        other = self.pipeline_class(**pipe.components, default_guidance_scale=4.0, value_range={})
        assert (other.config.default_guidance_scale, other.config.value_range) == (4.0, None)
        assert other.config.default_num_inference_steps == 3
        assert {name: self.pipeline_class(**pipe.components).config[name] for name in own} == own
        assert {name: self.pipeline_class.from_pipe(other).config[name] for name in own} == own | {
            "default_guidance_scale": 4.0,
            "value_range": None,
        }

    def test_num_images_per_prompt(self, pipe):
        images = pipe(**self.inputs(2, num_images_per_prompt=2, generator=generators(4))).images
        twice = [self.conditions[i] for i in (0, 0, 1, 1)]
        assert_close(images, pipe(**self.inputs(2) | self.condition(twice) | {"generator": generators(4)}).images)
        assert len(pipe(**self.inputs(num_images_per_prompt=3, generator=generators(3))).images) == 3

    def test_guidance_scale(self, pipe):
        low, high = (pipe(**self.inputs(2, guidance_scale=scale)).images for scale in (1.0, 7.5))
        assert low.shape == high.shape
        assert np.allclose(low, high) != self.is_guided

    def test_defaults_of_the_saved_model(self, components, expected):
        pipe = quiet(self.pipeline_class(**components, default_num_inference_steps=2, default_guidance_scale=3.0))
        inputs = self.inputs(2)
        del inputs["num_inference_steps"], inputs["guidance_scale"]
        assert np.array_equal(pipe(**inputs).images, expected)
        assert (pipe.num_timesteps, pipe.guidance_scale) == (2, 3.0)

    def test_latents_equal_the_generators_noise(self, pipe, expected):
        latents = torch.cat([pipe.prepare_latents(1, *[self.image_size_px] * 2, g) for g in generators(2)])
        assert_close(pipe(**self.inputs(2, latents=latents, generator=None)).images, expected, atol=1e-6)

    def test_output_types_agree(self, pipe, expected):
        tensor, pil, latent = (pipe(**self.inputs(2, output_type=kind)).images for kind in ("pt", "pil", "latent"))
        assert_close(tensor.permute(0, 2, 3, 1), expected, atol=0)
        assert [image.size for image in pil] == [(self.image_size_px,) * 2] * 2
        assert_close(np.stack([np.asarray(image) for image in pil]), (expected * 255).round(), atol=0)
        with torch.no_grad():
            decoded = pipe.decode(latent)
        assert_close(pipe.image_processor.postprocess(decoded, output_type="np"), expected, atol=0)

    def test_not_square(self, pipe):
        height, width = self.image_size_px, 2 * self.image_size_px
        images = pipe(**self.inputs(2, height=height, width=width)).images
        assert images.shape == (2, height, width, self.channels) and np.isfinite(images).all()

    def test_progress_bar_counts_the_steps(self, components, capsys):
        self.pipeline_class(**components)(**self.inputs(num_inference_steps=3))
        assert "3/3" in capsys.readouterr().err

    @pytest.mark.parametrize(
        ("wrong", "words"),
        [
            ({"generator": generators(3)}, ["3 generators for 2 images"]),
            ({"latents": torch.zeros(2, 1, 5, 5)}, ["latents", r"\(2, 1, 5, 5\)", r"\(2, \d, 8, 8\) is needed"]),
            ({"guidance_interval": (0.8, 0.2)}, ["guidance_interval", r"\(0.8, 0.2\)", "0 <= a <= b <= 1"]),
            ({"guidance_interval": (0.0, 1.5)}, ["guidance_interval", "1.5"]),
            ({"callback_on_step_end_tensor_inputs": ["latent"]}, ["'latent'", "'latents'"]),
        ],
    )
    def test_wrong_arguments_give_one_line(self, pipe, wrong, words):
        with pytest.raises(ValueError, match=".*".join(words)) as error:
            pipe(**self.inputs(2, **wrong))
        assert "\n" not in str(error.value)

    # ------------------------------------------------------------------------------------------ callbacks
    def test_callback_inputs(self, pipe, expected):
        seen = []

        def look(pipe, step, t, tensors):
            seen.append((step, float(t), set(tensors)))
            return tensors

        assert np.array_equal(pipe(**self.inputs(2, callback_on_step_end=look)).images, expected)
        wanted = pipe._callback_tensor_inputs
        inputs = self.inputs(2, callback_on_step_end=look, callback_on_step_end_tensor_inputs=wanted)
        assert np.array_equal(pipe(**inputs).images, expected)
        assert [names for _, _, names in seen] == [{"latents"}] * 2 + [set(wanted)] * 2
        assert [step for step, _, _ in seen] == [0, 1, 0, 1]
        assert seen[0][1] > seen[1][1]

    def test_callback_that_returns_nothing(self, pipe, expected):
        assert np.array_equal(pipe(**self.inputs(2, callback_on_step_end=lambda *_: None)).images, expected)

    def test_callback_changes_latents(self, pipe):
        def zero_at_the_end(pipe, step, t, tensors):
            return {"latents": tensors["latents"] * (step < pipe.num_timesteps - 1)}

        assert not pipe(**self.inputs(2, callback_on_step_end=zero_at_the_end, output_type="latent")).images.any()

    def test_callback_changes_the_condition(self, pipe, expected):
        def forget(pipe, step, t, tensors):
            tokens = {name: torch.zeros_like(x) for name, x in tensors.items() if name != "latents"}
            return tokens

        inputs = self.inputs(2, callback_on_step_end=forget)
        images = pipe(**inputs, callback_on_step_end_tensor_inputs=pipe._callback_tensor_inputs).images
        assert np.allclose(images, expected, atol=1e-4) != self.is_guided

    def test_callback_changes_guidance(self, pipe):
        def more(pipe, step, t, tensors):
            pipe._guidance_scale += 1.0
            return tensors

        pipe(**self.inputs(guidance_scale=2.0, callback_on_step_end=more, num_inference_steps=3))
        assert pipe.guidance_scale == 2.0 + 3 == 2.0 + pipe.num_timesteps

    def test_interrupt(self, pipe):
        def stop(pipe, step, t, tensors):
            pipe._interrupt = True
            after_one.append(tensors["latents"].clone())

        after_one = []
        inputs = self.inputs(2, num_inference_steps=4, output_type="latent")
        stopped = pipe(**inputs, callback_on_step_end=stop).images
        assert len(after_one) == 1 and torch.equal(stopped, after_one[0])
        calls = UNetCalls(pipe)
        pipe(**self.inputs(2, num_inference_steps=4))
        assert len(calls.batch_sizes) == 4, "an interrupt must not outlive its call"

    # -------------------------------------------------------------------------------------- save and load
    def test_save_load_gives_identical_images(self, saved, expected):
        loaded = quiet(self.pipeline_class.from_pretrained(saved))
        assert np.array_equal(loaded(**self.inputs(2)).images, expected)

    def test_the_base_class_loads_the_subclass(self, saved):
        assert type(ConditionalPipeline.from_pretrained(saved)) is self.pipeline_class

    def test_save_load_twice_changes_no_byte(self, saved, tmp_path):
        self.pipeline_class.from_pretrained(saved).save_pretrained(tmp_path)
        ours = ("model_index.json", "config.json", "scheduler_config.json")  # transformers writes its tokenizers' files
        files = sorted(p.relative_to(saved) for p in saved.rglob("*") if p.name in ours or p.suffix == ".safetensors")
        assert {"adapter/config.json", "unet/diffusion_pytorch_model.safetensors"} <= {str(file) for file in files}
        for file in files:
            if file.suffix == ".safetensors":
                assert (tmp_path / file).read_bytes() == (saved / file).read_bytes(), file
            else:
                first, second = (
                    {k: v for k, v in json.loads((p / file).read_text()).items() if k != "_name_or_path"}
                    for p in (saved, tmp_path)
                )
                assert first == second, file

    def test_optional_components(self, components, tmp_path):
        for name in self.pipeline_class._optional_components:
            components[name] = None
        self.pipeline_class(**components).save_pretrained(tmp_path)
        loaded = self.pipeline_class.from_pretrained(tmp_path)
        assert [getattr(loaded, name) for name in loaded._optional_components] == [None] * len(
            loaded._optional_components
        )

    def test_save_load_variant(self, built, pipe, tmp_path, expected):
        pipe.save_pretrained(tmp_path, variant="fp16")
        for name in self.models(pipe):
            assert any(".fp16." in file.name for file in (tmp_path / name).iterdir()), name
        loaded = quiet(self.pipeline_class.from_pretrained(tmp_path, variant="fp16"))
        assert np.array_equal(loaded(**self.inputs(2)).images, expected)
        assert type(ConditionalPipeline.from_pretrained(tmp_path, variant="fp16")) is self.pipeline_class

    def test_loading_a_missing_variant_is_an_error(self, saved):
        with pytest.raises(ValueError, match="variant=fp16"):
            self.pipeline_class.from_pretrained(saved, variant="fp16")

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
    def test_save_load_half_precision(self, pipe, dtype, tmp_path):
        pipe.to(dtype)
        images = pipe(**self.inputs(2)).images
        pipe.save_pretrained(tmp_path)
        loaded = quiet(self.pipeline_class.from_pretrained(tmp_path, dtype=dtype))
        assert {model.dtype for model in self.models(loaded).values()} == {dtype}
        assert np.array_equal(loaded(**self.inputs(2)).images, images)

    @pytest.mark.parametrize("name", ["dtype", "torch_dtype"])
    def test_dtype_alias(self, saved, name):
        loaded = self.pipeline_class.from_pretrained(saved, **{name: torch.float16})
        assert {model.dtype for model in self.models(loaded).values()} == {torch.float16}

    def test_dtype_dict(self, saved):
        loaded = self.pipeline_class.from_pretrained(saved, dtype={"unet": torch.bfloat16, "default": torch.float16})
        for name, model in self.models(loaded).items():
            assert model.dtype == (torch.bfloat16 if name == "unet" else torch.float16), name
        assert np.isfinite(quiet(loaded)(**self.inputs(2)).images).all()

    @pytest.mark.parametrize("device", DEVICES)
    def test_device_map(self, saved, expected, device):
        loaded = quiet(self.pipeline_class.from_pretrained(saved, device_map=device))
        assert {model.device.type for model in self.models(loaded).values()} == {device}
        assert_close(loaded(**self.inputs(2)).images, expected, atol=1e-3)

    # ----------------------------------------------------------------------------------- dtype and device
    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
    def test_half_precision_inference(self, pipe, expected, dtype):
        pipe.to(dtype=dtype)
        assert {model.dtype for model in self.models(pipe).values()} == {dtype}
        latents = []
        inputs = self.inputs(2, callback_on_step_end=lambda pipe, i, t, tensors: latents.append(tensors["latents"]))
        images = pipe(**inputs).images
        assert [x.dtype for x in latents] == [dtype] * 2
        a, b = images.ravel().astype(np.float64), expected.ravel().astype(np.float64)
        assert a @ b / np.linalg.norm(a) / np.linalg.norm(b) > 0.95

    @pytest.mark.parametrize("device", DEVICES)
    def test_to_device(self, pipe, expected, device):
        more_steps = self.inputs(2) | {"num_inference_steps": 6}  # enough for the check of the scheduler's own steps
        more_expected = pipe(**more_steps | {"generator": generators(2)}).images
        pipe.to(device)
        assert_close(pipe(**more_steps | {"generator": generators(2)}).images, more_expected, atol=1e-3)
        assert pipe.device.type == device
        assert {model.device.type for model in self.models(pipe).values()} == {device}
        assert_close(pipe(**self.inputs(2)).images, expected, atol=1e-3)

    def test_layerwise_casting(self, pipe):
        pipe.to(dtype=torch.bfloat16)
        pipe.unet.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.bfloat16)
        assert pipe.unet.down_blocks[0].resnets[0].conv1.weight.dtype == torch.float8_e4m3fn
        assert np.isfinite(pipe(**self.inputs(2)).images).all()

    # -------------------------------------------------------------------------------------------- offload
    @pytest.mark.parametrize("device", DEVICES)
    def test_model_cpu_offload_twice(self, pipe, expected, device):
        for _ in range(2):
            pipe.enable_model_cpu_offload(device=device)
            assert pipe._execution_device.type == device
            hooks = pipe._all_hooks
            assert_close(pipe(**self.inputs(2)).images, expected, atol=1e-5 if device == "cpu" else 1e-3)
            assert pipe._all_hooks is not hooks, "a call must end with maybe_free_model_hooks"
            for name, model in self.models(pipe).items():
                assert model.device.type == "cpu", name
                assert isinstance(model._hf_hook, CpuOffload), name

    def test_model_cpu_offload_names_every_model_once(self, pipe):
        assert set(pipe.model_cpu_offload_seq.split("->")) >= set(self.models(pipe))

    @pytest.mark.parametrize("device", DEVICES)
    def test_sequential_cpu_offload_twice(self, pipe, expected, device):
        for _ in range(2):
            offload_sequentially(pipe, device)
            assert pipe._execution_device.type == device
            assert_close(pipe(**self.inputs(2)).images, expected, atol=1e-5 if device == "cpu" else 1e-3)
            for name, model in self.models(pipe).items():
                assert all(p.device.type == "meta" for p in model.parameters()), name
                hooks = model._hf_hook.hooks if isinstance(model._hf_hook, SequentialHook) else [model._hf_hook]
                assert all(isinstance(hook, AlignDevicesHook) for hook in hooks), name

    @pytest.mark.parametrize("device", DEVICES)
    @pytest.mark.parametrize(
        "kind", [{"offload_type": "block_level", "num_blocks_per_group": 1}, {"offload_type": "leaf_level"}]
    )
    def test_group_offload_of_components(self, pipe, expected, device, kind):
        for model in self.models(pipe).values():
            if hasattr(model, "enable_group_offload"):
                model.enable_group_offload(torch.device(device), **kind)
            else:
                apply_group_offloading(model, onload_device=torch.device(device), **kind)
        hooked = [m for m in pipe.unet.modules() if hasattr(m, "_diffusers_hook")]
        assert hooked and all(m._diffusers_hook.get_hook("group_offloading") is not None for m in hooked)
        assert_close(pipe(**self.inputs(2)).images, expected, atol=1e-5 if device == "cpu" else 1e-3)

    @pytest.mark.parametrize("device", DEVICES)
    def test_group_offload_of_the_pipeline(self, pipe, expected, device):
        pipe.enable_group_offload(
            onload_device=torch.device(device), offload_type="leaf_level", exclude_modules="adapter"
        )
        assert pipe.adapter.device.type == device
        assert {p.device.type for p in pipe.unet.parameters()} == {"cpu"}
        assert_close(pipe(**self.inputs(2)).images, expected, atol=1e-5 if device == "cpu" else 1e-3)

    # ------------------------------------------------------------------- diffusers' switches of UNet, VAE
    def test_attention_slicing(self, pipe, expected):
        for slice_size in (1, 2):
            pipe.enable_attention_slicing(slice_size=slice_size)
            assert_close(pipe(**self.inputs(2)).images, expected, atol=1e-4)
        pipe.disable_attention_slicing()

    def test_fused_qkv_projections(self, pipe, expected):
        pipe.unet.fuse_qkv_projections()
        assert_close(pipe(**self.inputs(2)).images, expected, atol=1e-4)
        pipe.unet.unfuse_qkv_projections()
        assert_close(pipe(**self.inputs(2)).images, expected, atol=1e-4)

    def test_freeu(self, pipe, expected):
        pipe.unet.enable_freeu(s1=0.9, s2=0.2, b1=1.2, b2=1.4)
        assert np.isfinite(pipe(**self.inputs(2)).images).all()
        pipe.unet.disable_freeu()
        assert_close(pipe(**self.inputs(2)).images, expected)

    # ------------------------------------------------------------------------------------------ from_pipe
    def test_from_pipe_keeps_config_and_weights(self, built, expected):
        pipe = quiet(self.pipeline_class(**copy.deepcopy(built), default_num_inference_steps=7))
        again = quiet(self.pipeline_class.from_pipe(pipe))
        assert {k: v for k, v in again.config.items() if k[0] != "_"} == {
            k: v for k, v in pipe.config.items() if k[0] != "_"
        }
        assert all(again.components[name] is component for name, component in pipe.components.items())
        assert np.array_equal(again(**self.inputs(2)).images, expected)
        assert np.array_equal(pipe(**self.inputs(2)).images, expected)

    def test_from_pipe_with_offload(self, pipe, expected):
        again = quiet(self.pipeline_class.from_pipe(pipe))
        again.enable_model_cpu_offload(device="cpu")
        assert_close(again(**self.inputs(2)).images, expected)

    def test_from_pipe_keeps_dtype(self, pipe):
        again = self.pipeline_class.from_pipe(pipe.to(torch.bfloat16))
        assert {model.dtype for model in self.models(again).values()} == {torch.bfloat16}


class LatentTester(PipelineTester):
    """The same, and what only a pipeline with a VAE can do."""

    image_size_px = 16

    def make_components(self):
        return make_components(self.setting, vae=tiny_vae("kl"))

    def test_latent_output_is_smaller(self, pipe):
        assert pipe(**self.inputs(2, output_type="latent")).images.shape == (2, 4, 8, 8)

    def test_sizes_must_fit_the_vae(self, pipe):
        with pytest.raises(ValueError, match="height 17 and width 16 must be multiples of 2"):
            pipe(**self.inputs(height=17))

    def test_vae_slicing(self, pipe, expected):
        pipe.vae.enable_slicing()
        assert_close(pipe(**self.inputs(2)).images, expected, atol=1e-4)

    def test_vae_tiling(self, pipe, expected):
        pipe.vae.enable_tiling()
        assert_close(pipe(**self.inputs(2)).images, expected, atol=1e-4)


class TextTester:
    """What only a text pipeline can do."""

    @pytest.mark.parametrize("with_adapter", [True, False])
    def test_encode_prompt_in_isolation(self, components, expected, with_adapter):
        """Text half and image half in two pipelines give what the whole one gives, also without the adapter."""
        text = {k: v if k in ("text_encoder", "tokenizer") else None for k, v in components.items()}
        if with_adapter:
            text["adapter"] = components["adapter"]
        rest = {k: None if k in ("text_encoder", "tokenizer") else v for k, v in components.items()}
        inputs = self.inputs(2)
        encode = self.pipeline_class(**text).encode_prompt
        embeds, negative_embeds, mask, negative_mask = encode(inputs.pop("prompt"), negative_prompt=None)
        assert negative_embeds is None and negative_mask is None and mask.dtype == torch.bool
        pipe = quiet(self.pipeline_class(**rest))
        images = pipe(**inputs, prompt_embeds=embeds, prompt_attention_mask=mask).images
        assert_close(images, expected, atol=0 if with_adapter else 1e-5)  # without it, more masked tokens

    def test_a_part_of_a_pipeline_says_what_is_missing(self, components):
        text = {k: v if k in ("text_encoder", "tokenizer") else None for k, v in components.items()}
        rest = components | {"text_encoder": None, "tokenizer": None}
        for parts, line in ((text, "this pipeline has no adapter"), (rest, "needs the tokenizer")):
            with pytest.raises(ValueError, match=line) as error:
                self.pipeline_class(**parts)(**self.inputs(2))
            assert "\n" not in str(error.value)
        with pytest.raises(ValueError, match="this pipeline has no text encoder"):
            self.pipeline_class(**text | {"text_encoder": None}).encode_prompt("a star")
        embeds, _, mask, _ = self.pipeline_class(**components).encode_prompt("a star")
        with pytest.raises(ValueError, match="this pipeline has no unet"):
            self.pipeline_class(**components | {"unet": None})(prompt_embeds=embeds, prompt_attention_mask=mask)

    def test_saved_without_the_text_parts(self, components, expected, tmp_path):
        """And with them alone: the two halves on two machines."""
        names = ("text_encoder", "tokenizer")
        rest = self.pipeline_class(**components)
        for name in names:
            setattr(rest, name, None)
        rest.save_pretrained(tmp_path / "rest")
        text = self.pipeline_class(**{k: v if k in names else None for k, v in components.items()})
        text.save_pretrained(tmp_path / "text")
        inputs = self.inputs(2)
        loaded_text = self.pipeline_class.from_pretrained(tmp_path / "text")
        embeds, _, mask, _ = loaded_text.encode_prompt(inputs.pop("prompt"))
        for cls in (self.pipeline_class, ConditionalPipeline):
            loaded = quiet(cls.from_pretrained(tmp_path / "rest"))
            assert loaded.text_encoder is None and loaded.tokenizer is None
            images = loaded(**inputs | {"generator": generators(2)}, prompt_embeds=embeds, prompt_attention_mask=mask)
            assert_close(images.images, expected)

    def test_prompt_embeds_equal_prompt(self, pipe):
        embeds, negative, mask, negative_mask = pipe.encode_prompt(CAPTIONS[:2], CAPTIONS[2])
        tensors = {
            "prompt_embeds": embeds,
            "prompt_attention_mask": mask,
            "negative_prompt_embeds": negative,
            "negative_prompt_attention_mask": negative_mask,
        }
        assert_close(sample(pipe, **tensors), sample(pipe, prompt=CAPTIONS[:2], negative_prompt=CAPTIONS[2]), atol=0)

    @pytest.mark.parametrize("device", DEVICES)
    def test_prompt_embeds_may_lie_on_the_cpu(self, pipe, device):
        embeds, _, mask, _ = pipe.encode_prompt(CAPTIONS[:2])
        expected = sample(pipe, prompt_embeds=embeds, prompt_attention_mask=mask)
        pipe.to(device)
        assert_close(sample(pipe, prompt_embeds=embeds, prompt_attention_mask=mask), expected, atol=1e-3)

    def test_prompt_embeds_without_a_mask_count_in_full(self, pipe):
        embeds, _, mask, _ = pipe.encode_prompt(CAPTIONS[:1])
        assert mask.all()
        assert_close(
            sample(pipe, prompt_embeds=embeds, generator=generators(1)),
            sample(pipe, prompt=CAPTIONS[0], generator=generators(1)),
            atol=0,
        )

    def test_negative_prompt(self, pipe):
        plain = sample(pipe, prompt=CAPTIONS[:2])
        assert_close(sample(pipe, prompt=CAPTIONS[:2], negative_prompt=[None, None]), plain)
        pushed = sample(pipe, prompt=CAPTIONS[:2], negative_prompt=CAPTIONS[3])
        assert not np.allclose(pushed, plain, atol=1e-3)
        mixed = sample(pipe, prompt=CAPTIONS[:2], negative_prompt=[None, CAPTIONS[3]])
        assert_close(mixed, np.stack([plain[0], pushed[1]]))

    def test_a_long_prompt_is_cut(self, pipe):
        images = sample(pipe, prompt=["a star", "very long " * 100])
        assert_close(images[0], sample(pipe, prompt=["a star"], generator=generators(1))[0])

    @pytest.mark.parametrize(
        ("wrong", "line"),
        [
            ({}, "pass either prompt or prompt_embeds"),
            ({"prompt": "a", "prompt_embeds": torch.zeros(1, 2, 32)}, "pass either prompt or prompt_embeds"),
            (
                {"prompt": "a", "negative_prompt": "b", "negative_prompt_embeds": torch.zeros(1, 2, 32)},
                "pass either negative_prompt or negative_prompt_embeds",
            ),
            ({"prompt": ["a", "b"], "negative_prompt": ["a"] * 3}, "negative_prompt has 3 entries for 2 images"),
        ],
    )
    def test_wrong_prompts_give_one_line(self, pipe, wrong, line):
        with pytest.raises(ValueError) as error:
            pipe(**wrong)
        assert line in str(error.value) and "\n" not in str(error.value)
