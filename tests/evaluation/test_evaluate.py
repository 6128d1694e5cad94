"""The command, on tiny models of the three settings."""

import base64
import html
import json
import re
import shutil
import sys

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from diffusers import FlowMatchEulerDiscreteScheduler
from diffusers.guiders import ClassifierFreeGuidance
from PIL import Image
from training_common import run

from cond_pipelines import ConditionalPipeline, UnconditionalAdapter, UnconditionalPipeline, build_unet
from cond_pipelines.cli import main
from cond_pipelines.data.shapes import load_shapes
from cond_pipelines.evaluation.compare import read_report
from cond_pipelines.evaluation.config import EvaluationConfig
from cond_pipelines.evaluation.evaluate import evaluate
from cond_pipelines.evaluation.features import CLIPScore, cached, extract, load_classifier, load_extractor
from cond_pipelines.evaluation.publish import _sweep_of, command_of, latex, write_publication
from cond_pipelines.evaluation.questions import is_measure
from cond_pipelines.evaluation.sampling import (
    Plan,
    _batches,
    _is_there,
    draw_samples,
    read_samples,
    sample_key,
)
from cond_pipelines.evaluation.sweep import _check_rehearsed, sweep
from cond_pipelines.files import own_seal
from cond_pipelines.locks import locked_folder
from cond_pipelines.sharing.card import CardFacts, write_card
from cond_pipelines.sharing.contents import copy_file
from cond_pipelines.sharing.sampler import SamplerFacts

EXTRACTOR = "training_common:few_pixels"  # 48 values an image: what takes time with more is not what is tested here
DATA = "training_common:shapes"
SETTINGS = {"none": {}, "class": {}, "text": {"caption_column": "caption"}}


@pytest.fixture(scope="module", params=SETTINGS)
def model(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("model") / "shapes"
    more = SETTINGS[request.param]
    run(folder, conditioning=request.param, validation_fraction=0.3, resolution=16, **more)
    return request.param, folder


def config(folder, **more):
    settings = {"model": str(folder), "dataset_name": DATA, "num_samples": 70, "feature_extractor": EXTRACTOR}
    settings["num_likelihood"] = 0  # but for the test of it
    return EvaluationConfig(**settings | more)


def test_the_report(model):
    setting, folder = model
    report = evaluate(config(folder, num_likelihood=8))
    assert json.loads((folder / "evaluation/report.json").read_text()) == report
    by_question = {}
    for row in report["measures"]:
        by_question.setdefault(row["question"], []).append(row["name"])
        assert is_measure(row["name"])
        assert np.isfinite(row["value"]) and row["better"] in ("higher", "lower")
        assert row["interval"][0] <= row["value"] <= row["interval"][1]
    obeys = {"none": set(), "class": {"obeys y?"}, "text": {"obeys the text?"}}[setting]
    assert set(by_question) == {"alike?", "all of it?", "new?", "likely?"} | obeys
    pictures = ["samples.png", "nearest.png"] + ["per_class.png"] * (setting == "class")
    assert all(Image.open(folder / "evaluation" / name).width > 100 for name in pictures)
    text = (folder / "evaluation/report.md").read_text()
    assert all(row["name"] in text for row in report["measures"])
    page, table = ((folder / f"evaluation/report.{end}").read_text() for end in ("html", "tex"))
    assert all(html.escape(row["name"]) in page and latex(row["name"]) in table for row in report["measures"])
    assert page.count("data:image/png;base64,") == (4 if setting == "class" else 2) and str(folder.parent) not in page
    assert f"cond-pipelines evaluate shapes --num_samples 70 --feature_extractor {EXTRACTOR}" in page
    classes = report["classes"]
    if setting == "class":
        assert np.array(classes["confusion"]).sum() == 70 and len(classes["names"]) == len(classes["confusion"])
        assert all(name in text for name in classes["names"])
        enough = np.array(classes["confusion"]).sum(axis=1) >= 10
        assert [x is not None for x in classes["kernel_distance"]] == enough.tolist()
    else:
        assert classes == {}
    card = (folder / "README.md").read_text()
    assert "Frechet distance" in card and "Not evaluated" not in card


def test_names_of_others_forge_nothing(tmp_path):
    """Of a model, a measure and a class: no element, no command of LaTeX, no line of its own."""
    evil = "</td><script>alert(1)</script>\\input{x}%\n\\end{tabular}"
    row = {"question": "obeys y?", "name": evil, "value": 1.0, "interval": [0.0, 1.0], "real": None, "better": "higher"}
    report = dict.fromkeys(("num_inference_steps", "guidance_scale", "weights", "data", "protocol"), evil)
    report |= dict.fromkeys(("num_samples", "num_train", "num_held_out"), 1)
    report |= {"model": evil, "feature_extractor": evil, "measures": [row], "classes": {"names": [evil], "auc": [None]}}
    report |= {"command": command_of(EvaluationConfig(model=evil, dataset_name=evil)), "versions": {evil: evil}}
    write_publication(report, tmp_path)
    page, table = ((tmp_path / f"report.{end}").read_text() for end in ("html", "tex"))
    assert "<script" not in page and page.count("</td>") == page.count("<td>")
    lines = table.splitlines()
    assert lines.count("\\end{tabular}") == 1 and "\\input" not in table.replace(lines[0], "")
    assert lines[0].startswith("% ") and len(lines) == 9


@pytest.mark.parametrize("model", ["class"], indirect=True)
def test_a_classifier_of_the_users(model, tmp_path):
    """A function that says "the first" to all; a transformers model, which must know the classes by the same names."""
    from transformers import ViTConfig, ViTForImageClassification

    folder = model[1]
    report = evaluate(config(folder, classifier="training_common:always_the_first"))
    found = {row["name"]: row for row in report["measures"]}["class read right by training_common:always_the_first"]
    asked = np.array(report["classes"]["confusion"]).sum(axis=1)
    assert found["value"] == pytest.approx(asked[0] / 70, rel=1e-3)
    names = report["classes"]["names"]
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 16, "patch_size": 8}
    for labels, bad in ((names, None), (["cat", *names[1:]], names[0])):
        vit = ViTConfig(**sizes, id2label=dict(enumerate(labels)), label2id={n: i for i, n in enumerate(labels)})
        ViTForImageClassification(vit).save_pretrained(tmp_path)
        (tmp_path / "preprocessor_config.json").write_text(
            '{"image_processor_type": "ViTImageProcessor", "size": {"height": 16, "width": 16}}'
        )
        if bad is None:
            assert load_classifier(str(tmp_path), dict(enumerate(names)))([Image.new("RGB", (9, 9))] * 3).shape == (
                3,
                1,
            )
        else:
            with pytest.raises(ValueError, match=f"does not know '{bad}'"):
                load_classifier(str(tmp_path), dict(enumerate(names)))


