"""Badges that open a notebook on Colab or Binder, for one copy on GitHub; without a copy there are none, and no dead link.

A notebook gets a line of badges below its title and a code cell that installs the package on Colab; the README gets
badges of its first notebook. All of it can be taken out again, to the last byte.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from lowrank_utils import paths

if TYPE_CHECKING:
    from nbformat import NotebookNode

CELL = "colab-setup"  # id of the code cell
ON_BINDER = ("00", "01", "02", "03")  # what fits the memory that Binder gives
PLACE = re.compile(r"<!-- links -->.*?<!-- /links -->", re.S)
_BADGES = re.compile(r"\n\n\[!\[Open in Colab\][^\n]*")
_BADGE = re.compile(r"\[!\[(Open in \w+)\]\([^)]*\)\]\(([^)]*)\)")
SETUP = """\
# On Colab, where the package is missing: fetch this copy of the workbook and install what Colab does not have.
import importlib, importlib.util, os, subprocess, sys

if importlib.util.find_spec("lowrank_utils") is None:
    address = "https://github.com/{repository}"
    subprocess.run(["git", "clone", "-q", "--depth=1", "--branch={branch}", address, "workbook"], check=True)
    subprocess.run([sys.executable, "-m", "pip", "install", "-q", "--no-deps", "./workbook"], check=True)
    importlib.invalidate_caches()
if os.path.isdir("workbook/lowrank_utils"):
    os.environ.setdefault("LOWRANK_ROOT", os.path.abspath("workbook"))
_ = importlib.import_module("lowrank_utils.workbook.colab").complete()"""


def check(repository: str, branch: str = "main") -> None:
    """Raise ValueError for what is no name of a repository on GitHub, or of a branch.

    >>> check("someone/low-rank")
    """
    if not re.fullmatch(r"[A-Za-z0-9](?:[A-Za-z0-9-]{0,38})/[\w.-]{1,100}", repository):
        raise ValueError(
            f"{repository!r} is no repository on GitHub: name it as owner/name, as in REPO=someone/low-rank"
        )
    if not re.fullmatch(r"[\w./-]+", branch):
        raise ValueError(f"{branch!r} is no name of a branch")


def badges(repository: str, notebook: str, branch: str = "main") -> str:
    """Return one line of Markdown: the badges of a notebook, given by its path in the repository.

    >>> badges("a/b", "notebooks/04_ddlr.ipynb").split("](")[-1]
    'https://colab.research.google.com/github/a/b/blob/main/notebooks/04_ddlr.ipynb)'
    """
    colab = "https://colab.research.google.com"
    found = f"[![Open in Colab]({colab}/assets/colab-badge.svg)]({colab}/github/{repository}/blob/{branch}/{notebook})"
    if Path(notebook).name.startswith(ON_BINDER):
        page = f"https://mybinder.org/v2/gh/{repository}/{branch}?labpath={notebook.replace('/', '%2F')}"
        found += f" [![Open in Binder](https://mybinder.org/badge_logo.svg)]({page})"
    return found


def without_images(text: str) -> str:
    """Return Markdown with its badges as links of plain words, for pages that are read without a network.

    >>> without_images("[![Open in Colab](https://x/y.svg)](https://z)")
    '[Open in Colab](https://z)'
    """
    return _BADGE.sub(r"[\1](\2)", text)


def linked(notebook: NotebookNode, name: str, repository: str, branch: str = "main") -> NotebookNode:
    """Return the notebook with badges for `repository` and the cell for Colab; `name` is its path in the repository."""
    import nbformat

    new = unlinked(notebook)
    first = new.cells[0]
    title, line, rest = first.source.partition("\n")
    first.source = f"{title}\n\n{badges(repository, name, branch)}{line}{rest}"
    setup = SETUP.format(repository=repository, branch=branch)
    cell = nbformat.v4.new_code_cell(setup, id=CELL, metadata={"tags": ["remove-cell"]})  # the site has no use for it
    new.cells.insert(1, cell)
    _number(new)
    return new


def unlinked(notebook: NotebookNode) -> NotebookNode:
    """Return the notebook without badges and without the cell for Colab."""
    import copy

    new = copy.deepcopy(notebook)
    new.cells[0].source = _BADGES.sub("", new.cells[0].source, count=1)
    had = len(new.cells)
    new.cells = [cell for cell in new.cells if cell.get("id") != CELL]
    if len(new.cells) < had:
        _number(new)
    return new


def _number(notebook: NotebookNode) -> None:
    # as a run from top to bottom would; nbval passes over a cell without a number
    for number, cell in enumerate((c for c in notebook.cells if c.cell_type == "code"), 1):
        cell.execution_count = number
        for output in cell.outputs:
            if "execution_count" in output:
                output.execution_count = number


def write(repository: str | None = None, branch: str = "main", root: Path | None = None) -> list[Path]:
    """Write the badges of `repository` into the README and every notebook of the project `root`, or take them out for None.

    Returns the files that changed. Raises ValueError for what is no repository, and for a README without a place for badges, before
    anything is written.
    """
    import nbformat

    root = root or paths.ROOT
    if repository is not None:
        check(repository, branch)
    readme, changed = root / "README.md", []
    front = readme.read_text("utf-8")
    if not PLACE.search(front):
        raise ValueError("README.md has no place for badges: put <!-- links --><!-- /links --> below its title")
    told = f"\n{badges(repository, 'notebooks/00_low_rank_in_ten_minutes.ipynb', branch)}\n" if repository else ""
    new = {readme: PLACE.sub(f"<!-- links -->{told}<!-- /links -->", front)}
    for path in [
        *sorted((root / "notebooks").glob("*.ipynb")),
        *sorted((root / "notebooks/solutions").glob("*.ipynb")),
    ]:
        notebook = nbformat.read(path, as_version=4)
        name = path.relative_to(root).as_posix()
        fresh = linked(notebook, name, repository, branch) if repository else unlinked(notebook)
        new[path] = nbformat.writes(fresh) + "\n"
    for path, text in new.items():
        if text != path.read_text("utf-8"):
            with paths.atomic_write(path) as temporary:
                temporary.write_text(text, "utf-8")
            changed.append(path)
    return changed
