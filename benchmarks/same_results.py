"""python benchmarks/same_results.py write BEFORE; (change the code); python benchmarks/same_results.py compare BEFORE

For whoever moves code: fifteen short runs (each setting, LoRA, accumulation, two processes, streaming, EDM, DDPM,
Stable Diffusion parents, bf16) and fifteen calls of what they trained. `write` notes a checksum of all weights, the
losses and a checksum of all images. `compare` makes them again and names each that is not the same bit for bit. About
three minutes on two cores. Both must run on the same machine: processors round differently.
"""

import argparse
import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT / folder) for folder in ("benchmarks", "tests", "tests/third_party")]
os.environ |= {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT / "src"), *sys.path[:3], os.environ.get("PYTHONPATH", "")])

import datasets
import numpy as np
import torch
from parents_common import stable_diffusion, unconditional_parent
from pipelines_common import generators
from safetensors.torch import load_file

from cond_pipelines import ConditionalPipeline
from cond_pipelines.data.shapes import load_shapes
from cond_pipelines.training.__main__ import main as train

COMMON = {
    "dataset_name": "same_results:shapes",
    "resolution": 8,
    "train_batch_size": 4,
    "max_train_steps": 6,
    "lr_warmup_steps": 2,
    "learning_rate": 1e-3,
    "mixed_precision": "no",
    "report_to": "none",
    "logging_steps": 1,
    "validation_steps": 3,
    "num_validation_images": 2,
    "checkpointing_steps": 3,
    "default_num_inference_steps": 2,
    "default_guidance_scale": 1.5,
}
NEW = {"unet_size": "xxs"}
PARTS = {
    "label": {"class": "ClassLabelAdapter", "id2label": {"0": "cat", "1": "dog"}},
    "size": {"class": "EmbeddingAdapter", "embedding_dim": 1, "mean": 3, "std": 1},
}
RUNS: dict[str, dict[str, Any]] = {
    "none": NEW | {"conditioning": "none"},
    "class": NEW | {"conditioning": "class", "random_flip": True},
    "text": NEW | {"conditioning": "text"},
    "embedding": NEW
    | {"conditioning": "embedding", "dataset_name": "same_results:vectors", "condition_column": "vector"},
    "composite": NEW
    | {
        "conditioning": "custom",
        "dataset_name": "same_results:several",
        "condition_column": "several",
        "adapter": "cond_pipelines:CompositeAdapter",
        "adapter_config": json.dumps({"adapters": PARTS, "dropout": {"size": 0.2}}),
    },
    "accumulation": NEW | {"conditioning": "class", "gradient_accumulation_steps": 3, "max_grad_norm": 0.1},
    "edm": NEW | {"conditioning": "none", "scheduler": "EDMEulerScheduler", "prediction_type": "epsilon"},
    "ddpm": NEW
    | {
        "conditioning": "class",
        "scheduler": "DDIMScheduler",
        "prediction_type": "v_prediction",
        "snr_gamma": 5.0,
    },
    "streaming": NEW | {"conditioning": "class", "streaming": True},
    "bf16": NEW | {"conditioning": "class", "mixed_precision": "bf16"},
    "buckets": NEW | {"conditioning": "none", "resolution": 16, "aspect_buckets": True},
    "sd_text": {"conditioning": "text", "pretrained_model_name_or_path": "SD", "resolution": 16},
    "sd_lora": {"conditioning": "text", "pretrained_model_name_or_path": "SD", "resolution": 16, "use_lora": True},
    "ddpm_class": {"conditioning": "class", "pretrained_model_name_or_path": "DDPM"},
    "two_processes": NEW | {"conditioning": "class"},
}
CALLS: dict[str, tuple[str, dict[str, Any]]] = {
    "none": ("none", {"batch_size": 2}),
    "class": ("class", {"class_labels": ["circle", None], "guidance_scale": 2.0}),
    "class interval": ("class", {"class_labels": [0, 1], "guidance_scale": 3.0, "guidance_interval": (0.3, 0.8)}),
    "class rescale": ("class", {"class_labels": [0, 1], "guidance_scale": 3.0, "guidance_rescale": 0.7}),
    "class negative": ("class", {"class_labels": [0, 1], "negative_class_labels": 2, "guidance_scale": 2.0}),
    "class image": ("class", {"class_labels": [0, 1], "strength": 0.6, "image": True}),
    "class mask": ("class", {"class_labels": [0, 1], "image": True, "mask_image": True}),
    "text": ("text", {"prompt": ["a red circle", ""], "negative_prompt": "blue"}),
    "embedding": ("embedding", {"condition": [[0.1, 0.2, 0.3], None]}),
    "composite": (
        "composite",
        {"condition": [{"label": "cat"}, {"size": 4.0}], "guidance_scale": {"label": 2.0, "size": 3.0}},
    ),
    "edm": ("edm", {"batch_size": 2}),
    "ddim eta": ("ddpm", {"class_labels": [0, 1], "eta": 1.0}),
    "sd text": ("sd_text", {"prompt": ["a red circle", "two blue squares"], "guidance_scale": 7.5}),
    "sd image": ("sd_text", {"prompt": ["a red circle"], "image": True, "strength": 0.7}),
    "ddpm class": ("ddpm_class", {"class_labels": [0, None]}),
}