def test_clip_score_is_the_cosine(clip):
    """Of CLIP's own two projections; the same in batches of any size."""
    from transformers import AutoTokenizer, CLIPModel

    rng = np.random.default_rng(0)
    images = [Image.fromarray(rng.integers(0, 255, (16, 16, 3), dtype=np.uint8)) for _ in range(5)]
    captions = ["a red circle on white", "a blue square", None, "white", "red square on a white"]
    scores = CLIPScore(str(clip))(images, captions)
    model, tokenizer = CLIPModel.from_pretrained(clip), AutoTokenizer.from_pretrained(clip)
    for score, image, caption in zip(scores, images, captions, strict=True):
        x = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].float() / 255
        with torch.no_grad():
            out = model(pixel_values=x, **tokenizer([caption or ""], return_tensors="pt"))
        expected = torch.nn.functional.cosine_similarity(out.image_embeds, out.text_embeds).item()
        assert score == pytest.approx(max(0.0, 100 * expected), abs=1e-2)
    assert np.allclose(scores, CLIPScore(str(clip))(images, captions, batch_size=2), atol=1e-3)
    with pytest.raises(ValueError, match="--clip_model nowhere"):
        CLIPScore("nowhere")


@pytest.mark.parametrize("model", ["text"], indirect=True)
def test_captions_seen_and_unseen(model, tmp_path, clip):
    """Rows of their own: held-out captions that training never saw, combinations from a file; and the CLIP score."""
    folder = model[1]
    (tmp_path / "new.txt").write_text("a purple circle on orange\n\na striped square, tilted\n")
    more = {"unseen_captions": str(tmp_path / "new.txt"), "clip_model": str(clip), "num_samples": 40}
    report = evaluate(config(folder, output_dir=str(tmp_path / "out"), **more))
    rows = {row["name"]: row for row in report["measures"] if row["question"] == "obeys the text?"}
    titles = ["R@1 of 100 captions", "R@5 of 100 captions", "matched against shuffled, AUC", "CLIP score"]
    kinds = ["", ", captions unseen in training", ", unseen combinations"]
    pattern = re.compile(r"R@(\d) of \d+ captions")
    assert [pattern.sub(r"R@\1 of 100 captions", name) for name in rows] == [t + k for k in kinds for t in titles]
    assert all((row["real"] is None) == name.endswith("combinations") for name, row in rows.items())
    drawn = [path.name for path in (tmp_path / "out").glob("samples*") if any(path.glob("*/*.npy"))]
    assert sorted(drawn) == ["samples", "samples-captions-unseen-in-training", "samples-unseen-combinations"]
    # A caption that training saw is refused: the row would not be what it says.
    seen = next(iter(load_shapes(96)))["caption"]
    for text, words in ((seen, "is the caption of a training image"), ("", "is empty")):
        (tmp_path / "bad.txt").write_text(text)
        with pytest.raises(ValueError, match=words):
            evaluate(config(folder, output_dir=str(tmp_path / "out"), unseen_captions=str(tmp_path / "bad.txt")))


