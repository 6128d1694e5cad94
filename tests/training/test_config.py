import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from cond_pipelines.flags import default_of, holds, settings_of
from cond_pipelines.networks.unet_sizes import UNET_SIZES
from cond_pipelines.training.config import TrainingConfig, parse_args, read_recipe

RECIPES = sorted((Path(__file__).parents[2] / "training" / "recipes").glob("*.yaml"))

# A value for every flag, unlike its default.
VALUES = {
    "conditioning": "text",
    "adapter": "my_package:MyAdapter",
    "adapter_config": '{"num_waves": 3}',
    "unet_size": "m",
    "pretrained_model_name_or_path": "parent",
    "revision": "v1",
    "variant": "fp16",
    "text_encoder_name_or_path": "bert",
    "train_text_encoder": True,
    "text_encoder_lr": 1e-4,
    "pretrained_vae_model_name_or_path": "vae",
    "scheduler": "DDPMScheduler",
    "prediction_type": "v_prediction",
    "objective": "my_package:MyObjective",
    "objective_config": '{"P_mean": -0.8}',
    "logit_mean": 0.5,
    "logit_std": 1.5,
    "snr_gamma": 5.0,
    "gradient_checkpointing": True,
    "compile": True,
    "autoguidance": True,
    "train_data_dir": "images",
    "with_prior_preservation": True,
    "class_data_dir": "class_images",
    "class_prompt": "a photo of a dog",
    "prior_loss_weight": 0.5,
    "dataset_name": "somebody/something",
    "dataset_config_name": "small",
    "dataset_split": "validation",
    "cache_dir": "cache",
    "streaming": True,
    "image_column": "scan",
    "label_column": "breed",
    "caption_column": "said",
    "condition_column": "angle",
    "resolution": 48,
    "channels": 1,
    "value_range": [0.0, 4095.0],
    "aspect_buckets": True,
    "center_crop": False,
    "random_flip": True,
    "image_interpolation_mode": "box",
    "on_bad_image": "skip",
    "max_train_samples": 7,
    "validation_fraction": 0.2,
    "held_out_by": "row",
    "data_format": "images",
    "folder_repeats": True,
    "half": 2,
    "cache_images": True,
    "cache_latents": True,
    "cache_text_embeddings": True,
    "dataloader_num_workers": 3,
    "train_batch_size": 5,
    "max_train_steps": 11,
    "num_train_epochs": 2,
    "max_train_minutes": 1.5,
    "gradient_accumulation_steps": 4,
    "train": "cross_attention",
    "use_lora": True,
    "rank": 8,
    "lora_alpha": 16,
    "lora_target_modules": ["to_k", "to_v"],
    "learning_rate": 3e-4,
    "adapter_lr": 5e-4,
    "optimizer": "muon",
    "optimizer_config": '{"momentum": 0.9}',
    "lr_scheduler": "cosine",
    "lr_warmup_steps": 0,
    "lr_decay_fraction": 0.5,
    "adam_beta1": 0.8,
    "adam_beta2": 0.95,
    "adam_weight_decay": 0.01,
    "adam_epsilon": 1e-6,
    "max_skipped_steps": 7,
    "max_grad_norm": 0.0,
    "condition_dropout": 0.25,
    "mixed_precision": "no",
    "allow_tf32": False,
    "use_ema": False,
    "ema_max_decay": 0.99,
    "ema_inv_gamma": 2.0,
    "ema_power": 0.5,
    "ema_lengths": [0.05, 0.1],
    "seed": 42,
    "output_dir": "out",
    "overwrite_output_dir": True,
    "report_to": "none",
    "logging_dir": "tracks",
    "tracker_project_name": "mine",
    "logging_steps": 3,
    "validation_steps": 0,
    "validation_prompts": ["a red circle", "7"],
    "num_validation_images": 2,
    "evaluation_steps": 9,
    "num_evaluation_samples": 64,
    "feature_extractor": "facebook/dinov2-small",
    "checkpointing_steps": 6,
    "checkpoints_total_limit": 2,
    "resume_from_checkpoint": "latest",
    "default_num_inference_steps": 9,
    "default_guidance_scale": 1.0,
    "push_to_hub": True,
    "hub_model_id": "me/mine",
    "hub_token": "hf_secret",
    "hub_private_repo": True,
    "hub_strategy": "every_save",
}
SETTINGS = {setting.name: setting for setting in settings_of(TrainingConfig)}
NEEDY = [name for name in SETTINGS if SETTINGS[name].metadata["needs"]]


