"""Gathers results over runs, and keeps the gallery: the rows behind the published numbers, and the pages made from them."""

from __future__ import annotations

import json
import re
import tempfile
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from lowrank_utils import paths
from lowrank_utils.lab.columns import KEY, RUN, with_defaults
from lowrank_utils.workbook import chapters, results, runs
from lowrank_utils.workbook.tables import markdown

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import pandas as pd
    from matplotlib.figure import Figure
    from nbformat import NotebookNode

    from lowrank_utils.workbook.verdicts import Claim, Verdict

CLAIMS = "What the papers claim"  # the heading of the claim table
# Where programs keep what belongs to one machine; not matched inside a web address, where a word goes before.
MACHINE = re.compile(
    r"(?<![\w.:/~-])/(?:home|Users|root|tmp|private|mnt|media|opt|srv|work|workspace|var|usr/(?:local|lib))"
    r"/[\w.~-]+"
    r"|\b[A-Z]:\\+Users\\+\w+"
)


def gather(*run_folders: str | Path) -> pd.DataFrame:
    """Return the rows of all finished jobs of the given runs, with provenance columns, as a DataFrame.

    Columns: those of `columns.RESULT_COLUMNS`, what the notebooks add, then `columns.PROVENANCE_COLUMNS`.
    Raises RunError for a folder that is no run.
    """
    places = [runs.find_run(place) for place in run_folders]
    return results.joined([results.job_rows(folder) for place in places for folder in runs.finished(place)])


def published_rows(
    dataset: str | None = None,
    notebook: str | None = None,
    network: str | None = None,
    folder: str | Path | None = None,
) -> pd.DataFrame:
    """Return the published rows as a DataFrame, of one data set, notebook or network if asked for.

    Older rows have the column correct from `answers`, where their networks were built again. Where nothing is published the table is empty and has its columns. `folder` defaults to outputs/gallery.
    """
    from lowrank_utils.workbook import answers

    table = answers.known(_published(folder or paths.GALLERY), folder)
    for column, wanted in (("dataset", dataset), ("notebook", notebook), ("network", network)):
        if wanted is not None:
            table = table[table[column] == wanted]
    return table.reset_index(drop=True)


def _published(folder):
    import pandas as pd

    path = Path(folder) / "results.parquet"
    return results.joined([pd.read_parquet(path)] if path.is_file() else [])


def publish(*run_folders: str | Path, folder: str | Path | None = None) -> list[Path]:
    """Put the rows of the given runs into the gallery; return the paths of the files written.

    They take the place of the rows of the same notebook, data set, network, seed and draw in results.parquet; the page and the
    pictures are drawn anew. `folder` defaults to outputs/gallery, for which README and docs are renewed too (`front`).
    Raises RunError, before anything is written, for an unfinished run, a notebook that holds an error, rows with a path of
    this machine, and two jobs that would take the same place.
    """
    folder = Path(folder or paths.GALLERY)
    fresh = {}
    for place in [runs.find_run(place) for place in run_folders]:
        if not runs.is_complete(place):
            raise runs.RunError(f"run {place.name} is not complete; finish it first with run --resume {place.name}")
        for job in runs.finished(place):
            label = results.read_done(job)["label"]
            if label in fresh:
                raise runs.RunError(f"two of these jobs would be published as {label}; publish one of them")
            fresh[label] = _fit_to_publish(job, label)
    table = merged(_published(folder), results.joined(list(fresh.values())))
    with paths.atomic_write(folder / "results.parquet") as temporary:
        write_rows(table, temporary)
    return [folder / "results.parquet", *renew(folder)]


def write_rows(table: pd.DataFrame, path: str | Path) -> None:
    """Write the rows of the gallery, strongly compressed, because the file is tracked."""
    table.to_parquet(path, index=False, compression="zstd", compression_level=19)


def measured_sections(folder: str | Path) -> dict[ModuleType, pd.DataFrame]:
    """Return {module of a section with a table of its own: its rows in `folder`}, without those that have none."""
    from lowrank_utils.workbook import (
        batch_norm,
        controls,
        enc_gap,
        encoder,
        imagenet,
        language,
        language_more,
        prediction,
        search_times,
        shortcuts,
        spectra,
    )

    sections = (
        prediction,
        shortcuts,
        controls,
        batch_norm,
        enc_gap,
        search_times,
        imagenet,
        language,
        language_more,
        encoder,
        spectra,
    )
    found = {each: each.published(folder) for each in sections}
    return {each: rows for each, rows in found.items() if rows is not None}


