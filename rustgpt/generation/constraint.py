"""Owns what an answer is held to: which tokens may follow, and when it may end."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from rustgpt.errors import ConfigError
from rustgpt.generation.byte_grammar import NOTHING, Chain, Either, Node, State, literal
from rustgpt.generation.json_schema import grammar_of
from rustgpt.generation.sampling_config import SamplingConfig
from rustgpt.text.tokenizer import Tokenizer

MASK_BYTES: Final = 2**25  # of what is remembered of an answer's states

Groups = dict[int, list[tuple[int, bytes]]]  # tokens with their bytes, by the first of these


class Allowed:
    """Which tokens may follow, for each state of a grammar and of a tokenizer's stream."""

    def __init__(self, tokenizer: Tokenizer, end_ids: tuple[int, ...]) -> None:
        self._end_ids = [*end_ids]
        self._size = tokenizer.vocab_size
        self._pieces: dict[Any, Sequence[bytes]] = {}
        self._groups: dict[Any, Groups] = {}
        self._known: dict[tuple[State, Any], NDArray[np.bool_]] = {}

    def tokens(self, state: State, stream: Any) -> NDArray[np.bool_]:  # -> (V,)
        """Return whether each token may follow."""
        key = (state, stream.state)
        found = self._known.get(key)
        if found is None:
            if state.begin_token() or len(self._known) * self._size > MASK_BYTES:
                self._known.clear()
            found = self._known[key] = self._found(state, stream)
        return found

    def content(self, token: int, stream: Any) -> bytes:
        """Return the bytes that a token appends."""
        return self._of(stream)[token]

    def _of(self, stream: Any) -> Sequence[bytes]:
        pieces = self._pieces.get(stream.state)
        if pieces is None:
            pieces = self._pieces[stream.state] = stream.appended()
        return pieces

    def _found(self, state: State, stream: Any) -> NDArray[np.bool_]:
        groups = self._groups.get(stream.state)
        if groups is None:
            groups = self._groups[stream.state] = _grouped(self._of(stream))
        allowed = np.zeros(self._size, np.bool_)
        for byte in state.first:
            for token, content in groups.get(byte, ()):
                allowed[token] = state.after(content) is not None
        if stream.state is not None:
            for token, _ in groups.get(-1, ()):
                allowed[token] = self._changes(stream, token)
        allowed[self._end_ids] = state.may_end
        return allowed

    def _changes(self, stream: Any, token: int) -> bool:
        """Whether a token that appends nothing changes what the next one appends."""
        after = stream.copy()
        after.push(token)
        return bool(after.state != stream.state)


def _grouped(pieces: Sequence[bytes]) -> Groups:
    groups: Groups = {}
    for token, content in enumerate(pieces):
        groups.setdefault(content[0] if content else -1, []).append((token, content))
    return groups


class Constraint:
    """Where an answer is in the grammar that it follows; going on makes another one.

    Parameters
    ----------
    allowed
        Of the tokenizer.
    state
        Where the answer is.
    stream
        Where the text of the tokens is.
    """

    __slots__ = ("_allowed", "_state", "_stream")

    def __init__(self, allowed: Allowed, state: State, stream: Any) -> None:
        self._allowed = allowed
        self._state = state
        self._stream = stream

    def masked(self, scores: NDArray[Any]) -> NDArray[Any]:  # (V,) -> (V,)
        """Return scores with -inf for the tokens that may not follow."""
        return np.where(self._allowed.tokens(self._state, self._stream), scores, -np.inf)

    def prepare(self) -> None:
        """Find out beforehand which tokens may come next."""
        self._allowed.tokens(self._state, self._stream)

    def after(self, token_id: int) -> Constraint:
        """Return where the answer is after one more token, which may follow."""
        state = self._state.after(self._allowed.content(token_id, self._stream))
        stream = self._stream.copy()
        stream.push(token_id)
        assert state is not None  # the token was allowed
        return Constraint(self._allowed, state, stream)


def constraints_of(
    config: SamplingConfig,
    tokenizer: Tokenizer,
    prompts: Sequence[Sequence[int]],
    end_ids: tuple[int, ...],
) -> list[Constraint] | None:
    """Return what the answers to prompts are held to, if anything. They may begin with a space.

    Raises
    ------
    ConfigError
        If no answer follows the settings, or if they need another tokenizer.
    """
    if config.choices:
        grammar: Node = Either(*map(literal, config.choices))
    elif config.json_schema is not None:
        grammar = grammar_of(config.json_schema)
    else:
        return None
    streams: list[Any] = [tokenizer.stream(after=prompt) for prompt in prompts]
    if not all(hasattr(streams[0], name) for name in ("state", "appended", "copy")):
        raise ConfigError(
            "choices and json_schema need a tokenizer of rustgpt's, not a "
            f"{type(tokenizer).__name__}"
        )
    begun = State.of(grammar)
    if not begun.first and not begun.may_end:
        raise ConfigError("no answer can follow this json_schema: it has no end")
    state = State.of(Chain(Either(NOTHING, literal(" ")), grammar))
    allowed = Allowed(tokenizer, end_ids)
    return [Constraint(allowed, state, stream) for stream in streams]
