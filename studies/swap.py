"""python studies/swap.py: what is starting from the unconditional model worth?

Class and text models are trained twice, from the unconditional model and from scratch, with the library's own learning
rate for either. The rate is constant and the average of the weights spans a tenth of the run so far, so one run, looked
at on its way, shows the quality after any number of images trained. Read is the share of samples that show what was
asked for: the shape (or digit) of a class model; shape, colour and background of a text model.
"""

from functools import partial
from pathlib import Path

import numpy as np
from common import Digits, Shapes, Study, interval, parse_args, sample, snapshots

GOAL = 0.95
SIZES = {  # class, text: steps of runs from the parent, and from scratch
    "tiny": {"parent_steps": 2, "class": (16, 16), "text": (16, 16)}
    | {"num_images": 32, "seeds": 1, "num_samples": 4, "every": 8, "network": {"unet_size": "xxs"}},
    "small": {
        "parent_steps": {"shapes": 2400, "digits": 1600},
        "class": {"shapes": (800, 1600), "digits": (480, 960)},
        "text": {"shapes": (800, 1280), "digits": (480, 960)},
    }
    | {"num_images": 8000, "seeds": 3, "num_samples": 80, "every": 2, "network": {}},
    "full": {"parent_steps": 20_000, "class": (4000, 16_000), "text": (8000, 32_000)}
    | {"num_images": 50_000, "seeds": 5, "num_samples": 500, "every": 1, "network": {"unet_size": "m"}},
}
STARTS = ("from the unconditional model", "from scratch")


def measure(data: Shapes | Digits, setting: str, num_samples: int, every: int, model: Path) -> dict:
    """The share of right samples after so many steps."""
    asked = [data.seen[7 * i % len(data.seen)] for i in range(num_samples)]  # 7: all of them, mixed
    told = [data.kinds.index(kind) for kind, *_ in asked] if setting == "class" else [data.caption(c) for c in asked]
    share = {}
    for step, pipe in snapshots(model, every):
        read = [data.read(image) for image in sample(pipe, told)]
        right = [r[0] == a[0] if setting == "class" else r == a for r, a in zip(read, asked, strict=True)]
        share[step] = float(np.mean(right))
    return share


def images_needed(curve: dict[int, float], goal: float = GOAL) -> float | None:
    """Images trained until the share of right samples reaches the goal, between two looks by a straight line."""
    before = None
    for images, share in sorted(curve.items()):
        if share >= goal:  # at the first look it may have been so before
            return images if before is None else float(np.interp(goal, *zip(before, (share, images), strict=True)))
        before = share, images
    return None


def main(args: list[str] | None = None) -> Path:
    """Train, measure, write the result."""
    options = parse_args(__doc__, args)
    study, data = Study("swap", options, SIZES), Shapes() if options.data == "shapes" else Digits()
    size = study.settings
    unconditional = study.parent(data)
    images = study.dataset("train", lambda: data.rows(size["num_images"], seed=0))

    result, panels = {"curves": {}, "summary": {"goal": GOAL}}, []
    for setting in ("class", "text"):
        curves = {start: [] for start in STARTS}  # a {images: share} for each seed
        for seed in range(size["seeds"]):
            for start, steps in zip(STARTS, size[setting], strict=True):
                begin = size["network"] if start == "from scratch" else {"pretrained_model_name_or_path": unconditional}
                found = study.run(
                    f"{setting} {start} {seed}".replace(" ", "_"),
                    partial(measure, data, setting, size["num_samples"], size["every"]),
                    conditioning=setting,
                    train_data_dir=images,
                    caption_column="caption" if setting == "text" else None,
                    max_train_steps=steps,
                    lr_scheduler="constant",
                    lr_warmup_steps=steps // 16,
                    ema_lengths=[0.1],
                    seed=seed,
                    **begin,
                )
                batch = found["config"]["train_batch_size"]
                curves[start].append({batch * int(step): share for step, share in found["measured"].items()})
        needed = {start: [images_needed(curve) for curve in curves[start]] for start in STARTS}
        result["curves"][setting] = curves
        result["summary"][setting] = summary(needed, curves)
        lines = {start: {x: [c[x] for c in some] for x in some[0]} for start, some in curves.items()}
        labels = {"title": setting, "xlabel": "images trained", "ylabel": "share of right samples", "ylim": (0, 1.03)}
        panels.append({"lines": lines, "level": GOAL} | labels)
    return study.finish(result, panels)


def summary(needed: dict[str, list], curves: dict[str, list]) -> dict:
    """Images until the goal for each seed (None: not within the run), and what part of scratch's the parent's are."""
    found = {start: {"images_to_goal": needed[start]} for start in STARTS}
    longest = max(curves["from scratch"][0])  # a run that did not get there needs more than this, so the part is less
    parts = [a / (b or longest) if a else None for a, b in zip(*needed.values(), strict=True)]
    found["part"] = interval(parts) if None not in parts else None
    found["part_is_an_upper_bound"] = None in needed["from scratch"]
    return found


if __name__ == "__main__":
    main()
