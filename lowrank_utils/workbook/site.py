"""The static site: executed notebooks, gallery tables and figures as pages that need no network to be read."""

from __future__ import annotations

import contextlib
import html
import os
import re
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pandas as pd

from lowrank_utils import paths
from lowrank_utils.lab.columns import LANGUAGE_COLUMNS, RESULT_COLUMNS
from lowrank_utils.workbook import chapters, explorer_page, front, jobs, links, plots, reference, results, runs
from lowrank_utils.workbook.gallery import drawn_figures, gather, published_rows, settings

PAGES = ("running", "data", "glossary")  # of docs, in this order
MARK = ".lowrank-site"  # names the files of a site, so that nobody else's are replaced with it
_NEEDED = "make site, or python -m pip install -e '.[site]'"


def build(run: str | Path | None = None, folder: str | Path | None = None, gallery: str | Path | None = None) -> Path:
    """Build the site and return the path of its first page.

    Pages: the README and the pages of docs, with a reference made from the docstrings; notebooks, in the order of the workbook, and solutions, as committed, or what `run` executed
    in their place (the cells of a sweep, and what a run executed more than once, have pages of their own); the
    gallery's tables, its figures, drawn from its rows, and every notebook behind them. Math, styles and scripts come
    along, so that the pages need no network.

    Parameters: `run`, a name or folder; `folder` of the site (default outputs/site), replaced as a whole once the
    new one is done; `gallery` (default outputs/gallery). Raises RunError where Sphinx is missing, the run is
    not there or has executed nothing, another build is at work there, `folder` is or holds something else than a site, or a
    page cannot be read or built.
    """
    folder, gallery = Path(folder or paths.OUTPUTS / "site").absolute(), Path(gallery or paths.GALLERY)
    if "://" in str(run or ""):
        raise runs.RunError(f"pages are built from a folder of this machine; copy {run} here first")
    place = runs.find_run(run) if run else None
    _check_target(folder)
    beside = folder.parent / f".{folder.name}-build"  # on the same file system, so that one rename puts the site there
    beside.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(runs.locked(beside))
        except runs.RunError:
            raise runs.RunError(f"another build of {folder} is under way: wait for its end") from None
        for left in beside.glob("*/"):  # of a build that was killed
            shutil.rmtree(left)
        try:
            _write_source(beside / "source", place, gallery)
            _sphinx(beside / "source", beside / "site")
            _explorer_alone(beside / "site", gallery)
        except runs.RunError:
            shutil.rmtree(beside)
            raise
        made = beside / "site"
        files = sorted(p.relative_to(made).as_posix() for p in made.rglob("*") if p.is_file())
        (made / MARK).write_text("\n".join(files) + "\n")
        if folder.exists():
            folder.rename(beside / "before")
        try:
            made.rename(folder)
        except OSError:
            if (beside / "before").exists():
                (beside / "before").rename(folder)
            raise
        shutil.rmtree(beside)
    return folder / "index.html"


def _check_target(folder):
    if folder.is_symlink() or (folder.exists() and not folder.is_dir()) or os.path.ismount(folder):
        raise runs.RunError(f"{folder} is not a folder that can be replaced; name another one")
    if not folder.is_dir() or not any(folder.iterdir()):
        return
    known = {MARK, *(folder / MARK).read_text().splitlines()} if (folder / MARK).is_file() else set()
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.relative_to(folder).as_posix() not in known:
            raise runs.RunError(
                f"{folder} holds {path.relative_to(folder)}, which is no page of ours; name another folder"
            )


def _sphinx(source, target):
    command = [sys.executable, "-m", "sphinx", "-b", "html", "-q", "-N", "-W", "--keep-going"]
    command += ["-d", str(source / ".doctrees"), str(source), str(target)]
    done = subprocess.run(command, capture_output=True, text=True)
    missing = re.search(r"No module named '?([\w.-]+)|no theme named '(\w+)'", done.stderr)
    if done.returncode and missing:
        raise runs.RunError(f"the site is built with {missing[1] or missing[2]}, which is not installed: {_NEEDED}")
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        said = next((line for line in lines if re.search("WARNING|ERROR|rror:", line)), "no reason given")
        raise runs.RunError(f"the site cannot be built: {said.replace(f'{source}/', '')}")


