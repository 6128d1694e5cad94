from dataclasses import asdict

import pytest
import torch
import yaml
from parents_common import stable_diffusion
from training_common import TINY, log_of, run

from cond_pipelines import ConditionalPipeline
from cond_pipelines.flags import settings_of
from cond_pipelines.networks.unet_sizes import UNET_SIZES
from cond_pipelines.training import defaults
from cond_pipelines.training.checkpoints import Progress
from cond_pipelines.training.config import TrainingConfig
from cond_pipelines.training.defaults import default_tracker, fill_defaults
from cond_pipelines.training.device import build_accelerator
from cond_pipelines.training.dtypes import fast_precision
from cond_pipelines.training.failures import writable_folder
from cond_pipelines.training.run import prepare_run
from cond_pipelines.training.run_folder import RunFolder
from cond_pipelines.training.schedule import LearningRate, RunLength

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


def fill(num_images=1700, sample_size=32, device=CPU, decoded=True, **arguments):
    config = TrainingConfig(**{"mixed_precision": "no"} | arguments)
    return fill_defaults(config, num_images=num_images, sample_size=sample_size, device=device, decoded=decoded)


@pytest.mark.parametrize("device", [CPU, CUDA], ids=str)
@pytest.mark.parametrize("sample_size", [8, 16, 32, 64, 128, 256])
@pytest.mark.parametrize("num_images", [1, 50, 1700, 1_000_000])
def test_everything_is_decided(device, sample_size, num_images):
    config = fill(num_images, sample_size, device)
    assert config.unet_size in UNET_SIZES
    assert 1 <= config.train_batch_size <= min(256, num_images)
    assert 0 < config.learning_rate <= 1e-2
    assert (config.max_train_steps or config.num_train_epochs) >= 1
    assert config.lr_warmup_steps >= 0
    assert config.dataloader_num_workers >= 0
    assert config.report_to is not None
    assert config.train_text_encoder is not None


def test_the_help_names_the_sampling_that_is_chosen():
    chosen, helps = (
        fill(conditioning="class"),
        {setting.name: setting.metadata["help"] for setting in settings_of(TrainingConfig)},
    )
    for name in ("default_num_inference_steps", "default_guidance_scale"):
        assert helps[name].endswith(f"or {getattr(chosen, name):g}."), helps[name]


def test_on_a_cpu_the_size_fits_the_resolution():
    chosen = {size: fill(sample_size=size).unet_size for size in (8, 16, 28, 32, 64)}
    assert chosen == {8: "xs", 16: "s", 28: "s32", 32: "s32", 64: "m"}


def test_larger_images_get_larger_models_and_smaller_batches():
    on_gpu = [fill(10**6, size, CUDA) for size in (16, 32, 64, 128)]
    sizes = [UNET_SIZES.index(config.unet_size) for config in on_gpu]
    assert sizes == sorted(sizes)
    assert sizes[0] < sizes[-1]
    rates = [config.learning_rate for config in on_gpu]
    assert rates == sorted(rates, reverse=True)
    for device in (CPU, CUDA):
        batches = [fill(10**6, size, device).train_batch_size for size in (32, 64, 128)]
        assert batches == sorted(batches, reverse=True)
    assert UNET_SIZES.index(fill(sample_size=64).unet_size) < UNET_SIZES.index(on_gpu[2].unet_size)


def test_a_gpu_does_not_wait_for_the_process_that_puts_batches_together():
    assert fill(device=CPU).dataloader_num_workers == 0  # decoded images, and no core to spare
    assert fill(device=CUDA).dataloader_num_workers >= 1


GIVEN = {
    "unet_size": "m",
    "train_batch_size": 3,
    "learning_rate": 0.5,
    "lr_warmup_steps": 0,
    "dataloader_num_workers": 0,
    "report_to": "none",
    "train_text_encoder": True,
    "max_train_steps": 7,
}


def test_what_is_given_is_kept():
    config = fill(decoded=False, conditioning="text", **GIVEN)
    assert {name: getattr(config, name) for name in GIVEN} == GIVEN


def num_steps(num_images, num_processes=1, **arguments):
    config = fill(num_images=num_images, **arguments)
    batch = config.train_batch_size * config.gradient_accumulation_steps * num_processes
    return RunLength.of(config, num_images).num_steps(Progress(batch=batch))