def with_needs(name):
    """A flag's value, with values of other flags that satisfy what it needs, and what these need."""
    given = {"pretrained_model_name_or_path": "parent"} if name in ("use_lora", "train") else {}
    given |= {name: VALUES[name]}
    while True:
        config = SimpleNamespace(**{k: default_of(SETTINGS[k]) for k in SETTINGS} | given)
        needs = [need for k in given for need in SETTINGS[k].metadata["needs"] if not holds(config, need)]
        if not needs:
            return given
        other, _, values = needs[0].split(" | ")[0].partition("=")
        given |= {"!conditioning": {"conditioning": "class"}}.get(other) or {
            other: values.split(",")[0] if values else VALUES[other]
        }
        if given.get("conditioning") == "custom":
            given |= {"adapter": "a:B", "condition_column": "angle"}
        if given.get("use_lora"):
            given |= {"pretrained_model_name_or_path": "parent"}


def write(tmp_path, text):
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    return str(path)


def as_flags(name, value):
    if isinstance(value, bool):
        return [f"--{name}" if value else f"--no_{name}"]
    return [f"--{name}", *(map(str, value) if isinstance(value, list) else [str(value)])]


def refused(capsys, args):
    with pytest.raises(SystemExit) as stop:
        parse_args(args)
    assert stop.value.code == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1, lines
    return lines[0]


# -------------------------------------------------------------------------------------------------- round trips
def test_every_flag_has_a_value_here():
    assert set(VALUES) == set(SETTINGS)
    default = TrainingConfig()
    assert not [name for name, value in VALUES.items() if getattr(default, name) == value]


@pytest.mark.parametrize("name", VALUES)
def test_every_flag_round_trips(name, tmp_path):
    """Command line, then the saved YAML, then YAML as a person would write it."""
    values = with_needs(name)
    config = parse_args([flag for key, value in values.items() for flag in as_flags(key, value)])
    assert config == TrainingConfig(**values)
    if name in ("hub_token", "overwrite_output_dir"):  # of one run, not of its recipe
        return
    config.save(tmp_path / "saved.yaml")
    assert parse_args(["--config", str(tmp_path / "saved.yaml")]) == config
    recipe = write(tmp_path, yaml.safe_dump(values))
    assert parse_args(["--config", recipe]) == config


def test_the_command_line_wins_over_the_recipe_over_the_defaults(tmp_path):
    recipe = write(tmp_path, "conditioning: text\nresolution: 32\nuse_ema: false\ncenter_crop: true\n")
    config = parse_args(["--config", recipe, "--resolution", "64"], conditioning="class", seed=9)
    assert (config.conditioning, config.resolution, config.seed, config.use_ema) == ("text", 64, 9, False)
    config = parse_args(["--config", recipe, "--use_ema", "--no_center_crop", "--conditioning", "none"])
    assert (config.conditioning, config.use_ema, config.center_crop) == ("none", True, False)
    assert parse_args([], conditioning="class").conditioning == "class"


def test_booleans():
    assert parse_args([]).use_ema
    assert not parse_args(["--no_use_ema"]).use_ema
    assert not parse_args(["--use_ema", "false"]).use_ema
    assert parse_args(["--random_flip"]).random_flip
    assert parse_args([]).train_text_encoder is None
    assert parse_args(["--conditioning", "text", "--train_text_encoder", "--seed", "1"]).train_text_encoder is True
    assert parse_args(["--train_text_encoder", "false"]).train_text_encoder is False


def test_numbers_that_yaml_takes_for_text(tmp_path):
    """YAML 1.1 reads 1e-4 as a string, and `no` as a boolean."""
    recipe = write(tmp_path, "learning_rate: 1e-4\nadam_epsilon: 1e-7\nmixed_precision: no\nmax_train_minutes: 2\n")
    config = parse_args(["--config", recipe])
    assert (config.learning_rate, config.adam_epsilon, config.mixed_precision) == (1e-4, 1e-7, "no")
    assert config.max_train_minutes == 2


def test_labels_in_a_recipe_may_be_numbers(tmp_path):
    recipe = write(tmp_path, "conditioning: class\nvalidation_prompts: [0, 1]")
    assert parse_args(["--config", recipe]).validation_prompts == ["0", "1"]


def test_an_empty_recipe(tmp_path):
    assert parse_args(["--config", write(tmp_path, "# nothing\n")]) == TrainingConfig()


