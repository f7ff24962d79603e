"""Chapter 07, a language model: which ranks and which factors a transformer asks for, against what is published."""

from __future__ import annotations

import json
import time
import weakref
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator, PercentFormatter
from torch import nn

from lowrank_utils.factors import replace
from lowrank_utils.lab import columns, perplexity, score
from lowrank_utils.lab.language import SENTENCES, Language
from lowrank_utils.lab.text import Windows, windows
from lowrank_utils.network import modules
from lowrank_utils.network.profile import Plan, Profile, plan_cost, versions
from lowrank_utils.ranks import components, enc, published, rules, search
from lowrank_utils.workbook.plots import COLOURS, PALETTE, canvas, colour_of, name_ends
from lowrank_utils.workbook.tables import markdown

NOTEBOOK = "07_language_model"
CAPTIONS = {  # of its tables
    "Rise of the loss of a language model": "Loss on test text less that of the dense network (nats a token), where a share of the parameters of the blocks stays; the perplexity is in brackets. One draw of the calibration windows, or means over several where the rows have them.",
}
FIGURE_CAPTION = (
    "Rise of the loss on test text over the dense network's, on a logarithmic axis; the embedding is not cut."
)
CHOOSERS = ("one share", "energy", "entropy", "components", "ENC-Map", "SVD-LLM V2", "ASVD search", "exact")
FACTORS = ("svd", "asvd", "fwsvd", "data-aware", "own outputs", "sequential", "fisher-layerwise", "fisher-weighted")
MAIN = (  # pairs of chooser and factors, and what the literature calls them
    ("one share", "svd"),
    ("one share", "asvd"),
    ("one share", "fwsvd"),
    ("one share", "data-aware"),
    ("SVD-LLM V2", "data-aware"),
    ("one share", "fisher-layerwise"),
    ("exact", "data-aware"),
    ("exact", "fisher-layerwise"),
)
LESSON = tuple(pair for pair in MAIN if pair[1] != "fwsvd" and pair[0] != "SVD-LLM V2")  # what the notebook runs itself
TITLES = {
    ("one share", "svd"): "plain SVD",
    ("one share", "asvd"): "ASVD",
    ("ASVD search", "asvd"): "ASVD, its search",
    ("one share", "fwsvd"): "FWSVD",
    ("one share", "data-aware"): "SVD-LLM (whitening)",
    ("SVD-LLM V2", "data-aware"): "SVD-LLM V2",
    ("one share", "fisher-layerwise"): "our factors, one share",
    ("exact", "data-aware"): "exact ranks, whitening",
    ("exact", "fisher-layerwise"): "exact ranks, our factors",
}
LOOKS = {  # colours, which the choosers and factors have in the other notebooks too
    "plain SVD": colour_of("svd"),
    "ASVD": PALETTE[1],
    "ASVD, its search": PALETTE[1],
    "FWSVD": PALETTE[5],
    "SVD-LLM (whitening)": COLOURS["fixed"],
    "SVD-LLM V2": PALETTE[4],
    "our factors, one share": PALETTE[9],
    "exact ranks, whitening": COLOURS["exact"],
    "exact ranks, our factors": COLOURS["exact, Fisher"],
}
LEAST = 1e-3  # nats a token: where a smaller rise stands on a logarithmic axis
WORDS = {  # for factors, in the names of pairs that have no title
    "svd": "plain SVD",
    "asvd": "factors of ASVD",
    "fwsvd": "factors of FWSVD",
    "data-aware": "whitening",
    "fisher-layerwise": "our factors",
    "fisher-weighted": "our factors in sequence",
}
AIMS = {0.9: 0.1, 0.8: 0.2}  # share kept -> the most that the rise of ours should be of that of the best published one
PUBLISHED = (("one share", "svd"), ("one share", "asvd"), ("one share", "fwsvd"), ("one share", "data-aware"))
HELD = (("one share", "svd"), ("exact", "fisher-layerwise"))  # pairs whose networks the notebook looks at again
SENSITIVITY_WINDOWS = 1  # of the calibration windows, on which ASVD's search measures


_UNIFORM = {title for pair, title in TITLES.items() if pair[0] == "one share"}  # dashed lines


