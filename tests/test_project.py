"""What stands around the package: packages and versions, the Makefile, licence, citation."""

import os
import re
import shutil
import subprocess
import sys
import tomllib
from importlib import metadata

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from lowrank_utils import __version__, paths
from lowrank_utils.lab import training
from lowrank_utils.workbook import gallery, jobs

PROJECT = tomllib.loads((paths.ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
WANTED = [Requirement(r) for r in PROJECT["dependencies"] + EXTRAS["test"] + EXTRAS["site"] + EXTRAS["language"]]
PINS = [r for r in (paths.ROOT / "constraints.txt").read_text().splitlines() if r and not r.startswith("#")]
CONDA_NAMES = {"pytorch-cpu": "torch", "python-build": "build"}


def conda():
    """The packages of environment.yml as {name on PyPI: requirement}."""
    lines = yaml.safe_load((paths.ROOT / "environment.yml").read_text())["dependencies"]
    found = {}
    for line in lines:
        if isinstance(line, str):
            name, versions = re.fullmatch(r"([\w-]+)(.*)", line).groups()
            versions = re.sub(r"^=(\d.*)", r"==\1.*", versions)  # conda's python=3.11 is any 3.11
            found[CONDA_NAMES.get(name, name)] = Requirement(CONDA_NAMES.get(name, name) + versions)
    return found


def test_conda_and_pip_name_the_same_packages_and_versions():
    found = conda()
    python = found.pop("python")
    found.pop("pip")
    assert {name: str(r.specifier) for name, r in found.items()} == {
        r.name: str(r.specifier) for r in WANTED if str(r) not in EXTRAS["site"]
    }
    assert "3.11.0" in python.specifier and PROJECT["requires-python"] == ">=3.11"


def test_conda_says_who_needs_what_and_installs_the_package():
    text = (paths.ROOT / "environment.yml").read_text()
    listed = [line for line in text.split("dependencies:")[1].splitlines() if re.match(r"\s+- (?!pip:)", line)]
    assert all(re.search(r"  ?# \w", line) for line in listed)
    content = yaml.safe_load(text)
    assert content["dependencies"][-1] == {"pip": ["-e ."]} and content["channels"][0] == "conda-forge"


def test_all_tracked_files_together_are_small():
    command = ["git", "ls-files", "-z"]
    listed = subprocess.run(command, cwd=paths.ROOT, capture_output=True, text=True) if shutil.which("git") else None
    if listed is None or listed.returncode or not listed.stdout:
        pytest.skip("this is no clone of the repository, or there is no git")
    files = [path for name in listed.stdout.split("\0") if (path := paths.ROOT / name).is_file()]
    sizes = sorted((path.stat().st_size, path.relative_to(paths.ROOT).as_posix()) for path in files)
    assert len(files) > 200 and sum(size for size, _ in sizes) < 30e6, sizes[-10:]


def test_pins_are_exact_and_hold_no_place():
    pins = [Requirement(pin) for pin in PINS]
    assert all(re.fullmatch(r"[\w.-]+==[\w.!+]+", pin) for pin in PINS)
    assert len({canonicalize_name(r.name) for r in pins}) == len(pins)


def test_pins_satisfy_the_project():
    pins = {canonicalize_name(r.name): str(r.specifier)[2:] for r in map(Requirement, PINS)}
    for wanted in WANTED:
        assert wanted.specifier.contains(pins[canonicalize_name(wanted.name)]), wanted


def test_every_package_that_comes_along_is_pinned():
    pins = {canonicalize_name(Requirement(pin).name) for pin in PINS}
    waiting, seen = list(WANTED), set()
    while waiting:
        wanted = waiting.pop()
        key = (canonicalize_name(wanted.name), tuple(sorted(wanted.extras)))
        if key in seen:
            continue
        seen.add(key)
        for text in metadata.distribution(wanted.name).requires or []:
            further = Requirement(text)
            for extra in ("", *wanted.extras):
                if further.marker is None or further.marker.evaluate({"extra": extra}):
                    waiting.append(further)
    assert {name for name, _ in seen} - pins == set()


def test_licence_and_citation():
    assert "The low-rank workbook authors" in (paths.ROOT / "LICENSE").read_text()
    citation = yaml.safe_load((paths.ROOT / "CITATION.cff").read_text())
    assert citation["version"] == __version__ == metadata.version("lowrank-workbook")
    arxiv = [reference["identifiers"][0]["value"] for reference in citation["references"]]
    assert arxiv == ["arXiv:2504.20078", "arXiv:2107.05787", "arXiv:1811.12781"]


def test_presets_are_flat_and_fit_the_notebooks(monkeypatch):
    monkeypatch.setattr(jobs, "_fingerprint", lambda dataset: "")  # a text may not be on this machine
    names = {p.stem for p in paths.PRESETS.glob("*.yaml")}
    assert {"fashion-mnist", "mnist", "cifar10", "cifar100", "digits"} <= names
    for name in names:
        assert jobs.list_jobs(preset=name), name


# ---- the floors: who may import whom


def lint(folder):
    """Run import-linter on the project in `folder`; return (exit code, output)."""
    command = [sys.executable, "-c", "import importlinter.cli as cli; cli.lint_imports_command()", "--no-cache"]
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    return done.returncode, done.stdout + done.stderr


@pytest.fixture
def copied(tmp_path):
    """A copy of the package and its contract, to be broken."""
    shutil.copy(paths.ROOT / "pyproject.toml", tmp_path)
    shutil.copytree(paths.ROOT / "lowrank_utils", tmp_path / "lowrank_utils")
    return tmp_path


def test_no_import_points_upwards(copied):
    code, output = lint(copied)
    assert code == 0 and "1 kept, 0 broken" in output, output


@pytest.mark.parametrize(
    ("lower", "upper"),
    [
        ("paths", "network.modules"),
        ("checks", "paths"),
        ("network.unfold", "factors.svd"),
        ("factors.svd", "ranks.rules"),
        ("ranks.rules", "lab.score"),
        ("lab.score", "ranks.rules"),
        ("lab.data", "workbook.jobs"),
        ("compression", "workbook.results"),
        ("workbook.jobs", "__main__"),
    ],
)
def test_an_import_that_points_upwards_is_found(copied, lower, upper):
    file = copied / "lowrank_utils" / f"{lower.replace('.', '/')}.py"
    file.write_text(file.read_text() + f"\n\ndef _late():\n    import lowrank_utils.{upper}\n")
    code, output = lint(copied)
    assert code == 1 and "0 kept, 1 broken" in output, output
    assert f"lowrank_utils.{lower} -> lowrank_utils.{upper}" in output, output


def test_a_new_floor_needs_a_place(copied):
    (copied / "lowrank_utils" / "attic").mkdir()
    (copied / "lowrank_utils" / "attic" / "__init__.py").touch()
    code, output = lint(copied)
    assert code == 1 and "lowrank_utils.attic" in output, output


def test_types_are_checked_in_every_file_of_the_package():
    config = tomllib.loads((paths.ROOT / "pyproject.toml").read_text())["tool"]["basedpyright"]
    assert config["include"] == ["lowrank_utils"] and config["typeCheckingMode"] == "basic"
    assert not {"ignore", "exclude", "executionEnvironments", "strict"} & config.keys()
    files = list((paths.ROOT / "lowrank_utils").rglob("*.py"))
    asleep = [
        file.name for file in files if re.search(r"^#\s*(pyright:\s*(?!ignore)|type:\s*ignore)", file.read_text(), re.M)
    ]
    assert len(files) > 50 and asleep == []


def test_the_type_checker_is_told_to_look_away_in_single_lines_by_rule():
    bare = []
    for file in (paths.ROOT / "lowrank_utils").rglob("*.py"):
        for line in file.read_text().splitlines():
            if re.search(r"#\s*(pyright|type):\s*ignore(?!\[report\w+\])", line):
                bare.append(f"{file.name}: {line.strip()}")
    assert bare == []


# ---- what others run: hooks and workflows


def test_hooks_are_local():
    config = yaml.safe_load((paths.ROOT / ".pre-commit-config.yaml").read_text())
    assert [repo["repo"] for repo in config["repos"]] == ["local"]
    hooks = {hook["id"]: hook for hook in config["repos"][0]["hooks"]}
    assert set(hooks) == {"ruff", "ruff-format", "import-linter", "notebooks", "text-twins"}
    assert all(hook["language"] == "system" for hook in hooks.values())


def test_workflows_run_the_two_commands_with_pinned_actions():
    text = (paths.ROOT / ".github" / "workflows" / "check.yml").read_text()
    used = re.findall(r"uses: (.*)", text)
    assert used and all(re.fullmatch(r"[\w-]+/[\w-]+@[0-9a-f]{40}  # v[\d.]+", line) for line in used)
    jobs_of = yaml.safe_load(text)["jobs"]
    assert {"pinned", "newest", "oldest", "conda"} == set(jobs_of)
    conda = [step["run"] for step in jobs_of.pop("conda")["steps"] if "run" in step]
    assert conda[0] == "$CONDA/bin/conda env create --file environment.yml"
    name = yaml.safe_load((paths.ROOT / "environment.yml").read_text())["name"]
    assert [c.partition(f"conda run --name {name} ")[2] for c in conda[1:]] == [
        "python -m lowrank_utils run --only 00 --quiet"
    ]
    for job in jobs_of.values():
        commands = [step.get("run", "") for step in job["steps"]]
        assert [c.split(" ARGS")[0] for c in commands if c.startswith("make")] == ["make check", "make test"]


# ---- the Makefile, with a Python that only writes down what it is asked

FAKE = """\
#!/bin/sh
case "$0" in *lint-imports) set -- lint-imports "$@" ;; esac
echo "$@" >> "$LOG"
case "$*" in
    "-c import sys"*) exec python3 "$@" ;;
    "-m venv"*) mkdir -p .venv/bin && cp "$0" .venv/bin/python && cp "$0" .venv/bin/lint-imports ;;
    "-m pip"*) test ! -e broken ;;
esac
"""


@pytest.fixture
def clone(tmp_path):
    """Return a function that calls make in a new folder; it returns (exit code, calls, output)."""
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(paths.ROOT / name, tmp_path)
    fake, log = tmp_path / "fake-python", tmp_path / "log"
    fake.write_text(FAKE)
    fake.chmod(0o755)
    environment = {k: v for k, v in os.environ.items() if not k.startswith("MAKE")} | {"LOG": str(log)}

    def make(*words, python=str(fake)):
        log.write_text("")
        command = ["make", f"PYTHON={python}", *words]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
        calls = [line for line in log.read_text().splitlines() if not line.startswith("-c")]
        return done.returncode, calls, done.stdout + done.stderr

    make.folder = tmp_path
    return make


RUN = "-m lowrank_utils run"
INSTALL = "-m pip install --quiet --disable-pip-version-check -c constraints.txt -e .[test,site,language]"


def test_make_sets_up_once(clone):
    assert clone("run")[:2] == (0, ["-m venv .venv", INSTALL, RUN])
    assert clone("run")[:2] == (0, [RUN])
    assert clone("run", "ARGS=--only 01")[1] == ["-m lowrank_utils run --only 01"]
    fetched = [f"-m lowrank_utils data {name}" for name in ("fashion-mnist", "smollm2-135m", "efficientnet-lite0")]
    assert clone("test")[1] == [*fetched, "-m pytest"]
    assert clone("check", "ARGS=-x")[1] == [
        "-m ruff check .",
        "-m ruff format --check .",
        "lint-imports",
        "-m basedpyright --pythonpath .venv/bin/python",
        "-m pytest -m not slow and not notebook and not browser tests lowrank_utils -x",
    ]
    assert clone("lab")[1] == ["-m jupyterlab notebooks"]
    assert clone("site")[1] == ["-m lowrank_utils report --site"]
    assert clone("links", "REPO=a/b")[1] == ["-m lowrank_utils links a/b"]
    assert clone("links")[1] == ["-m lowrank_utils links"]
    os.utime(clone.folder / "constraints.txt", (2e9, 2e9))
    assert INSTALL in clone("run")[1]


def test_make_recovers_from_a_set_up_that_was_cut_off(clone):
    (clone.folder / "broken").touch()
    assert clone("run")[0] != 0
    leftover = clone.folder / ".venv" / "half-installed"
    leftover.touch()
    (clone.folder / "broken").unlink()
    code, calls, output = clone("run")
    assert (code, calls) == (0, ["-m venv .venv", INSTALL, RUN]) and "cut off" in output
    assert not leftover.exists()


@pytest.mark.parametrize("python", ["false", "no-such-python"])
def test_make_wants_python_3_11_in_one_sentence(clone, python):
    code, calls, output = clone("run", python=python)
    assert code != 0 and calls == [] and f'error: "{python}" is not Python 3.11 or newer' in output
    assert not (clone.folder / ".venv").exists()


def test_make_clean_keeps_data_and_gallery(clone):
    kept = [clone.folder / "data" / "checkpoints" / "x", clone.folder / "outputs" / "gallery" / "results.csv"]
    gone = [
        clone.folder / "outputs" / "runs" / "1" / "run.json",
        clone.folder / "tests" / "__pycache__" / "x.pyc",
    ]
    for path in kept + gone:
        path.parent.mkdir(parents=True)
        path.touch()
    clone("run")
    assert clone("clean")[0] == 0
    assert all(path.exists() for path in kept) and not any(path.exists() for path in gone)
    assert not (clone.folder / ".venv").exists()


def test_make_help_names_every_target(clone):
    output = clone()[2]
    targets = re.search(r"^\.PHONY: (.*)", (clone.folder / "Makefile").read_text(), re.M)[1].split()
    assert len(targets) > 5 and [word for word in targets if f"make {word} " not in output] == []


def test_ci_calls_make_test():
    script = paths.ROOT / ".ci" / "run"
    assert os.access(script, os.X_OK) and "set -euo pipefail" in script.read_text()
    assert script.read_text().rstrip().endswith("make test")


@pytest.mark.parametrize("name", ["cifar10", "cifar100", "digits", "fashion-mnist", "mnist"])
def test_presets_train_by_the_published_recipe(name):
    import dataclasses

    (job,) = jobs.list_jobs(only=["01"], preset=name)
    recipe = dataclasses.asdict(training.recipe_for(job.parameters["network"], name))
    assert recipe.pop("augment") is False  # no parameter of the notebook
    assert {key: job.parameters[key] for key in recipe} == recipe


def test_the_results_and_the_gallery_quote_the_published_results():

    tables = gallery.published_tables()
    assert len(tables) == 18
    page = (paths.GALLERY / "README.md").read_text()
    results = (paths.ROOT / "docs" / "results.md").read_text()
    for heading, table in tables.items():
        assert table in page and re.search(rf"## {re.escape(heading)}\n\n[^|\s]", page), heading  # a caption
        link = re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-")
        assert table in results or f"outputs/gallery/README.md#{link})" in results or "with spread" in heading, heading
    for section, rows in gallery.measured_sections(paths.GALLERY).items():
        assert section.section(rows).strip() in page, section.NAME
    short = gallery.claims_in_short()
    assert gallery.quote(results, tables | {gallery.CLAIMS: short}) == results
    assert short in results and tables["Dense networks"] in results
