"""What is released: a wheel that works where there is no repository, and what says which version it is."""

import os
import re
import shutil
import subprocess
import sys
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest
import yaml

from lowrank_utils import __version__, paths

OWN_NETWORK = """
import torch
from torch import nn
import lowrank_utils
from lowrank_utils import paths

torch.manual_seed(0)
model = nn.Sequential(nn.Linear(20, 40), nn.ReLU(), nn.Linear(40, 30), nn.ReLU(), nn.Linear(30, 5))
small = lowrank_utils.compress(model, torch.randn(64, 20), kept=0.6)
macs = sum(layer.in_features * layer.out_features for layer in small.model.modules() if isinstance(layer, nn.Linear))
print(lowrank_utils.__version__, lowrank_utils.__file__, paths.ROOT)
print(macs, small.kept["macs"], small.model(torch.randn(3, 20)).shape[1])
"""


def test_version_changelog_and_citation_agree():
    assert re.fullmatch(r"\d+\.\d+\.\d+", __version__)
    changes = (paths.ROOT / "CHANGELOG.md").read_text()
    newest, day = re.findall(r"^## (\S+) \((\d{4}-\d\d-\d\d)\)$", changes, re.M)[0]
    citation = yaml.safe_load((paths.ROOT / "CITATION.cff").read_text())
    assert (newest, day) == (__version__, str(citation["date-released"])) and citation["version"] == __version__
    versions = re.findall(r"^## (\d[\w.]*)", changes, re.M)
    assert versions == sorted(versions, reverse=True), "newest first"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel of the project, built from a copy of what git would have: build leaves folders in the source."""
    source, made = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(paths.ROOT / name, source)
    ours = shutil.ignore_patterns("__pycache__")
    shutil.copytree(paths.ROOT / "lowrank_utils", source / "lowrank_utils", ignore=ours)
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(made), str(source)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert len(list(made.glob("*.tar.gz"))) == 1
    (path,) = made.glob("*.whl")
    return path


@pytest.mark.slow
def test_the_wheel_holds_the_package_and_nothing_else(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    modules = {p.relative_to(paths.ROOT).as_posix() for p in (paths.ROOT / "lowrank_utils").rglob("*.py")}
    assert {name for name in names if name.endswith(".py")} == modules
    assert "lowrank_utils/py.typed" in names
    assert {name.split("/")[0] for name in names} == {"lowrank_utils", f"lowrank_workbook-{__version__}.dist-info"}


def environment_beside(folder):
    """Make an empty virtual environment that finds the packages installed here, but not this project."""
    venv.create(folder, with_pip=True, symlinks=True)
    (place,) = folder.glob("lib/python*/site-packages")
    here = next(path for path in map(Path, sys.path) if (path / "torch").is_dir())
    (place / "borrowed.pth").write_text(
        f"{here}\n"
    )  # its own .pth files, the editable project's among them, are not read
    return folder / "bin" / "python"


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """Return a function that runs the Python of an environment with the wheel, in an empty folder with an empty home."""
    root = tmp_path_factory.mktemp("away")
    python, home = environment_beside(root / "env"), root / "home"
    home.mkdir()
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "LOWRANK", "XDG"))}
    pip = [python, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", wheel]
    subprocess.run(pip, check=True, timeout=120, env=kept, cwd=root)

    def call(*words):
        options = {"capture_output": True, "text": True, "timeout": 300, "cwd": home}
        return subprocess.run([python, *words], env=kept | {"HOME": str(home), "OMP_NUM_THREADS": "1"}, **options)

    call.root, call.home = root, home
    return call


@pytest.mark.slow
def test_compress_works_away_from_the_repository(installed):
    done = installed("-c", OWN_NETWORK)
    assert done.returncode == 0, done.stderr
    first, second = done.stdout.splitlines()
    version, file, root = first.split()
    assert version == __version__ and Path(file).is_relative_to(installed.root / "env")
    assert Path(root) == installed.home / ".cache" / "lowrank-workbook"
    macs, kept, classes = second.split()
    dense = 20 * 40 + 40 * 30 + 30 * 5
    assert int(macs) / dense == pytest.approx(float(kept)) and float(kept) <= 0.6 and classes == "5"
    assert list(installed.home.iterdir()) == [], "nothing was fetched or written"


@pytest.mark.slow
def test_the_command_line_away_from_the_repository_says_what_it_misses(installed):
    assert installed("-m", "lowrank_utils", "--help").returncode == 0
    done = installed("-m", "lowrank_utils", "run")
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert "there is no notebook to run in" in done.stderr and "clone" in done.stderr
    assert list(installed.home.iterdir()) == []


def test_build_is_asked_for_by_the_tests():
    project = tomllib.loads((paths.ROOT / "pyproject.toml").read_text())["project"]
    assert any(line.startswith("build>=") for line in project["optional-dependencies"]["test"])
    assert project["dynamic"] == ["version"]