# ---- what Sphinx reads: the project's own layout, so that the links between its pages hold -----------------------------


def _write_source(source, place, gallery):
    source.mkdir()
    with _reading(paths.DOCS / "conf.py"):
        shutil.copy(paths.DOCS / "conf.py", source)
        shutil.copytree(paths.DOCS / "_own", source / "_own")
    with _reading(place):
        executed = _executed(place) if place else {}
    chapters = list(jobs.select([]))
    for name in chapters:
        target = source / "notebooks" / f"{name}.ipynb"
        note = f"As executed by {place.name}." if name in executed else ""
        _page(executed.pop(name, paths.NOTEBOOKS / f"{name}.ipynb"), target, note=note)
    solved = [path for path in sorted(paths.SOLUTIONS.glob("*.ipynb")) if path.stem in chapters]
    for path in solved:
        _page(path, source / "notebooks" / "solutions" / path.name)
    (source / "data").mkdir()
    with _reading(paths.DATA / "README.md"):
        shutil.copy(paths.DATA / "README.md", source / "data")
    with _reading(place):
        own = _run_pages(source, place, executed) if place else []
    with _reading(gallery):
        published = _gallery_pages(source, gallery)
    for name in ("CONTRIBUTING.md", "CITATION.cff", "LICENSE"):
        if (paths.ROOT / name).is_file():
            shutil.copy(paths.ROOT / name, source)
    written = _docs(source)
    trees = {
        "The workbook": [f"notebooks/{name}" for name in chapters],
        "Explore": _explorer_page(source, gallery),
        "Solutions": [f"notebooks/solutions/{path.stem}" for path in solved],
        "This run": own,
        "Results": [*(page for page in written if page == "docs/results"), *published],
        "Using it": [f"docs/{name}" for name in PAGES if f"docs/{name}" in written],
        "Reference": [page for page in written if page == "docs/api" or page.startswith(f"{reference.FOLDER}/")],
        "About": ["data/README", *(["CONTRIBUTING"] if (source / "CONTRIBUTING.md").is_file() else [])],
    }
    with _reading(paths.ROOT / "README.md"):
        first = links.without_images((paths.ROOT / "README.md").read_text())
    if solved:  # a link to a folder is one to its first page
        first = first.replace("](notebooks/solutions)", f"](notebooks/solutions/{solved[0].name})")
    (source / "index.md").write_text(first + "".join(_tree(c, pages, "hidden") for c, pages in trees.items() if pages))
    _lead_to_explorer(source)


def _docs(source):
    """Copy the project's pages and their pictures; return the names of all pages, those of the reference included."""
    own = paths.ROOT / "docs"
    pages = sorted(own.glob("*.md"))
    (source / "docs").mkdir()
    for path in pages:
        shutil.copy(path, source / "docs")
    if (own / "figures").is_dir():
        shutil.copytree(own / "figures", source / "docs" / "figures")
    names = [f"docs/{path.stem}" for path in pages]
    return names + (reference.write(source) if "docs/api" in names else [])


@contextlib.contextmanager
def _reading(path):
    """Turn what goes wrong with a damaged or missing file into one sentence."""
    try:
        yield
    except (ValueError, KeyError, TypeError, AttributeError, FileNotFoundError) as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise runs.RunError(f"{Path(path).name} is missing or damaged ({reason})") from None


def _tree(caption, pages, option):
    lines = ["\n", "```{toctree}", f":caption: {caption}", ":maxdepth: 1", f":{option}:", "", *pages, "```", ""]
    return "\n".join(lines)


