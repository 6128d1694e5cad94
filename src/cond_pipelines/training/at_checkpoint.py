"""The pipeline as it was at a checkpoint of a run, whether the run is finished or not."""

import copy
import shutil
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import load_model
from torch import nn

from ..data.load import load_data
from ..errors import UserError, reading
from ..files import whole_folder
from ..folders import CONFIG_FILE
from ..networks.pretrained import load_pipeline
from ..pipelines.conditional import ConditionalPipeline
from ..sharing.card import write_card
from .checkpoints import broken
from .command_line import read_recipe
from .config import TrainingConfig
from .ema import pipeline_of_length, put_average
from .identity import with_settings_of_before
from .model import build_pipeline, image_channels, load_parent, load_vae
from .objective import build_objective
from .optimizers import make_trainable, trainable
from .run_files import checkpoints_of
from .state import ConditionalDenoiser
from .state_files import read_averages
from .teacher import is_distillation, make_distilled


def pipeline_at(checkpoint: str | Path) -> ConditionalPipeline:
    """The pipeline with the weights that the run would have saved at `checkpoint`: averaged, where it averages.

    Of a finished run the rest of the pipeline is that of the finished model. Otherwise it is made as the run made it,
    from training_config.yaml and the data, which must still be there.

    Raises:
        UserError: the checkpoint is damaged, or the run's configuration or data are not there.

    Example:
        >>> pipeline_at("flowers/checkpoint-1000")("rose").images[0]
    """
    path = Path(checkpoint)
    if problem := broken(path):
        raise UserError(f"{path}: {problem}")
    folder = path.parent
    if not (folder / CONFIG_FILE).is_file():
        raise UserError(f"{path} cannot be drawn from: {folder} has no {CONFIG_FILE}")
    config = TrainingConfig(**read_recipe(folder / CONFIG_FILE))
    config = with_settings_of_before(replace(config, resume_from_checkpoint=path.name), folder, sharded=False)
    if config.train == "unet" and (folder / "model_index.json").is_file():
        pipe, parent = load_pipeline(folder), None
    else:
        pipe, parent = _made_anew(config)
    trained = make_trainable(pipe, config, parent)
    with reading(str(path)):
        load_model(ConditionalDenoiser(pipe, trained), str(path / "model.safetensors"))
        averages = [state["values"] for state in read_averages(path)]
    if config.use_ema and averages:
        _fill(trainable(trained), averages[0], path)
    if config.autoguidance and averages:
        guide = copy.deepcopy(pipe.unet)
        _fill(trainable([guide]), averages[-1], path)
        pipe.register_modules(guide=guide.requires_grad_(False).eval())
    for module in trained:
        module.requires_grad_(False).eval()
    return pipe


def pipeline_of_average(run: str | Path, length: float) -> ConditionalPipeline:
    """`pipeline_of_length` of a run that need not be finished: then the average at its newest snapshot.

    Raises:
        UserError: there is no checkpoint, or it cannot be drawn from. ValueError: there is no such average.

    Example:
        >>> pipeline_of_average("flowers", 0.1)("rose").images[0]
    """
    folder = Path(run)
    if (folder / "model_index.json").is_file():
        return pipeline_of_length(folder, length)
    steps = checkpoints_of(folder)
    if not steps:
        raise UserError(f"{folder} has no checkpoint yet: save one first")
    pipe = pipeline_at(folder / f"checkpoint-{steps[-1]}")
    put_average(pipe, folder, length)
    return pipe


def _made_anew(config: TrainingConfig) -> tuple[ConditionalPipeline, ConditionalPipeline | None]:
    """As `prepare_run` makes it, and the pretrained pipeline it started from."""
    parent = load_parent(config)
    vae = load_vae(config, parent)
    data = load_data(config, image_channels(config, parent, vae))
    pipe = build_pipeline(config, data, vae, parent)
    pipe.register_to_config(objective=build_objective(config, pipe.scheduler, parent).config)
    if is_distillation(config):
        make_distilled(pipe, config)
    return pipe, parent


@torch.no_grad()
def _fill(parameters: list[nn.Parameter], values: list[torch.Tensor], path: Path) -> None:
    if [p.shape for p in parameters] != [value.shape for value in values]:
        raise UserError(f"{path} is of another network than {path.parent / CONFIG_FILE} describes")
    torch._foreach_copy_(parameters, values)


def write_model(pipe: ConditionalPipeline, run: Path, folder: Path) -> None:
    """Write a pipeline of a run into a new folder, with the run's configuration and a card.

    Example:
        >>> write_model(pipeline_at("flowers/checkpoint-1000"), Path("flowers"), Path("flowers-1000"))
    """
    with whole_folder(folder) as unfinished:
        pipe.save_pretrained(unfinished)
        if (run / CONFIG_FILE).is_file():
            shutil.copyfile(run / CONFIG_FILE, Path(unfinished) / CONFIG_FILE)
    write_card(folder)
