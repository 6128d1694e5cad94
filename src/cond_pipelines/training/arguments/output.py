"""What a run writes: logs, samples, checkpoints, the Hub. All of it may change when a run is resumed."""

from dataclasses import dataclass
from typing import Any, Literal

from ...flags import NOT_NEGATIVE, POSITIVE, Bounds, check_values, flag, secret


def _as_saved(config: Any) -> tuple[float | None]:
    return (config.default_guidance_scale,)  # every saved configuration holds one: only one given by hand is refused


@dataclass
class OutputArguments:
    """Output: logs, samples, checkpoints, the Hub."""

    output_dir: str = flag(
        "output", "Write the pipeline, its pictures and checkpoints to this folder.", resume="free", common=5
    )
    overwrite_output_dir: bool = flag(
        False, "Delete what an earlier run made in output_dir, and nothing else there.", resume="free"
    )
    resume_from_checkpoint: str | None = flag(
        None, "Resume the run from this checkpoint: a folder, or latest.", resume="free", common=14
    )
    checkpointing_steps: int | None = flag(
        None,
        "Save a checkpoint, from which to resume, every N optimizer steps. Default: none.",
        resume="free",
        bounds=POSITIVE,
        common=13,
    )
    checkpoints_total_limit: int | None = flag(
        None, "Keep only the newest N checkpoints.", resume="free", bounds=POSITIVE, needs="checkpointing_steps"
    )
    report_to: str | None = flag(
        None,
        "Log to this tracker: tensorboard, wandb, ... or none. Default: tensorboard if installed.",
        resume="free",
    )
    logging_dir: str = flag(
        "logs", "Put the tracker's files into this folder of output_dir.", resume="free", needs="!report_to=none"
    )
    tracker_project_name: str = flag(
        "cond_pipelines",
        "Set the name of the project, for trackers that have projects.",
        resume="free",
        needs="!report_to=none",
    )
    logging_steps: int = flag(50, "Write a line of the log every N optimizer steps.", resume="free", bounds=POSITIVE)
    validation_steps: int | None = flag(
        None,
        "Measure held-out loss and draw samples every N steps; 0: never. Default: four times in the run.",
        resume="free",
        bounds=NOT_NEGATIVE,
    )
    validation_prompts: list[str] = flag(
        [],
        "Draw sample grids of these captions or labels. Default: some of the data.",
        resume="free",
        needs="!conditioning=none",
    )
    num_validation_images: int = flag(
        16,
        "Draw N images in a sample grid during training.",
        resume="free",
        bounds=POSITIVE,
        needs="!validation_steps=0",
    )
    evaluation_steps: int | None = flag(
        None, "Measure samples against real images every N steps. Default: never.", resume="free", bounds=POSITIVE
    )
    num_evaluation_samples: int = flag(
        256, "Draw N samples for each evaluation.", resume="free", bounds=POSITIVE, needs="evaluation_steps"
    )
    feature_extractor: str = flag(
        "pixels",
        "Compare in pixels, or in features of a transformers model or module:callable.",
        resume="free",
        needs="evaluation_steps",
    )
    default_num_inference_steps: int | None = flag(
        None,
        "Set how many steps the saved pipeline samples in. Default: the pretrained model's, or 20.",
        resume="free",
        bounds=Bounds(above=0, below=5_000),  # a model that says more is not loaded, see folders.py
    )
    default_guidance_scale: float | None = flag(
        None,
        "Set the guidance scale of the saved pipeline. Default: the pretrained model's, or 3.5.",
        resume="free",
        needs="!conditioning=none | autoguidance | pretrained_model_name_or_path",
        like_default=_as_saved,
    )
    push_to_hub: bool = flag(False, "Upload the finished pipeline to the Hub.", resume="free")
    hub_model_id: str | None = flag(
        None, "Set the model's name on the Hub and on its card. Default: the name of output_dir.", resume="free"
    )
    hub_token: str | None = secret(
        flag(
            None, "Upload with this token. Default: the one you are logged in with.", resume="free", needs="push_to_hub"
        )
    )
    hub_private_repo: bool | None = flag(
        None,
        "Make a new repository private; --no_hub_private_repo: public. Default: the Hub's own.",
        resume="free",
        needs="push_to_hub",
    )
    hub_strategy: Literal["end", "every_save"] = flag(
        "end",
        "Upload at the end, or at every_save: at each checkpoint too, in the background.",
        resume="free",
        needs=("push_to_hub", "checkpointing_steps"),
    )

    def __post_init__(self) -> None:
        check_values(self)
