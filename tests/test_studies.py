"""The studies at their tiny size, end to end; and the digits that they read."""

import json
from pathlib import Path

import numpy as np
import pytest
import shared_vs_separate
import swap
import unseen_captions
from common import Digits, Study, interval, parse_args
from PIL import Image

STUDIES = [(swap, "digits"), (unseen_captions, "digits"), (shared_vs_separate, "digits")]


@pytest.fixture(scope="module")
def digits():
    return Digits(painted=True)


@pytest.mark.parametrize(("study", "data"), STUDIES)
def test_a_study_runs_and_a_second_time_trains_nothing(study, data, tmp_path, capsys):
    args = ["--data", data, "--size", "tiny", "--output_dir", str(tmp_path / "out"), "--results_dir", str(tmp_path)]
    path = study.main(args)
    assert path.name == f"{study.__name__}_{data}_tiny.json"
    first = json.loads(path.read_text())
    assert first["summary"] and first["cpu_minutes"] >= 0 and first["settings"]["seeds"] >= 1
    assert Image.open(path.with_suffix(".png")).size[1] == 480
    trained = [line for line in capsys.readouterr().out.splitlines() if line.startswith("===")]

    finished = sorted((tmp_path / "out").glob(f"{study.__name__}*/*_*.json"))
    assert 0 < len(finished) <= len(trained)
    assert json.loads(study.main(args).read_text()) == first
    assert "===" not in capsys.readouterr().out

    finished[0].unlink()  # as if the study had been killed in this training
    again = json.loads(study.main(args).read_text())
    assert capsys.readouterr().out.count("===") == 1
    assert {k: v for k, v in again.items() if "minutes" not in k} == {
        k: v for k, v in first.items() if "minutes" not in k
    }


@pytest.mark.parametrize("study", [study for study, _ in STUDIES])
def test_every_size_has_the_same_settings(study):
    options = parse_args(study.__doc__, [])
    assert (options.data, options.size) == ("shapes", "small")
    assert len({tuple(sorted(settings)) for settings in study.SIZES.values()}) == 1
    with pytest.raises(SystemExit) as ended:
        study.main(["--data", "faces"])
    assert ended.value.code == 2


def test_committed_results_are_of_these_settings():
    for path in Path(swap.__file__).parent.glob("results/*.json"):
        result, study = json.loads(path.read_text()), {m.__name__: m for m, _ in STUDIES}
        settings = study[result["study"]].SIZES[result["size"]]
        expected = {k: v.get(result["data"], v) if isinstance(v, dict) else v for k, v in settings.items()}
        assert result["settings"] == json.loads(json.dumps(expected)), path
        assert path.with_suffix(".png").is_file()


def test_painted_digits_are_read(digits):
    rows = digits.rows(300, seed=0)
    read = [digits.read(image) for image in rows["image"]]
    asked = np.array(digits.names)[rows["label"]]
    assert np.mean([r[0] == name for r, name in zip(read, asked, strict=True)]) > 0.97
    inks = [(r[1] in text, r[2] in text) for r, text in zip(read, rows["caption"], strict=True)]
    assert np.all(inks)


def test_noise_is_no_digit(digits):
    noise = np.random.default_rng(0).integers(0, 256, (100, 8, 8, 3)).astype(np.uint8)
    assert sum(digits.read(Image.fromarray(pixels))[0] is not None for pixels in noise) <= 2


def test_every_pair_of_an_unseen_combination_is_seen(digits):
    def pairs(combinations):
        return {pair for a, b, c in combinations for pair in ((a, b), (a, c), (b, c))}

    assert len(digits.unseen) == 12 and len(digits.seen) == 48 and not set(digits.seen) & set(digits.unseen)
    assert pairs(digits.unseen) <= pairs(digits.seen)
    captions = digits.rows(2000, seed=1)["caption"]
    assert not any(all(word in text for word in combination) for text in captions for combination in digits.unseen)


def test_other_settings_are_refused(tmp_path, capsys):
    options = parse_args("", ["--output_dir", str(tmp_path)])
    Study("one", options, {"small": {"steps": {"shapes": 2, "digits": 3}, "counts": (1, 2)}})
    assert Study("one", options, {"small": {"steps": 2, "counts": (1, 2)}}).settings["steps"] == 2
    with pytest.raises(SystemExit) as ended:
        Study("one", options, {"small": {"steps": 3, "counts": (1, 2)}})
    assert ended.value.code == 2
    assert "one_shapes_small is of other settings" in capsys.readouterr().err


def test_images_needed():
    assert swap.images_needed({100: 0.5, 200: 0.9, 300: 1.0}) == pytest.approx(250)
    assert swap.images_needed({100: 0.97, 200: 0.9}) == 100
    assert swap.images_needed({100: 0.5, 200: 0.94}) is None


def test_summary_of_swap():
    curves = {"from the unconditional model": [{100: 0.9, 200: 1.0}] * 2, "from scratch": [{200: 0.5, 400: 0.9}] * 2}
    found = swap.summary(curves)
    assert found["part"] == pytest.approx(150 / 400) and found["part_is_an_upper_bound"]
    assert found["from scratch"] == {"images_to_goal": None, "of_each_seed": [None, None], "longest": 400}


def test_interval_is_students():
    found = interval([1.0, 2.0, 3.0])
    assert found["mean"] == 2 and found["high"] - 2 == pytest.approx(4.302653 / 3**0.5)  # t of 2 degrees of freedom
    assert interval([2.0]) == {"mean": 2.0, "low": 2.0, "high": 2.0}
