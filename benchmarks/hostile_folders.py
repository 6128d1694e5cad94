"""Random hostile folders through every command that opens a folder: does any of them run code, or leave the folder?

    python benchmarks/hostile_folders.py --num_folders 500

Each folder is a model that works, with one to four faults: names, links, indices of weights, YAML, JSON, safetensors
headers, text of terminals and web pages, pickles, pipes. An audit hook of the interpreter is the judge: what is opened,
executed, started or unpickled. Prints one JSON object, and a line on stderr every 50 folders. 500 folders take about an
hour on one core; `benchmarks/results/hostile_folders.json` holds 40 of them through the commands that load networks.
"""

import argparse
import contextlib
import io
import itertools
import json
import os
import pickle
import random
import shutil
import signal
import struct
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

if __name__ == "__main__":  # huggingface_hub reads its address when it is imported
    sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
    from hub_server import Hub

    HUB = Hub().__enter__()
    os.environ |= {"HF_ENDPOINT": HUB.url, "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1"}
    os.environ["HF_HOME"] = tempfile.mkdtemp(prefix="hf_home_")

import torch

from cond_pipelines import TrainingConfig, train
from cond_pipelines.cli import main as command
from cond_pipelines.data.shapes import load_shapes

LIMIT_SEC = 10.0
TOKEN = "hf_write"  # of tests/hub_server.py
DATA = "hostile_folders:few_shapes"
_FOUND: list[str] = []  # by the judge, of the command that runs now
_WATCHED: dict[str, str] = {}  # where the command may write, and what it must not touch; empty: nobody is watched


def few_shapes() -> Any:
    return load_shapes(70)  # of fewer than 64 none are held out


# --------------------------------------------------------------------------------------------------- the judge
def _judge(event: str, args: tuple[Any, ...]) -> None:
    if not _WATCHED:
        return
    with contextlib.suppress(Exception):
        if event == "open":
            path, mode, flags = args
            writes = any(c in str(mode) for c in "wax+") if mode else bool(int(flags) & (os.O_WRONLY | os.O_RDWR))
            if not isinstance(path, str | bytes | os.PathLike):
                return
            real = os.path.realpath(os.fsdecode(path))
            if real.startswith(_WATCHED["outside"]):
                _FOUND.append(f"opened outside: {real}")
            elif (
                writes
                and "__pycache__" not in real
                and not real.startswith(("/dev/", *_WATCHED["allowed"].split(os.pathsep)))
            ):
                _FOUND.append(f"wrote outside: {real}")
        elif event in ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.fork", "os.forkpty"):
            _FOUND.append(f"{event}: {str(args)[:100]}")
        elif event == "exec":
            file = getattr(args[0], "co_filename", "")
            if os.path.realpath(file).startswith(_WATCHED["folder"]):
                _FOUND.append(f"executed {file}")
        elif event == "pickle.find_class" and args[0] in ("os", "posix", "subprocess", "builtins", "evil"):
            _FOUND.append(f"unpickled {args[0]}.{args[1]}")
        elif event == "import" and str(args[0]).split(".")[0] == "evil":
            _FOUND.append(f"imported {args[0]}")


sys.addaudithook(_judge)


class _Late(Exception):
    pass


def _alarm(*_: Any) -> None:
    raise _Late


def run_watched(args: list[str], folder: Path, outside: Path, allowed: list[Path]) -> tuple[list[str], str, float]:
    """Run a command; returns what it did that it must not, how it ended in words, and the seconds that it took."""
    _FOUND.clear()
    err, out = io.StringIO(), io.StringIO()
    roots = [folder, *allowed, Path(tempfile.gettempdir()) / "push-", Path(os.environ.get("HF_HOME", "/nowhere"))]
    before = _tree(outside)
    previous = signal.signal(signal.SIGALRM, _alarm)
    start, end = time.perf_counter(), "done"
    try:
        _WATCHED.update(
            folder=os.path.realpath(folder),
            outside=os.path.realpath(outside),
            allowed=os.pathsep.join([os.path.realpath(root) for root in roots] + [tempfile.gettempdir() + "/tmp"]),
        )
        signal.setitimer(signal.ITIMER_REAL, LIMIT_SEC)
        with contextlib.redirect_stderr(err), contextlib.redirect_stdout(out):
            command(args)
    except SystemExit as stop:
        end = "done" if stop.code in (0, None) else "refused"
    except _Late:
        _FOUND.append("hangs")
    except BaseException as error:
        _FOUND.append(f"not one line: {type(error).__name__}: {str(error)[:150]}")
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        _WATCHED.clear()
        signal.signal(signal.SIGALRM, previous)
    text = err.getvalue() + out.getvalue()
    if "\x1b[2J" in text or "\u202e" in text:
        _FOUND.append("terminal codes")
    last = err.getvalue().strip().splitlines()[-1:] or [""]
    if end == "refused" and not last[0].startswith("error: "):
        _FOUND.append(f"not one line: {last[0][:150]!r}")
    if _tree(outside) != before:
        _FOUND.append("changed a file outside")
    return list(dict.fromkeys(_FOUND)), end, time.perf_counter() - start


