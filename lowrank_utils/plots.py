"""The figures of the workbook, one style: colour-blind-safe, axes with units, the dense network as a line.

Every function returns a closed matplotlib Figure, which a notebook shows once when it is the last line of a cell.
"""

import itertools

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.ticker import FixedLocator, LogLocator, NullLocator, PercentFormatter

# One colour and one marker for a chooser, the same in every notebook; what rank by the same score share a colour.
_LOOKS = {
    "energy": (0, "o"),
    "entropy": (1, "s"),
    "fixed": (2, "^"),
    "evbmf": (3, "D"),
    "component energy": (0, "o"),
    "component entropy": (1, "s"),
    "component output": (4, "v"),
    "component magnitude": (5, "P"),
    "component random": (7, "X"),
    "arsvd, every layer": (2, "^"),
    "arsvd, classifier dense": (3, "D"),
    "unit entropy": (1, "s"),
    "unit entropy, one range": (8, "p"),
    "unit output": (4, "v"),
    "unit magnitude": (5, "P"),
    "unit random": (7, "X"),
    "both entropy": (8, "p"),
    "both output": (9, "*"),
    "DDLR": (5, "P"),
    "DDLR, cut": (8, "p"),
    "DDLR, cut, refit": (3, "D"),
    "Net-Trim, non-zeros": (7, "X"),
    "Net-Trim, with indices": (6, "*"),
    "Net-Trim, cut, refit, non-zeros": (2, "o"),
    "Net-Trim, cut, refit, with indices": (9, "D"),
    "ARSVD": (2, "^"),
    "data-aware": (0, "o"),
    "ReLU-aware": (4, "v"),
    "Fisher-weighted": (8, "p"),
    "units first": (1, "s"),
    "ENC-Map": (1, "s"),
    "ENC-Model": (9, "p"),
    "ENC-Inf": (4, "v"),
    "exact": (3, "D"),
    "exact, Fisher": (0, "o"),
}
CHOOSERS = tuple(_LOOKS)
_BESIDE = {"loc": "upper left", "bbox_to_anchor": (1.01, 1), "fontsize": "small"}  # a legend right of its panel
_COLOURS = {name: sns.color_palette("colorblind")[colour] for name, (colour, _) in _LOOKS.items()}
_MARKERS = {name: marker for name, (_, marker) in _LOOKS.items()}
_STYLE = {"axes.grid": True, "grid.alpha": 0.4, "figure.dpi": 100, "savefig.dpi": 100, "savefig.bbox": "tight"}


def _colour(chooser):
    return _COLOURS.get(chooser, "dimgray")  # of one that is not ours


def _in_order(choosers):
    # ours in our order, then any others; the dense network is a line of its own
    there = set(choosers) - {"dense"}
    return [c for c in CHOOSERS if c in there] + sorted(there - set(CHOOSERS))


def _canvas(columns=1, rows=1, width=4.6, height=3.4, **options):
    with sns.axes_style("whitegrid", rc=_STYLE), sns.plotting_context("notebook", font_scale=0.85):
        figure, axes = plt.subplots(
            rows, columns, figsize=(width * columns, height * rows), layout="constrained", squeeze=False, **options
        )
    plt.close(figure)
    return figure, axes.ravel()


def image_grid(images, labels, classes, columns=10):
    """Return a grid of uint8 `images` (n x H x W or n x H x W x 3) under their class names."""
    rows = int(np.ceil(len(images) / columns))
    with sns.axes_style("white"):
        figure, axes = plt.subplots(rows, columns, figsize=(1.1 * columns, 1.35 * rows), layout="constrained", squeeze=False)
    plt.close(figure)
    for axis in axes.ravel():
        axis.set_axis_off()
    for axis, image, label in zip(axes.ravel(), images, labels):
        axis.imshow(image, cmap="gray_r" if image.ndim == 2 else None)
        axis.set_title(classes[int(label)], fontsize=8)
    return figure


