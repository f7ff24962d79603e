"""Where things are: the project root and the folders that hang off it, never the working directory."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

CODE = Path(__file__).resolve().parents[1]  # of a clone its root, of an installed package the folder of all packages


def _root() -> Path:
    """Return the project: what LOWRANK_ROOT names, else the clone that this code is in, else a cache of the user's."""
    if named := os.environ.get("LOWRANK_ROOT"):
        return Path(named)
    if (CODE / "pyproject.toml").is_file():
        return CODE
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lowrank-workbook"


ROOT = _root()
DOCS = CODE / "docs"  # goes with the code, whichever project's site is built
DATA = ROOT / "data"
CHECKPOINTS = DATA / "checkpoints"
NOTEBOOKS = ROOT / "notebooks"
PRESETS = NOTEBOOKS / "presets"
SOLUTIONS = NOTEBOOKS / "solutions"
OUTPUTS = ROOT / "outputs"
RUNS = OUTPUTS / "runs"
SWEEPS = OUTPUTS / "sweeps"
GALLERY = OUTPUTS / "gallery"


@contextlib.contextmanager
def atomic_write(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on a clean exit it is flushed to disk and renamed onto `path`.

    On any exception the temporary file is removed, so that `path` is there whole, in its old state, or not at
    all. The folder is made if it is missing. Raises OSError where the folder cannot be written or is full.

    >>> folder = Path(tempfile.mkdtemp())
    >>> with atomic_write(folder / "note.txt") as temporary:
    ...     _ = temporary.write_text("kept")
    >>> [p.name for p in folder.iterdir()], (folder / "note.txt").read_text()
    (['note.txt'], 'kept')
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.stem}-", suffix=path.suffix)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        with open(temporary, "rb") as written:
            os.fsync(written.fileno())
        readable(temporary)  # mkstemp makes files that only their owner reads
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def readable(path: str | os.PathLike[str]) -> None:
    """Give a temporary file, or folder with its files, the permissions that a new one would have."""
    umask = os.umask(0)
    os.umask(umask)
    for place in (Path(path), *Path(path).rglob("*")):
        place.chmod((0o777 if place.is_dir() else 0o666) & ~umask)