class Bench:
    """A language model, its calibration and test windows, and everything that pairs of chooser and factors share.

    `about` is what every row says: dataset, network, seed, draw. Matrices of the blocks share the budget, or those that
    `within` names (`Profile.within`); embedding, head and all others stay dense. Statistics, curves and spectra are computed once, when they are first needed.
    """

    def __init__(
        self,
        language: Language,
        calibration: Windows,
        test: Windows,
        *,
        within: Sequence[str] = ("*",),
        seed: int = 0,
        **about: Any,
    ) -> None:
        self.language, self.calibration, self.test = language, calibration, test
        self.about = {"notebook": NOTEBOOK, "network": language.name, "seed": seed, **about}
        # one window at a time: what autograd keeps of several, beside the statistics, would fill memory
        whole = Profile(language.model, calibration.ids, estimator="signs", draws=1, seed=seed, batch_size=1)
        wanted = set(whole.within(within))
        self.names = [name for name in blocks(whole, language.model) if name in wanted]
        self.profile = whole.but(dense=[layer.name for layer in whole if layer.name not in self.names])
        self.wants_fisher = True  # whether `collect` collects it
        self.seconds: dict[str, float] = {}
        self.plans: dict[tuple[str, float], tuple[Plan, float]] = {}
        self.held: dict[tuple[str, str, float], nn.Module] = {}
        # (versions of its tensors, loss on the test windows)
        self.known: weakref.WeakKeyDictionary[nn.Module, tuple[list[tuple[int, int]], float]] = (
            weakref.WeakKeyDictionary()
        )

    def timed(self, what: str, function: Callable[[], Any]) -> Any:
        """Return what `function` returns; its processor seconds stand in ``seconds[what]``."""
        began = time.process_time()
        found = function()
        self.seconds[what] = time.process_time() - began
        return found

    def collect(self) -> None:
        """Collect moments, and Fisher information if `wants_fisher`, unless the profile has them."""
        if not self.profile.has_statistics(self.names, self.wants_fisher):
            self.timed("statistics", self._statistics)

    def _statistics(self):
        if self.wants_fisher:
            self.profile.fisher_of(self.names)  # one pass for both
        self.profile.moments_of(self.names)

    @cached_property
    def options(self) -> list[search.Options]:
        """What each matrix may become: every rank above a tenth of break-even, and dense."""
        return search.rank_options(self.profile, ("parameters",))

    @cached_property
    def losses(self) -> dict[str, np.ndarray]:
        """Predicted rise of the loss of each option (nats a window)."""
        self.collect()
        found = self.timed("curves", lambda: search.predicted_values(self.profile, self.options, None, None)[0])
        return {name: -values for name, values in found.items()}

    @cached_property
    def sensitivities(self) -> tuple[list[search.Options], dict[str, np.ndarray]]:
        """ASVD's measurements: the loss on calibration text with one matrix alone cut to a few sizes."""
        options = published.ratio_options(self.profile, self.names, published.RATIOS, "parameters")
        some = self.calibration.ids[:SENSITIVITY_WINDOWS]

        def measure(model: nn.Module) -> float:
            with torch.inference_mode():
                logits = model(some).logits[:, :-1]
            return float(torch.nn.functional.cross_entropy(logits.flatten(0, 1), some[:, 1:].flatten()))

        self.collect()
        found = self.timed(
            "sensitivities", lambda: published.sensitivities(self.profile, options, measure=measure, factors="asvd")
        )
        return options, found

    def plan(self, chooser: str, kept: float) -> tuple[Plan, float]:
        """Return (plan that keeps a share `kept` of the blocks' parameters, processor seconds); raises ValueError for an unknown chooser."""
        if chooser not in CHOOSERS:
            raise ValueError(f"unknown chooser {chooser!r}; known: {', '.join(CHOOSERS)}")
        if (chooser, kept) not in self.plans:
            began = time.process_time()
            found = self._chosen(chooser, self.profile.whole_share(kept, "parameters", self.names))
            self.plans[chooser, kept] = found, time.process_time() - began
        return self.plans[chooser, kept]

    def _chosen(self, chooser: str, share: float) -> Plan:
        read: Profile = self.profile
        on: dict[str, Any] = {"resource": "parameters"}
        if chooser == "one share":
            return published.one_share(read, share, names=self.names, **on)
        if chooser in ("energy", "entropy"):
            return rules.plan_at_size(read, share, rule=chooser, **on)
        if chooser == "components":
            return components.components_plan(read, share, **on)
        if chooser == "ENC-Map":
            return enc.enc_map(read, share, options=self.options, **on).plan
        if chooser == "SVD-LLM V2":
            self.collect()
            return published.svd_llm_v2(read, share, names=self.names, **on)
        if chooser == "ASVD search":
            _, values = self.sensitivities
            return published.asvd_search(read, share, measure=_never, names=self.names, values=values, **on).plan
        values = {name: -loss for name, loss in self.losses.items()}
        return search.exact_search(read, share, options=self.options, values=values, **on).plan

    def small(self, plan: Plan, factors: str) -> nn.Module:
        """Return the network under `plan`; raises ValueError for unknown factors."""
        if factors not in FACTORS:
            raise ValueError(f"unknown factors {factors!r}; known: {', '.join(FACTORS)}")
        if factors != "svd":
            self.collect()
        how: dict[str, Any] = {"factors": factors}
        if factors in replace.SWEEPS or factors == "own outputs":
            how = {"factors": factors.replace("own outputs", "sequential"), "refit_dense": False}
            how["repair"] = factors != "own outputs"
        return sharing(replace.apply_plan(self.profile, plan, resource=None, **how), self.language.model)

    def network(self, chooser: str, factors: str, kept: float) -> nn.Module:
        """Return the network of one pair at one size: the one that `experiment` was asked to hold, or one that is built now."""
        asked = (chooser, factors, kept)
        return self.held[asked] if asked in self.held else self.small(self.plan(chooser, kept)[0], factors)

    def row(self, model: nn.Module, threads: int | None = None, **setting: Any) -> dict[str, Any]:
        """Return the result row of a network; with `threads` its speed is measured on so many."""
        if model is self.language.model and threads is None:
            found = self.dense_scored | self.about | setting
        else:
            timed: dict[str, Any] = {} if threads is None else {"timed": True, "threads": threads}
            timed["original_macs"] = self.dense_scored["macs"]
            found = perplexity.row(model, self.language.model, self.test, **timed, **self.about, **setting)
        self.known[model] = versions(model), found["loss"]
        found["rise"] = self.rise(model)
        return found | {
            "scope": "blocks",
            "calibration_images": len(self.calibration),
            "calibration_tokens": self.calibration.ids.numel(),
        }

    @cached_property
    def dense_scored(self) -> dict[str, Any]:
        """What the dense network costs and how well it foretells the test windows: columns of a row (`perplexity.row`), measured once."""
        return perplexity.row(self.language.model, self.language.model, self.test)

    @property
    def dense(self) -> float:
        """Loss of the dense network on the test windows, nats a token."""
        return self.dense_scored["loss"]

    def rise(self, model: nn.Module) -> float:
        """Return how far the loss of a network on the test windows is above the dense one's, nats a token; each network is measured once, and again after its weights were written to."""
        now = versions(model)
        if model not in self.known or self.known[model][0] != now:
            self.known[model] = now, perplexity.perplexity(model, self.test).loss
        return self.known[model][1] - self.dense

    def dense_row(self, threads: int | None = None) -> dict[str, Any]:
        """Return the row of the dense network."""
        about = {"chooser": "dense", "budget_kind": "dense", "stored_as": "dense", "blocks_kept": 1.0}
        return self.row(self.language.model, threads, **about)

    def measured(
        self, chooser: str, factors: str, kept: float, threads: int | None = None, hold: bool = False
    ) -> dict[str, Any]:
        """Return the row of one pair of chooser and factors at one size; `hold`: `network` has the network that was measured."""
        plan, plan_seconds = self.plan(chooser, kept)
        if factors != "svd":
            self.collect()  # not a part of the seconds below
        began = time.process_time()
        model = self.small(plan, factors)
        took = time.process_time() - began
        if hold:
            self.held[chooser, factors, kept] = model
        setting = {
            "chooser": chooser,
            "factors": factors,
            "budget_kind": "kept",
            "budget": kept,
            "stored_as": "low rank",
        }
        about = {"plan": json.dumps(plan), "blocks_kept": self.blocks_kept(plan), "plan_seconds": plan_seconds}
        about |= {"factor_seconds": took, "statistics_seconds": self.seconds.get("statistics", np.nan)}
        return self.row(model, threads, **setting, **about)

    def blocks_kept(self, plan: Plan) -> float:
        """Return the share of the blocks' parameters that stays under `plan`."""
        inside = sum(self.profile[name].parameters for name in self.names)
        return 1 - (plan_cost(self.profile, {}, "parameters") - plan_cost(self.profile, plan, "parameters")) / inside


