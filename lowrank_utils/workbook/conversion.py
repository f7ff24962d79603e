"""Converts result rows of before, which told their setting in phrases, to the columns of `lab.columns`, once.

Run it with ``python -m lowrank_utils.workbook.conversion OLD.csv NEW.parquet``.
"""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from lowrank_utils.lab import columns

if TYPE_CHECKING:
    import pandas as pd

FLAT = ("lenet300", "mlp")  # networks that begin with a linear layer
RULES = ("fixed", "energy", "entropy", "evbmf")
SEARCHES = ("ENC-Map", "ENC-Model", "ENC-Inf", "exact", "exact, Fisher")
FORMS = ("svd", "data-aware", "sequential", "relu-aware", "fisher-weighted")
RENAMED = {
    "exact, Fisher": "exact-Fisher",
    "units, then ranks": "units then ranks",
    "unit entropy, one range": "unit entropy one range",
}
PLAIN = ("svd", "data-aware")
REFITS = {"nothing": "none", "folded": "folded", "refitted": "least squares"}
COMPONENTS = tuple(f"component {rule}" for rule in ("energy", "entropy", "output", "magnitude", "random"))
UNITS = (*(f"unit {rule}" for rule in ("entropy", "output", "magnitude", "random")), "unit entropy, one range")
TO_BUDGET = {"program": "as posed", "cut": "to budget"}
STEPS = {
    "as posed": {},
    "cascade": {"program": "cascade"},
    "cut 5 %": {"cut": "fixed", "cut_below": 0.05},
    "cut 5 %, refit": {"cut": "fixed", "cut_below": 0.05, "refit": "least squares"},
    "cut 5 %, refit after the ReLU": {"cut": "fixed", "cut_below": 0.05, "refit": "relu-aware"},
    "reweighted": {"program": "reweighted"},
    "reweighted, cut 5 %, refit": {
        "program": "reweighted",
        "cut": "fixed",
        "cut_below": 0.05,
        "refit": "least squares",
    },
}
TRIMMED = {
    "Net-Trim, non-zeros": {"stored_as": "non-zeros"},
    "Net-Trim, with indices": {"stored_as": "sparse"},
    "Net-Trim, cut, refit, non-zeros": {"stored_as": "non-zeros", "refit": "least squares"},
    "Net-Trim, cut, refit, with indices": {"stored_as": "sparse", "refit": "least squares"},
}
AT_A_SIZE = {  # (chooser, factors) of notebook 04
    ("ARSVD", "svd"): {"chooser": "energy"},
    ("data-aware", "data-aware"): {"chooser": "component output"},
    ("ReLU-aware", "relu-aware"): {"chooser": "component output"},
    ("Fisher-weighted", "fisher-weighted"): {"chooser": "component output"},
    ("units first", "fisher-weighted"): {"chooser": "both output", "stored_as": "both", "refit": "least squares"},
}
_DENSE = {"chooser": "dense", "factors": "none", "scope": "none", "stored_as": "dense"}
_FIXED_CUT = {"scope": "hidden layers", "program": "as posed", "cut": "fixed", "refit": "least squares"}
BESIDE = {  # (chooser, factors, way) of notebook 06
    ("dense", "dense", "dense"): _DENSE,
    ("units", "refitted", "units"): {
        "factors": "none",
        "scope": "hidden layers",
        "stored_as": "units",
        "refit": "least squares",
    },
    ("units, then ranks", "fisher-weighted", "units"): {
        "factors": "fisher-weighted",
        "stored_as": "both",
        "refit": "least squares",
    },
    ("magnitude", "zeros", "zeros"): {"factors": "none", "scope": "every layer", "stored_as": "sparse"},
    ("DDLR, cut, refit", "refit", "low rank"): _FIXED_CUT
    | {"chooser": "DDLR", "factors": "convex", "stored_as": "low rank", "cut_below": 0.05},
    ("Net-Trim, cut, refit", "refit", "zeros"): _FIXED_CUT
    | {"chooser": "Net-Trim", "factors": "none", "stored_as": "sparse", "cut_below": 0.01},
}


class Old(NamedTuple):
    """What an old row said of its setting, as text; "" where it said nothing."""

    notebook: str
    network: str
    chooser: str
    factors: str
    scope: str
    target: str
    way: str
    epsilon: str
    threshold: str

    @property
    def phrases(self) -> tuple[str, ...]:
        """The phrases, without the numbers that may say what a target means."""
        return self[:-2]

    def told(self) -> str:
        """Return the phrases of the setting as one text, for a reader."""
        return " | ".join(filter(None, self.phrases[2:]))


