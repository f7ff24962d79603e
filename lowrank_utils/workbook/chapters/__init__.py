"""One module a notebook: its tables, claims, figures and captions; the experiment stands in ``..._experiment``, for what a page says is no code of its rows.

A chapter is found by its name ``NOTEBOOK``; ``tables`` and ``CAPTIONS`` it must have. What else it may have, and who asks for it:

- ``experiment(...)``: the notebook's result rows;
- ``tables(rows)``: {heading: Markdown table}, and ``CAPTIONS`` {heading: text}: the gallery;
- ``CLAIMS``, each a `verdicts.Claim`: the claim table;
- ``UNMET``, {heading of a table, or "*" for all of them and the claims: {rule of fair comparison: why it is not kept}}: `audit`;
- ``usable(rows)``, ``figure(rows, title)``, ``FIGURE_CAPTION``, ``ONE_EACH``, all four or none: the pages of a run and of the gallery;
- ``pictures(rows)``: {name: figure} that docs/results.md shows.
"""

import importlib
import pkgutil
from types import ModuleType


def every() -> dict[str, ModuleType]:
    """Return {notebook: chapter} of all chapters, in the order of their notebooks.

    >>> list(every())[:2]
    ['00_low_rank_in_ten_minutes', '01_training']
    """
    found = (importlib.import_module(f"{__name__}.{module.name}") for module in pkgutil.iter_modules(__path__))
    found = [
        chapter for chapter in found if hasattr(chapter, "NOTEBOOK") and hasattr(chapter, "CAPTIONS")
    ]  # no helpers
    return {chapter.NOTEBOOK: chapter for chapter in sorted(found, key=lambda chapter: chapter.NOTEBOOK)}
