"""The README and the pages of docs: short, current, with links that lead somewhere, and code that runs."""

import inspect
import re
import shutil

import pandas as pd
import pytest
import yaml
from torch import nn

import lowrank_utils
from conftest import mlp
from lowrank_utils import paths
from lowrank_utils.__main__ import app
from lowrank_utils.__main__ import data as data_command
from lowrank_utils.lab import data, efficientnet, encoder, language, sentences, text
from lowrank_utils.workbook import explorer_page, front, front_figures, front_results, gallery, jobs, links, plots
from lowrank_utils.workbook.runs import RunError

DOCS = paths.ROOT / "docs"
PAGES = front.pages()


def unlinked(path):
    """The text of a page without the badges that a copy on GitHub may have."""
    return links.PLACE.sub("<!-- links --><!-- /links -->", path.read_text("utf-8"))


README = unlinked(paths.ROOT / "README.md")


def each(files):
    return pytest.mark.parametrize("path", files, ids=lambda p: p.relative_to(paths.ROOT).as_posix())


# ---- the README


def test_the_readme_is_one_screen_and_a_half():
    lines, words = len(README.splitlines()), len(README.split())
    assert lines <= 150 and words <= 1200, (lines, words)


def test_the_first_screen_says_what_for_whom_how_and_what_was_found():
    places = [README.index(word) for word in ("# The low-rank workbook", "**For whom.**", "figures/idea.png")]
    places += [README.index(f"\nmake {target}  ") for target in ("run", "test", "lab")]
    places += [
        README.index(f"\n## {title}\n") for title in ("The notebooks", "Three findings", "One call on your own network")
    ]
    places += [README.index("\n## Cite\n")]
    assert places == sorted(places) and places[5] < 0.3 * len(README)
    findings = README.split("## Three findings")[1].split("## One call")[0]
    assert len(re.findall(r"^### ", findings, re.M)) == len(re.findall(r"^!\[", findings, re.M)) == 3


def test_the_papers_are_told_in_six_lines_with_a_link():
    table = README.split("<!-- begin papers -->")[1].split("<!-- end papers -->")[0].strip().splitlines()[2:]
    assert len(table) == 6 and {line.split(":")[0] for line in table} == {"| ARSVD", "| DDLR", "| ENC"}
    assert all(re.search(r"\d", line.split("|")[2]) for line in table), "numbers, not verdicts alone"
    assert "outputs/gallery/README.md#what-the-papers-claim" in README


def test_every_command_of_the_readme_is_a_target_of_make():
    named = set(re.findall(r"\bmake (\w+)", README))
    targets = set(re.findall(r"^([a-z]+):", (paths.ROOT / "Makefile").read_text(), re.M))
    assert {"run", "test", "lab"} <= named <= targets


@pytest.mark.slow
def test_the_code_of_the_readme_runs():
    (code,) = re.findall(r"```python\n(.*?)```", README, re.S)
    import torch

    given = {"model": mlp(), "calibration": torch.randn(40, 12)}
    exec(code, given)
    assert isinstance(given["small"].model, nn.Module) and given["small"].kept["macs"] <= 0.5


@pytest.mark.slow
def test_the_code_of_the_page_on_running_runs(tmp_path, monkeypatch):
    import torch

    monkeypatch.chdir(tmp_path)
    first, latency, third = re.findall(r"```python\n(.*?)```", (DOCS / "running.md").read_text(), re.S)
    layers = {
        "fc1": nn.Linear(12, 30),
        "relu1": nn.ReLU(),
        "fc2": nn.Linear(30, 20),
        "relu2": nn.ReLU(),
        "fc3": nn.Linear(20, 4),
    }
    model = nn.Sequential()
    for name, layer in layers.items():
        model.add_module(name, layer)
    given = {"model": model, "calibration": torch.randn(60, 12)}
    exec(first, given)
    assert {path.name for path in tmp_path.iterdir()} >= {"small.safetensors", "small.onnx"}
    inputs = given["calibration"]
    assert torch.allclose(given["again"](inputs), given["small"].model(inputs), atol=1e-5)
    exec(third, given)
    assert given["read"]["fc1"].shape == (30, 12)
    asked = inspect.signature(
        lowrank_utils.compress
    ).parameters  # timing takes long and may find no budget within reach
    assert set(re.findall(r"(\w+)=", latency)) <= set(asked) and 'resource="latency"' in latency


