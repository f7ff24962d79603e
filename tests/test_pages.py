"""pages.py: the site as files, and the site and JupyterLab as a reader sees them in a browser."""

import contextlib
import html
import importlib
import inspect
import pkgutil
import re
import shutil
import subprocess
import sys
import threading
import time
import urllib.request
from functools import partial
from html.parser import HTMLParser
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import nbformat
import pandas as pd
import pytest

import lowrank_utils
from conftest import write_notebook
from lowrank_utils import paths
from lowrank_utils.__main__ import main
from lowrank_utils.workbook import gallery, plots, reference, runs
from lowrank_utils.workbook.site import build

pytestmark = pytest.mark.slow  # each builds pages with Sphinx, or opens them

ROWS = """\
from lowrank_utils.workbook import results
share = [0.1, 0.2, 0.5]
rows = [{"chooser": c, "factors": "svd", "scope": s, "budget_kind": "kept", "budget": k, "stored_as": "low rank", "parameters_kept": k, "accuracy": k + 0.01 * seed,
         "notebook": "02_arsvd", "dataset": "toys", "network": "mlp"} for c in ("energy", "fixed") for s in ("every layer", "hidden layers") for k in share]
results.save(output_folder, rows + [dict(rows[0], chooser="dense", factors="none", scope="none", budget_kind="dense", budget=None, stored_as="dense", accuracy=0.9)])
"""
DRAW = "import matplotlib.pyplot as plt\n_ = plt.plot([1, 2])"
TOLD = "## A line\nIt rises from *one* to $x^2$."