def test_classify(model):
    """Rows of its own for a class-conditional model, an error in a line for others."""
    setting, folder = model
    options = config(folder, classify=True, num_classified=12)
    if setting != "class":
        with pytest.raises(ValueError, match=r"--classify needs a class-conditional model, and this one is"):
            evaluate(options)
        return
    report = evaluate(options)
    assert report["guidance_scale"] == 1 and report["network_evaluations_per_image"] == report["num_inference_steps"]
    rows = {row["name"]: row for row in report["measures"]}
    accuracy, error = rows["held-out images classified right"], rows["calibration error of that"]
    assert accuracy["interval"][0] <= accuracy["value"] <= accuracy["interval"][1]
    assert accuracy["value"] * 12 == pytest.approx(round(accuracy["value"] * 12), abs=0.01)
    assert 0 <= error["value"] <= 1


def test_what_has_no_meaning_is_refused_before_sampling(model, tmp_path):
    setting, folder = model
    given = {"classifier": "training_common:always_the_first", "clip_model": "any", "unseen_captions": "any"}
    of = {"classifier": "class", "clip_model": "text", "unseen_captions": "text"}
    for name, value in given.items():
        if of[name] != setting:
            with pytest.raises(ValueError, match=f"--{name} needs a {of[name]}-conditional model, and this one is"):
                evaluate(config(folder, output_dir=str(tmp_path / "out"), **{name: value}))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("model", ["none", "text"], indirect=True)
def test_a_sweep(model, tmp_path, capsys):
    """A report for each setting, whose samples differ; the table, the plot, and the best as the model's default."""
    setting, folder = model
    copy = folder.parent / "swept"
    shutil.copytree(folder, copy, ignore=shutil.ignore_patterns("evaluation", "checkpoint-*"))
    flags = ["--feature_extractor", EXTRACTOR, "--num_samples", "40", "--num_likelihood", "0"]
    flags += ["--write_best", "Frechet distance"]
    scales = [] if setting == "none" else ["guidance_scale=1,3"]
    main(["evaluate", str(copy), "--dataset_name", DATA, *flags, "--sweep", *scales, "num_inference_steps=1,2"])
    reports = json.loads((copy / "evaluation/sweep.json").read_text())
    copy_file(copy, "evaluation/sweep.json", tmp_path / "to_share")
    assert json.loads((tmp_path / "to_share/evaluation/sweep.json").read_text()) == reports
    settings = [(report.get("guidance_scale"), report["num_inference_steps"]) for report in reports]
    assert settings == ([(None, 1), (None, 2)] if setting == "none" else [(1, 1), (1, 2), (3, 1), (3, 2)])
    table = (copy / "evaluation/sweep.md").read_text()
    assert len(table.splitlines()) == 2 + len(settings) and table in capsys.readouterr().out
    assert Image.open(copy / "evaluation/sweep.png").width > 500
    plot = base64.b64encode((copy / "evaluation/sweep.png").read_bytes()).decode()
    pages = list(copy.glob("evaluation/sweep/*/report.html"))
    assert len(pages) == len(settings) and all(plot in page.read_text() for page in pages)
    distances = [next(r["value"] for r in x["measures"] if r["name"] == "Frechet distance") for x in reports]
    drawn = [np.load(path) for path in sorted(copy.glob("evaluation/sweep/*/samples/*/00000.npy"))]
    pairs = ((0, 1), (0, 2), (1, 3)) if scales else ((0, 1),)
    assert not any(np.array_equal(drawn[a], drawn[b]) for a, b in pairs)
    best = reports[int(np.argmin(distances))]
    pipe = ConditionalPipeline.from_pretrained(copy)
    assert pipe.config.default_guidance_scale == best.get("guidance_scale", 1.0)
    assert pipe.config.default_num_inference_steps == best["num_inference_steps"]
    # The card shows what was measured with these defaults, and says so of others.
    assert json.loads((copy / "evaluation/report.json").read_text()) == best
    card, measured = (copy / "README.md").read_text(), CardFacts.of_folder(copy).measured
    assert f"The samples were drawn with {measured}.\n" in card and f"Its defaults are {measured}; pass" in card
    texts = [(copy / f"evaluation/report.{end}").read_text() for end in ("md", "html")]
    assert f"Frechet distance | {min(distances)} |" in card and all(f"drawn with {measured}." in x for x in texts)
    # With the defaults of before and of now: each has samples of its own.
    reports, folders = [], set()
    for steps in (3 - best["num_inference_steps"], best["num_inference_steps"]):
        pipe.register_to_config(default_num_inference_steps=steps)
        pipe.save_config(copy)
        reports.append(evaluate(config(copy, num_samples=40)))
        assert reports[-1]["num_inference_steps"] == steps
        assert plot in (copy / "evaluation/report.html").read_text()  # of the same weights
        assert "Its defaults above are others" not in (copy / "README.md").read_text()
        folders |= set(copy.glob("evaluation/samples/*"))
    assert len(folders) == 2 and reports[0]["measures"] != reports[1]["measures"]
    pipe.use_scheduler("heun")
    pipe.register_to_config(default_guidance_scale=2.5)
    pipe.save_pretrained(copy)
    card = write_card(copy).read_text()
    assert f"drawn with {CardFacts.of_folder(copy).measured}. Its defaults above are others: these numbers do" in card


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--sweep", "guidance=1,2"], "--sweep guidance=1,2: not one of guidance_scale=A,B,..., "),
        (["--sweep", "guidance_scale=1,high"], "--sweep guidance_scale=1,high: could not convert"),
        (["--write_best", "recall"], "--write_best recall has no effect without --sweep"),
        (
            ["--sweep", "num_inference_steps=1", "--write_best", "Fréchet"],
            "--write_best 'Fréchet' is no measure: Frechet",
        ),
        (["--sweep", "num_inference_steps=1,0"], "--num_inference_steps 0 must be at least 1"),
        (["--sweep", "num_inference_steps=1", "guide.scale=1,nan"], "--guide_scale nan must be a finite number"),
    ],
)
def test_bad_sweeps(model, tmp_path, capsys, flags, words):
    """Refused before anything is sampled."""
    of_data = ["--dataset_name", DATA, "--feature_extractor", EXTRACTOR, "--output_dir", str(tmp_path / "out")]
    with pytest.raises(SystemExit):
        main(["evaluate", str(model[1]), *of_data, *flags])
    assert words in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("model", ["none"], indirect=True)
