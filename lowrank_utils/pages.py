"""The static site: executed notebooks, gallery tables and figures as pages that need no network to be read."""

import contextlib
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from lowrank_utils import jobs, paths, plots, report, results, runs

# What Sphinx reads. Nothing is executed here: the pages show what the notebooks hold.
_CONF = """\

project = "The low-rank workbook"
html_title = project
extensions = ["myst_nb", "sphinx_copybutton", "sphinx-mathjax-offline"]
nb_execution_mode = "off"
nb_merge_streams = True
nb_mime_priority_overrides = [("html", "application/vnd.jupyter.widget-view+json", None)]
myst_enable_extensions = ["dollarmath", "amsmath"]
myst_heading_anchors = 3
html_theme = "furo"
html_show_sphinx = False
html_show_copyright = False
html_copy_source = False
html_static_path = ["_own"]
html_css_files = ["own.css"]
copybutton_exclude = ".linenos, .gp, .go"
suppress_warnings = ["mystnb.unknown_mime_type", "misc.highlighting_failure"]
"""
_CSS = """\
.cell_output { overflow-x: auto; }
.cell_output table, article table { font-size: 80%; }
article table td, article table th { padding: 0.15rem 0.5rem; }
.content { width: 60em; max-width: 100%; }
.cell_output pre { white-space: pre-wrap; }
"""
_NEEDED = "make site, or python -m pip install -e '.[site]'"


def build(run=None, folder=None, gallery=None):
    """Build the site and return the path of its first page.

    Pages: the README; notebooks, in the order of the workbook, and solutions, as committed, or, where `run` names a
    run or a sweep, what it executed in their place; the gallery's tables, its figures, drawn from its rows, and every
    notebook behind them. Math, styles and scripts come along, so that the pages need no network.

    Parameters: `run`, a name or folder; `folder` of the site (default outputs/site), replaced as a whole once the
    new one is done; `gallery` (default outputs/gallery). Raises RunError where Sphinx is missing, the run is
    not there or has executed nothing, `folder` holds something else, or a page cannot be built, in Sphinx's words, or read.
    """
    folder, gallery = Path(folder or paths.OUTPUTS / "site").absolute(), Path(gallery or paths.GALLERY)
    if folder.is_dir() and any(folder.iterdir()) and not (folder / "objects.inv").is_file():
        raise runs.RunError(f"{folder} holds files that are no site; name another folder")
    with contextlib.ExitStack() as stack:
        source = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        _write_source(source, runs.find_run(run) if run else None, gallery)
        folder.parent.mkdir(parents=True, exist_ok=True)
        made = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=folder.parent, prefix=".site-")))
        _sphinx(source, made / "site")
        if folder.exists():
            folder.rename(made / "before")
        (made / "site").rename(folder)
    return folder / "index.html"


def _sphinx(source, target):
    command = [sys.executable, "-m", "sphinx", "-b", "html", "-q", "-W", "--keep-going"]
    command += ["-d", str(source / ".doctrees"), str(source), str(target)]
    done = subprocess.run(command, capture_output=True, text=True)
    if "No module named" in done.stderr:
        missing = re.search(r"No module named '?([\w.-]+)", done.stderr)[1]
        raise runs.RunError(f"the site is built with {missing}, which is not installed: {_NEEDED}")
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        said = next((line for line in lines if re.search("WARNING|ERROR|rror:", line)), "no reason given")
        raise runs.RunError(f"the site cannot be built: {said.replace(f'{source}/', '')}")


# ---- what Sphinx reads: the project's own layout, so that the links between its pages hold -----------------------------


def _write_source(source, place, gallery):
    (source / "conf.py").write_text(_CONF)
    (source / "_own").mkdir()
    (source / "_own" / "own.css").write_text(_CSS)
    executed = _executed(place) if place else {}
    chapters = list(jobs.select([]))
    for name in chapters:
        _page(executed.pop(name, paths.NOTEBOOKS / f"{name}.ipynb"), source / "notebooks" / f"{name}.ipynb")
    solved = [path for path in sorted(paths.SOLUTIONS.glob("*.ipynb")) if path.stem in chapters]
    for path in solved:
        _page(path, source / "notebooks" / "solutions" / path.name)
    (source / "data").mkdir()
    shutil.copy(paths.DATA / "README.md", source / "data")
    trees = {
        "The workbook": [f"notebooks/{name}" for name in chapters],
        "Solutions": [f"notebooks/solutions/{path.stem}" for path in solved],
        "This run": _run_pages(source, place, executed) if place else [],
        "Results": _gallery_pages(source, gallery),
        "About": ["data/README"],
    }
    first = (paths.ROOT / "README.md").read_text()
    if solved:  # a link to a folder is one to its first page
        first = first.replace("](notebooks/solutions)", f"](notebooks/solutions/{solved[0].name})")
    (source / "index.md").write_text(first + "".join(_tree(c, pages, "hidden") for c, pages in trees.items() if pages))