def renew(folder: str | Path | None = None) -> list[Path]:
    """Write the page and the pictures of the gallery again from its rows; return their paths.

    Where `folder` is outputs/gallery, its default, the README and docs are renewed too (`front`).
    """
    from lowrank_utils.workbook import audit, front

    folder = Path(folder or paths.GALLERY)
    told, written = published_tables(folder), [folder / "README.md"]
    measured = measured_sections(folder)
    with paths.atomic_write(written[0]) as temporary:
        pages = [each.section(rows) for each, rows in measured.items()]
        temporary.write_text(_page(told, "\n".join([*pages, audit.section(folder)])))
    for notebook, chapter in chapters.every().items():
        rows = published_rows(notebook=notebook, folder=folder)
        drawn = chapter.pictures(rows) if hasattr(chapter, "pictures") and len(rows) else {}
        for name, figure in drawn.items():
            written.append(folder / f"{name}.png")
            with paths.atomic_write(written[-1]) as temporary:
                figure.savefig(temporary, format="png")
    for each, rows in measured.items():
        more = each.pictures(rows) if hasattr(each, "pictures") else {}
        for name, figure in {each.NAME: each.figure(rows), **more}.items():
            written.append(folder / f"{name}.png")
            with paths.atomic_write(written[-1]) as temporary:
                figure.savefig(temporary, format="png")
    return written + (front.write() if folder == paths.GALLERY else [])


def _fit_to_publish(job, label):
    import nbformat

    rows = results.job_rows(job)
    notebook = nbformat.read(job / "notebook.ipynb", as_version=4)
    problems = [f"an error in cell {i + 1}" for i in errors(notebook)]
    problems += machine_paths(rows.select_dtypes("string").fillna("").to_dict("list")) if len(rows) else []
    if problems:
        raise runs.RunError(f"{label} is not fit to be published, it holds {', '.join(problems[:3])}")
    return rows


def drawn_figures(table: pd.DataFrame) -> dict[str, Figure]:
    """Return {name: matplotlib Figure} of all that notebooks 02 to 06 draw from result rows: accuracy against size.

    `table`: rows of any number of notebooks, data sets, networks and seeds, as `gather` and `published_rows` return them or a
    sweep's results.parquet holds them. Means over runs that differ in seed and draw alone, with a band from the lowest to
    the highest; where runs differ in more, each setting has a figure of its own, which names it. What no row supports is
    left out.
    """
    needed = "notebook dataset network seed accuracy parameters_kept macs_kept bytes faster_64".split()
    table = with_defaults(table.reindex(columns=list(dict.fromkeys([*table.columns, *needed, *KEY]))))
    table = table[table[["notebook", "chooser", "budget_kind", "accuracy"]].notna().all(axis=1)]
    table = table.assign(setting=settings(table))
    drawn = {}
    for notebook, chapter in chapters.every().items():
        if not hasattr(chapter, "figure"):
            continue
        mine = table[table["notebook"] == notebook]
        dense = mine["chooser"] == "dense"
        mine = mine[chapter.usable(mine) | dense]
        by = ["dataset", "network", "setting"] if chapter.ONE_EACH else ["setting"]
        for key, part in mine.groupby(by):
            seeds = part["seed"].nunique()
            if not chapter.usable(part)[part["chooser"] != "dense"].any():
                continue
            name = "-".join(_slug(word) for word in (notebook, *key) if word)
            if chapter.ONE_EACH:
                drawn[name] = chapter.figure(part, f"{seeds} seed{'s' * (seeds > 1)}")
                drawn[name].suptitle(" · ".join(word for word in key if word))
            else:
                drawn[name] = chapter.figure(part)
    return drawn


def settings(table: pd.DataFrame) -> pd.Series:
    """Return a Series: for each row, in words, the parameters in which runs of one notebook, data set and network differ.

    Read from the column run_parameters; seed, draw and device do not count, nor do `controls`, which only add rows. "" where they do not differ.
    """
    import pandas as pd

    given = table["run_parameters"] if "run_parameters" in table else pd.Series("{}", table.index)
    given = given.fillna("{}").map(json.loads)
    words = pd.Series("", table.index)
    apart = {"seed", "draw", "device", "dataset", "network", "networks", "output_folder", "controls"}
    for _, rows in table.groupby(["notebook", "dataset", "network"], dropna=False).groups.items():
        values = {}
        for parameters in given[rows]:
            for name in parameters.keys() - apart:
                values.setdefault(name, set()).add(json.dumps(parameters[name]))
        differ = sorted(name for name, found in values.items() if len(found) > 1)
        told = [" ".join(f"{n}={json.dumps(p[n])}" for n in differ if n in p) for p in given[rows]]
        words[rows] = pd.Series(told, index=rows)
    return words


def _slug(text):
    return re.sub(r"[^\w.=-]+", "-", str(text)).strip("-")[-80:]