def test_the_papers_are_cited_as_in_the_citation_file():
    references = yaml.safe_load((paths.ROOT / "CITATION.cff").read_text())["references"]
    numbers = [reference["identifiers"][0]["value"].removeprefix("arXiv:") for reference in references]
    assert numbers == re.findall(r"\[arXiv ([\d.]+)\]\(https://arxiv.org/abs/\1\)", README.split("## Cite")[1])


# ---- all pages


def anchors(path):
    headings = re.findall(r"^#+ (.*)$", path.read_text("utf-8"), re.M)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@each(PAGES)
def test_every_link_leads_somewhere(path):
    links = re.findall(r"\]\((?!https?:)([^)\s]+)\)", path.read_text("utf-8"))
    assert links
    for link in links:
        place, _, anchor = link.partition("#")
        target = (path.parent / place).resolve() if place else path
        assert target.exists(), link
        assert not anchor or target.suffix != ".md" or anchor in anchors(target), link


@each(PAGES)
def test_every_picture_has_words_of_its_own(path):
    words = re.findall(r"!\[([^\]]*)\]\(", unlinked(path))
    assert all(len(word) > 40 for word in words) and len(set(words)) == len(words)


def test_the_pages_are_reached_from_the_readme():
    assert {path.name for path in DOCS.glob("*.md")} == set(re.findall(r"\]\(docs/(\w+\.md)", README))


def test_without_a_copy_on_github_there_is_no_badge():
    for path in PAGES:
        assert not re.search(r"mybinder\.org/v2|colab\.research\.google\.com", unlinked(path)), path.name
    assert "<!-- links --><!-- /links -->" in README


def test_the_page_on_data_names_what_the_command_takes():
    named = set(re.findall(r"^\| `([\w:-]+)`", (DOCS / "data.md").read_text(), re.M))
    known = {*data.NAMES, "folder:PATH", *text.NAMES, "file:PATH", *language.NAMES}
    known |= {module.NAME for module in (efficientnet, encoder, sentences)}
    assert named == known
    said = data_command.__annotations__["name"].__metadata__[0].help
    assert {name for name in known if not re.search(rf"(?<![\w-]){re.escape(name)}(?![\w-])", said)} == set()


def test_the_presets_on_the_page_on_running_are_there():
    text = (DOCS / "running.md").read_text()
    table = text[text.index("| preset |") :].partition("\n\n")[0]
    named = [word for line in re.findall(r"^\| (`.*?) \|", table, re.M) for word in re.findall(r"`([\w-]+)`", line)]
    assert len(named) > 8 and set(named) <= {path.stem for path in paths.PRESETS.glob("*.yaml")}
    commands = re.findall(r"^python -m lowrank_utils (\w+)", text, re.M)
    assert (
        {"run", "parameters", "data", "report", "audit", "sweep"}
        <= set(commands)
        <= {command.callback.__name__ for command in app.registered_commands}
    )


def test_the_break_even_rank_of_the_glossary_is_the_one_that_is_reported():
    rank = int(
        re.search(r"576 x 576 matrix gives 288, and its break-even rank is (\d+)", (DOCS / "glossary.md").read_text())[
            1
        ]
    )
    assert (
        lowrank_utils.profile(nn.Sequential(nn.Linear(576, 576, bias=False)), input_shape=(576,))["0"].break_even()
        == rank
    )


# ---- numbers from the rows


def test_the_page_of_the_explorer_holds_the_published_numbers():
    assert (paths.ROOT / front.EXPLORER).read_text("utf-8") == explorer_page.whole(), "python -m lowrank_utils front"
    assert f"]({front.EXPLORER})" in README


def test_a_page_of_the_explorer_with_other_numbers_is_found_and_written(tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "ROOT", tmp_path)
    page, numbers = tmp_path / front.EXPLORER, tmp_path / "explorer.json"
    assert front.stale(tmp_path) == front.write(tmp_path) == []  # there are no numbers, so there is no page
    shutil.copy(paths.GALLERY / "explorer.json", numbers)
    assert front.stale(tmp_path) == front.write(tmp_path) == [page]
    assert front.stale(tmp_path) == front.write(tmp_path) == []
    before = page.read_bytes()
    numbers.write_text(numbers.read_text().replace("LeNet-300-100 on digits", "LeNet-300-100 on figures"))
    assert front.stale(tmp_path) == [page] and page.read_bytes() == before
    assert front.write(tmp_path) == [page] and b"LeNet-300-100 on figures" in page.read_bytes()
    numbers.write_text('{"schema": 0}')
    with pytest.raises(RunError, match="the page of the explorer cannot be written: explorer.json is of version 0"):
        front.write(tmp_path)