def test_number_of_steps():
    assert num_steps(640, train_batch_size=64, num_train_epochs=7) == 70
    accumulated = {"train_batch_size": 32, "gradient_accumulation_steps": 2, "num_train_epochs": 7}
    assert num_steps(640, **accumulated) == 70
    assert num_steps(10, train_batch_size=64, num_train_epochs=1) == 1
    assert num_steps(65, train_batch_size=64, num_train_epochs=1) == 2  # none is left
    assert fill(num_images=50).max_train_steps >= 1000  # few images still need many steps
    assert fill(num_images=10**8).max_train_steps <= 10**6


def test_steps_are_those_of_all_processes():
    assert num_steps(640, num_processes=4, train_batch_size=16, num_train_epochs=7) == 70


def test_minutes_set_no_steps_but_epochs_still_count():
    assert fill(max_train_minutes=3.0).max_train_steps is None
    assert num_steps(640, train_batch_size=64, max_train_minutes=3.0, num_train_epochs=2) == 20


@pytest.mark.parametrize("steps", [1, 9, 10, 40, 333, 5000])
def test_a_default_warm_up_is_over_before_the_rate_falls(steps):
    config = fill(max_train_steps=steps, learning_rate=1e-3)
    rate = LearningRate(config, torch.optim.SGD([torch.zeros(1)], lr=1.0))
    assert max(rate.set(step, step / steps) for step in range(steps)) == pytest.approx(1e-3)


def test_a_default_warm_up_of_a_run_by_the_clock():
    """Its steps are not known beforehand: 40 in these minutes reach the rate too."""
    config = fill(max_train_minutes=1.0, learning_rate=1e-3)
    rate = LearningRate(config, torch.optim.SGD([torch.zeros(1)], lr=1.0))
    rates = [rate.set(step, step / 40) for step in range(40)]
    assert rates[0] < 1e-4 and max(rates) == pytest.approx(1e-3) and rates == sorted(rates[:12]) + rates[12:]


def test_a_stream_needs_a_length():
    with pytest.raises(ValueError, match=r"no length: give --max_train_steps"):
        fill(num_images=None)
    assert fill(num_images=None, max_train_minutes=1.0).max_train_steps is None
    assert fill(num_images=None, max_train_steps=5).max_train_steps == 5


def test_workers_only_where_images_are_read_from_disk():
    assert fill().dataloader_num_workers == 0
    assert fill(decoded=False).dataloader_num_workers >= 1


def test_fine_tuning_keeps_the_size_and_lowers_the_rate():
    config = fill(pretrained_model_name_or_path="parent")
    assert config.unet_size is None
    assert config.learning_rate < fill().learning_rate


def test_a_large_checkpoint_gets_the_rate_of_its_size():
    def rate(num_parameters: float) -> float:
        config = TrainingConfig(pretrained_model_name_or_path="a/checkpoint", mixed_precision="no")
        parts = {"num_images": 100, "sample_size": 64, "device": CPU, "num_parameters": int(num_parameters)}
        return fill_defaults(config, **parts).learning_rate

    rates = [rate(millions * 1e6) for millions in (1, 3, 36, 114, 860)]  # 860 M: Stable Diffusion
    assert rates == sorted(rates, reverse=True) and rates[-1] == 1e-5 and rates[0] == 1e-3


PARENT = {"pretrained_model_name_or_path": "a/checkpoint", "mixed_precision": "no"}


def of_parent(num_parameters: float, device=CUDA, num_images=5000, sample_size=64, **arguments) -> TrainingConfig:
    parts = {"num_images": num_images, "sample_size": sample_size, "device": device}
    return fill_defaults(TrainingConfig(**PARENT | arguments), num_parameters=int(num_parameters), **parts)


@pytest.mark.parametrize(
    ("train", "rate"), [("unet", 1e-5), ("lora", 1e-4), ("adapter", 1e-4), ("cross_attention", 5e-5)]
)
def test_rates_of_stable_diffusion_are_those_of_diffusers_scripts(train, rate):
    config = of_parent(860e6, train=train, conditioning="text", train_text_encoder=True)
    assert config.learning_rate == rate
    assert config.adapter_lr == 1e-4  # it may be new
    assert config.text_encoder_lr <= rate
    assert of_parent(2.8e6, train=train).learning_rate == 1e-3  # of a small one as ever
    given = of_parent(860e6, train=train, conditioning="text", learning_rate=3e-6)
    assert given.learning_rate == given.adapter_lr == 3e-6


