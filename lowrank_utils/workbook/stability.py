"""How far results can be trusted: the order of methods over calibration draws, and predicted against measured rises of the loss."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure
from scipy.stats import kendalltau

from lowrank_utils.workbook import plots

METHOD = ("chooser", "factors", "stored_as")


def kendall_tau(
    rows: pd.DataFrame, by: Sequence[str] = ("dataset", "network", "budget"), value: str = "accuracy"
) -> pd.DataFrame:
    """Return how alike draws of calibration images order the methods: one row a group of `by`, with tau_mean, tau_least, draws, methods.

    Kendall's tau-b between the accuracies of all methods in two draws, for each pair of draws: 1 for one order, 0 for no
    relation, -1 for the reverse. Methods that lack a draw are left out and counted in the column left_out.

    Parameters: `rows` with the columns `by`, those of `METHOD`, draw and `value`, nothing trained after the cut.
    Raises ValueError where two rows claim one method and draw.

    >>> each = {"dataset": "mnist", "network": "mlp", "budget": 0.5, "factors": "svd", "stored_as": "low rank"}
    >>> seen = [(0, "a", 0.9), (0, "b", 0.8), (0, "c", 0.7), (1, "a", 0.9), (1, "b", 0.6), (1, "c", 0.7)]
    >>> rows = pd.DataFrame([each | {"draw": d, "chooser": c, "accuracy": a} for d, c, a in seen])
    >>> kendall_tau(rows)[["tau_mean", "draws", "methods"]].round(3).to_dict("records")
    [{'tau_mean': 0.333, 'draws': 2, 'methods': 3}]
    """
    rows = rows[rows[value].notna()]
    claimed = rows.duplicated([*by, *METHOD, "draw"])
    if claimed.any():
        twice = rows[claimed].iloc[0]
        raise ValueError(f"two rows claim {twice['chooser']!r} in {twice['factors']} factors, draw {twice['draw']}")
    found = []
    for key, part in rows.groupby(list(by), sort=False):
        table = part.pivot(columns="draw", index=list(METHOD), values=value)
        whole = table.dropna()
        pairs = itertools.combinations(whole.columns, 2) if len(whole) > 1 else ()
        taus = [_tau(whole[a], whole[b]) for a, b in pairs]
        told = {"tau_mean": np.mean(taus) if taus else np.nan, "tau_least": min(taus, default=np.nan)}
        counts = {"draws": table.shape[1], "methods": len(whole), "left_out": len(table) - len(whole)}
        found.append(dict(zip(by, key)) | told | counts)
    return pd.DataFrame(found)


def _tau(one, other) -> float:
    found: Any = kendalltau(one, other)  # the stubs do not know its fields
    return float(found.statistic)


def predicted_against_measured(rows: pd.DataFrame) -> Figure:
    """Return the rise of the loss that the search predicted for each plan against the one measured, in nats on log axes.

    `rows` with columns dataset, network, chooser, factors, predicted_rise and rise (`lab.columns`): a panel for each network, a
    colour for each method. Rises of zero and below, and rows without a prediction, cannot be drawn, and are counted in the title.
    Raises ValueError where no row can be drawn.
    """
    usable = rows[(rows["predicted_rise"] > 0) & (rows["rise"] > 0)]
    if not len(usable):
        raise ValueError("no row has a predicted and a measured rise of the loss above zero")
    cases = list(usable[["dataset", "network"]].drop_duplicates().itertuples(index=False, name=None))
    figure, axes = plots.canvas(len(cases), width=7.0, height=4.0)
    methods = list(dict.fromkeys(zip(usable["chooser"], usable["factors"])))
    palette = dict(zip(methods, itertools.cycle(sns.color_palette("colorblind"))))
    markers = dict(zip(methods, itertools.cycle("osD^vPX*")))
    for axis, (dataset, network) in zip(axes, cases):
        mine = usable[(usable["dataset"] == dataset) & (usable["network"] == network)]
        for method, part in mine.groupby(["chooser", "factors"], sort=False):
            style = {"color": palette[method], "marker": markers[method], "linestyle": "none", "alpha": 0.8}
            axis.plot(part["predicted_rise"], part["rise"], label=", ".join(method), **style)
        low = float(np.nanmin([mine["predicted_rise"].min(), mine["rise"].min()])) / 1.5
        high = float(np.nanmax([mine["predicted_rise"].max(), mine["rise"].max()])) * 1.5
        axis.plot([low, high], [low, high], color="black", linewidth=1, label="equal")
        drawn = rows[(rows["dataset"] == dataset) & (rows["network"] == network) & rows["predicted_rise"].notna()]
        missing = len(drawn) - len(mine)
        left = f" ({missing} not drawn)" if missing else ""
        axis.set(xscale="log", yscale="log", title=f"{network} on {dataset}{left}")
        axis.set_xlabel("predicted rise of the loss (nats)")
    axes[0].set_ylabel("measured rise, test images (nats)")
    axes[-1].legend(**plots.BESIDE)
    return figure


def prediction_in_words(rows: pd.DataFrame) -> str:
    """Return one sentence on how a predicted rise goes with the measured one: their order (Kendall's tau), and the factor between them."""
    usable = rows[(rows["predicted_rise"] > 0) & (rows["rise"] > 0)]
    tau = _tau(usable["predicted_rise"], usable["rise"])
    factor = (usable["rise"] / usable["predicted_rise"]).median()
    return (
        f"Over {len(usable)} networks, the predicted rise of the loss has a Kendall's tau of {tau:.2f} with the one measured on test "
        f"images, whose median is {factor:.1f} times the prediction."
    )
