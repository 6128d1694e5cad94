"""diffusers' own checkpoints as pipelines of this package, and back.

    StableDiffusionPipeline, ...Img2Img..., ...Inpaint...  -> TextToImagePipeline with a PromptAdapter
    DDPMPipeline, DDIMPipeline, LDMPipeline, a UNet2DModel -> UnconditionalPipeline

The images stay the same bit for bit. From there any setting is a swap of the adapter.
"""

import inspect
import logging
import sys
from pathlib import Path
from typing import Any

import diffusers
from diffusers import AutoencoderKL, DiffusionPipeline, UNet2DConditionModel, UNet2DModel
from diffusers.guiders.guider_utils import BaseGuidance
from diffusers.models.modeling_utils import ModelMixin
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.image_processing_base import ImageProcessingMixin

from ..adapters.denoiser import Network
from ..adapters.text import PromptAdapter
from ..adapters.unconditional import UnconditionalAdapter
from ..builtin import with_builtin
from ..console import for_terminal
from ..errors import UserError, read_yaml, reading
from ..folders import check_model_folder
from ..objectives import Objective
from ..pipelines.conditional import ConditionalPipeline
from ..pipelines.defaults import DEFAULTS
from ..pipelines.remote_code import _HUB_ARGUMENTS
from ..pipelines.settings import TextToImagePipeline, UnconditionalPipeline
from .readable import readable_folder
from .surgery import with_socket

_STABLE_DIFFUSION = ("StableDiffusionPipeline", "StableDiffusionImg2ImgPipeline", "StableDiffusionInpaintPipeline")
PARENTS: dict[str, type[ConditionalPipeline]] = {
    **dict.fromkeys(_STABLE_DIFFUSION, TextToImagePipeline),
    **dict.fromkeys(("DDPMPipeline", "DDIMPipeline", "LDMPipeline", "UNet2DModel"), UnconditionalPipeline),
}
_HUB = ("cache_dir", "force_download", "local_files_only", "token", "revision", "variant")
_UNET_FILES = ("config.json", "scheduler_config.json", "diffusion_pytorch_model*.safetensors*")
_KINDS: dict[str, tuple[type, ...]] = {
    "diffusers": (ModelMixin, SchedulerMixin, BaseGuidance),
    "diffusers.guiders": (BaseGuidance,),
    "transformers": (PreTrainedModel, PreTrainedTokenizerBase, ImageProcessingMixin),
}
PathOrName = str | Path
# Arguments of our constructors that a parent has no place for.
OWN_ARGUMENTS = ("adapter", "guider", *DEFAULTS)
# Components that are not read, whatever a repository says they are.
IGNORED = dict.fromkeys(_STABLE_DIFFUSION, ("safety_checker", "feature_extractor", "image_encoder"))


def load_pipeline(name_or_path: PathOrName, flag: str = "", **kwargs: Any) -> ConditionalPipeline:
    """`ConditionalPipeline.from_pretrained` for a command, where a missing or damaged model is an error in one line.

    Args:
        name_or_path: a folder, a Hub id, or "builtin:NAME".
        flag: with which the user named it.

    Raises:
        UserError: there is no model of ours or of PARENTS, it cannot be read, or weights are missing.
    """
    what = f"{flag} {name_or_path}".strip()
    name_or_path = with_builtin(name_or_path)
    with reading(what):
        pipe = ConditionalPipeline.from_pretrained(name_or_path, **kwargs)
    if getattr(pipe, "unet", None) is None:
        parent = str(_parent_of(Path(name_or_path)) or "PARENT")
        raise UserError(
            f"{what} has no UNet of its own: it is added to the model that it was trained from, in Python: parent = "
            f"ConditionalPipeline.from_pretrained({parent!r}); pipe = ConditionalPipeline.from_pretrained("
            f"{str(name_or_path)!r}, unet=parent.unet); pipe.load_lora_weights({str(name_or_path)!r})"
        )
    for component, module in pipe.components.items():
        if isinstance(module, nn.Module) and any(p.is_meta for p in module.parameters()):
            raise UserError(f"{what}: its {component} lacks weights: its config.json and its weights do not fit")
    return pipe


def _parent_of(folder: Path) -> object:
    """The model that the one in a folder was trained from, as its run was configured; None where that is not known."""
    path = folder / "training_config.yaml"
    return read_yaml(path).get("pretrained_model_name_or_path") if path.is_file() else None


