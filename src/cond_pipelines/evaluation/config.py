"""Arguments of an evaluation."""

import sys
from dataclasses import dataclass
from typing import Any

from ..command_line import Parser, form_of
from ..flags import AT_LEAST_ONE, FINITE, NOT_NEGATIVE, SEED, check_needs, check_values, flag

Row = dict[str, Any]  # of a table of measures: see `questions.row`
BATCH_SIZE = 32  # samples that are drawn at once, where nothing is given
Report = dict[str, Any]  # report.json, and its part "classes"


@dataclass
class EvaluationConfig:
    """Everything that decides an evaluation. How the data were prepared is read from the model's training_config.yaml;
    the data themselves, which are paths or code, are named here.

    Example:
        >>> evaluate(EvaluationConfig(model="flowers", train_data_dir="flower_images", num_samples=2000))
    """

    model: str = flag("", "Evaluate this model: a folder or an id on the Hub. Also as the first argument.", common=1)
    num_samples: int = flag(10_000, "Draw this many samples.", bounds=AT_LEAST_ONE, common=2)
    feature_extractor: str = flag(
        "facebook/dinov2-base",
        "Compare in features of this transformers vision model, of module:callable, or in pixels. "
        "fd-dinov2 and fid=inception-2015-12-05.pt are the published protocols.",
        common=3,
    )
    output_dir: str | None = flag(
        None, "Write the report to this folder. Default: evaluation/ in the model's, or here for a Hub id.", common=4
    )
    train_data_dir: str | None = flag(
        None, "Compare with the images of this folder, such as the one of training.", common=5
    )
    dataset_name: str | None = flag(
        None,
        "Compare with this data set: a Hub id, or module:function.",
        needs="!train_data_dir",
        common=6,
    )
    class_data_dir: str | None = flag(
        None, "Take this folder for the class images of a model trained with --with_prior_preservation."
    )
    conditioning: str | None = flag(
        None, "Take this row of a third party for the model's setting, as module:SETTING. Default: the adapter's."
    )
    num_real: int = flag(50_000, "Compare with at most this many training images.", bounds=AT_LEAST_ONE)
    batch_size: int = flag(64, "Put this many images at once through the feature extractor.", bounds=AT_LEAST_ONE)
    sampling_batch_size: int = flag(
        BATCH_SIZE,
        "Draw this many samples at once: 256 is faster on a GPU. Another number draws anew.",
        bounds=AT_LEAST_ONE,
    )
    guidance_scale: float | None = flag(
        None,
        "Draw samples with this guidance scale, of a model that has one. Default: the pipeline's own.",
        bounds=FINITE,
    )
    guide_scale: float | None = flag(
        None,
        "Draw samples with autoguidance of this scale, by the model's guide; --guidance_scale is then classifier-free.",
        bounds=FINITE,
    )
    num_inference_steps: int | None = flag(
        None, "Draw samples in this many steps. Default: the pipeline's own.", bounds=AT_LEAST_ONE
    )
    seed: int = flag(0, "Set the seed of the samples.", bounds=SEED)
    clip_model: str | None = flag(None, "Measure the CLIP score of samples of captions with this transformers model.")
    unseen_captions: str | None = flag(None, "Measure captions that training never saw apart: a text file, one a line.")
    classifier: str | None = flag(
        None,
        "Read classes with this transformers classifier, or module:callable that gives names or ids. "
        "Of several labels an image: a number for each label.",
    )
    classify: bool = flag(False, "Let a class-conditional model classify held-out images: p(y|x) from p(x|y).")
    num_classified: int = flag(
        256, "Classify at most this many held-out images.", bounds=AT_LEAST_ONE, needs="classify"
    )
    num_likelihood: int = flag(
        256,
        "Measure the bits per dimension of at most this many held-out images, for a model of pixels. 0: none.",
        bounds=NOT_NEGATIVE,
    )
    sweep: list[str] = flag(
        [], "Evaluate at each combination of guidance_scale=1,2,3 guide.scale=1,1.5 num_inference_steps=10,20."
    )
    write_best: str | None = flag(
        None, "Make the setting that is best by this measure the model's default, after a sweep.", needs="sweep"
    )
    features_dir: str | None = flag(None, "Keep features of real images in this folder. Default: output_dir.")
    keep_samples: bool = flag(True, "Keep the samples as arrays, for another extractor to measure.")

    def __post_init__(self) -> None:
        if not self.model:
            raise ValueError("name a model: a folder or an id on the Hub")
        check_values(self)
        if self.sampling_batch_size > max(self.num_samples, BATCH_SIZE):  # a batch is always full
            raise ValueError(
                f"--sampling_batch_size {self.sampling_batch_size:,} draws more than --num_samples "
                f"{self.num_samples:,}: give a smaller one"
            )
        check_needs(self)

    def sampler(self, setting: str) -> dict[str, Any]:
        """What was given for the sampler, as arguments of a call of a pipeline of this setting."""
        from ..pipelines.autoguidance import scales_by_name  # not before: it imports torch

        scale = scales_by_name(self.guide_scale, self.guidance_scale, setting)
        given = {"guidance_scale": scale, "num_inference_steps": self.num_inference_steps}
        return {name: value for name, value in given.items() if value is not None}


def class_tables(report: Report) -> dict[str, Report]:
    """The classes one by one, by the name of their condition, which is "" where the model has one."""
    tables = {"": report["classes"]} | report.get("classes_of_conditions", {})  # earlier versions had no such key
    return {name: classes for name, classes in tables.items() if classes}


def evaluation_form() -> list[dict[str, Any]]:
    """The arguments of an evaluation for a form; see `command_line.form_of`."""
    return form_of(EvaluationConfig, [EvaluationConfig], hidden=("model", "output_dir", "features_dir"))


def parse_args(args: list[str] | None = None) -> EvaluationConfig:
    """The command line, `MODEL --flag value ...`; a bad one ends in one line and exit code 2."""
    args = list(sys.argv[1:] if args is None else args)
    if args and not args[0].startswith("-"):
        args = ["--model", *args]
    parser = Parser(
        "cond-pipelines evaluate",
        EvaluationConfig,
        [EvaluationConfig],
        "Measure a model: are its samples like real images, are they new, do they show their conditions?",
        usage="cond-pipelines evaluate MODEL [--flag value ...]",
    )
    try:
        given, unknown = parser.parse(args)
        parser.refuse_unknown(unknown)
        config = EvaluationConfig(**given)
        check_needs(config, given)
    except ValueError as error:
        parser.error(str(error))
    return config