def test_a_token_is_in_no_error_and_no_repr(capsys):
    with pytest.raises(SystemExit):
        parse_args(["--hub_token", "hf_secret", "--dataset_name", "x"])
    error = capsys.readouterr().err
    assert "--hub_token has no effect without --push_to_hub" in error and "hf_secret" not in error
    assert "hf_secret" not in repr(TrainingConfig(hub_token="hf_secret", push_to_hub=True))


def test_the_token_is_never_saved(tmp_path):
    TrainingConfig(hub_token="hf_secret", push_to_hub=True).save(tmp_path / "saved.yaml")
    assert "secret" not in (tmp_path / "saved.yaml").read_text()
    assert "hub_token" not in (tmp_path / "saved.yaml").read_text()


def test_paths_are_saved_as_text(tmp_path):
    config = TrainingConfig(train_data_dir=tmp_path, output_dir=tmp_path / "out")
    config.save(tmp_path / "saved.yaml")
    assert parse_args(["--config", str(tmp_path / "saved.yaml")]) == config
    assert config.train_data_dir == str(tmp_path)


# ------------------------------------------------------------------------------------------- what needs what
def test_every_flag_declares_what_it_is_when_a_run_is_resumed():
    assert {setting.metadata["resume"] for setting in SETTINGS.values()} == {"model", "course", "free"}


# Flags that have an effect whatever the others are. A new flag is one of these, or declares what it needs.
ALWAYS = {
    *("conditioning", "adapter", "pretrained_model_name_or_path", "scheduler", "gradient_checkpointing", "compile"),
    *("train_data_dir", "resolution", "dataset_split", "cache_dir", "streaming", "image_column", "channels"),
    *("value_range", "center_crop", "random_flip", "image_interpolation_mode", "on_bad_image", "max_train_samples"),
    *("dataloader_num_workers", "train", "use_lora", "max_train_steps", "max_train_minutes", "train_batch_size"),
    *("learning_rate", "gradient_accumulation_steps", "lr_scheduler", "lr_warmup_steps", "optimizer", "seed"),
    *("optimizer_config", "max_grad_norm", "max_skipped_steps", "mixed_precision", "allow_tf32", "output_dir"),
    "overwrite_output_dir",
    *("resume_from_checkpoint", "checkpointing_steps", "report_to", "logging_steps", "validation_steps"),
    *("evaluation_steps", "default_num_inference_steps", "push_to_hub", "hub_model_id"),
    *("objective", "objective_config"),  # of any scheduler: one that does not fit is refused in test_own_objective.py
    *("logit_mean", "logit_std"),  # of flow matching, else refused once the scheduler is known: test_bad_input.py
    "adam_weight_decay",  # of every optimizer by name; of others refused once its class is known: test_optimizers.py
}


def test_every_flag_has_an_effect_or_declares_what_it_needs():
    assert set(NEEDY) | ALWAYS == set(SETTINGS) and not set(NEEDY) & ALWAYS


@pytest.mark.parametrize(
    ("name", "need"), [(name, need) for name in NEEDY for need in SETTINGS[name].metadata["needs"]], ids=str
)
def test_a_flag_without_effect_is_refused(name, need, capsys):
    """With all that it needs it is taken, without one of these it is refused in one line that names both."""
    values = with_needs(name) | ({"use_ema": True} if name == "use_ema" else {})
    spoilt = dict(values)
    for part in need.split(" | "):
        other, _, worth = part.removeprefix("!").partition("=")
        spoilt.pop(other, None)
        if part.startswith("!"):  # what spoils it
            first = worth.split(",")[0]
            spoilt[other] = yaml.safe_load(first) if worth and other != "conditioning" else first or VALUES[other]
        elif holds(SimpleNamespace(**{other: default_of(SETTINGS[other])}), part):  # it is on by default
            off = {"lr_scheduler": "cosine", "conditioning": "embedding", "train": "adapter"}
            spoilt[other] = off.get(other, False)
    line = refused(capsys, [flag for key, value in spoilt.items() for flag in as_flags(key, value)])
    assert "has no effect with" in line
    assert re.match(r"error: --(\w+) ", line)[1] in values, "the flag, or one that needs the same"
    if name not in ("use_ema", "default_guidance_scale"):  # on by default; in every saved configuration
        with pytest.raises(ValueError, match="has no effect with"):
            TrainingConfig(**spoilt)


def test_a_flag_that_is_given_counts_with_the_value_of_its_default_too(capsys, tmp_path):
    assert refused(capsys, ["--rank", "4"]) == (
        "error: --rank 4 has no effect without --use_lora: add that, or leave --rank out"
    )
    assert parse_args(["--config", write(tmp_path, "rank: 4")]).rank == 4  # as every saved configuration holds it
    assert parse_args(["--streaming", "false", "--no_use_lora"]) == TrainingConfig()  # off: just what it does


