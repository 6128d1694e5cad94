"""`cond-pipelines export`: what leaves draws the same images, and what cannot leave is refused in one line."""

import json
import shlex

import diffusers
import numpy as np
import pytest
import torch
from parents_common import stable_diffusion, unconditional_parent
from pipelines_common import generators
from safetensors.torch import load_file
from training_common import few_shapes  # noqa: F401 (a data set of the commands)

from cond_pipelines import (
    ClassConditionalPipeline,
    ClassLabelAdapter,
    CompositeAdapter,
    ConditionalPipeline,
    EmbeddingAdapter,
    TextAdapter,
    TextToImagePipeline,
    UnconditionalAdapter,
    UnconditionalPipeline,
    build_unet,
)
from cond_pipelines.adapters.denoiser import denoise
from cond_pipelines.cli import main
from cond_pipelines.export import onnx_folder
from cond_pipelines.networks.surgery import with_end_time
from cond_pipelines.networks.text_encoders import new_text_encoder

FLOW = diffusers.FlowMatchEulerDiscreteScheduler


def loud(*modules):
    """Without zero weights, so that each input makes a difference."""
    torch.manual_seed(1)
    for module in modules:
        for parameter in module.parameters():
            if parameter.ndim > 1 and not parameter.any():
                torch.nn.init.normal_(parameter, std=0.3)


def saved(pipe, folder):
    pipe.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """One of each kind."""
    folder = tmp_path_factory.mktemp("models")
    torch.manual_seed(0)
    unet = build_unet("xxs", sample_size=8, block_out_channels=(32, 32))
    common = {"scheduler": FLOW(), "default_num_inference_steps": 2}
    label = ClassLabelAdapter.for_unet(unet, id2label={0: "cat", 1: "dog", 2: "owl"})
    text_encoder, tokenizer = new_text_encoder(["a red circle on black"], hidden_size=32, num_layers=1)
    text = TextAdapter.for_unet(unet, text_encoder=text_encoder)
    loud(unet, label, text)
    few_steps = with_end_time(unet)
    loud(few_steps)
    objective = {"name": "distillation"}
    ClassConditionalPipeline(unet, adapter=label, **common).save_pretrained(folder / "class")
    UnconditionalPipeline(unet, adapter=UnconditionalAdapter.for_unet(unet), **common).save_pretrained(folder / "none")
    TextToImagePipeline(unet, adapter=text, text_encoder=text_encoder, tokenizer=tokenizer, **common).save_pretrained(
        folder / "text"
    )
    ClassConditionalPipeline(few_steps, adapter=label, **common, objective=objective).save_pretrained(folder / "fast")
    vector = EmbeddingAdapter.for_unet(unet, embedding_dim=2)
    loud(vector)
    ConditionalPipeline(unet, adapter=vector, **common).save_pretrained(folder / "vector")
    both = CompositeAdapter.for_unet(unet, adapters={"label": label, "size": vector})
    ConditionalPipeline(unet, adapter=both, **common).save_pretrained(folder / "both")
    TextToImagePipeline.from_pipe(stable_diffusion()).save_pretrained(folder / "sd")
    UnconditionalPipeline.from_pipe(unconditional_parent("DDPM")).save_pretrained(folder / "ddpm")
    UnconditionalPipeline.from_pipe(unconditional_parent("LDM")).save_pretrained(folder / "ldm")
    return folder


def test_a_fine_tuned_stable_diffusion_leaves_with_the_same_images(models, tmp_path, capsys):
    """Trained for a step; the run names the command, and diffusers alone loads what it writes."""
    tuned = tmp_path / "tuned"
    main(
        shlex.split(
            f"train --conditioning text --pretrained_model_name_or_path {models / 'sd'} --output_dir {tuned} "
            "--dataset_name training_common:few_shapes --caption_column caption --resolution 16 --train_batch_size 2 "
            "--max_train_steps 1 --default_num_inference_steps 2 --validation_steps 0 --report_to none"
        )
    )
    [command] = [line for line in capsys.readouterr().out.splitlines() if "for diffusers alone: " in line]
    command = command.partition("cond-pipelines ")[2]
    main(shlex.split(command))
    said = capsys.readouterr().out.strip()
    out = tmp_path / "tuned-stable-diffusion"
    assert said.endswith("call it with num_inference_steps=2, guidance_scale=7.5") and str(out) in said
    assert not list(out.rglob("*.py")) and json.loads((out / "model_index.json").read_text())["_class_name"] == (
        "StableDiffusionPipeline"
    )
    trained, parent = (load_file(f / "unet/diffusion_pytorch_model.safetensors") for f in (out, models / "sd"))
    assert any(not torch.equal(trained[name], parent[name]) for name in parent)
    theirs = diffusers.StableDiffusionPipeline.from_pretrained(out, safety_checker=None)
    ours = ConditionalPipeline.from_pretrained(tuned)
    call = {"prompt": ["a red circle", "two blue squares"], "num_inference_steps": 2, "output_type": "np"}
    for scale in (1.0, 7.5):
        images = [pipe(**call, guidance_scale=scale, generator=generators(2)).images for pipe in (ours, theirs)]
        assert np.array_equal(*images)


