"""Digests of the code behind published numbers, so that rows of older code can be told from those of today."""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Iterable
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1]
FLOORS = ("network", "factors", "ranks", "lab")
PAGES = (
    "answers",
    "audit",
    "bench_figures",
    "controls",
    "front",
    "gallery",
    "plots",
    "search_claims",
    "stability",
    "tables",
)
PAGES += ("ten_minutes", "verdicts")  # modules of the workbook that draw, write or judge what others measured
PAGES += ("cluster", "jobs", "results", "runs")  # and that start the measuring, and keep its rows
WORDS = ("UNMET", "CAPTION", "CAPTIONS", "FIGURE_CAPTION", "WORDS", "QUESTIONS")  # constants that only pages show


def of_files(files: Iterable[Path]) -> str:
    """Return twelve hexadecimal digits of the code in `files`; their order, folders, comments and docstrings do not matter.

    >>> import tempfile
    >>> folder = Path(tempfile.mkdtemp())
    >>> _ = (folder / "a.py").write_text("a = 1"), (folder / "b.py").write_text("b = 2")
    >>> first = of_files([folder / "a.py", folder / "b.py"])
    >>> _ = (folder / "a.py").write_text("a = 1\\n\\n# said better")
    >>> of_files([folder / "b.py", folder / "a.py"]) == first
    True
    """
    parts = sorted((path.name, hashlib.sha256(_code(path.read_text()).encode()).hexdigest()) for path in files)
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:12]


def of_code(*modules: str) -> str:
    """Return the digest of what numbers are computed with: all floors below the workbook, the named `modules` of it, such as
    "chapters/arsvd", and those that they import, but for `PAGES`: these count only where they are named.

    >>> len(of_code("prediction"))
    12
    """
    files = [path for floor in FLOORS for path in (PACKAGE / floor).rglob("*.py")]
    return of_files([*files, PACKAGE / "compression.py", *reached(*modules)])


def reached(*modules: str) -> list[Path]:
    """Return the files of modules of the workbook and of those that they import, directly or not, but for `PAGES`."""
    room, found, waiting = PACKAGE / "workbook", set(), list(modules)
    while waiting:
        name = waiting.pop()
        path = room / f"{name}.py"
        if path in found or not path.is_file() or (path.stem in PAGES and name not in modules):
            continue
        found.add(path)
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("lowrank_utils.workbook"):
                inner = "/".join((node.module or "").split(".")[2:])
                waiting += [inner, *(f"{inner}/{name.name}".lstrip("/") for name in node.names)]
    return sorted(found)


def _code(text):
    # the lines of a module without blank ones, comments, docstrings and `WORDS`
    tree, left_out = ast.parse(text), set()
    for node in ast.walk(tree):
        told = isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
        if told and ast.get_docstring(node, clean=False) is not None:
            left_out |= _lines(node.body[0])
    for node in tree.body:
        if isinstance(node, ast.Assign) and any(getattr(name, "id", "") in WORDS for name in node.targets):
            left_out |= _lines(node)
    lines = enumerate(text.splitlines(), 1)
    return "\n".join(line for i, line in lines if i not in left_out and line.strip() and line.lstrip()[0] != "#")


def _lines(node):
    return set(range(node.lineno, node.end_lineno + 1))
