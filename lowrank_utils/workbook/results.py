"""The rows that notebooks leave behind: how they are written, read and put together.

Tables are passed on as text, for a number that is read and written again could change in its last digit; only
what is handed to a reader is turned into numbers.
"""

import io
import json
from pathlib import Path

from lowrank_utils import paths
from lowrank_utils.lab.columns import PROVENANCE_COLUMNS, RESULT_COLUMNS


def save(output_folder, rows, figures=None, files=None):
    """Write a notebook's results below `output_folder`, each file whole or not at all; "" writes nothing.

    Parameters: `output_folder`, relative to the project root or absolute; `rows`, a DataFrame or a list of
    dicts in the columns of `RESULT_COLUMNS` (more may follow), written as results.csv; `figures`, {name:
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
    table = pd.DataFrame(rows)
    first = [c for c in RESULT_COLUMNS if c in table]
    table = table[first + [c for c in table if c not in first]]
    for name, content in {"results.csv": table, **(files or {})}.items():
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


def read_done(folder):
    """Return the content of a finished job's done.json."""
    return json.loads((Path(folder) / "done.json").read_text())


def job_rows(folder):
    """Return the rows of one finished job with its provenance columns, all as the text that was written."""
    import pandas as pd

    folder = Path(folder)
    done = read_done(folder)
    if not (folder / "results.csv").is_file():
        return pd.DataFrame()
    # text in, text out: a number that is read and written again could change in its last digit
    table = pd.read_csv(folder / "results.csv", dtype=str, keep_default_na=False)
    for place, name in enumerate(("notebook", "dataset", "network", "seed")):
        if name not in table:
            value = done["notebook"] if name == "notebook" else done["parameters"].get(name, "")
            table.insert(min(place, table.shape[1]), name, str(value))
    table["address"] = done["address"]
    table["run_parameters"] = json.dumps(done["parameters"], sort_keys=True)
    table["data_fingerprint"] = done.get("data_fingerprint", "")  # a record of an older version may lack some
    table["versions"] = ", ".join(f"{name} {version}" for name, version in done.get("versions", {}).items())
    return table.assign(commit=done.get("commit", ""), finished=done.get("finished", ""))


def joined(tables):
    """Return text tables one under the other, the result columns first and provenance last."""
    import pandas as pd

    tables = [t for t in tables if len(t)]
    if not tables:
        return pd.DataFrame(columns=[*RESULT_COLUMNS, *PROVENANCE_COLUMNS], dtype=str)
    table = pd.concat(tables, ignore_index=True).fillna("")
    extra = [c for c in table if c not in RESULT_COLUMNS + PROVENANCE_COLUMNS]
    return table[[c for c in [*RESULT_COLUMNS, *extra, *PROVENANCE_COLUMNS] if c in table]]


def typed(table):
    """Return a text table with numbers as numbers and empty fields as NaN."""
    import pandas as pd

    return pd.read_csv(io.StringIO(table.to_csv(index=False)), low_memory=False)  # one type for a whole column
