"""How long it takes to choose the ranks of a large network, stage by stage."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import pandas as pd
from torch import nn

from lowrank_utils.lab.score import peak_memory as peak_memory
from lowrank_utils.network.profile import profile
from lowrank_utils.ranks import enc, search


@dataclass(frozen=True)
class AtScale:
    """What the searches found in one large network, and what each stage took.

    Attributes
    ----------
    seconds : {stage: wall-clock seconds}, in the order of the stages.
    options : of each layer that can be cut.
    found : {"exact", "bound only", "ENC-Map", "ENC-Model": SearchResult}, on the energy curves.
    """

    seconds: pd.Series
    options: list[search.Options]
    found: dict[str, search.SearchResult]


def at_scale(build: Callable[[], nn.Module], input_shape: Sequence[int] = (3, 224, 224), kept: float = 0.25) -> AtScale:
    """Return `AtScale` of the network that `build` returns: built, read and searched at a share `kept` of its MACs.

    Only the weights are looked at, through the energy curves. Raises ValueError as `lowrank_utils.profile` and
    `search.exact_search` do.
    """
    seconds, found = {}, {}

    def timed(stage, call):
        began = time.perf_counter()
        answer = call()
        seconds[stage] = time.perf_counter() - began
        return answer

    model = timed("build the network", build)

    def spectra():
        read = profile(model, input_shape=input_shape)
        for layer in read:
            _ = layer.singular_values  # computed when they are first read
        return read

    def options_and_curves():
        options = search.rank_options(read)
        return options, search.energy(read, options)

    read = timed("profile: spectra of all layers", spectra)
    options, curves = timed("options and energy curves", options_and_curves)
    asked = {"options": options, "values": search.logarithms(curves)}
    given = {"options": options, "curves": curves}
    searches = {
        "exact": lambda: search.exact_search(read, kept, **asked),
        "bound only": lambda: search.exact_search(read, kept, **asked, exact=False),
        "ENC-Map": lambda: enc.enc_map(read, kept, **given),
        "ENC-Model": lambda: enc.enc_model(read, kept, **given),
    }
    for name, call in searches.items():
        found[name] = timed(f"search: {name}", call)
    return AtScale(pd.Series(seconds, name="seconds"), options, found)
