"""cond-pipelines inspect: what a run would see, in the words of the run."""

import json
import re

import numpy as np
import pytest
from PIL import Image

from cond_pipelines.cli import main
from cond_pipelines.data.load import load_data
from cond_pipelines.inspection import parse_config


@pytest.fixture
def folder(tmp_path):
    rng = np.random.default_rng(0)
    rows = []
    for i in range(48):
        name = f"{'cat' if i % 3 else 'dog'}/{i:02}.png"
        (tmp_path / "data" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (16 + i, 16, 3), dtype=np.uint8)).save(tmp_path / "data" / name)
        rows.append({"file_name": name, "text": "a cat on a mat " * (1 + 20 * (i == 5))})
    (tmp_path / "data" / "cat" / "01.png").write_bytes(b"broken")
    frames = [Image.new("RGB", (16, 16), c) for c in ("red", "blue")]
    frames[0].save(tmp_path / "data" / "cat" / "x.gif", save_all=True, append_images=frames[1:])
    (tmp_path / "data" / "cat" / "1-masklabel.png").write_bytes((tmp_path / "data" / "cat" / "02.png").read_bytes())
    return tmp_path / "data", rows


def test_inspect(folder, tmp_path, capsys):
    data, rows = folder
    args = ["--cache_dir", str(tmp_path / "cache"), "--output_dir", str(tmp_path / "out")]
    main(["inspect", str(data), "--conditioning", "class", *args])
    printed = capsys.readouterr().out
    config = parse_config([str(data), "--conditioning", "class", "--cache_dir", str(tmp_path / "cache")])
    assert load_data(config).summary() + "\n" in printed
    for line in (
        "images: 48 usable of 49, 16 px, 3 channel(s)",
        "1 of 50 images is left out: 1 with the name of a mask (cat/1-masklabel.png)",
        "classes (2): cat 32, dog 16; without a label: 0",
        "skipped: 1",
        "sizes: 16 to 16 px wide, 16 to 63 px high",
        "files of several frames or pages, of which the first is used: 1",
        "balance: cat has 32 images, dog 16: 2 times as many",
    ):
        assert line in printed
    assert Image.open(tmp_path / "out" / "inspect.png").size[0] > 64
    assert Image.open(tmp_path / "out" / "left_out.png").size[0] > 64
    (data / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    main(["inspect", str(data), "--conditioning=text", *args])
    printed = capsys.readouterr().out
    assert "2 of 50 images are left out: 1 with the name of a mask (cat/1-masklabel.png); 1 without a row" in printed
    assert re.search(r"captions cut after 64 tokens: 1 of 47; the longest has 10\d tokens", printed)


def test_inspect_refuses_in_one_line(tmp_path, capsys):
    for args, words in (
        ([str(tmp_path / "nowhere")], "is not a folder"),
        ([str(tmp_path), "--conditioning", "x"], "--conditioning 'x' is not one of none, class, text"),
        ([str(tmp_path), "--resolution", "100000"], "--resolution 100000 must be at most 16,384"),
        ([str(tmp_path), "--unknown"], "unknown argument --unknown"),
    ):
        with pytest.raises(SystemExit) as stop:
            main(["inspect", *args])
        error = capsys.readouterr().err
        assert stop.value.code == 2 and error.startswith("error: ") and words in error and error.count("\n") == 1


def test_a_name_forges_no_line(tmp_path, capsys):
    """Names of files and classes are text of others: each line of the summary stays one."""
    for name in ("cat/0.png", "c\nerror: at/1.png", "dog/bad\nerror: x.png"):
        (tmp_path / "data" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (16, 16), "red").save(tmp_path / "data" / name)
    (tmp_path / "data" / "dog" / "y\nerror: z.png").write_bytes(b"broken")
    (tmp_path / "data" / ".hid\nerror: .png").write_bytes(b"hidden")
    args = ["--cache_dir", str(tmp_path / "cache"), "--output_dir", str(tmp_path / "out")]
    main(["inspect", str(tmp_path / "data"), "--conditioning", "class", *args])
    lines = capsys.readouterr().out.splitlines()
    assert not [line for line in lines if line.startswith("error")]
    assert any("c\\nerror: at 1" in line for line in lines)


def test_the_sheets_become_no_images_and_follow_no_link(folder, tmp_path, capsys, monkeypatch):
    data, _ = folder
    (data / "inspect.png").write_bytes(own := (data / "cat/02.png").read_bytes())
    for place in (data, data / "cat"):
        monkeypatch.chdir(place)
        main(["inspect", str(data), "--cache_dir", str(tmp_path / "cache")])
        assert "are not written into .: they would be images of the data" in capsys.readouterr().out
    assert (data / "inspect.png").read_bytes() == own and not (data / "cat/inspect.png").exists()
    (out := tmp_path / "out").mkdir()
    for name in ("inspect.png", "left_out.png"):
        (out / name).symlink_to(tmp_path / "elsewhere")
    main(["inspect", str(data), "--output_dir", str(out), "--cache_dir", str(tmp_path / "cache")])
    assert Image.open(out / "inspect.png") and not (tmp_path / "elsewhere").exists()


def test_one_class_is_as_many_as_no_other(tmp_path, capsys):
    (tmp_path / "data" / "cat").mkdir(parents=True)
    for number in range(3):
        Image.new("RGB", (16, 16), (number * 90, 0, 0)).save(tmp_path / "data" / "cat" / f"{number}.png")
    args = ["--cache_dir", str(tmp_path / "cache"), "--output_dir", str(tmp_path / "out")]
    main(["inspect", str(tmp_path / "data"), "--conditioning", "class", *args])
    printed = capsys.readouterr().out
    assert "classes (1): cat 3" in printed and "balance" not in printed
