import io
import re
import tarfile

import datasets
import numpy as np
import pytest
import torch
from angle_adapter import AngleAdapter
from diffusers import AutoencoderKL
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from training_common import flags, largest_difference, log_of, run, shapes
from transformers import BertConfig, BertModel

from cond_pipelines import (
    ClassConditionalPipeline,
    ConditionalPipeline,
    TextToImagePipeline,
    TrainingConfig,
    UnconditionalPipeline,
)
from cond_pipelines.data.draws import draw
from cond_pipelines.data.load import load_data
from cond_pipelines.data.shapes import SHAPES, load_shapes
from cond_pipelines.networks.text_encoders import train_tokenizer
from cond_pipelines.training.__main__ import main
from cond_pipelines.training.conditions import ConditionEncoder
from cond_pipelines.training.config import parse_args
from cond_pipelines.training.model import build_pipeline, load_parent
from cond_pipelines.training.state import ConditionalDenoiser

PIPELINES = {"none": UnconditionalPipeline, "class": ClassConditionalPipeline, "text": TextToImagePipeline}
RAW = {"none": [None, None], "class": ["circle", "ring"], "text": ["a red circle", "two words"]}


def load(folder):
    return ConditionalPipeline.from_pretrained(folder)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """The three settings, each trained for a few steps with everything that a run writes."""
    arguments = {"report_to": "tensorboard", "validation_steps": 3, "max_train_steps": 6, "logging_steps": 2}
    return {setting: run(tmp_path_factory.mktemp(setting), conditioning=setting, **arguments) for setting in PIPELINES}


def weights_of(model):
    return {name: x.clone() for name, x in model.state_dict().items()}


# -------------------------------------------------------------------------------------------- what a run writes
@pytest.mark.parametrize("setting", PIPELINES)
def test_a_complete_pipeline(models, setting):
    pipe = load(models[setting])
    assert type(pipe) is PIPELINES[setting]
    image = pipe(batch_size=1).images[0] if setting == "none" else pipe(RAW[setting][0]).images[0]
    assert image.size == (8, 8)
    assert pipe.config.default_num_inference_steps == 1
    written = {p.name for p in models[setting].iterdir()}
    assert written >= {"training_config.yaml", "samples.png", "loss.png", "log.jsonl", "logs"}
    assert not [name for name in written if "checkpoint" in name]


@pytest.mark.parametrize("setting", PIPELINES)
def test_pictures(models, setting):
    samples, loss = (Image.open(models[setting] / f"{name}.png").convert("RGB") for name in ("samples", "loss"))
    assert min(samples.size) > 8 * 64  # 64 images, large enough to see
    assert len(samples.getcolors(2**24)) > 16
    assert np.asarray(loss).std() > 0


@pytest.mark.parametrize("setting", PIPELINES)
def test_the_saved_arguments_are_those_that_ran(models, setting):
    config = parse_args(["--config", str(models[setting] / "training_config.yaml")])
    assert (config.conditioning, config.resolution, config.channels) == (setting, 8, 3)
    assert config.unet_size == "xxs"
    assert None not in (config.learning_rate, config.dataloader_num_workers, config.mixed_precision)


@pytest.mark.parametrize("setting", PIPELINES)
def test_log(models, setting):
    assert log_of(models[setting], "step") == [2, 3, 4, 6, 6]
    assert len(log_of(models[setting])) == 3
    assert len(log_of(models[setting], "held_out_loss")) == 2
    assert all(0.3 < loss < 3 for loss in log_of(models[setting]) + log_of(models[setting], "held_out_loss"))
    assert log_of(models[setting], "images")[-1] == 48


@pytest.mark.parametrize("setting", PIPELINES)
def test_tensorboard(models, setting):
    (event_folder,) = {path.parent for path in (models[setting] / "logs").rglob("events*") if _scalars(path)}
    events = EventAccumulator(str(event_folder)).Reload()
    assert {"loss", "lr", "images_per_sec", "held_out_loss"} <= set(events.Tags()["scalars"])
    assert [(e.step, pytest.approx(e.value)) for e in events.Scalars("loss")] == list(
        zip([2, 4, 6], log_of(models[setting]), strict=True)
    )
    assert [e.step for e in events.Scalars("held_out_loss")] == [3, 6]
    assert [e.step for e in events.Images("samples")] == [3, 6]


