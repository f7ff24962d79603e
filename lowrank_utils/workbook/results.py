"""The rows that notebooks leave behind: how they are written, read and put together.

Rows are kept in Parquet, in the types of `lab.columns`, so that every number survives to its last digit. Beside it lies
the same table as CSV, for readers alone: nothing reads it back.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lowrank_utils import paths
from lowrank_utils.lab.columns import COLUMNS, PROVENANCE_COLUMNS, RESULT_COLUMNS

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence

    import pandas as pd
    from matplotlib.figure import Figure


def save(
    output_folder: str | Path,
    rows: pd.DataFrame | list[dict[str, Any]],
    figures: Mapping[str, Figure] | None = None,
    files: Mapping[str, str | bytes | pd.DataFrame] | None = None,
) -> None:
    """Write a notebook's results below `output_folder`, each file whole or not at all; "" writes nothing.

    Parameters: `output_folder`, relative to the project root or absolute; `rows`, a DataFrame or a list of
    dicts in the columns of `RESULT_COLUMNS` (more may follow), written as results.parquet and
    results.csv; `figures`, {name:
    matplotlib Figure}, written as name.png; `files`, {file name: str, bytes or DataFrame (as csv)}.
    Raises OSError where the folder is full or cannot be written.

    >>> import tempfile
    >>> folder = Path(tempfile.mkdtemp())
    >>> save(folder, [{"accuracy": 0.5, "notebook": "02_arsvd"}], files={"note.txt": "by hand"})
    >>> (folder / "results.csv").read_text().splitlines()
    ['notebook,accuracy', '02_arsvd,0.5']
    """
    import pandas as pd

    if output_folder == "":
        return
    folder = paths.ROOT / output_folder
    write(typed(pd.DataFrame(rows)), folder / "results")
    for name, content in (files or {}).items():
        with paths.atomic_write(folder / name) as temporary:
            if isinstance(content, pd.DataFrame):
                content.to_csv(temporary, index=False)
            elif isinstance(content, bytes):
                temporary.write_bytes(content)
            else:
                temporary.write_text(content)
    for name, figure in (figures or {}).items():
        with paths.atomic_write(folder / f"{name}.png") as temporary:
            figure.savefig(temporary, format="png", dpi=150, bbox_inches="tight")


def read_done(folder: str | Path) -> dict[str, Any]:
    """Return the content of a finished job's done.json."""
    return json.loads((Path(folder) / "done.json").read_text())


def write(table: pd.DataFrame, path: str | Path) -> None:
    """Write a table as `path`.parquet and, for readers, `path`.csv, each whole or not at all."""
    with paths.atomic_write(Path(f"{path}.parquet")) as temporary:
        table.to_parquet(temporary, index=False)
    with paths.atomic_write(Path(f"{path}.csv")) as temporary:
        table.to_csv(temporary, index=False)


def completed(
    path: str | Path, asked: Sequence[Mapping[str, Any]], make: Callable[[Mapping[str, Any]], Mapping[str, Any]]
) -> pd.DataFrame:
    """Return a table with one row for each of `asked`, in their order: those of the CSV `path`, and others made now.

    A row of the file answers to one of `asked` where it has all of its values. What `make` returns of one of them is
    written at once, so that a killed measurement goes on where it was; numbers have six digits. Rows that nobody asked
    for stay in the file, below.

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "rows.csv"
    >>> completed(path, [{"kept": 0.5}], lambda asked: {**asked, "loss": 1 / 3})["loss"].tolist()
    [0.333333]
    >>> completed(path, [{"kept": 0.9}, {"kept": 0.5}], lambda asked: {**asked, "loss": 0.1})["loss"].tolist()
    [0.1, 0.333333]
    """
    import pandas as pd

    path, found = Path(path), []
    held: list[dict] = pd.read_csv(path).to_dict("records") if path.is_file() else []
    for one in asked:
        mine = [row for row in held if all(row.get(name) == value for name, value in one.items())]
        if not mine:
            mine = [dict(make(one))]
            held.append(mine[0])
            with paths.atomic_write(path) as temporary:
                pd.DataFrame(held).to_csv(temporary, index=False, float_format="%.6g")
        found.append(mine[0])
    rest = [row for row in held if not any(row is mine for mine in found)]
    with paths.atomic_write(path) as temporary:
        pd.DataFrame([*found, *rest]).to_csv(temporary, index=False, float_format="%.6g")
    return pd.read_csv(path)[: len(found)]


def job_rows(folder: str | Path) -> pd.DataFrame:
    """Return the rows of one finished job with its provenance columns, typed."""
    import pandas as pd

    folder = Path(folder)
    done = read_done(folder)
    if not (folder / "results.parquet").is_file():
        return pd.DataFrame()
    table = pd.read_parquet(folder / "results.parquet")
    for place, name in enumerate(("notebook", "dataset", "network", "seed")):
        if name not in table:
            value = done["notebook"] if name == "notebook" else done["parameters"].get(name)
            table.insert(min(place, table.shape[1]), name, value)
    table["address"] = done["address"]
    table["run_parameters"] = json.dumps(done["parameters"], sort_keys=True)
    table["data_fingerprint"] = done.get("data_fingerprint", "")  # a record of an older version may lack some
    table["versions"] = ", ".join(f"{name} {version}" for name, version in done.get("versions", {}).items())
    return typed(table.assign(commit=done.get("commit", ""), finished=done.get("finished", "")))


def joined(tables: Iterable[pd.DataFrame]) -> pd.DataFrame:
    """Return tables one under the other, the result columns first and provenance last; what a table lacks is missing."""
    import pandas as pd

    tables = [t for t in tables if len(t)]
    if not tables:
        return typed(pd.DataFrame(columns=[*RESULT_COLUMNS, *PROVENANCE_COLUMNS]))
    return typed(pd.concat(tables, ignore_index=True))


def typed(table: pd.DataFrame) -> pd.DataFrame:
    """Return a table in the types of `lab.columns`, its columns in their order; columns of another name keep their own type.

    >>> import pandas as pd
    >>> typed(pd.DataFrame({"accuracy": ["0.5"], "mine": [1], "chooser": ["energy"], "seed": [0]})).dtypes.astype(str).to_dict()
    {'seed': 'int64', 'chooser': 'string', 'accuracy': 'float64', 'mine': 'int64'}
    """
    import pandas as pd

    kinds: dict[Hashable, str] = {name: column.dtype for name, column in COLUMNS.items()}
    ours = [c for c in [*RESULT_COLUMNS, *kinds] if c in table and c not in PROVENANCE_COLUMNS]
    ours = list(dict.fromkeys(sorted(ours, key=[*kinds].index)))
    last = [c for c in PROVENANCE_COLUMNS if c in table]
    names = [*ours, *(c for c in table if c not in (*ours, *last)), *last]
    found = table[names].copy()
    for name in found:
        kind = kinds.get(name, "string" if name in PROVENANCE_COLUMNS else None)
        if kind is None:
            kind = "string" if found[name].dtype == object else None  # Parquet wants one type in a column
        if kind == "int64" and found[name].isna().any():
            kind = "Int64"
        if kind is not None:
            found[name] = found[name].astype(pd.api.types.pandas_dtype(kind))
    return found
