"""A bar with the time that is left, for whatever takes longer than a few seconds."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from contextvars import ContextVar
from typing import TypeVar

from tqdm import tqdm

Item = TypeVar("Item")
WAIT = 3.0  # seconds before a bar appears
_wanted: ContextVar[bool | None] = ContextVar("wanted", default=None)


@contextlib.contextmanager
def shown(wanted: bool | None) -> Iterator[None]:
    """Hold whether `track` shows its bar while the block runs: True, False, or None (only in a terminal)."""
    token = _wanted.set(wanted)
    try:
        yield
    finally:
        _wanted.reset(token)


def track(items: Iterable[Item], what: str, total: int | None = None) -> Iterator[Item]:
    """Yield `items` under a bar that says `what` is done and how long it will take, once `WAIT` seconds have gone by.

    >>> with shown(False):
    ...     list(track([1, 2], "counting"))
    [1, 2]
    """
    wanted = _wanted.get()
    hidden = None if wanted is None else not wanted
    yield from tqdm(items, desc=what, total=total, delay=WAIT, leave=False, disable=hidden)