_CLAIMS_CAPTION = (
    "Computed from the rows of the gallery. *Holds* counts the settings in which the rule is met: *yes* in all, *no* in none, else *in part*; *consistently* asks for all. "
    "*Counted* says how many settings are judged; every one that was run and is left out is named below the table, with the reason. In *in part / yes* the first word is for one point lost, the second for two. The words of statistics stand in the [glossary](../../docs/glossary.md#how-two-methods-are-compared). The rules:"
)


def _claims_caption() -> str:
    from lowrank_utils.workbook.verdicts import RULES

    rules = "; ".join(f"*{name}*: {text}" for name, text in RULES.items())
    commands: dict[str, list[str]] = {}
    for claim in every_claim():
        commands.setdefault(claim.rerun, []).append(claim.paper)
    told = "\n".join(f"- {', '.join(dict.fromkeys(papers))}: `{command}`" for command, papers in commands.items())
    return f"{_CLAIMS_CAPTION} {rules}.\n\nThe rows are made again by\n\n{told}"


def every_claim() -> list[Claim]:
    """Return the claims of all chapters, in their order."""
    return [claim for chapter in chapters.every().values() for claim in getattr(chapter, "CLAIMS", ())]


def _page(tables, predicted):
    captions = {CLAIMS: _claims_caption()}
    for chapter in chapters.every().values():
        captions |= chapter.CAPTIONS
    shown = "\n\n".join("\n\n".join(filter(None, (f"## {h}", captions.get(h), t))) for h, t in tables.items())
    shown = "\n\n".join(filter(None, (shown, predicted.rstrip())))
    return f"""# The gallery: what every published number rests on

All rows of notebooks stand in `results.parquet`, each with its parameters, versions, data fingerprint and commit (`pandas.read_parquet` reads
them; the site has them as CSV). This page is written from them by `python -m lowrank_utils report --gallery`; a run is made with
`python -m lowrank_utils run --preset PRESET --seeds 0,1,2`.

Numbers are means over seeds ± standard deviation, in percent of the test images where nothing else is said. *Factored* says which layers a rule may cut: every layer, as ARSVD is
published, or the hidden layers, with the classifier left dense. *Kept* counts all parameters of the network; of networks with convolutions the share of MACs is held.
Nothing was trained after the cut where a column, a table or the section *Controls and rivals* does not say so. What the names of methods mean stands in the [glossary](../../docs/glossary.md).
Each row names the commit of the code that made it; where this history does not have it, it was folded into a later one. *+changes* says that some files differed from that commit. The sections
from *Predicted before cutting* on have files of their own; what they rest on is recorded in `jobs`, where `make gallery` measured them. Dense networks of seeds 1 and 2 are trained anew
where a run does not find them, so that they may differ by a tenth of a point between notebooks.

{shown}
"""


def quote(text: str, tables: Mapping[str, str]) -> str:
    """Return the Markdown `text` with the tables under its headings renewed from `tables`, {heading: Markdown table}.

    >>> quote("# A\\nWords, #1.\\n\\n| x |\\n| old |\\n\\n# B\\n| y |\\n", {"A": "| new |", "C": "| z |"})
    '# A\\nWords, #1.\\n\\n| new |\\n\\n# B\\n| y |\\n'
    """
    for heading, table in tables.items():
        text = re.sub(
            rf"(?m)^(#+ {re.escape(heading)}\n(?:(?![#|]).*\n)*)(?:\|.*\n)+",
            lambda found, table=table: f"{found[1]}{table}\n",
            text,
        )
    return text


def merged(old: pd.DataFrame, new: pd.DataFrame) -> pd.DataFrame:
    """Return published rows with `new` ones in the place of those of the same notebook, data set, network, seed and draw."""

    def keys(table):
        return list(table.reindex(columns=list(RUN)).astype(object).fillna("").itertuples(index=False, name=None))

    replaced = set(keys(new))
    kept = old[[key not in replaced for key in keys(old)]]
    table = results.joined([kept, new])
    return table.sort_values([name for name in RUN if name in table], kind="stable")


def published_tables(folder: str | Path | None = None, stated: pd.DataFrame | None = None) -> dict[str, str]:
    """Return {heading: Markdown table} of the published results: what docs/results.md and the gallery's page quote.

    Every number is a mean over seeds (and draws of calibration images) with its standard deviation, in percent: of the
    test images for accuracy, macro F1 and what was lost, of the dense network's parameters or MACs for what is kept.
    `stated`: what `claims` returns, if it is at hand.
    """
    everything = published_rows(folder=folder)
    tables = {}
    for notebook, chapter in chapters.every().items():
        rows = everything[everything["notebook"] == notebook]
        if len(rows):
            tables |= chapter.tables(rows)
    stated = claims(folder) if stated is None else stated
    if (stated["holds"] != "-").any():
        tables = {CLAIMS: _claims_table(stated)} | tables
    return tables


