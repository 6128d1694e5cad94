"""The faults of hostile_folders.py: each changes a folder that works, as somebody would who means harm.

A fault is called with the folder, a folder outside of it that nobody may touch, and a source of random choices.
"""

import base64
import contextlib
import functools
import itertools
import json
import os
import pickle
import random
import shutil
import socket
import stat
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch


class Canary:
    """Writes a file outside when it is unpickled."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.path}",)


NASTY = (
    *(
        "a\x1b[2Jb",
        "\u202eesor",
        "# Heading\n\n```bash\nrm -rf ~\n```",
        "<script>alert(1)</script>",
        "| a | b |",
        "`x`",
    ),
    *(
        "rose\rerror: 0",
        "\x1b]8;;http://evil.example\x07rose\x1b]8;;\x07",
        "ro\u200bse\u2066\u00ad",
        "\u0085\u2028rose",
    ),
    *(
        "{{ 7 * 7 }}{% for x in y %}",
        "---\nlicense: x\n---",
        "a\u0301" * 200,
        "\ud800",
        "\0",
        "$(touch x)",
        "x" * 100_000,
    ),
)
NAMES = (
    *("../HOME_ssh", "/etc/passwd", "a/b", ".", "..", "", "x y", "é", "unet/../../x", "a" * 300, "\0", "-rf", "CON"),
    *("Unet", "UNET", "un\u0435t", "unet\u200b", "unet.", "unet ", "__class__", "self", "_unet", "unet\n"),
)
JSONS = (
    *("", "[]", "3", "null", "{", '{"a": NaN}', "[" * 100_000, '{"a": ' * 30_000, "\xff\xfe"),
    *('{"a": 1' + "0" * 5000 + "}", "\ufeff{}".encode().decode("latin1"), "{}" + " " * 2**21, '{"a": 1, "a": []}'),
    "version https://git-lfs.github.com/spec/v1\noid sha256:" + "0" * 64 + "\nsize 1234\n",
)
_BOMB = "".join(f"{b}: &{b} [{', '.join(['*' + a] * 8)}]\n" for a, b in itertools.pairwise("abcdefghi"))
_MERGED = "".join(
    f"{b}: &{b} {{<<: [{', '.join(['*' + a] * 8)}], {b}1: 1}}\n" for a, b in itertools.pairwise("abcdefghi")
)
YAMLS = (
    "a: &a [x, x, x, x, x, x, x, x]\n" + _BOMB,
    "a: &a [*a]\n",
    "a: !!python/object/apply:os.system ['touch x']\n",
    "description: [" * 3000,
    "license: 2024-13-01\n",
    "tags: " + "{a: " * 500 + "\n",
    "a: " + "9" * 10_000 + "\n",
    "dataset_name: evil:run\nconditioning: evil:ROW\n",
    "train_data_dir: {outside}\ncache_dir: {outside}/cache\n",
    "a: &a {a1: 1}\n" + _MERGED,
    "<<: &x {<<: *x}\n",
    "name: 2024-01-01\ntags: [2024-01-01 10:00:00, !!binary aGk=, !!set {a, b}, .nan]\nlicense: ~\n",
    "? [a, b]\n: c\n? {x: y}\n: z\n",
    "name: !!int '1_000'\ndescription: !!timestamp 2001-12-14t21:59:43.10-05:00\n",
    "--- a\n--- b\n",
    "%TAG ! tag:evil.example,2000:\n---\nname: !x y\n",
    "train_data_dir: http://evil.example/x\ndataset_name: https://evil.example/y\ncache_dir: file:///etc\n",
    "resolution: 1000000000\nvalidation_fraction: .inf\nseed: -1\nmax_train_samples: 0x7fffffffffffffff\n",
)
SIZES = {
    "unet/config.json": ("layers_per_block", "sample_size", "cross_attention_dim", "norm_num_groups", "in_channels"),
    "adapter/config.json": ("num_classes", "embedding_dim", "token_dim", "pooled_dim", "max_length", "hidden_size"),
    "scheduler/scheduler_config.json": ("num_train_timesteps",),
    "model_index.json": ("default_num_inference_steps",),
    "vae/config.json": ("latent_channels", "norm_num_groups", "layers_per_block"),
    "text_encoder/config.json": ("num_hidden_layers", "hidden_size", "vocab_size", "max_position_embeddings"),
    "tokenizer/tokenizer_config.json": ("model_max_length",),
}


def _files(folder: Path, rng: random.Random, *suffixes: str) -> Path:
    paths = sorted(
        p for p in folder.rglob("*") if p.is_file() and not p.is_symlink() and (not suffixes or p.suffix in suffixes)
    )
    return rng.choice(paths)


def _folder(folder: Path, rng: random.Random) -> Path:
    """The folder itself or one in it."""
    return rng.choice([folder, *sorted(p for p in folder.iterdir() if p.is_dir() and not p.is_symlink())])


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)
    path.parent.mkdir(parents=True, exist_ok=True)


def _edit(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    with contextlib.suppress(ValueError, OSError, RecursionError):
        values = json.loads(path.read_text())
        if isinstance(values, dict):
            change(values)
            path.write_text(json.dumps(values))


def bad_name(folder: Path, outside: Path, rng: random.Random) -> None:
    name = rng.choice(NAMES)
    _edit(folder / "model_index.json", lambda index: index.update({name: ["diffusers", "UNet2DConditionModel"]}))


def bad_class(folder: Path, outside: Path, rng: random.Random) -> None:
    pairs = [
        *(["diffusers", name] for name in ("StableDiffusionPipeline", "OnnxRuntimeModel", "AutoModel", "__version__")),
        *(["transformers", name] for name in ("AutoModel", "pipeline", "Trainer", "AutoTokenizer")),
        *(["os", "system"], ["evil", "Net"], [["a"], {}], [3, 4], ["x"], ["cond_pipelines.demo", "run_demo"]),
        *(["torch.hub", "load"], ["importlib", "import_module"], ["peft", "PeftModel"], ["diffusers.utils", "x"]),
    ]
    name = rng.choice(("unet", "scheduler", "adapter", "extra", "_class_name", "_adapter_from", "_diffusers_version"))
    _edit(folder / "model_index.json", lambda index: index.update({name: rng.choice(pairs)}))
    (folder / "evil.py").write_text(f"import os; os.system('touch {outside}/ran')\nclass Net: pass\nROW = run = Net\n")


_PLACES = (
    *("README.md", "evaluation", "images", ".eval_results", "card.yaml", "unet", "evaluation/report.json", "ema"),
    *("training_config.yaml", "samples.png", "model_index.json", "unet/config.json", "evaluation/.lock", ".lock"),
    *("evaluation/samples", "README.md.unfinished", "adapter/config.json", "training_summary.json", "log.jsonl"),
    *("run.json", "samples", "loss.png", "samples.gif", "unfinished-checkpoint-2", "unfinished-model", "logs"),
    *("checkpoint-2", "checkpoint-1", "evaluation/sweep", "evaluation/features-0.npy", "unfinished-checkpoint-1"),
    *(
        "metadata.csv",
        "cat",
        "tokenizer/vocab.json",
        "text_encoder/config.json",
        "vae/config.json",
        "ema/1.safetensors",
    ),
)


def link(folder: Path, outside: Path, rng: random.Random) -> None:
    path, secret = folder / rng.choice(_PLACES), outside / "secret.txt"
    targets = [
        secret,
        outside,
        outside / "not_there",
        path,
        Path("../..") / outside.name / secret.name,
        Path("/dev/zero"),
    ]
    _remove(path)
    with contextlib.suppress(OSError):
        path.symlink_to(rng.choice(targets))


def hard_link(folder: Path, outside: Path, rng: random.Random) -> None:
    """Nothing tells it from a file of the folder, so it may be read; what it names must stay as it is."""
    path = folder / rng.choice([place for place in _PLACES if "." in place[1:]])
    _remove(path)
    os.link(outside / "linked.txt", path)


def special(folder: Path, outside: Path, rng: random.Random) -> None:
    path = _files(folder, rng)
    path.unlink()
    kind = rng.choice(("pipe", "socket", "zero", "tty"))
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "socket":
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as server:
            server.bind(str(path))
    else:
        with contextlib.suppress(OSError):  # without the right to make one
            os.mknod(path, 0o600 | stat.S_IFCHR, os.makedev(1, 5) if kind == "zero" else os.makedev(5, 0))


def weights_index(folder: Path, outside: Path, rng: random.Random) -> None:
    sub = folder / rng.choice(("unet", "adapter", "vae", "text_encoder"))
    if not sub.is_dir():
        return
    torch.save(Canary(outside / "ran"), sub / "x.bin")
    for path in sub.glob("*.safetensors"):
        path.unlink()
    names = (
        "x.bin",
        f"../../{outside.name}/x.bin",
        f"{outside}/x.bin",
        "../x.safetensors",
        3,
        "x.pt",
        "a\0.safetensors",
    )
    index = {
        "metadata": {"total_size": 10},
        "weight_map": {"conv_in.weight": rng.choice((*names, "..", None, ["x.bin"]))},
    }
    stem = rng.choice(("diffusion_pytorch_model", "model", "pytorch_model"))
    (sub / f"{stem}.{rng.choice(('safetensors', 'bin'))}.index.json").write_text(json.dumps(index))


def pickles(folder: Path, outside: Path, rng: random.Random) -> None:
    sub = folder / rng.choice(("unet", "adapter", ".", "checkpoint-1", "vae", "text_encoder", "evaluation"))
    names = (
        *("diffusion_pytorch_model.bin", "pytorch_lora_weights.bin", "pytorch_model.bin", "custom_checkpoint_0.pkl"),
        *("features-0.npy", "model.onnx", "model.gguf", "tf_model.h5", "flax_model.msgpack", "adapter_model.bin"),
    )
    if sub.is_dir():
        for name in names:
            (sub / name).write_bytes(pickle.dumps(Canary(outside / "ran")))
        if rng.random() < 0.5:
            for path in sub.glob("*.safetensors"):
                path.unlink()


def checkpoint(folder: Path, outside: Path, rng: random.Random) -> None:
    """With checksums that are right."""
    from cond_pipelines.training.checkpoints import _write_manifest, read_manifest

    path = folder / "checkpoint-1"
    with contextlib.suppress(ValueError, OSError):
        manifest = read_manifest(path)
        name = rng.choice(
            ("optimizer.bin", "custom_checkpoint_0.pkl", "random_states_0.pkl", "model.bin", "scaler.pt", "")
        )
        if name:
            torch.save({"values": [Canary(outside / "ran")]}, path / name)
        else:
            key = rng.choice(("step", "position", "elapsed_sec", "losses", "skipped", "batch", "num_processes"))
            value = rng.choice((10**12, -5, float("nan"), float("inf"), [], [[1e308, 0]], NASTY[0], 2**70))
            _edit(path / "progress.json", lambda progress: progress.update({key: value}))
        object.__setattr__(manifest, "run", rng.choice((manifest.run, NASTY[0])))
        (path / "manifest.json").unlink()
        _write_manifest(path, manifest)


def bad_json(folder: Path, outside: Path, rng: random.Random) -> None:
    _files(folder, rng, ".json").write_bytes(rng.choice(JSONS).encode("latin1"))


def odd_json(folder: Path, outside: Path, rng: random.Random) -> None:
    values = (
        *(None, [], {}, -1, 0, 1e300, float("nan"), float("inf"), -float("inf"), 2**63, "x" * 1000, True, [[[]]]),
        *({"a": {"b": []}}, [float("nan")], ["x"], {"": 1}, *NASTY),
    )

    def change(found: dict[str, Any]) -> None:
        for _ in range(rng.randint(1, 3)) if found else ():
            found[rng.choice(sorted(found))] = rng.choice(values)

    _edit(_files(folder, rng, ".json"), change)


def bad_yaml(folder: Path, outside: Path, rng: random.Random) -> None:
    text = rng.choice(YAMLS).replace("{outside}", str(outside))
    (folder / rng.choice(("card.yaml", "training_config.yaml"))).write_text(text)


def size(folder: Path, outside: Path, rng: random.Random) -> None:
    name = rng.choice(sorted(name for name in SIZES if (folder / name).is_file()))
    value = rng.choice((10**9, 2 * 10**9, 10**15, -(10**9), 1e9, 9_999_999, 4_000))
    _edit(folder / name, lambda config: config.update({rng.choice(SIZES[name]): value}))


def safetensors_header(folder: Path, outside: Path, rng: random.Random) -> None:
    path = _files(folder, rng, ".safetensors")
    data = path.read_bytes()
    tensor = {"dtype": "F32", "shape": [10**9, 10**9], "data_offsets": [0, 4]}
    metadata: list[Any] = [{"run": rng.choice(NASTY)}, [], None, "x", {"a": 3}, {"a": "[" * 50_000}, {"a": "\ud800"}]
    metadata += [{str(i): "x" for i in range(100_000)}, {"a": '{"_": ' + "9" * 5000 + "}"}]
    headers = [b"{", b"[" * 50_000, b"[]", b"3", b"\xff" * 8, json.dumps({"a": tensor}).encode()]
    headers += [json.dumps({"__metadata__": rng.choice(metadata)}).encode(errors="replace")] * 3
    if rng.random() < 0.3:  # the right tensors, with other metadata
        length = int.from_bytes(data[:8], "little")
        right = json.loads(data[8 : 8 + length]) | {"__metadata__": rng.choice(metadata)}
        header = json.dumps(right).encode()
        path.write_bytes(struct.pack("<Q", len(header)) + header + data[8 + length :])
        return
    header = rng.choice(headers)
    length = rng.choice((len(header), len(header), 2**62, 2**63, 0, 10**8))
    path.write_bytes(struct.pack("<Q", length) + header + data[-100:])


def text(folder: Path, outside: Path, rng: random.Random) -> None:
    nasty = rng.choice(NASTY)
    _edit(folder / "adapter/config.json", lambda c: c.update(id2label={str(i): f"{nasty}{i}" for i in range(5)}))
    _edit(folder / "training_summary.json", lambda c: c.update(dataset=nasty, objective=nasty, run=nasty))
    row = {"question": nasty, "name": nasty, "value": 1.0, "better": "lower", "interval": None}
    _edit(folder / "evaluation/report.json", lambda c: c.update(measures=[row]))
    _edit(folder / "run.json", lambda c: c.update(run=nasty))
    if (folder / "metadata.csv").is_file():
        (folder / "metadata.csv").write_text(f'file_name,text\n0.png,"{nasty.replace(chr(0), "")}"\n', errors="replace")


def code(folder: Path, outside: Path, rng: random.Random) -> None:
    names = ("evil.py", "sitecustomize.py", "adapter/__init__.py", "wandb.py", "xformers/__init__.py", ".git/hooks/x")
    for path in [*folder.rglob("*.py"), *(folder / name for name in names)]:
        with contextlib.suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f"import os; os.system('touch {outside}/ran')\n")
    for name in ("unet/config.json", "adapter/config.json", "model_index.json", "text_encoder/config.json"):
        _edit(folder / name, lambda c: c.update(auto_map={"AutoModel": "evil.Net"}, _name_or_path=str(outside)))


def of_transformers(folder: Path, outside: Path, rng: random.Random) -> None:
    """What a config may ask transformers for: other files, other models, code of the Hub, kernels."""
    elsewhere = f"../../{outside.name}/tokenizer.1.0.0.json"
    asked: list[dict[str, Any]] = [
        {"configuration_files": ["config.4.0.0.json"]},
        {"fast_tokenizer_files": [elsewhere]},
        {"vocab_file": f"{outside}/secret.txt", "merges_file": f"{outside}/secret.txt"},
        {"tokenizer_file": f"{outside}/tokenizer.1.0.0.json", "special_tokens_map_file": f"{outside}/secret.txt"},
        {
            "text_config": {"_attn_implementation": "evil/kernel"},
            "vision_config": {"attn_implementation": "evil/kernel"},
        },
        {"attn_implementation": {"": "evil/kernel"}},
        {"quantization_config": {"quant_method": rng.choice(("gptq", "bitsandbytes", "torchao", "gguf", "x"))}},
        {"auto_map": {"AutoTokenizer": ["evil.T", "evil.T"], "AutoConfig": "me/model--evil.C", "AutoModel": "evil.M"}},
        {"custom_pipelines": {"x": {"impl": "evil.P"}}, "model_type": "evil"},
        {"backbone": "me/model", "use_pretrained_backbone": True, "use_timm_backbone": True},
        {"chat_template": "{% for a in range(10**9) %}x{% endfor %}", "tokenizer_class": "evil.T"},
        {"_commit_hash": "../../x", "_name_or_path": "http://evil.example/x", "transformers_version": ["1"]},
        {"_diffusers_version": ["0"], "_class_name": ["evil", "Net"], "_use_default_values": {"a": 1}},
        {"added_tokens_decoder": {str(i): {"content": "x" * 1000} for i in range(1000)}},
    ]
    values = rng.choice(asked)
    configs = sorted(p for p in folder.rglob("*config.json") if p.is_file() and not p.is_symlink())
    path = rng.choice(configs)
    _edit(path, lambda config: config.update(values))
    if "configuration_files" in values:
        deep = json.loads(path.read_text()) | {"num_hidden_layers": 10**9, "layers_per_block": 10**9}
        path.with_name("config.4.0.0.json").write_text(json.dumps(deep))
    (outside / "tokenizer.1.0.0.json").write_text("{}")


def peft(folder: Path, outside: Path, rng: random.Random) -> None:
    values = {
        "base_model_name_or_path": rng.choice((str(outside), "http://evil.example", "../outside", "me/model")),
        "peft_type": "LORA",
        "auto_mapping": {"base_model_class": "Net", "parent_library": "evil"},
        "revision": "../..",
    }
    (_folder(folder, rng) / "adapter_config.json").write_text(json.dumps(values))


def tokenizer_bomb(folder: Path, outside: Path, rng: random.Random) -> None:
    path = next(folder.glob("**/tokenizer.json"))
    grow = {"type": "Replace", "pattern": {"String": "a"}, "content": "aa"}
    _edit(
        path,
        lambda config: config.update(
            rng.choice(
                (
                    {"normalizer": {"type": "Sequence", "normalizers": [grow] * 60}},
                    {"normalizer": grow | {"content": "a" * 10**6}},
                    {"normalizer": {"type": "Sequence", "normalizers": [grow | {"content": "a" * 1000}] * 3}},
                    {"padding": {"strategy": {"Fixed": 10**12}, "direction": "Right", "pad_id": 0, "pad_type_id": 0}},
                    {"truncation": {"max_length": -1}},
                    {"added_tokens": [{"id": 10**9, "content": "x", "special": True}]},
                    {"model": {"type": "evil"}},
                )
            )
        ),
    )


def another_tokenizer(folder: Path, outside: Path, rng: random.Random) -> None:
    """A bomb in a file that a tokenizer_config.json names, ids without a vector, and what makes Rust panic."""
    path = next(folder.glob("**/tokenizer.json"))
    grow = {"type": "Replace", "pattern": {"String": "a"}, "content": "aa"}
    values = rng.choice(
        (
            {"normalizer": {"type": "Sequence", "normalizers": [grow] * 60}},
            {"normalizer": {"type": "Prepend", "prepend": "a" * 10**6}},
            {"normalizer": grow | {"pattern": {"Regex": "(?=.)"}}},
            {"pre_tokenizer": {"type": "FixedLength", "length": 0}},
            {"model": {"type": "WordLevel", "unk_token": "x", "vocab": {"a": 10**6}}},
            {"added_tokens": [{"id": i, "content": f"t{i}", "special": True} for i in range(30_000)]},
        )
    )
    if rng.random() < 0.5:
        _edit(path, lambda config: config.update(values))
        return
    path.with_name("tokenizer.4.0.0.json").write_text(json.dumps(json.loads(path.read_text()) | values))
    named = {"fast_tokenizer_files": ["tokenizer.json", "tokenizer.4.0.0.json"]}
    _edit(path.with_name("tokenizer_config.json"), lambda config: config.update(named))


def longer_than_the_disk(folder: Path, outside: Path, rng: random.Random) -> None:
    with _files(folder, rng).open("ab") as file:
        file.truncate(rng.choice((2**27, 2**34, 2**40)))


@functools.cache
def pictures() -> tuple[bytes, ...]:
    """Bombs, pictures that are programs, and pictures that are cut off."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    def png(side: int, *chunks: bytes) -> bytes:
        head = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0))
        return (
            b"\x89PNG\r\n\x1a\n"
            + head
            + b"".join(chunks)
            + chunk(b"IDAT", zlib.compress(b"\0" * 13))
            + chunk(b"IEND", b"")
        )

    return (
        png(100_000),
        png(2, chunk(b"zTXt", b"run\0\0" + zlib.compress(b"x" * 2**27))),
        png(2, chunk(b"tEXt", b"run\0\x1b[2J")),
        png(2, *[chunk(b"iTXt", b"a\0\0\0\0\0" + b"x" * 100_000)] * 30),
        png(2, chunk(b"iCCP", b"x\0\0" + zlib.compress(b"x" * 2**26))),
        png(0),
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
        b"GIF89a" + struct.pack("<HH", 65535, 65535) + b"\xf7\0\0",
        b"\x89PNG\r\n\x1a\n",
        b"",
    )


