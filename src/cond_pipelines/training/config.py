"""TrainingConfig: everything that decides a run, checked; from the command line and from YAML by `command_line`."""

import importlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import yaml

from ..data.config import ConditionColumn
from ..files import write_text
from ..flags import Grouped, check_needs
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


if TYPE_CHECKING:

    class _Flat(OutputArguments, OptimizationArguments, DataArguments, ModelArguments):
        """What an editor and mypy see: every argument is an attribute, with its type."""

        def to_dict(self) -> dict[str, object]: ...

else:
    _Flat = Grouped


@dataclass(init=False)
class TrainingConfig(_Flat):
    """Everything that decides a training run, in four groups.

    Each argument is given, read and set by its own name, as on the command line: `config.resolution` is
    `config.data.resolution`.

    Raises:
        ValueError: a value that no run can use, or one without effect; the message names the flag.

    Example:
        >>> config = TrainingConfig(conditioning="class", train_data_dir="flowers", resolution=64)
        >>> config.save("recipe.yaml")
        >>> folder = train(config)
    """

    model: ModelArguments = field(default_factory=ModelArguments)
    data: DataArguments = field(default_factory=DataArguments)
    optimization: OptimizationArguments = field(default_factory=OptimizationArguments)
    output: OutputArguments = field(default_factory=OutputArguments)

    def __post_init__(self) -> None:
        self.setting.check_required(self)
        check_needs(self)
        if self.train != "unet" and not self.pretrained_model_name_or_path:
            raise ValueError(
                f"--train {self.train} needs --pretrained_model_name_or_path: the model whose weights stay"
            )

    @property
    def setting(self) -> Setting:
        """The row of `--conditioning` in the table of settings. Raises ValueError where there is none."""
        return find_setting(self.conditioning)

    @property
    def column(self) -> ConditionColumn | None:  # type: ignore[override]  # of a group an attribute
        """How the column of the conditions is found and read; None where the setting has none."""
        return self.setting.column

    def save(self, path: str | Path) -> None:
        """Write as YAML, readable again with `--config`; the Hub token is left out."""
        values = {k: v for k, v in self.to_dict().items() if k not in ("hub_token", "overwrite_output_dir")}
        write_text(path, yaml.safe_dump(values, sort_keys=False, allow_unicode=True))
