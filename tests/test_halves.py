"""Two halves: statistics with known answers, one tiny run, resumed; every error in one line."""

import json
import os
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from at_an_event import signal_at
from training_common import TINY

from cond_pipelines.cli import main
from cond_pipelines.data.load import load_data
from cond_pipelines.evaluation import measures as m
from cond_pipelines.evaluation.halves import (
    Nearest,
    agreement,
    final_rows,
    frechet_of_rows,
    from_step,
    unlikeness,
    verdict,
    where_to_stop,
)
from cond_pipelines.halves.arguments import HalvesConfig, parse_args
from cond_pipelines.halves.report import lines_of
from cond_pipelines.halves.run import run_halves
from cond_pipelines.networks.pretrained import load_pipeline
from cond_pipelines.training.config import TrainingConfig
from cond_pipelines.training.ema import put_snapshot, snapshots
from cond_pipelines.training.failures import Interrupted


# ----------------------------------------------------------------------------------------------- known answers
def planted(share, count=256, size=400, dim=16, seed=0, biased=False):
    """Samples of which a share are copies of their model's half, and the others new, and both halves.

    biased: all samples, of both models, lie where only the first half has images.
    """
    rng = np.random.default_rng(seed)
    halves = [rng.standard_normal((size, dim)).astype(np.float32) for _ in range(2)]
    if biased:
        halves[0][: size // 2, 0] += 6
    samples = []
    for half in halves:
        new = rng.standard_normal((count, dim)).astype(np.float32) + 6 * biased * np.eye(1, dim, dtype=np.float32)
        copies = half[rng.integers(len(half), size=count)] + 1e-3 * rng.standard_normal((count, dim)).astype(np.float32)
        samples.append(np.where((rng.random(count) < share)[:, None], copies, new))
    return Nearest.of(samples, halves), samples, halves


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 1.0])
def test_the_attributable_share_is_the_share_of_copies(share):
    near, _, _ = planted(share)
    low, high = near.interval
    assert low <= share <= high and near.attributable == pytest.approx(share, abs=0.1) and high - low < 0.2
    assert (near.p_value < 1e-3) == (share >= 0.5) or share == 0.1
    assert np.median(near.ratios) == pytest.approx(1, abs=0.1) if share < 0.5 else np.median(near.ratios) < 0.9


def test_a_half_that_is_nearer_to_everything_is_no_memory():
    """Every sample, of either model, is nearest to an image of the first half: it cancels out."""
    near, _, _ = planted(0.0, biased=True)
    first, second = (near.own < near.other).mean(axis=0)
    assert first > 0.9 and second < 0.1
    assert near.interval[0] <= 0 <= near.interval[1] and near.p_value > 0.05


def test_equal_distances_count_half():
    ones = np.ones((10, 2))
    assert Nearest(ones, ones).attributable == 0 and (Nearest(ones, ones).leans == 0).all()


def test_the_interval_holds_the_share_as_often_as_it_says():
    rng, held = np.random.default_rng(0), {0.0: 0, 0.3: 0, 0.9: 0}
    for share in held:
        for _ in range(200):
            copy = rng.random((100, 2)) < share
            own_is_nearer = copy | (rng.random((100, 2)) < 0.5)
            near = Nearest(np.where(own_is_nearer, 1.0, 2.0), np.where(own_is_nearer, 2.0, 1.0))
            low, high = near.interval
            held[share] += low <= share <= high
    assert all(0.90 <= count / 200 <= 0.99 for count in held.values())


def test_agreement_is_the_share_of_noise_that_both_models_turn_into_the_same():
    rng = np.random.default_rng(0)
    first, unrelated = rng.standard_normal((2, 500, 8))
    assert agreement(first, first + 0.01, unrelated).mean() == 1
    assert agreement(first, rng.standard_normal((500, 8)), unrelated).mean() == pytest.approx(0.5, abs=0.07)


