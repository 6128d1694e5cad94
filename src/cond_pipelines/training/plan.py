"""What a run would choose for its data on this device, without a run."""

from accelerate import Accelerator

from ..data.load import load_data
from .config import TrainingConfig
from .defaults import decide
from .model import image_channels, load_parent, load_vae


def planned(config: TrainingConfig) -> tuple[TrainingConfig, list[str]]:
    """The configuration with its defaults filled in, and lines on the data and on what was chosen.

    Raises:
        ValueError: arguments or data that cannot be used, in one line.

    Example:
        >>> decided, lines = planned(TrainingConfig(train_data_dir="flowers"))
        >>> decided.learning_rate
        0.001
    """
    parent = load_parent(config)
    vae = load_vae(config, parent)
    data = load_data(config, image_channels(config, parent, vae))
    decided, why = decide(config, data, vae, parent, Accelerator())
    return decided, [*data.summary().splitlines(), *([why] if why else [])]