def _gallery_pages(source, gallery):
    here = source / "outputs" / "gallery"
    here.mkdir(parents=True)
    rows = published_rows(folder=gallery)
    for path in (gallery / "README.md", gallery / "results.parquet", *gallery.glob("*.png")):
        if path.is_file():
            shutil.copy(path, here)
    page = here / "README.md"
    text = page.read_text() if page.is_file() else "# The gallery\n\nNothing is published."
    if len(rows):
        rows.to_csv(here / "results.csv", index=False)
        text += "\n\nAll rows: [results.csv](results.csv), [results.parquet](results.parquet).\n"
    page.write_text(text)
    drawn = _figures(here, drawn_figures(rows))
    (here / "figures.md").write_text("\n\n".join(["# The gallery in figures", *drawn]) + "\n")
    return ["outputs/gallery/README", "outputs/gallery/figures"]


def _explorer_page(source, gallery):
    """Write the page of the explorer, where its numbers are published; return its name in a list."""
    numbers = gallery / f"{explorer_page.NAME}.json"
    if not numbers.is_file():
        return []
    (source / "explorer.txt").write_text(explorer_page.fragment(numbers))
    told = f'<p>The same in <a href="{explorer_page.ALONE}">one file</a> that needs no other.</p>'
    page = [f"# {explorer_page.HEADING}", "```{raw} html", ":file: explorer.txt", "```", "```{raw} html", told, "```"]
    (source / "explore.md").write_text(
        "\n\n".join(["\n".join(page[:1]), "\n".join(page[1:4]), "\n".join(page[4:])]) + "\n"
    )
    return ["explore"]


def _lead_to_explorer(source):
    """Make links to the explorer's file lead to its page, or keep the file where there is no page of it."""
    if not (source / "explore.md").is_file():
        if (paths.ROOT / front.EXPLORER).is_file():
            shutil.copy(paths.ROOT / front.EXPLORER, source / front.EXPLORER)
        return
    link = re.compile(rf"(\]\((?:\.\./)*){re.escape(front.EXPLORER)}\)")
    for path in [*source.rglob("*.md"), *source.rglob("*.ipynb")]:
        text = path.read_text("utf-8")
        if link.search(text):
            path.write_text(link.sub(r"\1explore.md)", text), "utf-8")


def _explorer_alone(made, gallery):
    numbers = gallery / f"{explorer_page.NAME}.json"
    if numbers.is_file():
        explorer_page.standalone(made / explorer_page.ALONE, numbers)


def _run_pages(source, place, executed):
    """Write the pages of a run: its rows and figures, and each notebook that `executed` still holds."""
    here = source / "run"
    here.mkdir()
    for label, path in executed.items():
        _page(path, here / f"{label}.ipynb", title=label, note=f"As executed by {place.name}.")
    rows, cells = gather(place), runs.read_run(place)["jobs"]
    rows.insert(4, "setting", settings(rows))
    rows.to_csv(here / "results.csv", index=False)
    done = len(runs.finished(place))
    parts = [f"# Results of {place.name}", f"{done} of {len(cells)} notebooks were executed to their end."]
    parts += [f"- `{cell['address']}`: {html.escape(cell['error'])}" for cell in cells if cell.get("error")]
    parts += [f"{len(rows)} rows, with everything on record in [results.csv](results.csv)."]
    parts += _figures(here, drawn_figures(rows))
    if (place / "summary.parquet").is_file():  # of a sweep
        means = pd.read_parquet(place / "summary.parquet")
        kept = [c for c in map(str, means) if c.startswith("run_") and means[c].nunique() > 1]
        kept += ["dataset", "network", "chooser", "factors", "scope", "budget_kind", "budget", "tuned", "seeds"]
        kept += [f"{name}_{what}" for name in ("accuracy", "parameters_kept", "macs_kept") for what in ("mean", "std")]
        parts += ["## Means and standard deviations over seeds", _table(means, kept)]
    shown = ["notebook", "dataset", "network", "seed", "setting", *RESULT_COLUMNS[4:], *LANGUAGE_COLUMNS]
    parts += ["## Rows", _table(rows, shown)]
    (here / "results.md").write_text("\n\n".join(parts) + "\n")
    return ["run/results", *(f"run/{label}" for label in executed)]


