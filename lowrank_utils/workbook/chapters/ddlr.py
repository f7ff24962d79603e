"""Chapter 04, DDLR and Net-Trim: the convex programs as compressors; its names, figure, tables and claims."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator, PercentFormatter

from lowrank_utils.lab import finetuning
from lowrank_utils.workbook import contest, opponents, verdicts
from lowrank_utils.workbook.chapters.ddlr_experiment import OWNER, TRAINED
from lowrank_utils.workbook.chapters.ddlr_experiment import compared as compared
from lowrank_utils.workbook.chapters.ddlr_experiment import experiment as experiment
from lowrank_utils.workbook.chapters.ddlr_experiment import laboratory as laboratory
from lowrank_utils.workbook.chapters.ddlr_experiment import steps as steps
from lowrank_utils.workbook.plots import canvas, colour_of, line_style, name_ends
from lowrank_utils.workbook.tables import RUN, in_points, markdown, mean_and_spread, thousands
from lowrank_utils.workbook.verdicts import NOT_AT_HAND, Claim, Verdict

NOTEBOOK = OWNER
CAPTIONS = {  # of its tables
    "DDLR and Net-Trim: accuracy with 5 / 10 / 20 % kept": 'Percent of the test images. DDLR and Net-Trim are cut to each size, epsilon chosen on validation images, "-" where a method does not reach it in every seed (a program: at no epsilon of the preset). The classifier is dense for all methods. *Images*: how many training images each method saw; ARSVD needs none. The programs can take only a few, so all methods get as few. The tables of notebook 02 have ranks by energy in data-aware factors with more images: 5 000, and 10 000 of CIFAR-10 and CIFAR-100. With fewer than 20 images for an input, every refit chooses its ridge by cross-validation.',
    "DDLR and Net-Trim: accuracy, with spread": "Every method, mean ± standard deviation over seeds.",
    "DDLR and Net-Trim: more than test accuracy, with 10 % kept": f'Means over seeds. *Test*: percent of the test images. *Corrupted*: the same of the first {thousands(contest.CORRUPTED)} of them under five corruptions (noise, blur, contrast, rotation, occlusion), the mean. *Times faster*: than the dense network, for 64 inputs, in processor time of one thread. *Memory*: MiB that answering 64 inputs takes. Zeros of Net-Trim are computed and held here like all other weights, and the convolutions of LeNet-5, which take most of its time, stay dense. *Fine-tuned*: the networks above, trained further with labels. *From scratch*: fresh weights in the ranks of *Fisher-weighted*, trained like the dense network. "-": not in every seed, because it was not measured, the size was not reached, or training diverged.',
    "DDLR and Net-Trim as posed: percent kept and accuracy at each epsilon": 'Percent of the parameters / percent of the test images, means over seeds. Nothing is cut, refitted or trained. For Net-Trim the first number counts non-zeros alone, and the one in brackets their indices too. *Every layer* is under the program, or the *classifier* stays *dense*. The last three columns are variants of DDLR with the classifier dense, which were made at one epsilon: each layer on the inputs that the compressed network gives it (cascade), the bias outside the norm, and one round of reweighting. "-": not made in every seed.',
}
UNMET = {  # rules of fair comparison that tables and claims do not keep, and why; see `audit`
    "*": {
        2: "ARSVD at its own threshold is judged in notebook 02.",
        4: "The CIFAR-10 MLP has one seed.",
        6: "Each seed has a split of its own, so the three seeds are three draws of the samples. Five draws are not run yet.",
    },
    "DDLR and Net-Trim: accuracy with 5 / 10 / 20 % kept": {
        7: "Three sizes; the figures show every size, and the claims count every size."
    },
    "DDLR and Net-Trim: accuracy, with spread": {
        7: "The sizes of the table above; the figures show every size, and the claims count every size."
    },
    "DDLR and Net-Trim: more than test accuracy, with 10 % kept": {
        7: "One size, so that it can be read; the rows hold the others."
    },
    "DDLR and Net-Trim as posed: percent kept and accuracy at each epsilon": {
        7: "It goes by epsilon. Answers cut to a size stand in the other tables."
    },
}
FIGURE_CAPTION = (
    "The classifier is dense, indices of sparse layers are counted. Sizes that some seeds did not reach are left out."
)


# ---- names, figures, tables ------------------------------------------------------------------------------------------

METHODS = ("DDLR, cut", "DDLR, cut, refit", "Net-Trim, non-zeros", "Net-Trim, with indices")
METHODS += ("Net-Trim, cut, refit, non-zeros", "Net-Trim, cut, refit, with indices")
METHODS += ("ARSVD", "data-aware", "ReLU-aware", "Fisher-weighted", "units first")
COMPARED = tuple(name for name in METHODS if "non-zeros" not in name)  # in the figure of equal sizes
LEAST = 0.1  # points lost where the log scale of the figures ends


def named(table: pd.DataFrame) -> pd.DataFrame:
    """Return the rows that were made to a size, with a column ``method`` of their names in words, one of `METHODS`.

    Left out are the dense network, the rows of `steps`, both programs as posed, which `as_posed` returns, and the controls (`control_rows`).
    """
    posed = (table["program"] != "none") & (table["cut"] == "none")
    control = (table["tuned"] != "none") | (table["chooser"] == "random")
    shown = table[(table["budget_kind"] == "kept") & ~posed & ~control]
    return shown.assign(method=[_method(row) for row in shown.itertuples()])


def _method(row) -> str:
    refit = ", cut, refit" if row.refit == "least squares" else ""
    if row.chooser == "DDLR":
        return f"DDLR{refit or ', cut'}"
    if row.chooser == "Net-Trim":
        return f"Net-Trim{refit}, {'non-zeros' if row.stored_as == 'non-zeros' else 'with indices'}"
    if row.chooser == "component output":
        return {"relu-aware": "ReLU-aware", "fisher-weighted": "Fisher-weighted"}.get(row.factors) or row.factors
    return {"energy": "ARSVD", "both output": "units first"}.get(row.chooser) or row.chooser


def programs(table: pd.DataFrame, title: str = "test images") -> Figure:
    """Return points of test accuracy lost against parameters kept, log scales, one line a method: all that can be had at a given size.

    `table`: result rows of any number of seeds, with the dense networks. Lines are means over seeds, bands go from the lowest to the highest seed,
    and losses under `LEAST` points are drawn there. Net-Trim's indices are counted. Sizes fall to the right, where the methods part.
    The convex programs without a refit are dashed.
    """
    drawn = in_every_seed(named(table), table["seed"].nunique())
    drawn = drawn[drawn["method"].isin(COMPARED)]
    figure, (axis,) = canvas(width=9.6, height=5.2)
    axis.set(
        xscale="log",
        yscale="log",
        xlabel="parameters kept (share of dense)",
        ylabel="points lost, test images",
        title=title,
    )
    ends = {}
    for method in COMPARED:
        line = mean_lost(table, drawn[drawn["method"] == method])
        if len(line):
            axis.plot(line["kept"], line["mean"], label=method, **line_style(method, alone=len(line) == 1))
            axis.fill_between(line["kept"], line["min"], line["max"], color=colour_of(method), alpha=0.15)
            ends[method] = (float(line["kept"].iloc[0]), float(line["mean"].iloc[0]))
    if not ends:
        axis.text(0.5, 0.5, "no method reached a size in every seed", transform=axis.transAxes, ha="center")
        return figure
    size_axis(axis, drawn["parameters_kept"], max(lost for _, lost in ends.values()))
    name_ends(axis, ends)
    for text in axis.texts:  # no name covers a line
        text.set_zorder(1)
    return figure


def mean_lost(table: pd.DataFrame, mine: pd.DataFrame) -> pd.DataFrame:
    """Return one row a budget, by rising size: kept, and mean, min and max of the points lost over seeds."""
    dense = table[table["chooser"] == "dense"].set_index("seed")["accuracy"]
    lost = (100 * (mine["seed"].map(dense) - mine["accuracy"])).clip(lower=LEAST)
    groups = mine.assign(lost=lost).groupby("budget")
    line = groups["lost"].agg(["mean", "min", "max"]).assign(kept=groups["parameters_kept"].mean())
    return line.sort_values("kept")


def size_axis(axis: Axes, kept: pd.Series, most: float) -> None:
    """Set log axes of size, which falls to the right with room for names, and of points lost.

    Parameters: `kept`, shares of the parameters; `most`, the points lost at the upper end.
    """
    low, high = float(kept.min()), float(kept.max())
    axis.set(xlim=(1.15 * high, low / 2.1), ylim=(0.8 * LEAST, max(4 * most, 2)))
    axis.xaxis.set_major_locator(FixedLocator([0.03, 0.05, 0.1, 0.2, 0.3, 0.6, 1.0]))
    axis.xaxis.set_minor_locator(NullLocator())
    axis.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    axis.yaxis.set_major_locator(FixedLocator([LEAST, 0.2, 0.5, 1, 2, 5, 10, 20, 50]))
    axis.yaxis.set_major_formatter(lambda value, _: f"{value:g}" if value > LEAST else f"{value:g} or less")
    axis.yaxis.set_minor_locator(NullLocator())


def in_every_seed(table: pd.DataFrame, seeds: int) -> pd.DataFrame:
    """Return the rows of `named` whose method and size stand under all `seeds` of them: others would compare other networks."""
    keys = ["method", "budget_kind", "budget"]
    return table[table.groupby(keys, dropna=False)["seed"].transform("nunique") == seeds]


def accuracy_at(table: pd.DataFrame, shares: Sequence[float] = (0.05, 0.1, 0.2)) -> pd.DataFrame:
    """Return test accuracy in percent, its range over seeds, and the parameters kept, where all seeds have a network."""
    some = named(table)
    some = some[some["budget"].isin(shares)]
    cells = {}
    for (name, kept), part in some.groupby(["method", "budget"]):
        low, mean, high = (100 * part["accuracy"].agg(how) for how in ("min", "mean", "max"))
        spread = f" ({low:.1f} to {high:.1f})" if len(part) > 1 else ""
        if len(part) == table["seed"].nunique():
            cells[name, f"kept {kept:.2f}"] = f"{mean:.1f}{spread} with {part['parameters_kept'].mean():.1%}"
    order = [name for name in METHODS if name in set(some["method"])]
    return pd.Series(cells).unstack().reindex(order).fillna("-")


RERUN = f"for p in ddlr-mnist ddlr-fashion-mnist ddlr-lenet5; do {RUN} $p --seeds 0,1,2 --only 04; done; {RUN} ddlr-cifar10 --only 04"
IN_TABLES = (0.05, 0.1, 0.2)


def as_posed(table: pd.DataFrame, chooser: str, scope: str, indices: bool = True) -> pd.DataFrame:
    """Return the rows of a convex program as its authors pose it, at every epsilon: no cut, no refit, nothing reweighted.

    Parameters: `chooser`, "DDLR" or "Net-Trim"; `scope`, "every layer" or "hidden layers" (the classifier dense); `indices`, whether those of
    Net-Trim's sparse layers are counted, or its non-zeros alone, as its authors do.
    """
    mine = (table["notebook"] == NOTEBOOK) & (table["chooser"] == chooser) & (table["scope"] == scope)
    mine &= (table["program"] == "as posed") & (table["cut"] == "none") & (table["refit"] == "none")
    return table[mine & (table["stored_as"] != ("non-zeros" if indices else "sparse"))]


ONE_POINT = "one epsilon alone, no curve"


def _runs(table: pd.DataFrame) -> list[tuple]:
    mine = table[table["notebook"] == NOTEBOOK]
    return sorted(mine[[*verdicts.RUN_OF]].drop_duplicates().itertuples(index=False, name=None))


def _at_given_sizes(table: pd.DataFrame, method: str) -> pd.DataFrame:
    shown = named(table[table["notebook"] == NOTEBOOK])
    return shown[shown["method"] == method]


def small_as_posed(chooser: str, scope: str, indices: bool = True) -> Callable[[pd.DataFrame], Verdict | None]:
    """Return the function of result rows that judges the smallest size of a program on its own curve over epsilon."""

    def measure(table: pd.DataFrame) -> Verdict | None:
        absent = f"no row of {chooser} as posed with {_WHERE[scope]}, only cut to a size"
        return _own_curve(table, as_posed(table, chooser, scope, indices), absent)

    return measure


def smaller_as_posed(scope: str, indices: bool) -> Callable[[pd.DataFrame], Verdict | None]:
    """Return the function of result rows that judges whether DDLR has smaller networks than Net-Trim, each on its own curve over epsilon."""

    def measure(table: pd.DataFrame) -> Verdict | None:
        runs = _runs(table)
        if not runs:
            return None
        curves = {"DDLR": as_posed(table, "DDLR", scope), "Net-Trim": as_posed(table, "Net-Trim", scope, indices)}
        reasons: dict[tuple, str] = {}
        for name, curve in curves.items():
            curves[name], lacking = _whole(runs, curve, f"no row of {name} as posed with {_WHERE[scope]}")
            for run, reason in lacking.items():
                words = reason if reason.startswith("no row") else f"{name} has {reason}"
                reasons[run] = "; ".join(filter(None, (reasons.get(run), words)))
        dense = verdicts.dense_rows(table, NOTEBOOK)
        how = {"names": tuple(curves), "settings": runs, "absent": reasons}
        return verdicts.smaller_verdict(curves["DDLR"], curves["Net-Trim"], dense, consistently=True, **how)

    return measure


def small_by_layer(scope: str) -> Callable[[pd.DataFrame], Verdict | None]:
    """Return the function of result rows that judges the smallest size of DDLR with an epsilon for each layer."""

    def measure(table: pd.DataFrame) -> Verdict | None:
        return _own_curve(table, by_layer_rows(table, scope), "no row of one epsilon a layer")

    return measure


def _own_curve(table: pd.DataFrame, curve: pd.DataFrame, absent: str) -> Verdict | None:
    """Return the verdict on the smallest size of curves over epsilon; a run without a curve is left out for its own reason."""
    runs = _runs(table)
    if not runs:
        return None
    whole, reasons = _whole(runs, curve, absent)
    return verdicts.size_verdict(whole, verdicts.dense_rows(table, NOTEBOOK), settings=runs, absent=reasons)


def _whole(runs: Sequence[tuple], curve: pd.DataFrame, absent: str) -> tuple[pd.DataFrame, dict[tuple, str]]:
    """Return (the rows of curves with more than one epsilon, {run without such a curve: why}); `absent` is why there is no row."""
    points = curve.groupby([*verdicts.RUN_OF])["budget"].nunique()
    counts = {run: points.get(run, 0) for run in runs}
    reasons = {run: ONE_POINT if count else absent for run, count in counts.items() if count < 2}
    return curve[curve.groupby([*verdicts.RUN_OF])["budget"].transform("nunique") > 1], reasons


def by_layer_rows(table: pd.DataFrame, scope: str) -> pd.DataFrame:
    """Return the rows of DDLR with an epsilon for each layer; their budget is the one epsilon whose size they may have."""
    mine = (table["notebook"] == NOTEBOOK) & (table["program"] == "epsilon by layer") & (table["scope"] == scope)
    return table[mine]


def each_ahead_of_one(scope: str) -> Callable[[pd.DataFrame], Verdict | None]:
    """Return the function of result rows that judges whether an epsilon for each layer is ahead of one for all, at no more parameters."""

    def measure(table: pd.DataFrame) -> Verdict | None:
        one, each = as_posed(table, "DDLR", scope), by_layer_rows(table, scope)
        one = one[one["budget_kind"] == "epsilon"]
        runs = list(dict.fromkeys(run[:2] for run in _runs(table)))
        if not runs:
            return None
        absent = "no row of one epsilon a layer"
        if not len(each):
            return verdicts.not_measured(absent, [", ".join(run) for run in runs])
        asked = one.drop_duplicates([*opponents.SETTING])[[*opponents.SETTING]]  # each run has epsilons of its own
        settings = sorted(set(asked.itertuples(index=False, name=None)))
        return verdicts.ahead_verdict(each, one, settings=settings, absent=absent, than="one for all")

    return measure


def small_at_given_sizes(method: str) -> Callable[[pd.DataFrame], Verdict | None]:
    """Return the function of result rows that judges the smallest size of a method of `METHODS` that takes its size as given."""

    def measure(table: pd.DataFrame) -> Verdict | None:
        runs = _runs(table)
        if not runs:
            return None
        dense = verdicts.dense_rows(table, NOTEBOOK)
        return verdicts.size_verdict(_at_given_sizes(table, method), dense, settings=runs, absent="no row")

    return measure


def ddlr_ahead(ours: str, theirs: str) -> Callable[[pd.DataFrame], Verdict | None]:
    """Return the function of result rows that judges whether method `ours` is ahead of `theirs` at equal size, in all settings."""

    def measure(table: pd.DataFrame) -> Verdict | None:
        sides = {method: _at_given_sizes(table, method) for method in (ours, theirs)}
        return _ahead(table, sides, _sizes(sides), _not_cut, consistently=True)

    return measure


def of_control(table: pd.DataFrame, control: str, chooser: str = "") -> pd.DataFrame:
    """Return the rows of a control, with the classifier dense, but for those whose training diverged.

    Parameters: `control`, "random" ranks with nothing trained, "fine-tuned" or "from scratch"; `chooser`, whose networks were fine-tuned ("": all).
    """
    mine = _of_control(table, control, chooser)
    return mine[contest.undiverged(mine)]


def _of_control(table: pd.DataFrame, control: str, chooser: str = "") -> pd.DataFrame:
    # those whose training diverged, too
    kept = table[(table["notebook"] == NOTEBOOK) & (table["budget_kind"] == "kept")]
    if control == "random":
        return kept[(kept["chooser"] == "random") & (kept["tuned"] == "none")]
    kept = kept[kept["tuned"] == control]
    return kept[kept["chooser"] == chooser] if chooser else kept


def ahead_of_random(method: str) -> Callable[[pd.DataFrame], Verdict | None]:
    """Return the function of result rows that judges whether a method of `METHODS` is ahead of random ranks in Fisher-weighted factors."""

    def measure(table: pd.DataFrame) -> Verdict | None:
        sides = {method: _at_given_sizes(table, method), "random ranks": of_control(table, "random")}
        return _ahead(table, sides, _sizes(sides))

    return measure


def ahead_of_scratch(table: pd.DataFrame) -> Verdict | None:
    """Judge whether DDLR, cut, refitted and fine-tuned, is ahead of thin layers of equal size trained from scratch; None without rows."""
    sides = {
        "DDLR, fine-tuned": _of_control(table, "fine-tuned", "DDLR"),
        "training from scratch": _of_control(table, "from scratch"),
    }
    return _ahead(table, sides, TRAINED)


def _sizes(sides):
    return sorted({size for rows in sides.values() for size in rows["budget"]})


def _not_cut(names):
    return "no answer is cut to that size: " + "; ".join(names)


def _ahead(
    table: pd.DataFrame, sides: Mapping[str, pd.DataFrame], sizes: Sequence[float], *why, consistently: bool = False
) -> Verdict | None:
    """Return the verdict on the first of two sides, {name: rows}, against the second, at the `sizes` of every run; `why` as in `opponents.verdict`."""
    runs = _runs(table)
    settings = [(*run, size) for run in dict.fromkeys(run[:2] for run in runs) for size in sizes]
    return opponents.verdict(sides, settings, *why, consistently=consistently) if runs else None


def tables(table: pd.DataFrame) -> dict[str, str]:
    """Return {heading: Markdown table} of the published rows, as the gallery shows them."""
    equal, spread = [], []
    for key, part in in_points(table).groupby(["dataset", "network"]):
        cells, whole, shown = [], part["seed"].nunique(), named(part)
        for name in METHODS:
            mine = shown[shown["method"] == name]
            # a method that reached the size on some seeds only would be compared on other networks
            sizes = [mine.loc[mine["budget"] == kept, "accuracy"] for kept in IN_TABLES]
            cells.append(" / ".join(f"{v.mean():.1f}" if len(v) == whole else "-" for v in sizes))
            spread.append([*key, name, *(mean_and_spread(v) if len(v) == whole else "-" for v in sizes)])
        equal.append([*key, *cells, images_seen(part)])
    where = ["data set", "network"]
    return {
        "DDLR and Net-Trim: accuracy with 5 / 10 / 20 % kept": markdown([*where, *METHODS, "images"], equal),
        "DDLR and Net-Trim: accuracy, with spread": markdown(
            [*where, "method", "5 % kept", "10 % kept", "20 % kept"], spread
        ),
        f"DDLR and Net-Trim: more than test accuracy, with {100 * AT:g} % kept": markdown(
            [*where, "method", *MEASURED], more_than_accuracy(table)
        ),
        "DDLR and Net-Trim as posed: percent kept and accuracy at each epsilon": markdown(
            [*where, "epsilon", *POSED, *VARIANTS], at_each_epsilon(table)
        ),
    }


AT = 0.1  # the share kept of the table of more than accuracy
MEASURED = {  # its columns: what is averaged, its unit, and how it is written
    "test": ("accuracy", 100, "{:.1f}"),
    "corrupted": ("accuracy_corrupted", 100, "{:.1f}"),
    "times faster": ("faster_64", 1, "{:.1f}"),
    "memory": ("memory_64", 1, "{:.2f}"),
}
TRAINED_FURTHER = {
    "DDLR": "DDLR, fine-tuned",
    "Net-Trim": "Net-Trim, fine-tuned",
    "component output": "Fisher-weighted, fine-tuned",
    "random": "random ranks, fine-tuned",
}


def more_than_accuracy(table: pd.DataFrame) -> Iterator[list[str]]:
    """Yield the lines of the table of `MEASURED`: a line for each method of each data set and network, `AT` of the parameters kept."""
    for (dataset, network), part in table.groupby(["dataset", "network"]):
        cut, sized = named(part), part[part["budget"] == AT]
        lines = {"dense": part[part["chooser"] == "dense"]}
        for name in ("DDLR, cut, refit", "Net-Trim, cut, refit, with indices", "Fisher-weighted"):
            lines[name] = cut[(cut["method"] == name) & (cut["budget"] == AT)]
        lines["random ranks"] = of_control(sized, "random")
        lines |= {words: of_control(sized, "fine-tuned", chooser) for chooser, words in TRAINED_FURTHER.items()}
        lines["from scratch"] = of_control(sized, "from scratch")
        for name, rows in lines.items():
            yield [f"{dataset}", f"{network}", name, *_means(rows, part["seed"].nunique())]


def _means(rows, seeds):
    for column, unit, form in MEASURED.values():
        values = rows[column].dropna() if column in rows else pd.Series(dtype=float)
        yield form.format(unit * values.mean()) if len(values) == seeds else "-"


POSED = {  # columns of the table of both programs as posed: whose rows
    "DDLR, every layer": ("DDLR", "every layer"),
    "DDLR, classifier dense": ("DDLR", "hidden layers"),
    "Net-Trim, every layer": ("Net-Trim", "every layer"),
    "Net-Trim, classifier dense": ("Net-Trim", "hidden layers"),
}
VARIANTS = ("cascade", "free bias", "reweighted")  # of DDLR, with the classifier dense


def at_each_epsilon(table: pd.DataFrame) -> Iterator[list[str]]:
    """Yield the lines of the table of both programs as posed, and of `VARIANTS`: a line for each epsilon of each data set and network."""
    for (dataset, network), part in table.groupby(["dataset", "network"]):
        seeds = part["seed"].nunique()
        columns = [
            (as_posed(part, chooser, scope, indices=False), as_posed(part, chooser, scope))
            for chooser, scope in POSED.values()
        ]
        for program in VARIANTS:
            rows = part[(part["program"] == program) & (part["cut"] == "none") & (part["refit"] == "none")]
            columns.append((rows, rows))
        for epsilon in sorted(set().union(*(alone["budget"] for alone, _ in columns))):
            cells = [_size_and_accuracy(*pair, epsilon, seeds) for pair in columns]
            yield [f"{dataset}", f"{network}", f"{epsilon:g}", *cells]


def _size_and_accuracy(alone, with_indices, epsilon, seeds):
    alone, with_indices = (rows[rows["budget"] == epsilon] for rows in (alone, with_indices))
    if len(alone) != seeds or len(with_indices) != seeds:
        return "-"
    sizes = [100 * rows["parameters_kept"].mean() for rows in (alone, with_indices)]
    counted = f" ({sizes[1]:.1f})" if sizes[0] != sizes[1] else ""
    return f"{sizes[0]:.1f}{counted} / {100 * alone['accuracy'].mean():.1f}"


def images_seen(rows: pd.DataFrame) -> str:
    """Return how many training images the methods that need images saw in the runs of `rows`, "-" where it is unknown.

    First those of the programs, then those of the others if these are not as many.

    >>> images_seen(pd.DataFrame({"run_parameters": ['{"samples": 500, "calibration_images": 2000}']}))
    '500, others 2 000'
    """
    runs = [json.loads(text) for text in rows["run_parameters"].dropna().unique()] if "run_parameters" in rows else []
    seen = sorted({(int(run["samples"]), int(run["calibration_images"])) for run in runs})
    counts = [(thousands(own), thousands(rest)) for own, rest in seen]
    return "; ".join(own if own == rest else f"{own}, others {rest}" for own, rest in counts) or "-"


ONE_EACH = True  # a figure for each data set and network


def usable(table: pd.DataFrame) -> pd.Series:
    """Return which rows (a boolean Series) `figure` can draw: sizes that every seed reached."""
    drawn = in_every_seed(named(table), table["seed"].nunique())
    return pd.Series(table.index.isin(drawn.index[drawn["method"].isin(COMPARED)]), index=table.index)


figure = programs


_WHERE = {"every layer": "every layer under it", "hidden layers": "the classifier dense"}
ALL = "LeNet-300-100, LeNet-5 and the CIFAR-10 MLP"


def _claims() -> tuple[Claim, ...]:
    small, posed = "far fewer parameters, little accuracy lost, no retraining", "as posed, its own curve over epsilon"
    first = [
        Claim(paper, small, f"{ALL}; {posed}, {_WHERE[scope]}{counted}", "size", NOT_AT_HAND, small_as_posed(paper, scope, indices), RERUN, posed=True)
        for paper, counted, indices in (("DDLR", "", True), ("Net-Trim", "; non-zeros counted alone, as its authors do", False), ("Net-Trim", "; indices counted", True))
        for scope in _WHERE
    ]  # fmt: skip
    given = "classifier dense, seven sizes, epsilon by validation images"
    second = [
        Claim(paper, f"the same, improved: {words}", f"{ALL}; {given}", "size", "-", small_at_given_sizes(method), RERUN)
        for paper, words, method in (
            ("DDLR", "cut to a size", "DDLR, cut"),
            ("DDLR", "cut and refitted", "DDLR, cut, refit"),
            ("DDLR", "our factors for its problem at a given rank, no program", "ReLU-aware"),
            ("Net-Trim", "cut to a size, indices counted", "Net-Trim, with indices"),
            ("Net-Trim", "cut and refitted, indices counted", "Net-Trim, cut, refit, with indices"),
            ("Net-Trim", "cut and refitted, non-zeros counted alone, as its authors do", "Net-Trim, cut, refit, non-zeros"),
        )
    ]  # fmt: skip
    ours = "as posed, an epsilon for each layer by the exact search"
    own = [
        Claim("DDLR", "the same, improved: one epsilon a layer", f"{ALL}; {ours}, {_WHERE[scope]}", "size", "-", small_by_layer(scope), RERUN)
        for scope in _WHERE
    ]  # fmt: skip
    own += [
        Claim("DDLR", "one epsilon a layer is ahead of one for all, at no more parameters", f"{ALL}; {ours}, {_WHERE[scope]}", "ahead", "-", each_ahead_of_one(scope), RERUN)
        for scope in _WHERE
    ]  # fmt: skip
    third = [
        Claim("DDLR", "consistently ahead of Net-Trim", f"{ALL}; both as posed, each on its own curve over epsilon, {_WHERE[scope]}; {words}", "smaller", NOT_AT_HAND, smaller_as_posed(scope, indices), RERUN, posed=True, unmet={4: "Each run has one size of each method, and a size has no error of its own; the counts of runs are told instead of a test."})
        for words, indices in (("non-zeros counted alone", False), ("indices counted", True))
        for scope in _WHERE
    ]  # fmt: skip
    third += [
        Claim("DDLR", "consistently ahead of Net-Trim", f"{ALL}; {given}; {words}", "ahead", NOT_AT_HAND, ddlr_ahead(ours, theirs), RERUN)
        for words, ours, theirs in (
            ("both cut, non-zeros counted alone", "DDLR, cut", "Net-Trim, non-zeros"),
            ("both cut, indices counted", "DDLR, cut", "Net-Trim, with indices"),
            ("both cut and refitted, non-zeros counted alone", "DDLR, cut, refit", "Net-Trim, cut, refit, non-zeros"),
            ("both cut and refitted, indices counted", "DDLR, cut, refit", "Net-Trim, cut, refit, with indices"),
        )
    ]  # fmt: skip
    tuned = f"fine-tuned for {finetuning.STEPS} steps at the best of {len(finetuning.RATES)} rates, or not at all where none helps"
    drawn = f"{ALL}; {given}; one draw of ranks a run and size"
    fourth = [
        Claim("DDLR", "control: chosen ranks ahead of random ranks, both in our factors, no program", drawn, "ahead", "-", ahead_of_random("Fisher-weighted"), RERUN),
        Claim("DDLR", "control: cut and refitted, ahead of random ranks in our factors", f"{drawn}; so factors, refit and the choice of epsilon differ too", "ahead", "-", ahead_of_random("DDLR, cut, refit"), RERUN),
        Claim("DDLR", "control: cut, refitted and fine-tuned, ahead of a network of equal size trained from scratch", f"{ALL}; classifier dense, 10 and 20 % of the parameters; {tuned}, from scratch with the whole recipe of the dense network", "ahead", "-", ahead_of_scratch, RERUN),
    ]  # fmt: skip
    return (*first, *second, *own, *third, *fourth)


CLAIMS = _claims()