@pytest.mark.slow
def test_pages_and_pictures_say_what_the_rows_say():
    assert front.stale() == [], "python -m lowrank_utils front"


def test_every_block_and_picture_is_used():
    texts = [path.read_text("utf-8") for path in PAGES]
    assert {name for text in texts for _, name, _, _ in front.BLOCK.findall(text)} == set(front.BLOCKS)
    assert {name for text in texts for name in front.PICTURE.findall(text)} == set(front_figures.DRAWN)


def test_pictures_are_small_and_tell_what_they_were_drawn_from():
    for path in (DOCS / "figures").iterdir():
        assert path.stem in front_figures.DRAWN and path.stat().st_size < 150_000
        assert re.fullmatch(r"[0-9a-f]{16}", front.recorded(path))
    assert front.recorded(DOCS / "none.png") == ""


@pytest.fixture
def copied(tmp_path, monkeypatch):
    """A copy of the gallery that may be changed, and of the pages."""
    shutil.copytree(paths.GALLERY, tmp_path / "gallery")
    shutil.copytree(DOCS, tmp_path / "docs")
    (tmp_path / "README.md").write_text(
        "# Findings" + README.split("## Three findings")[1].split("### What the papers")[0]
    )
    shutil.rmtree(tmp_path / "docs" / "_own")
    for page in (tmp_path / "docs").glob("*.md"):
        page.unlink()
    monkeypatch.setattr(paths, "ROOT", tmp_path)
    return tmp_path


def edit(folder, name, change):
    table = pd.read_csv(folder / "gallery" / name)
    change(table)
    table.to_csv(folder / "gallery" / name, index=False)


@pytest.mark.slow
def test_a_changed_row_changes_sentence_and_picture(copied):
    rows = copied / "gallery"
    figure = copied / "docs" / "figures" / "ranks.png"
    assert front.stale(rows) == []

    def worse(table):
        table.loc[(table["chooser"] == "dense"), "loss"] += 0.01

    edit(copied, "language.csv", worse)
    before = figure.read_bytes()
    assert front.stale(rows) == front.write(rows) == [copied / "README.md", figure]
    assert "rises from 30.4 to 77.5" in (copied / "README.md").read_text() and figure.read_bytes() != before
    assert front.stale(rows) == front.write(rows) == []


def test_a_finding_that_no_longer_holds_is_refused(copied):
    def better(table):
        table.loc[table["chooser"].eq("fixed"), "recalibrated"] = 0.99

    edit(copied, "batch-norm.csv", better)
    before = (copied / "README.md").read_bytes()
    with pytest.raises(RunError, match="no longer support the finding that factors decide on resnet20"):
        front.write(copied / "gallery")

    def swapped(table):
        mine = table["chooser"].eq("exact") & table["factors"].eq("fisher-layerwise")
        table.loc[mine, "loss"] = 9.0

    edit(copied, "language.csv", swapped)
    with pytest.raises(RunError, match="no longer support the finding that ranks decide in the language model"):
        front.ranks_block(front.Source(copied / "gallery"))
    (copied / "gallery" / "batch-norm.csv").unlink()
    with pytest.raises(RunError, match=r"batch-norm.csv is missing from the gallery"):
        front.factors_block(front.Source(copied / "gallery"))
    assert (copied / "README.md").read_bytes() == before


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("<!-- begin praise -->\n<!-- end praise -->", "nobody writes a block 'praise'"),
        ("<!-- begin ranks -->\n", "a block begins that does not end"),
        ("<!-- end ranks -->\n", "a block begins that does not end"),
    ],
)
def test_a_damaged_page_is_one_sentence(text, said):
    with pytest.raises(RunError, match=said):
        front.filled(text)


def test_an_unknown_picture_is_one_sentence():
    with pytest.raises(RunError, match="nobody draws a picture 'cat'"):
        front.drawn("cat", front.Source())


def test_a_notebook_without_a_question_or_time_is_named(project):
    with pytest.raises(RunError, match="01_first has no question"):
        front.notebooks_block(front.Source())
    assert "01_first" in jobs.notebooks(project.root / "notebooks")