def _scalars(path):
    return "loss" in EventAccumulator(str(path)).Reload().Tags()["scalars"]


def test_the_unet_is_the_same_in_all_settings(models):
    unets = [load(folder).unet.state_dict() for folder in models.values()]
    shapes_of = [{name: x.shape for name, x in unet.items()} for unet in unets]
    assert shapes_of[0] == shapes_of[1] == shapes_of[2]


def test_class_names_are_saved(models):
    assert list(load(models["class"]).adapter.id2label.values()) == list(SHAPES)


def test_the_unconditional_adapter_learns_nothing(models):
    """Or a model swapped to another setting would not start as its parent."""
    assert all((p == 0).all() for p in load(models["none"]).adapter.parameters())


# ----------------------------------------------------------------------------------------------------- learning
@pytest.mark.parametrize(
    "objective",
    [
        {},
        {"scheduler": "DDPMScheduler", "prediction_type": "v_prediction", "snr_gamma": 5.0},
        {"scheduler": "EDMEulerScheduler"},
    ],
    ids=["flow", "ddpm", "edm"],
)
def test_the_loss_goes_down(tmp_path, objective):
    few = {"dataset_name": "training_common:few_shapes", "max_train_steps": 100, "learning_rate": 2e-3}
    loss = log_of(run(tmp_path, conditioning="class", **few, **objective))
    assert np.mean(loss[-5:]) < 0.5 * np.mean(loss[:5])
    pipe = load(tmp_path)
    assert type(pipe.scheduler).__name__ == objective.get("scheduler", "FlowMatchEulerDiscreteScheduler")
    assert pipe.scheduler.config.get("prediction_type") == objective.get(
        "prediction_type", pipe.scheduler.config.get("prediction_type")
    )
    assert np.isfinite(pipe("circle", num_inference_steps=3, output_type="np").images).all()


def test_condition_dropout_is_per_example(models):
    pipe = load(models["class"])
    torch.nn.init.normal_(pipe.adapter.pooled_proj.weight)
    features = pipe.adapter.preprocess(["circle", "circle", "ring", "ring"])
    x_t, t, keep = torch.randn(4, 3, 8, 8), torch.full((4,), 500.0), torch.tensor([True, False, False, True])
    denoiser = ConditionalDenoiser(pipe, [pipe.unet, pipe.adapter])
    with torch.no_grad():
        mixed = denoiser(x_t, t, features, keep)
        kept, dropped = (denoiser(x_t, t, features, torch.full((4,), all_)) for all_ in (True, False))
    assert torch.allclose(mixed[keep], kept[keep], atol=1e-6)
    assert torch.allclose(mixed[~keep], dropped[~keep], atol=1e-6)
    assert not torch.allclose(kept, dropped, atol=1e-3)


def test_dropped_conditions_teach_the_adapter_nothing(tmp_path):
    assert (draw(0, torch.arange(32), (1,), "cpu").dropout < 0.995).all()  # the coins of this run
    always = load(run(tmp_path / "always", conditioning="class", condition_dropout=0.995)).adapter
    never = load(run(tmp_path / "never", conditioning="class", condition_dropout=0.0)).adapter
    assert all((p == 0).all() for name, p in always.named_parameters() if "proj" in name)
    assert all((p != 0).any() for p in never.parameters())


# --------------------------------------------------------------------------------------------------------- swap
def unconditional(pipe, conditions=(None, None)):
    latents = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    sampling = {"latents": latents, "num_inference_steps": 2, "guidance_scale": 1.0, "output_type": "pt"}
    return ConditionalPipeline.__call__(pipe, list(conditions), **sampling).images


