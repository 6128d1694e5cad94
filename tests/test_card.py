"""Cards: filled from what is there, empty where nothing is, and their code runs."""

import json
import re
import shutil
from pathlib import Path

import pytest
import yaml
from hub_server import TOKEN
from huggingface_hub import ModelCard
from pipelines_common import make_components, quiet
from training_common import run

from cond_pipelines import ClassConditionalPipeline, TextToImagePipeline, UnconditionalPipeline
from cond_pipelines.cli import main
from cond_pipelines.sharing.card import MARK, CardFacts, render_card, write_card
from cond_pipelines.sharing.push import push_folder

ROOT = Path(__file__).parents[1]
CLASSES = {"none": UnconditionalPipeline, "class": ClassConditionalPipeline, "text": TextToImagePipeline}


@pytest.fixture(scope="module", params=CLASSES)
def folder(request, tmp_path_factory):
    setting = request.param
    more = {"caption_column": "caption"} if setting == "text" else {}
    return setting, run(tmp_path_factory.mktemp("card") / "my-shapes", conditioning=setting, **more)


def body_of(folder) -> str:
    return (folder / "README.md").read_text()


def test_the_page_says_what_the_run_did(folder):
    _setting, path = folder
    text, summary = body_of(path), json.loads((path / "training_summary.json").read_text())
    assert summary["steps"] == 4 and summary["images_seen"] == 32 and summary["num_images"] == 86
    assert summary["num_held_out"] == 10 and summary["resolution_px"] == 8
    assert "86 images for training, 10 held out" in text
    assert "4 of 8 images (32 images seen)" in text and "CPU cores" in text
    assert f"{summary['held_out_loss']:.4f}" in text if summary["held_out_loss"] is not None else True
    assert "![Samples of this model](samples.png)" in text and "<Gallery />" in text and "![Loss](loss.png)" in text
    assert "Not evaluated." in text and "None" not in text and "nan" not in text.lower().split()


def test_metadata(folder):
    setting, path = folder
    data = ModelCard.load(path / "README.md").data
    assert data.library_name == "diffusers"
    tasks = {"none": "unconditional-image-generation", "class": None, "text": "text-to-image"}
    assert data.pipeline_tag == tasks[setting]
    assert "cond-pipelines" in data.tags
    assert data.eval_results is None and data.license is None
    for entry in data.widget:
        assert (path / entry["output"]["url"]).is_file() and entry["text"]
    assert (
        len(data.widget)
        == len(list(path.glob("images/*.png")))
        == (5 if setting == "class" else 8 if setting == "none" else len(data.widget))
    )


def test_classes_and_captions_are_listed(folder):
    setting, path = folder
    text = body_of(path)
    if setting == "class":
        counts = json.loads((path / "training_summary.json").read_text())["class_counts"]
        assert sum(counts.values()) == 96 and set(counts) == {"circle", "square", "triangle", "cross", "ring"}
        assert all(f"- {name}\n" in text and f"| {name} | {n} |" in text for name, n in counts.items())
    if setting == "text":
        assert re.search(r"96 captions, \d+ of them different", text)
        assert "## Example conditions" in text


def test_the_code_blocks_run(folder, hub, tmp_path, monkeypatch):
    setting, path = folder
    push_folder(path, f"me/shapes-{setting}", token=TOKEN)
    text = hub.repos[f"me/shapes-{setting}"].files()["README.md"].decode()
    blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert len(blocks) == 3
    monkeypatch.chdir(tmp_path)
    for number, block in enumerate(blocks):
        exec(compile(block, f"card, block {number}", "exec"), {})
    assert (tmp_path / "sample.png").is_file()


def test_what_you_say_is_shown(folder, tmp_path):
    _, path = folder
    copy = tmp_path / "my-model"
    shutil.copytree(path, copy)
    said = {
        "name": "Shapes, drawn",
        "description": "Five shapes: *tiny*.",
        "license": "apache-2.0",
        "language": "en",
        "dataset": "me/shapes-data",
        "base_model": "me/parent",
        "authors": "A. Body",
        "tags": ["shapes"],
        "limits": "It draws nothing but shapes.",
        "citation": "Cite the weather.",
    }
    (copy / "card.yaml").write_text(yaml.safe_dump(said))
    write_card(copy, "me/my-model")
    data, text = ModelCard.load(copy / "README.md").data, body_of(copy)
    assert (data.license, data.language, data.datasets, data.base_model) == (
        "apache-2.0",
        "en",
        ["me/shapes-data"],
        "me/parent",
    )
    assert "shapes" in data.tags
    for words in ("# Shapes, drawn", said["description"], said["limits"], said["citation"], "me/shapes-data"):
        assert words in text


def test_an_unknown_field_is_named(folder, tmp_path, capsys):
    copy = tmp_path / "m"
    shutil.copytree(folder[1], copy)
    (copy / "card.yaml").write_text("licence: mit\n")
    with pytest.raises(SystemExit):
        main(["card", str(copy)])
    assert re.search(r"error: .*card\.yaml: unknown field 'licence'; known: .*license", capsys.readouterr().err)