def test_a_measure_of_other_models_ends_a_sweep_before_its_samples(model, tmp_path, capsys):
    flags = ["--dataset_name", DATA, "--feature_extractor", EXTRACTOR, "--output_dir", str(tmp_path / "out")]
    flags += ["--num_samples", "500", "--num_likelihood", "0", "--sweep", "num_inference_steps=1,2"]
    with pytest.raises(SystemExit):
        main(["evaluate", str(model[1]), *flags, "--write_best", "class read right by a linear probe"])
    assert "'class read right by a linear probe' is not one of Frechet distance, " in capsys.readouterr().err
    drawn = [np.load(path) for path in (tmp_path / "out/sweep").rglob("samples/*/*.npy")]
    assert sum(map(len, drawn)) <= 64  # a rehearsal


@pytest.mark.parametrize(
    ("measure", "is_known"),
    [
        ("labels separated by linear probes, mean AUC of 3", True),
        ("tags: labels separated by x:y, mean AUC of 1", True),
        ("label: labels separated by x:y, mean AUC of 1", False),
        ("R@1 of 100 captions", True),
        ("R@5 of 100 captions", False),
        ("precision and recall", False),
    ],
)
def test_a_rehearsal_knows_what_more_samples_count(measure, is_known):
    """Of 64 samples a rare label has no number, and fewer captions are there to choose from."""
    rows = [{"name": name} for name in ("precision", "R@1 of 76 captions")]
    several = {"names": ["a"], "auc": [None]}
    report = {"measures": rows, "classes": several, "classes_of_conditions": {"tags": several, "label": {}}}
    if is_known:
        _check_rehearsed(report, measure)
    else:
        with pytest.raises(ValueError, match="is not one of precision, R@1"):
            _check_rehearsed(report, measure)


def test_steps_that_the_scheduler_cannot_make_end_a_sweep_before_its_samples(tmp_path, capsys):
    model = run(tmp_path / "model", conditioning="none", max_train_steps=1, objective="ddpm", scheduler="DDPMScheduler")
    flags = ["--dataset_name", DATA, "--feature_extractor", EXTRACTOR, "--output_dir", str(tmp_path / "out")]
    with pytest.raises(SystemExit):
        main(["evaluate", str(model), *flags, "--sweep", "num_inference_steps=1,5000"])
    assert "DDPMScheduler cannot make 5000 steps" in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_the_plot_of_a_sweep_of_another_model_is_not_shown(tmp_path):
    """Models on the Hub have no fingerprint, and are all evaluated in evaluation/ where nothing is given."""
    (tmp_path / "sweep.png").write_bytes(b"plot")
    for weights, model, is_shown in ((None, "them/a", True), (None, "them/b", False), ("1", "them/b", False)):
        (tmp_path / "sweep.json").write_text(json.dumps([{"weights": None, "model": "them/a"}]))
        assert bool(_sweep_of({"weights": weights, "model": model}, tmp_path)) == is_shown


