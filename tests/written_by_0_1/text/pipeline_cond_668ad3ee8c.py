# The code of cond_pipelines.pipelines.remote_code, cond_pipelines.pipelines.vae, cond_pipelines.pipelines.image_inputs, cond_pipelines.pipelines.conditional, cond_pipelines.pipelines, gathered so that this model loads with diffusers alone.
"""Saving with the code that others need; loading without running theirs.

What is saved here holds its own code beside what diffusers writes:

    model_index.json                    "_class_name": ["pipeline_cond_1a2b3c4d5e", "TextToImagePipeline"], ...
    pipeline_cond_1a2b3c4d5e.py         the pipelines in one file
    adapter/modeling_cond_6f7a8b9c0d.py the adapter

diffusers alone runs that code where it is told to trust it. The installed package never does: it reads the names as
those of its own classes. The file names hold a hash of their text, since diffusers keeps the code of all repositories
in one folder.

This file is self-contained on purpose: it travels with a checkpoint.
"""

import ast
import hashlib
import importlib
import importlib.util
import inspect
import json
import os
import re
import sys
from pathlib import Path
from typing import Any

from diffusers.loaders import StableDiffusionLoraLoaderMixin
from diffusers.pipelines.pipeline_utils import DiffusionPipeline

_PACKAGE = "cond_pipelines"
_INSTALLED = __name__.startswith(f"{_PACKAGE}.")  # otherwise this is the copy in a checkpoint
_PIPELINE_MODULES = (
    "portable",
    "vae",
    "inputs",
    "conditional_pipeline",
    "pipelines",
)  # in the order in which they import one another
_CODE_FILE = re.compile(r"(pipeline|modeling)_cond_[0-9a-f]{10}")
_EVERYWHERE = {"accelerate", "diffusers", "huggingface_hub", "numpy", "PIL", "safetensors", "torch", "transformers"}


class PortablePipeline(DiffusionPipeline, StableDiffusionLoraLoaderMixin):
    """A DiffusionPipeline of this package that loads wherever diffusers is, and takes diffusers' LoRA files."""

    text_encoder: Any = None  # the mixin asks for it in the settings that have none

    def save_pretrained(
        self, save_directory: str | os.PathLike, *args: Any, push_to_hub: bool = False, **kwargs: Any
    ) -> None:
        """As diffusers' own, and the code beside it. Weights are saved as safetensors only.

        Raises:
            ValueError: safe_serialization=False, which would write pickled weights.
        """
        if (args and not args[0]) or not kwargs.get("safe_serialization", True):
            raise ValueError(
                "safe_serialization=False writes weights that can run code when they are read: leave it out"
            )
        pushing = ("repo_id", "private", "token", "commit_message", "create_pr", "revision")
        push_kwargs = {name: kwargs.pop(name) for name in pushing if name in kwargs}
        super().save_pretrained(save_directory, *args, **kwargs)
        add_code(self, Path(save_directory))
        if push_to_hub:
            repo_id = push_kwargs.pop("repo_id", Path(save_directory).name)
            self.push_to_hub(repo_id, variant=kwargs.get("variant"), **push_kwargs)

    def push_to_hub(self, repo_id: str, **kwargs: Any) -> str:
        """Save this pipeline with its code and a model card, and upload it in one commit.

        Args:
            repo_id: "name" or "user/name"; made where it does not exist.
            private, token, commit_message, create_pr, variant: as diffusers' own.
            revision: the branch to commit to; made where it does not exist.

        Returns:
            The address of the commit.

        Raises:
            RuntimeError: the Hub did not take it, in one line; the repository is then as it was.

        Example:
            >>> pipe.push_to_hub("me/flowers", private=True)
        """
        if _INSTALLED:
            return self._installed("hub").push_pipeline(self, repo_id, **kwargs)
        kwargs.pop("revision", None)  # diffusers' own has no such argument
        return super().push_to_hub(repo_id, **kwargs)

    @classmethod
    def load_lora_into_text_encoder(cls, state_dict: dict[str, Any], *args: Any, **kwargs: Any) -> None:
        """As diffusers' own, which warns of every file that has nothing for a text encoder."""
        if any(name.startswith(f"{cls.text_encoder_name}.") for name in state_dict):
            super().load_lora_into_text_encoder(state_dict, *args, **kwargs)

    def classify(self, images: Any, conditions: list[Any], **kwargs: Any) -> Any:
        """p(y|x) from p(x|y): under which of some conditions each image was drawn; see `likelihood.classify`."""
        return self._installed("likelihood").classify(self, images, conditions, **kwargs)

    def bits_per_dim(self, images: Any, conditions: list[Any] | None = None, **kwargs: Any) -> Any:
        """The variational bound on -log2 p(image) a pixel value, (N,); see `likelihood.bits_per_dim`."""
        return self._installed("likelihood").bits_per_dim(self, images, conditions, **kwargs)

    def to_stable_diffusion(self) -> DiffusionPipeline:
        """diffusers' StableDiffusionPipeline with the same parts and the same images; see `parents`."""
        return self._installed("parents").to_stable_diffusion(self)

    @classmethod
    def _installed(cls, module: str) -> Any:
        if not _INSTALLED:
            raise ImportError("this needs the package that the model was made with: pip install cond-pipelines")
        return importlib.import_module(f"{_PACKAGE}.{module}")

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, **kwargs: Any) -> "PortablePipeline":
        """As diffusers' own; on `ConditionalPipeline` it returns the subclass that was saved.

        A checkpoint of diffusers' own (Stable Diffusion, DDPM, DDIM, LDM) becomes a pipeline of the same setting, see
        `parents`. Installed code only: no code of a repository is run, and no weights but safetensors are read.

        Raises:
            ValueError: the model is of another setting (the message names its class), holds pickled weights, or has
                a component of a package that is not imported.
        """
        path, known = pretrained_model_name_or_path, {c.__name__: c for c in _subclasses(PortablePipeline)[1:]}
        parents = cls._installed("parents") if _INSTALLED else None
        hub = ("cache_dir", "force_download", "local_files_only", "proxies", "token", "revision")
        hub = {k: kwargs[k] for k in hub if k in kwargs}
        try:
            index = cls.load_config(path, **hub)
        except OSError:  # a UNet without a pipeline around it
            index = parents and parents.index_of_unet(path, **hub)
            if index is None:
                raise
        name = index["_class_name"]
        is_parent = parents is not None and name in parents.PARENTS
        if name not in known and not is_parent:
            raise ValueError(
                f"{path} holds a {name}, which is none of {', '.join(known)}: if it is of another package, import that "
                f"first; if it is diffusers' own, use diffusers.{name}.from_pretrained"
            )
        if kwargs.get("use_safetensors") is False:
            raise ValueError("use_safetensors=False would read pickled weights, which can run code: leave it out")
        kwargs["use_safetensors"] = True
        if _INSTALLED:  # there is nothing to trust
            kwargs.pop("trust_remote_code", None)
        try:
            if is_parent:
                return parents.load(cls, path, index, **kwargs)
            if not issubclass(known[name], cls):
                raise ValueError(f"{path} holds a {name}: use {name}.from_pretrained")
            return super(PortablePipeline, known[name]).from_pretrained(path, **kwargs)
        except OSError as error:
            if "safetensors" not in str(error):
                raise
            raise ValueError(
                f"{path} lacks weights as safetensors (pickled ones can run code when they are read, and are refused): "
                f"{' '.join(str(error).split())}"
            ) from error

    @classmethod
    def _dict_from_json_file(cls, json_file: str | os.PathLike) -> dict[str, Any]:
        config = super()._dict_from_json_file(json_file)
        name = config.get("_class_name")
        if isinstance(name, list):  # [file, class]: the class is ours, the file is not needed
            config["_class_name"] = name[1]
        return config

    @classmethod
    def load_config(cls, pretrained_model_name_or_path: Any, *args: Any, **kwargs: Any) -> Any:
        config = super().load_config(pretrained_model_name_or_path, *args, **kwargs)
        if _INSTALLED:
            _use_installed(config[0] if isinstance(config, tuple) else config, pretrained_model_name_or_path)
        return config


