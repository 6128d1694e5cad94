"""What is trained: the setting, the networks, the objective."""

from dataclasses import dataclass
from typing import Literal

from ...flags import POSITIVE, check_values, flag
from ...networks.unet_sizes import UNET_SIZES, find_size


@dataclass
class ModelArguments:
    """Model: the setting, the networks and the objective."""

    conditioning: str = flag(
        "none",
        "Choose the condition: none, class, text, embedding (a vector), custom or module:SETTING.",
        resume="model",
        common=3,
    )
    adapter: str | None = flag(
        None,
        "Use your own adapter, as module:Class. Default: the setting's.",
        resume="model",
        by="loaded",
    )
    adapter_config: str | None = flag(
        None,
        "Pass these arguments (JSON) to the adapter's constructor, with your own adapter or embedding.",
        resume="model",
        by="loaded",
        needs="adapter | conditioning=embedding,custom",
    )
    unet_size: str | None = flag(
        None,
        f"Build a UNet of this size: {', '.join(UNET_SIZES)} or module:SIZE. Default: by resolution.",
        resume="model",
        needs="!pretrained_model_name_or_path",
        common=7,
    )
    pretrained_model_name_or_path: str | None = flag(
        None,
        "Start from a model of any setting, or Stable Diffusion, DDPM, DDIM, LDM: folder or Hub id.",
        resume="model",
        by="loaded",
        common=6,
    )
    revision: str | None = flag(
        None,
        "Load this revision of the pretrained model.",
        resume="free",
        needs="pretrained_model_name_or_path",
    )
    variant: str | None = flag(
        None,
        "Load this variant of the pretrained model's files, such as fp16.",
        resume="free",
        needs="pretrained_model_name_or_path",
    )
    text_encoder_name_or_path: str | None = flag(
        None,
        "Read captions with this transformers text encoder. Default: a small one, trained here.",
        resume="model",
        by="loaded",
        needs="conditioning=text,custom",
    )
    train_text_encoder: bool | None = flag(
        None,
        "Train the text encoder too. Default: only a new one, whose weights are random.",
        resume="model",
        needs="conditioning=text",
    )
    pretrained_vae_model_name_or_path: str | None = flag(
        None,
        "Train in the latent space of this VAE. Default: in pixels.",
        resume="model",
        by="loaded",
        needs="!pretrained_model_name_or_path",
    )
    scheduler: str | None = flag(
        None,
        "Train for this scheduler of diffusers, and save it. Default: FlowMatchEulerDiscreteScheduler with shift 2.",
        resume="model",
    )
    prediction_type: Literal["epsilon", "v_prediction", "sample"] | None = flag(
        None,
        "Predict epsilon, v_prediction or sample, with a DDPM-family or EDM --scheduler.",
        resume="model",
        needs="scheduler | pretrained_model_name_or_path",
    )
    objective: str | None = flag(
        None,
        "Train with this loss: flow_matching, edm, ddpm or module:Class. Default: the scheduler's.",
        resume="model",
        by="loaded",
    )
    objective_config: str | None = flag(
        None,
        'Pass these arguments (JSON) to the objective, such as {"P_mean": -0.8} of EDM.',
        resume="course",
        by="loaded",
    )
    logit_mean: float | None = flag(
        None,
        "Shift flow matching's times; above 0: more noise. Default: the pretrained model's, or 0 (SD 3).",
        resume="course",
    )
    logit_std: float | None = flag(
        None,
        "Set the spread of flow matching's times. Default: the pretrained model's, or 1 (SD 3).",
        resume="course",
        bounds=POSITIVE,
    )
    snr_gamma: float | None = flag(
        None,
        "Weight a DDPM-family loss by min-SNR, usually 5. Default: the pretrained model's, or none.",
        resume="course",
        bounds=POSITIVE,
        needs="scheduler | pretrained_model_name_or_path",
    )
    gradient_checkpointing: bool = flag(
        False,
        "Recompute activations: less memory, a third slower. Default: where memory is short.",
        resume="free",
    )
    compile: bool = flag(
        False,
        "Compile the UNet with torch.compile: a minute or more at the start, then up to twice as fast on a GPU.",
        resume="free",
    )

    def __post_init__(self) -> None:
        check_values(self)
        if self.unet_size is not None:
            find_size(self.unet_size)
