"""python benchmarks/schedulers.py [--models flow epsilon v edm] [--output benchmarks/results/schedulers.md]

Which scheduler of diffusers, with which of its usual options, draws what was asked of a flow-matching, an epsilon, a v
and an EDM model, in 4, 8 and 24 evaluations of the network. Each row is swapped in as people do it, with
`from_config`, or by `pipe.use_scheduler`. It draws, or it is refused before the first step. Noise without an error is
the failure that the last line of a table counts.

The network is the exact one: it knows 1,500 drawn shapes of 16 px and gives the prediction that minimises the
objective's loss on them, so a wrong image is the scheduler's doing. A sample is right if the shape that was asked for
is read from its pixels, and it lies within a twentieth of a pixel's range of a drawn image (root mean square). Noise is
less than half of them right.
"""

import argparse
import functools
import inspect
import logging
import sys
import warnings
from pathlib import Path

import diffusers
import numpy as np
import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor

from cond_pipelines import ClassConditionalPipeline, ClassLabelAdapter, ConditionalPipeline
from cond_pipelines.data.shapes import SHAPES, load_shapes, read_attributes
from cond_pipelines.objectives import Objective
from cond_pipelines.pipelines.schedulers import SCHEDULERS, SPACINGS

EVALUATIONS = (4, 8, 24)
OWN = {
    "flow": diffusers.FlowMatchEulerDiscreteScheduler(),
    "epsilon": diffusers.DDIMScheduler(clip_sample=False),
    "v": diffusers.DDIMScheduler(prediction_type="v_prediction", clip_sample=False),
    "edm": diffusers.EDMEulerScheduler(),
}
_FLOW = {"use_flow_sigmas": True, "prediction_type": "flow_prediction"}
OPTIONS: tuple[dict[str, object], ...] = (
    {},
    {"use_karras_sigmas": True},
    {"use_beta_sigmas": True},
    {"timestep_spacing": "trailing"},
    _FLOW,
    {"use_flow_sigmas": True},
    {"prediction_type": "flow_prediction"},
    {**_FLOW, "use_karras_sigmas": True},
)
_BETAS = ("beta_start", "beta_end", "beta_schedule")
CONDITIONS = [SHAPES[i % len(SHAPES)] for i in range(40)]


@functools.cache
def drawn() -> tuple[Tensor, Tensor]:
    """Images (N, 3, 16, 16) in [-1, 1] and the numbers of their shapes (N,)."""
    rows = load_shapes(1500)
    images = np.stack([np.asarray(image) for image in rows["image"]])
    labels = torch.tensor([read_class(image) for image in rows["image"]])
    return torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1, labels


def read_class(image: object) -> int:
    """The number of the shape that is read from an image; -1: none."""
    shape = read_attributes(image)["shape"]
    return -1 if shape is None else SHAPES.index(shape)


class ExactDenoiser(ModelMixin, ConfigMixin):
    """The minimiser of an objective's loss on the drawn shapes: the prediction for their posterior mean."""

    @register_to_config
    def __init__(
        self,
        in_channels: int = 3,
        out_channels: int = 3,
        sample_size: int = 16,
        cross_attention_dim: int | None = None,
        projection_class_embeddings_input_dim: int = len(SHAPES),
    ):
        super().__init__()
        self.nothing = torch.nn.Parameter(torch.zeros(1), requires_grad=False)
        self.objective: Objective | None = None

    def forward(
        self,
        x_t: Tensor,
        t: Tensor,
        encoder_hidden_states: Tensor | None = None,
        encoder_attention_mask: Tensor | None = None,
        class_labels: Tensor | None = None,
        return_dict: bool = False,
    ) -> tuple[Tensor]:
        images, labels = drawn()
        signal, sigma = self.objective.marginal(float(t))
        squared = torch.cdist(x_t.flatten(1).double(), signal * images.flatten(1).double()).square()  # (B, N)
        is_class = class_labels[:, labels] > 0.5  # (B, N), class_labels one-hot (B, K)
        is_free = class_labels.abs().sum(dim=1, keepdim=True) < 0.5  # (B, 1): no condition
        logits = (-squared / (2 * max(sigma, 1e-4) ** 2)).masked_fill(~(is_class | is_free), -torch.inf)
        x_0 = (logits.softmax(dim=1).float() @ images.flatten(1)).view_as(x_t)
        return (self.objective.exact_prediction(x_t, x_0, float(t)),)


