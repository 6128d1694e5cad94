"""What a run leaves: one run at a time in a folder, nothing of two runs mixed, nothing lost, no file of the user's."""

import json
import os
import shutil
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from training_common import TINY, largest_difference, log_of, run

from cond_pipelines import ConditionalPipeline
from cond_pipelines.files import append_text
from cond_pipelines.provenance import run_of_file, run_of_folder, weights_fingerprint
from cond_pipelines.sharing.card import CardFacts, write_card
from cond_pipelines.sharing.contents import copy_page
from cond_pipelines.training import final_save
from cond_pipelines.training.checkpoints import _choose, all_checkpoints, broken, read_manifest
from cond_pipelines.training.ema import average_of_length
from cond_pipelines.training.failures import TrainingFailure

SAVING = {"checkpointing_steps": 2, "max_train_steps": 4}
MINE = (
    "card.yaml",
    "notes.txt",
    "images/mine.png",
    "checkpoint-best/progress.json",
    "checkpoint-2 (copy)/manifest.json",
)


@pytest.fixture(scope="module")
def used(tmp_path_factory):
    """What a class-conditional run left."""
    return run(tmp_path_factory.mktemp("used"), conditioning="class", ema_lengths=[0.1], **SAVING)


@pytest.fixture()
def folder(used, tmp_path):
    """The same, with files of the user's, and an evaluation of those weights."""
    folder = tmp_path / "run"
    shutil.copytree(used, folder)
    for name in ("card.yaml", "notes.txt"):
        (folder / name).write_text("license: mit\n")
    Image.new("RGB", (8, 8)).save(folder / "images/mine.png")
    shutil.copytree(folder / "checkpoint-2", folder / "checkpoint-best")
    shutil.copytree(folder / "checkpoint-2", folder / "checkpoint-2 (copy)")
    evaluate(folder)
    return folder


def evaluate(folder, **more):
    (folder / "evaluation").mkdir(exist_ok=True)
    measures = [{"question": "obeys y?", "name": "class read right", "value": 0.25, "interval": None, "real": None}]
    report = {"measures": measures, "weights": weights_fingerprint(folder)} | more
    (folder / "evaluation/report.json").write_text(json.dumps(report))


def everything(folder):
    return {p: p.stat().st_mtime_ns for p in folder.rglob("*") if p.is_file() and p.name != ".lock"}


# --------------------------------------------------------------------------------------------------- used folders
@pytest.mark.parametrize("left", ["all", "checkpoints", "averages"])
def test_a_used_folder_is_refused(folder, left):
    if left != "all":
        (folder / "model_index.json").unlink()
    if left == "averages":
        for path in folder.glob("checkpoint-*"):
            shutil.rmtree(path)
    before = everything(folder)
    with pytest.raises(ValueError, match=r"--output_dir .* holds .*--overwrite_output_dir") as error:
        run(folder, conditioning="none")
    assert ("--resume_from_checkpoint latest" in str(error.value)) == (left != "averages")
    assert everything(folder) == before


@pytest.mark.parametrize("name", ["samples", "unet", "ema", "images"])
def test_a_file_where_the_run_makes_a_folder(name, tmp_path):
    (tmp_path / name).write_text("mine")
    with pytest.raises(ValueError, match=f"{name} is a file, and the run needs a folder there"):
        run(tmp_path)
    assert [path.name for path in tmp_path.iterdir() if path.name != ".lock"] == [name]


@pytest.mark.parametrize("name", ["log.jsonl", "samples.png", "README.md", "model_index.json"])
def test_a_folder_where_the_run_writes_a_file(name, tmp_path):
    (tmp_path / name).mkdir()
    with pytest.raises(ValueError, match=f"{name} is a folder, and the run writes a file there"):
        run(tmp_path)


def test_overwriting_deletes_what_the_run_made_and_nothing_else(folder):
    run(folder, conditioning="none", overwrite_output_dir=True)
    for name in MINE:
        assert (folder / name).is_file(), name
    left = {p.name for p in folder.iterdir()}
    assert not left & {"evaluation", "ema", "checkpoint-2", "checkpoint-4"}
    card = (folder / "README.md").read_text()
    assert "class read right" not in card and "circle" not in card
    assert run_of_file(folder / "samples.png") == run_of_file(folder / "loss.png") == run_of_folder(folder)


