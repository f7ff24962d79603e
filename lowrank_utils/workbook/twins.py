"""Text twins: each notebook once more as Markdown, without outputs, so that a change of its prose can be reviewed.

The notebook is the original, and its twin is written from it by jupytext, never edited. Tags, tolerances and all other
metadata of cells are kept.
"""

from __future__ import annotations

from pathlib import Path

from lowrank_utils import paths
from lowrank_utils.workbook.runs import RunError

FORMAT = {"extension": ".md", "format_name": "markdown"}
# The header says what a reader of the file needs; the version of jupytext would change all twins at each upgrade.
HEADER = "kernelspec,jupytext,-jupytext.text_representation.jupytext_version,-jupytext.notebook_metadata_filter"
NEEDED = "python -m pip install -e '.[test]'"


def originals() -> list[Path]:
    """Return the notebooks that have twins: all below notebooks/, solutions included, in their order."""
    return sorted(path for path in paths.NOTEBOOKS.rglob("*.ipynb") if ".ipynb_checkpoints" not in path.parts)


def twin_of(path: str | Path) -> Path:
    """Return where the twin of a notebook lies: at the same place below notebooks/text.

    Raises ValueError for a notebook outside notebooks/.

    >>> twin_of(paths.SOLUTIONS / "02_arsvd.ipynb").relative_to(paths.NOTEBOOKS).as_posix()
    'text/solutions/02_arsvd.md'
    """
    path = Path(path)
    if not path.is_relative_to(paths.NOTEBOOKS):
        raise ValueError(f"{path} is not below {paths.NOTEBOOKS}, where notebooks with twins are")
    return (paths.NOTEBOOKS / "text" / path.relative_to(paths.NOTEBOOKS)).with_suffix(".md")


def text(path: str | Path) -> str:
    """Return a notebook as Markdown: prose as it stands, code cells fenced, with their metadata and without outputs.

    Raises RunError where jupytext is missing or the file is no notebook.
    """
    import nbformat

    try:
        import jupytext
    except ModuleNotFoundError:
        raise RunError(f"text twins are written with jupytext, which is not installed: {NEEDED}") from None
    try:
        notebook = nbformat.read(path, as_version=4)
    except (ValueError, KeyError, TypeError, AttributeError, nbformat.ValidationError) as error:
        reason = " ".join(f"{error}".split())[:80]
        raise RunError(f"{Path(path).name} is no notebook ({reason})") from None
    notebook.metadata["jupytext"] = {"notebook_metadata_filter": HEADER, "cell_metadata_filter": "all"}
    return jupytext.writes(notebook, fmt=FORMAT)


def stale() -> list[Path]:
    """Return the twins that differ from their notebooks, are missing, or have no notebook any more; sorted."""
    wanted = {twin_of(path): text(path) for path in originals()}
    there = set((paths.NOTEBOOKS / "text").rglob("*.md"))
    changed = {twin for twin, content in wanted.items() if twin not in there or twin.read_text("utf-8") != content}
    return sorted(changed | (there - wanted.keys()))


def write() -> list[Path]:
    """Bring all twins in step with their notebooks, and return those that were written or removed; sorted."""
    changed, sources = stale(), {twin_of(path): path for path in originals()}
    for twin in changed:
        if twin not in sources:
            twin.unlink()
            continue
        with paths.atomic_write(twin) as temporary:
            temporary.write_text(text(sources[twin]), "utf-8")
    return changed
