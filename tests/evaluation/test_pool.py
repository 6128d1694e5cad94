"""Several seeds as one report: known answers, the written pages, every error."""

import json

import numpy as np
import pytest
import yaml
from PIL import Image
from scipy.stats import binomtest

from cond_pipelines.cli import main
from cond_pipelines.evaluation.compare import read_report
from cond_pipelines.evaluation.pool import pool, pool_and_write
from cond_pipelines.evaluation.questions import RANGES, range_of

SHARED = {
    **{"setting": "unconditional", "feature_extractor": "pixels", "protocol": "16 x 16 px", "clip_model": None},
    **{"unseen_captions": None, "resolution_px": 16, "data": "abc", "num_train": 90, "num_held_out": 10},
    **{"num_samples": 64, "num_inference_steps": 30, "guidance_scale": 1.0, "versions": {"torch": "2"}, "classes": {}},
}

NAMES = ("Frechet distance", "precision")
MORE = {"question": "alike?", "name": "more", "value": 1.0, "interval": None, "real": None, "better": "higher"}


def report(number, frechet, precision=0.9, **more):
    rows = [("Frechet distance", frechet, "lower", 0.5), ("precision", precision, "higher", None)]
    return SHARED | {
        "model": f"seed_{number}",
        "weights": f"w{number}",
        "command": f"cond-pipelines evaluate seed_{number} --num_samples 64",
        "measures": [
            {"question": "alike?", "name": n, "value": v, "interval": [v, v], "real": r, "better": b}
            for n, v, b, r in rows
        ],
        **more,
    }


def folder_of(home, number, frechet, config=None, **more):
    """A model's folder with its evaluation."""
    folder = home / f"seed_{number}"
    (folder / "evaluation").mkdir(parents=True)
    (folder / "model_index.json").write_text("{}")
    (folder / "training_config.yaml").write_text(
        yaml.safe_dump({"seed": number, "learning_rate": 1e-3} | (config or {}))
    )
    (folder / "evaluation/report.json").write_text(json.dumps(report(number, frechet, **more)))
    Image.new("RGB", (40, 40), "red").save(folder / "evaluation/samples.png")
    return str(folder)


def test_a_scale_that_had_no_effect_is_no_difference(tmp_path):
    """Reports of p(x) of an earlier version have one."""
    px = {"setting": "none", "network_evaluations_per_image": 30}
    old = folder_of(tmp_path, 1, 2.0, guidance_scale=3.5, **px)
    new = folder_of(tmp_path, 2, 3.0, **px)
    path = tmp_path / "seed_2/evaluation/report.json"
    path.write_text(json.dumps({k: v for k, v in json.loads(path.read_text()).items() if k != "guidance_scale"}))
    assert "guidance_scale" not in pool_and_write([old, new], str(tmp_path / "pool"))
    assert ", drawn with 30 steps. " in (tmp_path / "pool/report.md").read_text()


def test_the_mean_and_students_interval():
    """1, 2, 3: mean 2, s 1, t(0.975, 2) = 4.3027; no distance is below 0 and no share above 1."""
    frechet, precision = pool([report(i, 10.0 + i, 0.95 + 0.05 * i / 2) for i in (1, 2, 3)])["measures"]
    assert frechet["value"] == 12 and frechet["seeds"] == [11, 12, 13]
    assert frechet["interval"] == pytest.approx([12 - 4.3027 / 3**0.5, 12 + 4.3027 / 3**0.5], abs=1e-2)
    assert frechet["real"] == 0.5 and precision["real"] is None
    assert pool([report(i, float(i)) for i in (1, 2, 3)])["measures"][0]["interval"][0] == 0
    assert precision["interval"][1] == 1


def test_the_interval_holds_the_mean_of_all_seeds_as_often_as_it_says():
    """Each value has the spread of seeds and that of its own samples: of 400 pools of three 95 % hold the truth."""
    rng = np.random.default_rng(0)
    held = 0
    for _ in range(400):
        values = 50 + rng.normal(0, 2, 3) + rng.normal(0, 1, 3)
        low, high = pool([report(i, v) for i, v in enumerate(values.tolist())])["measures"][0]["interval"]
        held += low <= 50 <= high
    assert 0.92 <= held / 400 <= 0.98


@pytest.mark.parametrize("count", [2, 3, 5])
@pytest.mark.parametrize(("share", "between"), [(0.97, 0.0), (0.97, 0.02), (0.8, 0.05), (0.5, 0.0)])
def test_the_interval_of_a_share_holds_the_mean_of_all_seeds(count, share, between):
    """Few seeds, which draw 150 samples each; also without a difference between seeds, and near 1."""
    rng, held = np.random.default_rng(0), 0
    size = share * (1 - share) / between**2 - 1 if between else 0.0
    for _ in range(300):
        of_seeds = rng.beta(share * size, (1 - share) * size, count) if between else np.full(count, share)
        rows = []
        for right in rng.binomial(150, of_seeds):
            ends = binomtest(int(right), 150).proportion_ci(method="wilson")
            rows.append(MORE | {"name": "precision", "value": right / 150, "interval": [ends.low, ends.high]})
        low, high = pool([report(i, 1.0) | {"measures": [each]} for i, each in enumerate(rows)])["measures"][0][
            "interval"
        ]
        assert 0 <= low < high <= 1
        held += low <= share <= high
    assert 0.90 <= held / 300 <= (0.99 if between else 1.0)  # samples alone: the wider of two right intervals


