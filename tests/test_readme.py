"""The code blocks of the README and the guides run as they stand, in their order, in one folder."""

import json
import re
import shlex
import shutil
import sys
from pathlib import Path

import pytest
from diffusers import FlowMatchEulerDiscreteScheduler
from hub_server import TOKEN
from parents_common import stable_diffusion, unconditional_parent

from cond_pipelines import (
    ClassConditionalPipeline,
    ClassLabelAdapter,
    ConditionalPipeline,
    TextAdapter,
    TextToImagePipeline,
    TrainingConfig,
    UnconditionalAdapter,
    UnconditionalPipeline,
    build_unet,
    train,
)
from cond_pipelines.cli import main as cli_main
from cond_pipelines.data.load import load_data
from cond_pipelines.data.shapes import SHAPES, load_shapes
from cond_pipelines.networks.surgery import with_end_time
from cond_pipelines.networks.text_encoders import new_text_encoder
from cond_pipelines.training.command_line import training_parser
from cond_pipelines.training.config import parse_args
from cond_pipelines.training.lora import add_lora, save_model
from cond_pipelines.training.model import build_pipeline, image_channels, load_parent, load_vae

ROOT = Path(__file__).parents[1]
TEXTS = {path: path.read_text() for path in [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]}
BLOCKS = [
    (f"{path.stem}-{number}", language, code)
    for path, text in TEXTS.items()
    for number, (language, code) in enumerate(re.findall(r"```(\w+)\n(.*?)```", text, re.DOTALL))
]
PYTHON = {name: code for name, language, code in BLOCKS if language == "python"}
TRAIN = [code.strip() for _, language, code in BLOCKS if language == "bash" and "cond-pipelines train" in code]
COMMANDS = [
    line
    for _, language, code in BLOCKS
    for line in code.replace("\\\n", " ").splitlines()
    if language in ("bash", "text") and line.startswith("cond-pipelines ")
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """What a reader has after `make demo`, only smaller, and a folder of images with classes and captions."""
    folder = tmp_path_factory.mktemp("readme")
    unet = build_unet("xxs", sample_size=16, block_out_channels=(32, 32))
    common = {"unet": unet, "scheduler": FlowMatchEulerDiscreteScheduler(), "default_num_inference_steps": 2}
    adapter = UnconditionalAdapter.for_unet(unet)
    UnconditionalPipeline(adapter=adapter, **common).save_pretrained(folder / "demo/unconditional")
    adapter = ClassLabelAdapter.for_unet(unet, id2label={str(i): name for i, name in enumerate(SHAPES)})
    ClassConditionalPipeline(adapter=adapter, **common).save_pretrained(folder / "demo/class_conditional")
    distilled = common | {"unet": with_end_time(unet), "objective": {"name": "distillation"}}
    ClassConditionalPipeline(adapter=adapter, **distilled).use_scheduler("lcm").save_pretrained(folder / "fast")
    adapter = UnconditionalAdapter.for_unet(unet)
    UnconditionalPipeline(adapter=adapter, guide=unet, **common).save_pretrained(folder / "guided")
    text_encoder, tokenizer = new_text_encoder(["a red circle on a black background"], hidden_size=32, num_layers=1)
    adapter = TextAdapter.for_unet(unet, text_encoder=text_encoder)
    pipe = TextToImagePipeline(adapter=adapter, text_encoder=text_encoder, tokenizer=tokenizer, **common)
    pipe.save_pretrained(folder / "demo/text_to_image")

    parent = ConditionalPipeline.from_pretrained(folder / "demo/unconditional")
    adapter = ClassLabelAdapter.for_unet(parent.unet, num_classes=2)
    pipe = ClassConditionalPipeline.from_pipe(parent, adapter=adapter)
    add_lora(pipe.unet, TrainingConfig(), ["to_q"])
    save_model(pipe, folder / "my_lora", parent)
    stable_diffusion().save_pretrained(folder / "checkpoints/sd")
    for kind in ("DDPM", "LDM"):
        unconditional_parent(kind).save_pretrained(folder / "checkpoints" / kind.lower())

    captions = []
    for number, row in enumerate(load_shapes(12)):
        name = f"{SHAPES[row['label']]}/{number}.png"
        (folder / "my_images" / name).parent.mkdir(parents=True, exist_ok=True)
        row["image"].save(folder / "my_images" / name)
        captions.append({"file_name": name, "text": row["caption"]})
    (folder / "captions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in captions))
    return folder


@pytest.mark.parametrize("name", PYTHON)
def test_python_block_runs(name, folder, monkeypatch, hub):
    monkeypatch.chdir(folder)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    exec(compile(PYTHON[name], f"python block {name}", "exec"), {})


@pytest.mark.parametrize("number", range(len(TRAIN)))
def test_training_command_trains(number, folder, monkeypatch):
    captions = folder / "my_images/metadata.jsonl"
    if "--conditioning text" in TRAIN[number]:
        shutil.copy(folder / "captions.jsonl", captions)
    else:
        captions.unlink(missing_ok=True)
    output_dir = folder / f"output-{number}"
    small = "--max_train_steps 2 --unet_size xxs --train_batch_size 2 --default_num_inference_steps 1"
    arguments = f"{TRAIN[number]} {small} --validation_steps 0 --output_dir {output_dir}"
    monkeypatch.chdir(folder)
    train(parse_args(shlex.split(arguments.removeprefix("cond-pipelines train"))))
    assert (output_dir / "model_index.json").is_file()


@pytest.mark.parametrize("command", [line for line in COMMANDS if line.split()[1] != "train"])
def test_a_command_of_the_documents_is_accepted_by_its_parser(command, folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "argv", ["cond-pipelines", command.split()[1], "--help"])
    with pytest.raises(SystemExit):
        cli_main()
    help_text = capsys.readouterr().out
    assert [flag for flag in re.findall(r"--\w+", command) if flag not in help_text] == []


@pytest.mark.parametrize("command", [line for line in COMMANDS if line.split()[1] == "train" and "..." not in line])
def test_a_training_command_of_the_documents_parses(command, folder, monkeypatch):
    monkeypatch.chdir(ROOT)
    parse_args(shlex.split(command)[2:])


LAUNCHED = [
    line
    for _, language, code in [*BLOCKS, ("", "text", (ROOT / "training/README.md").read_text())]
    for line in code.replace("\\\n", " ").splitlines()
    if language in ("bash", "text") and "-m cond_pipelines.training " in line
]


def test_flags_of_launched_commands_are_known():
    """`torchrun ... -m cond_pipelines.training --flag`, in the guides and the training document."""
    known = set(training_parser()._option_string_actions)
    flags = [
        flag for line in LAUNCHED for flag in re.findall(r"--\w+", line.partition("-m cond_pipelines.training ")[2])
    ]
    assert len(LAUNCHED) >= 4 and flags and [flag for flag in flags if flag not in known] == []


PARENTS = re.findall(
    r"`(--conditioning \w+ [^`]*--pretrained_model_name_or_path [^`]+)`",
    (ROOT / "docs/guides/checkpoints.md").read_text(),
)


@pytest.mark.parametrize("arguments", PARENTS)
def test_the_table_of_parents(arguments, folder, monkeypatch):
    """Each cell builds its model; at a size for a test."""
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(ROOT / "tests")
    small = "--dataset_name training_common:few_shapes --resolution 16"
    config = parse_args(shlex.split(f"{arguments} {small}"))
    parent = load_parent(config)
    vae = load_vae(config, parent)
    pipe = build_pipeline(config, load_data(config, image_channels(config, parent, vae)), vae, parent)
    assert pipe.conditioning == config.conditioning == re.search(r"--conditioning (\w+)", arguments)[1]
    assert pipe.unet.state_dict().keys() == parent.unet.state_dict().keys()


def test_the_table_of_parents_is_complete():
    assert len(PARENTS) == len(set(PARENTS)) == 12


def test_blocks_were_found():
    assert len(PYTHON) >= 10
    assert [re.search(r"--conditioning (\w+)", code)[1] for code in TRAIN] == ["none", "class", "text"]


def test_the_readme_is_a_front_page():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150


def test_no_line_installs_what_is_not_released():
    """There is no package of this name on PyPI: everything says `pip install .`, or what the user lacks."""
    files = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "training").glob("*.md")]
    files += [
        path for folder in ("src", "studies", "benchmarks", "model_cards") for path in (ROOT / folder).rglob("*.*")
    ]
    found = [path for path in files if path.suffix in (".md", ".py") and b"pip install cond" in path.read_bytes()]
    quoted = [path for path in files if path.suffix in (".md", ".py") and b"pip install 'cond" in path.read_bytes()]
    assert found + quoted == []


