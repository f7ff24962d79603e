"""Badges for a copy on GitHub: in every notebook when asked for, gone to the last byte after, and a cell that works on Colab."""

import os
import re
import shutil
import subprocess
import sys
import venv
from importlib import metadata
from pathlib import Path

import nbformat
import pytest

from conftest import write_notebook
from lowrank_utils import paths
from lowrank_utils.workbook import colab, links, runs

REPOSITORY = "someone/low-rank"
NAMES = [p.name for p in sorted(paths.NOTEBOOKS.glob("*.ipynb"))]


@pytest.fixture
def copied(tmp_path):
    """A copy of the README and of all notebooks and solutions, without badges, which those of a linked copy have."""
    shutil.copy(paths.ROOT / "README.md", tmp_path)
    for folder in ("notebooks", "notebooks/solutions"):
        (tmp_path / folder).mkdir()
        for path in (paths.ROOT / folder).glob("*.ipynb"):
            shutil.copy(path, tmp_path / folder)
    links.write(root=tmp_path)
    return tmp_path


def content(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_all_badges_come_and_go(copied):
    before = content(copied)
    assert set(links.write(REPOSITORY, root=copied)) == set(before)
    after = content(copied)
    assert links.write(REPOSITORY, root=copied) == [] and content(copied) == after
    for path in before:
        name = path.relative_to(copied).as_posix()
        first = path.read_text() if path.suffix == ".md" else nbformat.read(path, 4).cells[0].source
        name = "notebooks/00_low_rank_in_ten_minutes.ipynb" if path.suffix == ".md" else name
        assert f"(https://colab.research.google.com/github/{REPOSITORY}/blob/main/{name})" in first
        small = Path(name).name[:2] in ("00", "01", "02", "03")
        assert (f"mybinder.org/v2/gh/{REPOSITORY}/main?labpath={name.replace('/', '%2F')}" in first) is small
        assert first.startswith("# ")
    links.write("another/copy", "dev", root=copied)
    assert REPOSITORY not in "".join(path.read_text() for path in before)
    assert set(links.write(root=copied)) == set(before) and content(copied) == before
    assert links.write(root=copied) == []


@pytest.mark.parametrize("name", NAMES)
def test_a_linked_notebook_still_has_the_form_of_ours(name):
    before = links.unlinked(nbformat.read(paths.NOTEBOOKS / name, 4))
    kept = nbformat.writes(before)
    linked = links.linked(before, f"notebooks/{name}", REPOSITORY)
    assert nbformat.writes(before) == kept, "what is given stays as it is"
    nbformat.validate(linked)
    code = [cell for cell in linked.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    assert code[0].source.startswith("# On Colab") and code[0].source.count("\n") < 12 and code[0].outputs == []
    compile(code[0].source, name, "exec")
    assert len(linked.cells) == len(before.cells) + 1 and len({cell.id for cell in linked.cells}) == len(linked.cells)


@pytest.mark.parametrize("name", ["", "low-rank", "a/b/c", "https://github.com/a/b", "a b/c", "a/b?x", "-a/b"])
def test_what_is_no_repository_is_refused_before_anything_is_written(name, copied):
    before = content(copied)
    with pytest.raises(ValueError, match="is no repository on GitHub: name it as owner/name"):
        links.write(name, root=copied)
    with pytest.raises(ValueError, match="is no name of a branch"):
        links.write(REPOSITORY, "my branch", root=copied)
    (copied / "README.md").write_text("# Without a place\n")
    with pytest.raises(ValueError, match="README.md has no place for badges"):
        links.write(REPOSITORY, root=copied)
    (copied / "README.md").write_bytes(before[copied / "README.md"])
    assert content(copied) == before


@pytest.mark.slow
def test_the_command_writes_twins_too_and_the_cell_changes_nothing_here(project):
    (project.root / "README.md").write_text("# Toys\n<!-- links --><!-- /links -->\n")
    for path in (project.first, project.second):
        write_notebook(path, "print('computed', 6 * 7)")
        runs.refresh(path)
    project.call("twins")
    before = content(project.root)
    done = project.call("links", REPOSITORY)
    assert done.code == 0 and done.out.count("written: ") == 5, done.err
    assert REPOSITORY in (project.root / "notebooks" / "text" / "01_first.md").read_text()
    runs.refresh(project.first)  # executes the cell, where nothing is missing
    cell = nbformat.read(project.first, 4).cells[1]
    assert cell.outputs == [] and cell.execution_count == 1
    assert project.call("links").code == 0 and content(project.root) == before
    done = project.call("links", "nowhere")
    assert done.code == 2 and done.err.count("\n") == 1


def test_pages_show_badges_as_words():
    badges = links.badges(REPOSITORY, "notebooks/02_arsvd.ipynb")
    assert badges.count(".svg)") == 2
    words = links.without_images(f"# Title\n\n{badges}\n![a figure](x.png)")
    assert "svg" not in words and words.count("[Open in ") == 2 and "![a figure](x.png)" in words


def test_what_is_missing_is_read_from_the_package():
    assert colab.missing() == []
    assert colab.missing(metadata.requires("lowrank-workbook") + ["never-made>=3"]) == ["never-made>=3"]


# ---- the cell, as it is, with what Colab has

PREINSTALLED = (  # of what the package asks for; the rest has to be fetched
    "torch torchvision safetensors numpy scipy scikit-learn cvxpy pandas pyarrow matplotlib seaborn typer tqdm distributed fsspec "
    "filelock pydantic PyYAML transformers accelerate nbformat nbclient nbconvert ipywidgets ipykernel requests"
).split()


def borrow(names, folder):
    """Link the installed packages of these names, and all that they need, into a folder."""
    from packaging.requirements import Requirement

    waiting, seen = list(names), set()
    while waiting:
        name = waiting.pop()
        if name.lower() in seen:
            continue
        seen.add(name.lower())
        found = metadata.distribution(name)
        for file in found.files or []:
            top = file.parts[0]
            if top not in ("..", "__pycache__") and not (folder / top).exists():
                (folder / top).symlink_to(Path(str(found.locate_file(top))).resolve())
        for line in found.requires or []:
            wanted = Requirement(line)
            if wanted.marker is None or wanted.marker.evaluate({"extra": ""}):
                waiting.append(wanted.name)


def committed(folder):
    """Make a git repository of what the package is made of."""
    shutil.copytree(
        paths.ROOT / "lowrank_utils", folder / "lowrank_utils", ignore=shutil.ignore_patterns("__pycache__")
    )
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(paths.ROOT / name, folder)
    who = ["-c", "user.name=someone", "-c", "user.email=someone@example.org"]
    for words in (["init", "-q", "-b", "main"], ["add", "."], [*who, "commit", "-q", "-m", "all"]):
        subprocess.run(["git", *words], cwd=folder, check=True)
    return folder


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_cell_installs_the_package_where_colab_has_not_got_it(tmp_path):
    source, borrowed = tmp_path / "copy", tmp_path / "borrowed"
    source.mkdir()
    borrowed.mkdir()
    committed(source)
    borrow(PREINSTALLED, borrowed)
    venv.create(tmp_path / "env", with_pip=True, symlinks=True)
    (place,) = (tmp_path / "env").glob("lib/python*/site-packages")
    (place / "borrowed.pth").write_text(f"{borrowed}\n")
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "LOWRANK"))}
    # git takes the copy on this machine for the one on GitHub
    environment |= {"GIT_CONFIG_COUNT": "1", "GIT_CONFIG_VALUE_0": f"https://github.com/{REPOSITORY}"}
    environment |= {"GIT_CONFIG_KEY_0": f"url.file://{source}.insteadOf", "OMP_NUM_THREADS": "1"}
    here = tmp_path / "content"
    here.mkdir()
    python = tmp_path / "env" / "bin" / "python"
    reach = [python, "-m", "pip", "download", "-q", "--no-deps", "--dest", tmp_path / "reach", "papermill"]
    if subprocess.run(reach, env=environment, capture_output=True).returncode:
        pytest.skip("no package index can be reached")
    linked = links.linked(nbformat.read(paths.NOTEBOOKS / NAMES[0], 4), f"notebooks/{NAMES[0]}", REPOSITORY)
    code = [cell.source for cell in linked.cells if cell.cell_type == "code"][:2]
    told = "\nfrom lowrank_utils import paths\nprint(paths.ROOT, lowrank_utils.__file__, sep='\\n')"
    for again in (False, True):  # the second time as after a restart of the session
        script = "\n".join([*code, told])
        done = subprocess.run([python, "-c", script], cwd=here, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-3000:]
        root, file = done.stdout.splitlines()[-2:]
        assert Path(root) == here / "workbook" and Path(file).is_relative_to(place), again
    asked = subprocess.run(
        [python, "-m", "pip", "list", "--path", str(place)], env=environment, capture_output=True, text=True
    ).stdout
    assert re.search(r"^papermill ", asked, re.M) and not re.search(r"^(ipykernel|jupyterlab|torch) ", asked, re.M)
    assert sys.executable != str(python)
