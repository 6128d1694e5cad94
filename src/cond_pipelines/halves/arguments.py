"""The arguments of `cond-pipelines halves`: those of `train`, and a few of its own. Nothing here imports torch."""

from dataclasses import dataclass, field

from ..command_line import Parser, unknown_name, with_underscores
from ..flags import Bounds, check_values, flag, settings_of
from ..training.command_line import parse_args as parse_training_args
from ..training.command_line import training_parser
from ..training.config import TrainingConfig

# What has no meaning for two runs that are compared, and why.
_REFUSED = {
    "half": "both halves are trained",
    "resume_from_checkpoint": "the same command goes on by itself with what is there",
    "push_to_hub": "the two models are for comparison",
    "streaming": "the images of a half must be known",
    "max_train_minutes": "both runs must have as many steps: give --max_train_steps",
    "use_lora": "the averages along the run are those of whole models",
}


@dataclass
class _Own:
    """Halves: what is drawn from both models and compared."""

    num_samples: int = flag(256, "Draw this many samples from each model, at each step.", bounds=Bounds(at_least=20))
    sampling_steps: int = flag(12, "Draw samples in this many steps.", bounds=Bounds(at_least=1))
    feature_extractor: str = flag(
        "pixels", "Compare in pixels, or in features of a transformers model or module:callable."
    )

    def __post_init__(self) -> None:
        check_values(self)


@dataclass
class HalvesConfig:
    """A training configuration, and what is drawn from the two models.

    Raises:
        ValueError: a setting that has no meaning here; the message names the flag.

    Example:
        >>> run_halves(HalvesConfig(TrainingConfig(train_data_dir="flowers", max_train_steps=2000), num_samples=500))
    """

    training: TrainingConfig
    num_samples: int = 256
    sampling_steps: int = 12
    feature_extractor: str = "pixels"
    command: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        _Own(self.num_samples, self.sampling_steps, self.feature_extractor)
        for name, why in _REFUSED.items():
            if getattr(self.training, name):
                raise ValueError(f"--{name}: {why}; leave it out")
        if self.training.optimizer == "schedulefree":
            raise ValueError("--optimizer schedulefree keeps no averages along the run: use another one")
        if not self.training.validation_fraction:
            raise ValueError("--validation_fraction 0: the held-out loss is a part of the answer; leave it out")


def parser() -> Parser:
    """For help and completion: the arguments of training and those of `halves`."""
    parser = training_parser()
    parser.prog = "cond-pipelines halves"
    parser.usage = "cond-pipelines halves --train_data_dir FOLDER [--num_samples N] [--flag of train ...]"
    parser.description = (
        "Train the same configuration on two disjoint halves of the images. Does the model generalise or memorise, and "
        "where should training stop?"
    )
    section = parser.add_argument_group("halves: what is drawn from both models and compared")
    section.add_argument("--num_samples", type=int, metavar="N", help="Draw N samples from each model (default 256).")
    section.add_argument("--sampling_steps", type=int, metavar="N", help="Draw samples in N steps (default 12).")
    return parser


def parse_args(args: list[str]) -> HalvesConfig:
    """The command line; a bad one ends in one line and exit code 2."""
    if {"-h", "--help"} & set(args):
        parser().parse_args(args)
    own = Parser("cond-pipelines halves", _Own, [_Own], "")
    given, others = own.parse(args)
    trained = {setting.name for setting in settings_of(TrainingConfig)}
    for name in (arg.partition("=")[0] for arg in map(with_underscores, others) if arg.startswith("--")):
        line = unknown_name(name, own.known, "argument ")
        if name.removeprefix("--") not in trained and "did you mean" in line:
            own.error(line)
    training = parse_training_args(others)
    try:
        return HalvesConfig(training, command=[with_underscores(arg) for arg in args], **given)
    except ValueError as error:
        own.error(str(error))