def test_the_table_of_a_memoriser_and_of_a_model_that_is_healthy():
    held_out = np.random.default_rng(9).standard_normal((50, 16)).astype(np.float32)
    for share, answer in ((1.0, "memorised"), (0.0, "generalised")):
        near, samples, halves = planted(share)
        samples = samples if share else [samples[0], samples[0] + 0.01]  # the same noise becomes the same image
        near = Nearest.of(samples, halves)
        unrelated = samples[1][::-1].copy()
        rows = {row["name"]: row for row in final_rows(near, samples, unrelated, held_out, halves)}
        assert all(row["interval"][0] <= row["value"] <= row["interval"][1] for row in rows.values())
        agrees = rows["agreement against unrelated noise"]["interval"]
        assert verdict(near.interval, agrees) == (answer if share == 0 else "memorised")
        far = rows["distance to the nearest image, to that of held-out images"]["value"]
        assert far < 0.01 if share else far == pytest.approx(1, abs=0.1)


@pytest.mark.parametrize(
    ("interval", "agrees", "answer"),
    [
        ((0.51, 0.6), (0.9, 1), "memorised"),
        ((0.3, 0.6), (0.9, 1), "leans"),
        ((0.1, 0.49), (0.6, 1), "generalised"),
        ((0.1, 0.55), (0.9, 1), "undecided"),
        ((0.0, 0.1), (0.4, 0.6), "undecided"),
    ],
)
def test_the_rule(interval, agrees, answer):
    assert verdict(interval, agrees) == answer


def test_frechet_distance_of_rows_is_that_of_the_measures():
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((40, 6)), 2 * rng.standard_normal((70, 6)) + 1
    assert frechet_of_rows(a, b) == pytest.approx(m.frechet_distance(m.Gaussian.of(a), m.Gaussian.of(b)))
    assert frechet_of_rows(a, a) == pytest.approx(0, abs=1e-9)


def test_noise_and_the_mean_image_are_not_called_generalised():
    """Both models turn the same noise into the same: they agree, and neither half is nearer."""
    rng = np.random.default_rng(0)
    images = (rng.standard_normal((1200, 3)) @ rng.standard_normal((3, 64))).astype(np.float32)  # of three directions
    halves, held_out = [images[:500], images[500:1000]], images[1000:]
    noise = 3 * rng.standard_normal((200, 64)).astype(np.float32)
    mean = images.mean(axis=0) + 1e-3 * noise
    found = {"held out": held_out, "noise": noise, "mean": mean, "half way": 0.5 * held_out + 0.5 * mean}
    unlike = {name: unlikeness([x, x], halves) for name, x in found.items()}
    assert unlike["held out"] == pytest.approx(0, abs=0.03) and unlike["mean"] == pytest.approx(1, abs=0.01)
    assert unlike["half way"] == pytest.approx(0.25, abs=0.03) and unlike["noise"] > 1  # (1 - 1/2)^2 of the variance
    near = Nearest.of([noise, noise], halves)
    assert verdict(near.interval, (0.9, 1.0)) == "generalised"
    assert verdict(near.interval, (0.9, 1.0), unlike=unlike["noise"]) == "hardly trained"
    assert verdict(near.interval, (0.9, 1.0), unlike=unlike["held out"]) == "generalised"
    assert verdict((0.6, 0.9), (0.9, 1.0), unlike=9.0) == "memorised"
    by_class = [images[np.argsort(images[:1000, 0])][i::2] for i in (0, 1)]  # sorted, as the rows of a folder are
    many = [np.repeat(half, 5, axis=0) for half in by_class]  # so many that not all are looked at
    assert unlikeness([held_out, held_out], many) == pytest.approx(0, abs=0.05)
    few = [images[:10], images[10:20]]  # the halves are as far from each other as the mean image is from either
    assert unlikeness([noise, noise], few) > 0.5 > 0.3 > unlikeness([held_out, held_out], few)
    same = np.ones((20, 64), np.float32)
    assert unlikeness([same, same], [same, same]) is None and unlikeness([noise, noise], [same[:1], same]) is None


def test_copies_of_images_that_both_halves_have_are_not_called_generalised():
    """Nine images of ten have a near-duplicate in the other half, and all samples are copies of images."""
    rng = np.random.default_rng(0)
    half = rng.standard_normal((400, 16)).astype(np.float32)
    halves = [np.concatenate([half[:360], other]) for other in rng.standard_normal((2, 40, 16)).astype(np.float32)]
    near = Nearest.of([x[rng.integers(400, size=256)] for x in halves], halves)
    assert 0.0 < near.attributable < 0.2
    assert verdict(near.interval, (0.9, 1.0)) == "generalised"
    assert verdict(near.interval, (0.9, 1.0), in_both=0.9) == "undecided"


