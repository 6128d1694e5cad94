"""Random hostile folders through every command that opens a folder: does any of them run code, or leave the folder?

    python benchmarks/hostile_folders.py --num_folders 500

Each folder is a model, or a folder of images, that works, with one to four of the faults in hostile_faults.py. The
commands run in a process that was forked from one that has imported everything; hostile_judge.py watches. A process
that dies, or does not answer, is a problem too. First every command must accept its folder without a fault: one that
refuses everything would have no problem. Prints one JSON object; benchmarks/results/hostile_folders.json is one.
"""

import argparse
import contextlib
import functools
import io
import json
import os
import random
import resource
import select
import shutil
import signal
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

if __name__ == "__main__":  # huggingface_hub reads its address when it is imported
    sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
    from hub_server import Hub

    HUB = Hub().__enter__()
    os.environ |= {"HF_ENDPOINT": HUB.url, "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1"}
    os.environ["HF_HOME"] = tempfile.mkdtemp(prefix="hf_home_")

import torch
from accelerate import Accelerator
from hostile_faults import FAULTS, LAST, YAMLS, Canary, link
from hostile_judge import LIMIT_SEC, run_watched

from cond_pipelines import TrainingConfig, train
from cond_pipelines.cli import main as command
from cond_pipelines.data.shapes import load_shapes

__all__ = ["LIMIT_SEC", "YAMLS", "Canary", "command", "evaluation", "make_models", "run_watched", "sweep"]
TOKEN = "hf_write"  # of tests/hub_server.py
DATA = "hostile_folders:few_shapes"
_MEMORY_BYTES = 12 * 2**30  # of addresses; torch alone takes 4 of them


@functools.cache
def few_shapes() -> Any:
    return load_shapes(70)  # of fewer than 64 none are held out


# ------------------------------------------------------------------------------------------- folders without a fault
def make_model(folder: Path) -> Path:
    """A model that works, with all that commands read: a checkpoint, averages, a report, a card."""
    config = TrainingConfig(
        conditioning="class", dataset_name=DATA, resolution=8, unet_size="xxs", train_batch_size=4, max_train_steps=2,
        checkpointing_steps=1, ema_lengths=[0.05], validation_fraction=0.4, validation_steps=0, report_to="none",
        default_num_inference_steps=1, output_dir=str(folder), mixed_precision="no",
    )  # fmt: skip
    with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
        train(config)
        command(evaluation(folder))
    (folder / "card.yaml").write_text("license: mit\n")
    return folder


def make_models(place: Path) -> dict[str, Path]:
    """By kind: a class-conditional model, one of captions in a VAE's latents, a LoRA, and a folder of images."""
    from parents_common import stable_diffusion
    from pipelines_common import make_components, quiet, tiny_vae

    from cond_pipelines import TextToImagePipeline

    models = {"model": make_model(place / "model")}
    text = quiet(TextToImagePipeline(**make_components("text", vae=tiny_vae())))
    text.save_pretrained(place / "text")
    stable_diffusion().save_pretrained(place / "parent")
    lora = TrainingConfig(
        conditioning="text", dataset_name=DATA, caption_column="caption", resolution=16, train="lora", rank=2,
        pretrained_model_name_or_path=str(place / "parent"), max_train_steps=1, train_batch_size=2,
        validation_steps=0, report_to="none", default_num_inference_steps=1, output_dir=str(place / "lora"),
        mixed_precision="no",
    )  # fmt: skip
    with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
        train(lora)
    images = place / "images"
    for i, row in enumerate(few_shapes()):
        (images / str(row["shape"])).mkdir(parents=True, exist_ok=True)
        row["image"].save(images / str(row["shape"]) / f"{i}.png")
    return models | {"text": place / "text", "lora": place / "lora", "images": images}


def evaluation(folder: Path) -> list[str]:
    """The command that measures a model, quickly."""
    small = ["--num_samples", "8", "--num_real", "8", "--feature_extractor", "pixels", "--num_inference_steps", "1"]
    return ["evaluate", str(folder), "--dataset_name", DATA, *small]


