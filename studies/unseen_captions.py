"""python studies/unseen_captions.py: does a text model draw combinations that no caption in training had?

A fifth of the combinations of shape (or digit), colour and background is held out, so that every two of the three are
still seen together. Text models are trained on more and more captioned images, for the same number of steps, from one
unconditional model that saw many images (of the seen combinations) but no caption. Read is the share of samples that
show all that the caption says.
"""

from functools import partial
from pathlib import Path

import numpy as np
from common import SHARE, Digits, Shapes, Study, interval, parse_args, sample

SIZES = {  # counts: captioned images; steps: of each text model; num_images, parent_steps: of the unconditional one
    "tiny": {"counts": (8,), "seeds": 2, "steps": 2, "num_samples": 4}
    | {"num_images": 32, "parent_steps": 2, "network": {"unet_size": "xxs"}},
    "small": {"counts": (50, 400, 3200), "seeds": 3, "steps": {"shapes": 1000, "digits": 1500}, "num_samples": 96}
    | {"num_images": 8000, "parent_steps": {"shapes": 2400, "digits": 1600}, "network": {}},
    "full": {"counts": (50, 200, 800, 3200, 12_800), "seeds": 5, "steps": 8000, "num_samples": 500}
    | {"num_images": 50_000, "parent_steps": 20_000, "network": {"unet_size": "m"}},
}
PARTS = ("seen", "unseen")


def measure(data: Shapes | Digits, num_samples: int, model: Path) -> dict[str, dict[str, float]]:
    """{seen or unseen: {"all", "kind", "colour", "background": share of samples that have it right}}."""
    found = {}
    for part in PARTS:
        combinations = getattr(data, part)
        asked = [combinations[7 * i % len(combinations)] for i in range(num_samples)]  # 7: all of them, mixed
        read = [data.read(image) for image in sample(model, [data.caption(c) for c in asked])]
        right = np.array([[r == a for r, a in zip(*pair, strict=True)] for pair in zip(read, asked, strict=True)])
        each = zip(("kind", "colour", "background"), right.mean(axis=0).tolist(), strict=True)
        found[part] = {"all": float(right.all(axis=1).mean())} | dict(each)
    return found


def main(args: list[str] | None = None) -> Path:
    """Train, measure, write the result."""
    options = parse_args(__doc__, args)
    study = Study("unseen_captions", options, SIZES)
    data, size = Shapes() if options.data == "shapes" else Digits(painted=True), study.settings
    unconditional = study.parent(data)

    rows, lines = [], {f"combinations {part}": {n: [] for n in size["counts"]} for part in PARTS}
    for count in size["counts"]:
        for seed in range(size["seeds"]):
            name = f"{count}_captions_{seed}"
            found = study.run(
                name,
                partial(measure, data, size["num_samples"]),
                conditioning="text",
                pretrained_model_name_or_path=unconditional,
                train_data_dir=study.dataset(name, partial(data.rows, count, seed)),
                caption_column="caption",
                max_train_steps=size["steps"],
                lr_warmup_steps=size["steps"] // 10,
                seed=seed,
            )
            rows.append({"captions": count, "seed": seed} | found["measured"])
            for part in PARTS:
                lines[f"combinations {part}"][count].append(found["measured"][part]["all"])

    summary = {}
    for count in size["counts"]:
        some = [row for row in rows if row["captions"] == count]
        summary[f"{count} captions"] = {part: interval([row[part]["all"] for row in some], SHARE) for part in PARTS} | {
            "seen_minus_unseen": interval([row["seen"]["all"] - row["unseen"]["all"] for row in some], (-1, 1))
        }
    labels = {"title": "all that the caption says", "xlabel": "captioned images in training", "xscale": "log"}
    panel = {"lines": lines, "ylabel": "share of right samples", "within": SHARE, "ylim": (0, 1.03)} | labels
    return study.finish({"rows": rows, "summary": summary}, [panel])


if __name__ == "__main__":
    main()
