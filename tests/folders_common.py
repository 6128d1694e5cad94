"""Folders of images for tests, and what is read of them."""

import os
from pathlib import Path

import datasets
import numpy as np
from PIL import Image

from cond_pipelines.data.account import Account
from cond_pipelines.data.loading import load_source


def write(folder, *names, text=""):
    """Images, each of its own shade, and other files."""
    for number, name in enumerate(names):
        path = Path(folder) / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".npy":
            np.save(path, np.full((4, 4), number, np.float32))
        elif path.suffix in (".png", ".jpg", ".bmp", ".webp", ".avif", ".gif"):
            Image.fromarray(np.full((8, 8, 3), number * 5 % 256, np.uint8)).save(path)
        else:
            path.write_text(text)
    return Path(folder)


def read(folder, **options):
    """(images as paths below the folder, classes or None, captions or None, the account)."""
    account = Account()
    rows = load_source(str(folder), account=account, **options).cast_column("image", datasets.Image(decode=False))
    root = os.path.abspath(folder) + "/"
    paths = [row["path"].removeprefix(root) for row in rows["image"]]
    classes = None
    if "label" in rows.column_names:
        names = getattr(rows.features["label"], "names", None)
        classes = [i if i is None or names is None else names[i] for i in rows["label"]]
    return paths, classes, rows["text"][:] if "text" in rows.column_names else None, account