def history(table):
    """Return loss and valid accuracy against epochs for the DataFrame of `training.fit`."""
    figure, (left, right) = _canvas(2)
    for column, name, dash in (("train_loss", "train", "--"), ("valid_loss", "valid", "-")):
        left.plot(table["epoch"], table[column], dash, marker=".", label=name)
    left.set(xlabel="epoch", ylabel="cross-entropy (nats)", title="Loss")
    left.legend()
    right.plot(table["epoch"], table["valid_accuracy"], marker=".", label="accuracy")
    right.plot(table["epoch"], table["valid_f1"], "--", marker=".", label="macro F1")
    right.set(xlabel="epoch", ylabel="share of valid images", title="Valid images")
    right.yaxis.set_major_formatter(PercentFormatter(1))
    right.legend()
    return figure


def confusion(matrix, classes):
    """Return a heat map of a confusion matrix (classes x classes, rows true, counts) as shares of each row."""
    shares = np.asarray(matrix) / np.maximum(np.asarray(matrix).sum(1, keepdims=True), 1)
    few = len(classes) <= 20
    figure, (axis,) = _canvas(width=6.2, height=5.2)
    sns.heatmap(
        100 * shares, ax=axis, cmap="rocket_r", vmin=0, vmax=100, square=True, annot=few, fmt=".0f",
        annot_kws={"size": 7}, xticklabels=classes if few else False, yticklabels=classes if few else False,
        cbar_kws={"label": "% of the true class"},
    )  # fmt: skip
    axis.set(xlabel="predicted class", ylabel="true class")
    return figure


def spectra(before, after):
    """Return singular values against their index, one panel a layer, before (dashed) and after training.

    `before` and `after`: ``{layer name: singular values}`` with the same names.
    """
    figure, axes = _canvas(len(after), width=3.6)
    for axis, name in zip(axes, after):
        index = np.arange(1, len(after[name]) + 1)
        axis.plot(index, before[name], "--", color="gray", label="random start")
        axis.plot(index, after[name], color=_COLOURS["energy"], label="trained")
        axis.set(xlabel="component", title=f"{name}: {len(index)} components")
    axes[0].set_ylabel("singular value")
    axes[0].legend()
    return figure


def rank_curves(table):
    """Return rank per layer against threshold: columns layer, rule, threshold, rank, full_rank, break_even.

    The dotted line is the break-even rank, above which the dense layer is cheaper.
    """
    layers = table["layer"].unique()
    figure, axes = _canvas(len(layers), width=3.6)
    for axis, name in zip(axes, layers):
        mine = table[table["layer"] == name]
        for rule, line in mine.groupby("rule", sort=False):
            axis.plot(line["threshold"], line["rank"], color=_COLOURS[rule], label=rule)
        axis.axhline(mine["break_even"].iloc[0], color="black", linestyle=":", label="break-even")
        axis.set(xlabel="threshold (share kept)", title=f"{name}: full rank {mine['full_rank'].iloc[0]}")
    axes[0].set_ylabel("rank")
    axes[0].legend()
    return figure


