"""Run: all that stays the same during a training: data, networks, objective, length."""

from dataclasses import dataclass, replace
from pathlib import Path

import torch
from accelerate import DistributedType
from accelerate.utils import set_seed
from torch import nn

from ..data.load import TrainingData, load_data
from ..data.shard import Shard
from ..objectives.base import Objective
from ..pipelines.conditional import ConditionalPipeline
from .config import TrainingConfig
from .defaults import decide
from .device import tune_network
from .dtypes import hold_float32
from .failures import check_file_limit
from .identity import RunIdentity, loaded_identity, parent_fingerprint, with_settings_of_before
from .model import build_pipeline, image_channels, load_parent, load_vae
from .objective import build_objective
from .optimizers import make_trainable
from .run_folder import RunFolder
from .schedule import RunLength
from .sharding import SHARDED, RunAccelerator, how_sharded
from .teacher import Teacher, build_teacher, check_distillation, is_distillation, make_distilled


@dataclass(frozen=True)
class Run:
    """What a run is made of.

    Args:
        config: with all defaults filled in.
        accelerator: its processes, their device and precision.
        folder: the output folder, locked.
        data: the checked images and conditions.
        pipe: the pipeline whose networks are trained.
        parent: the pretrained pipeline that training starts from; None: all weights are new.
        objective: x_0 to a loss.
        teacher: the pretrained model as it was, for an objective that learns from it.
        trained: modules of `pipe` of which something is trained.
        length: when the run is over.
        identity: what must be the same when the run is resumed.
        choices: which defaults were chosen and why, in one line.
    """

    config: TrainingConfig
    accelerator: RunAccelerator
    folder: RunFolder
    data: TrainingData
    pipe: ConditionalPipeline
    parent: ConditionalPipeline | None
    objective: Objective
    teacher: Teacher | None
    trained: list[nn.Module]
    length: RunLength
    identity: RunIdentity
    choices: str

    @property
    def device(self) -> torch.device:
        """Where this process computes."""
        return self.accelerator.device

    @property
    def output_dir(self) -> Path:
        """The folder that the run writes to."""
        return self.folder.path

    @property
    def is_sharded(self) -> bool:
        """Whether each process holds only a part of every trained weight (FSDP)."""
        return bool(self.accelerator.distributed_type == DistributedType.FSDP)

    @property
    def trains_text_encoder(self) -> bool:
        """Whether weights of the text encoder are trained."""
        encoder = self.pipe.components.get("text_encoder")
        return any(encoder is module for module in self.trained)

    @property
    def images_per_step(self) -> int:
        """Images of one optimizer step, over all processes."""
        return int(self.batch_size * self.num_micro_batches * self.accelerator.num_processes)

    @property
    def batch_size(self) -> int:
        """Images of one batch of one process."""
        return self.config.train_batch_size or 1  # `decide` has chosen one

    @property
    def num_micro_batches(self) -> int:
        """Batches of one optimizer step, in each process."""
        return self.config.gradient_accumulation_steps or 1  # `decide` has chosen one

    def shard(self, start: int) -> Shard:
        """Which images this process sees, from position `start` of the run on."""
        rank, world_size = self.accelerator.process_index, self.accelerator.num_processes
        return Shard(self.batch_size, self.config.seed, rank, world_size, start)


def prepare_run(config: TrainingConfig, accelerator: RunAccelerator, folder: RunFolder) -> Run:
    """Load the data, load or build the networks, and choose what `config` leaves open.

    Raises:
        ValueError: arguments or data that cannot be used, in one line.
    """
    set_seed(config.seed)
    config = with_settings_of_before(config, folder.path, accelerator.distributed_type in SHARDED)
    parent = load_parent(config)
    parent_weights = parent_fingerprint(parent)  # before they are trained
    vae = load_vae(config, parent)
    with accelerator.main_process_first():  # one process prepares what the others read
        data = load_data(config, image_channels(config, parent, vae))
    config = replace(config, mixed_precision=accelerator.precision)  # type: ignore[arg-type]  # one of the three
    config, choices = decide(config, data, vae, parent, accelerator)
    accelerator.gradient_accumulation_steps = config.gradient_accumulation_steps
    length = RunLength.of(config, None if data.train is None else len(data.train))
    pipe = build_pipeline(config, data, vae, parent)
    distills = is_distillation(config)
    if distills:
        check_distillation(config, pipe, parent, accelerator)
    objective = build_objective(config, pipe.scheduler, parent)
    teacher = build_teacher(config, objective, parent, accelerator) if distills and parent is not None else None
    pipe.register_to_config(objective=objective.config)
    if distills:
        make_distilled(pipe, config)
    loaded = loaded_identity(config, pipe, data, objective, parent_weights)
    hold_float32(pipe)
    trained = make_trainable(pipe, config, parent)
    check_file_limit([] if config.use_lora else trained)
    pipe.to(accelerator.device)
    for tuned in [pipe] if teacher is None else [pipe, teacher.pipe]:
        sharded = accelerator.distributed_type in SHARDED
        tune_network(tuned.unet, config, accelerator.device, sharded, accelerator.num_processes)
    identity = RunIdentity.of(config, loaded | how_sharded(accelerator), pipe)
    return Run(config, accelerator, folder, data, pipe, parent, objective, teacher, trained, length, identity, choices)