def convert(table: pd.DataFrame) -> pd.DataFrame:
    """Return old result rows in the columns of `lab.columns`, every number as it was.

    Parameters: `table`, rows with the columns chooser, factors and target (and scope, way, where they were written),
    as text or typed. Rows keep their order. Raises ValueError for a phrase that is not known, and where two settings
    that were told apart would become one.
    """
    import pandas as pd

    old = table.reset_index(drop=True)
    words = old.reindex(columns=list(Old._fields)).astype(object)
    words = [Old(*map(str, line)) for line in words.where(words.notna(), "").itertuples(index=False, name=None)]
    found = {said: _setting(said) for said in dict.fromkeys(words)}
    settings = pd.DataFrame([found[said] for said in words])
    rest = old.drop(columns=[name for name in ("chooser", "factors", "scope", "target", "way") if name in old])
    new = columns.table(pd.concat([rest, settings], axis=1))
    _check_apart(words, new)
    return new


def _setting(old: Old) -> dict:
    """Return the new columns of one old setting."""
    if old.notebook not in _READERS:
        raise _unknown("notebook", old.notebook, old)
    if old.notebook != "02_arsvd" and old.scope not in ("", "dense"):
        raise _unknown("scope", old.scope, old)
    if old.notebook != "06_side_by_side" and old.way:
        raise _unknown("way", old.way, old)
    asked = _budget(old)
    if (old.target == "dense") != (old.chooser == "dense"):
        raise _unknown(f"target of the chooser {old.chooser!r}", old.target, old)
    if old.chooser == "dense" and old.notebook != "06_side_by_side":
        found = _DENSE if old.factors in ("dense", "none") else None
    else:
        found = _READERS[old.notebook](old)
    if found is None:
        raise _unknown("setting", old.told(), old)
    return {"chooser": RENAMED.get(old.chooser, old.chooser)} | asked | found


def _unknown(what: str, phrase: str, old: Old) -> ValueError:
    return ValueError(f"{phrase!r} is no {what} that rows of {old.notebook!r} are known to have")


def _budget(old: Old) -> dict:
    """Return budget_kind, budget and tuned of an old target."""
    size, comma, rest = old.target.partition(", ")
    tuned = "fine-tuned" if rest == "fine-tuned" else "none"
    number = re.fullmatch(r"(kept|macs|drop|epsilon) (\d+(?:\.\d+)?(?:e-\d+)?)", size)
    if number and (tuned == "fine-tuned" or not comma):
        return {"budget_kind": number[1], "budget": float(number[2]), "tuned": tuned}
    known = {"own size": ("own", "nan"), "lossless": ("lossless", "nan"), "dense": ("dense", "nan")}
    known |= {"steps": ("epsilon", old.epsilon), "threshold": ("threshold", old.threshold)}
    kind, value = known.get(old.target, ("", ""))
    if not value:
        raise _unknown("target", old.target, old)
    return {"budget_kind": kind, "budget": float(value), "tuned": tuned}


def _rank_rules(old: Old) -> dict | None:
    if old.chooser in RULES and old.factors in PLAIN and old.scope in ("every layer", "hidden layers"):
        return {"factors": old.factors, "scope": old.scope, "stored_as": "low rank"}
    return None


def _inner_layers(old: Old) -> dict | None:
    if old.chooser in (*RULES, *SEARCHES) and old.factors in FORMS:
        return {"factors": old.factors, "scope": "inner layers", "stored_as": "low rank"}
    return None


def _rankings(old: Old) -> dict | None:
    """Return what notebook 03 pruned: components, units, or both."""
    low_rank = {"factors": old.factors, "scope": "every layer", "stored_as": "low rank"}
    if old.chooser in COMPONENTS and old.factors in PLAIN:
        return low_rank
    if old.chooser == "arsvd, every layer" and old.factors in PLAIN:
        return low_rank | {"chooser": "energy"}
    if old.chooser == "arsvd, classifier dense" and old.factors in PLAIN:
        return low_rank | {"chooser": "energy", "scope": "hidden layers"}
    if old.chooser in UNITS and old.factors in REFITS:
        return {"factors": "none", "scope": "hidden layers", "stored_as": "units", "refit": REFITS[old.factors]}
    if old.chooser in ("both entropy", "both output") and old.factors == "data-aware":
        return low_rank | {"stored_as": "both", "refit": "least squares"}
    if old.chooser == "dense control" and old.factors == "none" and old.target.endswith("fine-tuned"):
        # the whole network, trained as long as the others: no budget was asked of it
        return _DENSE | {"chooser": old.chooser, "budget_kind": "dense", "budget": float("nan")}
    return None