def sharing(small: nn.Module, dense: nn.Module) -> nn.Module:
    """Return `small`, whose parameters that are equal to those of the same name in `dense` now lie where these lie.

    Only what was cut takes memory then. ``small.half()`` or ``requires_grad_`` leave `dense` as it is; whoever writes
    into the weights of one network has to copy it first.
    """
    known = dict(dense.named_modules())
    held: dict[int, nn.Parameter] = {}  # one for each of `dense`, so that tied weights stay tied
    for name, module in small.named_modules():
        theirs = known[name]._parameters if name in known else {}
        for kind, value in module._parameters.items():
            other = theirs.get(kind)
            if value is not None and other is not None and torch.equal(value, other):
                if id(other) not in held:
                    held[id(other)] = nn.Parameter(other.detach(), requires_grad=value.requires_grad)
                module._parameters[kind] = held[id(other)]
    return small


def _never(model: nn.Module) -> float:
    raise AssertionError("the measurements are given")


def blocks(profile: Profile, model: Any) -> list[str]:
    """Return the names of the matrices in a transformer's blocks: all that can be factored but the head.

    Raises ValueError where there are none.
    """
    head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    found = [name for name in profile.factorable if profile.model.get_submodule(name) is not head]
    if not found:
        raise ValueError(f"no matrix of this {type(model).__name__} can be factored, so there are no blocks to cut")
    return found