def _tree(caption, pages, option):
    return "\n".join(
        ["\n", "```{toctree}", f":caption: {caption}", ":maxdepth: 1", f":{option}:", "", *pages, "```", ""]
    )


def _gallery_pages(source, gallery):
    here = source / "outputs" / "gallery"
    here.mkdir(parents=True)
    behind = sorted(gallery.glob("*.ipynb"))
    for path in behind:
        _page(path, here / path.name, title=path.stem)
    for name in ("README.md", "arsvd.png"):
        if (gallery / name).is_file():
            shutil.copy(gallery / name, here)
    page = here / "README.md"
    text = page.read_text() if page.is_file() else "# The gallery\n\nNothing is published."
    page.write_text(text + _tree("Every notebook behind it", [p.stem for p in behind], "titlesonly"))
    drawn = _figures(here, report.figures(report.gallery(folder=gallery)))
    (here / "figures.md").write_text("\n\n".join(["# The gallery in figures", *drawn]) + "\n")
    return ["outputs/gallery/README", "outputs/gallery/figures"]


def _run_pages(source, place, executed):
    """Write the pages of a run: its rows and figures, and each notebook that `executed` still holds."""
    here = source / "run"
    here.mkdir()
    for label, path in executed.items():
        _page(path, here / f"{label}.ipynb", title=label)
    rows = report.gather(place)
    rows.to_csv(here / "results.csv", index=False)
    shown = [c for c in (*results.RESULT_COLUMNS, "target") if c in rows and rows[c].notna().any()]
    table = rows[shown].to_html(index=False, border=0, na_rep="", float_format="{:.4g}".format)
    parts = [
        f"# Results of {place.name}",
        f"{len(rows)} rows, with everything on record in [results.csv](results.csv).",
    ]
    parts += [*_figures(here, report.figures(rows)), "## Rows", table]
    (here / "results.md").write_text("\n\n".join(parts) + "\n")
    return ["run/results", *(f"run/{label}" for label in executed)]


def _figures(folder, figures):
    """Write figures below `folder`; return the Markdown that shows them, each with its alternative text."""
    if not figures:
        return ["No row here can be drawn."]
    parts = ["Drawn from the rows, on test images. Bands run from the lowest to the highest run."]
    for label, figure in figures.items():
        figure.savefig(folder / f"{label}.png", format="png")
        parts.append(f"## {label}\n![{plots.described(figure)}]({label}.png)")
    return parts


def _executed(place):
    """Return {notebook name: path} of what a run executed, {label: path} where it executed one more than once."""
    found = {}
    for job in runs.finished(place):
        done = results.read_done(job)
        found.setdefault(done["notebook"], []).append((done["label"], done["address"], job / "notebook.ipynb"))
    if not found:
        raise runs.RunError(f"run {place.name} has executed nothing yet")
    flat = {}
    for name, each in found.items():
        labels = [label for label, _, _ in each]
        for label, address, path in each:
            unique = label if labels.count(label) == 1 else f"{label}-{address[-8:]}"
            flat[name if len(each) == 1 else unique] = path
    return flat


def _page(path, target, title=None):
    """Copy a notebook as a page: with alternative texts, without stderr, under another title if one is given."""
    import nbformat

    try:
        notebook = nbformat.read(path, as_version=4)
    except (nbformat.reader.NotJSONError, nbformat.ValidationError, AttributeError):
        raise runs.RunError(f"{path.name} is no notebook, or a damaged one") from None
    heading = said = ""
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            if title and cell.source.startswith("# "):
                cell.source, title = re.sub(r"^# .*", f"# {title}", cell.source, count=1), None
            heading = next(iter(re.findall(r"^#+ (.*)", cell.source, re.M)[::-1]), heading)
            said = cell.source.strip().rpartition("\n\n")[2].rpartition("\n#")[2]
        elif cell.cell_type == "code":
            cell.outputs = [o for o in cell.outputs if o.get("name") != "stderr"]
            if any("image/png" in o.get("data", {}) for o in cell.outputs):
                cell.metadata.setdefault("mystnb", {})["image"] = {"alt": f"{_plain(heading)}: {_plain(said)}"[:300]}
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