def test_overwriting_deletes_nothing_where_the_input_is_bad_or_is_deleted(folder, tmp_path):
    before = everything(folder)
    bad = [
        {"dataset_name": None, "train_data_dir": str(tmp_path / "nothing")},
        {"dataset_name": None, "train_data_dir": str(folder / "images")},
        {"pretrained_model_name_or_path": str(folder), "unet_size": None},
        {"pretrained_vae_model_name_or_path": str(folder / "unet")},
        {"resume_from_checkpoint": "latest"},
        {"resume_from_checkpoint": str(folder / "checkpoint-2")},
        {"conditioning": "class", "validation_prompts": ["no such class"]},
    ]
    for arguments in bad:
        with pytest.raises(ValueError):
            run(folder, overwrite_output_dir=True, **arguments)
        assert everything(folder) == before, arguments


def test_resuming_without_a_checkpoint_does_not_write_over_a_model(folder):
    for path in folder.glob("checkpoint-*"):
        shutil.rmtree(path)
    before = everything(folder)
    with pytest.raises(ValueError, match="holds a finished model and no checkpoint to go on with"):
        run(folder, conditioning="class", ema_lengths=[0.1], resume_from_checkpoint="latest")
    assert everything(folder) == before


def test_gone_on_with(folder, capsys):
    """The old evaluation is of other weights then; what is the user's own stays."""
    longer = {"conditioning": "class", "ema_lengths": [0.1], "checkpoints_total_limit": 1} | SAVING
    mine = run_of_folder(folder)
    run(folder, resume_from_checkpoint="checkpoint-best", **longer | {"max_train_steps": 8})
    assert run_of_folder(folder) == mine == read_manifest(folder / "checkpoint-8").run
    assert [p.name for p in all_checkpoints(folder)] == ["checkpoint-8"]
    assert all((folder / name).is_file() for name in MINE)
    said = "".join(capsys.readouterr())
    assert "evaluation/report.json is ignored: it is of other weights" in said
    assert "class read right" not in (folder / "README.md").read_text()
    assert log_of(folder, "step") == list(range(1, 9))


# --------------------------------------------------------------------------------------------------- checkpoints
def test_an_earlier_one_that_was_named_is_gone_on_from(used, tmp_path):
    """The later ones are older then: the new ones are kept, and `latest` is one of them."""
    for name in ("checkpoint-2", "checkpoint-4", "run.json", "log.jsonl"):
        copy = shutil.copytree if name.startswith("check") else shutil.copy
        copy(used / name, tmp_path / name)
    settings = {"conditioning": "class", "ema_lengths": [0.1], "max_train_steps": 4, "checkpoints_total_limit": 1}
    run(tmp_path, resume_from_checkpoint="checkpoint-2", checkpointing_steps=3, **settings)
    assert [path.name for path in all_checkpoints(tmp_path)] == ["checkpoint-3"]
    assert _choose(tmp_path, "latest", run_of_folder(tmp_path))[0].endswith("checkpoint-3")


def test_those_of_another_run_are_neither_deleted_nor_taken(used, tmp_path, capsys):
    settings = {"conditioning": "class", "seed": 1, "checkpointing_steps": 1, "checkpoints_total_limit": 2}
    run(tmp_path, max_train_steps=3, **settings)
    shutil.copytree(used / "checkpoint-4", tmp_path / "checkpoint-40")
    run(tmp_path, max_train_steps=5, resume_from_checkpoint="latest", **settings)
    assert "checkpoint-40 is passed over: it is of another run" in "".join(capsys.readouterr())
    names = {path.name for path in all_checkpoints(tmp_path)}
    assert names == {"checkpoint-4", "checkpoint-5", "checkpoint-40"}
    for name in ("checkpoint-4", "checkpoint-5"):
        shutil.rmtree(tmp_path / name)
    assert "only of another: name it, as in checkpoint-40" in _choose(tmp_path, "latest", run_of_folder(tmp_path))[1]


