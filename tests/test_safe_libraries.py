"""What is handed to other libraries of files that somebody else made: it ends, and it asks for nothing but data."""

import json
import os
import re
import shutil
import struct
import zipfile
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from pipelines_common import make_components, quiet
from safetensors.torch import save_file
from training_common import run

from cond_pipelines import TextToImagePipeline
from cond_pipelines.cli import main
from cond_pipelines.data.archives import open_path
from cond_pipelines.data.metadata import CannotBeRead, read_table
from cond_pipelines.data.tables import read_tables
from cond_pipelines.data.walk import walk
from cond_pipelines.errors import UserError, one_line_errors
from cond_pipelines.evaluation.pictures import confusion_plot
from cond_pipelines.files import is_mostly_hole, whole_folder
from cond_pipelines.folders import check_model_folder
from cond_pipelines.fonts import Font
from cond_pipelines.networks.lora_files import plain_lora_metadata
from cond_pipelines.pictures import short_title
from cond_pipelines.provenance import LORA_FILE
from cond_pipelines.training.checkpoints import broken
from cond_pipelines.training.state_files import read_averages, read_tensors

ENDLESS = "(([a-z_0-9.])*)*X!"  # a regular expression that takes for ever on the name of a layer


def many_tensors(path: Path) -> None:
    """300,000 tensors without a number: diffusers and PEFT go through their names many times."""
    one = {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}
    header = json.dumps({f"unet.model.diffusion_model.{i}.lora_A.weight": one for i in range(300_000)}).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header)


def test_weights_of_more_tensors_than_any_network_has(tmp_path):
    many_tensors(tmp_path / LORA_FILE)
    pipe = quiet(TextToImagePipeline(**make_components("text")))
    calls = (check_model_folder, TextToImagePipeline.from_pretrained, pipe.load_lora_weights)
    for call, path in zip(calls, (tmp_path, tmp_path / LORA_FILE, tmp_path), strict=True):
        with pytest.raises(UserError, match=f"{LORA_FILE}: its header has .* more than any network needs"):
            call(path)


# ------------------------------------------------------------------------------------------------- LoRA headers
WEIGHTS = {"unet.a.to_q.lora_A.weight": torch.zeros(4, 8), "unet.a.to_q.lora.up.weight": torch.zeros(8, 4)}


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("rank_pattern", {ENDLESS: 3}),
        ("alpha_pattern", {ENDLESS: 3}),
        ("rank_pattern", {"to_q": 10**9}),
        ("r", 10**6),
        ("r", True),
        ("lora_alpha", float("nan")),
        ("use_dora", "x"),
        ("megatron_config", {"a": 1}),
        ("init_lora_weights", "pissa_niter_4"),
        ("modules_to_save", ["conv_in"]),
        ("layer_replication", [[0, 10**6]]),
    ],
)
def test_a_lora_asks_for_numbers_of_its_layers(field, value):
    with pytest.raises(UserError, match=rf"x\.safetensors: its header.*{field}"):
        plain_lora_metadata({"unet.r": 4, f"unet.{field}": value}, WEIGHTS, "x.safetensors")


def test_what_a_lora_does_not_need_is_not_handed_on():
    asked = {
        "target_modules": ENDLESS,
        "exclude_modules": ENDLESS,
        "layers_pattern": ENDLESS,
        "megatron_core": "evil",
        "revision": "../x",
        "evil\x1b[2J": 1,
        "init_lora_weights": "gaussian",
        "rank_pattern": {"^a.to_q": 4},
        "r": 4,
    }
    found = plain_lora_metadata({f"unet.{name}": value for name, value in asked.items()}, WEIGHTS)
    assert found == {"unet.r": 4, "unet.rank_pattern": {"^a.to_q": 4}, "unet.target_modules": ["a.to_q"]}
    with pytest.raises(UserError, match="is a list"):
        plain_lora_metadata([], WEIGHTS)


def test_a_lora_with_an_endless_name_of_layers_is_loaded(tmp_path):
    """By the pipeline, with PEFT: the layers are those of which the file has weights."""
    pipe = quiet(TextToImagePipeline(**make_components("text")))
    names = [name for name, _ in pipe.unet.named_modules() if name.endswith(("attn1.to_q", "attn2.to_k"))][:2]
    sides = [pipe.unet.get_submodule(name).weight.shape for name in names]
    weights = {f"unet.{n}.lora_A.weight": torch.ones(2, s[1]) for n, s in zip(names, sides, strict=True)}
    weights |= {f"unet.{n}.lora_B.weight": torch.ones(s[0], 2) for n, s in zip(names, sides, strict=True)}
    header = {"unet.r": 2, "unet.lora_alpha": 6, "unet.target_modules": ENDLESS, "unet.exclude_modules": ENDLESS}
    save_file(weights, tmp_path / LORA_FILE, {"lora_adapter_metadata": json.dumps(header)})
    pipe.load_lora_weights(tmp_path)
    assert {name for name, module in pipe.unet.named_modules() if hasattr(module, "lora_A")} == set(names)
    assert pipe.unet.get_submodule(names[0]).scaling == {"default_0": 3.0}