def test_a_ddpm_leaves_with_the_same_images(models, tmp_path, capsys):
    main(["export", str(models / "ddpm"), str(tmp_path / "out"), "--to", "ddpm"])
    assert "DDPMPipeline.from_pretrained" in capsys.readouterr().out
    theirs = diffusers.DDPMPipeline.from_pretrained(tmp_path / "out")
    ours = ConditionalPipeline.from_pretrained(models / "ddpm")
    call = {"batch_size": 2, "num_inference_steps": 3, "output_type": "np"}
    images = [pipe(**call, generator=torch.Generator().manual_seed(0)).images for pipe in (ours, theirs)]
    assert np.array_equal(*images)


@pytest.mark.parametrize(
    ("model", "to", "words"),
    [
        ("class", "stable-diffusion", "ClassLabelAdapter"),
        ("text", "stable-diffusion", "TextAdapter"),
        ("ddpm", "stable-diffusion", "UnconditionalAdapter"),
        ("class", "ddpm", "conditional"),
        ("none", "ddpm", "UNet2DModel"),
        ("ldm", "ddpm", "latents"),
        ("absent", "onnx", "absent"),
    ],
)
def test_what_has_no_equal_is_refused_in_one_line(model, to, words, models, tmp_path, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["export", str(models / model), str(tmp_path / "out"), "--to", to])
    line = capsys.readouterr().err.rstrip("\n").splitlines()[-1].rpartition("\r")[-1]
    assert ended.value.code == 2 and line.startswith("error: ") and words in line
    assert not list(tmp_path.iterdir())


def test_a_folder_that_is_there_is_left_alone(models, tmp_path, capsys):
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(SystemExit):
        main(["export", str(models / "class"), str(tmp_path), "--to", "onnx"])
    assert "is there already" in capsys.readouterr().err and [p.name for p in tmp_path.iterdir()] == ["mine.txt"]


def run_network(folder, name, given):
    import onnxruntime

    session = onnxruntime.InferenceSession(str(folder / f"{name}.onnx"), providers=["CPUExecutionProvider"])
    known = {entry.name for entry in session.get_inputs()}
    outputs = session.run(None, {key: x.numpy() for key, x in given.items() if key in known})
    names = json.loads((folder / "model.json").read_text())["networks"][name]["outputs"]
    return dict(zip(names, map(torch.from_numpy, outputs), strict=True))


@pytest.mark.parametrize(
    ("model", "raw"),
    [
        ("class", ["owl", None, "cat"]),
        ("fast", ["dog"]),
        ("text", ["a circle", None, "a circle on a black background and more"]),
        ("sd", ["a red circle", "", "blue"]),
        ("ldm", [None] * 3),
        ("vector", [[0.5, 2.0], None, [1.0, -1.0]]),
        ("both", [{"label": "cat"}, None, {"label": "dog", "size": [1.0, -1.0]}]),
    ],
)
@torch.no_grad()
def test_onnx_from_raw_conditions_to_the_prediction(model, raw, models, tmp_path, capsys):
    """The chain of the files, run here and not by the export, against the pipeline."""
    out = tmp_path / "onnx"
    main(["export", str(models / model), str(out), "--to", "onnx"])
    assert f"saved to {out}" in capsys.readouterr().out
    pipe = ConditionalPipeline.from_pretrained(models / model)
    facts = json.loads((out / "model.json").read_text())
    features = pipe.adapter.preprocess(raw, getattr(pipe, "tokenizer", None))
    if (out / "text_encoder.onnx").is_file():
        features = run_network(out, "text_encoder", features)
    condition = run_network(out, "adapter", features)
    cond, null = pipe.encode_condition(raw)
    x_t = torch.randn(len(raw), *facts["sample_shape"])
    t = torch.linspace(10, 990, len(raw))
    given = {"sample": x_t, "timestep": t}
    if "end_timestep" in facts["networks"]["unet"]["inputs"]:
        given["end_timestep"] = t / 3
    for kind, expected in (("cond", cond), ("null", null)):
        parts = {
            name: condition[f"{kind}_{name}"] for name in ("tokens", "mask", "pooled") if f"{kind}_{name}" in condition
        }
        found = run_network(out, "unet", given | parts)["prediction"]
        wanted = denoise(pipe.unet, x_t, t, expected, given.get("end_timestep"))
        assert (found - wanted).abs().max() <= 1e-4 * max(1, wanted.abs().max())
    if len(raw) == 3 and raw[0] is not None:
        assert not torch.allclose(condition["cond_tokens"][0], condition["cond_tokens"][2])
    if pipe.components.get("vae") is not None:
        latents = torch.randn(1, *facts["sample_shape"])
        found = run_network(out, "vae_decoder", {"latents": latents})["images"]
        assert (found - pipe.decode(latents)).abs().max() <= 1e-4
    assert (out / "scheduler/scheduler_config.json").is_file()


def test_a_network_that_differs_is_not_written(models, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(onnx_folder, "_MAX_DIFFERENCE", 0.0)  # nothing is equal to the bit
    with pytest.raises(SystemExit):
        main(["export", str(models / "class"), str(tmp_path / "out"), "--to", "onnx"])
    assert "differs from PyTorch" in capsys.readouterr().err and not list(tmp_path.iterdir())
