"""Folders that somebody else made, with a canary: no code of theirs runs, and nothing outside of them is touched."""

import ast
import json
import os
import shutil
from pathlib import Path

import hostile_faults
import hostile_folders
import pytest
import torch
from hub_server import TOKEN
from parents_common import stable_diffusion
from pipelines_common import make_components, quiet, tiny_vae

import cond_pipelines
from cond_pipelines import ClassConditionalPipeline, ConditionalPipeline, TextToImagePipeline
from cond_pipelines.cli import main
from cond_pipelines.data.formats import PILLOW_FORMATS
from cond_pipelines.errors import UserError, read_json, read_yaml
from cond_pipelines.files import append_text, load_array, own_seal, save_array, whole_file
from cond_pipelines.folders import check_model_folder, inside
from cond_pipelines.locks import locked_folder
from cond_pipelines.networks.pretrained import load_pipeline
from cond_pipelines.networks.text_encoders import load_text_encoder
from cond_pipelines.provenance import LORA_FILE, weights_fingerprint
from cond_pipelines.sharing.contents import copy_file
from cond_pipelines.training.checkpoints import _choose


@pytest.fixture(scope="module")
def right(tmp_path_factory):
    return hostile_folders.make_model(tmp_path_factory.mktemp("right") / "model")


@pytest.fixture()
def folder(right, tmp_path):
    shutil.copytree(right, tmp_path / "model")
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside/secret.txt").write_text("secret: 1\n")
    return tmp_path / "model"