def _tree(folder: Path) -> dict[str, bytes]:
    return {str(p): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


# --------------------------------------------------------------------------------------------------- the faults
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
)
NAMES = ("../HOME_ssh", "/etc/passwd", "a/b", ".", "..", "", "x y", "é", "unet/../../x", "a" * 300, "\0", "-rf")
JSONS = (
    *("", "[]", "3", "null", "{", '{"a": NaN}', "[" * 100_000, '{"a": ' * 30_000, "\xff\xfe"),
    '{"a": 1' + "0" * 5000 + "}",
)
_BOMB = "".join(f"{b}: &{b} [{', '.join(['*' + a] * 8)}]\n" for a, b in itertools.pairwise("abcdefghi"))
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
)
SIZES = {
    "unet/config.json": ("layers_per_block", "sample_size", "cross_attention_dim", "norm_num_groups", "in_channels"),
    "adapter/config.json": ("num_classes", "embedding_dim", "token_dim", "pooled_dim"),
    "scheduler/scheduler_config.json": ("num_train_timesteps",),
    "model_index.json": ("default_num_inference_steps",),
}


def _files(folder: Path, rng: random.Random, *suffixes: str) -> Path:
    paths = sorted(
        p for p in folder.rglob("*") if p.is_file() and not p.is_symlink() and (not suffixes or p.suffix in suffixes)
    )
    return rng.choice(paths)


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
        *(["diffusers", name] for name in ("StableDiffusionPipeline", "OnnxRuntimeModel", "AutoModel")),
        *(["transformers", name] for name in ("AutoModel", "pipeline")),
        *(["os", "system"], ["evil", "Net"], [["a"], {}], [3, 4], ["x"]),
    ]
    name = rng.choice(("unet", "scheduler", "adapter", "extra", "_class_name"))
    _edit(folder / "model_index.json", lambda index: index.update({name: rng.choice(pairs)}))
    (folder / "evil.py").write_text(f"import os; os.system('touch {outside}/ran')\nclass Net: pass\nROW = run = Net\n")


def link(folder: Path, outside: Path, rng: random.Random) -> None:
    places = [
        *("README.md", "evaluation", "images", ".eval_results", "card.yaml", "unet", "evaluation/report.json", "ema"),
        *("training_config.yaml", "samples.png", "model_index.json", "unet/config.json", "evaluation/.lock"),
        *("evaluation/samples", "README.md.unfinished", "adapter/config.json", "training_summary.json"),
    ]
    path = folder / rng.choice(places)
    secret = outside / "secret.txt"
    target = rng.choice([secret, outside, outside / "not_there", path, Path("../..") / outside.name / secret.name])
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.suppress(OSError):
        path.symlink_to(target)


def weights_index(folder: Path, outside: Path, rng: random.Random) -> None:
    sub = folder / rng.choice(("unet", "adapter"))
    if not sub.is_dir():
        return
    torch.save(Canary(outside / "ran"), sub / "x.bin")
    for path in sub.glob("*.safetensors"):
        path.unlink()
    name = rng.choice(("x.bin", f"../../{outside.name}/x.bin", f"{outside}/x.bin", "../x.safetensors", 3, "x.pt"))
    index = {"metadata": {"total_size": 10}, "weight_map": {"conv_in.weight": name}}
    (sub / f"diffusion_pytorch_model.{rng.choice(('safetensors', 'bin'))}.index.json").write_text(json.dumps(index))