def experiment(
    bench: Bench,
    kept: Sequence[float] = (0.9,),
    pairs: Iterable[tuple[str, str]] = MAIN,
    *,
    threads: int | None = None,
    done: pd.DataFrame | None = None,
    write: Callable[[dict[str, Any]], None] | None = None,
    hold: Collection[tuple[str, str]] = (),
) -> pd.DataFrame:
    """Return one row for the dense network and one for each pair of chooser and factors at each size, which is a share of the blocks.

    `threads`: speed is measured on so many; `done`: rows of an earlier run, which are not made again; `write`: called with
    each new row at once, so that nothing is lost; `hold`: pairs whose networks `Bench.network` has afterwards, which takes memory.
    """
    rows = [] if done is None else done.to_dict("records")
    there = {(row["chooser"], row["factors"], row["budget"]) for row in rows}

    def keep(row):
        rows.append(row)
        if write is not None:
            write(row)

    if all(row["chooser"] != "dense" for row in rows):
        keep(bench.dense_row(threads))
    for share in kept:
        for chooser, factors in pairs:
            if (chooser, factors, share) not in there:
                keep(bench.measured(chooser, factors, share, threads, (chooser, factors) in hold))
    return columns.table(rows)


# ---- what the notebook shows -----------------------------------------------------------------------------------------


def kinds(bench: Bench) -> pd.DataFrame:
    """Return a table of the kinds of matrices in the blocks: shape, how many, break-even rank, share of all parameters."""
    whole = score.parameters(bench.language.model)
    rows = []
    for kind in dict.fromkeys(kind_of(name) for name in bench.names):
        cards = [bench.profile[name] for name in bench.names if kind_of(name) == kind]
        rows.append(
            {
                "kind": kind,
                "shape": "{} x {}".format(*cards[0].shape),
                "matrices": len(cards),
                "full rank": cards[0].full_rank,
                "break-even rank": cards[0].break_even("parameters"),
                "share of all parameters": sum(card.parameters for card in cards) / whole,
            }
        )
    return pd.DataFrame(rows).set_index("kind")


def energy_at_break_even(bench: Bench, blocks_shown: Sequence[int]) -> pd.Series:
    """Return, for each kind of matrix, the share of the energy sum s_i^2 that its break-even rank holds, a mean over some blocks."""
    found = {}
    for name in (name for name in bench.names if depth_of(name) in blocks_shown):
        values = bench.profile[name].singular_values ** 2
        found[name] = values[: bench.profile[name].break_even("parameters")].sum() / values.sum()
    return by_block(found).mean(axis=1)


