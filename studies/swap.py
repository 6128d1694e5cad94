"""python studies/swap.py: what is starting from the unconditional model worth?

Class and text models of several lengths are trained twice, from the unconditional model and from scratch, with the
library's own learning rate for either and its schedule fitted to each length: what one gets who stops there. Read is
the share of samples that show what was asked for: the shape (or digit) of a class model; shape, colour and background
of a text model. The number of images until 95 % lies between two lengths, by a straight line.
"""

import math
from functools import partial
from itertools import product
from pathlib import Path

import numpy as np
from common import SHARE, TRAINING, Digits, Shapes, Study, interval, parse_args, sample

GOAL = 0.95
SIZES = {  # class, text: steps of the runs from the unconditional model, and of those from scratch
    "tiny": {"parent_steps": 2, "class": ((2,), (2,)), "text": ((2,), (2,))}
    | {"num_images": 32, "seeds": 1, "num_samples": 4, "network": {"unet_size": "xxs"}},
    "small": {
        "parent_steps": {"shapes": 2400, "digits": 1600},
        "class": {"shapes": ((200, 400, 800), (800, 1600, 3200)), "digits": ((80, 240), (80, 240))},
        "text": {"shapes": ((), ()), "digits": ((400, 1200), (400, 1200))},
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
        if not any(size[setting]):
            continue  # not at this size
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
        parent_images = TRAINING["train_batch_size"] * size["parent_steps"]
        result["summary"][setting] = summary(curves, parent_images)
        panels.append(panel(setting, curves, parent_images))
    return study.finish(result, panels)


def panel(setting: str, curves: dict[str, list[dict[int, float]]], parent_images: int) -> dict:
    """The plot of a setting: a line for each start, and one whose images count the parent's too."""
    lines = {start: {x: [c[x] for c in some] for x in some[0]} for start, some in curves.items()}
    with_parent = {x + parent_images: shares for x, shares in lines[STARTS[0]].items()}
    lines[f"{STARTS[0]}, its images counted"] = with_parent
    labels = {"title": setting, "xlabel": "images trained", "ylabel": "share of right samples"}
    return {"lines": lines, "level": GOAL, "within": SHARE, "xlim": (0, None), "ylim": (0, 1.03)} | labels


def summary(curves: dict[str, list[dict[int, float]]], parent_images: int) -> dict:
    """Images until the goal: for each seed, and of the mean over seeds (None: more than were tried).

    "part" is what part of scratch's images the parent's are, and "children_until_it_pays" the number of models that
    must share the parent until its own images are saved (None: never, or the curves do not say). Both are upper bounds
    where scratch did not get there. A goal that is reached at the first length may be reached earlier. "equal_images"
    are shares where a single model pays for its parent.
    """
    found, needed = {}, {}
    for start, some in curves.items():
        needed[start] = images_needed({images: float(np.mean([c[images] for c in some])) for images in some[0]})
        each = [images_needed(curve) for curve in some]
        found[start] = {"images_to_goal": needed[start], "of_each_seed": each, "longest": max(some[0])}
    swapped, scratch = (needed[start] for start in STARTS)
    of_scratch = scratch or found["from scratch"]["longest"]
    part = swapped / of_scratch if swapped else None
    children = math.ceil(parent_images / (of_scratch - swapped)) if swapped and swapped < of_scratch else None
    found |= {"part": part, "part_is_an_upper_bound": scratch is None, "children_until_it_pays": children}
    with_parent, alone = (curves[start][0] for start in STARTS)
    equal = {n + parent_images: (n, n + parent_images) for n in with_parent if n + parent_images in alone}
    return found | {
        "equal_images": {
            total: {
                start: interval([c[n] for c in curves[start]], SHARE) for start, n in zip(STARTS, pair, strict=True)
            }
            for total, pair in equal.items()
        }
    }


if __name__ == "__main__":
    main()
