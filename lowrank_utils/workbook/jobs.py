"""What to run: numbered notebooks, their parameters, and the jobs made of them.

A *job* is one notebook with all its parameters. Its *address* is made from the notebook's code, the
parameters and the data fingerprint, so the same work has the same name everywhere.
"""

from __future__ import annotations

import ast
import difflib
import hashlib
import itertools
import json
import re
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from lowrank_utils import paths

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence

GIVEN = "output_folder"  # the one parameter that the executor gives; a place, so no part of an address

# What the words that all notebooks share may hold, so that a wrong value is refused before anything runs.
_SHARE = (lambda v: 0 < v <= 1, "a share in (0, 1]")
_POSITIVE = (lambda v: v > 0, "more than 0")
LIMITS = {
    "rank": _POSITIVE,
    "threshold": _SHARE,
    "kept": _SHARE,
    "drop": (lambda v: 0 <= v < 1, "a share, at least 0 and below 1"),
    "epsilon": _POSITIVE,
    "learning_rate": _POSITIVE,
    "epochs": _POSITIVE,
    "batch_size": _POSITIVE,
    "calibration_images": _POSITIVE,
    "calibration_windows": _POSITIVE,
    "test_windows": _POSITIVE,
    "window": (lambda v: v >= 16, "at least 16 tokens"),
    "weight_decay": (lambda v: v >= 0, "0 or more"),
    "seed": (lambda v: 0 <= v < 2**32, "from 0 to 4294967295"),
}


@dataclass(frozen=True)
class Job:
    """One notebook with all its parameters: a plain value that can be pickled, compared and sent to a worker.

    >>> job = Job("02_arsvd", "notebooks/02_arsvd.ipynb", {"dataset": "mnist", "seed": 1}, "ab12", "cd34")
    >>> job.address
    '02_arsvd-mnist-seed1-5bdd4f1c'
    """

    notebook: str
    path: str
    parameters: dict[str, Any] = field(hash=False)
    fingerprint: str  # of the data
    source: str  # sha256 of the notebook's code cells

    @property
    def label(self) -> str:
        """The address without its digest: what this job is called in the gallery."""
        known = self.parameters
        dataset = str(known.get("dataset") or known.get("corpus", ""))
        if dataset.startswith(("folder:", "file:")):
            kind, _, place = dataset.partition(":")
            dataset = f"{kind}_{Path(place).name}"
        seed = f"seed{known['seed']}" if "seed" in known else ""
        draw = f"draw{known['draw']}" if known.get("draw") else ""
        network = str(known.get("network") or known.get("language_model", ""))
        words = (self.notebook, dataset, network, seed, draw)
        return "-".join(re.sub(r"[^\w.-]+", "_", word) for word in words if word)

    @property
    def address(self) -> str:
        """Return notebook-dataset-network-seedN-digest8, the name of this job's folder in any run."""
        content = json.dumps([self.source, self.parameters, self.fingerprint], sort_keys=True)
        return f"{self.label}-{hashlib.sha256(content.encode()).hexdigest()[:8]}"


def notebooks(folder: str | Path | None = None) -> dict[str, Path]:
    """Return {name: path} of the numbered notebooks in `folder` (default notebooks/), in their order."""
    return {p.stem: p for p in sorted(Path(folder or paths.NOTEBOOKS).glob("[0-9][0-9]*_*.ipynb"))}


def select(only: Collection[str], folder: str | Path | None = None) -> dict[str, Path]:
    """Return {name: path} of the notebooks that the words in `only` name (02, 02b, 02_arsvd); of all for none.

    Raises ValueError for a word that names none.
    """
    known = notebooks(folder)
    if not known:
        raise ValueError(
            f"there is no notebook to run in {folder or paths.NOTEBOOKS}; they come with a clone of the repository, "
            "which LOWRANK_ROOT may name"
        )
    chosen = set()
    for word in only:
        stem = Path(word).name.removesuffix(".ipynb")
        hits = [name for name in known if stem == name or (stem and stem.lstrip("0") == name.split("_")[0].lstrip("0"))]
        if not hits:
            raise ValueError(f"unknown notebook {word!r}; known: {', '.join(known)}{_closest(stem, known)}")
        chosen.update(hits)
    return {name: path for name, path in known.items() if name in chosen or not only}