def test_seeds_that_agree_have_the_interval_of_their_samples():
    """That of a mean of three: narrower by 3^(1/2); and nothing to go by where the reports have no interval."""
    rows = {"name": "precision", "value": 1.0, "interval": [0.97, 1.0]}
    pooled = pool([report(i, 1.0) | {"measures": [MORE | rows]} for i in range(3)])["measures"][0]
    assert pooled["interval"] == pytest.approx([1 - 0.03 / 3**0.5, 1], abs=1e-4)
    pooled = pool([report(i, 1.0) | {"measures": [MORE]} for i in range(3)])["measures"][0]
    assert pooled["interval"] == [1, 1]


def test_every_measure_has_a_range():
    assert all(low < high for low, high in RANGES.values())
    assert range_of("colour: precision") == (0, 1) == range_of("class read right by a linear probe")
    assert range_of("something of a third party") == (-np.inf, np.inf)


def test_the_pages_and_two_pools_side_by_side(tmp_path, capsys):
    for name, start in (("a", 10.0), ("b", 20.0)):
        models = [folder_of(tmp_path / name, i, start + 0.1 * i) for i in (1, 2, 3)]
        main(["compare", *models, "--pool", "--output_dir", str(tmp_path / f"pool_{name}")])
    line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("Frechet"))
    assert line.split()[2] == "10.2" and line.endswith("10.1, 10.2, 10.3")
    page, table, text = ((tmp_path / "pool_a" / f"report.{end}").read_text() for end in ("html", "tex", "md"))
    for number in (1, 2, 3):
        assert f"cond-pipelines evaluate seed_{number} --num_samples 64" in page and f"evaluate seed_{number}" in table
    assert "cond-pipelines compare seed_1 seed_2 seed_3 --pool" in page and str(tmp_path) not in page + table + text
    assert page.count("data:image/png;base64,") == 3 and "10.1, 10.2, 10.3" in page and "10.1, 10.2, 10.3" in text
    assert "mean of 3 seeds" in table and table.count(r"\\") == 3
    main(["compare", str(tmp_path / "pool_a"), str(tmp_path / "pool_b")])
    shown = capsys.readouterr().out
    assert "A is better" in shown and "precision" in shown
    for others, words in (
        ([str(tmp_path / "pool_a"), models[0]], "differ in is_pool"),
        ([str(tmp_path / "pool_a"), str(tmp_path / "pool_b"), "--pool"], "report 1 is a pool already"),
    ):
        with pytest.raises(SystemExit):
            main(["compare", *others])
        assert words in capsys.readouterr().err
    assert read_report(tmp_path / "pool_a")["num_seeds"] == 3


@pytest.mark.parametrize(
    ("second", "flags", "words"),
    [
        ({}, [], "3 reports: compare takes two, or add --pool"),
        ({}, ["--output_dir", "x"], "--output_dir x has no effect without --pool"),
        ({"weights": "w1"}, ["--pool"], "reports 1 and 2 are of the same weights (w1)"),
        ({"config": {"seed": 1}}, ["--pool"], "are both of seed 1: train with others"),
        (
            {"config": {"learning_rate": 0.5}},
            ["--pool"],
            "another configuration (learning_rate 0.5, and of the first 0.001",
        ),
        ({"num_train": 5}, ["--pool"], "differ in num_train (90 and 5)"),
        ({"guidance_scale": 2.0}, ["--pool"], "differ in guidance_scale (1.0 and 2.0)"),
        ({"measures": []}, ["--pool"], "the report of seed_2 has no 'Frechet distance'"),
        ({"measures": [*report(2, 2.0)["measures"], MORE]}, ["--pool"], "the report of seed_1 has no 'more'"),
        ({"measures": [MORE | {"value": float("nan")}]}, ["--pool"], "report.json: 'more' is no number (NaN)"),
        ({"measures": [MORE | {"real": "x"}]}, ["--pool"], "measures: real is 'x', which is not of type float"),
        ({"measures": [MORE | {"name": n} for n in NAMES]}, ["--pool"], "differ in better (lower and higher)"),
        ({"num_held_out": None}, ["--pool"], "num_held_out is 'None', which is not of type int"),
        (
            {},
            ["--pool", "--output_dir", "seed_1/evaluation"],
            "holds a model or the report of one: name another folder",
        ),
        ({}, ["--pool", "--output_dir", "seed_1"], "holds a model or the report of one: name another folder"),
    ],
)
def test_one_line_for_what_cannot_be_pooled(second, flags, words, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    models = [folder_of(tmp_path, 1, 1.0), folder_of(tmp_path, 2, 2.0, **second), folder_of(tmp_path, 3, 3.0)]
    with pytest.raises(SystemExit) as stop:
        main(["compare", *models, *flags])
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert words in error and len(error.strip().splitlines()) == 1
    assert json.loads((tmp_path / "seed_1/evaluation/report.json").read_text()) == report(1, 1.0)


def test_reports_of_the_hub_and_of_an_earlier_version(tmp_path):
    """A model of the Hub has no fingerprint of its weights; an earlier report does not say its command and versions."""
    for number, name in enumerate(("me/a", "me/b", "me/a")):
        old = report(number, 1.0, model=name, weights=None)
        (tmp_path / f"{number}.json").write_text(json.dumps({k: old[k] for k in old.keys() - {"command", "versions"}}))
    first, other, again = (str(tmp_path / f"{number}.json") for number in range(3))
    assert pool_and_write([first, other], str(tmp_path / "out"))["num_seeds"] == 2
    with pytest.raises(ValueError, match="reports 1 and 2 are both of me/a: pool models of different seeds"):
        pool_and_write([first, again], str(tmp_path / "out"))


def test_one_report_is_no_pool(tmp_path, capsys):
    with pytest.raises(SystemExit):
        main(["compare", folder_of(tmp_path, 1, 1.0), "--pool"])
    assert "--pool needs the reports of two seeds at least, and there is 1" in capsys.readouterr().err
