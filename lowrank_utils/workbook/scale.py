"""How long it takes to choose the ranks of a large network, stage by stage."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd
from torch import nn

from lowrank_utils.lab import efficientnet, models
from lowrank_utils.lab.fetch import DataUnavailable
from lowrank_utils.lab.score import peak_memory as peak_memory
from lowrank_utils.network.profile import profile
from lowrank_utils.ranks import enc, search

SPARE = "torchvision/vgg16"


@dataclass(frozen=True)
class AtScale:
    """What the searches found in one large network, and what each stage took.

    Attributes
    ----------
    seconds : {stage: wall-clock seconds}, in the order of the stages; of a search the median of three runs.
    options : of each layer that can be cut.
    found : {"exact", "bound only", "ENC-Map", "ENC-Model": SearchResult}, on the energy curves.
    """

    seconds: pd.Series
    options: list[search.Options]
    found: dict[str, search.SearchResult]


def network(name: str = efficientnet.NAME, weights: str = "") -> tuple[nn.Module, str]:
    """Return (a large network in eval mode for images of 3 x 224 x 224, a sentence that says what its weights are).

    EfficientNet-Lite0 comes with its published weights, fetched if need be; where they cannot be had, `SPARE` with random
    weights stands in for it, and the sentence says why. A network of torchvision has the published `weights` that are
    named, or random ones. Raises ValueError and OSError as `models.build` and `models.pretrained` do.
    """
    if name == efficientnet.NAME and not weights:
        try:
            return models.pretrained(name)[0], f"{name} has its published weights, trained on ImageNet."
        except DataUnavailable as error:
            missing = (
                f"The weights of {name} are not at hand ({error}), so {SPARE} with random weights stands in for it."
            )
            return models.build(SPARE, (3, 224, 224), 1000).eval(), missing
    if weights:
        return models.pretrained(name, weights)[0], f"{name} has the published weights {weights}."
    return models.build(name, (3, 224, 224), 1000).eval(), f"{name} has random weights."


def at_scale(model: nn.Module, input_shape: Sequence[int] = (3, 224, 224), kept: float = 0.25) -> AtScale:
    """Return `AtScale` of a network: read, and searched at a share `kept` of its MACs.

    Only the weights are looked at, through the energy curves. Raises ValueError as `lowrank_utils.profile` and
    `search.exact_search` do.
    """
    seconds, found = {}, {}

    def timed(stage, call, repeats=1):
        took = []
        for _ in range(repeats):
            began = time.perf_counter()
            answer = call()
            took.append(time.perf_counter() - began)
        seconds[stage] = statistics.median(took)
        return answer

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
        found[name] = timed(f"search: {name}", call, repeats=3)
    return AtScale(pd.Series(seconds, name="seconds"), options, found)
