"""Owns what the processes of a training share when it begins, ends with an error, or is saved."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from rustgpt.layers.memory import Array
from rustgpt.parallel.exchange import Exchange

if TYPE_CHECKING:
    from rustgpt.llm import LLM

State = Mapping[str, Any]  # of an optimizer


@contextmanager
def told(exchange: Exchange) -> Iterator[None]:
    """Tell the other processes of an error that is raised here."""
    try:
        yield
    except BaseException as error:
        exchange.fail(error)
        raise


def begin(exchange: Exchange, model: LLM, things: tuple[Any, ...]) -> None:
    """Let all begin a phase with the parameters of the first.

    Parameters
    ----------
    things
        What must be the same everywhere.

    Raises
    ------
    TrainingError
        If it is not.
    """
    if exchange.size == 1:
        return
    same = (*things, model.n_parameters, model.config.dtype, model.tokenizer.vocab_size)
    digest = hashlib.sha256(repr(same).encode()).digest()
    exchange.check_equal("begin", digest, "settings, data or another model")
    with model.weights_lock.writing():
        exchange.spread(model.parameters)


def gathered(exchange: Exchange, state: State, n: int) -> dict[str, Any]:
    """Return the state of an optimizer of n parameters as a checkpoint has it, on the first rank.

    Of an array with a number for each parameter, every process has its own part.
    """
    if exchange.size == 1:
        return dict(state)
    found, part = {}, exchange.part(n)
    for name, value in state.items():
        if _is_whole(value, n):
            value = exchange.gathered(value[part], n)
        elif _is_whole(value, part.stop - part.start):
            value = exchange.gathered(value, n)
        found[name] = value
    return found if exchange.is_first else {}


def share(exchange: Exchange, state: State, n: int, whole: bool) -> State:
    """Return this process's share of an optimizer's state that the first has from a checkpoint.

    Parameters
    ----------
    whole
        Whether the arrays shall be as long as before, though only a part of each counts.
    """
    if exchange.size == 1:
        return state
    plain = {k: v.dtype if _is_whole(v, n) else v for k, v in state.items()}
    found = exchange.from_first("scatter", lambda: plain)
    for name, value in found.items():
        if isinstance(value, np.dtype):
            own = exchange.scattered(state.get(name), n, value)
            found[name] = _placed(own, exchange.part(n), n) if whole else own
    return found


def _is_whole(value: Any, n: int) -> bool:
    return isinstance(value, np.ndarray) and value.shape == (n,)


def _placed(own: Array, part: slice, n: int) -> Array:
    found: Array = np.zeros(n, own.dtype)
    found[part] = own
    return found