def test_swap_through_all_settings(models, tmp_path):
    """none -> class -> text -> none, trained in between: each starts as its parent, whatever it is told."""
    parent = models["none"]
    for setting in ("class", "text", "none"):
        arguments = {"conditioning": setting, "unet_size": None, "pretrained_model_name_or_path": str(parent)}
        config = TrainingConfig(dataset_name="training_common:shapes", resolution=8, **arguments | {"unet_size": None})
        before = load(parent)
        child = build_pipeline(config, load_data(config, 3), None, load_parent(config))
        assert largest_difference(child.unet, before.unet) == 0
        expected, found = unconditional(before), unconditional(child, RAW[setting])
        if setting == "text":
            assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()
        else:
            assert torch.equal(found, expected)
        trained = load(run(tmp_path / setting, **arguments))
        assert 0 < largest_difference(trained.unet, before.unet) < 0.1
        if setting != "none":
            assert not torch.equal(unconditional(trained), unconditional(trained, RAW[setting]))
        parent = tmp_path / setting


def test_going_on_keeps_the_adapter(models, tmp_path):
    arguments = {"unet_size": None, "pretrained_model_name_or_path": str(models["class"]), "learning_rate": 1e-9}
    again = load(run(tmp_path, conditioning="class", **arguments))
    assert largest_difference(again.adapter, load(models["class"]).adapter) < 1e-6


# --------------------------------------------------------------------------------------------------------- text
@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bert")
    tokenizer = train_tokenizer(shapes()["caption"], vocab_size=400)
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    config = BertConfig(vocab_size=len(tokenizer), max_position_embeddings=64, **sizes)
    BertModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_a_pretrained_text_encoder_stays_as_it_is(bert, tmp_path):
    arguments = {"conditioning": "text", "text_encoder_name_or_path": str(bert)}
    pipe = load(run(tmp_path, **arguments))
    assert isinstance(pipe.text_encoder, BertModel)
    assert largest_difference(pipe.text_encoder, BertModel.from_pretrained(bert)) == 0
    assert (pipe.adapter.token_proj.weight != 0).any()


def test_a_pretrained_text_encoder_is_trained_when_asked(bert, tmp_path):
    arguments = {"conditioning": "text", "text_encoder_name_or_path": str(bert), "train_text_encoder": True}
    pipe = load(run(tmp_path, **arguments))
    assert largest_difference(pipe.text_encoder, BertModel.from_pretrained(bert)) > 0


def test_a_new_text_encoder_is_trained(tmp_path):
    trained = load(run(tmp_path / "trained", conditioning="text"))
    frozen = load(run(tmp_path / "frozen", conditioning="text", train_text_encoder=False))  # as it began
    assert largest_difference(trained.text_encoder, frozen.text_encoder) > 1e-4
    assert trained.tokenizer("a Red circle")["input_ids"] == trained.tokenizer("a red circle")["input_ids"]


def test_each_caption_is_encoded_once(models):
    pipe = load(models["text"])
    torch.nn.init.normal_(pipe.adapter.token_proj.weight)
    encoded = []
    pipe.text_encoder.register_forward_hook(lambda module, inputs, output: encoded.append(output[0].shape[0]))
    conditions = ConditionEncoder(pipe, trainable=False)
    batches = [["a red circle", "a blue square on a white background"], ["a red circle", None, "a ring", "a ring"]]
    for captions in (*batches, *batches):
        inputs = conditions.preprocess(captions)
        cond = pipe.adapter(conditions.features(inputs, pipe.device))
        seen = len(encoded)
        direct = pipe.adapter(pipe.adapter.encode(inputs, pipe.text_encoder))
        encoded[seen:] = []
        assert torch.equal(cond.mask, direct.mask)
        mask = cond.mask[..., None]
        assert torch.allclose(cond.tokens * mask, direct.tokens * mask, atol=1e-5)
        assert torch.allclose(cond.pooled, direct.pooled, atol=1e-5)
    assert encoded == [2, 2]


# ------------------------------------------------------------------------------------------------------ latents
@pytest.fixture(scope="module")
def vae(tmp_path_factory):
    torch.manual_seed(0)
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
    vae = AutoencoderKL(**blocks, block_out_channels=(8, 16), latent_channels=4, norm_num_groups=8, sample_size=16)
    folder = tmp_path_factory.mktemp("vae")
    vae.save_pretrained(folder)
    return folder