def _claims_table(stated: pd.DataFrame) -> str:
    # the claims as a table; what is left out stands below it, each list once, and how much a correction over all rows would leave
    told, lists = stated.drop(columns=["rerun", "p", "settled"]), {}

    def counted(text: str) -> str:
        counts, _, left_out = text.partition("; left out: ")
        return f"{counts} ({lists.setdefault(left_out, len(lists) + 1)})" if left_out else counts

    table = markdown([*map(str, told)], told.assign(counted=told["counted"].map(counted)).to_numpy().tolist())
    notes = "\n".join(f"{number}. {text}" for text, number in lists.items())
    below = f"Settings left out, by the numbers in brackets:\n\n{notes}\n\n" * bool(lists)
    return f"{table}\n\n{below}{settled_in_words(stated)}"


def settled_in_words(stated: pd.DataFrame) -> str:
    """Return in a sentence how many comparisons of all claims are settled: corrected row by row, and over the whole table.

    `stated`: the table of `claims`.
    """
    from lowrank_utils.workbook.paired_tests import LEVEL, RESAMPLES, holm

    each = [p for row in stated["p"] for p in row]
    over_all, least = int((holm(each) < LEVEL).sum()), 2 / (RESAMPLES + 1)
    above = sum(p >= least * (1 - 1e-9) for p in each)
    coarse = (
        f" The bootstrap draws {RESAMPLES:,} times, so it gives no p-value below {least:.1g}; {above:,} are not smaller, and {above:,} times that is more than 5 %: "
        "no comparison by the bootstrap can pass the correction over the whole table, so the number would be larger with more draws."
    )
    return (
        f"Of all {len(each):,} comparisons in pairs {int(stated['settled'].sum()):,} are settled, by Holm's correction over the settings of each row. "
        f"Corrected over the whole table at once, {over_all:,} would be."
    ) + coarse * (least * above > LEVEL)


def judged(folder: str | Path | None = None, asked: Sequence[Claim] | None = None) -> list[tuple[Claim, Verdict]]:
    """Return every claim (or those `asked`) with what the published rows say of it."""
    from lowrank_utils.workbook.verdicts import not_measured

    table = published_rows(folder=folder)
    needed = [*RUN, *KEY, "accuracy", "parameters_kept", "macs_kept", "valid_accuracy", "loss"]
    table = table.reindex(columns=list(dict.fromkeys([*table.columns, *needed])))  # other notebooks write other columns
    return [(claim, claim.measure(table) or not_measured("no row")) for claim in asked or every_claim()]


def claims_in_short(folder: str | Path | None = None, stated: pd.DataFrame | None = None) -> str:
    """Return the table of claims of docs/results.md: a line for each claim of a paper, with how many rows of the whole table hold."""
    stated, lines = claims(folder) if stated is None else stated, []
    for (paper, claim), rows in stated.groupby(["paper", "claim"], sort=False):
        verdicts = rows["holds"].replace("-", "not measured").value_counts(sort=False)
        told = ", ".join(verdict if len(rows) == 1 else f"{verdict} ({count})" for verdict, count in verdicts.items())
        lines.append([paper, claim, told])
    return markdown(["paper", "claim", "holds (in how many settings)"], lines)


def claims(folder: str | Path | None = None) -> pd.DataFrame:
    """Return a DataFrame with one row a claim of the three papers: paper, claim, setting, rule, theirs, ours, counted, holds, rerun, p, settled.

    *Ours*, *counted* (settings, and those left out with the reason) and *holds* are computed from the published rows; what they say nothing of is
    "not measured". `theirs` is the number that the paper gives, where it gives one; `rule` is one of `verdicts.RULES`. `rerun` makes the rows again.
    `p` and `settled`: those of `verdicts.Verdict`.
    """
    import pandas as pd

    return pd.DataFrame(
        {
            "paper": claim.paper,
            "claim": claim.claim,
            "setting": claim.setting,
            "rule": claim.rule,
            "theirs": claim.theirs,
            "ours": found.said,
            "counted": found.counts,
            "holds": found.holds,
            "rerun": f"`{claim.rerun}`",
            "p": found.p,
            "settled": found.settled,
        }
        for claim, found in judged(folder)
    )


def errors(notebook: NotebookNode) -> list[int]:
    """Return the positions (from 0) of the cells of a notebook that ended in an error."""
    return [i for i, c in enumerate(notebook.cells) if any(o.output_type == "error" for o in c.get("outputs", []))]


def machine_paths(notebook: dict[str, Any]) -> list[str]:
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