def exact_pipeline(kind: str) -> ClassConditionalPipeline:
    """The exact network of an objective under the adapter that tells it classes one-hot."""
    unet, objective = ExactDenoiser(), Objective.from_scheduler(OWN[kind])
    unet.objective = objective
    adapter = ClassLabelAdapter.for_unet(unet, id2label=dict(enumerate(SHAPES)), embedding_dim=len(SHAPES))
    with torch.no_grad():
        adapter.embedding.weight.copy_(torch.eye(len(SHAPES)))
        adapter.pooled_proj.weight.copy_(torch.eye(len(SHAPES)))
    pipe = ClassConditionalPipeline(unet, OWN[kind], adapter, objective=objective.config, default_guidance_scale=1.0)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def right_share(pipe: ConditionalPipeline, evaluations: int) -> float:
    """Of 40 samples, those that show the shape that was asked for and are no noise."""
    per_step = 2 if "Heun" in type(pipe.scheduler).__name__ or "KDPM2" in type(pipe.scheduler).__name__ else 1
    generators = [torch.Generator().manual_seed(i) for i in range(len(CONDITIONS))]
    steps = max(1, evaluations // per_step)
    images = pipe(CONDITIONS, num_inference_steps=steps, generator=generators, output_type="np").images
    found = [read_class(image) for image in pipe.image_processor.numpy_to_pil(images)]
    x = torch.from_numpy(images).permute(0, 3, 1, 2).flatten(1) * 2 - 1
    nearest = torch.cdist(x, drawn()[0].flatten(1)).min(dim=1).values / x.shape[1] ** 0.5  # (B,)
    clean = (nearest < 0.1).tolist() if isinstance(pipe.unet, ExactDenoiser) else [True] * len(found)
    return sum(c and SHAPES[f] == want for c, f, want in zip(clean, found, CONDITIONS, strict=True)) / len(found)


def measured(pipe: ConditionalPipeline) -> list[str]:
    """A cell for each number of evaluations: the right share, or why there is none."""
    cells = []
    for evaluations in EVALUATIONS:
        try:
            cells.append(f"{right_share(pipe, evaluations):.2f}")
        except Exception as error:  # also those of diffusers' own schedulers: a row is never left out
            line = str(error)
            kind = "refused" if isinstance(error, ValueError) and "\n" not in line else f"{type(error).__name__}"
            cells.append(kind)
    return cells


def swaps(kind: str) -> list[tuple[str, object]]:
    """(title, scheduler) of every scheduler class of diffusers that can be made, with each option that it knows."""
    rows: list[tuple[str, object]] = []
    betas = {name: OWN[kind].config[name] for name in _BETAS if name in OWN[kind].config}
    for name in sorted(n for n in dir(diffusers.schedulers) if n.endswith("Scheduler")):
        cls = getattr(diffusers.schedulers, name)
        accepted = inspect.signature(cls.__init__).parameters
        for options in OPTIONS:
            if not set(options) <= set(accepted) or ("use_flow_sigmas" in options and kind != "flow"):
                continue
            title = name.removesuffix("Scheduler") + "".join(f", {k}={v}" for k, v in options.items())
            kept = {k: v for k, v in betas.items() if k in accepted}
            try:
                rows.append((title, cls.from_config(OWN[kind].config, **kept | options)))
            except Exception as error:  # of a class for other data, or of a package that is not installed
                if not options:
                    rows.append((title, f"cannot be made ({type(error).__name__})"))
    return rows


def named(pipe: ClassConditionalPipeline, kind: str) -> list[tuple[str, object]]:
    """(title, scheduler) of every short name of `use_scheduler` with each spacing."""
    rows: list[tuple[str, object]] = []
    for name in SCHEDULERS[{"flow": "flow_matching", "edm": "edm"}.get(kind, "ddpm")]:
        for spacing in (None, *SPACINGS):
            title = f"use_scheduler({name!r}" + (f", {spacing!r})" if spacing else ")")
            try:
                rows.append((title, pipe.use_scheduler(name, spacing).scheduler))
            except ValueError:
                rows.append((title, "refused"))
            pipe.register_modules(scheduler=OWN[kind])
    return rows


def table(kind: str) -> list[str]:
    """The Markdown table of one model."""
    pipe = exact_pipeline(kind)
    lines = [f"## {kind}", "", "| scheduler | 4 | 8 | 24 |", "|---|---|---|---|"]
    own = measured(pipe)
    lines.append(f"| its own, {type(OWN[kind]).__name__.removesuffix('Scheduler')} | {' | '.join(own)} |")
    wrong = noise = 0
    for title, scheduler in [*named(pipe, kind), *swaps(kind)]:
        if isinstance(scheduler, str):
            cells = [scheduler, "", ""]
        else:
            pipe.register_modules(scheduler=scheduler)
            cells = measured(pipe)
        lines.append(f"| {title} | {' | '.join(cells)} |")
        shares = [float(cell) if cell[:1].isdigit() else 1.0 for cell in cells]
        wrong += shares[-1] < float(own[-1]) - 0.05
        noise += min(shares) < 0.5
    print(f"{kind}: {len(lines) - 4} rows, {wrong} over 5 points below its own at 24, {noise} noise", file=sys.stderr)
    return [
        *lines,
        "",
        f"Rows more than 5 points below the model's own scheduler at 24 evaluations: {wrong}. "
        f"Rows with noise at 4, 8 or 24: {noise}.",
        "",
    ]


def sections(path: Path) -> dict[str, str]:
    """The tables that a file of results holds, by model."""
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    return {kind: f"## {body.strip()}\n" for body in text.split("\n## ")[1:] for kind in OWN if body.startswith(kind)}


def main() -> None:
    """Write the tables, of all models or of some; the others stay in the file as they are."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "schedulers.md")
    parser.add_argument("--models", nargs="+", choices=list(OWN), default=list(OWN))
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    head = (
        "# Schedulers\n\nMade by `benchmarks/schedulers.py` with diffusers "
        f"{diffusers.__version__}: the share of 40 samples that show what was asked for, in 4, 8 and 24 evaluations.\n"
        "`refused`: a ValueError in one line before the first step. The network is the exact minimiser of the loss on "
        "1,500 drawn shapes.\n"
    )
    for kind in options.models:
        tables = sections(options.output) | {kind: "\n".join(table(kind))}
        options.output.write_text("\n".join([head, *(tables[k] for k in OWN if k in tables)]), encoding="utf-8")


if __name__ == "__main__":
    main()
