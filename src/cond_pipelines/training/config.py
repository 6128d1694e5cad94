"""TrainingConfig: everything that decides a run, checked; from the command line and from YAML by `command_line`."""

import importlib
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import yaml

from ..data.config import ConditionColumn
from ..files import write_text
from ..flags import check_needs, check_values
from ..settings import Setting, find_setting
from .arguments import OPTIMIZER_NAMES, DataArguments, ModelArguments, OptimizationArguments, OutputArguments

if TYPE_CHECKING:
    from .command_line import parse_args, read_recipe

__all__ = ["OPTIMIZER_NAMES", "TrainingConfig", "parse_args", "read_recipe"]


def __getattr__(name: str) -> object:
    # Their old place, for one release. `command_line` imports this module, so this is no import.
    if name in ("parse_args", "read_recipe"):
        return getattr(importlib.import_module("cond_pipelines.training.command_line"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


@dataclass
class TrainingConfig(OutputArguments, OptimizationArguments, DataArguments, ModelArguments):
    """Everything that decides a training run.

    Raises:
        ValueError: a value that no run can use, or one without effect; the message names the flag.

    Example:
        >>> config = TrainingConfig(conditioning="class", train_data_dir="flowers", resolution=64)
        >>> config.save("recipe.yaml")
        >>> folder = train(config)
    """

    def __post_init__(self) -> None:
        check_values(self)
        self.setting.check_required(self)
        self._check_lora()
        self._check_optimizer()
        self.check_images()
        check_needs(self)

    @property
    def setting(self) -> Setting:
        """The row of `--conditioning` in the table of settings. Raises ValueError where there is none."""
        return find_setting(self.conditioning)

    @property
    def column(self) -> ConditionColumn | None:
        """How the column of the conditions is found and read; None where the setting has none."""
        return self.setting.column

    def _check_lora(self) -> None:
        if self.use_lora and self.train not in ("unet", "lora"):
            raise ValueError(f"--use_lora means --train lora, and --train {self.train} was given: leave one out")
        self.train = "lora" if self.use_lora else self.train
        self.use_lora = self.train == "lora"
        if self.use_lora and not self.pretrained_model_name_or_path:
            raise ValueError("--train lora needs --pretrained_model_name_or_path: the model whose weights stay")

    def _check_optimizer(self) -> None:
        if self.optimizer not in OPTIMIZER_NAMES and ":" not in self.optimizer:
            names = ", ".join(OPTIMIZER_NAMES)
            raise ValueError(f"--optimizer {self.optimizer!r} is not one of {names}, nor module:Class")
        if self.optimizer == "prodigy" and {self.adapter_lr, self.text_encoder_lr} - {None, self.learning_rate or 1.0}:
            raise ValueError("--adapter_lr and --text_encoder_lr: prodigy has one rate for all, leave them out")

    def save(self, path: str | Path) -> None:
        """Write as YAML, readable again with `--config`; the Hub token is left out."""
        values = {k: v for k, v in asdict(self).items() if k not in ("hub_token", "overwrite_output_dir")}
        write_text(path, yaml.safe_dump(values, sort_keys=False, allow_unicode=True))