def _use_installed(config: dict[str, Any], name_or_path: Any) -> None:
    """Replace the adapter's file by the module of the class of that name, and refuse components of anything else."""
    adapters = importlib.import_module(f"{_PACKAGE}.adapters")
    for module in ("text_adapters", "embedding_adapter", "composite_adapter", "pipelines"):
        importlib.import_module(f"{_PACKAGE}.{module}")
    ignored = importlib.import_module(f"{_PACKAGE}.parents").IGNORED.get(config.get("_class_name"), ())
    for component, value in config.items():
        if not isinstance(value, list) or component.startswith("_") or len(value) != 2 or value[1] is None:
            continue
        module, name = value
        if component == "adapter":
            home = config.get("_adapter_from", None if _CODE_FILE.fullmatch(str(module)) else module)
            found = [c for c in _subclasses(adapters.ConditioningAdapter) if c.__name__ == name]
            found = [c for c in found if home in (None, c.__module__)] or found
            if not found:
                package = str(home).split(".")[0]
                raise ValueError(
                    f"{name_or_path} has an adapter {name} of the package {package!r}, which is not imported: "
                    f"install it, `import {package}`, then load again"
                )
            config[component] = [found[0].__module__, name]
        elif component not in ignored and module not in ("diffusers", "transformers"):
            raise ValueError(
                f"{name_or_path} has a component {component!r} of {module!r}, which is not loaded without trust: only "
                "diffusers and transformers are. Pass the component to from_pretrained, or, if you have read the "
                "repository's code, use diffusers.DiffusionPipeline.from_pretrained(..., trust_remote_code=True)"
            )


def _subclasses(cls: type) -> list[type]:
    return [cls] + [d for c in cls.__subclasses__() for d in _subclasses(c)]


# ------------------------------------------------------------------------------------------------------ saving


