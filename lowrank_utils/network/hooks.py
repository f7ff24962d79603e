"""The pattern *hook, run in batches, remove*, written once: watch what passes through named modules of a network."""

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from torch import nn

from lowrank_utils.network import inputs
from lowrank_utils.network.inputs import Batch
from lowrank_utils.network.modules import evaluating
from lowrank_utils.progress import track


@contextlib.contextmanager
def hooked(model: nn.Module, *hooks: Mapping[str, Callable[..., Any]], before: bool = False) -> Iterator[None]:
    """Hold functions on named modules while the block runs, and take them off again, whatever happens in it.

    Parameters
    ----------
    model : the network.
    hooks : {module name: function}, any number of them; called as f(module, args, kwargs) where `before`, else as
        f(module, args, kwargs, output). What a function returns takes the place of the inputs or the output.
    before : whether the functions are called before the module runs.

    >>> import torch
    >>> seen = []
    >>> model = nn.Sequential(nn.ReLU(), nn.ReLU())
    >>> with hooked(model, {"1": lambda module, args, kwargs, output: seen.append(output.item())}):
    ...     _ = model(torch.tensor([2.0]))
    >>> seen, len(model[1]._forward_hooks)
    ([2.0], 0)
    """
    held = []
    try:
        for name, hook in (pair for some in hooks for pair in some.items()):
            module = model.get_submodule(name)
            register = module.register_forward_pre_hook if before else module.register_forward_hook
            held.append(register(hook, with_kwargs=True))
        yield
    finally:
        for handle in held:
            handle.remove()


def watch(
    model: nn.Module,
    batches: Sequence[Batch],
    *hooks: Mapping[str, Callable[..., Any]],
    before: bool = False,
) -> None:
    """Run `model` over batches of its inputs in eval mode, without gradients, with the functions of `hooked` in place.

    Raises ValueError for inputs that hold NaN or infinite values, and where the network cannot take their shape.
    """
    first = next(model.parameters())
    with evaluating(model):
        try:
            inputs.call(model, inputs.fed(batches[0][:1], first))
        except Exception as error:  # a reader's own network fails in errors of many kinds
            shape = inputs.in_words(batches[0])
            raise ValueError(f"the network cannot take calibration images of shape {shape}: {error}") from error
        with hooked(model, *hooks, before=before):
            for batch in track(batches, "inputs seen"):
                inputs.check_finite(batch)
                try:
                    inputs.call(model, inputs.fed(batch, first))
                except IndexError as error:  # a token id that the embedding does not have
                    raise ValueError(f"the network cannot take these calibration inputs: {error}") from error