@pytest.fixture(scope="module")
def tables():
    return gallery.published_tables(stated=pd.DataFrame({"holds": ["-"]}))


@pytest.mark.parametrize("name", front_results.PARAGRAPHS)
def test_a_paragraph_follows_the_tables_below_it(tables, name):
    said = front_results.PARAGRAPHS[name](tables)
    assert len(re.findall(r"\d+\.\d", said)) >= 6 and "nan" not in said
    higher = {heading: re.sub(r"\b(\d\d)\.\d\b", lambda m: f"{m[1]}.9", table) for heading, table in tables.items()}
    assert front_results.PARAGRAPHS[name](higher) != said
    source = front.Source()
    source.tables = {}
    with pytest.raises(RunError, match=f"the block '{name}' cannot be written from these rows .KeyError"):
        front.filled(f"<!-- begin {name} -->\n<!-- end {name} -->\n", source)


@pytest.mark.parametrize(
    ("images", "said"),
    [(["1 000, others 5 000", "-"], ["saw 1 000 images, and the refits and the other methods that need images saw 5 000 (the MLP on MNIST).", "is unknown for the MLP on CIFAR-10."]),
     (["1 000, others 5 000", "500"], ["not on equal terms", "saw 5 000 (the MLP on MNIST)."]),
     (["1 000", "500"], ["All methods that need images saw the same ones."]),
     (["1 000", "-"], ["How many images each method saw is unknown for the MLP on CIFAR-10."]),
     (["500; 1 000, others 5 000", "500"], ["saw 1 000 images, and the refits and the other methods that need images saw 5 000 (the MLP on MNIST)."])],
)  # fmt: skip
def test_the_images_that_methods_saw_are_told(images, said):
    rows = [{"network": "mlp", "data set": name, "images": seen} for name, seen in zip(("mnist", "cifar10"), images)]
    told = front_results._unequal(front_results.Grid(list(rows[0]), rows))
    assert all(words in told for words in said), told
    assert ("not on equal terms" in told) == any("others" in seen for seen in images)
    assert ("All methods" in told) == ("-" not in images and "not on equal terms" not in told)


def test_a_claim_that_left_the_table_is_named():
    rows = pd.DataFrame({"paper": ["ENC"], "claim": ["x"], "setting": ["y"], "ours": ["z"], "holds": ["no"]})
    source = front.Source()
    source.judged = rows
    with pytest.raises(RunError, match="the claim table has no line ARSVD"):
        front.papers_block(source)


@pytest.mark.slow
def test_the_command_writes_and_checks(project):
    (project.root / "README.md").write_text("# Toys\n<!-- begin none -->\n<!-- end none -->\n")
    done = project.call("front", "--check")
    assert done.code == 2 and "nobody writes a block 'none'" in done.err and done.err.count("\n") == 1
    (project.root / "README.md").write_text("# Toys\n")
    assert project.call("front", "--check").code == project.call("front").code == 0


# ---- pictures


def test_the_pictures_draw_their_rows():
    source = front.Source()
    rows = source.factors
    drawn = [line.get_xdata()[0] for line in front_figures.factors(rows).axes[0].lines if line.get_marker() == "o"]
    mine = rows[rows["network"] == "resnet20"].set_index("factors")["accuracy"]
    assert drawn == [mine[kind] for kind in front_figures.KINDS]
    rows = source.ranks
    lines = {line.get_label(): line for line in front_figures.ranks(rows).axes[0].lines}
    best = rows[(rows["chooser"] == "exact") & (rows["factors"] == "fisher-layerwise")].sort_values("budget")
    assert list(lines["both"].get_ydata()) == list(best["perplexity"])
    assert "singular value against component" in plots.described(front_figures.idea(source.idea))


def test_a_tile_stands_for_each_verdict():
    told = ["in part / yes", "no", "-"]
    rows = pd.DataFrame({"paper": "ENC", "claim": ["a", "a", "b"], "setting": "x", "ours": "y", "holds": told})
    axis = front_figures.claims(rows).axes[0]
    assert [text.get_text() for text in axis.texts] == ["part", "yes", "no", "?"] and len(axis.patches) == 4
    assert [label.get_text() for label in axis.get_yticklabels()] == ["ENC: a", "ENC: b"]
