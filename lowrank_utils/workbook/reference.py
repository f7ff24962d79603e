"""The pages of the API reference: one a sub-package, which Sphinx fills from the docstrings."""

from __future__ import annotations

import pkgutil
import re
from collections.abc import Sequence
from pathlib import Path

import lowrank_utils

PAGES = {  # page: (title, the sub-packages and modules that it shows)
    "compression": ("The calls for your own network", ["lowrank_utils", "compression"]),
    "network": ("network: reading a network", ["network"]),
    "factors": ("factors: which numbers", ["factors"]),
    "ranks": ("ranks: which ranks", ["ranks"]),
    "lab": ("lab: what experiments stand on", ["lab"]),
    "workbook": ("workbook: what runs, keeps and shows the workbook", ["workbook"]),
    "chapters": ("workbook.chapters: one file a notebook", ["workbook.chapters"]),
    "tools": ("Small tools", ["checks", "paths", "progress"]),
}
FOLDER = "docs/api"


def modules(name: str) -> list[str]:
    """Return the modules of a sub-package, itself first; packages inside it have pages of their own.

    >>> modules("network")[:2]
    ['lowrank_utils.network', 'lowrank_utils.network.feedforward']
    >>> modules("lowrank_utils")
    ['lowrank_utils']
    """
    root = Path(lowrank_utils.__file__).parent
    if name == root.name:
        return [name]
    place = root.joinpath(*name.split("."))
    inside = [module.name for module in pkgutil.iter_modules([str(place)]) if not module.ispkg]
    return [f"{root.name}.{name}", *(f"{root.name}.{name}.{module}" for module in sorted(inside))]


def write(source: Path) -> list[str]:
    """Write the pages below `source`, from which Sphinx builds; return their names."""
    (source / FOLDER).mkdir(parents=True)
    for page, (title, shown) in PAGES.items():
        parts = [f"# {title}"]
        for module in (module for name in shown for module in modules(name)):
            short = module.removeprefix("lowrank_utils.")
            directive = ["```{eval-rst}", f".. automodule:: {module}", "   :members:", "```"]
            parts += [f"## `{short}`", "\n".join(directive)]
        (source / FOLDER / f"{page}.md").write_text("\n\n".join(parts) + "\n")
    return [f"{FOLDER}/{page}" for page in PAGES]


_ITEM = re.compile(r"([\w*, ]*\w) : (\S.*)")  # a parameter and what it is


def as_rst(lines: Sequence[str]) -> list[str]:
    """Return a docstring's lines as reStructuredText that keeps what is read in Python: sections, parameters, formulas.

    A line ``name : text`` with what is indented below it becomes a point of a list, a section's title is bold, and the bars of
    |x| are no markup. Examples are left alone.

    >>> as_rst(["Parameters", "----------", "x, y : two |numbers|,", "    positive.", "Raises nothing."])
    ['**Parameters**', '', '* **x, y** : two \\\\|numbers\\\\|,', '  positive.', '', 'Raises nothing.']
    """
    found: list[str] = []
    item = example = False
    for line, below in zip(lines, [*lines[1:], ""]):
        example = line.strip() != "" and (example or line.startswith(">>>"))
        if re.fullmatch("-{3,}", line) and item is False:
            continue
        if re.fullmatch("-{3,}", below) and line.strip():
            found += [f"**{line.strip()}**", ""]
            continue
        told = line if example else re.sub(r"(``.*?``|`.*?`)|\|", lambda m: m[1] or "\\|", line)
        parameter = None if example else _ITEM.fullmatch(told)
        if parameter:
            if found and found[-1] and not item:
                found.append("")
            told, item = f"* **{parameter[1]}** : {parameter[2]}", True
        elif item and told.startswith("    "):
            told = f"  {told.strip()}"
        elif item:
            item = False
            if told.strip():
                found.append("")
        found.append(told)
    return found
