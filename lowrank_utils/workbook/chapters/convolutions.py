"""Chapter 02b, convolutions: three unfoldings and five kinds of factors."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Sequence
from typing import Any

import pandas as pd
import seaborn as sns
import torch
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter
from torch import nn

from lowrank_utils import checks
from lowrank_utils.factors import replace, svd
from lowrank_utils.lab import columns as result_columns
from lowrank_utils.lab import score
from lowrank_utils.lab.data import Dataset
from lowrank_utils.network import unfold
from lowrank_utils.network.hooks import hooked
from lowrank_utils.network.modules import evaluating
from lowrank_utils.network.profile import Profile
from lowrank_utils.ranks import rules
from lowrank_utils.workbook.laboratory import laboratory
from lowrank_utils.workbook.plots import canvas
from lowrank_utils.workbook.tables import at_sizes, markdown, mean_and_spread, mean_in_words

NOTEBOOK = "02b_convolutions"
CAPTIONS = {  # of its tables
    "Convolutions: accuracy with 75 / 50 / 35 / 25 % of the MACs": "Spatial scheme, first and last layer dense, one run each. The public ResNets were trained on all training images, calibration images among them.",
}
UNMET = {  # rules of fair comparison that tables do not keep, and why; see `audit`
    "*": {
        2: "Here ranks by energy are a way to compare factors at one size. Energy at its own threshold is judged in notebook 02.",
        3: "Not run yet: training from scratch (a ResNet-20 takes hours on two cores), random ranks, batch norm recalibrated, fine-tuning.",
        4: "One run of each network: the ResNets are public weights, of which there is one training.",
        5: "Not measured yet: corrupted images, memory. Times stand in *Side by side*.",
        6: "One draw; notebook 05 has three draws of the same networks.",
    },
}
FIGURE_CAPTION = "First and last layer dense. Whole lines: ranks by energy; dashed: one fixed share."
CHOOSERS = ("fixed", "energy")
KINDS = (*svd.METHODS, *replace.SWEEPS)


def experiment(
    images: Dataset,
    model: nn.Module,
    *,
    shares: Sequence[float] = (0.5, 0.25),
    methods: Sequence[str] = KINDS,
    scheme: str = "spatial",
    calibration_images: int = 500,
    **about,
) -> pd.DataFrame:
    """Return rows of the dense network and of each kind of factors, with ranks by one fixed share and by energy, at each size.

    Parameters
    ----------
    images, model : a data set and a network with convolutions that was trained on it; first and last layer stay dense.
    shares : shares of the MACs, each in (0, 1].
    methods : kinds of factors, of `KINDS`.
    scheme : how convolutions are unfolded: spatial, channel or input.
    calibration_images : training images that factors see, all but the plain ones.
    about : columns of every row: dataset, network, seed.

    Raises ValueError for a share outside (0, 1], an unknown kind of factors, and as `lowrank_utils.profile` does.
    """
    for share in shares:
        checks.check_share(share=share)
    unknown = [method for method in methods if method not in KINDS]
    if unknown:
        raise ValueError(f"unknown factors {unknown[0]!r}; known: {', '.join(KINDS)}")
    lab = laboratory(images, model, calibration_images=calibration_images, notebook=NOTEBOOK, scheme=scheme, **about)
    first, *_, last = [layer.name for layer in lab.profile]
    read = lab.profile.but(dense=(first, last), scheme=scheme)
    free = {layer.name: layer.scheme for layer in read if not layer.reason}
    bases = {method: replace.decompose_layers(read, free, method) for method in methods if method in svd.METHODS}
    rows = [lab.dense_row()]
    about = {"scope": "inner layers", "stored_as": "low rank", "calibration_images": calibration_images}
    for share in shares:
        for chooser in CHOOSERS:
            plan = rules.plan_at_size(read, share, rule=chooser)
            more = about | {"chooser": chooser, "budget_kind": "macs", "budget": share, "plan": json.dumps(plan)}
            for method in methods:
                began = time.perf_counter()
                net = replace.apply_plan(read, plan, factors=bases.get(method, method))
                rows.append(lab.row(net, factors=method, seconds_to_find=time.perf_counter() - began, **more))
    return result_columns.table(rows)


# ---- the closer look -------------------------------------------------------------------------------------------------


def work(read: Profile) -> pd.DataFrame:
    """Return where the work of a network is: one row a layer, with the shape of its weights, parameters, MACs and their share."""
    table = pd.DataFrame(
        {
            "layer": layer.name,
            "weights": "x".join(map(str, read.model.get_parameter(f"{layer.name}.weight").shape)),
            "parameters": layer.parameters,
            "MACs": layer.macs,
        }
        for layer in read
    )
    return table.assign(**{"share of MACs": (table["MACs"] / table["MACs"].sum()).round(3)})


def error_by_scheme(read: Profile, name: str, inputs: torch.Tensor) -> pd.DataFrame:
    """Return what each unfolding of a convolution loses at half its break-even rank (of MACs), one row a scheme.

    Columns svd and data-aware: ||y_r - y|| / ||y - mean y|| over the outputs y of layer `name`, whose mean is taken a channel,
    while the network sees `inputs` (N first); data-aware factors see the calibration images of the profile.
    """
    layer: Any = read.model.get_submodule(name)
    moments, seen = read.moments_of([name])[name], []

    def keep(module, args, kwargs):
        seen.append(args[0])

    with evaluating(read.model), torch.no_grad(), hooked(read.model, {name: keep}, before=True):
        read.model(inputs.to(layer.weight.device))
    with torch.no_grad():
        x, y = seen[0], layer(seen[0])
        spread = (y - y.mean((0, 2, 3), keepdim=True)).norm()
        rows = []
        for scheme in unfold.schemes_of(layer):
            own = read.but(scheme={name: scheme})[name]
            rank = own.break_even("macs") // 2
            row = {"scheme": scheme, "full rank": own.full_rank, "break-even (parameters)": own.break_even()}
            row |= {"break-even (MACs)": own.break_even("macs"), "rank": rank}
            for method in svd.METHODS:
                pair = svd.decompose_layer(layer, method, moments, scheme, True).layers(rank)
                row[method] = float((pair(x) - y).norm() / spread)
            rows.append(row)
    return pd.DataFrame(rows)


def times_faster(read: Profile, plans: Iterable[dict], factors: str, repeats: int = 15) -> pd.DataFrame:
    """Return how many times faster the networks of some plans are than the dense one, on paper and measured, one row a plan.

    Columns: share of the MACs kept; on paper, its inverse; the median of `repeats` latency ratios for 1 and for 64 inputs,
    on one thread.
    """
    shape = read.input_shape or ()
    rows, dense = [], score.macs(read.model, shape)
    for plan in plans:
        net = replace.apply_plan(read, plan, factors=factors)
        macs = score.macs(net, shape)
        row = {"MACs kept": macs / dense, "on paper": dense / macs}
        for batch in (1, 64):
            row[f"batch {batch}"] = score.latency_ratio(net, read.model, shape, batch, repeats=repeats)[0]
        rows.append(row)
    return pd.DataFrame(rows)


# ---- its figure and table --------------------------------------------------------------------------------------------


def by_work(table: pd.DataFrame) -> Figure:
    """Return accuracy against the share of MACs kept, one panel for each network, one line for each kind of factors.

    `table`: result rows with columns dataset, network, seed, chooser, factors, macs_kept, accuracy; rows of the chooser "dense" give the
    dotted line. Lines of ranks by energy are whole, others dashed; bands run from the lowest to the highest seed.
    """
    cases = list(table[["dataset", "network"]].drop_duplicates().itertuples(index=False, name=None))
    columns = min(3, len(cases))
    figure, axes = canvas(columns, -(-len(cases) // columns), width=4.6)
    kinds: list[str] = list(KINDS)
    colours = dict(zip(kinds, sns.color_palette("colorblind")))
    markers = dict(zip(kinds, "osD^v"))
    for axis, (dataset, network) in zip(axes, cases):
        mine = table[(table["dataset"] == dataset) & (table["network"] == network)]
        dense = mine.loc[mine["chooser"] == "dense", "accuracy"].mean()
        axis.axhline(dense, color="black", linestyle=":", label="dense")
        for kind in [k for k in kinds if k in set(mine["factors"])]:
            for chooser in [c for c in ("energy", "fixed") if c in set(mine["chooser"])]:
                line = mine[(mine["factors"] == kind) & (mine["chooser"] == chooser)].groupby("budget", sort=False)
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


def tables(table: pd.DataFrame) -> dict[str, str]:
    """Return {heading: Markdown table} of the published rows, as the gallery shows them."""
    table = table.assign(accuracy=100 * table["accuracy"])
    kinds, rows = list(KINDS), []
    for key, part in table.groupby(["dataset", "network"]):
        dense = mean_and_spread(part.loc[part["chooser"] == "dense", "accuracy"])
        for chooser, ranks in {"fixed": "one fixed share", "energy": "energy"}.items():
            mine = part[part["chooser"] == chooser]
            rows.append(
                [*key, dense, ranks, *(at_sizes(mine[mine["factors"] == kind], mean_in_words) for kind in kinds)]
            )
    header = ["data set", "network", "dense", "ranks", *kinds]
    return {"Convolutions: accuracy with 75 / 50 / 35 / 25 % of the MACs": markdown(header, rows)}


ONE_EACH = False  # a figure for each data set and network


def usable(table: pd.DataFrame) -> pd.Series:
    """Return which rows (a boolean Series) `figure` can draw."""
    return table["budget_kind"] == "macs"


figure = by_work
