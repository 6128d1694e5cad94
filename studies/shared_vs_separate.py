"""python studies/shared_vs_separate.py: when does one class-conditional model beat one unconditional model per class?

Both have the same network, the same images of each class, and the same number of images trained in all: the models of
the classes share the steps among them. Each class is compared with real images that nobody trained on, by Frechet and
kernel distance (KID) of the pixels themselves, which at this size need no other features and hold shape, place and
colour alike; and by the share of samples in which the class is read. No guidance: unconditional models have none.
"""

import argparse
import math
import sys
from functools import partial
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from common import ANY, SHARE, Digits, Shapes, Study, interval, parse_args, sample, settings_of
from pictures import Pictures
from PIL import Image

from cond_pipelines.evaluation.measures import Gaussian, frechet_distance, kernel_distance

SIZES = {  # counts: images of each class; steps: of the shared model, and of all the separate ones together
    "tiny": {"counts": (2,), "steps": 4, "num_classes": 2}
    | {"seeds": 1, "num_samples": 3, "network": {"unet_size": "xxs"}},
    "small": {
        "counts": (5, 20, 80),
        "steps": 360,
        "num_classes": {"shapes": 5, "digits": 3, "pictures": 3},
    }
    | {"seeds": 3, "num_samples": 60, "network": {}},
    "full": {"counts": (5, 20, 80), "steps": 20_000, "num_classes": {"shapes": 5, "digits": 10, "pictures": 5}}
    | {"seeds": 5, "num_samples": 500, "network": {"unet_size": "m"}},
}
ARMS = ("one shared model", "a model per class")
MEASURES = {"frechet": "Frechet distance", "kernel": "kernel distance (KID)", "right": "share of samples of the class"}
WITHIN = {"frechet": (0, math.inf), "kernel": ANY, "right": SHARE}  # the kernel distance is unbiased: below 0, too


def data_of(options: argparse.Namespace, size: dict[str, Any]) -> Shapes | Digits | Pictures:
    """What --data names. Raises SystemExit, after one line, where it does not suit."""
    if options.data_folder is None:
        return Shapes() if options.data == "shapes" else Digits()
    try:
        return Pictures(options.data_folder, size["num_classes"], max(size["counts"]))
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None


def pixels(images: list[Image.Image]) -> np.ndarray:
    """(N, H * W * 3) float32 in [0, 1]."""
    return np.stack([np.asarray(image.convert("RGB"), dtype=np.float32).reshape(-1) / 255 for image in images])


def distances(fake: np.ndarray, real: np.ndarray) -> dict[str, float]:
    """Of (N, D) and (M, D) features."""
    frechet = frechet_distance(Gaussian.of(fake), Gaussian.of(real))
    return {"frechet": frechet, "kernel": float(kernel_distance(fake, real).mean())}


def first_of(rows: datasets.Dataset, labels: list[int], count: int | None = None) -> datasets.Dataset:
    """The first `count` rows (None: all) of each of the labels. Raises ValueError where one has fewer."""
    found = np.array(rows["label"])
    for k in labels:
        if count is not None and (found == k).sum() < count:
            raise ValueError(f"{(found == k).sum()} rows of label {k}, and {count} are needed")
    return rows.select(np.sort(np.concatenate([np.flatnonzero(found == k)[:count] for k in labels])))


def measure(
    data: Shapes | Digits | Pictures, real: list[np.ndarray], labels: list[int], num_samples: int, model: Path
) -> dict[str, dict[str, float]]:
    """{measure: {class: value}} of samples of the labels; a model of one class alone is told nothing."""
    told = [k if len(labels) > 1 else None for k in labels for _ in range(num_samples)]
    images, found = sample(model, told, guidance_scale=1.0), {name: {} for name in MEASURES}
    for place, k in enumerate(labels):
        mine = images[place * num_samples : (place + 1) * num_samples]
        right = float(np.mean([data.read(image)[0] == data.kinds[k] for image in mine]))
        for name, value in (distances(pixels(mine), real[k]) | {"right": right}).items():
            found[name][data.kinds[k]] = value
    return found


def main(args: list[str] | None = None) -> Path:
    """Train, measure, write the result."""
    options = parse_args(__doc__, args, pictures=True)
    data = data_of(options, settings_of(SIZES[options.size], options.data))
    study = Study("shared_vs_separate", options, SIZES, getattr(data, "content", None))
    size = study.settings
    every_label = list(range(size["num_classes"]))
    held_out = data.real()
    real = [pixels(first_of(held_out, [k])["image"]) for k in every_label]

    values = {arm: {count: [] for count in size["counts"]} for arm in ARMS}  # a {measure: mean of classes} each seed
    for count in size["counts"]:
        for seed in range(size["seeds"]):
            drawn = data.rows(200 + 2 * count * len(data.kinds), seed)
            for arm, groups in zip(ARMS, ([every_label], [[k] for k in every_label]), strict=True):
                steps, parts = size["steps"] // len(groups), []
                for labels in groups:
                    name = f"{count}_shared_{seed}" if len(labels) > 1 else f"{count}_of_{data.kinds[labels[0]]}_{seed}"
                    found = study.run(
                        name,
                        partial(measure, data, real, labels, size["num_samples"]),
                        conditioning="class" if len(labels) > 1 else "none",
                        train_data_dir=study.dataset(name, partial(first_of, drawn, labels, count)),
                        max_train_steps=steps,
                        lr_warmup_steps=steps // 10,
                        seed=seed,
                        **size["network"],
                    )
                    parts.append(found["measured"])
                values[arm][count].append({m: np.mean([v for p in parts for v in p[m].values()]) for m in MEASURES})

    fresh = data.rows(200 + 2 * size["num_samples"] * len(data.kinds), seed=10**5)
    floor = [distances(pixels(first_of(fresh, [k])["image"])[: size["num_samples"]], real[k]) for k in every_label]
    floor = {name: float(np.mean([f[name] for f in floor])) for name in floor[0]}
    if isinstance(data, Pictures):
        floor["right"] = data.share_of_real()
    return study.finish(*report(values, floor))


def report(values: dict[str, dict[int, list[dict]]], floor: dict[str, float]) -> tuple[dict, list[dict]]:
    """What is written, and plotted: each arm, and their difference seed by seed, over the seeds."""
    result, panels = {"real_images": floor, "rows": [], "summary": {}}, []
    for name, title in MEASURES.items():
        lines = {
            arm: {n: [float(v[name]) for v in some] for n, some in counts.items()} for arm, counts in values.items()
        }
        shared, separate = (lines[arm] for arm in ARMS)
        low, high = WITHIN[name]
        for n in shared:
            gain = interval([b - a for a, b in zip(shared[n], separate[n], strict=True)], (low - high, high - low))
            row = {"measure": name, "images_per_class": n, "shared": shared[n], "separate": separate[n]}
            result["rows"].append(row | {"separate_minus_shared": gain})
            sure = "larger than chance" if gain["low"] > 0 or gain["high"] < 0 else "within chance"
            means = f"{np.mean(shared[n]):.3g} shared, {np.mean(separate[n]):.3g} separate"
            result["summary"][f"{name}, {n} images per class"] = f"{means}, difference {sure}"
        labels = {"title": title, "xlabel": "images per class", "ylabel": "", "xscale": "log"}
        panels.append({"lines": lines, "level": floor.get(name), "within": WITHIN[name]} | labels)
    return result, panels


if __name__ == "__main__":
    main()