def commands(folder: Path, out: Path) -> Iterator[tuple[str, str, list[str]]]:
    """Every command that opens a folder: its name, the kind of the folder, its arguments."""
    training = ["--max_train_steps", "1", "--report_to", "none", "--validation_steps", "0", "--mixed_precision", "no"]
    training += ["--train_batch_size", "4", "--default_num_inference_steps", "1", "--validation_fraction", "0.4"]
    training += ["--checkpointing_steps", "1"]
    new = ["train", "--dataset_name", DATA, "--output_dir", str(out / "run"), *training]
    of_class = ["--conditioning", "class", "--resolution", "8", "--ema_lengths", "0.05"]
    push = ["push", str(folder), "me/model", "--token", TOKEN]
    yield "card", "model", ["card", str(folder)]
    yield "card of captions", "text", ["card", str(folder)]
    yield "card of a LoRA", "lora", ["card", str(folder)]
    yield "push", "model", push
    yield "push of captions", "text", push
    yield "push of a LoRA", "lora", push
    yield "compare", "model", ["compare", str(folder), str(folder)]
    yield "convert", "model", ["convert", str(folder / "checkpoint-1")]
    yield "ema", "model", ["ema", str(folder), "--length", "0.05", "--output_dir", str(out / "ema")]
    yield "evaluate", "model", evaluation(folder)
    yield (
        "evaluate as recorded",
        "model",
        ["evaluate", str(folder), "--num_samples", "8", "--feature_extractor", "pixels"],
    )
    one = ["--num_inference_steps", "1", "--num_images", "1", "--out", str(out / "a.png")]
    yield "sample", "model", ["sample", str(folder), "circle", *one]
    yield "sample of captions", "text", ["sample", str(folder), "a red circle", *one]
    parent = ["--pretrained_model_name_or_path", str(folder), "--conditioning", "class"]
    yield "train from", "model", [*new, "--resolution", "8", *parent]
    encoder = ["--conditioning", "text", "--text_encoder_name_or_path", str(folder), "--unet_size", "xxs"]
    yield "text encoder", "text", [*new, "--resolution", "8", *encoder]
    vae = ["--pretrained_vae_model_name_or_path", str(folder), "--unet_size", "xxs", "--resolution", "16"]
    yield "vae", "text", [*new, *vae]
    here = ["train", "--dataset_name", DATA, "--output_dir", str(folder), *training, *of_class, "--unet_size", "xxs"]
    here[here.index("--max_train_steps") + 1] = "3"
    yield "resume", "model", [*here, "--resume_from_checkpoint", "latest"]
    there = [str(out / "run") if arg == str(folder) else arg for arg in here]
    yield "resume from", "model", [*there, "--resume_from_checkpoint", str(folder / "checkpoint-1")]
    yield "overwrite", "model", [*here, "--overwrite_output_dir"]
    yield "inspect", "images", ["inspect", str(folder), "--conditioning", "class", "--output_dir", str(out)]


READ_BEFORE_TRAINING = ("train from", "text encoder", "vae", "resume from", "overwrite")
REFUSED_BY_DESIGN = ("evaluate as recorded",)  # only the folder names its data


# --------------------------------------------------------------------------------------------------------- the sweep
Case = tuple[int | None, str]  # the seed of the faults, None for none; the name of the command
Result = dict[str, Any]


@contextlib.contextmanager
def ending_early(seed: int | None, name: str) -> Iterator[None]:
    """Within, commands that have read their folder when training begins end there, at the first gradient.

    What a run writes into its own folder, `resume` shows with every fourth folder.
    """
    before = Accelerator.backward

    def stop(*_: object, **__: object) -> None:
        raise SystemExit(0)

    early = name in READ_BEFORE_TRAINING or (name == "resume" and seed is not None and seed % 4 > 0)
    Accelerator.backward = stop if early else before
    try:
        yield
    finally:
        Accelerator.backward = before


def run_case(models: dict[str, Path], work: Path, case: Case) -> Result:
    """A command on a fresh copy of its folder, with the faults of the seed."""
    seed, name = case
    rng = random.Random(seed)
    place = work / f"{seed}-{os.getpid()}"
    folder, outside, out = place / "model", place / "outside", place / "out"
    kind, args = next((kind, args) for one, kind, args in commands(folder, out) if one == name)
    shutil.copytree(models[kind], folder)
    outside.mkdir()
    for file in ("secret.txt", "linked.txt"):
        (outside / file).write_text("secret: 1\n")
    torch.save(Canary(outside / "ran"), outside / "x.bin")
    out.mkdir()
    faults = [] if seed is None else [rng.choice(FAULTS) for _ in range(rng.choice((1, 1, 1, 2, 3, 4)))]
    if kind == "images":  # links of images are followed: see SECURITY.md
        faults = [fault for fault in faults if fault is not link]
    faults.sort(key=lambda fault: fault in LAST)
    for fault in faults:
        with contextlib.suppress(OSError, IndexError, ValueError, StopIteration, UnicodeError):
            fault(folder, outside, rng)
    with ending_early(seed, name):
        problems, end, took = run_watched(command, args, folder, outside, [out])
    if seed is None and (end == "refused") != (name in REFUSED_BY_DESIGN):
        problems.append(f"{end}, of a folder without a fault")
    shutil.rmtree(place)
    words = "+".join(fault.__name__ for fault in faults)
    return {"end": end, "took": took, "problems": [f"seed {seed} {name} ({words}): {found}" for found in problems]}