def _programs(old: Old) -> dict | None:
    """Return what notebook 04 made of convex programs, and what it set beside them."""
    chooser, factors, hidden = old.chooser, old.factors, {"scope": "hidden layers"}
    ddlr = hidden | {"chooser": "DDLR", "factors": "convex", "stored_as": "low rank", "program": "as posed"}
    sized = old.target.startswith("kept ")
    if chooser == "DDLR" and old.target == "steps" and factors in STEPS:
        return ddlr | STEPS[factors]
    if chooser == "DDLR" and factors == "own" and (sized or old.target.startswith("epsilon ")):
        return ddlr | {"scope": "every layer"}
    if chooser in ("DDLR, cut", "DDLR, cut, refit") and factors == "own" and sized:
        return ddlr | TO_BUDGET | {"refit": "least squares" if chooser.endswith("refit") else "none"}
    if chooser in TRIMMED and factors == "own" and sized:
        return hidden | {"chooser": "Net-Trim", "factors": "none"} | TO_BUDGET | TRIMMED[chooser]
    if (chooser, factors) in AT_A_SIZE and sized:
        return hidden | {"factors": factors, "stored_as": "low rank"} | AT_A_SIZE[chooser, factors]
    return None


def _side_by_side(old: Old) -> dict | None:
    """Return what notebook 06 set side by side, in torch or as a file that onnxruntime ran."""
    form, _, run = old.factors.partition(" in ")
    small = run == "onnxruntime, 8 bit"
    if run not in ("", "onnxruntime", "onnxruntime, 8 bit") or (old.way == "8 bit") != small:
        return None
    ran = {"runtime": "onnxruntime" if run else "torch", "bits": 8 if small else 32}
    whole = old.way if not small else "dense" if old.chooser == "dense" else "low rank"
    scope = "hidden layers" if old.network in FLAT else "inner layers"
    if (old.chooser, form, whole) in BESIDE:
        return {"scope": scope} | BESIDE[old.chooser, form, whole] | ran
    if old.chooser in (*RULES, *SEARCHES, "component output") and form in FORMS and whole == "low rank":
        return {"factors": form, "scope": scope, "stored_as": "low rank"} | ran
    return None


_READERS = {
    "01_training": lambda *_: None,  # dense networks alone
    "02_arsvd": _rank_rules,
    "02b_convolutions": _inner_layers,
    "03_entropy_pruning": _rankings,
    "04_ddlr": _programs,
    "05_rank_search": _inner_layers,
    "06_side_by_side": _side_by_side,
}


def _check_apart(words: list[Old], new: pd.DataFrame) -> None:
    """Raise ValueError where two old settings of one notebook and network have equal new keys."""
    keys = new[["notebook", "network", *columns.KEY]].astype(object)
    keys = keys.where(keys.notna(), "").itertuples(index=False, name=None)
    first: dict[tuple, Old] = {}
    for key, old in zip(keys, words, strict=True):
        other = first.setdefault(key, old)
        if other.phrases != old.phrases:
            raise ValueError(f"{other.told()!r} and {old.told()!r} would become one setting of {old.notebook}")


def main(arguments: list[str]) -> None:
    """Convert one file; print how many rows of each notebook there were. Exits with a sentence where it cannot."""
    import pandas as pd

    if len(arguments) != 2:
        sys.exit("usage: python -m lowrank_utils.workbook.conversion OLD.csv NEW.parquet")
    old, new = map(Path, arguments)
    try:
        table = convert(pd.read_csv(old, dtype=str, keep_default_na=False))
        partial = new.with_name(f"{new.name}.partial")
        table.to_parquet(partial, index=False)
        os.replace(partial, new)
    except (OSError, ValueError) as error:
        sys.exit(f"{old} is not converted: {error}")
    for notebook, count in table["notebook"].value_counts(sort=False).items():
        print(f"{notebook}: {count} rows")


if __name__ == "__main__":
    main(sys.argv[1:])
