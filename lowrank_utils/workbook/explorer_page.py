"""The page of the explorer: hand-written SVG and script around the numbers of explorer.json, in one file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from lowrank_utils import paths
from lowrank_utils.workbook import plots
from lowrank_utils.workbook.explorer import CHOOSERS, NAME

ALONE = "_static/explorer.html"  # in the site, beside what pages are made of: it has not their frame
HEADING = "How small can a network be?"
PAGE = paths.DOCS / "explorer"  # its text, style and script


def contrast(one: Sequence[float], other: Sequence[float]) -> float:
    """Return the contrast of two colours, three numbers in [0, 1] each, as WCAG 2.2 defines it: from 1 to 21.

    >>> contrast((0, 0, 0), (1, 1, 1))
    21.0
    """

    def luminance(colour):
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in colour]
        return float(np.dot(linear, (0.2126, 0.7152, 0.0722)))

    low, high = sorted((luminance(one), luminance(other)))
    return round((high + 0.05) / (low + 0.05), 6)


def legible(colour: Sequence[float], paper: Sequence[float], least: float = 3.2) -> str:
    """Return a colour as #rrggbb, moved towards black or white until its contrast to `paper` is at least `least`."""
    ink = np.zeros(3) if contrast((0, 0, 0), paper) > contrast((1, 1, 1), paper) else np.ones(3)
    for share in np.linspace(0, 1, 101):
        found = (1 - share) * np.asarray(colour, float) + share * ink
        if contrast(found, paper) >= least:
            break
    return "#" + "".join(f"{round(255 * part):02x}" for part in found)


def _colours():
    lines = []
    for mode, paper in (("light", (1.0, 1.0, 1.0)), ("dark", (0.075, 0.086, 0.094))):
        told = "".join(f"--c{i}:{legible(plots.COLOURS[name], paper)};" for i, name in enumerate(CHOOSERS))
        lines.append((mode, told))
    light, dark = (told for _, told in lines)
    return (
        f".explorer{{{light}}}\n@media (prefers-color-scheme:dark){{body:not([data-theme=light]) .explorer{{{dark}}}}}\n"
        f"body[data-theme=dark] .explorer{{{dark}}}"
    )


def fragment(path: str | Path | None = None) -> str:
    """Return the explorer as HTML that stands in any page: style, text, the data of `path` and script. Raises OSError without them."""
    path = Path(path or paths.GALLERY / f"{NAME}.json")
    style, body, script = ((PAGE / f"explorer.{kind}").read_text("utf-8") for kind in ("css", "html", "js"))
    held = path.read_text("utf-8").replace("</", "<\\/")
    # the script comes first: where the file is cut short within the data, it is there to say so
    return (
        f"<style>\n{style}{_colours()}\n</style>\n{body}<script>\n{script}</script>\n"
        f'<script type="application/json" id="explorer-data">{held}</script>\n'
    )


def whole(path: str | Path | None = None) -> str:
    """Return the explorer as one page that needs nothing beside it. Raises OSError without the data of `path`."""
    head = '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<meta name="viewport" content="width=device-width, initial-scale=1">\n'
    return f"{head}<title>{HEADING}</title>\n</head>\n<body>\n<main>\n<h1>{HEADING}</h1>\n{fragment(path)}</main>\n</body>\n</html>\n"


def standalone(target: str | Path, path: str | Path | None = None) -> Path:
    """Write the `whole` page to `target`, and return its path."""
    target, page = Path(target), whole(path)
    with paths.atomic_write(target) as temporary:
        temporary.write_text(page, "utf-8")
    return target