def refused(args, capsys) -> str:
    """The one line of a command that refuses."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        main([str(arg) for arg in args])
    assert stop.value.code in (1, 2)
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert line.startswith("error: ")
    return line


def edit(path: Path, **values) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


# ------------------------------------------------------------------------------------------------------ the fuzz
def test_no_random_folder_runs_code_or_leaves_itself(right, tmp_path, hub):
    """A part of the sweep of benchmarks/hostile_folders.py, whose result lies in benchmarks/results."""
    only = ("card", "push", "compare", "convert", "ema")
    found = hostile_folders.sweep({"model": right}, tmp_path, range(10_000, 10_007), only)
    assert found["problems"] == []
    assert found["slowest_sec"] < hostile_folders.LIMIT_SEC
    assert sum(count for end, count in found["ends"].items() if "refused" in end) > 10


def test_the_judge_sees_what_it_must(right, tmp_path, monkeypatch):
    """Otherwise the test above could not fail."""
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "secret.txt").write_text("x")

    def bad(args: list[str]) -> None:
        (outside / "secret.txt").read_text()
        os.system("true")
        exec(compile("x = 1", str(right / "evil.py"), "exec"))
        raise KeyError("not one line")

    found, _, _ = hostile_folders.run_watched(bad, [], right, outside, [])
    assert [problem.split(":")[0].split(" /")[0] for problem in found] == [
        *("opened outside", "os.system", "executed", "not one line")
    ]

    def by_a_library(args: list[str]) -> None:
        mapped = torch.from_file(str(outside / "secret.txt"), size=1, dtype=torch.uint8)  # C++: Python does not see it
        print("\x1b[2J", int(mapped[0]))

    found, end, _ = hostile_folders.run_watched(by_a_library, [], right, outside, [])
    assert end == "done" and [problem.split(":")[0] for problem in found] == [
        "terminal codes",
        "read outside, by a library",
    ]


# ------------------------------------------------------------------------------------------------ paths and links
@pytest.mark.parametrize(
    "name", ["README.md", "evaluation", "card.yaml", "unet/config.json", "images", ".eval_results"]
)
@pytest.mark.parametrize("command", ["card", "push", "evaluate"])
def test_links_that_leave_the_folder(folder, name, command, capsys, hub):
    path, outside = folder / name, folder.parent / "outside"
    shutil.rmtree(path, ignore_errors=True)
    path.unlink(missing_ok=True)
    path.symlink_to(outside if "." not in name or name == ".eval_results" else outside / "secret.txt")
    args = {"push": ["push", folder, "me/model", "--token", TOKEN], "card": ["card", folder]}
    line = refused(args.get(command) or hostile_folders.evaluation(folder), capsys)
    assert "leads out of the folder" in line and not hub.repos
    assert {p.name: p.read_text() for p in outside.iterdir()} == {"secret.txt": "secret: 1\n"}


@pytest.mark.parametrize("name", ["secret.txt", "not_there"])
def test_a_lock_that_is_a_link_is_not_opened(name, tmp_path):
    """Before anything of the folder is read or checked."""
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside/secret.txt").write_text("secret: 1\n")
    (tmp_path / "run").mkdir()
    (tmp_path / "run/.lock").symlink_to(tmp_path / "outside" / name)
    said = pytest.raises(ValueError, match=r"run: its \.lock is a link to another file: delete it")
    with said, locked_folder(tmp_path / "run", True):
        pass
    assert {p.name: p.read_text() for p in (tmp_path / "outside").iterdir()} == {"secret.txt": "secret: 1\n"}


def test_links_within_the_folder_are_followed(folder):
    (folder / "samples.png").rename(folder / "images/all.png")
    (folder / "samples.png").symlink_to("images/all.png")
    check_model_folder(folder)
    assert inside(folder, "samples.png") == folder / "samples.png"


def test_what_a_hard_link_names_stays_as_it_is(right, tmp_path, capsys):
    """Nothing tells it from a file of the folder: it is read, and written anew."""
    shutil.copytree(right, tmp_path / "model")
    (tmp_path / "elsewhere").write_text("{}\n")
    for name in (
        ".lock",
        "log.jsonl",
        "README.md",
        "evaluation/.lock",
        "evaluation/report.json",
        "run.json",
        "loss.png",
    ):
        (tmp_path / "model" / name).unlink(missing_ok=True)
        os.link(tmp_path / "elsewhere", tmp_path / "model" / name)
    for place in (tmp_path / "model", tmp_path / "model/evaluation"):  # one lock after the other: they are one file
        with locked_folder(place, True):
            pass
    append_text(tmp_path / "model/log.jsonl", "a line\n")
    main(hostile_folders.evaluation(tmp_path / "model"))
    main(["card", str(tmp_path / "model")])
    assert (tmp_path / "elsewhere").read_text() == "{}\n"
    assert (tmp_path / "model/log.jsonl").read_text() == "{}\na line\n"


def test_an_unfinished_file_that_is_a_link(tmp_path):
    (tmp_path / "secret").write_text("secret")
    (tmp_path / "README.md.unfinished").symlink_to(tmp_path / "secret")
    with whole_file(tmp_path / "README.md") as unfinished:
        unfinished.write_text("mine")
    assert (tmp_path / "secret").read_text() == "secret" and (tmp_path / "README.md").read_text() == "mine"


@pytest.mark.parametrize("name", ["../HOME_ssh", "/etc", "a/b", "..", "\0"])
def test_components_are_identifiers(folder, name, capsys, hub):
    edit(folder / "model_index.json", **{name: ["diffusers", "UNet2DConditionModel"]})
    for args in (["card", folder], ["push", folder, "me/model", "--token", TOKEN], hostile_folders.evaluation(folder)):
        assert "is no name of a component" in refused(args, capsys)
    with pytest.raises(UserError, match="is no name of a component"):
        weights_fingerprint(folder)


@pytest.mark.parametrize("pair", [["diffusers", "UNet2DModel; import os"], ["evil\n# x", "Net"], ["diffusers", "a b"]])
def test_classes_are_identifiers(folder, pair, capsys, hub):
    """A card has the class of the network in a block of code."""
    edit(folder / "model_index.json", unet=pair)
    for args in (["card", folder], ["push", folder, "me/model", "--token", TOKEN], hostile_folders.evaluation(folder)):
        assert "of unet, is no name of a class or a module" in refused(args, capsys)


@pytest.mark.parametrize(
    "name", ["samples", "log.jsonl", ".lock", "ema", "unfinished-checkpoint-2", "evaluation", "unet"]
)
def test_a_run_writes_and_deletes_through_no_link(folder, name, capsys):
    """The folder of --output_dir may be one that somebody else made."""
    path, outside = folder / name, folder.parent / "outside"
    (outside / "000001.png").write_text("a photo")
    shutil.rmtree(path, ignore_errors=True)
    path.unlink(missing_ok=True)
    path.symlink_to(outside if "." not in name else outside / "secret.txt")
    here = ["train", "--dataset_name", hostile_folders.DATA, "--output_dir", folder, "--conditioning", "class"]
    for more in (["--resume_from_checkpoint", "latest"], ["--overwrite_output_dir"]):
        assert "leads out of the folder" in refused([*here, "--max_train_steps", "3", *more], capsys)
    assert {p.name: p.read_text() for p in outside.iterdir()} == {"secret.txt": "secret: 1\n", "000001.png": "a photo"}


def test_a_checkpoint_elsewhere_is_named_by_the_user_only(folder, capsys):
    """`latest` follows no link of the folder, and neither does a manifest."""
    elsewhere = folder.parent / "outside/checkpoint-9"
    shutil.move(folder / "checkpoint-2", elsewhere)
    (folder / "checkpoint-9").symlink_to(elsewhere)
    (folder / "checkpoint-7").symlink_to(folder / "checkpoint-7")  # to itself
    (folder / "checkpoint-1/manifest.json").rename(folder.parent / "outside/manifest.json")
    (folder / "checkpoint-1/manifest.json").symlink_to(folder.parent / "outside/manifest.json")
    capsys.readouterr()
    assert _choose(folder, "latest", None) == (None, None)
    assert "checkpoint-9 is passed over: it is a link to" in (text := capsys.readouterr().err)
    assert "checkpoint-1 is passed over: manifest.json cannot be read: it is a link" in text
    assert _choose(folder, str(elsewhere), None) == (str(elsewhere), None)


# --------------------------------------------------------------------------------------------------- which weights
def canary(path: Path) -> hostile_folders.Canary:
    return hostile_folders.Canary(path / "ran")


@pytest.mark.parametrize("name", ["x.bin", "../../outside/x.bin", "../x.safetensors", "x.pt"])
def test_an_index_names_safetensors_of_its_folder(folder, name, tmp_path):
    for path in (folder / "unet").glob("*.safetensors"):
        path.unlink()
    torch.save(canary(tmp_path), tmp_path / "outside/x.bin")
    torch.save(canary(tmp_path), folder / "unet/x.bin")
    index = {"metadata": {}, "weight_map": {"conv_in.weight": name}}
    (folder / "unet/diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(index))
    for load in (ConditionalPipeline.from_pretrained, load_pipeline):
        with pytest.raises(ValueError, match="only weights as safetensors, in the same folder, are read"):
            load(folder)
    assert not (tmp_path / "ran").exists()


def test_an_index_on_the_hub_names_safetensors_too(folder, hub):
    files = {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    files = {name: data for name, data in files.items() if not name.startswith("checkpoint")}
    files["unet/diffusion_pytorch_model.safetensors.index.json"] = json.dumps({"weight_map": {"a": "x.bin"}}).encode()
    hub.add("me/index", files)
    with pytest.raises(ValueError, match="only weights as safetensors"):
        ConditionalPipeline.from_pretrained("me/index")


@pytest.mark.parametrize("pair", [["diffusers", "StableDiffusionPipeline"], ["transformers", "AutoModel"]])
def test_a_component_is_a_network_and_no_pipeline(folder, pair):
    edit(folder / "model_index.json", extra=pair)
    with pytest.raises(ValueError, match="no network, scheduler or tokenizer"):
        ConditionalPipeline.from_pretrained(folder)


def test_lora_weights_are_safetensors(tmp_path):
    pipe = quiet(ClassConditionalPipeline(**make_components("class")))
    torch.save({"unet": canary(tmp_path)}, tmp_path / "x.bin")
    for args in ({"weight_name": "x.bin"}, {}):
        with pytest.raises(ValueError, match="no safetensors file: pickled weights can run code"):
            pipe.load_lora_weights(tmp_path if args else tmp_path / "x.bin", **args)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("kind", ["text encoder", "vae"])
def test_networks_by_name_are_safetensors(kind, tmp_path, capsys):
    part = stable_diffusion().text_encoder if kind == "text encoder" else tiny_vae()
    part.save_pretrained(tmp_path / "part")
    (weights,) = (tmp_path / "part").glob("*.safetensors")
    weights.unlink()
    torch.save(part.state_dict(), tmp_path / "part" / ("pytorch_model.bin" if kind != "vae" else f"{weights.stem}.bin"))
    with pytest.raises((ValueError, OSError)):
        if kind == "text encoder":
            load_text_encoder(str(tmp_path / "part"))
        else:
            from cond_pipelines import TrainingConfig
            from cond_pipelines.training.model import load_vae

            load_vae(TrainingConfig(train_data_dir="x", pretrained_vae_model_name_or_path=str(tmp_path / "part")))


def test_code_of_a_text_encoder_is_not_asked_for(tmp_path, monkeypatch):
    """transformers would ask on the terminal; with "y" piped in, the repository's code ran."""
    encoder, tokenizer = stable_diffusion().text_encoder, stable_diffusion().tokenizer
    encoder.save_pretrained(tmp_path / "text")
    tokenizer.save_pretrained(tmp_path / "text")
    (tmp_path / "text/evil.py").write_text(f"import os\nos.mkdir({str(tmp_path / 'ran')!r})\n")
    edit(tmp_path / "text/config.json", model_type="evil", auto_map={"AutoConfig": "evil.C", "AutoModel": "evil.M"})
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    with pytest.raises((ValueError, OSError)):
        load_text_encoder(str(tmp_path / "text"))
    assert not (tmp_path / "ran").exists()