def pickles(folder: Path, outside: Path, rng: random.Random) -> None:
    sub = folder / rng.choice(("unet", "adapter", ".", "checkpoint-1"))
    names = ("diffusion_pytorch_model.bin", "pytorch_lora_weights.bin", "pytorch_model.bin", "custom_checkpoint_0.pkl")
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
        name = rng.choice(("optimizer.bin", "custom_checkpoint_0.pkl", "random_states_0.pkl", "model.bin", "scaler.pt"))
        torch.save({"values": [Canary(outside / "ran")]}, path / name)
        (path / "manifest.json").unlink()
        _write_manifest(path, manifest)


def bad_json(folder: Path, outside: Path, rng: random.Random) -> None:
    _files(folder, rng, ".json").write_bytes(rng.choice(JSONS).encode("latin1"))


def odd_json(folder: Path, outside: Path, rng: random.Random) -> None:
    values = (None, [], {}, -1, 1e300, "x" * 1000, True, [[[]]], {"a": {"b": []}}, *NASTY)

    def change(found: dict[str, Any]) -> None:
        if found:
            found[rng.choice(sorted(found))] = rng.choice(values)

    _edit(_files(folder, rng, ".json"), change)


def bad_yaml(folder: Path, outside: Path, rng: random.Random) -> None:
    text = rng.choice(YAMLS).replace("{outside}", str(outside))
    (folder / rng.choice(("card.yaml", "training_config.yaml"))).write_text(text)


def size(folder: Path, outside: Path, rng: random.Random) -> None:
    name = rng.choice(sorted(SIZES))
    value = rng.choice((10**9, 2 * 10**9, 10**15, -(10**9), 1e9))
    _edit(folder / name, lambda config: config.update({rng.choice(SIZES[name]): value}))


def safetensors_header(folder: Path, outside: Path, rng: random.Random) -> None:
    path = _files(folder, rng, ".safetensors")
    data = path.read_bytes()
    tensor = {"dtype": "F32", "shape": [10**9, 10**9], "data_offsets": [0, 4]}
    headers = (
        b"{",
        b"[" * 50_000,
        json.dumps({"a": tensor}).encode(),
        json.dumps({"__metadata__": {"run": NASTY[0]}}).encode(),
    )
    header = rng.choice(headers)
    length = rng.choice((len(header), 2**62, 0, 10**8))
    path.write_bytes(struct.pack("<Q", length) + header + data[-100:])


def text(folder: Path, outside: Path, rng: random.Random) -> None:
    nasty = rng.choice(NASTY)
    _edit(folder / "adapter/config.json", lambda c: c.update(id2label={str(i): f"{nasty}{i}" for i in range(5)}))
    _edit(folder / "training_summary.json", lambda c: c.update(dataset=nasty, objective=nasty, run=nasty))
    row = {"question": nasty, "name": nasty, "value": 1.0, "better": "lower", "interval": None}
    _edit(folder / "evaluation/report.json", lambda c: c.update(measures=[row]))


def pipe(folder: Path, outside: Path, rng: random.Random) -> None:
    path = _files(folder, rng)
    path.unlink()
    os.mkfifo(path)


def code(folder: Path, outside: Path, rng: random.Random) -> None:
    for path in [
        *folder.rglob("*.py"),
        folder / "evil.py",
        folder / "sitecustomize.py",
        folder / "adapter/__init__.py",
    ]:
        with contextlib.suppress(OSError):
            path.write_text(f"import os; os.system('touch {outside}/ran')\n")
    for name in ("unet/config.json", "adapter/config.json", "model_index.json"):
        _edit(folder / name, lambda c: c.update(auto_map={"AutoModel": "evil.Net"}, _name_or_path=str(outside)))


FAULTS = (
    *(bad_name, bad_class, link, link, weights_index, pickles, checkpoint, bad_json, odd_json, bad_yaml, size),
    *(safetensors_header, text, pipe, code),
)


# --------------------------------------------------------------------------------------------------- the sweep
def make_model(folder: Path) -> Path:
    """A model that works, with all that commands read: a checkpoint, averages, a report, a card."""
    config = TrainingConfig(
        conditioning="class", dataset_name=DATA, resolution=8, unet_size="xxs", train_batch_size=4, max_train_steps=2,
        checkpointing_steps=1, ema_lengths=[0.05], validation_fraction=0.4, validation_steps=0, report_to="none",
        default_num_inference_steps=1, output_dir=str(folder),
    )  # fmt: skip
    with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
        train(config)
        command(evaluation(folder))
    (folder / "card.yaml").write_text("license: mit\n")
    return folder