def test_those_of_an_earlier_version_are_gone_on_with(used, tmp_path):
    for name in ("checkpoint-2", "checkpoint-4"):
        shutil.copytree(used / name, tmp_path / name)
        manifest = json.loads((tmp_path / name / "manifest.json").read_text())
        old = {"files": manifest["files"], "identity": manifest["identity"]}
        (tmp_path / name / "manifest.json").write_text(json.dumps(old, indent=2))
    settings = {"conditioning": "class", "ema_lengths": [0.1], "max_train_steps": 6}
    run(tmp_path, resume_from_checkpoint="latest", checkpointing_steps=1, checkpoints_total_limit=2, **settings)
    assert [path.name for path in all_checkpoints(tmp_path)] == ["checkpoint-5", "checkpoint-6"]


def test_a_damaged_manifest_falls_back_whatever_the_damage(used, tmp_path, capsys):
    """A bit of each byte, each of the eight in turn; and what else may lie there."""
    for name in ("checkpoint-2", "checkpoint-4"):
        shutil.copytree(used / name, tmp_path / name)
    path = tmp_path / "checkpoint-4/manifest.json"
    good = path.read_bytes()
    odd = [b"", bytes(len(good)), b"null", b"[]", b"1", b"{}", b"[" * 100_000, b"\xff\xfe", good[: len(good) // 2]]
    odd += [b'{"files": %s, "identity": %s}' % parts for parts in ((b"{}", b"{}"), (b"3", b"{}"), (b'{"a": 1}', b"[]"))]
    for content in odd:
        path.write_bytes(content)
        assert _choose(tmp_path, "latest", run_of_folder(used)) == (str(tmp_path / "checkpoint-2"), None), content[:40]
    assert "checkpoint-4 is passed over: manifest.json cannot be read" in "".join(capsys.readouterr())
    for position in range(len(good) - 1):
        content = bytearray(good)
        content[position] ^= 1 << position % 8
        path.write_bytes(content)
        assert broken(path.parent) is not None, position


# ------------------------------------------------------------------------------------- whose is it: card, ema, push
def test_results_of_other_weights_are_not_shown(folder, tmp_path, capsys):
    ConditionalPipeline.from_pretrained(folder).save_pretrained(tmp_path / "again")
    assert weights_fingerprint(tmp_path / "again") == weights_fingerprint(folder)
    write_card(folder)
    assert "class read right" in (folder / "README.md").read_text()
    weights = folder / "unet/diffusion_pytorch_model.safetensors"
    state = load_file(weights)
    save_file({k: -v for k, v in state.items()}, weights, {"format": "pt"})
    write_card(folder)
    assert "class read right" not in (folder / "README.md").read_text()
    assert "report.json is ignored: it is of other weights" in capsys.readouterr().err
    stage = folder.parent / "stage"
    for name in ("unet", "adapter", "model_index.json"):
        (shutil.copytree if (folder / name).is_dir() else shutil.copy)(folder / name, _made(stage) / name)
    copy_page(folder, stage)
    assert (stage / "samples.png").is_file() and not (stage / "evaluation").exists()


def _made(folder):
    folder.mkdir(exist_ok=True)
    return folder


def test_results_of_an_earlier_version_are_shown_unless_they_contradict(folder, capsys):
    for more, shown in (({}, True), ({"setting": "class"}, True), ({"setting": "text"}, False)):
        evaluate(folder, weights=None, **more)
        assert (CardFacts.of_folder(folder).evaluation is not None) == shown
    evaluate(folder, weights=None, resolution_px=64)
    assert CardFacts.of_folder(folder).evaluation is None
    assert "it is of another model (resolution_px 64, and this has 8)" in capsys.readouterr().err


def test_pictures_and_lora_of_another_run_are_not_shown(folder, tmp_path, capsys):
    other = run(tmp_path / "other")
    shutil.copy(other / "samples.png", folder / "samples.png")
    shutil.copy(other / "images/03.png", folder / "images/33.png")
    save_file(
        load_file(folder / "adapter/diffusion_pytorch_model.safetensors"), folder / "pytorch_lora_weights.safetensors"
    )
    facts = CardFacts.of_folder(folder)
    said = capsys.readouterr().err
    assert "samples.png" not in facts.pictures and "images/33.png" not in facts.pictures
    assert {"loss.png", "images/mine.png", "images/00.png"} <= set(facts.pictures)
    assert not facts.lora
    assert "samples.png is ignored: it is of another run" in said
    assert "pytorch_lora_weights.safetensors is ignored: the model is complete without it" in said


def test_averages_of_two_runs_are_not_mixed(folder, capsys):
    expected = average_of_length(folder, 0.1)
    path = next(iter(sorted(folder.glob("ema/*.safetensors"))))
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    assert metadata["run"] == run_of_folder(folder)
    save_file({k: -v for k, v in load_file(path).items()}, folder / "ema/40.safetensors", metadata | {"run": "another"})
    assert largest_difference(average_of_length(folder, 0.1), expected) == 0
    assert "40.safetensors is ignored: it is of another run" in capsys.readouterr().err


# ---------------------------------------------------------------------------------------------------------- lock
HOLDER = """
import os, sys, time
from pathlib import Path
from cond_pipelines.locks import locked_folder
with locked_folder(Path(sys.argv[1]), True):
    child = os.fork()  # as the workers of a DataLoader are made
    if child:
        print(child, flush=True)
    time.sleep(600)
"""


def test_one_run_at_a_time(tmp_path, warm):
    """Another process is named; one that was killed is in nobody's way, though a process that it forked lives on."""
    holder = warm.start(["-c", HOLDER, tmp_path])
    child = int(holder.stdout.readline())
    try:
        with pytest.raises(ValueError, match=f"is in use by process {holder.pid} on {os.uname().nodename}: wait"):
            run(tmp_path)
        assert [path.name for path in tmp_path.iterdir()] == [".lock"]
        holder.send_signal(signal.SIGKILL)
        holder.wait(timeout=60)
        os.kill(child, 0)  # it is there
        run(tmp_path)
    finally:
        holder.kill()
        os.kill(child, signal.SIGKILL)
        holder.communicate(timeout=60)


# ----------------------------------------------------------------------------------------------------- last save
def _mount(*arguments) -> int:
    return subprocess.run(["mount", *map(str, arguments)], timeout=60).returncode


@pytest.fixture()
def small_disk(tmp_path):
    """A file system of 3 MB: room for a log, not for a model."""
    place = tmp_path / "small"
    place.mkdir()
    if os.geteuid() != 0 or _mount("-t", "tmpfs", "-o", "size=3m", "tmpfs", place):
        pytest.skip("mounting a file system needs root")
    yield place
    subprocess.run(["umount", place], check=True, timeout=60)


@pytest.fixture(scope="module")
def expected(tmp_path_factory):
    return ConditionalPipeline.from_pretrained(run(tmp_path_factory.mktemp("expected")))


def test_a_full_disk_at_the_end_does_not_lose_the_weights(small_disk, expected, tmp_path):
    """Not those of a run without checkpoints either: they are elsewhere, and the line says where."""
    with pytest.raises(TrainingFailure, match=r"No space left.*; the trained model is saved in ") as error:
        run(small_disk / "out", cache_dir=str(tmp_path / "cache"))
    place = Path(str(error.value).rpartition("saved in ")[2])
    assert largest_difference(ConditionalPipeline.from_pretrained(place).unet, expected.unet) == 0
    assert (place / "training_config.yaml").is_file() and "\n" not in str(error.value)
    assert not list(small_disk.rglob("unfinished*")) and not (small_disk / "out/model_index.json").exists()


@pytest.mark.parametrize("room_again", [True, False])
def test_a_disk_that_fills_in_mid_run(small_disk, tmp_path, expected, capsys, room_again):
    """Of a run without checkpoints, whose weights are in memory only: it goes on, and loses neither them nor a line."""
    filler, opened = small_disk / "filler", 0
    whole_block = small_disk / "block"
    whole_block.write_bytes(bytes(2**16))
    if room_again:
        assert _mount("-o", "remount,size=60m", small_disk) == 0

    def fill(event: str, args: tuple) -> None:
        nonlocal opened
        if event == "open" and str(args[0]) == str(small_disk / "out/log.jsonl") and str(args[1]).startswith("a"):
            opened += 1
            if opened == 2:
                with suppress(OSError), open(filler, "wb", buffering=0) as file:
                    while file.write(bytes(4096)):
                        pass
            if opened == 4 and room_again:
                filler.unlink()

    sys.addaudithook(fill)
    more = {"report_to": "tensorboard", "validation_steps": 2, "cache_dir": str(tmp_path / "cache")}
    more |= {"ema_lengths": [0.1]}
    try:
        place = run(small_disk / "out", **more)
    except TrainingFailure as error:
        assert not room_again
        place = Path(str(error).rpartition("saved in ")[2])
    assert largest_difference(ConditionalPipeline.from_pretrained(place).unet, expected.unet) == 0
    told = capsys.readouterr().err
    assert opened >= 4 and told.count("warning: no room for the log, the pictures and ema/ in") == 1, (opened, told)
    assert log_of(small_disk / "out", "step") == [1, 2, 2, 3, 4, 4]
    snapshots = {path.name for path in (small_disk / "out/ema").iterdir()}
    assert "2.safetensors" not in snapshots and ("4.safetensors" in snapshots) == room_again
    if not room_again:  # these few lines had room in a block that was theirs; a line that has none is not begun
        with pytest.raises(OSError, match="No space left"):
            append_text(whole_block, "x" * 10)
        assert whole_block.stat().st_size == 2**16


def test_where_all_disks_are_full_the_run_waits_for_room(small_disk, expected, tmp_path, monkeypatch, capsys):
    filler, looks = small_disk / "filler", []
    filler.write_bytes(bytes(2**20))
    assert _mount("-o", "remount,size=8m", small_disk) == 0
    filler.write_bytes(bytes(6 * 2**20))

    def make_room(sec):
        looks.append(sec)
        filler.unlink()

    monkeypatch.setenv("TMPDIR", str(small_disk))
    monkeypatch.setattr("tempfile.tempdir", None)
    monkeypatch.chdir(small_disk)
    monkeypatch.setattr(final_save.time, "sleep", make_room)
    folder = run(small_disk / "out", cache_dir=str(small_disk / "cache"))
    assert len(looks) == 1
    assert "the trained model is kept in memory; make room" in capsys.readouterr().err
    assert largest_difference(ConditionalPipeline.from_pretrained(folder).unet, expected.unet) == 0


# ---------------------------------------------------------------------------------------------------------- text
def test_any_text_in_any_locale(tmp_path, subprocess_env):
    """Japanese captions, a terminal and files of plain ASCII: the run ends well, and what it wrote is UTF-8."""
    (tmp_path / "images").mkdir()
    caption, lines = "赤い円 – été 🎨", []
    for i in range(12):
        Image.new("RGB", (8, 8), (20 * i, 0, 0)).save(tmp_path / f"images/{i}.png")
        lines.append(json.dumps({"file_name": f"{i}.png", "text": f"{caption} {i}"}, ensure_ascii=False))
    (tmp_path / "images/metadata.jsonl").write_text("\n".join(lines), encoding="utf-8")
    (tmp_path / "recipe.yaml").write_text(f"validation_prompts: ['{caption}']\n", encoding="utf-8")
    given = {k: v for k, v in TINY.items() if k != "dataset_name"} | {"conditioning": "text", "max_train_steps": 2}
    given |= {"validation_steps": 1, "config": tmp_path / "recipe.yaml", "output_dir": tmp_path / "out"}
    given |= {"train_data_dir": tmp_path / "images", "cache_dir": tmp_path / "cache"}
    args = [part for name, value in given.items() for part in (f"--{name}", str(value))]
    plain = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONIOENCODING": "ascii"}
    command = [sys.executable, "-m", "cond_pipelines.training", *args]
    done = subprocess.run(command, env=subprocess_env | plain, capture_output=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    for name in ("README.md", "training_config.yaml", "training_summary.json"):
        assert caption in (tmp_path / "out" / name).read_text(encoding="utf-8"), name