def test_a_peft_file_is_not_followed(folder, capsys, tmp_path):
    (folder / "unet/adapter_config.json").write_text('{"base_model_name_or_path": "../outside"}')
    assert "would load another model" in refused(["card", folder], capsys)
    (tmp_path / "network").mkdir()  # of a single network, whose loader looks for the file at the root
    (tmp_path / "network/Adapter_Config.json").write_text('{"base_model_name_or_path": "../outside"}')
    with pytest.raises(UserError, match="would load another model"):
        load_text_encoder(str(tmp_path / "network"))


@pytest.mark.parametrize(
    ("file", "values", "why"),
    [
        ("config.json", {"text_config": {"_attn_implementation": "evil/kernel"}}, "which is not run"),
        ("config.json", {"attn_implementation": {"text_config": "evil/kernel"}}, "which is not run"),
        ("config.4.0.0.json", {"num_hidden_layers": 10**9}, "more than any network has"),
        ("CONFIG.JSON", {"num_hidden_layers": 10**9}, "more than any network has"),
        ("config.json", {"configuration_files": ["../outside/config.1.0.json"]}, "only a file of the same folder"),
        ("tokenizer_config.json", {"fast_tokenizer_files": ["../x/tokenizer.1.0.json"]}, "only a file of the same"),
        ("tokenizer_config.json", {"vocab_file": "/etc/passwd"}, "only a file of the same"),
        ("tokenizer_config.json", {"source_spm": ".."}, "only a file of the same"),
    ],
)
def test_a_config_asks_for_nothing_elsewhere(file, values, why, tmp_path):
    """transformers reads config.4.0.0.json where a config.json names it, and code for attention from the Hub."""
    (tmp_path / "config.json").write_text('{"model_type": "clip", "configuration_files": ["config.4.0.0.json"]}')
    (tmp_path / file).write_text(json.dumps(values))
    with pytest.raises(UserError, match=why) as error:
        load_text_encoder(str(tmp_path))
    assert file in str(error.value)