@pytest.mark.parametrize("model", ["class"], indirect=True)
def test_the_default_is_all_that_the_best_was_measured_with(model, tmp_path):
    """Also what was not swept; else its report would not hold for the default."""
    copy = tmp_path / "swept"
    shutil.copytree(model[1], copy, ignore=shutil.ignore_patterns("evaluation", "checkpoint-*"))
    given = {"num_samples": 20, "num_inference_steps": 3, "write_best": "Frechet distance", "num_likelihood": 0}
    reports = sweep(config(copy, sweep=["guidance_scale=1,2"], **given))
    assert [report["num_inference_steps"] for report in reports] == [3, 3]
    assert ConditionalPipeline.from_pretrained(copy).config.default_num_inference_steps == 3
    assert "Its defaults above are others" not in (copy / "README.md").read_text()


@pytest.mark.parametrize("model", ["none"], indirect=True)
def test_a_file_of_the_users_stays_in_the_output_folder(model, tmp_path):
    (tmp_path / "written").write_text("by me")
    evaluate(config(model[1], num_samples=6, num_inference_steps=1, output_dir=str(tmp_path)))
    assert (tmp_path / "written").read_text() == "by me" and not list(tmp_path.glob("written-*"))


@pytest.mark.parametrize("model", ["none"], indirect=True)
def test_no_scale_for_what_has_no_guidance(model, tmp_path, capsys):
    """p(x) has none, but for that of a guide, whose scale may be a plain one."""
    folder, out = model[1], str(tmp_path / "out")
    flags = ["--feature_extractor", EXTRACTOR, "--num_samples", "32", "--num_likelihood", "0", "--output_dir", out]
    wrong = {
        "--guidance_scale 2": "error: guidance_scale 2 has no effect, since p(x) has no classifier-free guidance: ",
        "--sweep guidance_scale=1,2": "error: guidance_scale 1 has no effect, since p(x) has no classifier-free",
        "--sweep guide.scale=1,2": "error: guide_scale 1 needs a guide, and this model has none: train one with --auto",
    }
    for words, message in wrong.items():
        with pytest.raises(SystemExit):
            main(["evaluate", str(folder), "--dataset_name", DATA, *flags, *words.split()])
        assert message in capsys.readouterr().err and not (tmp_path / "out").exists()
    assert "guidance_scale" not in evaluate(config(folder, output_dir=out, num_samples=32))
    pipe = ConditionalPipeline.from_pretrained(folder)
    guide = build_unet("xxs", sample_size=16, channels=3)
    UnconditionalPipeline(**pipe.components | {"guide": guide}).save_pretrained(tmp_path / "guided")
    guided = [
        evaluate(config(tmp_path / "guided", output_dir=f"{out}/{name}", num_samples=32, **{name: 1.5}))
        for name in ("guidance_scale", "guide_scale")
    ]
    assert guided[0]["guidance_scale"] == guided[1]["guide_scale"] == 1.5
    assert [report["network_evaluations_per_image"] for report in guided] == [2, 2]
    assert guided[0]["measures"] == guided[1]["measures"]
    for report in guided:
        assert SamplerFacts.of_report(report) == SamplerFacts(1, 1.5, scheduler="FlowMatchEulerDiscreteScheduler")
    with pytest.raises(ValueError, match="guidance_scale 2 has no effect"):
        evaluate(config(tmp_path / "guided", output_dir=out, guidance_scale=2.0, guide_scale=1.5))


def test_again_it_samples_nothing_and_says_the_same(model):
    _, folder = model
    first = evaluate(config(folder))
    files = {path: path.stat().st_mtime_ns for path in folder.glob("evaluation/**/*.npy")}
    assert files
    again = evaluate(config(folder))
    assert again["measures"] == first["measures"]
    assert {path: path.stat().st_mtime_ns for path in folder.glob("evaluation/**/*.npy")} == files


@pytest.mark.parametrize("model", ["class", "text"], indirect=True)
def test_the_number_of_real_images_decides_nothing_about_the_samples(model, tmp_path):
    _, folder = model
    reports = [evaluate(config(folder, num_samples=20, num_real=n, output_dir=str(tmp_path))) for n in (20, 40, 10_000)]
    assert [report["num_train"] for report in reports[:2]] == [20, 40] and reports[2]["num_train"] > 40
    assert len(list(tmp_path.glob("samples/*"))) == 1


def arrays(folder, plan):
    return np.stack(list(read_samples(folder, plan)))