# --------------------------------------------------------------------------------------------------- tokenizers
@pytest.fixture(scope="module")
def text_model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("text") / "model"
    quiet(TextToImagePipeline(**make_components("text"))).save_pretrained(folder)
    return folder


GROWING = {"type": "Replace", "pattern": {"String": "a"}, "content": "aa"}
BETWEEN = {"type": "Replace", "pattern": {"Regex": "(?=.)"}, "content": "ab"}
TEMPLATE = [{"SpecialToken": {"id": "x", "type_id": 0}}] * 1000


@pytest.mark.parametrize(
    ("file", "values"),
    [
        ("tokenizer.4.0.0.json", {"normalizer": {"type": "Sequence", "normalizers": [GROWING] * 60}}),
        ("tokenizer.json", {"normalizer": {"type": "Sequence", "normalizers": [BETWEEN] * 9}}),
        ("tokenizer.json", {"normalizer": {"type": "Prepend", "prepend": "a" * 10**6}}),
        ("tokenizer.json", {"post_processor": {"type": "TemplateProcessing", "single": TEMPLATE}}),
        ("tokenizer.json", {"added_tokens": [{"id": i, "content": f"t{i}"} for i in range(20_001)]}),
    ],
    ids=["another file", "between letters", "before", "template", "added"],
)
def test_a_tokenizer_makes_no_long_text_of_a_short_one(file, values, text_model, tmp_path):
    shutil.copytree(text_model, tmp_path / "model")
    path = tmp_path / "model/tokenizer" / file
    path.write_text(json.dumps(json.loads(path.with_name("tokenizer.json").read_text()) | values))
    with pytest.raises(UserError, match=re.escape(str(path))):
        check_model_folder(tmp_path / "model")


@pytest.mark.parametrize(
    ("values", "why"),
    [
        ({"pre_tokenizer": {"type": "FixedLength", "length": 0}}, "the tokenizer cannot read 'a red circle': chunk"),
        ({"model": {"type": "WordLevel", "unk_token": "x", "vocab": {"a": 0}}}, "the tokenizer cannot read .*UNK"),
        (
            {"model": {"type": "WordLevel", "unk_token": "x", "vocab": {"x": 10**6}}},
            "gives an id that the text encoder",
        ),
    ],
    ids=["panic", "exception", "id"],
)
def test_a_tokenizer_that_fails_ends_in_one_line(values, why, text_model, tmp_path, capsys):
    shutil.copytree(text_model, tmp_path / "model")
    path = tmp_path / "model/tokenizer/tokenizer.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"post_processor": None} | values))
    one = ["--num_inference_steps", "1", "--num_images", "1", "--out", tmp_path / "a.png"]
    with pytest.raises(SystemExit) as stop:
        main([str(arg) for arg in ("sample", tmp_path / "model", "a red circle", *one)])
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert stop.value.code == 2 and re.match(f"error: .*{why}", line), line
    assert not (tmp_path / "a.png").exists()


def test_a_panic_of_rust_is_a_failure_and_ctrl_c_is_none(capsys):
    class PanicException(BaseException):
        pass

    for error, kind in ((PanicException("index out of bounds"), PanicException), (GeneratorExit(), GeneratorExit)):
        with pytest.raises(kind), one_line_errors():
            raise error
    PanicException.exit_code = 2
    with pytest.raises(SystemExit), one_line_errors():
        raise PanicException("index\nout")
    assert capsys.readouterr().err == "error: index out\n"


# --------------------------------------------------------------------------------- files that are longer than they are
def lengthen(path: Path, num_bytes: int = 2**40) -> None:
    with path.open("ab") as file:
        file.truncate(num_bytes)


@pytest.mark.parametrize(
    "name", ["unet/diffusion_pytorch_model.safetensors", "tokenizer/chat_template.jinja", "README.md", "samples.png"]
)
def test_a_terabyte_of_nothing_is_not_read(name, text_model, tmp_path):
    shutil.copytree(text_model, tmp_path / "model")
    lengthen(tmp_path / "model" / name)
    with pytest.raises(UserError, match=rf"{re.escape(name)} (says that it has|is too large)"):
        check_model_folder(tmp_path / "model")


def test_a_file_with_holes_that_is_mostly_there(tmp_path):
    (tmp_path / "a").write_bytes(b"x" * (40 * 2**20))
    lengthen(tmp_path / "a", 70 * 2**20)
    (tmp_path / "b").write_bytes(b"x" * 100)
    lengthen(tmp_path / "b", 60 * 2**20)  # not large
    assert not is_mostly_hole(tmp_path / "a") and not is_mostly_hole(tmp_path / "b")
    lengthen(tmp_path / "a", 90 * 2**20)
    assert is_mostly_hole(tmp_path / "a")


