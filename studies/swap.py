"""python studies/swap.py: what is starting from the unconditional model worth?

Class and text models of several lengths are trained twice, from the unconditional model and from scratch, with the
library's own learning rate for either and its schedule fitted to each length: what one gets who stops there. Read is
the share of samples that show what was asked for: the shape (or digit) of a class model; shape, colour and background
of a text model. The number of images until 95 % lies between two lengths, by a straight line.
"""

from functools import partial
from itertools import product
from pathlib import Path

import numpy as np
from common import Digits, Shapes, Study, interval, parse_args, sample

GOAL = 0.95
SIZES = {  # class, text: steps of the runs from the unconditional model, and of those from scratch
    "tiny": {"parent_steps": 2, "class": ((2, 4), (2,)), "text": ((2,), (2,))}
    | {"num_images": 32, "seeds": 1, "num_samples": 4, "network": {"unet_size": "xxs"}},
    "small": {
        "parent_steps": {"shapes": 2400, "digits": 1600},
        "class": {"shapes": ((200, 400, 800), (400, 800, 1600)), "digits": ((80, 160, 320), (80, 160, 320))},
        "text": {"shapes": ((300, 900), (300, 900)), "digits": ((80, 160, 320), (80, 160, 320))},
    }
    | {"num_images": 8000, "seeds": 3, "num_samples": 100, "network": {}},
    "full": {
        "parent_steps": 20_000,
        "class": ((250, 500, 1000, 2000, 4000), (1000, 2000, 4000, 8000, 16_000)),
        "text": ((500, 1000, 2000, 4000, 8000), (2000, 4000, 8000, 16_000, 32_000)),
    }
    | {"num_images": 50_000, "seeds": 5, "num_samples": 500, "network": {"unet_size": "m"}},
}
STARTS = ("from the unconditional model", "from scratch")


def measure(data: Shapes | Digits, setting: str, num_samples: int, model: Path) -> float:
    """The share of right samples."""
    asked = [data.seen[7 * i % len(data.seen)] for i in range(num_samples)]  # 7: all of them, mixed
    told = [data.kinds.index(kind) if setting == "class" else data.caption((kind, *rest)) for kind, *rest in asked]
    read = [data.read(image) for image in sample(model, told)]
    right = [r[0] == a[0] if setting == "class" else r == a for r, a in zip(read, asked, strict=True)]
    return float(np.mean(right))


def images_needed(curve: dict[int, float], goal: float = GOAL) -> float | None:
    """Images trained until the share of right samples reaches the goal, between two lengths by a straight line."""
    before = None
    for images, share in sorted(curve.items()):
        if share >= goal:  # fewer than the first length might have done too
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
        curves = {start: [{} for _ in range(size["seeds"])] for start in STARTS}  # {images: share} for each seed
        for seed, (start, lengths) in product(range(size["seeds"]), zip(STARTS, size[setting], strict=True)):
            swapped = {"pretrained_model_name_or_path": unconditional}
            for steps in lengths:
                found = study.run(
                    f"{setting} {start} {steps} {seed}".replace(" ", "_"),
                    partial(measure, data, setting, size["num_samples"]),
                    conditioning=setting,
                    train_data_dir=images,
                    caption_column="caption" if setting == "text" else None,
                    max_train_steps=steps,
                    lr_warmup_steps=steps // 10,
                    seed=seed,
                    **(size["network"] if start == "from scratch" else swapped),
                )
                curves[start][seed][found["config"]["train_batch_size"] * steps] = found["measured"]
        result["curves"][setting] = curves
        result["summary"][setting] = summary(curves)
        lines = {start: {x: [c[x] for c in some] for x in some[0]} for start, some in curves.items()}
        labels = {"title": setting, "xlabel": "images trained", "xscale": "log", "ylabel": "share of right samples"}
        panels.append({"lines": lines, "level": GOAL, "ylim": (0, 1.03)} | labels)
    return study.finish(result, panels)


def summary(curves: dict[str, list[dict[int, float]]]) -> dict:
    """Images until the goal for each seed (None: more than were tried), and what part of scratch's the parent's are."""
    needed = {start: [images_needed(curve) for curve in some] for start, some in curves.items()}
    longest = max(curves["from scratch"][0])  # a run that did not get there needs more than this, so the part is less
    parts = [a / (b or longest) if a else None for a, b in zip(*needed.values(), strict=True)]
    bounded = {"part": interval(parts) if None not in parts else None, "upper_bound": None in needed["from scratch"]}
    return {f"images_to_goal_{start.replace(' ', '_')}": some for start, some in needed.items()} | bounded


if __name__ == "__main__":
    main()