def test_samples_do_not_depend_on_where_they_were_cut_off_nor_on_how_many_there_are(model, tmp_path):
    _, folder = model
    pipe = ConditionalPipeline.from_pretrained(folder)
    plan = Plan([None], 100)
    key = sample_key(pipe, plan)
    assert draw_samples(pipe, plan, tmp_path / "whole", Accelerator(), key) == 128
    shutil.copytree(tmp_path / "whole", tmp_path / "cut")
    (tmp_path / "cut/00001.npy").unlink()
    (tmp_path / "cut/00002.unfinished").write_bytes(b"half")
    assert draw_samples(pipe, plan, tmp_path / "cut", Accelerator(), key) == 32
    assert np.array_equal(arrays(tmp_path / "whole", plan), arrays(tmp_path / "cut", plan))
    assert draw_samples(pipe, Plan([None], 40), tmp_path / "few", Accelerator(), key) == 64
    assert np.array_equal(arrays(tmp_path / "few", Plan([None], 40)), arrays(tmp_path / "whole", plan)[:40])
    assert draw_samples(pipe, plan, tmp_path / "few", Accelerator(), key) == 64  # the others
    assert np.array_equal(arrays(tmp_path / "few", plan), arrays(tmp_path / "whole", plan))
    large = Plan([None], 100, batch_size=50)  # other files, the same images but for rounding
    assert draw_samples(pipe, large, tmp_path / "large", Accelerator(), sample_key(pipe, large)) == 100
    apart = arrays(tmp_path / "large", large).astype(int) - arrays(tmp_path / "whole", plan)
    assert np.abs(apart).max() <= 1 and sample_key(pipe, large) != key


def test_each_size_has_its_share_and_its_order():
    """Of images of several sizes: a prefix is a prefix, and no sample is missed."""
    rng = np.random.default_rng(0)
    sizes = [[(8, 16), (16, 8), (12, 12)][i] for i in rng.integers(3, size=37)]
    plan = Plan(list(range(37)), 200, sizes)
    of_size = {}
    for batch in _batches(plan):
        assert len(batch.samples) == 32 and {plan.size(i) for i in batch.samples} == {batch.size}
        of_size.setdefault(batch.size, []).extend(batch.samples)
    for size, samples in of_size.items():
        assert samples == [i for i in range(samples[-1] + 1) if plan.size(i) == size]
    assert set(range(200)) <= {i for samples in of_size.values() for i in samples}
    few = {batch.name: batch for batch in _batches(Plan(list(range(37)), 50, sizes))}
    assert few.items() <= {batch.name: batch for batch in _batches(plan)}.items()


def test_what_draws_decides_which_samples_are_measured(model):
    """Signs and order of weights, scheduler, scale, steps, dtype, seed: each has samples of its own."""
    _, folder = model
    pipe, plan = ConditionalPipeline.from_pretrained(folder), Plan([None], 8)
    keys = [
        sample_key(pipe, plan),
        sample_key(pipe, plan, seed=1),
        sample_key(pipe, plan, settings={"guidance_scale": 9.0}),
    ]
    keys.append(sample_key(pipe, plan, settings={"num_inference_steps": 7}))
    keys.append(sample_key(pipe, Plan(["other"], 8)))
    weight = next(p for p in pipe.unet.parameters() if p.numel() > 1 and p.data.flatten()[0] != p.data.flatten()[1])
    for change in (lambda x: -x, lambda x: x.flatten().flip(0).view_as(x)):
        weight.data = change(weight.data)
        keys.append(sample_key(pipe, plan))
    for name in ("adapter", "text_encoder"):
        for weight in list(getattr(pipe.components.get(name), "parameters", list)())[:1]:
            weight.data.add_(1)
            keys.append(sample_key(pipe, plan))
    pipe.register_to_config(default_guidance_scale=3.0)
    keys.append(sample_key(pipe, plan))
    assert sample_key(pipe, plan, settings={"guidance_scale": 3.0}) == keys[-1]  # a default is a setting
    pipe.unet.double()
    keys.append(sample_key(pipe, plan))
    pipe.use_scheduler("unipc")
    keys.append(sample_key(pipe, plan))
    pipe.register_to_config(objective={"name": "edm"})
    keys.append(sample_key(pipe, plan))
    assert len({json.dumps(key) for key in keys}) == len(keys)


def test_the_command(model, capsys):
    setting, folder = model
    extractor = "pixels" if setting == "none" else EXTRACTOR
    main(["evaluate", str(folder), "--dataset_name", DATA, "--num_samples", "70", "--feature_extractor", extractor])
    assert "Frechet distance: " in capsys.readouterr().out