def test_a_saved_configuration_of_before_is_read(tmp_path):
    """Whose steps were those of its epochs, and whose rates were filled in for what was not trained."""
    old = "max_train_steps: 70\nnum_train_epochs: 7\nlearning_rate: 0.002\nadapter_lr: 0.002\ntext_encoder_lr: 0.0003\n"
    config = parse_args(["--config", write(tmp_path, old)])
    assert (config.max_train_steps, config.num_train_epochs, config.adapter_lr) == (70, None, 0.002)


@pytest.mark.parametrize(
    ("args", "lengths"),
    [(["--num_train_epochs", "3"], (None, 3)), (["--max_train_steps", "9"], (9, None)), ([], (None, 7))],
)
def test_a_length_of_the_command_line_is_instead_of_the_recipes(args, lengths, tmp_path):
    config = parse_args(["--config", write(tmp_path, "num_train_epochs: 7\n"), *args])
    assert (config.max_train_steps, config.num_train_epochs) == lengths


# ------------------------------------------------------------------------------------------------ bad arguments
@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--learning_rat", "1"], "error: unknown argument --learning_rat; did you mean learning_rate?"),
        (["--train_data_di=x"], "error: unknown argument --train_data_di; did you mean train_data_dir?"),
        (["--qqq"], "error: unknown argument --qqq"),
        (["--resolution", "big"], "error: argument --resolution: invalid int value: 'big'"),
        (["--use_ema", "perhaps"], "error: argument --use_ema: perhaps is neither true nor false"),
        (["--resolution"], "error: argument --resolution: expected one argument"),
        (["--resolution", "0"], "error: --resolution 0 must be at least 1"),
        (["--learning_rate", "nan"], "error: --learning_rate nan must be greater than 0"),
        (["--learning_rate", "inf"], "error: --learning_rate inf must be a finite number"),
        (["--logit_mean", "nan"], "error: --logit_mean nan must be a finite number"),
        (["--value_range", "0", "inf"], "error: --value_range inf must be a finite number"),
        (["--adam_beta1", "1.5"], "error: --adam_beta1 1.5 must be at least 0 and less than 1"),
        (["--ema_max_decay", "1.5"], "error: --ema_max_decay 1.5 must be at least 0 and less than 1"),
        (["--ema_power", "-1", "--ema_max_decay", "0.9"], "error: --ema_power -1.0 must be greater than 0"),
        (["--seed", "-1"], "error: --seed -1 must not be negative"),
        (["--seed", str(2**32)], "error: --seed 4294967296 must be at most 4,294,967,295"),
        (["--lr_warmup_steps", "-1"], "error: --lr_warmup_steps -1 must not be negative"),
        (["--default_num_inference_steps", "5000"], "error: --default_num_inference_steps 5000 must be less than 5000"),
        (["--condition_dropout", "1"], "error: --condition_dropout 1.0 must be at least 0 and less than 1"),
        (
            ["--conditioning", "label"],
            "error: --conditioning 'label' is not one of none, class, text, embedding, custom",
        ),
        (["--mixed_precision", "fp64"], "error: --mixed_precision 'fp64' is not one of no, fp16, bf16"),
        (
            ["--unet_size", "huge"],
            "error: --unet_size 'huge' is not one of xxs, xs, s, s32, m, l, xl, xxl, nor module:SIZE",
        ),
        (["--channels", "2"], "error: --channels 2 needs --value_range: 8-bit images have 1, 3 or 4"),
        (["--channels", "17"], "error: --channels 17 is not one of 1, 2, 3, 4"),
        (["--value_range", "1"], "error: --value_range [1.0] must be two numbers, the lower one first"),
        (["--value_range", "9", "1"], "error: --value_range [9.0, 1.0] must be two numbers, the lower one first"),
        (["--optimizer", "adam"], "error: --optimizer 'adam' is not one of adamw, adamw8bit, prodigy, schedulefree"),
        (["--train", "all"], "error: --train 'all' is not one of unet, adapter, cross_attention, lora"),
        (
            ["--class_data_dir", "x"],
            "error: --class_data_dir x has no effect without --with_",
        ),
        (
            ["--adapter_lr", "1e-3"],
            "error: --adapter_lr 0.001 has no effect with --conditioning none and without --adapter: change that, or",
        ),
        (["--use_lora"], "error: --train lora needs --pretrained_model_name_or_path"),
        (["--train", "adapter"], "error: --train adapter needs --pretrained_model_name_or_path"),
        (["--use_lora", "--train", "adapter"], "error: --use_lora means --train lora, and --train adapter was given"),
        (["--conditioning", "custom"], "error: --conditioning custom needs --adapter module:Class and "),
        (
            ["--train_data_dir", "a", "--dataset_name", "b"],
            "error: --dataset_name b has no effect with --train_",
        ),
        (
            ["--unet_size", "s", "--pretrained_model_name_or_path", "a"],
            "error: --unet_size s has no effect with ",
        ),
        (["--config", "nowhere.yaml"], "error: nowhere.yaml cannot be read: "),
    ],
)
def test_bad_arguments_in_one_line(args, message, capsys):
    assert refused(capsys, args).startswith(message)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("learning_rat: 1", "error: unknown key in {}: learning_rat; did you mean learning_rate?"),
        ("resolution: 3.5", "error: --resolution 3.5 is not of type int | None"),
        ("resolution: big", "error: argument --resolution: invalid int value: 'big'"),
        ("resolution: true", "error: --resolution True is not of type int | None"),
        ("use_ema: null", "error: --use_ema None is not of type bool"),
        ("use_ema: 3", "error: --use_ema 3 is not of type bool"),
        ("seed: [1, 2]", "error: --seed [1, 2] is not of type int"),
        ("validation_prompts: a cat", "error: --validation_prompts 'a cat' is not of type list[str]"),
        ("resolution: -8", "error: --resolution -8 must be at least 1"),
        ("- resolution", "error: {} must hold names and values, not a list"),
        ("a: b: c", "error: {} is not YAML: line 1, column 5: "),
    ],
)
def test_bad_recipes_in_one_line(text, message, tmp_path, capsys):
    recipe = write(tmp_path, text)
    assert refused(capsys, ["--config", recipe]).startswith(message.format(recipe))