def files_of(words: Iterable[str], folder: str | Path | None = None) -> list[Path]:
    """Return the files of notebooks that are named by their path, or by number or name in `folder` (02, 02b, 02_arsvd).

    Raises ValueError for a path where there is no file, and for a number or name that no notebook has.
    """
    files = []
    for word in words:
        path = Path(word)
        if path.suffix == ".ipynb":  # a path is never taken for a notebook of the same name in another folder
            if not path.is_file():
                raise ValueError(f"there is no notebook {word!r}")
            files.append(path)
        else:
            files += select([word], folder).values()
    return files


def _closest(word, known):
    hits = difflib.get_close_matches(word, list(known), n=2, cutoff=0.5)
    return f" (did you mean {' or '.join(hits)}?)" if hits else ""


def inspect(path: str | Path) -> dict[str, tuple[str, Any, str]]:
    """Return {name: (annotation, default, help)} of a notebook's parameters cell, as papermill reads it.

    Raises ValueError for a parameter whose default is not a plain literal.
    """
    import papermill

    found = {}
    for name, card in papermill.inspect_notebook(escaped(path)).items():
        try:
            default = ast.literal_eval(card["default"])
        except (ValueError, SyntaxError):
            raise ValueError(f"{Path(path).name}: the default of {name} is not a literal: {card['default']}") from None
        kind = card["inferred_type_name"]
        found[name] = (kind, default if name == GIVEN else typed(name, kind, default), card["help"])
    return found


def _as_float(value):
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        raise ValueError("not a number")
    return float(value)


@lru_cache(maxsize=1)
def _kinds():
    """Return {annotation: the validator of its values}. Numbers also come as text: YAML 1.1 takes 1e-3 for text."""
    from pydantic import BeforeValidator, Field, Strict, TypeAdapter

    whole = BeforeValidator(lambda v: int(v) if isinstance(v, str) else v)
    number = BeforeValidator(_as_float)
    finite = Field(allow_inf_nan=False)
    kinds: dict[str, Any] = {
        "str": Annotated[str, Strict()],
        "bool": Annotated[bool, Strict()],
        "int": Annotated[int, Strict(), whole],
        "float": Annotated[float, Strict(), finite, number],
    }
    return {kind: TypeAdapter(annotation) for kind, annotation in kinds.items()}


def typed(name: str, kind: str, value: Any) -> Any:
    """Return `value` as the annotation `kind` has it, a number also from text; raises ValueError if unfit."""
    if match := re.fullmatch(r"list\[(\w+)\]", kind):
        if not isinstance(value, (list, tuple)):
            raise ValueError(f"{name}={value!r} is not a {kind}")
        return [typed(name, match[1], v) for v in value]
    if kind not in _kinds():
        return value
    try:
        value = _kinds()[kind].validate_python(value)
    except (ValueError, OverflowError):
        raise ValueError(f"{name}={value!r} is not {'an' if kind == 'int' else 'a'} {kind}") from None
    if name == "device" and kind == "str" and not re.fullmatch(r"auto|cpu|mps|(cuda|xpu)(:\d+)?", value):
        raise ValueError(f"device={value!r} is not known; known: auto, cpu, cuda, cuda:1 ...")
    if name in LIMITS and kind in ("int", "float") and not LIMITS[name][0](value):
        raise ValueError(f"{name}={value!r} is out of range: it must be {LIMITS[name][1]}")
    return value


def read_preset(name: str | Path, folder: str | Path | None = None) -> dict[str, Any]:
    """Return the parameters in a preset, by name (notebooks/presets/NAME.yaml) or by a YAML file's path."""
    presets = Path(folder or paths.NOTEBOOKS) / "presets"
    path = Path(name) if Path(name).suffix in (".yaml", ".yml") else presets / f"{name}.yaml"
    if not path.is_file():
        known = sorted(p.stem for p in presets.glob("*.yaml"))
        raise ValueError(f"unknown preset {name!r}; known: {', '.join(known) or 'none'}{_closest(name, known)}")
    return read_yaml(path, "preset")


def read_yaml(path: str | Path, what: str) -> dict[str, Any]:
    """Return the mapping in a YAML file; raises ValueError, which calls the file a `what`, for anything else."""
    import yaml

    try:
        values = yaml.safe_load(Path(path).read_text())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{what} {Path(path).name} is not readable as YAML: {' '.join(str(error).split())}") from None
    if values is not None and not isinstance(values, dict):
        raise ValueError(f"{what} {Path(path).name} must hold lines of the form name: value")
    return values or {}