def test_where_to_stop():
    steps, falling = [1, 2, 3, 4, 5], [5.0, 4.0, 3.0, 2.0, 1.0]
    assert from_step(steps, [0.0, 0.4, 0.1, 0.3, 0.9], 0.25) == 4  # step 2 was by chance
    stop = where_to_stop(steps, [0.0, 0.1, 0.3, 0.6, 0.9], falling)
    assert stop == {
        "leans_from_step": 3,
        "memorises_from_step": 4,
        "lowest_held_out_loss_at_step": 5,
        "loss_still_falls_when_it_leans": True,
        "stop_at_step": 2,
    }
    assert where_to_stop(steps, [0.9] * 5, [1.0, 2, 3, 4, 5])["stop_at_step"] is None
    assert where_to_stop(steps, [0.0] * 5, falling)["stop_at_step"] == 5


# --------------------------------------------------------------------------------------------------- a tiny run
TRAINING = TINY | {"max_train_steps": 2, "logging_steps": 100, "default_guidance_scale": None}
OWN = {"num_samples": 32, "sampling_steps": 1}


def config(folder, **more):
    own = {name: more.pop(name, value) for name, value in OWN.items()}
    given = {name: value for name, value in (TRAINING | more).items() if value is not None}
    return HalvesConfig(TrainingConfig(output_dir=str(folder), **given), **own, command=["--seed", "0"])


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    """A pair of models of captions, and their report."""
    folder = tmp_path_factory.mktemp("halves") / "out"
    return folder, run_halves(config(folder, conditioning="text", caption_column="caption"))


def test_both_start_from_the_same_weights_and_share_no_image(text):
    folder, _ = text
    models = [load_pipeline(folder / f"half-{half}") for half in (1, 2)]
    vocabularies = [model.tokenizer.get_vocab() for model in models]
    assert vocabularies[0] == vocabularies[1]
    datas = [
        load_data(replace(config(folder, conditioning="text", caption_column="caption").training, half=half))
        for half in (1, 2)
    ]
    assert not set(datas[0].train) & set(datas[1].train) and np.array_equal(datas[0].held_out, datas[1].held_out)
    # After one step of Adam from the same weights, no weight is further apart than both steps are long.
    first = [folder / f"half-{half}" for half in (1, 2)]
    for model, home in zip(models, first, strict=True):
        put_snapshot(model, snapshots(home)[1], 0.05)
    apart = max(
        (a - b).abs().max().item()
        for a, b in zip(models[0].unet.parameters(), models[1].unet.parameters(), strict=True)
    )
    assert 0 < apart < 3 * 2e-3


def test_the_report(text):
    folder, report = text
    assert json.loads((folder / "halves.json").read_text()) == report
    assert [point["step"] for point in report["course"]] == [1, 2] and report["num_images_of_half"] == [43, 43]
    assert report["command"] == "cond-pipelines halves --seed 0" and report["setting"] == "text"
    assert report["verdict"] == "hardly trained" and report["unlikeness"] > 0.5  # two steps
    page, lines = (folder / "halves.html").read_text(), (folder / "halves.md").read_text()
    assert page.count("data:image/png;base64,") == 2 and str(folder.parent) not in page
    for row in report["measures"]:
        assert row["name"] in page and row["name"] in lines and np.isfinite(row["value"])
    assert all(line for line in lines_of(report)) and report["verdict"] in page


def test_the_last_point_is_the_models_themselves(text):
    folder, report = text
    final = load_pipeline(folder / "half-1")
    along = load_pipeline(folder / "half-1")
    put_snapshot(along, snapshots(folder / "half-1")[2], 0.05)
    same = zip(final.unet.parameters(), along.unet.parameters(), strict=True)
    assert all(torch.allclose(a, b) for a, b in same)
    assert report["course"][-1]["held_out_loss"] != report["course"][0]["held_out_loss"]


def test_the_same_command_goes_on(text, tmp_path, capsys):
    """The first half is kept, the second is trained again and is the same; the report is the same to the last digit."""
    folder, report = text
    again = tmp_path / "again"
    shutil.copytree(folder, again)
    shutil.rmtree(again / "half-2")
    kept = (again / "half-1/model_index.json").stat().st_mtime_ns
    captions = {"conditioning": "text", "caption_column": "caption"}
    assert run_halves(config(again, **captions)) == report
    assert (again / "half-1/model_index.json").stat().st_mtime_ns == kept
    assert f"{again / 'half-1'} is finished, and kept" in capsys.readouterr().err
    with pytest.raises(ValueError, match=r"another configuration \(max_train_steps 2, and now 5\)"):
        run_halves(config(again, **captions, max_train_steps=5))
    with pytest.raises(ValueError, match=r"another configuration \(content of the data"):
        run_halves(config(again, **captions, dataset_name="test_halves:others"))