def tree(text: str) -> list[str]:
    """The files of the tree in CONTRIBUTING.md, relative to src/cond_pipelines; folders are by indentation."""
    block = re.search(r"```text\nsrc/cond_pipelines/\n(.*?)```", text, re.DOTALL)[1]
    folders, files = {0: ""}, []
    for indent, name in re.findall(r"^( +)(\S+)", block, re.MULTILINE):
        path = folders[len(indent) - 2] + name
        if name.endswith("/"):
            folders[len(indent)] = path
        else:
            files.append(path)
    return files


def test_every_module_is_in_the_file_tree():
    source = ROOT / "src/cond_pipelines"
    files = tree((ROOT / "CONTRIBUTING.md").read_text())
    assert len(files) == len(set(files))
    there = [path.relative_to(source).as_posix() for path in source.rglob("*.py")]
    assert [name for name in there if name not in files and not name.endswith("/__init__.py")] == []
    assert [name for name in files if name not in there] == []


DOCUMENTS = [path.relative_to(ROOT).as_posix() for path in TEXTS] + [
    *("CONTRIBUTING.md", "training/README.md", "studies/README.md"),
]


@pytest.mark.parametrize("name", DOCUMENTS)
def test_files_and_functions_that_a_document_names_are_there(name):
    """Each `path/file.py` exists, below the root or the package; each link too; each `file.py: function` has it."""
    text = (ROOT / name).read_text()
    bases = (ROOT, ROOT / "src/cond_pipelines")

    def place(path: str) -> Path | None:
        return next((base / path for base in bases if (base / path).exists()), None)

    paths = set(re.findall(r"(?<![\w/.{*-])((?:\w+/)+\w+\.py)\b", text))
    assert [path for path in sorted(paths) if place(path) is None] == []
    links = {link.partition("#")[0] for link in re.findall(r"\]\(([^)\s]+)\)", text) if "://" not in link}
    assert [link for link in sorted(links - {""}) if not (ROOT / name).parent.joinpath(link).exists()] == []
    pairs = re.findall(r"`([\w/]+\.py)`: `([\w.]+)`", text) + [
        (file, test) for test, file in re.findall(r"`(test_\w+|Test\w+)`\s\((tests/[\w/]+\.py)\)", text)
    ]
    for file, function in pairs:
        *cls, last = function.split(".")
        code = place(file).read_text()
        assert re.search(rf"^\s*(def|class) {last}\b", code, re.MULTILINE), f"{file}: {function}"
        assert not cls or f"class {cls[0]}" in code, f"{file}: {function}"
