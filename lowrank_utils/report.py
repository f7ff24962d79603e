"""Gathers results over runs, and keeps the gallery: the notebooks and rows behind the published numbers."""

import re
import tempfile
from pathlib import Path

from lowrank_utils import paths, results, runs

KEY = ["notebook", "dataset", "network", "seed"]  # a gallery holds one job for each of these
# Where programs keep what belongs to one machine; not matched inside a web address, where a word goes before.
MACHINE = re.compile(
    r"(?<![\w.:/~-])/(?:home|Users|root|tmp|private|mnt|media|opt|srv|work|workspace|var|usr/(?:local|lib))"
    r"/[\w.~-]+"
    r"|\b[A-Z]:\\+Users\\+\w+"
)


def gather(*run_folders):
    """Return the rows of all finished jobs of the given runs, with provenance columns, as a DataFrame.

    Columns: those of `results.RESULT_COLUMNS`, what the notebooks add, then `results.PROVENANCE_COLUMNS`.
    Raises RunError for a folder that is no run.
    """
    places = [runs.find_run(place) for place in run_folders]
    return results.typed(
        results.joined([results.job_rows(folder) for place in places for folder in runs.finished(place)])
    )


def gallery(dataset=None, notebook=None, network=None, folder=None):
    """Return the published rows as a DataFrame, of one data set, notebook or network if asked for.

    Where nothing is published the table is empty and has its columns. `folder` defaults to outputs/gallery.
    """
    table = results.typed(_published(folder or paths.GALLERY))
    for column, wanted in (("dataset", dataset), ("notebook", notebook), ("network", network)):
        if wanted is not None:
            table = table[table[column] == wanted]
    return table.reset_index(drop=True)


def _published(folder):
    import pandas as pd

    path = Path(folder) / "results.csv"
    table = pd.read_csv(path, dtype=str, keep_default_na=False) if path.is_file() else pd.DataFrame()
    return results.joined([table])


def publish(*run_folders, folder=None):
    """Put the finished jobs of the given runs into the gallery; return the paths of the notebooks put there.

    Each executed notebook becomes NOTEBOOK-DATASET-NETWORK-seedN.ipynb, without what it wrote to stderr; its
    rows in results.csv take the place of the rows of the same notebook, data set, network and seed. `folder`
    defaults to outputs/gallery. Raises RunError, before anything is written, for an unfinished run, a
    notebook that holds an error or a path of this machine, and two jobs that would have the same name.
    """
    import nbformat

    folder = Path(folder or paths.GALLERY)
    ready, tables = {}, []
    for place in [runs.find_run(place) for place in run_folders]:
        if not runs.is_complete(place):
            raise runs.RunError(
                f"run {place.name} is not complete; finish it first with run --resume {place.name}"
            )
        for job in runs.finished(place):
            label = results.read_done(job)["label"]
            if label in ready:
                raise runs.RunError(f"two of these jobs would be published as {label}; publish one of them")
            ready[label] = _clean(job / "notebook.ipynb", label)
            tables.append(results.job_rows(job))
    for label, notebook in ready.items():
        with paths.whole(folder / f"{label}.ipynb") as temporary:
            nbformat.write(notebook, temporary)
    table = _merged(_published(folder), results.joined(tables))
    with paths.whole(folder / "results.csv") as temporary:
        table.to_csv(temporary, index=False)
    return [folder / f"{label}.ipynb" for label in ready]


def _merged(old, new):
    replaced = set(new[KEY].itertuples(index=False, name=None))
    kept = old[[row not in replaced for row in old[KEY].itertuples(index=False, name=None)]]
    return results.joined([kept, new]).sort_values(KEY, kind="stable")


def _clean(path, label):
    import nbformat

    notebook = nbformat.read(path, as_version=4)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = [o for o in cell.outputs if o.get("name") != "stderr"]
    problems = [f"an error in cell {i + 1}" for i in errors(notebook)] + machine_paths(notebook)
    if problems:
        raise runs.RunError(f"{label} is not fit to be published, it holds {', '.join(problems[:3])}")
    return notebook


def errors(notebook):
    """Return the positions (from 0) of the cells of a notebook that ended in an error."""
    return [
        i for i, c in enumerate(notebook.cells) if any(o.output_type == "error" for o in c.get("outputs", []))
    ]


def machine_paths(notebook):
    """Return the absolute paths of a machine that a notebook holds, images left out; sorted, each once.

    >>> import nbformat
    >>> cell = nbformat.v4.new_code_cell("open('/home/ada/net.bin'); 'https://example.org/home/ada'")
    >>> machine_paths(nbformat.v4.new_notebook(cells=[cell]))
    ['/home/ada']
    """
    texts = []

    def walk(value, key=""):
        if isinstance(value, dict):
            for name, item in value.items():
                walk(item, name)
        elif isinstance(value, list):
            for item in value:
                walk(item, key)
        elif isinstance(value, str) and not key.startswith("image/"):
            texts.append(value)

    walk(notebook)
    text = "\n".join(texts)
    own = {str(p) for p in (paths.ROOT, Path.home(), Path(tempfile.gettempdir())) if len(p.parts) > 1}
    # Path.home() may be as short as /root: it counts as a whole part of a path only
    found = {m for p in own for m in re.findall(rf"(?<![\w./-]){re.escape(p)}(?![\w-])[\w./~-]*", text)}
    return sorted(found | set(MACHINE.findall(text)))