def add_code(pipe: DiffusionPipeline, folder: Path) -> None:
    """Write the code of the pipeline and its adapter into `folder`, and name it in model_index.json."""
    index_file = folder / "model_index.json"
    index = json.loads(index_file.read_text(encoding="utf-8"))
    file_name = _write(folder, "pipeline", pipeline_code(type(pipe)))
    index["_class_name"] = [file_name, type(pipe).__name__]
    adapter = type(pipe.adapter)
    parts = [type(m) for m in pipe.adapter.modules() if hasattr(m, "conditioning")]
    file_name = _write(folder / "adapter", "modeling", adapter_code(adapter, *parts))
    index["adapter"] = [file_name, adapter.__name__]
    index["_adapter_from"] = getattr(sys.modules[adapter.__module__], "_ADAPTER_FROM", adapter.__module__)
    index.pop("_name_or_path", None)  # a path of this machine
    index_file.write_text(json.dumps(index, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _write(folder: Path, kind: str, text: str) -> str:
    name = f"{kind}_cond_{hashlib.sha256(text.encode()).hexdigest()[:10]}"
    for old in folder.glob(f"{kind}_cond_*.py"):
        if _CODE_FILE.fullmatch(old.stem):
            old.unlink()
    (folder / f"{name}.py").write_text(text, encoding="utf-8")
    return name


def _is_copy(cls: type) -> bool:
    """True for a class that was itself loaded from a checkpoint's code."""
    return cls.__module__.startswith("diffusers_modules.")


def pipeline_code(cls: type) -> str:
    """The text of one file that defines the pipeline class `cls` with no more than diffusers and transformers."""
    if _is_copy(cls):
        return _source(cls.__module__)
    modules = [f"{_PACKAGE}.{name}" for name in _PIPELINE_MODULES]
    if cls.__module__ not in modules:  # somebody's own subclass
        modules.append(cls.__module__)
    return join_code(*modules)


def adapter_code(cls: type, *parts: type) -> str:
    """The text of one file that defines the adapter class `cls`, and the classes of its `parts`.

    Where they need more than one file each, it imports the class and says what to install.
    """
    if _is_copy(cls):
        return _source(cls.__module__)
    ours, home = f"{_PACKAGE}.adapters", f'\n_ADAPTER_FROM = "{cls.__module__}"\n'
    others = [c.__module__ for c in (*parts, cls) if c is not cls] + [cls.__module__]
    others = [module for module in dict.fromkeys(others) if module != ours]
    if all(_stands_alone(module, sys.modules[ours]) for module in others):
        return join_code(ours, *others) + home
    package = cls.__module__.split(".")[0]
    return (
        f'"""The adapter of this model is a part of the package {package}."""\n\n'
        "from diffusers.models.modeling_utils import ModelMixin  # noqa: F401: diffusers looks for it here\n\n"
        "try:\n"
        f"    from {cls.__module__} import {cls.__name__}  # noqa: F401\n"
        "except ImportError as error:\n"
        f"    raise ImportError(\n"
        f'        "this model\'s adapter {cls.__name__} is a part of the package {package}: install it (and "\n'
        f'        "{_PACKAGE}), then load the model again"\n'
        "    ) from error\n"
    )


def join_code(*modules: str) -> str:
    """The sources of some modules as one, without their imports of each other and of this package."""
    future, texts = set(), []
    for name in modules:
        text = _source(name)
        lines = text.splitlines(keepends=True)
        for node in ast.parse(text).body:
            if not isinstance(node, ast.ImportFrom):
                continue
            if node.module == "__future__":
                future.update(alias.name for alias in node.names)
                new = ""
            elif node.level or (node.module or "").split(".")[0] == _PACKAGE:
                new = "".join(f"{a.asname} = {a.name}\n" for a in node.names if a.asname and a.asname != a.name)
            else:
                continue
            lines[node.lineno - 1 : node.end_lineno] = [new] + [""] * (node.end_lineno - node.lineno)
        texts.append("".join(lines))
    head = "".join(f"from __future__ import {name}\n" for name in sorted(future))
    title = f"# The code of {', '.join(modules)}, gathered so that this model loads with diffusers alone.\n"
    return title + head + "\n\n".join(texts)


def _stands_alone(module: str, base: Any) -> bool:
    """True where a module needs nothing but its own file, what everybody has, and names defined in `base`."""
    try:
        tree = ast.parse(_source(module))
    except (OSError, SyntaxError):
        return False
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            roots = {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            roots = {(node.module or "").split(".")[0]}
            if node.level:
                return False
            if roots == {_PACKAGE} and node in tree.body and all(hasattr(base, alias.name) for alias in node.names):
                continue
        else:
            continue
        if roots - _EVERYWHERE - sys.stdlib_module_names:
            return False
    return True


def _source(module: str) -> str:
    return Path(inspect.getsourcefile(sys.modules[module])).read_text(encoding="utf-8")


"""Images to latents, for any of diffusers' autoencoders."""

import torch
from diffusers import AutoencoderDC, AutoencoderKL, AutoencoderTiny, VQModel
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from torch import Tensor

Generators = torch.Generator | list[torch.Generator] | None
VAE = AutoencoderKL | AutoencoderTiny | AutoencoderDC | VQModel


def vae_scale_factor(vae: VAE) -> int:
    """Image pixels per latent pixel along a side."""
    return getattr(vae, "spatial_compression_ratio", None) or 2 ** (len(vae.config.block_out_channels) - 1)


def vae_encode(vae: VAE, images: Tensor, generator: Generators = None) -> Tensor:
    """Images (B, C, H, W) in [-1, 1] to scaled latents (B, c, H / f, W / f)."""
    return sample_posterior(vae, vae_posterior(vae, images), generator)


def vae_posterior(vae: VAE, images: Tensor) -> Tensor:
    """What is not random of it: AutoencoderKL's mean and log variance (B, 2c, h, w), others' latents (B, c, h, w)."""
    encoded = vae.encode(images.to(vae.dtype))
    if hasattr(encoded, "latent_dist"):
        return encoded.latent_dist.parameters
    return encoded.latents if hasattr(encoded, "latents") else encoded.latent  # Tiny and VQModel; AutoencoderDC


def sample_posterior(vae: VAE, posterior: Tensor, generator: Generators = None) -> Tensor:
    """What `vae_posterior` gave to scaled latents (B, c, h, w)."""
    latents = posterior.to(vae.dtype)
    if posterior.shape[1] == 2 * vae.config.latent_channels:
        latents = DiagonalGaussianDistribution(latents).sample(generator)
    return (latents - (getattr(vae.config, "shift_factor", None) or 0.0)) * vae.config.scaling_factor


"""What a call is given: its arguments checked, its image and mask brought to where the UNet works.

    image --encode--> x_0 --noise of the first timestep--> latents ; mask --> what each step keeps

This file is self-contained on purpose: it travels with a checkpoint.
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import UNet2DModel
from diffusers.image_processor import VaeImageProcessor
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor



def image_processors(vae: Any, scale_factor: int) -> tuple[VaeImageProcessor, VaeImageProcessor]:
    """diffusers' own, of images and of masks, for a pipeline with this VAE or with none."""
    # A tensor with as many channels as latents have is taken for latents; where images have as many, for images.
    latent_channels = (
        0 if vae is None or vae.config.latent_channels == vae.config.in_channels else vae.config.latent_channels
    )
    images = VaeImageProcessor(vae_scale_factor=scale_factor, vae_latent_channels=latent_channels)
    of_mask = {"do_normalize": False, "do_binarize": True, "do_convert_grayscale": True}
    return images, VaeImageProcessor(vae_scale_factor=scale_factor, **of_mask)


def num_channels_latents(pipe: Any) -> int:
    """Of what is denoised. A UNet may see more (a mask and a masked image) or answer more (a learned variance)."""
    if pipe.vae is not None:
        return pipe.vae.config.latent_channels
    config = pipe.unet.config
    return min(config.in_channels, getattr(config, "out_channels", config.in_channels))


def check_call(
    pipe: Any,
    height: int | None,
    width: int | None,
    guidance_interval: tuple[float, float],
    callback_on_step_end_tensor_inputs: list[str] | None,
    output_type: str,
    image: Any,
    mask_image: Any,
    strength: float,
) -> None:
    """Raise ValueError, in one line, for arguments that no setting can use."""
    _check_size(pipe, height or 0, width or 0)
    if output_type == "pil" and pipe.vae is None and num_channels_latents(pipe) not in (1, 3, 4):
        channels = num_channels_latents(pipe)
        raise ValueError(f"{channels} channels make no PIL image: pass output_type='np' or 'pt'")
    low, high = guidance_interval
    if not 0 <= low <= high <= 1:
        raise ValueError(f"guidance_interval {guidance_interval} must be two fractions of the steps, 0 <= a <= b <= 1")
    unknown = set(callback_on_step_end_tensor_inputs or ()) - set(pipe._callback_tensor_inputs)
    if unknown:
        raise ValueError(
            f"callback_on_step_end_tensor_inputs {sorted(unknown)} are not among {pipe._callback_tensor_inputs}"
        )
    if not 0 <= strength <= 1:
        raise ValueError(f"strength {strength} must be between 0 and 1")
    if mask_image is not None and image is None:
        raise ValueError("mask_image says where to paint: pass the image too")
    channels, seen = num_channels_latents(pipe), pipe.unet.config.in_channels
    if seen not in (channels, 2 * channels + 1):
        raise ValueError(
            f"the UNet takes {seen} channels, and this pipeline has {channels} or, for inpainting, {2 * channels + 1}"
        )
    if seen != channels and mask_image is None:
        raise ValueError(f"the UNet takes {seen} channels, it is for inpainting: pass image and mask_image")


def _check_size(pipe: Any, height: int, width: int) -> None:
    multiple = pipe.vae_scale_factor
    if isinstance(pipe.unet, UNet2DModel):  # the other kind copes with any size
        multiple *= 2 ** (len(pipe.unet.config.block_out_channels) - 1)
    if height % multiple or width % multiple:
        raise ValueError(f"height {height} and width {width} must be multiples of {multiple}")


@dataclass(frozen=True)
class Edit:
    """A call with an image: where it starts, and what each step keeps of it.

    Args:
        timesteps: those that are left.
        latents: (B, c, h, w) the start.
        beside: (B, 1 + c, h, w) the mask and the image without what is masked, which an inpainting UNet sees beside
            the latents; None: it does not.
        mask: (B, 1, h, w), 1 where to paint; None: everywhere, or an inpainting UNet sees to it.
        x_0, noise: (B, c, h, w) of the image that is kept elsewhere.
    """

    timesteps: Tensor
    latents: Tensor
    beside: Tensor | None = None
    mask: Tensor | None = None
    x_0: Tensor | None = None
    noise: Tensor | None = None

    def keep_unmasked(self, scheduler: Any, latents: Tensor, next_timestep: Tensor) -> Tensor:
        """`latents` where the mask is 1, the image at the noise of `next_timestep` elsewhere; (0,) is none."""
        if self.mask is None:
            return latents
        kept = add_noise(scheduler, self.x_0, self.noise, next_timestep) if len(next_timestep) else self.x_0
        return (1 - self.mask) * kept + self.mask * latents


def add_noise(scheduler: Any, x_0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
    """`x_0` at the noise of timestep `t`; flow-matching schedulers have another name for it."""
    if hasattr(scheduler, "scale_noise"):
        return scheduler.scale_noise(x_0, t, noise)
    return scheduler.add_noise(x_0, noise, t)


def last_timesteps(scheduler: Any, num_inference_steps: int, strength: float) -> Tensor:
    """The last `strength` of the timesteps that the scheduler was set to.

    Raises:
        ValueError: none is left.
    """
    left = min(int(num_inference_steps * strength), num_inference_steps)
    if not left:
        raise ValueError(f"strength {strength} leaves none of {num_inference_steps} steps: raise one of them")
    start = (num_inference_steps - left) * scheduler.order
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(start)
    return scheduler.timesteps[start:]


def prepare_edit(
    pipe: Any,
    image: Any,
    mask_image: Any,
    strength: float,
    num_inference_steps: int,
    num_rows: int,
    batch_size: int,
    height: int | None,
    width: int | None,
    generator: Generators,
    latents: Tensor | None,
) -> Edit:
    """From an image, and a mask, to the start of the denoising loop; the scheduler's timesteps are set.

    Draws from `generator` what StableDiffusionImg2ImgPipeline or StableDiffusionInpaintPipeline draws, in that order.

    Args:
        image, mask_image: whatever diffusers' image processor takes: one, one a row, or one a sample.
        num_rows, batch_size: of conditions, and of samples.
        latents: (B, c, h, w) the noise; None: drawn.
    """
    device, dtype = pipe._execution_device, pipe.unet.dtype
    timesteps = last_timesteps(pipe.scheduler, num_inference_steps, strength)

    def each(x: Tensor, name: str) -> Tensor:
        if len(x) not in (1, num_rows, batch_size):
            raise ValueError(f"{name}: {len(x)} for {num_rows} conditions: pass one, or one for each")
        # `cat` leaves the layout in memory as theirs is; a convolution rounds differently in another.
        return torch.cat([x[i : i + 1] for i in (n * len(x) // batch_size for n in range(batch_size))])

    def encode(images: Tensor) -> Tensor:
        images = images.to(device, dtype)
        if is_latent:
            return images
        if not isinstance(generator, list):
            return pipe.encode_images(images, generator)
        return torch.cat([pipe.encode_images(images[i : i + 1], generator[i]) for i in range(len(images))])

    if isinstance(generator, list) and len(generator) != batch_size:
        raise ValueError(f"got {len(generator)} generators for {batch_size} images: pass one, or one per image")
    images = pipe.image_processor.preprocess(_in_mode(pipe, image), height=height, width=width)  # (n, C, H, W)
    channels = num_channels_latents(pipe)
    is_latent = pipe.vae is None or images.shape[1] == pipe.image_processor.config.vae_latent_channels
    needed = channels if is_latent else pipe.vae.config.in_channels
    if images.shape[1] != needed:
        raise ValueError(f"image has {images.shape[1]} channels, and the model {needed}")
    factor = 1 if is_latent else pipe.vae_scale_factor
    _check_size(pipe, *(side * pipe.vae_scale_factor // factor for side in images.shape[2:]))
    shape = (batch_size, channels, images.shape[2] // factor, images.shape[3] // factor)
    if latents is not None and tuple(latents.shape) != shape:
        raise ValueError(f"latents have the shape {tuple(latents.shape)}, and {shape} is needed")

    def draw() -> Tensor:
        given = latents is not None
        return (
            latents.to(device, dtype) if given else randn_tensor(shape, generator=generator, device=device, dtype=dtype)
        )

    first = timesteps[:1].repeat(batch_size)
    if mask_image is None:
        if isinstance(generator, list):
            images = each(images, "image")  # so that a sample does not depend on its batch
        x_0 = each(encode(images), "image")
        return Edit(timesteps, add_noise(pipe.scheduler, x_0, draw(), first))

    is_for_inpainting = pipe.unet.config.in_channels != channels
    x_0 = None if is_for_inpainting and strength == 1 else each(encode(images), "image").contiguous()
    noise = draw()
    sigma = getattr(pipe.scheduler, "init_noise_sigma", 1.0)
    start = noise * sigma if strength == 1 else add_noise(pipe.scheduler, x_0, noise, first)
    mask = pipe.mask_processor.preprocess(mask_image, height=height, width=width)  # (m, 1, H, W)
    small = F.interpolate(mask, size=shape[2:])  # (m, 1, h, w), nearest
    masked = images * ((small if is_latent else mask) < 0.5)
    seen = each(encode(masked), "image")  # also where the UNet does not see it: the generator is to move on as theirs
    mask = each(small.to(device, dtype), "mask_image")
    if is_for_inpainting:
        return Edit(timesteps, start, beside=torch.cat([mask, seen], dim=1))
    return Edit(timesteps, start, mask=mask, x_0=x_0, noise=noise)


def _in_mode(pipe: Any, image: Any) -> Any:
    """PIL images, one or a list, in the mode that the model's number of channels asks for."""
    channels = num_channels_latents(pipe) if pipe.vae is None else pipe.vae.config.in_channels
    mode = {1: "L", 3: "RGB", 4: "RGBA"}.get(channels)
    images = image if isinstance(image, list) else [image]
    if mode is None or not all(hasattr(x, "convert") for x in images):
        return image
    return [x.convert(mode) for x in images]


"""The one denoising loop, whatever the condition.

    raw condition --adapter--> cond, null ; noise --[unet, guidance, scheduler.step]*--> (vae) --> images

This file is self-contained on purpose: it travels with a checkpoint.
"""

import inspect
from collections.abc import Callable
from dataclasses import replace
from functools import reduce
from typing import Any

import numpy as np
import torch
from diffusers import UNet2DConditionModel, UNet2DModel
from diffusers.models.modeling_utils import ModelMixin
from diffusers.pipelines.pipeline_utils import DiffusionPipeline, ImagePipelineOutput
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase



class ConditionalPipeline(PortablePipeline):
    """Image generation under any conditioning adapter; the three settings are its subclasses.

    `ConditionalPipeline.from_pretrained(path)` returns the subclass that was saved. Called itself it takes raw
    conditions of whatever kind its adapter understands, which is how a third party's adapter is used.

    Args:
        unet: the denoiser, of pixels or, with a `vae`, of latents.
        scheduler: any diffusers scheduler that fits what the UNet was trained to predict.
        adapter: a ConditioningAdapter built for the UNet's socket.
        vae: AutoencoderKL, AutoencoderTiny, AutoencoderDC or VQModel for latent diffusion; None for pixels.
        text_encoder, tokenizer: for adapters over text.
        default_num_inference_steps, default_guidance_scale: what a call uses when it is not told.
        value_range: {"low", "high"}, what 0 and 1 mean in the files that it learned from; see `to_values`.

    Example:
        >>> pipe = ConditionalPipeline.from_pretrained("path/to/model")
        >>> pipe(condition=["anything its adapter understands"]).images[0]
    """

    conditioning: str | None = None  # the setting of the adapter that a subclass needs; None: any
    model_cpu_offload_seq = "text_encoder->adapter->unet->vae"
    _optional_components = ["vae", "text_encoder", "tokenizer"]
    _callback_tensor_inputs = ["latents", "encoder_hidden_states", "negative_encoder_hidden_states"]

    def __init__(
        self,
        unet: UNet2DConditionModel | UNet2DModel,
        scheduler: SchedulerMixin,
        adapter: ModelMixin,
        vae: VAE | None = None,
        text_encoder: PreTrainedModel | None = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
        default_num_inference_steps: int = 30,
        default_guidance_scale: float = 2.5,
        value_range: dict[str, float] | None = None,
    ):
        super().__init__()
        self._setup(
            default_num_inference_steps,
            default_guidance_scale,
            value_range,
            unet=unet,
            scheduler=scheduler,
            adapter=adapter,
            vae=vae,
            text_encoder=text_encoder,
            tokenizer=tokenizer,
        )

    def _setup(
        self,
        default_num_inference_steps: int,
        default_guidance_scale: float,
        value_range: dict[str, float] | None,
        **modules: Any,
    ) -> None:
        found = getattr(modules["adapter"], "conditioning", None)
        if modules["adapter"] is not None and self.conditioning not in (None, found):
            raise ValueError(
                f"{type(self).__name__} needs an adapter for the setting {self.conditioning!r} and got "
                f"{type(modules['adapter']).__name__} ({found!r}): pass "
                f"adapter={_ADAPTERS[self.conditioning]}.for_unet(unet, ...)"
            )
        self.register_modules(**modules)
        self.register_to_config(
            default_num_inference_steps=default_num_inference_steps,
            default_guidance_scale=default_guidance_scale,
            value_range=value_range,
        )
        vae = modules.get("vae")
        self.vae_scale_factor = 1 if vae is None else vae_scale_factor(vae)
        self.image_processor, self.mask_processor = image_processors(vae, self.vae_scale_factor)

    @classmethod
    def from_pipe(cls, pipeline: DiffusionPipeline, **kwargs: Any) -> "ConditionalPipeline":
        """Another setting on the same UNet: `ClassConditionalPipeline.from_pipe(pipe, adapter=...)`.

        A new adapter starts with no effect, so the new pipeline's images equal its parent's unconditional ones. The
        parent may also be diffusers' own: StableDiffusionPipeline (text or inpainting), DDPMPipeline, DDIMPipeline,
        LDMPipeline; an adapter for the parent's own setting need not be given.

        Raises:
            ValueError: an adapter is missing, or the pipeline is one that cannot be converted.
        """
        if not hasattr(pipeline, "adapter"):
            return cls._installed("parents").convert(cls, pipeline, **kwargs)
        if kwargs.get("adapter") is not None:
            kwargs["adapter"].inherit_null(pipeline.adapter)
        # diffusers carries a model over only when its class is the annotated one, and adapters are of many classes.
        kwargs.setdefault("adapter", pipeline.adapter)
        kwargs.setdefault("dtype", pipeline.unet.dtype)
        return super().from_pipe(pipeline, **kwargs)

    # ------------------------------------------------------------ state of a call, under diffusers' names

    @property
    def guidance_scale(self) -> float:
        return self._guidance_scale

    @property
    def guidance_rescale(self) -> float:
        return self._guidance_rescale

    @property
    def do_classifier_free_guidance(self) -> bool:
        return self._guidance_scale != 1.0 and not self._null_is_cond

    @property
    def cross_attention_kwargs(self) -> dict[str, Any] | None:
        return self._cross_attention_kwargs

    @property
    def num_timesteps(self) -> int:
        return self._num_timesteps

    @property
    def interrupt(self) -> bool:
        return self._interrupt

    # -------------------------------------------------------------------------------- the steps of a call

    def encode_condition(self, condition: list[Any], negative_condition: list[Any] | None = None) -> tuple[Any, Any]:
        """Raw conditions to (cond, null), the two branches of guidance, each with one row an image."""
        cond = self._condition(self._features(condition))
        if negative_condition is None:
            return cond, self.adapter.null_like(cond)
        return cond, self._condition(self._features(negative_condition))

    def _features(self, raw: list[Any]) -> dict[str, Tensor]:
        inputs = self.adapter.preprocess(raw, getattr(self, "tokenizer", None))
        inputs = {name: x.to(self._execution_device) for name, x in inputs.items()}
        return self.adapter.encode(inputs, getattr(self, "text_encoder", None))

    def _condition(self, features: dict[str, Tensor]) -> Any:
        device, dtype = self._execution_device, self.adapter.dtype
        features = {k: x.to(device, dtype if x.is_floating_point() else None) for k, x in features.items()}
        return self.adapter(features).to(dtype=self.unet.dtype)

    def prepare_latents(
        self, batch_size: int, height: int, width: int, generator: Generators = None, latents: Tensor | None = None
    ) -> Tensor:
        """Initial noise (B, C, height / f, width / f), scaled as the scheduler wants it."""
        factor = self.vae_scale_factor
        shape = (batch_size, num_channels_latents(self), height // factor, width // factor)
        if isinstance(generator, list) and len(generator) != batch_size:
            raise ValueError(f"got {len(generator)} generators for {batch_size} images: pass one, or one per image")
        if latents is None:
            latents = randn_tensor(shape, generator=generator, device=self._execution_device, dtype=self.unet.dtype)
        elif tuple(latents.shape) != shape:
            raise ValueError(f"latents have the shape {tuple(latents.shape)}, and {shape} is needed")
        else:
            latents = latents.to(self._execution_device, self.unet.dtype)
        return latents * getattr(self.scheduler, "init_noise_sigma", 1.0)

    def set_timesteps(self, num_inference_steps: int) -> Tensor:
        """Tell the scheduler the number of steps; returns the timesteps it made. Before its noise is asked for."""
        device = self._execution_device
        if type(self.scheduler).__name__ == "FlowMatchEulerDiscreteScheduler":
            # Evenly spaced from 1 down to 1 / n, as diffusers' flow pipelines do: its own default spends a whole
            # step on sigma < 0.001.
            sigmas = np.linspace(1.0, 1 / num_inference_steps, num_inference_steps)
            self.scheduler.set_timesteps(sigmas=sigmas, device=device)
        else:
            self.scheduler.set_timesteps(num_inference_steps, device=device)
        return self.scheduler.timesteps

    def predict(
        self, latents: Tensor, t: Tensor, cond: Any, null: Any, guided: bool, beside: Tensor | None = None
    ) -> Tensor:
        """The UNet's answer, with guidance where `guided`: (B, C, h, w). `beside` (B, c, h, w): see `Edit`."""
        branches, scales = cond.branches(null, self.guidance_scale) if guided else ([cond], [])
        told = reduce(lambda a, b: a.cat(b), branches)
        x_t = torch.cat([latents] * len(branches))  # (2B or B, C, h, w)
        if hasattr(self.scheduler, "scale_model_input"):
            x_t = self.scheduler.scale_model_input(x_t, t)
        if beside is not None:
            x_t = torch.cat([x_t, torch.cat([beside] * len(branches))], dim=1)
        kwargs = told.unet_kwargs(self.unet)
        if self.cross_attention_kwargs is not None:
            kwargs["cross_attention_kwargs"] = self.cross_attention_kwargs
        noise_pred = self.unet(x_t, t, **kwargs, return_dict=False)[0]
        if not guided:
            return noise_pred
        # Classifier-free guidance (Ho and Salimans 2022, arXiv 2207.12598, Eq. 6, with scale = 1 + w)
        each = noise_pred.chunk(len(branches))
        noise_pred = sum((s * (b - a) for s, a, b in zip(scales, each[:-1], each[1:], strict=True)), each[0])
        if self.guidance_rescale > 0:
            noise_pred = rescale_guided(noise_pred, each[-1], self.guidance_rescale)
        return noise_pred

    def denoise(
        self,
        latents: Tensor,
        timesteps: Tensor,
        cond: Any,
        null: Any,
        guidance_interval: tuple[float, float] = (0.0, 1.0),
        generator: Generators = None,
        eta: float = 0.0,
        edit: Edit | None = None,
        callback_on_step_end: Callable | None = None,
        callback_on_step_end_tensor_inputs: list[str] | None = None,
    ) -> Tensor:
        """Noise to a sample: (B, C, h, w) to (B, C, h, w). The one loop of all settings."""
        accepted = set(inspect.signature(self.scheduler.step).parameters)
        extra_step_kwargs = {k: v for k, v in {"generator": generator, "eta": eta}.items() if k in accepted}
        self._num_timesteps = len(timesteps)
        # Where "no prompt" is a prompt, StableDiffusionPipeline makes both passes, and one row is rounded unlike two.
        self._null_is_cond = null.equal(cond) and self.adapter.config.get("null_prompt") is None
        with self.progress_bar(total=len(timesteps)) as progress_bar:
            for i, t in enumerate(timesteps):
                if self.interrupt:
                    continue
                in_interval = guidance_interval[0] <= i / len(timesteps) < guidance_interval[1]
                guided = self.do_classifier_free_guidance and in_interval
                noise_pred = self.predict(latents, t, cond, null, guided, edit and edit.beside)
                dtype = latents.dtype
                latents = self.scheduler.step(noise_pred, t, latents, **extra_step_kwargs, return_dict=False)[0].to(
                    dtype
                )
                if edit is not None:
                    latents = edit.keep_unmasked(self.scheduler, latents, timesteps[i + 1 : i + 2])
                if callback_on_step_end is not None:
                    offered = {
                        "latents": latents,
                        "encoder_hidden_states": cond.tokens,
                        "negative_encoder_hidden_states": null.tokens,
                    }
                    wanted = {k: offered[k] for k in callback_on_step_end_tensor_inputs or ["latents"]}
                    given = offered | (callback_on_step_end(self, i, t, wanted) or {})
                    latents = given["latents"]
                    cond = replace(cond, tokens=given["encoder_hidden_states"])
                    null = replace(null, tokens=given["negative_encoder_hidden_states"])
                progress_bar.update()
        return latents

    def encode_images(self, images: Tensor, generator: Generators = None) -> Tensor:
        """Images (B, C, H, W) in [-1, 1] to what the UNet denoises: themselves, or the VAE's scaled latents."""
        return images if self.vae is None else vae_encode(self.vae, images, generator)

    def to_values(self, images: Any) -> Any:
        """Samples in [0, 1] (output_type "np" or "pt") to the values of the files that the model learned from."""
        of = self.config.value_range or {"low": 0.0, "high": 255.0}
        return of["low"] + images * (of["high"] - of["low"])

    def decode(self, latents: Tensor) -> Tensor:
        """Samples to images (B, C, H, W), nominally in [-1, 1]."""
        if self.vae is None:
            return latents
        config = self.vae.config
        shift = getattr(config, "shift_factor", None) or 0.0
        return self.vae.decode((latents / config.scaling_factor + shift).to(self.vae.dtype), return_dict=False)[0]

    def generate(
        self,
        cond: Any,
        null: Any,
        *,
        height: int | None = None,
        width: int | None = None,
        num_inference_steps: int | None = None,
        guidance_scale: float | dict[str, float] | None = None,
        guidance_interval: tuple[float, float] = (0.0, 1.0),
        guidance_rescale: float = 0.0,
        num_images_per_prompt: int = 1,
        generator: Generators = None,
        latents: Tensor | None = None,
        image: Any = None,
        mask_image: Any = None,
        strength: float | None = None,
        eta: float = 0.0,
        output_type: str = "pil",
        return_dict: bool = True,
        cross_attention_kwargs: dict[str, Any] | None = None,
        callback_on_step_end: Callable | None = None,
        callback_on_step_end_tensor_inputs: list[str] | None = None,
    ) -> ImagePipelineOutput | tuple:
        """From (cond, null) to images: what every `__call__` does once its condition is encoded.

        Args:
            height, width: in pixels; default: the size it was trained at. They need not be equal.
            num_inference_steps, guidance_scale: default: as the model was saved. 1 turns guidance off; the second
                pass of the UNet is skipped wherever it has no effect.
            guidance_interval: the fraction of the steps with guidance, (0, 1) for all (Kynkaanniemi et al. 2024).
            guidance_rescale: 0 to 1 (Lin et al. 2023, section 3.4).
            generator: one, or a list with one per image, so that an image does not depend on its batch.
            latents: (B, C, height / f, width / f) initial noise, f the VAE's scale factor.
            image: start from it: image-to-image, and with several samples its variations. What diffusers' image
                processor takes (PIL, numpy or tensor); one, one a condition, or latents (n, C, h, w).
            mask_image: paint only where it is white (inpainting), at the model's size unless height and width say else.
            strength: 0 to 1, how much noise the image gets, so what part of the steps is made. Default: 0.8; 1 with a
                mask.
            eta: of DDIM, 0 to 1; other schedulers have none.
            output_type: "pil", "np" (B, H, W, C) or "pt" (B, C, H, W) in [0, 1], or "latent".
        """
        size = self.unet.config.sample_size
        default_height, default_width = size if isinstance(size, tuple | list) else (size, size)
        if image is None or mask_image is not None:
            height = height or default_height * self.vae_scale_factor
            width = width or default_width * self.vae_scale_factor
        if strength is None:
            strength = 0.8 if mask_image is None else 1.0
        checked = (image, mask_image, strength)
        check_call(self, height, width, guidance_interval, callback_on_step_end_tensor_inputs, output_type, *checked)
        self._guidance_scale = self.config.default_guidance_scale if guidance_scale is None else guidance_scale
        self._guidance_rescale = guidance_rescale
        self._cross_attention_kwargs = cross_attention_kwargs
        self._interrupt = False

        num_rows, batch_size = len(cond), len(cond) * num_images_per_prompt
        cond, null = (c.repeat_interleave(num_images_per_prompt) for c in (cond, null))
        steps = num_inference_steps or self.config.default_num_inference_steps
        timesteps, edit = self.set_timesteps(steps), None
        if image is None:
            latents = self.prepare_latents(batch_size, height, width, generator, latents)
        else:
            sizes = (num_rows, batch_size, height, width)
            edit = prepare_edit(self, image, mask_image, strength, steps, *sizes, generator, latents)
            latents, timesteps = edit.latents, edit.timesteps
        latents = self.denoise(
            latents,
            timesteps,
            cond,
            null,
            guidance_interval,
            generator,
            eta,
            edit,
            callback_on_step_end,
            callback_on_step_end_tensor_inputs,
        )
        images = latents if output_type == "latent" else self.decode(latents)
        images = self.image_processor.postprocess(images, output_type=output_type)
        self.maybe_free_model_hooks()
        return ImagePipelineOutput(images=images) if return_dict else (images,)

    @torch.no_grad()
    def __call__(
        self, condition: list[Any], negative_condition: list[Any] | None = None, **sampling: Any
    ) -> ImagePipelineOutput | tuple:
        """Sample one image (or `num_images_per_prompt`) for each raw condition; see `generate` for the rest."""
        return self.generate(*self.encode_condition(condition, negative_condition), **sampling)


_ADAPTERS = {"none": "UnconditionalAdapter", "class": "ClassLabelAdapter", "text": "TextAdapter"}


def rescale_guided(noise_pred: Tensor, noise_pred_cond: Tensor, guidance_rescale: float) -> Tensor:
    """Give the guided prediction the standard deviation of the conditional one (Lin et al. 2023, arXiv 2305.08891)."""
    dims = list(range(1, noise_pred.ndim))
    ratio = noise_pred_cond.std(dim=dims, keepdim=True) / noise_pred.std(dim=dims, keepdim=True)  # Eq. 15
    return guidance_rescale * (noise_pred * ratio) + (1 - guidance_rescale) * noise_pred  # Eq. 16


"""The three settings, p(x), p(x|y) and p(x|text): `ConditionalPipeline` with a friendly `__call__` each.

This file travels with a checkpoint, together with the one it imports.
"""

import inspect
from typing import Any

import torch
from diffusers import UNet2DConditionModel, UNet2DModel
from diffusers.models.modeling_utils import ModelMixin
from diffusers.pipelines.pipeline_utils import DiffusionPipeline, ImagePipelineOutput
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from torch import Tensor



class UnconditionalPipeline(ConditionalPipeline):
    """p(x).

    Example:
        >>> pipe = UnconditionalPipeline.from_pretrained("path/to/model")
        >>> pipe(batch_size=4, generator=torch.Generator().manual_seed(0)).images[0].save("sample.png")
    """

    conditioning = "none"
    model_cpu_offload_seq = "adapter->unet->vae"
    _optional_components = ["vae"]

    def __init__(
        self,
        unet: UNet2DConditionModel | UNet2DModel,
        scheduler: SchedulerMixin,
        adapter: ModelMixin,
        vae: VAE | None = None,
        default_num_inference_steps: int = 30,
        default_guidance_scale: float = 2.5,
        value_range: dict[str, float] | None = None,
    ):
        DiffusionPipeline.__init__(self)
        self._setup(
            default_num_inference_steps,
            default_guidance_scale,
            value_range,
            unet=unet,
            scheduler=scheduler,
            adapter=adapter,
            vae=vae,
        )

    @torch.no_grad()
    def __call__(self, batch_size: int = 1, **sampling: Any) -> ImagePipelineOutput | tuple:
        """Sample `batch_size` images; see `generate` for the other arguments."""
        return self.generate(*self.encode_condition([None] * batch_size), **sampling)


class ClassConditionalPipeline(UnconditionalPipeline):
    """p(x|y).

    Example:
        >>> pipe = ClassConditionalPipeline.from_pretrained("path/to/model")
        >>> pipe(class_labels=["cat", 1, None]).images  # by name, by id, no label
    """

    conditioning = "class"

    @torch.no_grad()
    def __call__(
        self,
        class_labels: int | str | list[int | str | list[int | str] | None],
        negative_class_labels: int | str | list[int | str | None] | None = None,
        **sampling: Any,
    ) -> ImagePipelineOutput | tuple:
        """Sample an image for each label, given by name or by id; None is no label. See `generate` for the rest.

        A list in the list, [["red", "round"], ["blue"], None], is several labels of one image.
        """
        labels = _as_list(class_labels)
        negative = _as_list(negative_class_labels, len(labels), "negative_class_labels")
        return self.generate(*self.encode_condition(labels, negative), **sampling)

    @property
    def id2label(self) -> dict[int, str]:
        """The classes' names, {0: "cat", ...}."""
        return self.adapter.id2label


class TextToImagePipeline(ConditionalPipeline):
    """p(x|text).

    Example:
        >>> pipe = TextToImagePipeline.from_pretrained("path/to/model")
        >>> pipe("a red circle on white", guidance_scale=3.0).images[0]
    """

    conditioning = "text"

    def encode_prompt(
        self,
        prompt: str | list[str | None] | None,
        negative_prompt: str | list[str | None] | None = None,
        prompt_embeds: Tensor | None = None,
        negative_prompt_embeds: Tensor | None = None,
        prompt_attention_mask: Tensor | None = None,
        negative_prompt_attention_mask: Tensor | None = None,
    ) -> tuple[Tensor, Tensor | None, Tensor, Tensor | None]:
        """Text to the encoder's last hidden states and masks; needs neither the UNet nor the VAE.

        Returns:
            prompt_embeds (B, L, D), negative_prompt_embeds (B, L', D) or None for "no condition",
            prompt_attention_mask (B, L) bool, negative_prompt_attention_mask (B, L') bool or None.
        """
        if prompt is not None:
            prompt_embeds, prompt_attention_mask = self._features(_as_list(prompt)).values()
        if negative_prompt is None and negative_prompt_embeds is None and self.text_encoder is not None:
            # "No prompt" may itself be a prompt, as it is for Stable Diffusion, which encodes it each time.
            negative_prompt = self.adapter.config.get("null_prompt")
        if negative_prompt is not None:
            negative = _as_list(negative_prompt, len(prompt_embeds), "negative_prompt")
            negative_prompt_embeds, negative_prompt_attention_mask = self._features(negative).values()
        return prompt_embeds, negative_prompt_embeds, prompt_attention_mask, negative_prompt_attention_mask

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | list[str | None] | None = None,
        negative_prompt: str | list[str | None] | None = None,
        prompt_embeds: Tensor | None = None,
        negative_prompt_embeds: Tensor | None = None,
        prompt_attention_mask: Tensor | None = None,
        negative_prompt_attention_mask: Tensor | None = None,
        **sampling: Any,
    ) -> ImagePipelineOutput | tuple:
        """Sample an image for each prompt, or for each row of `prompt_embeds` (see `encode_prompt`).

        None as a prompt in a list is no condition. See `generate` for the other arguments.
        """
        if (prompt is None) == (prompt_embeds is None):
            raise ValueError("pass either prompt or prompt_embeds")
        if negative_prompt is not None and negative_prompt_embeds is not None:
            raise ValueError("pass either negative_prompt or negative_prompt_embeds, not both")
        embeds, negative_embeds, mask, negative_mask = self.encode_prompt(
            prompt,
            negative_prompt,
            prompt_embeds,
            negative_prompt_embeds,
            prompt_attention_mask,
            negative_prompt_attention_mask,
        )
        cond = self._condition(_text_features(embeds, mask))
        if negative_embeds is None:
            return self.generate(cond, self.adapter.null_like(cond), **sampling)
        return self.generate(cond, self._condition(_text_features(negative_embeds, negative_mask)), **sampling)


def _as_list(value: Any, length: int | None = None, name: str = "") -> list[Any] | None:
    """One value or a list to a list, repeated to `length` where it is one value."""
    if value is None:
        return None
    values = list(value) if isinstance(value, list | tuple) else [value] * (length or 1)
    if length is not None and len(values) != length:
        raise ValueError(f"{name} has {len(values)} entries for {length} images: pass one, or one per image")
    return values


def _text_features(hidden_states: Tensor, mask: Tensor | None) -> dict[str, Tensor]:
    mask = hidden_states.new_ones(hidden_states.shape[:2]) if mask is None else mask
    return {"hidden_states": hidden_states, "mask": mask.bool()}


def _show_sampling_arguments(*classes: type[ConditionalPipeline]) -> None:
    """`__call__` hands **sampling to `generate`; show those arguments in its signature (help, completion, tools)."""
    common = [
        p for p in inspect.signature(ConditionalPipeline.generate).parameters.values() if p.kind == p.KEYWORD_ONLY
    ]
    for cls in classes:
        signature = inspect.signature(cls.__call__)
        own = [p for p in signature.parameters.values() if p.kind != p.VAR_KEYWORD]
        cls.__call__.__signature__ = signature.replace(parameters=own + common)


_show_sampling_arguments(ConditionalPipeline, UnconditionalPipeline, ClassConditionalPipeline, TextToImagePipeline)