def index_of_unet(name_or_path: PathOrName, **hub: object) -> dict[str, Any] | None:
    """In place of model_index.json, where a folder or repository holds a UNet2DModel at its root, and no pipeline."""
    try:
        if Path(name_or_path).is_dir():
            check_model_folder(name_or_path)
        index: dict[str, Any] = UNet2DModel.load_config(name_or_path, **hub)
    except OSError:
        return None
    return index if index.get("_class_name") == "UNet2DModel" else None


def load(
    cls: type[ConditionalPipeline], name_or_path: PathOrName, index: dict[str, Any], **kwargs: Any
) -> ConditionalPipeline:
    """A checkpoint of one of PARENTS as the pipeline of its setting.

    Args:
        index: its model_index.json, or `index_of_unet`.
        kwargs: those of `from_pretrained`.

    Raises:
        ValueError: `cls` is of another setting.
    """
    class_name = index["_class_name"]
    right = PARENTS[class_name]
    if not issubclass(right, cls):
        raise ValueError(
            f"{name_or_path} holds a {class_name}: use {right.__name__}.from_pretrained, then "
            f"{cls.__name__}.from_pipe(pipe, adapter=...)"
        )
    given = {name: kwargs.pop(name) for name in OWN_ARGUMENTS if name in kwargs}
    kwargs["use_safetensors"] = True
    if class_name in IGNORED:
        if (index.get("safety_checker") or [None])[0] is not None:
            logging.getLogger(__name__).warning(for_terminal(f"{name_or_path}: its safety checker is not loaded"))
        kwargs |= dict.fromkeys(IGNORED[class_name]) | {"requires_safety_checker": False}
    if class_name != "UNet2DModel":
        folder = name_or_path
        if not Path(folder).is_dir():
            folder = getattr(diffusers, class_name).download(folder, **kwargs)
        check_model_folder(folder)
        return convert(right, getattr(diffusers, class_name).from_pretrained(folder, **kwargs), **given)
    hub = {name: kwargs[name] for name in _HUB if name in kwargs}
    name_or_path = readable_folder(name_or_path, _UNET_FILES, **hub)
    scheduler = kwargs.pop("scheduler", None) or _bare_scheduler(name_or_path, **kwargs)
    unet = kwargs.pop("unet", None) or UNet2DModel.from_pretrained(name_or_path, **kwargs)
    return convert(right, diffusers.DDPMPipeline(unet, scheduler), **given)


def check_components(index: dict[str, Any], name_or_path: PathOrName) -> None:
    """Raise UserError for a component that is no network, scheduler, guider or tokenizer, such as a whole pipeline."""
    ignored = ("adapter", *IGNORED.get(str(index.get("_class_name")), ()))
    for component, value in index.items():
        library, name = value if isinstance(value, list) and len(value) == 2 else (None, None)
        kinds = _KINDS.get(str(library), ())
        if kinds and not component.startswith("_") and name is not None and component not in ignored:
            cls = getattr(sys.modules[str(library)], str(name), None)
            if not (isinstance(cls, type) and issubclass(cls, kinds)):
                raise UserError(
                    f"{name_or_path}: its component {component} is a {library}.{name}, which is no network, scheduler "
                    "or tokenizer"
                )


def _bare_scheduler(name_or_path: PathOrName, **kwargs: object) -> SchedulerMixin:
    hub = {k: kwargs[k] for k in _HUB_ARGUMENTS if k in kwargs}
    name = diffusers.DDPMScheduler.load_config(name_or_path, **hub).get("_class_name", "")
    scheduler = getattr(diffusers, name, None) if name.endswith("Scheduler") else None
    if scheduler is None:
        raise ValueError(f"{name_or_path} has a scheduler {name!r}, which diffusers does not have")
    return scheduler.from_pretrained(name_or_path, **hub)


