"""From arguments to what is trained: a pipeline with new or pretrained components."""

import inspect
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
from diffusers import AutoencoderDC, AutoencoderKL, AutoencoderTiny, VQModel
from torch import nn

from ..adapters.base import ConditioningAdapter
from ..data.labels import all_of
from ..data.load import TrainingData
from ..errors import arguments_of, reading
from ..networks.denoiser import size_multiple
from ..networks.pretrained import load_pipeline
from ..networks.readable import VAE_FILES, readable_folder
from ..networks.surgery import with_channels, without_variance
from ..networks.text_encoders import load_text_encoder, new_text_encoder
from ..networks.unet_sizes import build_unet
from ..pipelines.conditional import ConditionalPipeline
from ..pipelines.defaults import DEFAULTS
from ..pipelines.image_inputs import num_channels_latents
from ..pipelines.vae import VAE, vae_scale_factor
from ..settings import AdapterInputs, build_adapter, has_same_class
from ..user_code import load_object
from .config import TrainingConfig
from .teacher import as_flow

# Of a new model's scheduler: more of the steps at high noise, where guidance and layout are decided (SD3, arXiv
# 2403.03206, section 5.3.2). The Frechet distances are in benchmarks/results/ablations.md.
_SHIFT = 2.0


def _pretrained(flag: str, name_or_path: str, load: Callable[..., Any], **kwargs: Any) -> Any:
    """What `load` gives; UserError in one line where there is no such thing, or a damaged one."""
    with reading(f"{flag} {name_or_path}"):
        return load(name_or_path, **kwargs)


def load_parent(config: TrainingConfig) -> ConditionalPipeline | None:
    """The pretrained model to start from, of any setting."""
    if not config.pretrained_model_name_or_path:
        return None
    if config.revision and Path(config.pretrained_model_name_or_path).is_dir():
        raise ValueError(f"--revision {config.revision} has no effect on a folder: leave it out, or give a Hub id")
    return as_flow(
        load_pipeline(
            config.pretrained_model_name_or_path,
            "--pretrained_model_name_or_path",
            revision=config.revision,
            variant=config.variant,
        )
    )


def load_vae(config: TrainingConfig, parent: ConditionalPipeline | None = None) -> VAE | None:
    """The parent's VAE, or any of the supported ones, from a folder or the Hub, also a pipeline's `vae` sub-folder."""
    name_or_path = config.pretrained_vae_model_name_or_path
    if parent is not None or not name_or_path:
        return None if parent is None else parent.components.get("vae")
    with reading(f"--pretrained_vae_model_name_or_path {name_or_path}"):
        folder = readable_folder(name_or_path, VAE_FILES)
    for subfolder in ("", "vae"):
        try:
            kind = AutoencoderKL.load_config(folder, subfolder=subfolder)["_class_name"]
        except (OSError, KeyError, ValueError):
            continue
        for cls in (AutoencoderKL, AutoencoderTiny, AutoencoderDC, VQModel):
            if cls.__name__ == kind:
                with reading(f"--pretrained_vae_model_name_or_path {name_or_path}"):
                    vae = cls.from_pretrained(folder, subfolder=subfolder, use_safetensors=True)
                    return vae.requires_grad_(False)
    raise ValueError(f"no AutoencoderKL, AutoencoderTiny, AutoencoderDC or VQModel in {name_or_path}")


def image_channels(config: TrainingConfig, parent: ConditionalPipeline | None, vae: VAE | None) -> int | None:
    """What a pretrained model takes, or, of pixels, is made to take; None where nothing is given."""
    if vae is not None:
        return vae.config.in_channels
    return None if parent is None else config.channels or num_channels_latents(parent)


def build_scheduler(config: TrainingConfig, is_latent: bool = False) -> Any:
    """A new scheduler of --scheduler. Raises ValueError where diffusers has none of that name."""
    name = config.scheduler or "FlowMatchEulerDiscreteScheduler"
    cls = getattr(diffusers, name, None)
    if cls is None or not name.endswith("Scheduler"):
        raise ValueError(f"--scheduler {name} is not a scheduler of diffusers, such as FlowMatchEulerDiscreteScheduler")
    arguments: dict[str, object] = {} if config.scheduler else {"shift": _SHIFT}
    if config.prediction_type:
        arguments["prediction_type"] = config.prediction_type
    if config.prediction_type and "prediction_type" not in inspect.signature(cls).parameters:
        raise ValueError(f"--prediction_type has no meaning for {name}: leave it out")
    # DDPM-family pixels are in [-1, 1], so the samplers may clip; latents are not.
    if is_latent and "clip_sample" in cls.__init__.__code__.co_varnames:
        arguments["clip_sample"] = False
    return cls(**arguments)


