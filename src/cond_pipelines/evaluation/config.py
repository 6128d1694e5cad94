"""Arguments of an evaluation."""

import sys
from dataclasses import dataclass, field
from typing import NoReturn


def _arg(default: object, text: str) -> object:
    return field(default=default, metadata={"help": text})


@dataclass
class EvaluationConfig:
    """Everything that decides an evaluation. The data are those that the model was trained on, as its
    training_config.yaml names them, where nothing else is given.

    Example:
        >>> evaluate(EvaluationConfig(model="flowers", num_samples=2000, feature_extractor="facebook/dinov2-base"))
    """

    model: str = _arg("", "A folder or an id on the Hub.")
    train_data_dir: str | None = _arg(None, "A folder of images. Default: as in training.")
    dataset_name: str | None = _arg(None, "An id on the Hub, or module:function. Default: as in training.")
    feature_extractor: str = _arg("facebook/dinov2-base", "A transformers vision model, module:callable, or pixels.")
    num_samples: int = _arg(10_000, "Images to sample.")
    num_real: int = _arg(50_000, "At most so many training images to compare with.")
    batch_size: int = _arg(64, "Images at once through the feature extractor.")
    guidance_scale: float | None = _arg(None, "Default: the pipeline's own.")
    num_inference_steps: int | None = _arg(None, "Default: the pipeline's own.")
    clip_model: str | None = _arg(None, "A transformers CLIP model, for the CLIP score of samples of captions.")
    unseen_captions: str | None = _arg(
        None, "A text file with a caption a line, of combinations that training never saw: rows of their own."
    )
    classifier: str | None = _arg(
        None, "Of classes: a transformers model of image classification, or module:callable that gives names or ids."
    )
    classify: bool = _arg(False, "Let a class-conditional model classify held-out images: p(y|x) from p(x|y).")
    num_classified: int = _arg(256, "At most so many held-out images.")
    seed: int = _arg(0, "Of the samples.")
    sweep: list[str] = field(
        default_factory=list,
        metadata={"help": "guidance_scale=1,2,3 and/or num_inference_steps=10,20: evaluate at each combination."},
    )
    write_best: str | None = _arg(None, "After a sweep: the measure whose best setting becomes the model's default.")
    features_dir: str | None = _arg(None, "Where features of real images are kept. Default: output_dir.")
    output_dir: str | None = _arg(None, "Default: evaluation/ in the model's folder, or here for a Hub id.")
    keep_samples: bool = _arg(True, "Keep the samples as arrays, so that another extractor need not draw them again.")

    def __post_init__(self) -> None:
        if not self.model:
            raise ValueError("name a model: a folder or an id on the Hub")
        for name in ("num_samples", "num_real", "batch_size", "num_classified"):
            if getattr(self, name) < 1:
                raise ValueError(f"--{name} {getattr(self, name)} must be greater than 0")
        if self.write_best and not self.sweep:
            raise ValueError("--write_best needs --sweep")
        if self.train_data_dir and self.dataset_name:
            raise ValueError("give either --train_data_dir or --dataset_name, not both")

    @property
    def sampler(self) -> dict[str, float]:
        """What was asked for of the sampler."""
        given = {"guidance_scale": self.guidance_scale, "num_inference_steps": self.num_inference_steps}
        return {name: value for name, value in given.items() if value is not None}


def parse_args(args: list[str] | None = None) -> EvaluationConfig:
    """The command line, `MODEL --flag value ...`; a bad one ends in one line and exit code 2."""
    from transformers import HfArgumentParser

    class Parser(HfArgumentParser):
        def error(self, message: str) -> NoReturn:
            self.exit(2, f"error: {message}\n")

    args = list(sys.argv[1:] if args is None else args)
    if args and not args[0].startswith("-"):
        args = ["--model", *args]
    parser = Parser(EvaluationConfig, allow_abbrev=False, description="Is it really p(x), p(x|y), p(x|text)?")
    try:
        return parser.parse_args_into_dataclasses(args, look_for_args_file=False)[0]
    except ValueError as error:
        parser.exit(2, f"error: {error}\n")