def rounded_to_8_bits(model: nn.Module, names: Iterable[str]) -> nn.Module:
    """Return `model` with the weights of the named layers rounded to 8 bits, one scale a row (the largest entry is 127).

    The other parameters are those of `model`, not copies.
    """
    names = list(names)
    rounded = {id(model.get_submodule(name).weight) for name in names}
    # deepcopy takes the others for copied already
    new = modules.copied(model, {id(value): value for value in model.parameters() if id(value) not in rounded})
    with torch.no_grad():
        for name in names:
            weight: Any = new.get_submodule(name).weight
            scale = weight.abs().amax(1, keepdim=True).clamp(min=1e-12) / 127
            weight.copy_((weight / scale).round() * scale)
    return new


def elsewhere(bench: Bench, models: Mapping[str, nn.Module], sentences: str = SENTENCES) -> pd.DataFrame:
    """Return the rise of the loss of named networks on the test windows, and on plain sentences of another kind."""
    tokenizer = bench.language.tokenizer
    length = len(tokenizer(sentences, add_special_tokens=False)["input_ids"])
    other = windows(sentences, tokenizer, length)
    dense = perplexity.perplexity(bench.language.model, other).loss
    rows = {
        name: {
            "test text": bench.rise(model),
            "other sentences": perplexity.perplexity(model, other).loss - dense,
        }
        for name, model in models.items()
    }
    return pd.DataFrame(rows).T


def points(rows: pd.DataFrame, title: str = "") -> Figure:
    """Return the rise of the loss of each method at one size as points on a logarithmic axis, the smallest at the top.

    A rise below 0.001, or none, stands at 0.001; the number beside it is the measured one.
    """
    cut = rows[rows["chooser"] != "dense"].assign(method=lambda table: titled(table))
    means = cut.groupby("method")["rise"].mean().sort_values(ascending=False)
    panel, (axis,) = canvas(width=7.4, height=0.9 + 0.34 * len(means))
    if cut.empty:
        return _nothing(panel)
    at = means.clip(lower=LEAST)
    axis.scatter(at, range(len(at)), color=[LOOKS.get(str(name), "dimgray") for name in at.index], s=60, zorder=3)
    for place, (where, value) in enumerate(zip(at, means)):
        axis.annotate(f"{value:.3g}", (where, place), (9, 0), textcoords="offset points", va="center", fontsize=9)
    axis.set(yticks=range(len(at)), yticklabels=[str(name) for name in at.index])
    axis.set(xscale="log", xlabel="rise of the loss (nats a token)", title=title)
    axis.set_xlim(at.min() / 1.5, at.max() * 3)
    return panel


def reading(rows: pd.DataFrame) -> str:
    """Return sentences that say what the rows show: the best published method, ours, and what ranks and factors win apart."""
    cut = rows[rows["chooser"] != "dense"]
    if cut.empty:
        return "No method was measured."
    return " ".join(
        _reading_at(size, cut[cut["budget"] == size]) for size in sorted(cut["budget"].unique(), reverse=True)
    )


def _reading_at(size, cut):
    means = cut.assign(method=titled(cut)).groupby("method")["rise"].mean()
    told = [f"At {size:.0%} of the blocks' parameters:"]
    uniform = means.filter([TITLES[pair] for pair in PUBLISHED])
    if len(uniform):
        told.append(
            f"of the published methods with one share, {uniform.idxmin()} costs least, {uniform.min():.3f} nats a token;"
        )
    for label, name in (
        ("exact ranks with the factors of SVD-LLM", "exact ranks, whitening"),
        ("Fisher-weighted factors with one share", "our factors, one share"),
        ("exact ranks and Fisher-weighted factors", "exact ranks, our factors"),
    ):
        if name in means:
            told.append(f"{label} cost {means[name]:.3f};")
    if len(uniform) and "exact ranks, our factors" in means:
        told.append(
            f"that is {means['exact ranks, our factors'] / uniform.min():.0%} of the rise of the best published one."
        )
    return " ".join(told).removesuffix(";").removesuffix(".") + "."