def picture(folder: Path, outside: Path, rng: random.Random) -> None:
    names = (
        "samples.png",
        "samples.gif",
        "loss.png",
        "images/00.png",
        "evaluation/samples.png",
        "0.png",
        "samples/000001.png",
    )
    path = folder / rng.choice(names)
    _remove(path)
    path.write_bytes(rng.choice(pictures()))


def odd_files(folder: Path, outside: Path, rng: random.Random) -> None:
    """Files that others leave, and those of other formats."""
    home = str(outside).encode()
    contents = {
        ".gitattributes": b"* filter=lfs\n*.safetensors filter=evil\n",
        ".git/config": b"[core]\n\tfsmonitor = touch ran\n\thooksPath = .\n",
        "model.gguf": b"GGUF" + struct.pack("<IQQ", 3, 2**60, 2**60),
        "model.onnx": b"\x08\x07" + home,
        "readme.md": b"# other\n",
        "UNET/config.json": b"{}",
        "unet/CONFIG.JSON": b'{"layers_per_block": 1000000000}',
        "chat_template.jinja": b"{% for a in range(10**9) %}{{ a }}{% endfor %}",
        "tokenizer/additional_chat_templates/x.jinja": b"{{ cycler.__init__.__globals__.os.system('touch ran') }}",
        "unet/diffusion_pytorch_model.safetensors": b"version https://git-lfs.github.com/spec/v1\nsize 9\n",
        "unet/diffusion_pytorch_model.fp16.safetensors": b"\0" * 100,
        "events.out.tfevents.1.x": base64.b64encode(home),
        "log.jsonl": b'{"step": 1, "loss": NaN}\n{"step"\n\x1b[2J\n' + b"[" * 50_000,
        "training_config.yaml.unfinished": b"x",
        "checkpoint-99999999999999999999/manifest.json": b"{}",
        "checkpoint-3/manifest.json": b'{"files": {"../../outside/secret.txt": "0"}, "identity": {}}',
        "ema/99.safetensors": b"\x08\0\0\0\0\0\0\0{}      ",
        "evaluation/samples/key.json": b'{"seed": "\x1b[2J"}',
        "evaluation/samples/00000.npy": b"\x93NUMPY\x01\0v\0{'descr': '|O', 'fortran_order': False, 'shape': (2**40,)}",
        "metadata.csv": b'file_name,text\n"../../outside/secret.txt",x\n/etc/passwd,y\nhttp://evil.example/a.png,z\n',
        "metadata.jsonl": b'{"file_name": "../outside/secret.txt", "text": "\\u001b[2J"}\n' + b"[" * 5000,
    }
    name = rng.choice(sorted(contents))
    _remove(folder / name)
    (folder / name).write_bytes(contents[name])


FAULTS = (
    *(bad_name, bad_class, link, link, hard_link, special, weights_index, pickles, checkpoint, bad_json, odd_json),
    *(odd_json, bad_yaml, size, safetensors_header, text, code, of_transformers, peft, tokenizer_bomb, picture),
    *(another_tokenizer, longer_than_the_disk),
    odd_files,
)
LAST = (special, hard_link)  # others would wait for a pipe, or write through a link