def convert(cls: type[ConditionalPipeline], parent: DiffusionPipeline, **given: Any) -> ConditionalPipeline:
    """One of PARENTS as a `cls`; `given` are components, and arguments of its constructor, that replace the parent's.

    Raises:
        ValueError: an adapter is needed, or the UNet of the parent has an input that no adapter gives.
    """
    class_name = type(parent).__name__
    given = {name: value for name, value in given.items() if name != "adapter" or value is not None}
    if class_name not in PARENTS:
        raise ValueError(f"a {class_name} cannot be converted: only {', '.join(PARENTS)} can")
    if cls is ConditionalPipeline and "adapter" not in given:
        cls = PARENTS[class_name]
    _check_unet(parent.unet, class_name)
    accepted = inspect.signature(cls.__init__).parameters
    parts = {"vae": getattr(parent, "vqvae", None)} | parent.components  # LDMPipeline has another name for it
    parts = {name: part for name, part in parts.items() if name in accepted}
    parts["unet"] = with_socket(parent.unet)
    call = inspect.signature(type(parent).__call__).parameters
    for name in ("num_inference_steps", "guidance_scale"):
        if name in call:
            parts[f"default_{name}"] = call[name].default
    if getattr(parent.scheduler, "alphas_cumprod", None) is not None:
        parts["objective"] = Objective.from_scheduler(parent.scheduler).config
    dtype = given.pop("dtype", None) or given.pop("torch_dtype", None)
    parts |= given
    is_text = class_name in _STABLE_DIFFUSION
    prompt_adapter = PromptAdapter.for_unet(parent.unet, parent.text_encoder, parent.tokenizer) if is_text else None
    if "adapter" not in parts:
        parts["adapter"] = (
            prompt_adapter
            if prompt_adapter is not None and cls.conditioning == prompt_adapter.conditioning
            else _unconditional_adapter(cls, parts["unet"])
        )
    parts["adapter"].inherit_null(prompt_adapter)
    if (parts["adapter"].device, parts["adapter"].dtype) != (parent.unet.device, parent.unet.dtype):
        parts["adapter"].to(parent.unet.device, parent.unet.dtype)
    pipe = cls(**parts)
    return pipe if dtype is None else pipe.to(dtype=dtype)


def _unconditional_adapter(cls: type[ConditionalPipeline], unet: Network) -> UnconditionalAdapter:
    if cls.conditioning != UnconditionalAdapter.conditioning:
        raise ValueError(f"{cls.__name__}.from_pipe needs an adapter: pass adapter=...Adapter.for_unet(pipe.unet, ...)")
    adapter: UnconditionalAdapter = UnconditionalAdapter.for_unet(unet)
    return adapter


def _check_unet(unet: nn.Module, class_name: str) -> None:
    """Raise ValueError for a UNet with conditioning inputs that no adapter gives."""
    if isinstance(unet, UNet2DModel):
        return
    names = ("time_cond_proj_dim", "addition_embed_type", "encoder_hid_dim_type", "num_class_embeds")
    for name in names if isinstance(unet, UNet2DConditionModel) else ():
        if unet.config.get(name) is not None:
            raise ValueError(f"a {class_name} whose UNet has {name}={unet.config[name]!r} cannot be converted")
    if not isinstance(unet, UNet2DConditionModel):
        raise ValueError(f"a {class_name} with a {type(unet).__name__} cannot be converted")


def to_stable_diffusion(pipe: ConditionalPipeline) -> DiffusionPipeline:
    """diffusers' StableDiffusionPipeline with the same parts and images; for 9 channels StableDiffusionInpaintPipeline.

    Its `__call__` has defaults of its own: pass `num_inference_steps` and `guidance_scale`.

    Raises:
        ValueError: the images would not be the same, or it could not make any.

    Example:
        >>> pipe = TextToImagePipeline.from_pretrained("stable-diffusion-v1-5/stable-diffusion-v1-5")
        >>> pipe.to_stable_diffusion().save_pretrained("as_it_was")
    """

    def refuse(why: str) -> None:
        raise ValueError(f"this {type(pipe).__name__} has no equal as a StableDiffusionPipeline: {why}")

    adapter, unet, scheduler = pipe.adapter, pipe.unet, pipe.scheduler
    if not isinstance(adapter, PromptAdapter):
        refuse(f"its {type(adapter).__name__} gives the UNet something else than the text encoder's hidden states")
    if adapter.config.null_prompt != "":
        refuse("its text encoder was trained, so that its 'no prompt' is not the encoded empty prompt any more")
    if adapter.config.pooled_dim is not None:
        refuse("its UNet takes a vector with the time")
    if not isinstance(pipe.vae, AutoencoderKL) or getattr(pipe.vae.config, "shift_factor", None):
        refuse("it needs an AutoencoderKL without shift_factor")
    if not hasattr(scheduler, "scale_model_input"):
        refuse(f"it cannot use {type(scheduler).__name__}, nor any other flow-matching scheduler")
    for name in ("guide", "guider"):
        if pipe.components.get(name) is not None:
            refuse(f"that has no {name}")
    for name, value in (("steps_offset", 1), ("clip_sample", False)):
        if scheduler.config.get(name, value) != value:
            refuse(f"it would change the scheduler's {name}={scheduler.config[name]} to {value}")
    is_for_inpainting = unet.config.in_channels != unet.config.out_channels
    cls = diffusers.StableDiffusionInpaintPipeline if is_for_inpainting else diffusers.StableDiffusionPipeline
    return cls(
        vae=pipe.vae,
        text_encoder=pipe.text_encoder,
        tokenizer=pipe.tokenizer,
        unet=unet,
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