def test_latent_diffusion(vae, tmp_path):
    arguments = {"conditioning": "class", "resolution": 16, "validation_steps": 4}
    folder = run(tmp_path / "latent", pretrained_vae_model_name_or_path=str(vae), **arguments)
    pipe = load(folder)
    assert largest_difference(pipe.vae, AutoencoderKL.from_pretrained(vae)) == 0
    assert (pipe.unet.config.in_channels, pipe.unet.config.sample_size) == (4, 8)
    assert pipe("circle").images[0].size == (16, 16)
    # ... and swapped: the VAE comes along.
    swap = {"unet_size": None, "pretrained_model_name_or_path": str(folder), "max_train_steps": 1}
    child = load(run(tmp_path / "child", **arguments | {"conditioning": "none"} | swap))
    assert largest_difference(child.vae, pipe.vae) == 0
    assert child(batch_size=1).images[0].size == (16, 16)


# ---------------------------------------------------------------------------------------------- a third party's
def test_a_third_party_adapter(tmp_path, warm):
    chosen = {"conditioning": "custom", "adapter": "angle_adapter:AngleAdapter", "condition_column": "angle"}
    chosen |= {"dataset_name": "training_common:angles", "adapter_config": '{"num_waves": 3}', "validation_steps": 4}
    main([*flags(**chosen), "--output_dir", str(tmp_path), "--validation_prompts", "0", "90.5", "null"])
    pipe = load(tmp_path)
    assert type(pipe) is ConditionalPipeline
    assert type(pipe.adapter) is AngleAdapter
    assert pipe.adapter.config.num_waves == 3
    assert (pipe.adapter.proj.weight != 0).any()
    script = (
        "import sys, torch, angle_adapter; from cond_pipelines import ConditionalPipeline\n"
        "pipe = ConditionalPipeline.from_pretrained(sys.argv[1])\n"
        "generator = torch.Generator().manual_seed(0)\n"
        "image = pipe(condition=[30.0], generator=generator, num_inference_steps=2).images[0]\n"
        "print(type(pipe.adapter).__name__, image.tobytes().hex())"
    )
    fresh = warm.start(["-c", script, tmp_path]).communicate(timeout=120)[0].split()
    image = pipe(condition=[30.0], generator=torch.Generator().manual_seed(0), num_inference_steps=2).images[0]
    assert fresh == ["AngleAdapter", image.tobytes().hex()]


# --------------------------------------------------------------------------------------------------- other data
def test_streaming(tmp_path):
    shapes().save_to_disk(str(tmp_path / "data"))
    arguments = {"dataset_name": None, "train_data_dir": str(tmp_path / "data"), "streaming": True}
    folder = run(tmp_path / "out", conditioning="class", validation_steps=4, **arguments)
    assert len(log_of(folder)) == 4
    assert list(load(folder).adapter.id2label.values()) == list(SHAPES)
    # ... resumed, it goes on where it was
    arguments |= {"conditioning": "class", "lr_scheduler": "constant", "checkpointing_steps": 2, "validation_steps": 0}
    whole = run(tmp_path / "whole", **arguments)
    run(tmp_path / "parts", **arguments | {"max_train_steps": 2})
    parts = run(tmp_path / "parts", **arguments, resume_from_checkpoint="latest")
    assert largest_difference(load(whole).unet, load(parts).unet) == 0


