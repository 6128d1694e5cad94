"""Where the images are and how they are prepared: the arguments of `data.load`, for training and for evaluation."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ..flags import FRACTION, NOT_NEGATIVE, PIXELS, POSITIVE, check_values, flag
from ..folders import is_within

NO_SOURCE = "give --train_data_dir (a folder) or --dataset_name (a Hub id, or module:function)"

IsFeature = Callable[[Any], bool]
ParseValue = Callable[[Any], Any]


def _nothing_fits(feature: Any) -> bool:
    return False


def _as_it_is(values: Callable[[], Iterable[Any]], feature: Any) -> tuple[None, ParseValue]:
    return None, lambda value: value


@dataclass(frozen=True)
class ConditionColumn:
    """How the column of a setting's conditions is found, and how its values are read.

    Args:
        flag: the argument that names the column; where it is not given, the column is found.
        names: usual names of such a column, the most usual first.
        remedy: what to do where no column is found, for the error.
        is_certain: whether a `datasets` feature can be nothing else, whatever the column's name.
        is_possible: whether a `datasets` feature can be it; used where only one column has such a feature.
        parser: (a function that returns all values of the column, its feature) -> (class names by id or None, a
            function from a value to a raw condition). That function raises ValueError for a bad value.

    Example:
        >>> ConditionColumn(names=("angle",), parser=lambda values, feature: (None, float))
    """

    flag: str = "condition_column"
    names: tuple[str, ...] = ()
    remedy: str = "--condition_column"
    is_certain: IsFeature = _nothing_fits
    is_possible: IsFeature = _nothing_fits
    parser: Callable[[Callable[[], Iterable[Any]], Any], tuple[dict[int, str] | None, ParseValue]] = _as_it_is


class _OfTheRun:
    """What `load_data` needs of a run that is no argument of the data: every subclass of DataArguments has it."""

    seed: int
    column: ConditionColumn | None


@dataclass
class DataArguments(_OfTheRun):
    """Data: where the images are, and how they are prepared."""

    train_data_dir: str | None = flag(
        None,
        "Train on this folder: images, with metadata.jsonl or class sub-folders, or parquet files.",
        resume="course",
        by="loaded",
        common=1,
    )
    dataset_name: str | None = flag(
        None,
        "Train on this data set instead: a Hub id, or module:function that returns one.",
        resume="course",
        by="loaded",
        needs="!train_data_dir",
        common=2,
    )
    resolution: int | None = flag(
        None,
        "Resize images to this many pixels a side. Default: the images' own size, at most 256.",
        resume="model",
        bounds=PIXELS,
        common=4,
    )
    with_prior_preservation: bool = flag(
        False,
        "Train on the images of --class_data_dir too, to keep what the model knows (DreamBooth).",
        resume="course",
        needs=("class_data_dir", "conditioning=none,class,text", "!streaming"),
    )
    class_data_dir: str | None = flag(
        None,
        "Read the class images from this folder: samples of the pretrained model, for example.",
        resume="course",
        by="loaded",
        needs="with_prior_preservation",
    )
    class_prompt: str | None = flag(
        None,
        "Give all class images this caption or label. Default: what their folder says.",
        resume="course",
        needs=("class_data_dir", "conditioning=class,text"),
    )
    prior_loss_weight: float = flag(
        1.0,
        "Draw class images this many times as often as the images of --train_data_dir.",
        resume="course",
        bounds=POSITIVE,
        needs="class_data_dir",
    )
    data_format: Literal["images", "arrays", "parquet", "arrow", "tar", "zip"] | None = flag(
        None,
        "Read these files of a folder with several kinds. Default: the kind that holds most images.",
        resume="course",
        by="loaded",
        needs="train_data_dir",
    )
    folder_repeats: bool = flag(
        False,
        "Read a folder 10_cat as kohya's scripts do: ten times the class cat. Default: the class 10_cat.",
        resume="course",
        needs=("train_data_dir", "!streaming"),
    )
    dataset_config_name: str | None = flag(
        None,
        "Load this configuration of the Hub data set.",
        resume="course",
        by="loaded",
        needs="dataset_name",
    )
    dataset_split: str = flag("train", "Train on this split.", resume="course", by="loaded")
    cache_dir: str | None = flag(
        None, "Keep prepared data in this folder. Default: where `datasets` keeps its own.", resume="free"
    )
    streaming: bool = flag(False, "Stream the data set instead of preparing it on disk.", resume="course")
    image_column: str | None = flag(
        None, "Read images from this column. Default: the one of type Image.", resume="course", by="loaded"
    )
    label_column: str | None = flag(
        None,
        "Read labels from this column. Default: the one of type ClassLabel, or named label.",
        resume="course",
        by="loaded",
        needs="conditioning=class",
    )
    caption_column: str | None = flag(
        None,
        "Read captions from this column. Default: text or caption. Of a list, one is drawn a step.",
        resume="course",
        by="loaded",
        needs="conditioning=text",
    )
    condition_column: str | None = flag(
        None,
        "Read conditions of --conditioning custom or embedding from this column.",
        resume="course",
        by="loaded",
        needs="conditioning=custom,embedding",
    )
    channels: Literal[1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16] | None = flag(
        None,
        "Use 1 channel (gray), 3 (RGB), 4 (RGBA), up to 16. Default: the pretrained model's or images'.",
        resume="model",
    )
    value_range: list[float] = flag(
        [],
        "Map the pixel values LOW and HIGH to -1 and 1, for images of more than 8 bits: PNG, TIFF, .npy.",
        resume="model",
    )
    aspect_buckets: bool = flag(
        False,
        "Keep the shape of wide and tall images; all have about resolution x resolution pixels.",
        resume="course",
        needs="!streaming",
    )
    center_crop: bool = flag(True, "Crop the centre; --no_center_crop crops a random place.", resume="course")
    random_flip: bool = flag(False, "Flip half of the images left to right.", resume="course")
    image_interpolation_mode: Literal["nearest", "box", "bilinear", "hamming", "bicubic", "lanczos"] = flag(
        "lanczos", "Resize with nearest, box, bilinear, hamming, bicubic or lanczos (sharpest).", resume="course"
    )
    on_bad_image: Literal["error", "skip"] = flag(
        "error", "Stop at an unreadable image and name it (error), or count it and go on (skip).", resume="free"
    )
    max_train_samples: int | None = flag(
        None, "Use only the first N rows. Default: all.", resume="course", by="loaded", bounds=POSITIVE
    )
    validation_fraction: float = flag(
        0.03,
        "Hold out this fraction of the images for validation, 10 to 256, at most a quarter.",
        resume="course",
        bounds=FRACTION,
        needs="!streaming",
    )
    held_out_by: Literal["content", "row"] = flag(
        "content",
        "Hold out images with all their rows (content), or rows, as earlier versions did (row).",
        resume="course",
        by="loaded",
        needs="!streaming",
    )
    half: Literal[1, 2] | None = flag(
        None,
        "Train on this half of the images, 1 or 2, and see none of the other. Default: all images.",
        resume="course",
        needs="!streaming",
    )
    cache_images: bool | None = flag(
        None,
        "Keep decoded images in a file. Default: where that takes 32 MiB to 2 GiB and up to 90 s.",
        resume="free",
        needs="!streaming",
    )
    cache_latents: bool = flag(
        False,
        "Encode each image once with the VAE, and keep that on disk.",
        resume="free",
        needs=("pretrained_vae_model_name_or_path | pretrained_model_name_or_path", "!streaming", "center_crop"),
    )
    cache_text_embeddings: bool = flag(
        False,
        "Encode each caption once with the frozen text encoder, and keep that on disk.",
        resume="free",
        needs=(
            "text_encoder_name_or_path | pretrained_model_name_or_path",
            "conditioning=text,custom",
            "!train_text_encoder",
            "!streaming",
        ),
    )
    dataloader_num_workers: int | None = flag(
        None,
        "Load images in N processes. Default: none for decoded images on a CPU, two on a GPU.",
        resume="free",
        bounds=NOT_NEGATIVE,
    )

    def __post_init__(self) -> None:
        check_values(self)
        if self.value_range and not (len(self.value_range) == 2 and self.value_range[0] < self.value_range[1]):
            raise ValueError(f"--value_range {self.value_range} must be two numbers, the lower one first")
        if self.channels not in (None, 1, 3, 4) and not self.value_range:
            raise ValueError(f"--channels {self.channels} needs --value_range: 8-bit images have 1, 3 or 4")

    def check_source(self) -> None:
        """Raise ValueError where no images are named, or the folder of images is not there."""
        if not (self.train_data_dir or self.dataset_name):
            raise ValueError(NO_SOURCE)
        if self.train_data_dir and not Path(self.train_data_dir).exists():
            raise ValueError(f"--train_data_dir {self.train_data_dir} is not a folder")

    def data_around(self, folder: str | Path) -> str | None:
        """The flag and the folder of images in which `folder` lies: what is written there would be images of the data.

        None where it lies in none.
        """
        for name in ("train_data_dir", "class_data_dir", "dataset_name"):
            value = getattr(self, name)
            if value and Path(value).is_dir() and is_within(folder, value):
                return f"--{name} {value}"
        return None