class _Images(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.found = []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        if tag == "img":
            self.found.append(dict(attributes))


@pytest.fixture
def toy(project):
    """A toy project with all that a site is made of; notebook 02_second writes rows that 02_arsvd might."""
    (project.root / "README.md").write_text(
        "# Toys\n[01](notebooks/01_first.ipynb), [all](notebooks/solutions), [data](data/README.md)\n"
    )
    (project.root / "data").mkdir(exist_ok=True)
    (project.root / "data" / "README.md").write_text("# Data\nNone.\n")
    write_notebook(project.second, "if word == 'boom': raise ValueError('went wrong')", ROWS)
    write_notebook(project.root / "notebooks" / "solutions" / "01_first.ipynb", "1")
    return project


def results_of(made):
    return read(made, "run/results")


def read(made, name):
    return (made.root / "outputs" / "site" / f"{name}.html").read_text()


def test_committed_notebooks_become_pages_in_their_order(toy, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["lowrank_utils", "report", "--site"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 0
    assert capsys.readouterr().out == f"the site begins at {Path('outputs') / 'site' / 'index.html'}\n"
    first = read(toy, "index")
    places = [
        first.index(f'href="{name}.html"')
        for name in ("notebooks/01_first", "notebooks/02_second", "notebooks/solutions/01_first", "data/README")
    ]
    assert places[:2] == sorted(places[:2])
    assert "Nothing is published" in read(toy, "outputs/gallery/README") and "No row here" in read(
        toy, "outputs/gallery/figures"
    )
    assert not (toy.root / "outputs" / "site" / "run").exists()
    assert sorted(p.name for p in (toy.root / "outputs").iterdir()) == ["site"]  # nothing lies about
    (toy.root / "README.md").write_text("# Toys again\n")
    build()
    assert "<h1>Toys again" in read(toy, "index")


def test_figures_have_alternative_texts_and_stderr_stays_out(toy):
    path = write_notebook(toy.first, "import sys; print('loud', file=sys.stderr); print('said')", DRAW)
    notebook = nbformat.read(path, 4)
    notebook.cells.insert(3, nbformat.v4.new_markdown_cell(TOLD))
    nbformat.write(notebook, path)
    runs.refresh(path)
    notebook = nbformat.read(path, 4)
    notebook.cells[2].outputs.append(nbformat.v4.new_output("stream", name="stderr", text="loud"))
    nbformat.write(notebook, path)
    build()
    page = read(toy, "notebooks/01_first")
    (image,) = [i for i in _Images(page).found if "_images" in i["src"]]
    assert image["alt"] == "A line: It rises from one to x^2."
    assert "said" in page and page.count("loud") == 1  # in the code alone
    assert 'class="math notranslate nohighlight">\\(x^2\\)' in page


def test_a_run_takes_the_place_of_what_is_committed(toy):
    assert toy.call("run", "--quiet", "--set", "threshold=0.3").code == 0
    (place,) = toy.runs.iterdir()
    build(place.name)
    assert "threshold = 0.3" in re.sub("<[^>]*>", "", read(toy, "notebooks/02_second"))
    results = read(toy, "run/results")
    assert f"Results of {place.name}" in results and "02_arsvd-toys-mlp" in results
    (image,) = _Images(results).found
    assert image["alt"].startswith("toys · mlp; every layer cut") and "Lines: energy; fixed; dense." in image["alt"]
    assert "2 of 2 notebooks were executed" in results and f"As executed by {place.name}" in read(
        toy, "notebooks/02_second"
    )
    (file,) = (toy.root / "outputs" / "site" / "_downloads").rglob("results.csv")
    table = pd.read_csv(file)
    assert results.count("<tr") == len(table) + 1 == 15  # 13 rows of 02_second, one of 01_first
    assert table["accuracy"].max() == 0.9


def test_a_sweep_shows_each_cell_and_its_own_figure(toy):
    done = toy.call(
        "sweep", "02", "--grid", "seed=0,1", "threshold=0.1,0.2", "word=plain,boom", "--workers", "1", "--quiet"
    )
    assert done.code == 1, done.err
    place = toy.root / "outputs" / "sweeps" / "02_second"
    table = pd.read_parquet(place / "results.parquet")
    figures = gallery.drawn_figures(table)
    # thresholds are not averaged, seeds are
    assert list(figures) == ["02_arsvd-toys-mlp-threshold=0.1", "02_arsvd-toys-mlp-threshold=0.2"]
    for name, figure in figures.items():
        assert (place / f"{name}.png").read_bytes().startswith(b"\x89PNG")
        line = next(line for line in figure.axes[0].lines if line.get_label() == "fixed")
        assert line.get_ydata() == pytest.approx([0.105, 0.205, 0.505])
    record = runs.read_run(place)
    assert record["status"] == "failed" and [cell["status"] for cell in record["jobs"]].count("done") == 4
    build(place)
    names = sorted(p.stem for p in (toy.root / "outputs" / "site" / "run").glob("02_second*"))
    assert "threshold=0.1" in results_of(toy) and "Means and standard deviations" in results_of(toy)
    assert "As executed" not in read(toy, "notebooks/02_second")  # cells of a sweep take no page's place
    assert len(names) == 4 and all(name in read(toy, "index") for name in names)
    results = read(toy, "run/results")
    assert "4 of 8 notebooks were executed" in results and "went wrong" in results


def test_figures_of_a_table_that_holds_nothing_to_draw():
    assert gallery.drawn_figures(gallery.published_rows(folder="/nowhere")) == {}
    rows = {
        "notebook": ["02_arsvd", "05_rank_search"],
        "chooser": "dense",
        "dataset": "toys",
        "network": "mlp",
        "budget_kind": "dense",
    }
    assert gallery.drawn_figures(pd.DataFrame(rows | {"accuracy": 0.5, "seed": 0})) == {}


def test_what_cannot_be_drawn_is_left_out_and_names_are_fit_for_files():
    rows = [{"chooser": c, "factors": "svd", "budget_kind": kind, "budget": b, "tuned": "none", "accuracy": 0.5, "dataset": "folder:/a b/[c]", "network": "m", "seed": 0}
            for c, kind, b in (("mine", "kept", 0.1), ("energy", "macs", 0.5), ("dense", "dense", None))]  # fmt: skip
    for notebook in (
        "02_arsvd",
        "02b_convolutions",
        "03_entropy_pruning",
        "04_ddlr",
        "05_rank_search",
        "06_side_by_side",
    ):
        for some in (rows, rows[:1], rows[1:2], rows[2:]):
            table = pd.DataFrame(some).assign(
                notebook=notebook, parameters_kept=0.1, macs_kept=0.5, scope="every layer"
            )
            for name, figure in gallery.drawn_figures(table).items():
                assert re.fullmatch(r"[\w.=-]+", name) and len(figure.axes) > 0
    table["budget_kind"] = None  # of rows that were not told in columns
    assert gallery.drawn_figures(table) == {}


@pytest.mark.parametrize(
    "notebook", ["02_arsvd", "02b_convolutions", "03_entropy_pruning", "04_ddlr", "05_rank_search"]
)
def test_every_notebook_with_published_rows_has_its_figure(notebook):
    table = gallery.published_rows(notebook=notebook)
    figures = gallery.drawn_figures(table)
    networks = table[["dataset", "network"]].drop_duplicates()
    assert len(figures) == (1 if notebook.startswith(("02b", "05")) else len(networks))
    for figure in figures.values():
        assert all(len(axis.lines) > 1 for axis in figure.axes if axis.axison)
        assert "against" in plots.described(figure) and "Lines:" in plots.described(figure)


def stands(made):
    """Build a site, and return a function that says whether it is as it was."""
    build()
    before = {p: p.read_bytes() for p in (made.root / "outputs" / "site").rglob("*") if p.is_file()}
    return lambda: all(p.is_file() and p.read_bytes() == content for p, content in before.items())


def test_a_page_that_cannot_be_built_leaves_the_old_site(toy):
    still = stands(toy)
    (toy.root / "README.md").write_text("# Toys\n[gone](notebooks/99_gone.ipynb)\n")
    with pytest.raises(runs.RunError, match=r"cannot be built: index.md.*99_gone"):
        build()
    for content in (
        b"{",
        b"\xae\xff",
        b'{"cells": null, "nbformat": 4, "nbformat_minor": 5, "metadata": {}}',
        b'{"nbformat": 9}',
    ):
        toy.first.write_bytes(content)
        with pytest.raises(runs.RunError, match="01_first.ipynb is missing or damaged"):
            build()
    assert still() and sorted(p.name for p in (toy.root / "outputs").iterdir()) == ["site"]


def test_nothing_that_is_not_a_site_is_replaced(toy, monkeypatch):
    still = stands(toy)
    site = toy.root / "outputs" / "site"
    (site / "CNAME").write_text("mine")
    with pytest.raises(runs.RunError, match="site holds CNAME, which is no page of ours"):
        build()
    (site / "CNAME").unlink()
    (toy.root / "letter.txt").write_text("dear")
    (toy.root / "link").symlink_to(site)
    for name in ("letter.txt", "link"):
        with pytest.raises(runs.RunError, match=f"{name} is not a folder that can be replaced"):
            build(folder=toy.root / name)
    assert (toy.root / "letter.txt").read_text() == "dear" and still()
    rename = Path.rename

    def stuck(path, target):
        if path.name == "site" and path.parent.name == ".site-build":
            raise OSError(5, "Input/output error")
        return rename(path, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", stuck)
        with pytest.raises(OSError, match="Input/output"):
            build()
    assert still()
    build()
    assert not (toy.root / "outputs" / ".site-build").exists()


def test_one_build_at_a_time_and_a_killed_one_leaves_nothing_behind(toy):
    still = stands(toy)
    beside = toy.root / "outputs" / ".site-build"
    (beside / "source").mkdir(parents=True)  # as a killed build leaves it
    (beside / "source" / "conf.py").write_text("boom")
    with runs.locked(beside), pytest.raises(runs.RunError, match="another build of .*site is under way"):
        build()
    assert still() and beside.exists()
    build()
    assert still() and not beside.exists()


def test_bad_requests_are_one_sentence(toy, monkeypatch):
    with pytest.raises(runs.RunError, match="there is no run 'gone'"):
        build("gone")
    place = runs.new_run()
    runs.write_json(place / "run.json", {"status": "running", "request": {}, "jobs": []})
    with pytest.raises(runs.RunError, match="has executed nothing yet"):
        build(place)
    (toy.root / "mine").mkdir()
    (toy.root / "mine" / "letter.txt").write_text("dear")
    with pytest.raises(runs.RunError, match="holds letter.txt, which is no page of ours"):
        build(folder=toy.root / "mine")
    assert (toy.root / "mine" / "letter.txt").read_text() == "dear"
    with pytest.raises(runs.RunError, match="copy memory://x here first"):
        build("memory://x")
    for words in (["--to", "x"], ["--site", "--gallery"], ["--site", "a", "b"]):
        assert (done := toy.call("report", *words)).code == 2 and done.err.count("\n") == 1, done.err
    monkeypatch.setattr(sys, "executable", str(without_sphinx(toy.root)))
    with pytest.raises(runs.RunError, match=r"built with sphinx, which is not installed: make site"):
        build()


def without_sphinx(folder):
    python = folder / "python"
    python.write_text(f"#!/bin/sh\necho '{sys.executable}: No module named sphinx' >&2\nexit 1\n")
    python.chmod(0o755)
    return python


# ---- in a browser ------------------------------------------------------------------------------------------

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)


def in_browser(test):
    wanted = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed (Debian: apt-get install chromium)")
    return pytest.mark.browser(wanted(test))


@pytest.fixture(scope="module")
def browser():
    play = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install -e .[site]")
    with play.sync_playwright() as started:
        opened = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    return build(folder=tmp_path_factory.mktemp("built") / "site").parent


@contextlib.contextmanager
def page_of(browser, local=("file:", "data:", "blob:")):
    """Yield a page of `browser` that reaches no network, and the list of what it complains of."""
    context = browser.new_context()
    complaints = []

    def pass_on(route):
        if route.request.url.startswith(local):
            route.continue_()
        else:
            complaints.append(f"asks for {route.request.url}")
            route.abort()

    context.route("**/*", pass_on)
    page = context.new_page()
    page.on("console", lambda said: said.type == "error" and complaints.append(said.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    gone = "net::ERR_ABORTED"  # what was still loading when the reader went on
    page.on("requestfailed", lambda request: request.failure != gone and complaints.append(f"lacks {request.url}"))
    yield page, complaints
    context.close()


TYPESET = "() => !window.MathJax || !document.querySelector('.math') || document.querySelector('mjx-container')"
STATE = """() => ({
    formulas: document.querySelectorAll('.math').length,
    typeset: document.querySelectorAll('.math mjx-container').length,
    wrong: document.querySelectorAll('mjx-merror, [data-mjx-error]').length,
    flat: [...document.querySelectorAll('mjx-container')].filter(m => m.getBoundingClientRect().height < 4).length,
    images: [...document.querySelectorAll('article img')].map(i => [i.src, i.naturalWidth, i.clientHeight, i.alt]),
    code: document.querySelectorAll('article div.highlight pre').length,
    buttons: document.querySelectorAll('article button.copybtn').length,
    chapters: [...document.querySelectorAll('.sidebar-tree a.internal')].map(a => a.getAttribute('href')),
})"""


@in_browser
@pytest.mark.timeout(600)
def test_every_page_loads_without_a_network_math_typeset_and_figures_seen(browser, site):
    files = [p for p in sorted(site.rglob("*.html")) if "_static" not in p.parts]
    formulas = figures = 0
    with page_of(browser) as (page, complaints):
        for path in files:
            page.goto(path.as_uri(), wait_until="load")
            page.wait_for_function(TYPESET)
            now = page.evaluate(STATE)
            name = path.relative_to(site)
            assert complaints == [], name
            assert now["typeset"] == now["formulas"] and now["wrong"] == now["flat"] == 0, (name, now)
            assert len({image[3] for image in now["images"]}) == len(now["images"]), name  # each has words of its own
            for source, width, height, alternative in now["images"]:
                assert width > 100 and height > 50, (name, source)
                assert len(alternative) > 20 and not alternative.endswith(".png"), (name, source)
            assert now["buttons"] >= now["code"], name
            formulas, figures = formulas + now["formulas"], figures + len(now["images"])
    notebooks = len([*paths.NOTEBOOKS.glob("*.ipynb"), *paths.SOLUTIONS.glob("*.ipynb")])
    assert len(files) > notebooks, "a page for each notebook and solution, and the others"
    assert formulas > 100 and figures > 40, (formulas, figures)


@in_browser
def test_reader_finds_the_way(browser, site):
    with page_of(browser) as (page, complaints):
        page.goto((site / "index.html").as_uri(), wait_until="networkidle")
        chapters = page.evaluate(STATE)["chapters"]
        wanted = [f"notebooks/{p.stem}.html" for p in sorted(paths.NOTEBOOKS.glob("*.ipynb"))]
        assert [c for c in chapters if re.fullmatch(r"notebooks/\w+\.html", c)] == wanted
        page.click(f"article a[href='{wanted[2]}']")
        page.wait_for_load_state("networkidle")
        assert "ARSVD" in page.title()
        page.click(".related-pages .next-page")
        page.wait_for_load_state("networkidle")
        assert "02b_convolutions" in page.url
        assert complaints == []
        page.goto((site / "search.html").as_uri() + "?q=nuclear")  # excerpts beside the hits need a server
        page.wait_for_selector("#search-results li a")
        assert any("04_ddlr" in link.get_attribute("href") for link in page.query_selector_all("#search-results li a"))


@in_browser
@pytest.mark.parametrize("wide", [420, 1024, 1400])
def test_pages_fit_the_window(browser, site, wide):
    with page_of(browser) as (page, _):
        page.set_viewport_size({"width": wide, "height": 900})
        for name in (
            "index",
            "notebooks/06_side_by_side",
            "outputs/gallery/README",
            "docs/results",
            "docs/api/compression",
        ):
            page.goto((site / f"{name}.html").as_uri())
            assert page.evaluate("document.documentElement.scrollWidth") <= wide, name


# contrasts of words and marks below an element with their papers, as WCAG 2.2 defines them
CONTRASTS = """(root) => {
    const parse = (text) => (text.match(/[\\d.]+/g) || []).map(Number);
    const light = (c) => { const [r, g, b] = c.slice(0, 3).map((v) => { v /= 255; return v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4; });
        return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
    const ratio = (a, b) => { const [low, high] = [light(a), light(b)].sort((x, y) => x - y); return (high + 0.05) / (low + 0.05); };
    const paper = (node) => { for (; node; node = node.parentElement) { const c = parse(getComputedStyle(node).backgroundColor);
        if (c.length === 3 || c[3] > 0) return c; } return [255, 255, 255]; };
    const solid = (node) => !node || (Number(getComputedStyle(node).opacity) === 1 && solid(node.parentElement));
    const words = [...document.querySelectorAll(root + ' *')].filter((n) => n.checkVisibility() &&
        [...n.childNodes].some((c) => c.nodeType === 3 && c.textContent.trim()) && !['SCRIPT', 'STYLE', 'OPTION'].includes(n.tagName.toUpperCase()));
    const text = words.map((n) => [n.outerHTML.slice(0, 60), !solid(n) ? 0 : ratio(parse(n.closest('svg') ? getComputedStyle(n).fill : getComputedStyle(n).color), paper(n))]);
    const marks = [...document.querySelectorAll(root + ' svg [role=img]')].map((n) => [n.getAttribute('aria-label').slice(0, 60),
        ratio(parse(getComputedStyle(n).fill), paper(n)) > 1.2 ? ratio(parse(getComputedStyle(n).fill), paper(n)) : ratio(parse(getComputedStyle(n).stroke), paper(n))]);
    return { text, marks };
}"""
FOCUSED = """async () => {
    await Promise.all(document.getAnimations().map((animation) => animation.finished.catch(() => 0)));
    const node = document.activeElement, style = getComputedStyle(node), shown = (n) => !n || (Number(getComputedStyle(n).opacity) > 0.9 && shown(n.parentElement));
    const { top, right, bottom, left } = node.getBoundingClientRect(), within = bottom > 0 && top < innerHeight && right > 0 && left < innerWidth;
    return node === document.body ? null : { href: node.getAttribute('href'), told: node.outerHTML.slice(0, 80),
        visible: within && shown(node) && style.visibility === 'visible' && style.outlineStyle !== 'none' && parseFloat(style.outlineWidth) > 0 };
}"""
LINKS = "[...document.querySelectorAll('a[href]')].filter(n => n.checkVisibility({visibilityProperty: true})).map(n => n.getAttribute('href'))"
READ = ("index", "docs/running", "docs/api/compression")


@in_browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_words_of_the_site_have_contrast(browser, site, scheme):
    papers = set()
    with page_of(browser) as (page, _):
        page.emulate_media(color_scheme=scheme)
        for name in READ:
            page.goto((site / f"{name}.html").as_uri())
            found = page.evaluate(CONTRASTS, "body")["text"]
            assert len(found) > 150
            assert min(found, key=lambda pair: pair[1])[1] >= 4.5, (name, min(found, key=lambda pair: pair[1]))
            papers.add(page.evaluate("getComputedStyle(document.body).backgroundColor"))
            page.evaluate("document.querySelector('article p').style.color = '#777'")
            assert min(ratio for _, ratio in page.evaluate(CONTRASTS, "body")["text"]) < 4.5, "a pale word is found"
    assert len(papers) == 1 and (papers == {"rgb(255, 255, 255)"}) == (scheme == "light")


@in_browser
@pytest.mark.parametrize("name", READ)
def test_every_link_of_the_site_is_reached_by_the_tab_key_and_seen(browser, site, name):
    with page_of(browser) as (page, _):
        page.set_viewport_size({"width": 1400, "height": 900})
        page.goto((site / f"{name}.html").as_uri())
        page.add_style_tag(content="* { scroll-behavior: auto !important }")
        wanted, reached = set(page.evaluate(LINKS)), []
        page.keyboard.press("Tab")
        while now := page.evaluate(FOCUSED):
            reached.append(now)
            assert len(reached) < 300, "the Tab key goes in circles"
            page.keyboard.press("Tab")
        page.keyboard.press("Tab")  # from the end of the page to its first link
        page.keyboard.press("Enter")
        assert page.url.endswith("#furo-main-content")
    assert len(wanted) > 30 and wanted - {one["href"] for one in reached} == set()
    assert [one["told"] for one in reached if not one["visible"]] == []


@pytest.fixture(scope="module")
def served(site):
    """The address of a server that has the site."""

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *words):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=site)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


FIRST_FIGURE = """document.addEventListener('load', (event) => {
    if (event.target.matches?.('article img')) window.pictureSeen ??= performance.now();
}, true);"""
LOADED = (
    "['navigation', 'resource'].flatMap(k => performance.getEntriesByType(k)).map(e => [e.name, e.encodedBodySize])"
)


@in_browser
@pytest.mark.parametrize("name", ["index", "explore"])
def test_first_pages_are_small_and_show_a_figure_within_two_seconds(browser, served, name):
    with page_of(browser, (served, "data:")) as (page, _):
        page.add_init_script(FIRST_FIGURE)
        page.goto(f"{served}/{name}.html", wait_until="networkidle")
        drawn, loaded = page.evaluate("window.explorerDrawn ?? window.pictureSeen"), dict(page.evaluate(LOADED))
    assert drawn < 2000, f"the first figure took {drawn:.0f} ms"
    assert 100_000 < sum(loaded.values()) < 1_000_000, loaded


@pytest.mark.timeout(600)
def test_the_reference_shows_every_public_function_with_its_docstring(site):
    named = set()
    for page in reference.PAGES:
        named |= set(re.findall(r'id="(lowrank_utils[\w.]*)"', (site / reference.FOLDER / f"{page}.html").read_text()))
    wanted = set()
    for module in pkgutil.walk_packages(lowrank_utils.__path__, "lowrank_utils."):
        if not module.name.endswith("__main__"):
            for name, thing in vars(importlib.import_module(module.name)).items():
                own = getattr(thing, "__module__", "") == module.name and not name.startswith("_")
                if own and (inspect.isfunction(thing) or inspect.isclass(thing)) and thing.__doc__:
                    wanted.add(f"{module.name}.{name}")
    assert len(wanted) > 300 and wanted - named == set()
    shown = (site / "docs" / "api" / "compression.html").read_text()
    assert "docs/api/compression.html" in (site / "index.html").read_text()
    text = html.unescape(re.sub("<[^>]*>", "", shown))
    assert "kept: float = 0.5" in text and "Raises ValueError for a budget out of reach" in text
    (listed,) = re.findall(r"<li><p><strong>calibration</strong>(.*?)</li>", shown, re.S)[:1]
    assert "without labels" in listed


@in_browser
def test_a_page_with_a_fault_is_found(browser, tmp_path):
    # the two tests above must be able to fail
    (tmp_path / "a.html").write_text(
        "<script src='https://example.org/x.js'></script><img src='gone.png'><script>boom()</script>"
    )
    with page_of(browser) as (page, complaints):
        page.goto((tmp_path / "a.html").as_uri())
        said = " ".join(complaints)
    assert "asks for https://example.org/x.js" in said and "gone.png" in said and "boom is not defined" in said


@contextlib.contextmanager
def jupyter_lab(folder):
    """Yield the address of a JupyterLab that serves `folder`."""
    options = ["--no-browser", "--allow-root", "--port=0", "--IdentityProvider.token=", "--ServerApp.password="]
    options += [
        f"--ServerApp.root_dir={folder}",
        "--LabApp.news_url=",
        "--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate",
    ]
    log = folder / "lab.log"
    with open(log, "w") as said:
        lab = subprocess.Popen([sys.executable, "-m", "jupyterlab", *options], cwd=folder, stdout=said, stderr=said)
        try:
            for _ in range(600):  # the address is told before anybody listens there
                assert lab.poll() is None, log.read_text()
                found = re.search(r"(http://(?:localhost|127\.0\.0\.1):\d+)/lab", log.read_text())
                with contextlib.suppress(OSError):
                    if found:
                        urllib.request.urlopen(f"{found[1]}/api", timeout=30).close()
                        break
                time.sleep(0.1)
            else:
                pytest.fail(f"JupyterLab did not answer in a minute: {log.read_text()}")
            yield found[1]
        finally:
            lab.terminate()
            lab.wait(60)


@in_browser
@pytest.mark.timeout(600)
def test_jupyterlab_runs_02_from_top_to_bottom(browser, tmp_path):
    def read(path):
        notebook = nbformat.read(path, 4)
        return notebook, [cell for cell in notebook.cells if cell.cell_type == "code"]

    notebook, code = read(paths.NOTEBOOKS / "02_arsvd.ipynb")
    for cell in code:
        cell.outputs, cell.execution_count = [], None
    path = tmp_path / "02_arsvd.ipynb"
    nbformat.write(notebook, path)
    with (
        jupyter_lab(tmp_path) as address,
        page_of(browser, (address, "data:", "blob:", address.replace("http", "ws"))) as (page, complaints),
    ):
        page.goto(f"{address}/lab/tree/02_arsvd.ipynb")
        page.wait_for_selector(".jp-Notebook .jp-CodeCell", timeout=60_000)
        page.wait_for_selector("text=Python 3 (ipykernel) | Idle", timeout=60_000)
        page.click("text=Run >> nth=0")
        page.click(".lm-Menu-itemLabel:text-is('Run All Cells')")
        save = ".jp-NotebookPanel-toolbar [data-jp-item-name='save']"
        for _ in range(240):  # the kernel is idle between two cells too, so the file has to tell
            page.wait_for_timeout(2000)
            page.click(save)
            with contextlib.suppress(nbformat.reader.NotJSONError):  # read while it is written
                ran, done = read(path)
                if done[-1].execution_count or gallery.errors(ran):
                    break
        page.wait_for_selector("text=Python 3 (ipykernel) | Idle", timeout=60_000)
        page.click(save)
        page.wait_for_selector(".jp-mod-current:not(.jp-mod-dirty)")  # while cells run, the next output makes it dirty
        for _ in range(30):  # the page may be clean of an earlier save while the server still writes this one
            with contextlib.suppress(nbformat.reader.NotJSONError):
                ran, done = read(path)
                if all(cell.execution_count for cell in done):
                    break
            page.wait_for_timeout(1000)
        assert gallery.errors(ran) == []
        assert [c.execution_count for c in done] == list(range(1, len(code) + 1))
        assert sum("image/png" in o.get("data", {}) for c in done for o in c.outputs) >= 5
        seen = page.wait_for_selector(
            ".jp-OutputArea-output img[src^='data:image/png']", timeout=30_000, state="attached"
        )
        assert seen.evaluate("i => i.naturalWidth") > 300
    assert complaints == []