def sweep(
    models: dict[str, Path],
    work: Path,
    seeds: range,
    only: tuple[str, ...] = (),
    forked: bool = False,
    results: Path | None = None,
) -> Result:
    """Every command (or those of `only`) on a folder without a fault, then on one with the faults of each seed.

    Args:
        results: a file that is written after each folder; of one that is there the sweep goes on.
    """
    total = {
        "seeds": [seeds.start, seeds.start],
        "folders": 0,
        "runs": 0,
        "slowest_sec": 0.0,
        "ends": {},
        "seconds": {},
    }
    total = json.loads(results.read_text()) if results and results.is_file() else total | {"problems": []}
    names = [name for name, kind, _ in commands(work, work) if kind in models and (not only or name in only)]
    cases: list[Case] = [(seed, name) for seed in (None, *range(total["seeds"][1], seeds.stop)) for name in names]
    answers = in_forks(models, work, cases) if forked else (run_case(models, work, case) for case in cases)
    ends, seconds = Counter(total["ends"]), Counter(total["seconds"])
    for (seed, name), result in zip(cases, answers, strict=True):
        ends[f"{name}: {result['end']}"] += seed is not None
        seconds[name] += result["took"]
        total["runs"] += 1
        total["slowest_sec"] = max(total["slowest_sec"], round(result["took"], 1))
        total["problems"] += result["problems"]
        if forked and result["problems"]:
            print(*result["problems"], sep="\n", file=sys.stderr, flush=True)
        if name == names[-1] and seed is not None:
            total["seeds"][1], total["folders"] = seed + 1, total["folders"] + 1
            total |= {
                "ends": dict(sorted((+ends).items())),
                "seconds": {k: round(v, 1) for k, v in seconds.most_common()},
            }
            if results:
                results.write_text(json.dumps(total, indent=1) + "\n")
    return total


def in_forks(models: dict[str, Path], work: Path, cases: list[Case], at_once: int = 200) -> Iterator[Result]:
    """The result of each case, by processes that are forked for `at_once` of them."""
    done = 0
    while done < len(cases):
        batch = cases[done : done + at_once]
        read, write = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.close(read)
            _serve(models, work, batch, write)
        os.close(write)
        with os.fdopen(read, "rb", buffering=0) as answers:  # none may wait in a buffer, where select sees none
            for _ in batch:
                ready, _, _ = select.select([answers], [], [], 3 * LIMIT_SEC)
                line = answers.readline() if ready else b""
                if not line:
                    os.kill(pid, signal.SIGKILL)
                    _, status = os.waitpid(pid, 0)
                    seed, name = cases[done]
                    what = f"ended by signal {status & 127}" if not ready or status else "ended"
                    yield {"end": "died", "took": 0.0, "problems": [f"seed {seed} {name}: hangs or dies: {what}"]}
                    done += 1
                    break
                yield json.loads(line)
                done += 1
            else:
                os.waitpid(pid, 0)


def _serve(models: dict[str, Path], work: Path, cases: list[Case], write: int) -> None:
    """In the forked process: run, answer, end."""
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY_BYTES, _MEMORY_BYTES))
    try:
        for case in cases:
            os.write(write, json.dumps(run_case(models, work, case)).encode() + b"\n")
    finally:
        os._exit(0)


def main() -> None:
    """Print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num_folders", type=int, default=500)
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--only", nargs="*", default=[], help="these commands; default: all")
    parser.add_argument("--results", type=Path, help="write here after each folder, and go on from what is there")
    options = parser.parse_args()
    torch.set_num_threads(1)
    # Of memory where there is such a place: files are brought to the disk often.
    where = "/dev/shm" if os.path.isdir("/dev/shm") else None
    with tempfile.TemporaryDirectory(prefix="hostile-", dir=where) as work:
        models = make_models(Path(work) / "right")
        seeds = range(options.first, options.first + options.num_folders)
        print(json.dumps(sweep(models, Path(work), seeds, tuple(options.only), True, options.results), indent=1))


if __name__ == "__main__":
    from hostile_folders import main as main_of_module  # as the module that --dataset_name names

    main_of_module()