@pytest.mark.parametrize(
    ("kind", "labels"), [("tar", [0, 2, 5]), ("parquet", ["ring", "disk"]), ("lists", [[0, 1], [1]])]
)
def test_a_stream_with_classes_that_it_does_not_name(tmp_path, kind, labels):
    """Numbers in tar shards, words in parquet, several of an image: the classes of the same set not streamed."""
    images = load_shapes(24)["image"]
    (tmp_path / "data").mkdir()
    labels = [labels[i % len(labels)] for i in range(24)]
    if kind == "tar":
        with tarfile.open(tmp_path / "data/0.tar", "w") as tar:
            for number, (image, label) in enumerate(zip(images, labels, strict=True)):
                image.save(file := io.BytesIO(), "PNG")
                for ending, content in (("png", file.getvalue()), ("cls", str(label).encode())):
                    entry = tarfile.TarInfo(f"{number:05}.{ending}")
                    entry.size = len(content)
                    tar.addfile(entry, io.BytesIO(content))
    else:
        datasets.Dataset.from_dict({"image": images, "label": labels}).to_parquet(tmp_path / "data/0.parquet")
    settings = {"dataset_name": None, "train_data_dir": str(tmp_path / "data"), "conditioning": "class"}
    settings |= {"cache_dir": str(tmp_path / "cache"), "max_train_steps": 1}
    streamed = load(run(tmp_path / "streamed", **settings, streaming=True))
    assert streamed.adapter.id2label == load(run(tmp_path / "whole", **settings)).adapter.id2label
    assert len(streamed.adapter.id2label) == {"tar": 3, "parquet": 2, "lists": 2}[kind]


def test_small_evaluations(tmp_path):
    """Into the log and the tracker; the same samples, whatever the batch, so the same numbers when run again."""
    settings = {
        "conditioning": "class",
        "evaluation_steps": 2,
        "num_evaluation_samples": 40,
        "report_to": "tensorboard",
    }
    folders = [run(tmp_path / name, **settings) for name in "ab"]
    for key in ("kernel_distance", "precision", "recall", "copies"):
        values = log_of(folders[0], key)
        assert len(values) == 2 and np.isfinite(values).all() and values == log_of(folders[1], key)
    assert len(log_of(folders[0])) == 4
    events = EventAccumulator(str(next((folders[0] / "logs").rglob("events*")))).Reload()
    assert [e.step for e in events.Scalars("recall")] == [2, 4]
    without = run(tmp_path / "without", **settings | {"max_train_steps": 2, "validation_fraction": 0.0})
    assert len(log_of(without, "recall")) == 1 and log_of(without, "copies") == []  # nothing to compare with
    with pytest.raises(ValueError, match="--evaluation_steps needs square 8-bit images that are not streamed"):
        run(tmp_path / "c", **settings, streaming=True)


def test_gray_images_give_a_gray_model(tmp_path):
    (tmp_path / "images").mkdir()
    for i in range(4):
        Image.fromarray(np.full((12, 12), 50 * i, np.uint8)).save(tmp_path / f"images/{i}.png")
    arguments = {
        "dataset_name": None,
        "train_data_dir": str(tmp_path / "images"),
        "resolution": None,
        "train_batch_size": None,
    }
    pipe = load(run(tmp_path / "out", cache_dir=str(tmp_path / "cache"), max_train_steps=1, **arguments))
    assert (pipe.unet.config.in_channels, pipe.unet.config.sample_size) == (1, 8)
    assert pipe(batch_size=1).images[0].mode == "L"


@pytest.mark.parametrize("on_bad_image", ["error", "skip"])
def test_a_bad_image_in_the_middle_of_training(tmp_path, on_bad_image, capsys):
    """Images that are not kept decoded are read by workers, whose errors must be as clear."""
    images = tmp_path / "images"
    images.mkdir()
    for i in range(48):
        Image.fromarray(np.full((8, 8, 3), i, np.uint8)).save(images / f"{i:02}.png")
    probed = np.random.default_rng(0).permutation(48)[:32]  # looked at before the first step
    bad = min(set(range(48)) - set(probed.tolist()))
    (images / f"{bad:02}.png").write_bytes(b"broken")
    args = {"dataset_name": None, "train_data_dir": images, "cache_dir": tmp_path / "cache", "max_train_steps": 6}
    args |= {"cache_images": "False"}
    args = flags(**args, on_bad_image=on_bad_image, dataloader_num_workers=1, output_dir=tmp_path / "out")
    if on_bad_image == "skip":
        main(args)
        assert len(log_of(tmp_path / "out")) == 6
        return
    with pytest.raises(SystemExit) as stop:
        main(args)
    assert stop.value.code == 1
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "error:" in line]
    assert re.match(rf"error: step \d+: row {bad} \({images / f'{bad:02}.png'}\): unreadable image: ", line)
    assert "mend it, or --on_bad_image skip; nothing was saved yet" in line