def test_images_that_are_no_numbers_are_not_measured_as_black_ones(tmp_path):
    unet = build_unet("xxs", sample_size=8, block_out_channels=(32, 32))
    torch.nn.init.constant_(unet.conv_out.bias, float("nan"))
    pipe = UnconditionalPipeline(unet, FlowMatchEulerDiscreteScheduler(), UnconditionalAdapter.for_unet(unet))
    plan = Plan([None], 3, batch_size=2)
    with pytest.raises(
        ValueError, match=r"draws values that are no numbers \(seed 0, samples from 0 on\): its weights"
    ):
        draw_samples(pipe, plan, tmp_path, Accelerator(cpu=True), sample_key(pipe, plan), {"num_inference_steps": 1})
    assert not list(tmp_path.glob("*.npy"))


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ([], "name a model"),
        (["nowhere", "--num_samples", "0"], "--num_samples 0"),
        (["nowhere", "--seed", "-1"], "--seed -1 must not be negative"),
        (["nowhere", "--num_samples", "40", "--sampling_batch_size", "41"], "draws more than --num_samples 40: give a"),
        (["nowhere", "--seed", str(2**63)], f"--seed {2**63} must be at most"),
        (
            ["{folder}", "--feature_extractor", "no_module:f", "--num_samples", "70", "--dataset_name", DATA],
            "no_module:f",
        ),
        (
            ["{folder}", "--feature_extractor", "nowhere/model", "--num_samples", "70", "--dataset_name", DATA],
            "--feature_extractor nowhere/model",
        ),
        (["{folder}", "--train_data_dir", "nowhere", "--num_samples", "70"], "--train_data_dir nowhere"),
    ],
)
def test_one_line_for_what_cannot_be(model, args, words, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["evaluate", *(a.format(folder=model[1]) for a in args)])
    assert stop.value.code == 2
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert last.startswith("error: ") and words in last


def fails_on_images(images):
    raise ValueError("no such thing")


def of_three_numbers(images):
    return np.zeros(3)


@pytest.mark.parametrize(
    ("setting", "given", "words"),
    [
        ("class", {"classifier": "no_module:f"}, "no_module"),
        ("class", {"classifier": "test_evaluate:fails_on_images"}, "no such thing"),
        ("class", {"feature_extractor": "test_evaluate:of_three_numbers"}, r"gave \(3,\) for 2 images"),
        ("text", {"clip_model": "nowhere/clip"}, "--clip_model nowhere/clip"),
        ("text", {"unseen_captions": "nowhere.txt"}, "nowhere.txt"),
        ("none", {"num_samples": 5}, "--num_samples 5: precision and recall need at least 6"),
        ("none", {"features_dir": "{tmp}/file/features"}, "cannot be written"),
    ],
)
def test_nothing_is_sampled_where_something_fails_later(model, tmp_path, setting, given, words):
    if model[0] != setting:
        return
    (tmp_path / "file").write_text("a file, so no folder")
    given = {name: value.format(tmp=tmp_path) if isinstance(value, str) else value for name, value in given.items()}
    with pytest.raises(ValueError, match=words):
        evaluate(config(model[1], output_dir=str(tmp_path / "out"), **given))
    assert not list(tmp_path.rglob("*.npy"))


@pytest.mark.parametrize(
    ("row", "words"),
    [({"name": "x"}, "lacks value, better, interval"), ({"name": "x", "value": 1, "interval": [1]}, "interval is")],
)
def test_compare_names_what_a_report_lacks(tmp_path, row, words):
    (tmp_path / "report.json").write_text(json.dumps({"measures": [row]}))
    with pytest.raises(ValueError, match=f"report.json, measures.* {words}") as error:
        read_report(tmp_path / "report.json")
    assert "__init__" not in str(error.value)


def test_compare(model, tmp_path, capsys):
    """A report with itself: nothing is beyond chance. One made better: it is found. Other features: refused."""
    _, folder = model
    report = evaluate(config(folder))
    (tmp_path / "b").mkdir()
    better = json.loads(json.dumps(report))
    for row in better["measures"]:
        if row["name"] == "Frechet distance":
            row["value"], row["interval"] = 0.01, [0.009, 0.011]
    for name, content in (
        ("same", report),
        ("better", better),
        ("other", report | {"feature_extractor": "x"}),
        ("clip", report | {"clip_model": "x"}),
        ("fewer", report | {"measures": report["measures"][1:]}),
    ):
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    main(["compare", str(folder), str(tmp_path / "same.json")])
    told = capsys.readouterr().out
    assert "within chance" in told and "better" not in told
    main(["compare", str(folder), str(tmp_path / "better.json")])
    line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("Frechet"))
    assert line.endswith("B is better")
    first = report["measures"][0]["name"]
    for files, verdict in ((("same", "fewer"), "only A has it"), (("fewer", "same"), "only B has it")):
        main(["compare", *(str(tmp_path / f"{file}.json") for file in files)])
        lines = capsys.readouterr().out.splitlines()
        assert len(lines) == 1 + len(report["measures"])
        assert next(line for line in lines if line.startswith(first)).endswith(verdict)
    with pytest.raises(SystemExit):
        main(["compare", str(folder), str(tmp_path / "other.json")])
    assert f"differ in feature_extractor ({EXTRACTOR} and x)" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["compare", str(folder), str(tmp_path / "clip.json")])
    assert "differ in clip_model (None and x)" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["compare", str(folder), str(tmp_path / "b")])
    assert "is no evaluation's report.json" in capsys.readouterr().err


