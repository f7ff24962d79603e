"""911 freely licensed images of 410 ImageNet classes, 224 x 224, in two halves: one for calibration, one for scores.

They come from the development set of the NIPS 2017 competition on adversarial attacks (Kurakin et al. 2018): photographs of
Flickr under CC BY 2.0, cut out around the object and labelled by hand, as github.com/NilsRublein/DL keeps them. They are no
validation images of ImageNet, so an accuracy on them is not the published kind.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable
from pathlib import Path

import numpy as np

NAME = "imagenet-sample"
SIDE = 224  # pixels
CALIBRATION = 455  # images, the first in the order of content digests; the other 456 are scored
ADDRESS = "https://github.com/NilsRublein/DL"
TABLE = "dev_dataset.csv"  # of the images: label, author, licence, page
AUTHORS = f"{NAME}-authors.csv"  # what is kept of it, beside the .npz


def by_hand(place: Path, digests: Callable) -> tuple[dict[str, np.ndarray], str]:
    """Return (arrays by `data.KEYS`, the table of authors as CSV) from a folder with ``dev_dataset.csv`` and ``images/``.

    `digests`, a function of images and labels (`data._digests`), decides the halves. Raises OSError where the folder or its
    table is not there, ValueError where a table has no row for an image.
    """
    table = {row["ImageId"]: row for row in csv.DictReader(io.StringIO((place / TABLE).read_text(encoding="utf-8")))}
    files = sorted((place / "images").glob("*.png"))
    if unknown := [path.name for path in files if path.stem not in table]:
        raise ValueError(f"{place / TABLE} has no row for {unknown[0]}")
    images = np.stack([_pixels(path) for path in files]) if files else np.empty((0, SIDE, SIDE, 3), np.uint8)
    labels = np.array([int(table[path.stem]["TrueLabel"]) - 1 for path in files], np.uint16)  # theirs begin at 1
    order = np.argsort(digests(images, labels))
    halves = {"train": order[:CALIBRATION], "test": order[CALIBRATION:]}
    arrays = {
        f"{letter}_{part}": whole[half]
        for part, half in halves.items()
        for letter, whole in (("x", images), ("y", labels))
    }
    return arrays, _authors([table[path.stem] for path in files])


def _pixels(path):
    from PIL import Image

    with Image.open(path) as image:
        return np.asarray(image.convert("RGB").resize((SIDE, SIDE), Image.Resampling.BICUBIC))


def _authors(rows):
    columns = ("ImageId", "TrueLabel", "OriginalLandingURL", "License", "Author", "AuthorProfileURL")
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def class_names() -> tuple[str, ...]:
    """Return the names of the 1000 classes of ImageNet, in the order of its labels.

    >>> class_names()[:2]
    ('tench', 'goldfish')
    """
    from torchvision.models import ResNet18_Weights

    return tuple(ResNet18_Weights.IMAGENET1K_V1.meta["categories"])
