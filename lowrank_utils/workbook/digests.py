"""Digests of the code behind published numbers, so that rows of older code can be told from those of today."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1]
FLOORS = ("network", "factors", "ranks", "lab")


def of_files(files: Iterable[Path]) -> str:
    """Return twelve hexadecimal digits of what `files` hold; their order and their folders do not matter.

    >>> import tempfile
    >>> folder = Path(tempfile.mkdtemp())
    >>> _ = (folder / "a.py").write_text("1"), (folder / "b.py").write_text("2")
    >>> of_files([folder / "a.py", folder / "b.py"]) == of_files([folder / "b.py", folder / "a.py"])
    True
    """
    parts = sorted((path.name, hashlib.sha256(path.read_bytes()).hexdigest()) for path in files)
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:12]


def of_code(*modules: str) -> str:
    """Return the digest of what numbers are computed with: all floors below the workbook, and the named `modules` of it.

    >>> len(of_code("prediction"))
    12
    """
    files = [path for floor in FLOORS for path in (PACKAGE / floor).rglob("*.py")]
    return of_files([*files, PACKAGE / "compression.py", *(PACKAGE / "workbook" / f"{name}.py" for name in modules)])
