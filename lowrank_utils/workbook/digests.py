"""Digests of the code behind published numbers, so that rows of older code can be told from those of today."""

from __future__ import annotations

import ast
import hashlib
import io
import tokenize
from collections.abc import Iterable
from functools import cache
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1]
FLOORS = ("network", "factors", "ranks", "lab")
PAGES = ("audit", "bench_figures", "controls", "front", "gallery", "plots", "search_claims", "stability", "tables")
PAGES += (
    "opponents",
    "paired_tests",
    "ten_minutes",
    "verdicts",
)  # modules of the workbook that draw, write or judge what others measured
PAGES += ("cluster", "digests", "jobs", "results", "runs")  # and that start the measuring, and keep its rows
WORDS = ("CAPTION", "CAPTIONS", "FIGURE_CAPTION", "QUESTIONS", "UNMET", "WORDS")  # constants that only pages show


def of_files(files: Iterable[Path]) -> str:
    """Return twelve hexadecimal digits of the code in `files`; their order, folders, comments, docstrings and `WORDS` do not matter.

    >>> import tempfile
    >>> folder = Path(tempfile.mkdtemp())
    >>> _ = (folder / "a.py").write_text("a = 1"), (folder / "b.py").write_text("b = 2")
    >>> first = of_files([folder / "a.py", folder / "b.py"])
    >>> _ = (folder / "a.py").write_text("a = 1  # the first\\n\\n# said better")
    >>> of_files([folder / "b.py", folder / "a.py"]) == first
    True
    """
    parts = sorted((path.name, hashlib.sha256(_code(path.read_text()).encode()).hexdigest()) for path in files)
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:12]


def of_code(*modules: str) -> str:
    """Return the digest of what numbers are computed with: all floors below the workbook, the named `modules` of it, such as
    "chapters/arsvd", and those that they import, but for `PAGES`: these count only where they are named.

    Raises FileNotFoundError for a module that is not there.

    >>> len(of_code("prediction"))
    12
    """
    files = [path for floor in FLOORS for path in (PACKAGE / floor).rglob("*.py")]
    return of_files([*files, PACKAGE / "compression.py", *reached(*modules)])


def reached(*modules: str) -> list[Path]:
    """Return the files of modules of the workbook and of those that they import, directly or not, but for `PAGES`.

    Raises FileNotFoundError for one of `modules` that is not there.
    """
    room, waiting = PACKAGE / "workbook", list(modules)
    found: set[Path] = set()
    while waiting:
        module = waiting.pop()
        path = room / f"{module}.py"
        if path in found or (module not in modules and (path.stem in PAGES or not path.is_file())):
            continue
        found.add(path)
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("lowrank_utils.workbook"):
                inner = "/".join((node.module or "").split(".")[2:])
                waiting += [inner, *(f"{inner}/{name.name}".lstrip("/") for name in node.names)]
    return sorted(found)


@cache
def _code(text):
    # a module without blank lines, comments, docstrings and `WORDS`
    lines, left_out = dict(enumerate(text.splitlines(), 1)), set()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        row, column = token.start
        if token.type == tokenize.COMMENT:
            lines[row] = lines[row][:column].rstrip()
        elif token.type == tokenize.NL and not lines[row].strip():
            left_out.add(row)
    tree = ast.parse(text)
    for node in ast.walk(tree):
        told = isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
        if told and ast.get_docstring(node, clean=False) is not None:
            left_out |= _rows(node.body[0])
    for node in tree.body:
        names = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        if any(getattr(name, "id", "") in WORDS for name in names):
            left_out |= _rows(node)
    return "\n".join(line for row, line in lines.items() if row not in left_out)


def _rows(node):
    return set(range(node.lineno, node.end_lineno + 1))