def _table(rows, columns):
    shown = [c for c in columns if c in rows and (rows[c].notna() & (rows[c] != "")).any()]
    page = rows[shown].to_html(index=False, border=0, na_rep="", float_format="{:.4g}".format)
    return f'<div style="overflow-x: auto">\n{page}\n</div>'


def _figures(folder, figures):
    """Write figures below `folder`; return the Markdown that shows them, each with its alternative text."""
    if not figures:
        return ["No row here can be drawn."]
    parts = ["Drawn from the rows, on test images: means over seeds and draws, bands from the lowest to the highest."]
    for label, figure in figures.items():
        figure.savefig(folder / f"{label}.png", format="png")
        image = ["```{image} " + f"{label}.png", f":alt: {' '.join(plots.described(figure).split())}", "```"]
        parts += [f"## {label}", chapters.every()[label.split("-")[0]].FIGURE_CAPTION, "\n".join(image)]
    return parts


def _executed(place):
    """Return {notebook name: path} of what a run executed, {label: path} of a sweep, or where it executed one more than once."""
    jobs_done = [(results.read_done(job), job / "notebook.ipynb") for job in runs.finished(place)]
    if not jobs_done:
        raise runs.RunError(f"run {place.name} has executed nothing yet")
    names = [done["notebook"] for done, _ in jobs_done]
    labels = [done["label"] for done, _ in jobs_done]
    sweep = "grid" in runs.read_run(place)["request"]
    found = {}
    for done, path in jobs_done:
        label = done["label"] if labels.count(done["label"]) == 1 else f"{done['label']}-{done['address'][-8:]}"
        found[done["notebook"] if names.count(done["notebook"]) == 1 and not sweep else label] = path
    return found


def _page(path, target, title=None, note=""):
    """Copy a notebook as a page: with alternative texts, without stderr, with a title and a note if they are given."""
    import nbformat

    with _reading(path):
        try:
            notebook = nbformat.read(path, as_version=4)
        except (nbformat.reader.NotJSONError, nbformat.ValidationError) as error:
            raise ValueError(str(error)[:80]) from None
        heading, said, told = "", "", []
        for cell in notebook.cells:
            if cell.cell_type == "markdown":
                cell.source = links.without_images(cell.source)  # badges come from elsewhere
                heading = next(iter(re.findall(r"^#+ (.*)", cell.source, re.M)[::-1]), heading)
                said = cell.source.strip().rpartition("\n\n")[2].rpartition("\n#")[2]
            elif cell.cell_type == "code":
                cell.outputs = [o for o in cell.outputs if o.get("name") != "stderr"]
                if any("image/png" in o.get("data", {}) for o in cell.outputs):
                    words = textwrap.shorten(f"{_plain(heading)}: {_plain(said)}", 300, placeholder=" ...")
                    told.append(words)
                    again = f" (figure {told.count(words)})" if told.count(words) > 1 else ""
                    cell.metadata.setdefault("mystnb", {})["image"] = {"alt": words + again}
        first = next((c for c in notebook.cells if c.cell_type == "markdown" and c.source.startswith("# ")), None)
        if first is not None:
            head, _, rest = first.source.partition("\n")
            first.source = "\n".join([f"# {title}" if title else head, f"\n*{note}*\n" if note else "", rest])
        notebook.metadata.pop("widgets", None)  # sliders want a kernel; the figure itself is there
        target.parent.mkdir(parents=True, exist_ok=True)
        nbformat.write(notebook, target)


def _plain(markdown):
    """Return one line of plain words of a Markdown text, its headings left out.

    >>> _plain("## Ranks\\n`rank` is *one* number, $r$ [here](x.md).")
    'rank is one number, r here.'
    """
    text = re.sub(r"^#.*$", "", markdown, flags=re.M)
    text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", text)
    return " ".join(re.sub(r"[`*$\\{}|]", "", text).split())