def frontier(table, metric="accuracy", baseline=None, title="test images", floor=None, panels="factors", columns=None):
    """Return `metric` against the share of parameters kept: one panel for each value of a column, one line a chooser.

    `table` has the result columns chooser, parameters_kept, target, `metric` and `panels` ("factors", "scope" ...). Rows
    of several seeds that aim at one size (column target) are drawn as their mean with a band from the lowest to the
    highest. `baseline`: the dense network's value, drawn as a line. `floor`: where the vertical axis starts; what lies
    below is cut off. `columns`: panels in a row, all by default.
    """
    names = list(table[panels].unique())
    columns = columns or len(names)
    shown = [set(table.loc[table[panels] == name, "chooser"]) for name in names]
    long = max(map(len, shown), default=0) > 4  # such a legend would cover lines, so it stands beside its panel
    figure, axes = _canvas(columns, -(-len(names) // columns), width=6.2 if long else 4.6, sharey=True, sharex="col")
    for axis, name in zip(axes, names):
        mine = table[table[panels] == name]
        for chooser in _in_order(mine["chooser"]):
            line = mine[mine["chooser"] == chooser].groupby("target", sort=False)
            points = pd.DataFrame({"kept": line["parameters_kept"].mean()} | {w: line[metric].agg(w) for w in ("mean", "min", "max")})
            points = points.sort_values("kept")
            axis.plot(points["kept"], points["mean"], label=chooser, **_line(chooser, alone=len(points) == 1))
            axis.fill_between(points["kept"], points["min"], points["max"], color=_colour(chooser), alpha=0.2)
        if baseline is not None and baseline == baseline:
            axis.axhline(baseline, color="black", linestyle=":", label="dense")
        axis.set(xscale="log", xlabel="parameters kept (share of dense)", title=f"{name}{' factors' * (panels == 'factors')}, {title}")
        axis.xaxis.set_major_locator(FixedLocator([0.03, 0.05, 0.1, 0.2, 0.3, 0.6, 1.0]))
        axis.xaxis.set_minor_locator(NullLocator())
        axis.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        axis.yaxis.set_major_formatter(PercentFormatter(1))
        if floor is not None and floor == floor:
            axis.set_ylim(bottom=floor)
    for axis in axes[::columns]:
        axis.set_ylabel({"accuracy": "accuracy", "f1": "macro F1"}.get(metric, metric))
    for axis in axes[:-columns]:
        axis.set_xlabel("")
    beside = _BESIDE if long else {}
    for axis, mine in zip(axes, shown):
        if axis is axes[0] or mine != shown[0]:
            axis.legend(**beside)
    return figure


FORMS = {"svd": "components, plain factors", "data-aware": "components, data-aware factors"}
FORMS |= {"folded": "units, mean folded", "refitted": "units, next layer refitted"}


def rules(table, title="test images"):
    """Return accuracy against parameters kept for the rank rules of notebook 02, a panel for each scope and kind of factors.

    `table`: result rows as for `frontier` with column scope; rows of the chooser "dense" give the dotted line.
    """
    titles = {"every layer": "every layer cut", "hidden layers": "classifier left dense"}
    drawn = table[table["target"].str.match("kept|own") & table["scope"].isin(titles)]
    baseline = table.loc[table["chooser"] == "dense", "accuracy"].mean()
    several = drawn["factors"].nunique() > 1
    panel = drawn["scope"].map(titles) + (", " + drawn["factors"] if several else "")
    drawn = drawn.assign(panel=panel).sort_values(["factors", "scope"], ascending=[False, True], kind="stable")
    return frontier(drawn, "accuracy", baseline, title, panels="panel", columns=drawn["scope"].nunique())


def rankings(table, title="test images"):
    """Return accuracy against parameters kept for what notebook 03 prunes: components above, units below.

    `table`: result rows as for `frontier`; rows of the chooser "dense" give the dotted line. What loses more than 40 points is cut off.
    """
    drawn = table[table["target"].str.match(r"kept \S+$") & table["factors"].isin(FORMS)]
    panel = pd.Categorical(drawn["factors"].map(FORMS), list(FORMS.values()))
    drawn = drawn.assign(panel=panel).sort_values("panel", kind="stable")
    baseline = table.loc[table["chooser"] == "dense", "accuracy"].mean()
    return frontier(drawn, "accuracy", baseline, title, max(baseline - 0.4, 0), panels="panel", columns=2)


def in_every_seed(table, seeds):
    """Return the rows whose chooser and target stand under all `seeds` of them: others would compare other networks."""
    return table[table.groupby(["chooser", "target"])["seed"].transform("nunique") == seeds]


def programs(table, title="test images"):
    """Return accuracy against parameters kept for notebook 04: what a convex program gives, and what takes its size as given.

    `table`: result rows as for `frontier`, with column seed; rows of the chooser "dense" give the dotted line. What loses more than 15 points is cut off.
    """
    drawn = table[table["target"].str.match("kept|epsilon")]
    drawn = in_every_seed(drawn, table["seed"].nunique())
    convex = drawn["chooser"].str.startswith(("DDLR", "Net-Trim"))
    drawn = drawn.assign(panel=np.where(convex, "from a convex program", "at a given size"))
    baseline = table.loc[table["chooser"] == "dense", "accuracy"].mean()
    return frontier(drawn, "accuracy", baseline, title, max(baseline - 0.15, 0), panels="panel")


def described(figure):
    """Return a figure in words: what its panels show against what, and which lines or points they hold.

    >>> figure = gap(pd.DataFrame({"iteration": [1, 2], "objective": [3.0, 2.5], "bound": [1.0, 2.0]}), "fc1")
    >>> described(figure)
    'fc1: nuclear norm against iteration; what is not yet proved: relative gap against iteration. Lines: feasible weights; lower bound.'
    """
    panels, lines = [], []
    for axis in [a for a in figure.axes if a.axison]:
        what = " against ".join(t for t in (axis.get_ylabel(), axis.get_xlabel()) if t)
        panels.append(": ".join(t for t in (axis.get_title(), what) if t))
        lines += [t for t in axis.get_legend_handles_labels()[1] if not t.startswith("_")]
    said = "; ".join(p for p in dict.fromkeys([figure.get_suptitle(), *panels]) if p)
    return f"{said}. Lines: {'; '.join(dict.fromkeys(lines))}." if lines else f"{said}."


def histograms(values, bins):
    """Return the histogram of each entry of `values`, {title: 1-D numbers}, in `bins` bins between its own bounds."""
    figure, axes = _canvas(len(values), width=2.9, height=2.6)
    for axis, (title, numbers) in zip(axes, values.items()):
        axis.hist(np.asarray(numbers), bins=bins, color=_COLOURS["energy"])
        axis.set(xlabel="activation", yscale="log", ylim=(0.7, 1.5 * len(numbers)))
        axis.set_title(title, fontsize="small")
    axes[0].set_ylabel("images")
    return figure


def ranking(table, stays):
    """Return the score of every component, one panel a layer: the columns of `pruning.rank_components`.

    The grey dashed line is the score itself, the other one what counts once a larger component must not go before a
    smaller one. `stays`: {layer: rank}, drawn as full dots; a layer that is absent stays whole.
    """
    names = list(dict.fromkeys(table.sort_values("component", kind="stable")["layer"]))
    figure, axes = _canvas(len(names), width=3.6, sharey=True)
    for axis, name in zip(axes, names):
        mine = table[table["layer"] == name].sort_values("component")
        axis.plot(mine["component"], mine["score"], "--", color="gray", label="score")
        rank = stays.get(name, len(mine))
        for part, style, label in ((mine[:rank], {}, "stays"), (mine[rank:], {"mfc": "white"}, "dropped")):
            axis.plot(part["component"], part["key"], "o", color=_COLOURS["entropy"], ms=3.5, mew=0.8, label=label, **style)
        axis.set(xlabel="component", yscale="log", title=f"{name}: {min(rank, len(mine))} of {len(mine)} stay")
    axes[0].set_ylabel("score (nats)")
    axes[-1].legend()
    return figure


def norm_ball():
    """Return the unit ball of the nuclear norm among symmetric 2 x 2 matrices [[a, b], [b, c]]; matrices of rank 1 in colour.

    Beside it the cut b = 0, the diagonal matrices, where the nuclear norm is |a| + |c|: two discs around diag(3, 4), with the smallest ball that
    reaches each. The near disc (radius 1) is touched inside an edge, the far one (radius 4.5) at a corner, where the rank is 1.
    """
    angle = np.linspace(0, 2 * np.pi, 97)
    # v v^T for unit v: a circle, and its mirror image; each ruling joins v v^T to -w w^T with w at right angles
    rim = np.stack([np.cos(angle / 2) ** 2, np.cos(angle / 2) * np.sin(angle / 2), np.sin(angle / 2) ** 2])
    other = -np.stack([rim[2], -rim[1], rim[0]])
    share = np.linspace(0, 1, 9)[:, None, None]
    surface = share * rim + (1 - share) * other
    figure = plt.figure(figsize=(9.2, 4.4), layout="constrained")
    plt.close(figure)
    solid = figure.add_subplot(1, 2, 1, projection="3d")
    solid.plot_surface(*surface.transpose(1, 0, 2), color=_COLOURS["energy"], alpha=0.35, linewidth=0)
    for circle in (rim, other):
        solid.plot(*circle, color=_COLOURS["evbmf"], linewidth=3)
    solid.set(xlabel="a", ylabel="b", zlabel="c", title="[[a, b], [b, c]], nuclear norm at most 1:\nrank 1 lies on the rims")
    solid.zaxis.labelpad = 8
    solid.view_init(18, -60)
    flat = figure.add_subplot(1, 2, 2)
    flat.set(xlabel="a", ylabel="c", title="b = 0: diag(a, c), allowed around diag(3, 4)", aspect="equal", xlim=(-2.2, 9.4), ylim=(-1.4, 10.6))
    for epsilon, colour, dash in ((0.2, "entropy", "--"), (0.9, "fixed", "-")):
        radius = 5 * epsilon
        shrunk = radius / np.sqrt(2)
        touch = (3 - shrunk, 4 - shrunk) if shrunk < 3 else (0.0, 4 - np.sqrt(radius**2 - 9))
        size, rank = sum(touch), 2 if shrunk < 3 else 1
        allowed = plt.Circle((3, 4), radius, facecolor=(*_COLOURS[colour], 0.15), edgecolor=_COLOURS[colour], label=f"epsilon {epsilon}: allowed")
        flat.add_patch(allowed)
        corners = np.array([[size, 0, -size, 0, size], [0, size, 0, -size, 0]])
        flat.plot(*corners, dash, color=_COLOURS[colour], label=f"ball of norm {size:.2f}")
        flat.plot(*touch, "*", color=_COLOURS[colour], mec="black", ms=13, zorder=5, label=f"first touch: rank {rank}")
    flat.plot(3, 4, "k+", markersize=10)
    flat.legend(loc="upper left", fontsize="small", ncols=2)
    flat.grid(alpha=0.4)
    return figure


def gap(history, title=""):
    """Return certified objective and bound against iterations, and the relative gap on a logarithmic axis."""
    figure, (left, right) = _canvas(2)
    left.plot(history["iteration"], history["objective"], marker=".", color=_COLOURS["energy"], label="feasible weights")
    left.plot(history["iteration"], history["bound"], "--", marker=".", color=_COLOURS["evbmf"], label="lower bound")
    left.set(xlabel="iteration", ylabel="nuclear norm", title=title, ylim=(0, 1.6 * history["objective"].iloc[-1]))
    left.legend()
    right.plot(history["iteration"], 1 - history["bound"] / history["objective"], marker=".", color=_COLOURS["energy"])
    right.set(xlabel="iteration", ylabel="relative gap", yscale="log", title="what is not yet proved")
    return figure


def scatter(table, y, xs, labels):
    """Return column `y` against each column of `xs`, one panel each; `labels` maps columns to axis labels."""
    figure, axes = _canvas(len(xs), width=3.8, sharey=True)
    for axis, x in zip(axes, xs):
        axis.plot(table[x], table[y], "o", color=_COLOURS["energy"], markersize=4, alpha=0.7)
        axis.set(xlabel=labels[x])
    axes[0].set_ylabel(labels[y])
    return figure


def _line(chooser, alone):
    # energy and entropy often coincide: the one is drawn wide, the other dashed on top of it
    style = {"color": _colour(chooser), "marker": _MARKERS.get(chooser, "."), "markersize": 5}
    if chooser.endswith("energy"):
        style |= {"linewidth": 3.5, "markersize": 8, "alpha": 0.7}
    return style | {"linestyle": "none" if alone else {"entropy": "--", "component entropy": "--"}.get(chooser, "-")}


def by_work(table):
    """Return accuracy against the share of MACs kept, one panel for each network, one line for each kind of factors.

    `table`: result rows with columns dataset, network, seed, chooser, factors, macs_kept, accuracy; rows of the chooser "dense" give the
    dotted line. Lines of ranks by energy are whole, others dashed; bands run from the lowest to the highest seed.
    """
    cases = list(table[["dataset", "network"]].drop_duplicates().itertuples(index=False, name=None))
    columns = min(3, len(cases))
    figure, axes = _canvas(columns, -(-len(cases) // columns), width=4.6)
    kinds = ["svd", "data-aware", "sequential", "relu-aware", "fisher-weighted"]
    colours = dict(zip(kinds, sns.color_palette("colorblind")))
    markers = dict(zip(kinds, "osD^v"))
    for axis, (dataset, network) in zip(axes, cases):
        mine = table[(table["dataset"] == dataset) & (table["network"] == network)]
        dense = mine.loc[mine["chooser"] == "dense", "accuracy"].mean()
        axis.axhline(dense, color="black", linestyle=":", label="dense")
        for kind in [k for k in kinds if k in set(mine["factors"])]:
            for chooser in [c for c in ("energy", "fixed") if c in set(mine["chooser"])]:
                line = mine[(mine["factors"] == kind) & (mine["chooser"] == chooser)].groupby("target", sort=False)
                kept = line["macs_kept"].mean().sort_values()
                value = line["accuracy"].agg(["mean", "min", "max"]).reindex(kept.index)
                style = {"color": colours[kind], "marker": markers[kind], "markersize": 4}
                label = kind if chooser == "energy" else None
                axis.plot(kept, value["mean"], "-" if chooser == "energy" else "--", label=label, **style)
                axis.fill_between(kept, value["min"], value["max"], color=colours[kind], alpha=0.15)
        axis.set(xlabel="MACs kept (share of dense)", title=f"{network} on {dataset}")
        axis.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        axis.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    axes[0].set_ylabel("accuracy")
    if {"energy", "fixed"} <= set(table["chooser"]):
        for name, dash in (("ranks by energy", "-"), ("one fixed share", "--")):
            axes[0].plot([], [], dash, color="gray", label=name)
    axes[0].legend(fontsize="small")
    return figure


def curves(table, least=1e-4, points=None):
    """Return one panel a layer: each column of damages against the share of the layer's own MACs kept.

    `table` has the columns layer and macs; every other one is a curve, drawn on a logarithmic axis down to `least`.
    `points`: a table of the same kind, of those curves that went through given points, which are marked.
    """
    names, kinds = list(table["layer"].unique()), [c for c in table if c not in ("layer", "macs")]
    across = min(4, len(names))
    figure, axes = _canvas(across, -(-len(names) // across), width=3.3, height=2.7, sharey=True)
    styles = [("energy", "-"), ("entropy", "--"), ("fixed", ":")]
    for axis, name in zip(axes, names):
        mine = table[table["layer"] == name].sort_values("macs")
        for kind, (chooser, dash) in zip(kinds, itertools.cycle(styles)):
            shown = mine[kind].where(mine[kind] >= least)
            axis.plot(mine["macs"], shown, dash, color=_COLOURS[chooser], linewidth=2, label=kind)
            if points is not None and kind in points:
                given = points[(points["layer"] == name) & (points[kind] >= least)]
                axis.plot(given["macs"], given[kind], "o", color=_COLOURS[chooser])
        axis.set(xlim=(0, 1.02), yscale="log")
        axis.set_title(name, fontsize="small")
        axis.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    axes[0].set_ylim(bottom=least)  # the panels share it
    for axis in axes[len(names) :]:
        axis.set_axis_off()
    for axis in axes[max(len(names) - across, 0) : len(names)]:
        axis.set_xlabel("MACs of the layer kept")
    for axis in axes[:: across]:
        axis.set_ylabel("damage")
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=len(kinds), fontsize="small")
    return figure


def choosers(table):
    """Return accuracy against the share of MACs kept: a row of panels for each network, a panel for each kind of factors, a line a chooser.

    `table`: result rows with columns dataset, network, chooser, factors, target ("macs 0.50"), macs_kept, accuracy; rows of the
    chooser "dense" give the dotted line. Lines are means over seeds and draws, bands run from the lowest to the highest.
    """
    cut = table[table["target"].str.fullmatch(r"macs \d\.\d+")]
    cases = list(cut[["dataset", "network"]].drop_duplicates().itertuples(index=False, name=None))
    kinds = list(dict.fromkeys(cut["factors"]))
    figure, axes = _canvas(len(kinds), len(cases), width=4.2, height=3.2, sharex=True)  # each its own height: what differs is small
    for axis, ((dataset, network), kind) in zip(axes, [(case, kind) for case in cases for kind in kinds]):
        mine = table[(table["dataset"] == dataset) & (table["network"] == network)]
        axis.axhline(mine.loc[mine["chooser"] == "dense", "accuracy"].mean(), color="black", linestyle=":", label="dense")
        mine = cut[(cut["dataset"] == dataset) & (cut["network"] == network) & (cut["factors"] == kind)]
        for chooser in _in_order(mine["chooser"]):
            line = mine[mine["chooser"] == chooser].groupby("target", sort=False)
            kept = line["macs_kept"].mean().sort_values()
            value = line["accuracy"].agg(["mean", "min", "max"]).reindex(kept.index)
            axis.plot(kept, value["mean"], label=chooser, **_line(chooser, alone=len(kept) == 1))
            axis.fill_between(kept, value["min"], value["max"], color=_colour(chooser), alpha=0.15)
        axis.set_title(f"{network} on {dataset}, {kind} factors", fontsize="small")
        axis.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        axis.yaxis.set_major_formatter(PercentFormatter(1))
    for axis in axes[-len(kinds) :]:
        axis.set_xlabel("MACs kept (share of dense)")
    for axis in axes[:: len(kinds)]:
        axis.set_ylabel("accuracy")
    axes[0].legend(fontsize="small")
    return figure


_WAYS = {"dense": (7, "*"), "low rank": (0, "o"), "units": (1, "s"), "zeros": (2, "X"), "8 bit": (3, "D")}


def trade_off(table, floor=0.1):
    """Return accuracy against bytes on disk and against the time of a batch of 64, one row of panels for each network.

    `table`: result rows with columns dataset, network, chooser, factors, target, way ("dense", "low rank", "units", "zeros",
    "8 bit"), accuracy, bytes, faster_64 (how many times faster than the dense network in torch); of several seeds (column
    seed) the means are drawn. The steps join what nothing smaller (or faster) beats; what loses more than `floor` is below
    the panel and is counted in its corner. Where the column tuned_accuracy has a value, a hollow marker stands at it; what
    runs in onnxruntime (column factors) has a black ring.
    """
    if "seed" in table and table["seed"].nunique() > 1:
        same = ["dataset", "network", "way", "chooser", "factors", "target"]
        values = [name for name in ("accuracy", "bytes", "faster_64", "tuned_accuracy") if name in table]
        table = table.groupby(same, sort=False, dropna=False)[values].mean().reset_index()
    cases = list(table[["dataset", "network"]].drop_duplicates().itertuples(index=False, name=None))
    table = table.assign(kilobytes=table["bytes"] / 1000, time=1 / table["faster_64"])
    costs = {"kilobytes": "kB on disk", "time": "time for 64 inputs (dense network in torch: 1)"}
    figure, axes = _canvas(2, len(cases), width=4.8, height=3.4, sharey="row")
    colours = sns.color_palette("colorblind")
    for place, axis in enumerate(axes):
        (dataset, network), (column, label) = cases[place // 2], list(costs.items())[place % 2]
        case = table[(table["dataset"] == dataset) & (table["network"] == network)]
        mine = case[case[column].notna()]
        dense = mine.loc[mine["way"] == "dense", "accuracy"].max()
        axis.axhline(dense, color="black", linestyle=":", linewidth=1)
        for way in [w for w in _WAYS if w in set(mine["way"])]:
            part, (colour, marker) = mine[mine["way"] == way], _WAYS[way]
            style = {"linestyle": "none", "color": colours[colour], "marker": marker, "markersize": 10 if way == "dense" else 6}
            axis.plot(part[column], part["accuracy"], label=way, **style, alpha=0.8)
            if "tuned_accuracy" in part:
                axis.plot(part[column], part["tuned_accuracy"], markerfacecolor="none", **style)
        if "factors" in mine:
            part = mine[mine["factors"].astype(str).str.contains("onnxruntime")]
            style = {"linestyle": "none", "marker": "o", "color": "black", "markersize": 12, "markerfacecolor": "none"}
            axis.plot(part[column], part["accuracy"], label="in onnxruntime", **style)
        front = pd.DataFrame({"cost": mine[column], "best": mine["accuracy"]})
        front = front.sort_values(["cost", "best"], ascending=[True, False])
        front = front[front["best"] > front["best"].cummax().shift(fill_value=-np.inf)]
        axis.step(front["cost"], front["best"], where="post", color="gray", linewidth=1, zorder=0)
        low = dense - floor
        below = int((mine["accuracy"] < low).sum())
        shown = case[[name for name in ("accuracy", "tuned_accuracy") if name in case]].stack()
        bottom = max(low, shown[shown >= low].min() - 0.1 * floor)
        if below:
            axis.annotate(f"{below} lower down", (0.98, 0.03), xycoords="axes fraction", ha="right", fontsize="small")
        axis.set(xscale="log", xlabel=label, title=f"{network} on {dataset}", ylim=(bottom, min(1.0, mine["accuracy"].max() + 0.1 * floor)))
        axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.xaxis.set_minor_locator(NullLocator())
        axis.xaxis.set_major_formatter("{x:g}")
        axis.yaxis.set_major_formatter(PercentFormatter(1))
    for axis in axes[::2]:
        axis.set_ylabel("accuracy")
    title = "hollow: fine-tuned" if "tuned_accuracy" in table else None
    axes[1].legend(**_BESIDE, title=title)
    return figure


def explorer(card, rank, shares, points):
    """Return three panels: one layer's spectrum with what a rank keeps, the work that each layer keeps, accuracy against size.

    Parameters: `card`, a `layers.Card` with singular values; `rank` that stays of it (None: dense); `shares`, DataFrame of layers x
    choosers with the share of each layer's MACs that stays; `points`, {label: (share of MACs, accuracy)}, "dense" among them.
    """
    figure, (left, middle, right) = _canvas(3, width=4.2)
    values = card.singular_values
    index, stays = np.arange(1, len(values) + 1), len(values) if rank is None else rank
    left.bar(index[:stays], values[:stays], width=1.0, color=_COLOURS["energy"], label="stays")
    left.bar(index[stays:], values[stays:], width=1.0, color="lightgray", label="goes")
    left.set(xlabel="component", ylabel="singular value", title=f"{card.name}: {'dense' if rank is None else f'rank {rank}'} of {len(values)}")
    left.legend(fontsize="small")
    colours = dict(zip(shares.columns, sns.color_palette("colorblind")))
    shares.plot.bar(ax=middle, color=colours, width=0.8, legend=len(shares.columns) > 1)
    middle.set(xlabel="", ylabel="MACs of the layer kept", title="which layers pay", ylim=(0, 1.3), yticks=np.linspace(0, 1, 6))
    for label, (kept, accuracy) in points.items():
        style = {"color": colours.get(label, "black"), "marker": "*" if label == "dense" else "o"}
        right.plot(kept, accuracy, linestyle="none", markersize=9, label=label, **style)
    reached = [accuracy for _, accuracy in points.values()]
    right.set(xlabel="MACs kept (share of dense)", ylabel="accuracy", title="what it costs", xlim=(0, 1.05), ylim=(max(0, min(reached) - 0.05), max(reached) + 0.02))
    for axis in (right.xaxis, middle.yaxis):
        axis.set_major_formatter(PercentFormatter(1, decimals=0))
    right.yaxis.set_major_formatter(PercentFormatter(1))
    right.legend(fontsize="small")
    return figure
