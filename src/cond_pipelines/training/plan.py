"""What a run would choose for its data on this device, without a run."""

from typing import Any

from accelerate import Accelerator

from ..data.load import load_data
from .command_line import parse_args
from .config import TrainingConfig
from .defaults import decide
from .model import image_channels, load_parent, load_vae
from .run_folder import check_place


def planned(config: TrainingConfig) -> tuple[dict[str, Any], list[str]]:
    """The settings that a configuration leaves open, as they would be chosen, and lines on the data and on why.

    Raises:
        ValueError: arguments or data that cannot be used, in one line.

    Example:
        >>> chosen, lines = planned(TrainingConfig(train_data_dir="flowers"))
        >>> chosen["learning_rate"]
        0.001
    """
    parent = load_parent(config)
    vae = load_vae(config, parent)
    data = load_data(config, image_channels(config, parent, vae))
    decided, why = decide(config, data, vae, parent, Accelerator())
    given = config.to_dict()
    chosen = {name: value for name, value in decided.to_dict().items() if value != given[name]}
    return chosen, [*data.summary().splitlines(), *([why] if why else [])]


def plan(args: list[str]) -> dict[str, object]:
    """`planned` of the arguments of `cond-pipelines train`, for a form: "decided" and "lines"."""
    config = parse_args(args)
    check_place(config)
    decided, lines = planned(config)
    return {"decided": decided, "lines": lines}