def shapes() -> datasets.Dataset:
    return load_shapes(48)


def vectors() -> datasets.Dataset:
    return load_shapes(48).add_column("vector", [None if i == 3 else [i / 48, -1.0, i % 5] for i in range(48)])


def several() -> datasets.Dataset:
    conditions = [{"label": None if i % 4 == 0 else "cat" if i % 2 else "dog", "size": float(i)} for i in range(48)]
    return load_shapes(48).add_column("several", conditions)


def run(name: str, folder: Path, parents: Path) -> dict[str, Any]:
    """One run: a checksum of its weights, and its losses."""
    flags = COMMON | RUNS[name] | {"output_dir": str(folder / name)}
    parent = flags.get("pretrained_model_name_or_path")
    if parent:
        flags["pretrained_model_name_or_path"] = str(parents / parent)
    args = []
    for key, value in flags.items():
        args += [f"--{key}"] if value is True else [f"--{key}", str(value)]
    if name == "two_processes":
        command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2"]
        env = os.environ | {"ACCELERATE_USE_CPU": "true"}
        subprocess.run([*command, "-m", "cond_pipelines.training", *args], check=True, env=env, timeout=300)
    else:
        train(args)
    digest = hashlib.sha256()
    for path in sorted((folder / name).glob("*/*.safetensors")) + sorted((folder / name).glob("*.safetensors")):
        if path.parent.name.startswith("checkpoint-"):
            continue
        for key, value in sorted(load_file(path).items()):
            digest.update(f"{path.parent.name} {key}".encode() + value.numpy().tobytes())
    lines = [json.loads(line) for line in (folder / name / "log.jsonl").read_text().splitlines()]
    losses = [[line["step"], key, line[key]] for line in lines for key in ("loss", "held_out_loss") if key in line]
    return {"weights": digest.hexdigest(), "losses": losses}


def call(name: str, folder: Path) -> str:
    """The checksum of the images of one call."""
    of_run, arguments = CALLS[name]
    pipe = ConditionalPipeline.from_pretrained(folder / of_run)
    pipe.set_progress_bar_config(disable=True)
    side = 16 if of_run.startswith("sd") else 8
    if arguments.get("image"):
        arguments = arguments | {"image": load_shapes(1, image_size_px=16)["image"][0].resize((side, side))}
    if arguments.get("mask_image"):
        mask = np.zeros((side, side), dtype=np.float32)
        mask[: side // 2] = 1
        arguments = arguments | {"mask_image": mask}
    count = len(next(iter(arguments.values()))) if "batch_size" not in arguments else 2
    images = pipe(**arguments, num_inference_steps=4, generator=generators(count), output_type="np").images
    return hashlib.sha256(np.ascontiguousarray(images).tobytes()).hexdigest()


def results(folder: Path) -> dict[str, Any]:
    """All runs and calls, in `folder`."""
    parents = folder / "parents"
    stable_diffusion().save_pretrained(parents / "SD")
    unconditional_parent("DDPM").save_pretrained(parents / "DDPM")
    made = {f"run {name}": run(name, folder, parents) for name in RUNS}
    return made | {f"call {name}": call(name, folder) for name in CALLS}


def main() -> None:
    """Write, or compare with, FOLDER/results.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["write", "compare"])
    parser.add_argument("folder", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    now = results(options.folder / options.what)
    path = options.folder / "results.json"
    if options.what == "write":
        path.write_text(json.dumps(now, indent=1))
        print(f"{len(now)} results in {path}")
        return
    before = json.loads(path.read_text())
    changed = [name for name in now if json.loads(json.dumps(now[name])) != before.get(name)]
    for name in changed:
        print(f"not the same: {name}")
    print(f"{len(now) - len(changed)} of {len(now)} the same bit for bit")
    raise SystemExit(bool(changed))


if __name__ == "__main__":
    main()