def test_card_command_renders_again_and_leaves_a_page_of_your_own(folder, tmp_path, capsys):
    copy = tmp_path / "m"
    shutil.copytree(folder[1], copy)
    before = body_of(copy)
    (copy / "README.md").unlink()
    main(["card", str(copy), "--repo_id", "my-shapes"])
    assert body_of(copy) == before and MARK in before
    assert str(copy / "README.md") in capsys.readouterr().out
    (copy / "README.md").write_text("# Mine\n")
    main(["card", str(copy)])
    assert body_of(copy) == "# Mine\n"


@pytest.mark.parametrize("setting", CLASSES)
def test_a_pipeline_that_was_never_trained_here(setting, tmp_path):
    """Nothing is known of its training: the page says so, and invents nothing."""
    quiet(CLASSES[setting](**make_components(setting))).save_pretrained(tmp_path / "plain")
    text = write_card(tmp_path / "plain", "me/plain").read_text()
    assert text.count("Not recorded.") == 2 and "Not evaluated." in text and "samples.png" not in text
    assert ModelCard(text).data.widget is None if hasattr(ModelCard(text).data, "widget") else True


def test_evaluation_in_the_page_and_in_both_forms_of_the_hub(folder, tmp_path):
    copy = tmp_path / "m"
    shutil.copytree(folder[1], copy)
    (copy / "evaluation").mkdir()
    measures = [
        {"question": "alike?", "name": "FID", "value": 12.5, "interval": [11.9, 13.1], "real": 3.2},
        {"question": "obeys y?", "name": "class accuracy", "value": 0.97},
    ]
    report = {"measures": measures, "num_samples": 10_000, "feature_extractor": "facebook/dinov2-base"}
    (copy / "evaluation/report.json").write_text(json.dumps(report))
    (copy / "card.yaml").write_text("dataset: me/data\n")
    write_card(copy, "me/m")
    text = body_of(copy)
    assert (
        "| alike? | FID | 12.5 | 11.9 to 13.1 | 3.2 |" in text and "| obeys y? | class accuracy | 0.97 |  |  |" in text
    )
    assert "Not evaluated." not in text and "10000 samples" in text
    results = ModelCard.load(copy / "README.md").data.eval_results
    assert [(r.metric_name, r.metric_value, r.dataset_type) for r in results] == [
        ("FID", 12.5, "me/data"),
        ("class accuracy", 0.97, "me/data"),
    ]
    entries = yaml.safe_load((copy / ".eval_results/cond_pipelines.yaml").read_text())
    assert entries[0]["dataset"] == {"id": "me/data", "task_id": "fid"} and entries[0]["value"] == 12.5


@pytest.mark.parametrize(
    ("report", "words"),
    [
        ({"guidance_scale": 1}, "1 step and a guidance scale of 1.\n"),  # of an earlier version: without a scheduler
        ({"guidance_scale": 3.5}, "1 step and a guidance scale of 3.5. Its defaults above are others"),
        ({"guidance_scale": 1.0, "num_inference_steps": 2}, "2 steps and a guidance scale of 1.0. Its defaults"),
        (
            {"guidance_scale": 1.0, "scheduler": "DDIMScheduler"},
            "1 step of DDIMScheduler and a guidance scale of 1.0. ",
        ),
        ({"guidance_scale": 1.0, "guider": "MyGuider"}, "1 step and guidance by MyGuider. Its defaults above are"),
        (
            {"guidance_scale": 2.0, "guide_scale": 1.5},
            "1 step, an autoguidance scale of 1.5 and a guidance scale of 2.0. ",
        ),
    ],
)
def test_with_what_the_numbers_were_measured(folder, tmp_path, report, words):
    """And whether these are the defaults of today: of one step, and of guidance scale 1."""
    setting, path = folder
    shutil.copytree(path, tmp_path / "m")
    (tmp_path / "m/evaluation").mkdir()
    row = {"question": "alike?", "name": "FID", "value": 12.5}
    (tmp_path / "m/evaluation/report.json").write_text(
        json.dumps({"measures": [row], "num_samples": 9, "num_inference_steps": 1} | report)
    )
    text = write_card(tmp_path / "m").read_text()
    if setting != "none":
        assert f"9 samples. The samples were drawn with {words}" in text
    elif set(report) == {"guidance_scale"}:  # which p(x) had no use for
        assert "9 samples. The samples were drawn with 1 step.\n" in text and "guidance_scale" not in text


def test_the_hub_accepts_the_metadata(folder, hub):
    _, path = folder
    ModelCard.load(path / "README.md").validate()
    assert "POST /api/validate-yaml" in hub.requests


def test_facts_of_a_latent_model(tmp_path):
    from pipelines_common import tiny_vae

    quiet(UnconditionalPipeline(**make_components("none", vae=tiny_vae()))).save_pretrained(tmp_path / "latent")
    facts = CardFacts.of_folder(tmp_path / "latent")
    assert facts.latent and facts.num_channels == 3
    from cond_pipelines import ConditionalPipeline

    image = quiet(ConditionalPipeline.from_pretrained(tmp_path / "latent"))(batch_size=1, num_inference_steps=1).images[
        0
    ]
    assert facts.resolution_px == image.width
    assert f"{image.width} x {image.width} px colour" in str(render_card(facts, "me/latent"))


def test_no_model(tmp_path):
    with pytest.raises(ValueError, match="no model of cond_pipelines"):
        CardFacts.of_folder(tmp_path)