@pytest.mark.parametrize("conditioning", ["none", "class"])
def test_the_other_settings(conditioning, tmp_path):
    report = run_halves(config(tmp_path / "out", conditioning=conditioning, max_train_steps=1))
    assert [point["step"] for point in report["course"]] == [1]
    assert report["setting"] == load_pipeline(tmp_path / "out/half-2").adapter.conditioning == conditioning


def others():
    from cond_pipelines.data.shapes import load_shapes

    return load_shapes(96, seed=5)


# ------------------------------------------------------------------------------------------------------- errors
@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--half", "1"], "--half: both halves are trained"),
        (["--resume_from_checkpoint", "latest"], "--resume_from_checkpoint: the same command goes on"),
        (["--max_train_minutes", "1"], "both runs must have as many steps"),
        (["--push_to_hub"], "--push_to_hub: the two models are for comparison"),
        (["--streaming"], "--streaming: the images of a half must be known"),
        (["--optimizer", "schedulefree"], "keeps no averages along the run"),
        (["--validation_fraction", "0"], "the held-out loss is a part of the answer"),
        (["--num_samples", "5"], "--num_samples 5 must be at least 20"),
        (["--num_sampels", "50"], "did you mean"),
        (["--objective", "distillation"], "distill"),
        (["--feature_extractor", "nowhere:f"], "nowhere"),
        (["--max_train_samples", "30"], "no image is held out"),
        (["--max_train_samples", "5"], "2 images in a half: at least 6 are needed"),
    ],
)
def test_one_line_for_what_cannot_be(flags, words, tmp_path, capsys):
    data = ["--dataset_name", "training_common:shapes", "--resolution", "8", "--unet_size", "xxs"]
    with pytest.raises(SystemExit) as stop:
        main(["halves", *data, "--output_dir", str(tmp_path / "out"), *flags])
    assert stop.value.code == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: ") and words in error
    assert not (tmp_path / "out/half-1").exists()


def test_a_lora_is_refused(capsys):
    with pytest.raises(SystemExit):
        parse_args(["--train_data_dir", "x", "--train", "lora", "--pretrained_model_name_or_path", "y"])
    assert "--use_lora: the averages along the run are those of whole models" in capsys.readouterr().err


def test_a_folder_of_somebody_else_is_not_overwritten(text, tmp_path):
    folder, _ = text
    shutil.copytree(folder / "half-1", tmp_path / "out/half-1")
    for _ in range(2):  # nor taken for a half by the second call
        with pytest.raises(ValueError, match=r"half-1 is not of this command: name another --output_dir"):
            run_halves(config(tmp_path / "out", conditioning="text", caption_column="caption"))
    assert (tmp_path / "out/half-1/model_index.json").is_file() and not (tmp_path / "out/half-2").exists()


def test_a_run_that_stops_says_how_to_go_on_and_no_old_half_is_kept(text, tmp_path):
    """Begun anew with --overwrite_output_dir, and stopped in the first half: the second one of before is gone."""
    folder, _ = text
    shutil.copytree(folder, tmp_path / "out")
    signal_at("os.rename", f"{tmp_path / 'out/half-1/ema'}{os.sep}", 1, "SIGTERM")  # in the first step
    again = config(tmp_path / "out", conditioning="text", caption_column="caption", learning_rate=1e-4)
    again.training.overwrite_output_dir = True
    with pytest.raises(Interrupted, match=r"half-1/checkpoint-1; go on with the same command$"):
        run_halves(again)
    assert not (tmp_path / "out/half-2/model_index.json").exists()


def test_the_command_line():
    parsed = parse_args(
        ["--train_data_dir", "x", "--num-samples", "50", "--max_train_steps", "7", "--conditioning=class"]
    )
    assert (parsed.num_samples, parsed.training.max_train_steps, parsed.training.conditioning) == (50, 7, "class")
    assert parsed.sampling_steps == 12 and parsed.feature_extractor == "pixels"