def aims(rows: pd.DataFrame) -> str:
    """Return sentences that say whether the aims (`AIMS`) are met: our rise as a share of that of the best published method with one share."""
    told = []
    for size, most in AIMS.items():
        means = rows.assign(method=titled(rows))[rows["budget"] == size].groupby("method")["rise"].mean()
        uniform = means.filter([TITLES[pair] for pair in PUBLISHED])
        if len(uniform) and "exact ranks, our factors" in means:
            share = means["exact ranks, our factors"] / uniform.min()
            verdict = "is met" if share <= most else "is not met"
            told.append(f"At {size:.0%} kept the aim of at most {most:.0%} {verdict}: {share:.0%}.")
    return " ".join(told)


def kind_of(name: str) -> str:
    """Return what kind of matrix a layer of a transformer is: the last part of its name.

    >>> kind_of("model.layers.3.self_attn.q_proj")
    'q_proj'
    """
    return name.rsplit(".", 1)[-1]


def depth_of(name: str) -> int:
    """Return the number of the block that a layer is in.

    >>> depth_of("model.layers.3.self_attn.q_proj")
    3
    """
    return next((int(part) for part in name.split(".") if part.isdigit()), 0)


def by_block(values: dict[str, float]) -> pd.DataFrame:
    """Return a table, kinds of matrices x blocks, of ``{layer: value}``.

    >>> by_block({"h.0.q": 1.0, "h.1.q": 2.0}).loc["q"].tolist()
    [1.0, 2.0]
    """
    rows = pd.DataFrame(
        [{"kind": kind_of(name), "block": depth_of(name), "value": value} for name, value in values.items()]
    )
    return rows.pivot(index="kind", columns="block", values="value").loc[list(dict.fromkeys(rows["kind"]))]


def damage(bench: Bench, kept: float = 0.9) -> dict[str, float]:
    """Return ``{layer: predicted rise of the loss (nats a token)}`` where each matrix alone is cut to a share `kept` of its parameters."""
    plan, _ = bench.plan("one share", kept)
    tokens = bench.calibration.ids.shape[1]
    places = {own.name: own.entries.index(plan[own.name]) for own in bench.options if plan[own.name] in own.entries}
    return {name: float(bench.losses[name][place]) / tokens for name, place in places.items()}


def heat_map(values: dict[str, float], title: str, label: str, log: bool = False) -> Figure:
    """Return a picture of ``{layer: value}``: one row a kind of matrix, one column a block."""
    table = by_block(values)
    figure, (axis,) = canvas(width=7.4, height=2.9)
    shown = np.log10(np.maximum(table.to_numpy(dtype=float), 1e-12)) if log else table.to_numpy(dtype=float)
    image = axis.imshow(shown, aspect="auto", cmap="viridis")
    axis.set(xlabel="block", title=title, yticks=range(len(table)), yticklabels=list(table.index))
    axis.grid(False)
    figure.colorbar(image, ax=axis, label=("log10 of " if log else "") + label)
    return figure


def plan_picture(bench: Bench, plan: Plan) -> Figure:
    """Return a picture of a plan: the share of each matrix's parameters that stays, 1 where it stays dense."""
    kept = {
        name: bench.profile[name].cost(plan.get(name), "parameters") / bench.profile[name].parameters
        for name in bench.names
    }
    return heat_map(kept, "what the plan keeps of each matrix", "share of its parameters")