def read_settings(settings: Iterable[str]) -> dict[str, str]:
    """Return the dict of `--set` texts, the values still text.

    >>> read_settings(["threshold=0.8", "dataset=mnist"])
    {'threshold': '0.8', 'dataset': 'mnist'}
    """
    values = {}
    for text in settings:
        name, equals, value = text.partition("=")
        if not equals or not name.strip():
            raise ValueError(f"--set {text!r} is not of the form name=value")
        if name.strip() in values:
            raise ValueError(f"--set gives {name.strip()} twice")
        values[name.strip()] = value.strip()
    return values


def list_jobs(
    only: Collection[str] = (),
    preset: str | Path | dict[str, Any] | None = None,
    settings: Mapping[str, Any] | None = None,
    seeds: Sequence[int] = (),
    folder: str | Path | None = None,
    grid: Mapping[str, Sequence[Any]] | None = None,
) -> list[Job]:
    """Return the list of jobs: the chosen notebooks for the first seed, then the next, parameters resolved.

    Defaults of the notebook give way to the preset, this to `settings`, this to `seeds` and `grid`.

    Parameters: `only`, names or numbers of notebooks (empty: all); `preset`, a name, a path or a dict;
    `settings`, a dict, values typed or as text (read as YAML unless the parameter is a str); `seeds`, ints;
    `folder` of the notebooks; `grid`, {parameter: list of values}, every combination of which is one job for
    each notebook, the last parameter changing fastest. Raises ValueError, before anything runs, for an unknown
    notebook, preset or parameter, a value of the wrong type or out of range, or an unknown data set or network.
    """
    import yaml

    chosen = {name: (path, inspect(path)) for name, path in select(only, folder).items()}
    held = preset if isinstance(preset, dict) else read_preset(preset, folder) if preset else {}
    asked = {**held, **(settings or {})}
    if seeds and "seed" in (settings or {}):
        raise ValueError("the seed is given twice, by --seeds and by --set seed=")
    if len(set(seeds)) < len(seeds):
        raise ValueError(f"a seed is named twice in {', '.join(map(str, seeds))}")
    known = {name for _, cards in chosen.values() for name in cards}
    # a preset serves all notebooks, so that it may hold what none of the chosen ones takes
    anywhere = known.union(*(inspect(path) for path in notebooks(folder).values()))
    axes = {**(grid or {}), **({"seed": seeds} if seeds else {})}
    for name in [*asked, *axes]:
        if name == GIVEN:
            raise ValueError(f"{GIVEN} is given by the run itself and cannot be set")
        names = anywhere if name in held and name not in {**(settings or {}), **axes} else known
        if name not in names:
            listed = sorted(names - {GIVEN})
            raise ValueError(
                f"no chosen notebook has a parameter {name!r}{_closest(str(name), listed)}; known: {', '.join(listed)}"
            )
    sources = {name: code_digest(path) for name, (path, _) in chosen.items()}
    fingerprint = lru_cache(_fingerprint)  # images of a folder are read once
    jobs = []
    for point in itertools.product(*axes.values()):
        for notebook, (path, cards) in chosen.items():
            values = {name: default for name, (_, default, _) in cards.items() if name != GIVEN}
            given = {**asked, **dict(zip(axes, point))}
            for name, value in given.items():
                if name in cards:
                    kind = cards[name][0]
                    if isinstance(value, str) and kind != "str":
                        value = yaml.safe_load(value)
                    values[name] = typed(name, kind, value)
            named = [values["network"]] if {"network"} <= values.keys() & given.keys() else []
            named += values["networks"] if {"networks"} <= values.keys() & given.keys() else []
            if named:  # of the defaults nobody asks, as models imports torch
                from lowrank_utils.lab import models

                for network in named:
                    models.check_name(network)
            if "language_model" in values.keys() & given.keys():
                _check_language(values["language_model"])
            found = fingerprint(values.get("dataset") or values.get("corpus"))
            jobs.append(Job(notebook, str(path), values, found, sources[notebook]))
    return jobs


def _fingerprint(dataset):
    if dataset is None:
        return ""
    from lowrank_utils.lab import data, text

    return text.load(dataset).fingerprint if text.is_text(dataset) else data.dataset_fingerprint(dataset)


def _check_language(name):
    from lowrank_utils.lab import language

    if not language.is_language(name):
        raise ValueError(f"unknown language model {name!r}: choose {', '.join(language.NAMES)} or hf:NAME")


def code_digest(path: str | Path) -> str:
    import nbformat

    cells = nbformat.read(path, as_version=4).cells
    code = [cell.source for cell in cells if cell.cell_type == "code"]
    return hashlib.sha256(json.dumps(code).encode()).hexdigest()


def escaped(path: str | Path) -> str:
    return str(path).replace("{", "{{").replace("}", "}}")  # papermill formats paths
