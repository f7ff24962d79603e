"""The columns of a result row: one row is one network that was measured.

A row says what it is in columns, never in a phrase that a reader must take apart. `RUN` names the run that it comes
from, `KEY` the setting within that run; the other columns are what was measured, or where the row was made.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import pandas as pd

SCOPE = ("none", "every layer", "hidden layers", "inner layers", "blocks")
BUDGET_KIND = ("kept", "macs", "drop", "epsilon", "threshold", "own", "lossless", "dense")
STORED_AS = ("dense", "low rank", "units", "both", "sparse", "non-zeros")
REFIT = ("none", "folded", "least squares", "relu-aware")
TUNED = ("none", "refined without labels", "fine-tuned", "distilled", "recalibrated", "from scratch")
FACTORS = (
    *("none", "svd", "data-aware", "sequential", "relu-aware", "fisher-weighted", "convex"),
    *("asvd", "fwsvd", "fisher-layerwise", "own outputs", "whitened"),
)
PROGRAM = ("none", "as posed", "reweighted", "cascade", "free bias", "epsilon by layer")
CUT = ("none", "fixed", "to budget")
UNSIZED = ("own", "lossless", "dense")  # kinds of budgets without a number


@dataclass(frozen=True)
class Column:
    """One column: its pandas dtype, its meaning, the values allowed (all, where empty) and what stands for a missing one.

    A column is `required` where no default could be right. Missing values of other columns without a default stay missing.
    """

    dtype: str
    meaning: str
    allowed: tuple = ()
    default: Any = None
    required: bool = False


# fmt: off
COLUMNS = {
    # the run
    "notebook": Column("string", "the notebook that made the row, such as 02_arsvd", required=True),
    "dataset": Column("string", "name of the data set", required=True),
    "network": Column("string", "name of the dense network", required=True),
    "seed": Column("int64", "seed of the split, the initial weights and the batches", required=True),
    "draw": Column("Int64", "which draw of calibration and measuring images (05)"),
    # the setting
    "chooser": Column("string", "what chose what stays: a rank rule, a ranking, a search, a convex program; dense for the network itself", required=True),
    "factors": Column("string", "how low-rank factors were computed; convex: the SVD of a convex program's answer", FACTORS, "none"),
    "scope": Column("string", "what may be cut: every layer, hidden layers (the last stays dense), inner layers (the first, too), or the blocks of a transformer, of which `budget` is then a share", SCOPE, required=True),
    "budget_kind": Column("string", "what `budget` counts: parameters kept, MACs kept, accuracy dropped on validation images, epsilon or threshold of a layer; own: the rule sets its size", BUDGET_KIND, required=True),
    "budget": Column("float64", "the number asked for, as a share; NaN for own, lossless and dense"),
    "stored_as": Column("string", "dense layers, thin layers (low rank), fewer units, both; or non-zero weights, with their indices (sparse) or without", STORED_AS, required=True),
    "refit": Column("string", "what makes up for what was cut: means folded into the next bias, least squares, or least squares after the ReLU", REFIT, "none"),
    "tuned": Column("string", "what was trained after the cut; distilled: fine-tuned towards the dense network's answers too; recalibrated: batch norms' statistics alone; from scratch: the small network from fresh weights", TUNED, "none"),
    "program": Column("string", "how a convex program was posed: on each layer's dense inputs, reweighted, on the inputs so far (cascade), with the bias outside the norm, or with an epsilon for each layer (budget: the one epsilon for all whose size it may have)", PROGRAM, "none"),
    "cut": Column("string", "whether the small values of a convex program's answer were set to zero: below a fixed share, or to meet the budget", CUT, "none"),
    "cut_below": Column("float64", "share of the largest value below which a fixed cut sets to zero; NaN for any other cut"),
    "runtime": Column("string", "what ran the network", ("torch", "onnxruntime"), "torch"),
    "bits": Column("int64", "bits of a stored weight", (32, 8), 32),
    "activations": Column("string", "how an 8-bit network scales its activations: as they come (dynamic), or by calibration images (static)", ("dynamic", "static")),
    # size and time
    "parameters": Column("int64", "parameters that are stored, biases included; an index of a sparse layer counts by its bits"),
    "parameters_kept": Column("float64", "share of the dense network's parameters"),
    "macs": Column("int64", "multiply-accumulates for one input, of a language model for one window"),
    "macs_kept": Column("float64", "share of the dense network's MACs"),
    "bytes": Column("int64", "bytes on disk"),
    "stored": Column("float64", "share of the parameters that a sparse or cut network stores (04)"),
    "latency_ms_1": Column("float64", "milliseconds for one input; of processor time in rows that have `faster_1`, else on the clock"),
    "latency_ms_64": Column("float64", "milliseconds for a batch of 64"),
    "faster_1": Column("float64", "how many times faster than the dense network in torch, one input"),
    "faster_64": Column("float64", "the same for a batch of 64"),
    "tokens_per_second": Column("float64", "tokens that a language model reads in a second"),
    "memory_64": Column("float64", "MiB that answering 64 inputs takes: the weights, and the tensors that are held at once"),
    "peak_memory": Column("float64", "GiB, the most memory that the process had held when the row was made"),
    "threads": Column("Int64", "CPU threads of the timing"),
    # quality, on test images or test text where nothing else is said; every row has an accuracy or a perplexity
    "accuracy": Column("float64", "share of the images that are right"),
    "f1": Column("float64", "macro F1"),
    "loss": Column("float64", "cross-entropy in nats, of a language model for one token"),
    "perplexity": Column("float64", "exp(loss) of a language model"),
    "bits_per_byte": Column("float64", "bits that a language model needs for one byte of the text"),
    "valid_accuracy": Column("float64", "accuracy on validation images"),
    "correct": Column("string", "which test images are right, as score.packed writes it; rows that no verdict compares in pairs have none"),
    "tuned_accuracy": Column("float64", "accuracy once this network was fine-tuned, in a row that tells of it before (06)"),
    "tuned_f1": Column("float64", "macro F1 then"),
    "tuned_seconds": Column("float64", "seconds of that fine-tuning"),
    "untuned_accuracy": Column("float64", "accuracy before this network was refined without labels, in a row that tells of it after (06)"),
    "accuracy_noise": Column("float64", "accuracy on test images with noise (`lab.corruptions`)"),
    "accuracy_blur": Column("float64", "the same, blurred"),
    "accuracy_contrast": Column("float64", "the same, of less contrast"),
    "accuracy_rotation": Column("float64", "the same, rotated"),
    "accuracy_occlusion": Column("float64", "the same, partly covered"),
    "accuracy_corrupted": Column("float64", "mean over the five corruptions"),
    "right_alone": Column("Int64", "test images that this network gets right and ours, at the same budget and state of training, does not"),
    "wrong_alone": Column("Int64", "test images that ours gets right and this network does not"),
    # how it was found
    "seconds_to_find": Column("float64", "seconds from the dense network to this one"),
    "statistics_seconds": Column("float64", "processor seconds of the statistics of calibration data, shared by all rows of a run (07)"),
    "plan_seconds": Column("float64", "processor seconds of the chooser, its curves included (07)"),
    "factor_seconds": Column("float64", "processor seconds of the factors (07)"),
    "train_seconds": Column("float64", "seconds of training the dense network (01)"),
    "evaluations": Column("Int64", "networks that were measured on the way"),
    "plan": Column("string", "ranks by layer name, as JSON"),
    "threshold": Column("float64", "share of energy or entropy kept in each layer"),
    "epsilon": Column("float64", "relative output error allowed in each layer"),
    "finetuned_epochs": Column("Int64", "passes over the training images of a network that was fine-tuned"),
    "scheme": Column("string", "how convolutions were unfolded: spatial, channel or input"),
    "calibration_images": Column("Int64", "training images that the method looked at, or windows of a text"),
    "calibration_tokens": Column("Int64", "tokens of a text that the method looked at"),
    "blocks_kept": Column("float64", "share of the parameters of a transformer's blocks (07)"),
    "rise": Column("float64", "loss less that of the dense network, nats an image, or a token (07)"),
    "predicted_rise": Column("float64", "rise of the loss that the search on predicted losses expects of the plan (nats an image)"),
    "steps": Column("Int64", "training steps of a network that was fine-tuned, at each rate that was tried"),
    "rate": Column("float64", "peak learning rate that was best on validation images; 0 where no step was better than any, NaN where every rate diverged"),
    "note": Column("string", "what went otherwise than planned, such as training that diverged"),
    "predicted": Column("float64", "log A_p + log A_m of the plan, from the curves (05)"),
    "value": Column("float64", "what the search maximised, for the plan it chose (05)"),
    "bound": Column("float64", "proved upper bound of that value (05)"),
    "gap": Column("float64", "bound minus value; 0 where the plan is proved optimal (05)"),
    "needs": Column("string", "what the method looked at beside the weights", ("nothing", "images", "labels")),
    "source": Column("string", "where a row of a table over several runs comes from: here or gallery", ("here", "gallery")),
    "torch": Column("string", "version of torch"),
    "lowrank_utils": Column("string", "version of this package"),
    # provenance
    "address": Column("string", "the job: notebook, data set, network, seed and a digest of its parameters"),
    "run_parameters": Column("string", "all parameters of the job, as JSON"),
    "data_fingerprint": Column("string", "digest of the data"),
    "versions": Column("string", "versions of Python and of the libraries"),
    "commit": Column("string", "commit of the code; +changes where there were some"),
    "code": Column("string", "digest of the code that the numbers were computed with: package, then notebook"),
    "finished": Column("string", "when the job ended, UTC"),
}
# fmt: on
RESULT_COLUMNS = (
    *("notebook", "dataset", "network", "seed", "chooser", "factors", "parameters", "parameters_kept", "macs"),
    *("macs_kept", "bytes", "latency_ms_1", "latency_ms_64", "accuracy", "f1", "seconds_to_find", "evaluations"),
)
LANGUAGE_COLUMNS = ("perplexity", "bits_per_byte", "tokens_per_second")  # what rows of language models have beside them
PROVENANCE_COLUMNS = ("address", "run_parameters", "data_fingerprint", "versions", "commit", "code", "finished")
RUN = ("notebook", "dataset", "network", "seed", "draw")
KEY = (
    *("chooser", "factors", "scope", "budget_kind", "budget", "stored_as", "refit", "tuned"),
    *("program", "cut", "cut_below", "runtime", "bits"),
)


def table(rows: pd.DataFrame | Sequence[Mapping[Any, Any]]) -> pd.DataFrame:
    """Return rows as a DataFrame in the order and dtypes of `COLUMNS`, with defaults where a value is missing.

    Parameters: `rows`, a DataFrame or a list of dicts; numbers may be text, an empty text is a missing value. Columns
    that no row has are left out, but for those of `KEY`. Columns run_NAME (parameters of a sweep) come last, as they are.
    Raises ValueError as `check`.

    >>> first = {"notebook": "02_arsvd", "dataset": "mnist", "network": "lenet300", "seed": 0, "accuracy": "0.5"}
    >>> first |= {"chooser": "energy", "scope": "every layer", "budget_kind": "kept", "budget": 0.2, "stored_as": "low rank"}
    >>> table([first])[["chooser", "budget", "refit", "accuracy"]].to_dict("records")
    [{'chooser': 'energy', 'budget': 0.2, 'refit': 'none', 'accuracy': 0.5}]
    """
    import pandas as pd

    given = pd.DataFrame(rows)
    _check_names(given)
    typed = {}
    for name, column in COLUMNS.items():
        if name in given or name in KEY:
            values = given[name] if name in given else pd.Series(None, index=given.index, dtype=object)
            typed[name] = _cast(name, column, values)
    typed |= {name: given[name] for name in given if name not in COLUMNS}
    found = pd.DataFrame(typed, index=given.index)
    _check_values(found)
    return found


def with_defaults(rows: pd.DataFrame) -> pd.DataFrame:
    """Return rows in which every column of `KEY` that has a default stands, and holds it where a value is missing.

    Unlike `table`, it takes rows that lack other columns. Raises ValueError for a value of the wrong type.

    >>> import pandas as pd
    >>> with_defaults(pd.DataFrame({"tuned": ["fine-tuned", None]}))[["tuned", "bits"]].to_dict("records")
    [{'tuned': 'fine-tuned', 'bits': 32}, {'tuned': 'none', 'bits': 32}]
    """
    names = [name for name in KEY if COLUMNS[name].default is not None]
    given = rows.reindex(columns=list(dict.fromkeys([*rows.columns, *names])))
    return given.assign(**{name: _cast(name, COLUMNS[name], given[name]) for name in names})


def check(rows: pd.DataFrame | list[dict[str, Any]]) -> None:
    """Raise ValueError, in one sentence, where rows have an unknown column, lack one, or hold a value not allowed."""
    table(rows)


def _check_names(given: pd.DataFrame) -> None:
    unknown = [name for name in given if name not in COLUMNS and not str(name).startswith("run_")]
    if unknown:
        raise ValueError(f"{unknown[0]!r} is no column of a result row; lab/columns.py names them all")
    lacking = [name for name, column in COLUMNS.items() if column.required and name not in given]
    if lacking:
        raise ValueError(f"the rows lack the column {lacking[0]}: {COLUMNS[lacking[0]].meaning}")


def _cast(name: str, column: Column, values: Any) -> pd.Series:
    """Return the values of one column in its dtype, the default where one is missing."""
    import pandas as pd

    missing = values.isna() | (values.astype(object) == "")
    if column.required and missing.any():
        raise ValueError(f"a row has no {name}: {column.meaning}")
    read = {"string": _text, "float64": _number, "int64": _whole, "Int64": _whole}[column.dtype]
    empty = float("nan") if column.dtype == "float64" else pd.NA
    default = empty if column.default is None else column.default
    try:
        found = [default if gone else read(value) for value, gone in zip(values, missing, strict=True)]
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name}: {error}") from None
    whole = column.dtype == "int64" and any(value is pd.NA for value in found)  # a count that nobody took
    return pd.Series(found, index=values.index, dtype="Int64" if whole else column.dtype)


def _text(value: Any) -> str:
    if isinstance(value, dict | list | tuple | set):  # such as a plan that is not yet JSON
        raise ValueError(f"{value!r} is not text")
    return str(value)


def _number(value: Any) -> float:
    try:
        return float(value)  # of text, the nearest float, so that a number survives to its last bit
    except (TypeError, ValueError):
        raise ValueError(f"{value!r} is not a number") from None


def _whole(value: Any) -> int:
    number = _number(value)
    if not number.is_integer():
        raise ValueError(f"{value!r} is not a whole number")
    return int(number)


def _check_values(found: pd.DataFrame) -> None:
    scores = [name for name in ("accuracy", "perplexity") if name in found]
    if not scores or found[scores].isna().all(axis=1).any():
        raise ValueError(f"a row has no accuracy: {COLUMNS['accuracy'].meaning}; and no perplexity in its place")
    for name, column in COLUMNS.items():
        if column.allowed and name in found:
            wrong = [value for value in found[name].dropna().unique().tolist() if value not in column.allowed]
            if wrong:
                raise ValueError(f"{name}={wrong[0]!r} is none of {', '.join(map(str, column.allowed))}")
    phrases = [chooser for chooser in found["chooser"].unique().tolist() if "," in chooser]
    if phrases:
        raise ValueError(f"chooser={phrases[0]!r} has a comma: say each part of it in its own column")
    for kind, budget in dict.fromkeys(zip(found["budget_kind"], found["budget"], strict=True)):
        _check_budget(kind, budget)
    for cut, below in dict.fromkeys(zip(found["cut"], found["cut_below"], strict=True)):
        right = 0 <= below < 1 if cut == "fixed" else below != below
        if not right:
            asked = "a fixed cut has a share in [0, 1), others none"
            raise ValueError(f"cut_below={below} does not go with cut={cut!r}: {asked}")


def _check_budget(kind: str, budget: float) -> None:
    if kind in UNSIZED:
        right, asked = budget != budget, "has no number"
    elif kind == "epsilon":
        right, asked = budget > 0, "is above 0"
    elif kind == "drop":
        right, asked = 0 <= budget <= 1, "is in [0, 1]"
    else:
        right, asked = 0 < budget <= 1, "is in (0, 1]"
    if not right:
        raise ValueError(f"budget={budget} does not go with budget_kind={kind!r}, whose budget {asked}")