def test_captions_and_tables_that_are_nothing_but_long(tmp_path):
    Image.new("RGB", (4, 4)).save(tmp_path / "0.png")
    for name in ("0.txt", "metadata.csv"):
        lengthen(tmp_path / name)
        with pytest.raises(OSError, match="most of them are nowhere"):
            open_path(str(tmp_path / name))


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    return run(tmp_path_factory.mktemp("saved"), conditioning="class", max_train_steps=1, checkpointing_steps=1)


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.bin", "progress.json"])
def test_a_checkpoint_that_is_longer_than_the_disk(name, saved, tmp_path):
    shutil.copytree(saved / "checkpoint-1", tmp_path / "checkpoint-1")
    lengthen(tmp_path / "checkpoint-1" / name)
    assert "most of them are nowhere" in broken(tmp_path / "checkpoint-1")


def test_an_optimizer_state_that_unpacks_to_more(saved, tmp_path):
    with (
        zipfile.ZipFile(saved / "checkpoint-1/optimizer.bin") as old,
        zipfile.ZipFile(tmp_path / "optimizer.bin", "w", zipfile.ZIP_DEFLATED) as new,
    ):
        for info in old.infolist():
            new.writestr(info.filename, old.read(info) + bytes(2**14))
    assert read_tensors(saved / "checkpoint-1/optimizer.bin")["param_groups"]
    for content in ((tmp_path / "optimizer.bin").read_bytes(), b"\x80\x02}q\x00."):
        (tmp_path / "optimizer.bin").write_bytes(content)
        with pytest.raises(UserError, match=r"optimizer\.bin"):
            read_tensors(tmp_path / "optimizer.bin")


def test_averages_that_are_twenty_thousand(tmp_path):
    """The square of that was looked through."""
    save_file(
        {f"{i}.0": torch.zeros(1) for i in range(3)},
        tmp_path / "averages.safetensors",
        {"num_steps": str([1] * 20_000)},
    )
    assert [len(state["values"]) for state in read_averages(tmp_path)[:4]] == [1, 1, 1, 0]


def test_a_pipe_in_the_place_of_an_unfinished_folder(tmp_path):
    for name in ("unfinished-model", "unfinished-old-model", "model"):
        os.mkfifo(tmp_path / name)
    with whole_folder(tmp_path / "model") as unfinished:
        (unfinished / "a").write_text("mine")
    assert (tmp_path / "model/a").read_text() == "mine" and [p.name for p in tmp_path.iterdir()] == ["model"]


def test_a_run_whose_unfinished_model_is_a_pipe(tmp_path):
    (tmp_path / "run").mkdir()
    os.mkfifo(tmp_path / "run/unfinished-model")
    folder = run(tmp_path / "run", conditioning="class", max_train_steps=1)
    assert (folder / "model_index.json").is_file() and not (folder / "unfinished-model").exists()


# ---------------------------------------------------------------------------------------------------------- data
def test_tables_of_more_rows_than_bytes(tmp_path):
    same = partial(pa.DictionaryArray.from_arrays, pa.array(np.zeros(2_000_000, np.int32)))
    pq.write_table(pa.table({"file_name": same(pa.array(["a.png"]))}), tmp_path / "metadata.parquet")
    with pytest.raises(CannotBeRead, match="2,000,000 rows in"):
        read_table(walk(tmp_path), "metadata.parquet")
    pq.write_table(pa.table({"image": same(pa.array([b"x"]))}), tmp_path / "x.parquet")
    with pytest.raises(CannotBeRead, match="2,000,000 rows in"):
        read_tables("parquet", [str(tmp_path / "x.parquet")], False, str(tmp_path))


@pytest.mark.parametrize("name", ["x.zip", "x.tar", "x.parquet"])
def test_a_pipe_is_no_data_set(name, tmp_path, capsys):
    os.mkfifo(tmp_path / name)
    with pytest.raises(SystemExit) as stop:
        main(["inspect", str(tmp_path / name), "--output_dir", str(tmp_path / "out")])
    assert stop.value.code == 2 and "it is neither a file nor a folder" in capsys.readouterr().err


# --------------------------------------------------------------------------------------------------------- plots
def test_class_names_in_a_plot_are_no_formulas(tmp_path):
    """matplotlib takes "$...$" for one: it fails, or never ends."""
    names = ["$\\frac{1}{$", "$\\evil$", "$" + "x^{y}" * 5000 + "$", "x" * 10**6, "a\n" * 10**5, "\x1b[2J\u202e\ud800"]
    confusion_plot({names[0]: {"confusion": np.eye(len(names)), "names": names}}, tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as image:
        assert max(image.size) < 1300
    assert [len(short_title(name, Font(10, names))) for name in names] == [11, 7, 24, 24, 24, 3]
