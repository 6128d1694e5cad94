"""The studies at their tiny size, end to end; and the digits that they read."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import shared_vs_separate
import swap
import unseen_captions
from common import SHARE, Digits, Study, interval, parse_args, settings_of
from pictures import Pictures
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
        expected = settings_of(study[result["study"]].SIZES[result["size"]], result["data"])
        assert result["settings"] == json.loads(json.dumps(expected)), path
        assert path.with_suffix(".png").is_file()


def picture_folder(folder, counts, kind="png"):
    for name, count in counts.items():
        (folder / name).mkdir(parents=True)
        for i in range(count):  # wider than high, so white above and below
            level = (20 if name == "dark" else 180) + i
            Image.new("RGB", (40, 20), (level, level, level)).save(folder / name / f"{i}.{kind}")
    return folder


def test_real_pictures_are_a_folder_of_classes(tmp_path):
    data = Pictures(picture_folder(tmp_path / "animals", {"few": 4, "dark": 30, "light": 40}), num_classes=2, count=15)
    assert data.kinds == ("light", "dark")  # the largest first
    image = np.asarray(data.real()["image"][0])
    assert image.shape == (16, 16, 3) and np.all(image[[0, 1, -1]] == 255) and image[8, 8, 0] < 255
    train, real = data.rows(1000, seed=0)["label"], data.real()["label"]
    assert (train.count(0), train.count(1), real.count(0), real.count(1)) == (20, 15, 20, 15)  # halves of each class
    other = data.rows(1000, seed=1)["label"]
    assert train != other and sorted(train) == sorted(other) and data.share_of_real() == 1.0
    jpeg = Pictures(picture_folder(tmp_path / "jpeg", {"dark": 30, "light": 40}, "jpg"), num_classes=2, count=15)
    assert jpeg.kinds == data.kinds and jpeg.content == data.content  # one level each, so JPEG loses nothing


def test_a_study_of_real_pictures(tmp_path, capsys):
    folder = picture_folder(tmp_path / "animals/train", {"each": 8, "light": 8})
    args = ["--size", "tiny", "--output_dir", str(tmp_path / "out"), "--results_dir", str(tmp_path)]

    def names():
        return [line for line in capsys.readouterr().out.splitlines() if line.startswith("===")]

    path = shared_vs_separate.main(["--data", f"{folder}/", *args])
    result = json.loads(path.read_text())
    assert path.name == "shared_vs_separate_animals-train_tiny.json" and 0 <= result["real_images"]["right"] <= 1
    assert len(set(names())) == 3  # the shared model, and one of each class, whatever the class is called

    def refused(study, *words):
        with pytest.raises(SystemExit) as ended:
            study.main(["--data", str(folder), *args])
        error = capsys.readouterr().err
        assert ended.value.code == 2 and error.count("\n") == 1 and all(word in error for word in words), error

    refused(swap, "is neither of shapes, digits")
    Image.new("RGB", (9, 9)).save(folder / "light/0.png")  # another image than the kept trainings saw
    refused(shared_vs_separate, "of other settings or images")
    (folder / "light/1.png").write_text("no image")
    refused(shared_vs_separate, "light/1.png", "no image")
    Image.fromarray(np.full((9, 9), 40_000, np.uint16)).save(folder / "light/1.png")
    refused(shared_vs_separate, "light/1.png", "more than 8 bits")
    (folder / "light/1.png").unlink()
    refused(shared_vs_separate, "light has 7 images", "needs 8")
    shutil.rmtree(folder / "light")
    refused(shared_vs_separate, "1 folders of images", "needs 2")


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
    found = swap.summary(curves, parent_images=300)
    assert found["part"] == pytest.approx(150 / 400) and found["part_is_an_upper_bound"]
    assert found["children_until_it_pays"] == 2  # 300 images, of which each model saves 250 or more
    # 100 images after the parent's 300 are as many as 400 from scratch; 200 have no partner.
    assert {n: [v["mean"] for v in shares.values()] for n, shares in found["equal_images"].items()} == {400: [0.9, 0.9]}
    slower = {"from the unconditional model": [{500: 1.0}], "from scratch": [{400: 1.0}]}
    assert swap.summary(slower, parent_images=300)["children_until_it_pays"] is None
    assert found["from scratch"] == {"images_to_goal": None, "of_each_seed": [None, None], "longest": 400}


def test_interval_is_students():
    found = interval([1.0, 2.0, 3.0])
    assert found["mean"] == 2 and found["high"] - 2 == pytest.approx(4.302653 / 3**0.5)  # t of 2 degrees of freedom
    assert interval([2.0]) == {"mean": 2.0, "low": 2.0, "high": 2.0}
    assert interval([0.6, 0.99, 1.0], SHARE)["high"] == 1 < interval([0.6, 0.99, 1.0])["high"]  # a share has no more