def test_a_large_parent_gets_small_batches():
    assert of_parent(860e6).train_batch_size == 16
    assert of_parent(860e6, num_images=5).train_batch_size == 5
    assert of_parent(2.8e6).train_batch_size == 64


@pytest.mark.parametrize(
    ("parent", "given", "expected"),
    [
        (None, {}, (20, 3.5)),
        (None, {"scheduler": "DDIMScheduler"}, (30, 3.5)),
        ("sd", {}, (50, 7.5)),
        ("sd", {"default_guidance_scale": 3.0}, (50, 3.0)),
        ("sd", {"default_num_inference_steps": 9}, (9, 7.5)),
        ("sd", {"scheduler": "FlowMatchEulerDiscreteScheduler"}, (30, 7.5)),
    ],
)
def test_steps_and_guidance_of_a_pretrained_model_are_kept(tmp_path, capsys, parent, given, expected):
    arguments = {"default_num_inference_steps": None, "default_guidance_scale": None, "conditioning": "text"}
    arguments |= {"max_train_steps": 1, "resolution": 16}
    if parent:
        stable_diffusion().save_pretrained(tmp_path / "sd")
        arguments |= {"pretrained_model_name_or_path": str(tmp_path / "sd"), "unet_size": None}
    arguments |= given
    if given.get("default_num_inference_steps"):  # a whole run; samples of fifty steps would take long
        folder = run(tmp_path / "run", **arguments)
        config = ConditionalPipeline.from_pretrained(folder).config
        said, saved = capsys.readouterr().out, yaml.safe_load((folder / "training_config.yaml").read_text())
    else:
        config = TrainingConfig(output_dir=str(tmp_path / "run"), **{k: v for k, v in (TINY | arguments).items() if v})
        accelerator = build_accelerator(config, writable_folder(config.output_dir))
        with RunFolder(config, accelerator) as folder:
            prepared = prepare_run(config, accelerator, folder)
        config, said, saved = prepared.pipe.config, prepared.choices, prepared.config.to_dict()
    assert (config.default_num_inference_steps, config.default_guidance_scale) == expected
    assert f"{expected[0]} sampling steps, guidance {expected[1]:g}" in said
    assert (saved["default_num_inference_steps"], saved["default_guidance_scale"]) == expected


def test_a_batch_is_chosen_said_and_saved(tmp_path, capsys, monkeypatch):
    """With enough memory as ever; with little the same images in parts, so the same run but for rounding."""
    folders = []
    for free in (2**40, 2 * 10**7):
        monkeypatch.setattr(defaults, "free_bytes", lambda _, free=free: free)
        folders.append(run(tmp_path / str(free), train_batch_size=None, max_train_steps=2))
        said = capsys.readouterr().out
        assert "images at a time" in said and "GiB estimated" in said
    much, little = (yaml.safe_load((folder / "training_config.yaml").read_text()) for folder in folders)
    assert (much["train_batch_size"], much["gradient_accumulation_steps"], much["gradient_checkpointing"]) == (
        32,
        1,
        False,
    )
    assert little["train_batch_size"] < 32
    assert little["train_batch_size"] * little["gradient_accumulation_steps"] == 32
    assert log_of(folders[1]) == pytest.approx(log_of(folders[0]), rel=1e-3)


def test_text_encoder_is_trained_when_it_is_new():
    assert fill(conditioning="text").train_text_encoder
    assert not fill(conditioning="text", text_encoder_name_or_path="bert").train_text_encoder
    assert not fill(conditioning="class").train_text_encoder


@pytest.mark.parametrize("conditioning", ["none", "class", "text"])
def test_what_was_chosen_can_be_given(conditioning):
    """A configuration with all defaults filled in is taken again: nothing was chosen that has no effect."""
    config = fill(conditioning=conditioning, optimizer="schedulefree", pretrained_model_name_or_path="parent")
    assert TrainingConfig(**asdict(config)) == config
    assert (config.adapter_lr is None, config.text_encoder_lr is None) == (
        conditioning == "none",
        conditioning != "text",
    )


def test_precision_and_tracker():
    has_bf16 = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    assert fast_precision(CPU) == ("bf16" if has_bf16 else "no")
    assert fast_precision(torch.device("meta")) == "no"
    assert default_tracker() == "tensorboard"  # the tests install it