def build_pipeline(
    config: TrainingConfig, data: TrainingData, vae: VAE | None = None, parent: ConditionalPipeline | None = None
) -> ConditionalPipeline:
    """A pipeline of --conditioning: new, or with every UNet weight of a pretrained one of any setting."""
    setting, dataset = config.setting, data.dataset
    scale = 1 if vae is None else vae_scale_factor(vae)
    if dataset.resolution % scale:
        raise ValueError(f"--resolution {dataset.resolution} must be a multiple of {scale}, the VAE's scale factor")
    sample_size: int | tuple[int, int] = dataset.resolution // scale
    if dataset.buckets is not None and data.train is not None:
        if any(side % scale for size in dataset.buckets for side in size):
            raise ValueError(f"--aspect_buckets with this VAE needs a --resolution that is a multiple of {8 * scale}")
        common = dataset.size_of(int(dataset.usable[max(dataset.by_bucket(data.train), key=len)[0]]))
        sample_size = common[0] // scale, common[1] // scale  # what is drawn when no height and width are given
    if parent is not None:
        unet = with_channels(parent.unet, dataset.channels if vae is None else vae.config.latent_channels)
        scheduler = build_scheduler(config, vae is not None) if config.scheduler else without_variance(parent.scheduler)
        least = scale * 2 ** (len(unet.config.get("block_out_channels", (1,))) - 1)
        if dataset.resolution < least:
            raise ValueError(
                f"--resolution {dataset.resolution} is too small for the pretrained UNet ({least} or more)"
            )
        unet.register_to_config(sample_size=sample_size)
    else:
        channels = dataset.channels if vae is None else vae.config.latent_channels
        unet = build_unet(config.unet_size, sample_size=sample_size, channels=channels)
        scheduler = build_scheduler(config, vae is not None)
    if dataset.resolution % (multiple := scale * size_multiple(unet)):
        whose = "pretrained UNet" if parent is not None else f"UNet size {config.unet_size}"
        raise ValueError(f"--resolution {dataset.resolution} must be a multiple of {multiple} for the {whose}")
    components = {"unet": unet, "scheduler": scheduler, "vae": vae}

    if setting.has_captions or config.text_encoder_name_or_path:
        components |= dict(zip(("text_encoder", "tokenizer"), _text_encoder(config, data, parent), strict=True))
    components["adapter"] = _adapter(config, unet, data, components.get("text_encoder"), parent)
    if parent is not None:
        components["adapter"].inherit_null(parent.adapter)
    sampling = {name: getattr(config, name) for name in ("default_num_inference_steps", "default_guidance_scale")}
    pipe = setting.pipeline_class(
        **components,
        **{name: DEFAULTS[name] if value is None else value for name, value in sampling.items()},  # not the parent's
        value_range=dict(zip(("low", "high"), config.value_range, strict=False)),  # {}: 8 bits
    )
    if config.gradient_checkpointing:
        pipe.unet.enable_gradient_checkpointing()
    return pipe


def _text_encoder(
    config: TrainingConfig, data: TrainingData, parent: ConditionalPipeline | None
) -> tuple[nn.Module, Any]:
    if config.text_encoder_name_or_path:
        return _pretrained("--text_encoder_name_or_path", config.text_encoder_name_or_path, load_text_encoder)
    if parent is not None and parent.components.get("text_encoder") is not None:
        return parent.text_encoder, parent.tokenizer
    rows = data.both_halves
    if rows is None:
        raise ValueError("a text encoder cannot be made from a streaming set: give --text_encoder_name_or_path")
    captions = (data.dataset.read_condition(int(data.dataset.usable[i])) for i in rows)
    return new_text_encoder(all_of(captions))


def _adapter(
    config: TrainingConfig,
    unet: nn.Module,
    data: TrainingData,
    text_encoder: nn.Module | None,
    parent: ConditionalPipeline | None,
) -> ConditioningAdapter:
    """The pretrained model's where the setting is the same and it fits the data, otherwise a new one."""
    setting = config.setting
    inputs = AdapterInputs(
        load_object(config.adapter, ConditioningAdapter) if config.adapter else setting.adapter_class,
        unet,
        data,
        text_encoder,
        has_own_text_encoder=bool(config.text_encoder_name_or_path),
        config=config.adapter_config,
        source=f"--adapter {config.adapter}" if config.adapter else f"--conditioning {config.conditioning}",
    )
    if config.adapter:
        if parent is not None and has_same_class(parent.adapter, inputs):
            return _with_its_own_config(config, parent.adapter)
        return build_adapter(inputs)
    same_setting = parent is not None and parent.adapter.conditioning == setting.name
    if not (same_setting and setting.adapter_fits(parent.adapter, inputs)):
        return setting.new_adapter(inputs)
    if setting.has_classes:
        data.use_labels(parent.adapter.label_id, "the pretrained model")
    return _with_its_own_config(config, parent.adapter)


def _with_its_own_config(config: TrainingConfig, adapter: ConditioningAdapter) -> ConditioningAdapter:
    """A pretrained model's adapter, which is kept. Raises ValueError where --adapter_config wants another."""
    for name, value in arguments_of("--adapter_config", config.adapter_config).items():
        kept = json.loads(json.dumps(adapter.config.get(name), default=str))
        if kept is not None and kept != value:
            raise ValueError(f"--adapter_config: the pretrained model's adapter has {name} {kept}, and keeps it")
    return adapter
