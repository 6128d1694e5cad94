"""Make the models that are installed with the package again: python training/make_builtin.py

The demo's trainings with a smaller network, longer, about half an hour in all; then half precision, a card, and what an
exact reader sees in the samples.
"""

import argparse
import json
import shutil
from pathlib import Path

import torch
from PIL import Image

from cond_pipelines import ConditionalPipeline, image_grid, train
from cond_pipelines.builtin import FOLDER
from cond_pipelines.data.shapes import COMBINATIONS, caption
from cond_pipelines.demo import demo_config, demo_shapes, report_demo
from cond_pipelines.networks.text_encoders import new_text_encoder
from cond_pipelines.networks.unet_sizes import NetworkSize, find_size
from cond_pipelines.provenance import save_picture

# (folder of the run, the demo's model, the run that it starts from, steps)
RUNS = (
    ("start", "unconditional", None, 4000),
    ("unconditional", "unconditional", "start", 4000),
    ("class_conditional", "class_conditional", "unconditional", 3000),
    ("text_to_image", "text_to_image", "unconditional", 3500),
)
NAMES = {
    "unconditional": "shapes-unconditional",
    "class_conditional": "shapes-class",
    "text_to_image": "shapes-text",
}
_NUM_SAMPLES = 256
_PROMPT = "a red circle on a black background"
_CODE = ("pipeline_cond_*.py", "adapter/modeling_cond_*.py")  # the installed package has it


def _smaller(like: NetworkSize) -> NetworkSize:
    """1.1 million parameters instead of 2.9, so that a model is smaller than 3 MB in half precision."""
    socket = {"cross_attention_dim": 64, "projection_class_embeddings_input_dim": 64}
    changes = {"block_out_channels": (32, 48, 72), "attention_head_dim": (1, 2, 3)} | socket
    return NetworkSize(1.1, 2e-3, dict(like.arguments) | changes, num_halvings=2)


SIZE = _smaller(find_size("s"))


def train_runs(output_dir: Path, only: list[str], speed: float) -> None:
    """The runs in order; one that is not in `only` is taken as it lies in `output_dir`."""
    for name, model, parent, steps in RUNS:
        if name not in only:
            continue
        changes: dict[str, object] = {"unet_size": "make_builtin:SIZE"} if parent is None else {}
        if model == "text_to_image":
            encoder = _small_text_encoder(output_dir / "text_encoder")
            changes = {"text_encoder_name_or_path": str(encoder), "train_text_encoder": True}
        start = None if parent is None else output_dir / parent
        train(demo_config(model, output_dir / name, start, max(1, round(steps / speed)), **changes))


def _small_text_encoder(folder: Path) -> Path:
    """A new one with random weights, for the wordings of the training set."""
    captions = [caption(*combination) for combination in COMBINATIONS] + list(demo_shapes()["caption"])
    text_encoder, tokenizer = new_text_encoder(captions, hidden_size=64, num_layers=2)
    text_encoder.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def pack(run: Path, to: Path) -> None:
    """Write the model of a run in half precision, without its code."""
    shutil.rmtree(to, ignore_errors=True)
    ConditionalPipeline.from_pretrained(run, dtype=torch.float16).save_pretrained(to)
    for pattern in _CODE:
        for path in to.glob(pattern):
            path.unlink()
    for path in to.glob("*/config.json"):
        config = json.loads(path.read_text(encoding="utf-8"))
        config.pop("_name_or_path", None)  # a path of the machine
        path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    shutil.copy(run / "training_summary.json", to)


def describe(folder: Path, measured: dict[str, object]) -> None:
    """Write the card: where the model comes from, and what was measured of it."""
    run = json.loads((folder / "training_summary.json").read_text(encoding="utf-8"))
    shares = {name: value for name, value in measured.items() if isinstance(value, float) and name != "guidance_scale"}
    lines = [
        "---",
        "license: apache-2.0",
        "---",
        f"# {folder.name}",
        "",
        f"A small model to try at once, {run['formula']}: one coloured shape of 16 px on a plain background, and "
        "nothing else.",
        f'It is installed with cond_pipelines: `ConditionalPipeline.from_pretrained(builtin_model("{folder.name}"))`.',
        "",
        f"`python training/make_builtin.py` made it, and makes it again. Its last run took {run['minutes']:.1f} "
        f"minutes and {run['steps']:,} steps on {run['device']}. The data are `cond_pipelines.demo.demo_shapes`, "
        "20,000 drawn images.",
        "Weights are in half precision.",
        "",
        f"An exact reader of pixels, of {_NUM_SAMPLES} samples ({measured['num_inference_steps']} steps, guidance "
        f"scale {measured['guidance_scale']}):",
        "",
        "| share of samples | |",
        "|---|---|",
        *(f"| {name.replace('_', ' ')} | {value:.3f} |" for name, value in shares.items()),
        "",
    ]
    (folder / "README.md").write_text("\n".join(lines), encoding="utf-8")


def three_settings(folders: dict[str, Path]) -> Image.Image:
    """The first picture of README.md: the same noise in a column under each of the settings."""
    conditions = {"unconditional": None, "class_conditional": "ring", "text_to_image": _PROMPT}
    images: list[Image.Image] = []
    for model, condition in conditions.items():
        pipe = ConditionalPipeline.from_pretrained(folders[model])
        generator = [torch.Generator().manual_seed(seed) for seed in range(8)]
        images += pipe.sample([condition] * 8, generator=generator).images
    return image_grid(images, row_titles=["p(x)", "p(x|y): ring", f"p(x|text): {_PROMPT}"], min_side_px=80)


def main() -> None:
    """Train, pack, measure, describe."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output_dir", type=Path, default=Path("builtin_runs"))
    names = [name for name, *_ in RUNS]
    parser.add_argument(
        "--only", nargs="*", default=names, choices=names, help="train these, take the others as they are"
    )
    parser.add_argument("--speed", type=float, default=1.0, help="divide the minutes of training by this (1)")
    options = parser.parse_args()
    train_runs(options.output_dir, options.only, options.speed)
    packed = {model: FOLDER / name for model, name in NAMES.items()}
    for model, folder in packed.items():
        pack(options.output_dir / model, folder)
    report = report_demo(packed, options.output_dir, _NUM_SAMPLES)
    for model, folder in packed.items():
        describe(folder, report[model])
    save_picture(three_settings(packed), Path(__file__).parents[1] / "docs/three_settings.png")
    print(
        json.dumps({model: {k: v for k, v in report[model].items() if k != "evaluation"} for model in packed}, indent=2)
    )


if __name__ == "__main__":
    main()