def spectra_figure(profile: Profile, names: Sequence[str], blocks_shown: Sequence[int]) -> Figure:
    """Return the singular values of each kind of matrix, relative to the largest, in a few blocks (one shade each)."""
    kinds = list(dict.fromkeys(kind_of(name) for name in names))
    across = min(4, len(kinds))
    figure, axes = canvas(across, -(-len(kinds) // across), width=2.6, height=2.3, sharey=True)
    for axis in axes[len(kinds) :]:
        axis.set_axis_off()
    for axis, kind in zip(axes, kinds):
        for place, block in enumerate(blocks_shown):
            own = [name for name in names if kind_of(name) == kind and depth_of(name) == block]
            for name in own:
                values = profile[name].singular_values
                axis.plot(
                    np.arange(1, len(values) + 1) / len(values),
                    values / values[0],
                    color=str(0.65 * place / max(len(blocks_shown) - 1, 1)),
                    label=f"block {block}",
                )
        axis.axvline(_break_even(profile, names, kind), color="tab:red", linestyle=":", label="break-even")
        axis.set(title=kind, yscale="log")
        axis.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    axes[0].legend(fontsize="x-small")
    for axis in axes[::across]:
        axis.set_ylabel("singular value / largest")
    figure.supxlabel("rank, share of the full rank", fontsize="small")
    return figure


def _break_even(profile, names, kind):
    card = profile[next(name for name in names if kind_of(name) == kind)]
    return card.break_even("parameters") / card.full_rank


def titled(rows: pd.DataFrame) -> pd.Series:
    """Return the name of each row's method, as the literature has it where it has one."""
    return pd.Series(
        [
            TITLES.get((chooser, factors), f"{chooser}, {WORDS.get(factors, factors)}")
            for chooser, factors in zip(rows["chooser"], rows["factors"])
        ],
        index=rows.index,
    )


def figure(rows: pd.DataFrame, title: str = "") -> Figure:
    """Return the rise of the loss against the share of the blocks' parameters kept: one line a method, named at its end.

    A rise below 0.001 stands at 0.001. Of several pairs only those with a title (`TITLES`) are drawn, if there are any; `points` shows all of one size.
    """
    cut = rows[rows["chooser"] != "dense"].assign(method=lambda table: titled(table))
    known = cut["method"].isin(LOOKS)
    cut = cut[known] if known.any() else cut
    panel, (axis,) = canvas(width=7.4, height=4.4)
    if cut.empty:
        return _nothing(panel)
    lines = {
        str(method): own.groupby("budget")["rise"].agg(["mean", "min", "max"]).sort_index().clip(lower=LEAST)
        for method, own in cut.groupby("method")
    }
    order = sorted(lines, key=lambda method: -lines[method]["mean"].iloc[-1])
    for method in order:
        line, colour = lines[method], LOOKS.get(method, "dimgray")
        style = "--" if method in _UNIFORM else "-"
        axis.plot(line.index, line["mean"], marker="o", color=colour, label=method, linestyle=style)
        axis.fill_between(line.index, line["min"], line["max"], color=colour, alpha=0.2, linewidth=0)
    axis.set(xlabel="parameters of the blocks kept", ylabel="rise of the loss (nats a token)", yscale="log")
    axis.set_title(title or "what a smaller language model costs")
    sizes = sorted(cut["budget"].unique())
    axis.xaxis.set_major_locator(FixedLocator(sizes))
    axis.xaxis.set_minor_locator(NullLocator())
    axis.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    wide = max(sizes[-1] - sizes[0], 0.1)
    axis.set_xlim(sizes[0] - 0.05 * wide, sizes[-1] + 0.55 * wide)  # room for the names
    ends = {method: (float(line.index[-1]), float(line["mean"].iloc[-1])) for method, line in lines.items()}
    name_ends(axis, ends, colours=LOOKS)
    return panel


def _nothing(panel):
    axis = panel.axes[0]
    axis.text(0.5, 0.5, "no row to draw", ha="center", transform=axis.transAxes)
    return panel


ONE_EACH = True  # a figure for each text and network


def usable(table: pd.DataFrame) -> pd.Series:
    """Return which rows the figure can draw: of a network that was cut to a stated size, with its loss."""
    if "rise" not in table:
        return pd.Series(False, index=table.index)
    return (table["chooser"] != "dense") & table["budget"].notna() & table["rise"].notna()


def tables(rows: pd.DataFrame) -> dict[str, str]:
    """Return {heading: Markdown table}: the rise of the loss for each method and size."""
    cut = rows[rows["chooser"] != "dense"].assign(method=lambda table: titled(table))
    if cut.empty:
        return {}
    budgets = sorted(cut["budget"].unique(), reverse=True)
    lines = []
    for method, own in cut.groupby("method", sort=False):
        line = [str(method)]
        for budget in budgets:
            these = own[own["budget"] == budget]
            told = f"{these['rise'].mean():.3f} ({np.exp(these['loss'].mean()):.1f})"
            line.append("" if these.empty else told)
        lines.append(line)
    return {next(iter(CAPTIONS)): markdown(["method", *(f"{budget:.0%}" for budget in budgets)], lines)}