def test_the_constructor_checks_types_too():
    with pytest.raises(ValueError, match="--learning_rate '1e-4' is not of type float"):
        TrainingConfig(learning_rate="1e-4")
    with pytest.raises(ValueError, match="--max_train_minutes 0 must be greater than 0"):
        replace(TrainingConfig(), max_train_minutes=0)


@pytest.mark.parametrize("size", UNET_SIZES)
def test_every_unet_size_is_known(size):
    assert TrainingConfig(unet_size=size).unet_size == size


def shown_help(capsys):
    with pytest.raises(SystemExit) as stop:
        parse_args(["--help"])
    assert stop.value.code == 0
    return capsys.readouterr().out


def test_help_names_every_flag_once(capsys):
    shown = shown_help(capsys)
    assert [len(re.findall(rf"^  --{name}\b", shown, re.MULTILINE)) for name in SETTINGS] == [1] * len(SETTINGS)


def test_help_is_by_group_and_begins_with_what_is_used_most(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "132")
    shown = shown_help(capsys)
    groups = re.findall(r"^(\S.*):$", shown, re.MULTILINE)
    assert [group.split(":")[0] for group in groups] == [
        *("options", "most used", "model", "data", "optimization", "output")
    ]
    assert re.findall(r"--\w+", shown[shown.index("most used") :])[0] == "--train_data_dir"
    assert "None" not in shown and "default: " not in shown
    lines = [line for line in shown.splitlines() if line.strip()]
    assert len(lines) < 1.25 * len(SETTINGS), "about a line a flag"


@pytest.mark.parametrize("name", SETTINGS)
def test_help_says_what_a_flag_does(name):
    """A sentence that begins with a verb, and fits a line or little more."""
    text = SETTINGS[name].metadata["help"]
    assert re.match(r"[A-Z]\w+ ", text) and text.endswith((".", ")")) and len(text) <= 130
    assert not text.startswith(("Of ", "For ", "The ", "See ", "Default"))


# ------------------------------------------------------------------------------------------------------ recipes
def test_there_are_recipes():
    assert {"none", "class", "text"} <= {read_recipe(path).get("conditioning", "none") for path in RECIPES}


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_recipes_parse(path):
    config = parse_args(["--config", str(path)])
    for name, value in read_recipe(path).items():
        assert str(getattr(config, name)) == str(value) or float(getattr(config, name)) == float(value)


def test_a_list_that_is_given_twice_is_one_list():
    assert parse_args(["--ema_lengths", "0.05", "--ema_lengths", "0.1"]).ema_lengths == [0.05, 0.1]