def evaluation(folder: Path) -> list[str]:
    small = ["--num_samples", "8", "--num_real", "8", "--feature_extractor", "pixels", "--num_inference_steps", "1"]
    return ["evaluate", str(folder), "--dataset_name", DATA, *small]


def commands(folder: Path, out: Path) -> Iterator[tuple[str, list[str]]]:
    """Every command that opens a folder."""
    training = ["--resolution", "8", "--max_train_steps", "1", "--report_to", "none", "--validation_steps", "0"]
    training += ["--dataset_name", DATA, "--train_batch_size", "4", "--default_num_inference_steps", "1"]
    yield "card", ["card", str(folder)]
    yield "push", ["push", str(folder), "me/model", "--token", TOKEN]
    yield "compare", ["compare", str(folder), str(folder)]
    yield "convert", ["convert", str(folder / "checkpoint-1")]
    yield "ema", ["ema", str(folder), "--length", "0.05", "--output_dir", str(out / "ema")]
    yield "evaluate", evaluation(folder)
    yield "evaluate as recorded", ["evaluate", str(folder), "--num_samples", "8", "--feature_extractor", "pixels"]
    parent = ["--pretrained_model_name_or_path", str(folder), "--conditioning", "class"]
    yield "sample", ["sample", str(folder), "--num_inference_steps", "1", "--out", str(out / "a.png")]
    yield "train", ["train", *training, *parent, "--output_dir", str(out / "run")]
    encoder = ["--conditioning", "text", "--text_encoder_name_or_path", str(folder), "--unet_size", "xxs"]
    yield "text encoder", ["train", *training, *encoder, "--output_dir", str(out / "text")]
    vae = ["--pretrained_vae_model_name_or_path", str(folder), "--unet_size", "xxs"]
    yield "vae", ["train", *training, *vae, "--output_dir", str(out / "vae")]
    resume = ["--conditioning", "class", "--resume_from_checkpoint", str(folder / "checkpoint-1"), "--unet_size", "xxs"]
    yield "resume", ["train", *training, *resume, "--output_dir", str(out / "resumed")]


def sweep(model: Path, work: Path, seeds: range, only: tuple[str, ...] = ()) -> dict[str, Any]:
    """Faults of each seed, through every command (or those of `only`), each on a fresh copy of the folder."""
    ends: Counter[str] = Counter()
    problems: list[str] = []
    slowest = 0.0
    for seed in seeds:
        for name, _ in list(commands(model, work)):
            if only and name not in only:
                continue
            rng = random.Random(seed)
            place = work / f"{seed}"
            folder, outside, out = place / "model", place / "outside", place / "out"
            shutil.copytree(model, folder)
            outside.mkdir()
            (outside / "secret.txt").write_text("secret: 1\n")
            torch.save(Canary(outside / "ran"), outside / "x.bin")
            out.mkdir()
            faults = [rng.choice(FAULTS) for _ in range(rng.randint(1, 4))]
            faults.sort(key=lambda fault: fault is pipe)  # last: the others would wait for it
            for fault in faults:
                with contextlib.suppress(OSError, IndexError, ValueError):
                    fault(folder, outside, rng)
            args = dict(commands(folder, out))[name]
            found, end, took = run_watched(args, folder, outside, [out])
            ends[f"{name}: {end}"] += 1
            slowest = max(slowest, took)
            words = "+".join(fault.__name__ for fault in faults)
            problems += [f"seed {seed} {name} ({words}): {problem}" for problem in found]
            shutil.rmtree(place)
        if (seed - seeds.start) % 50 == 49:
            print(f"{seed - seeds.start + 1} folders, {len(problems)} problems", file=sys.stderr, flush=True)
    return {
        "folders": len(seeds),
        "ends": dict(sorted(ends.items())),
        "slowest_sec": round(slowest, 1),
        "problems": problems,
    }


def main() -> None:
    """Print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num_folders", type=int, default=500)
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--only", nargs="*", default=[], help="these commands; default: all")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="hostile-") as work:
        model = make_model(Path(work) / "right")
        seeds = range(options.first, options.first + options.num_folders)
        print(json.dumps(sweep(model, Path(work), seeds, tuple(options.only)), indent=1))


if __name__ == "__main__":
    from hostile_folders import main as main_of_module  # as the module that --dataset_name names

    main_of_module()