# ------------------------------------------------------------------------------------------- what a folder says
@pytest.mark.parametrize(
    ("flag", "value"),
    [("dataset_name", "evil_data:run"), ("train_data_dir", "../outside"), ("conditioning", "evil:ROW")],
)
def test_evaluate_follows_no_path_or_module_of_the_folder(folder, flag, value, tmp_path, monkeypatch, capsys):
    (tmp_path / "evil_data.py").write_text(f"import os\nos.mkdir({str(tmp_path / 'ran')!r})\n")
    monkeypatch.chdir(tmp_path)
    recorded = read_yaml(folder / "training_config.yaml") | {"dataset_name": None, flag: value, "cache_dir": "outside"}
    import yaml

    (folder / "training_config.yaml").write_text(yaml.safe_dump(recorded))
    args = ["evaluate", folder, "--num_samples", "8", "--feature_extractor", "pixels"]
    if flag == "conditioning":
        main(hostile_folders.evaluation(folder))  # its adapter is of a known setting
    else:
        assert f"add to the command: --{flag} {value}" in refused(args, capsys)
    assert not (tmp_path / "ran").exists() and [p.name for p in (tmp_path / "outside").iterdir()] == ["secret.txt"]


def test_planted_samples_are_drawn_again(folder):
    """Parts that were made elsewhere, or of another model, are no samples of this one."""
    import numpy as np
    from PIL import Image

    (samples,) = (folder / "evaluation/samples").iterdir()
    genuine = load_array(samples / "00000.npy")
    save_array(samples / "00000.npy", np.zeros_like(genuine))
    save_array(samples / "00001.npy", np.zeros_like(genuine))
    shutil.copy(samples / "00001.npy", samples / "99999.npy")
    main(hostile_folders.evaluation(folder))
    assert np.array_equal(load_array(samples / "00000.npy"), genuine)
    main([*hostile_folders.evaluation(folder), "--num_samples", "40"])  # with a second part
    assert load_array(samples / "00001.npy").any() and np.array_equal(load_array(samples / "00000.npy"), genuine)
    with pytest.raises(ValueError, match="was not made here of the same model and settings"):
        load_array(samples / "00000.npy", own_seal({"another": "model"}))
    assert Image.open(folder / "evaluation/samples.png").size