def test_a_real_vision_model(tmp_path):
    """Of tiny size: its own preprocessing, without torchvision."""
    from transformers import Dinov2Config, Dinov2Model

    Dinov2Model(
        Dinov2Config(hidden_size=32, num_hidden_layers=1, num_attention_heads=2, image_size=28)
    ).save_pretrained(tmp_path)
    preprocessing = {"image_processor_type": "BitImageProcessor", "size": {"shortest_edge": 28}, "crop_size": 28}
    preprocessing |= {"image_mean": [0.5] * 3, "image_std": [0.25] * 3}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(preprocessing))
    extractor = load_extractor(str(tmp_path))
    images = [Image.new("RGB", (16, 16), (i, 0, 0)) for i in range(5)]
    features = extract(extractor, images, 5, batch_size=2)
    assert features.shape == (5, 32) and features.dtype == np.float32
    assert np.allclose(features[:2], extractor(images[:2]), atol=1e-5)
    assert "torchvision" not in sys.modules
    # The middle of an oblong image is cut out, not the whole of it pressed into a square.
    oblong = Image.new("RGB", (56, 28))
    oblong.paste((255, 0, 0), (0, 0, 14, 28))  # outside of the middle
    assert np.allclose(extractor([oblong]), extractor([Image.new("RGB", (28, 28))]), atol=1e-5)


@pytest.mark.parametrize(
    ("bad", "words"), [(lambda x: np.zeros(3), r"\(3,\) for 2 images"), (lambda x: np.full((2, 4), np.nan), "finite")]
)
def test_a_bad_extractor(bad, words):
    with pytest.raises(ValueError, match=words):
        extract(bad, [Image.new("RGB", (4, 4))] * 2, 2)


@pytest.mark.parametrize("damage", ["zeroed", "cut off", "empty"])
def test_damaged_features_and_samples_are_made_again(tmp_path, damage, capsys):
    """As a power cut leaves them."""
    cached(tmp_path, {"a": 1}, lambda: np.ones((4, 2), np.float32))
    (path,) = tmp_path.glob("features-*.npy")
    good = path.read_bytes()
    path.write_bytes({"zeroed": bytes(len(good)), "cut off": good[:-40], "empty": b""}[damage])
    assert not _is_there(path, own_seal({"a": 1}))  # as draw_samples looks for its parts
    again = cached(tmp_path, {"a": 1}, lambda: np.full((4, 2), 2, np.float32))
    assert again.sum() == 16 and cached(tmp_path, {"a": 1}, list).sum() == 16
    assert "is damaged" in capsys.readouterr().err


def test_one_evaluation_at_a_time(model, tmp_path):
    with (
        locked_folder(tmp_path, is_main_process=True),
        pytest.raises(ValueError, match=r"is in use by process \d+ on "),
    ):
        evaluate(config(model[1], output_dir=str(tmp_path)))


@pytest.mark.parametrize("model", ["class"], indirect=True)
def test_a_model_with_a_guider_and_few_steps(model, tmp_path):
    """What it saves with itself is how it is evaluated; a scale that is given replaces the guider."""
    folder = model[1]
    copy = shutil.copytree(folder, tmp_path / "model", ignore=shutil.ignore_patterns("evaluation", "checkpoint*"))
    pipe = ConditionalPipeline.from_pretrained(copy).use_scheduler("unipc")
    pipe.register_modules(guider=ClassifierFreeGuidance(3.0))
    pipe.register_to_config(default_num_inference_steps=4)
    pipe.save_pretrained(copy)
    report = evaluate(config(copy, output_dir=str(tmp_path / "guided"), num_samples=8))
    assert (report["num_inference_steps"], report["guider"]) == (4, "ClassifierFreeGuidance")
    assert report["network_evaluations_per_image"] == 8
    same = evaluate(config(copy, output_dir=str(tmp_path / "scale"), num_samples=8, guidance_scale=3.0))
    assert "guider" not in same and [r["value"] for r in same["measures"]] == [r["value"] for r in report["measures"]]
    labels = list(pipe.id2label.values())[:2]
    assert len(pipe.classify(torch.zeros(1, 3, 16, 16), labels, num_noise=4).probabilities) == 1