# ---------------------------------------------------------------------------------------------------------- bombs
@pytest.mark.parametrize("text", hostile_folders.YAMLS[:7], ids=lambda text: text[:12])
def test_yaml_bombs_end_in_one_line(text, folder, capsys):
    (folder / "card.yaml").write_text(text)
    line = refused(["card", folder], capsys)
    assert "card.yaml" in line


def test_yaml_may_repeat_itself(tmp_path):
    (tmp_path / "a.yaml").write_text("a: &a [1, 2]\nb: *a\nc: {<<: {d: 1}, e: 2}\n")
    assert read_yaml(tmp_path / "a.yaml") == {"a": [1, 2], "b": [1, 2], "c": {"d": 1, "e": 2}}


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a":' * 50_000, '{"a": 1' + "0" * 5000 + "}"], ids=len)
def test_json_bombs_end_in_one_line(text, tmp_path):
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(UserError, match=r"a\.json is not JSON"):
        read_json(tmp_path / "a.json")


@pytest.mark.parametrize(
    ("file", "values"),
    [
        ("unet/config.json", {"layers_per_block": 10**9}),
        ("unet/config.json", {"layers_per_block": [2, 10**9]}),
        ("unet/config.json", {"attention_head_dim": -4}),
        ("unet/config.json", {"block_out_channels": [32] * 6000}),
        ("adapter/config.json", {"num_classes": 2 * 10**9}),
        ("scheduler/scheduler_config.json", {"num_train_timesteps": 10**9}),
        ("model_index.json", {"default_num_inference_steps": 10**9}),
        ("unet/config.json", {"nested": json.loads("[" * 80 + "]" * 80)}),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_sizes_that_no_network_has(file, values, folder, capsys):
    edit(folder / file, **values)
    for args in (["card", folder], hostile_folders.evaluation(folder)):
        assert str(folder / file) in refused(args, capsys)


@pytest.mark.parametrize("length", [float("-inf"), float("nan"), 0, "x" * 1000, [1]])
def test_a_tokenizer_cuts_at_a_number_of_tokens(length, tmp_path):
    path = tmp_path / "tokenizer_config.json"
    path.write_text(json.dumps({"model_max_length": length}))
    with pytest.raises(UserError, match=r"model_max_length .* must be a number of tokens"):
        check_model_folder(tmp_path)
    for usual in (None, 77, 1e30):
        path.write_text(json.dumps({"model_max_length": usual}))
        check_model_folder(tmp_path)


@pytest.mark.parametrize("numbers", [1.5, "1", [1.5], [[1]], {"1": 1}])
def test_trained_tokens_are_numbers(numbers, tmp_path):
    path = tmp_path / "tokenizer_config.json"
    path.write_text(json.dumps({"trained_ids": numbers}))
    with pytest.raises(UserError, match=r"trained_ids .* must be a list of tokens' numbers"):
        check_model_folder(tmp_path)


@pytest.mark.parametrize("normalizers", [[("a", "aa")] * 60, [("a", "a" * 10**6)], [("a", "a" * 40)] * 3], ids=len)
def test_a_tokenizer_whose_replacements_have_no_end(normalizers, tmp_path):
    steps = [{"type": "Replace", "pattern": {"String": a}, "content": b} for a, b in normalizers]
    (tmp_path / "tokenizer.json").write_text(json.dumps({"normalizer": {"type": "Sequence", "normalizers": steps}}))
    with pytest.raises(UserError, match=r"tokenizer\.json: its replacements make a text up to .* times as long"):
        load_text_encoder(str(tmp_path))


def test_a_pipe_is_not_waited_for(folder, capsys):
    (folder / "unet/config.json").unlink()
    os.mkfifo(folder / "unet/config.json")
    assert "is neither a file nor a folder" in refused(["card", folder], capsys)


def test_pictures_that_cannot_be_read_are_no_bug(folder):
    """Pillow raises errors of its own for a picture with too many pixels."""
    for picture in hostile_faults.pictures():
        for name in ("samples.png", "samples.gif", "images/00.png"):
            (folder / name).write_bytes(picture)
        main(["card", str(folder)])
    assert "Not recorded" not in (folder / "README.md").read_text()


@pytest.mark.parametrize(
    "header", [b"[" * 50_000, b"[]", b"3", b'{"__metadata__": []}', b'{"__metadata__": {"a": 3}}', b"\xff"], ids=str
)
def test_a_lora_with_another_header(header, tmp_path):
    for length in (len(header), 2**63):
        (tmp_path / LORA_FILE).write_bytes(length.to_bytes(8, "little") + header)
        with pytest.raises(UserError, match=LORA_FILE):
            copy_file(tmp_path, LORA_FILE, tmp_path / "stage")


def test_images_are_opened_by_formats_that_run_nothing():
    """Without a list Pillow starts Ghostscript for PostScript, whatever the suffix says."""
    calls = [
        (path.name, node)
        for path in sorted(Path(cond_pipelines.__file__).parent.rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and ast.unparse(node.func) in ("Image.open", "PIL.Image.open")
    ]
    assert len(calls) >= 4 and not [name for name, node in calls if "formats" not in {k.arg for k in node.keywords}]
    assert not {"EPS", "WMF", "PDF", "MPEG"} & set(PILLOW_FORMATS)


@pytest.mark.parametrize("flag", ["--image", "--mask_image"])
def test_an_image_that_is_a_program(right, flag, tmp_path, capsys):
    (tmp_path / "a.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nquit\n")
    args = [
        "sample",
        right,
        "circle",
        "--image",
        tmp_path / "a.png",
        flag,
        tmp_path / "a.png",
        "--out",
        tmp_path / "b.png",
    ]
    assert "it is PostScript, which is a program and not opened" in refused(args, capsys)


def test_real_models_pass(tmp_path):
    for name, pipe in {"sd": stable_diffusion(), "text": quiet(TextToImagePipeline(**make_components("text")))}.items():
        pipe.save_pretrained(tmp_path / name)
        check_model_folder(tmp_path / name)
