"""Owns grammars over bytes: what may come next, with a stack for what is nested."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

from rustgpt.errors import ConfigError

MOST_STACKS: Final = 250_000  # that are looked at for one token: some seconds

# What is still to come, the next part first; () if nothing is.
Stack = tuple["Node", "Stack"] | tuple[()]


class Node:
    """A part of a grammar. Two of them are the same only if they are one object."""

    __slots__ = ()

    def expand(self, rest: Stack) -> list[Stack]:
        """Return what may be to come where this part is, and `rest` behind it."""
        raise NotImplementedError


class OneOf(Node):
    """One byte of some."""

    __slots__ = ("allowed",)

    def __init__(self, allowed: Iterable[int]) -> None:
        self.allowed = frozenset(allowed)


class Chain(Node):
    """Parts one after another.

    Behind the first comes what is left of the chain, as one node: a stack has a level for what is
    nested, not for each part.
    """

    __slots__ = ("_first", "_left", "parts")

    def __init__(self, *parts: Node) -> None:
        self.parts = parts
        self._first = 0
        self._left: Chain | None = None

    def expand(self, rest: Stack) -> list[Stack]:
        last = len(self.parts) - 1
        if self._first > last:  # it has no parts
            return [rest]
        if self._first < last:
            if self._left is None:
                left = Chain()
                left.parts, left._first = self.parts, self._first + 1
                self._left = left  # as a whole: other threads may read it
            rest = (self._left, rest)
        return [(self.parts[self._first], rest)]


class Either(Node):
    """One of several parts."""

    __slots__ = ("options",)

    def __init__(self, *options: Node) -> None:
        self.options = options

    def expand(self, rest: Stack) -> list[Stack]:
        return [(option, rest) for option in self.options]


class Repeat(Node):
    """A part, which is never empty, from `least` to `most` times; None for any number of times."""

    __slots__ = ("_after", "least", "most", "part")

    def __init__(self, part: Node, least: int = 0, most: int | None = None) -> None:
        self.part, self.least, self.most = part, least, most
        self._after: Repeat | None = None

    def expand(self, rest: Stack) -> list[Stack]:
        if self.most is not None and self.most <= 0:
            return [rest]
        if self._after is None:
            most = None if self.most is None else self.most - 1
            endless = most is None and self.least == 0
            self._after = self if endless else Repeat(self.part, max(0, self.least - 1), most)
        once: Stack = (self.part, (self._after, rest))
        return [once] if self.least > 0 else [once, rest]


class Later(Node):
    """A part that is set later, so that it may hold itself."""

    __slots__ = ("part",)

    def __init__(self) -> None:
        self.part: Node = NOTHING

    def expand(self, rest: Stack) -> list[Stack]:
        return [(self.part, rest)]


NOTHING: Final = Chain()
_BYTES: Final = tuple(OneOf([byte]) for byte in range(256))


def literal(text: str | bytes) -> Chain:
    """Return the part that is this text in UTF-8."""
    content = text.encode("utf-8", "surrogatepass") if isinstance(text, str) else text
    return Chain(*(_BYTES[byte] for byte in content))


class _Known(dict[frozenset[Stack], "State"]):
    """The states of a grammar: how many stacks they have, and how many more they may have."""

    stacks = 0

    def __init__(self) -> None:
        super().__init__()
        self.most = MOST_STACKS


class State:
    """Where a text is in a grammar.

    Attributes
    ----------
    may_end
        Whether the text is whole.
    first
        The bytes that may follow.
    """

    __slots__ = ("_known", "_next", "_stacks", "first", "may_end")

    def __init__(self, stacks: frozenset[Stack], known: _Known) -> None:
        self._stacks = stacks
        self._known = known
        self._next: dict[int, State | None] = {}
        self.may_end = () in stacks
        allowed = (stack[0].allowed for stack in stacks if stack and isinstance(stack[0], OneOf))
        self.first: frozenset[int] = frozenset().union(*allowed)

    @classmethod
    def of(cls, grammar: Node) -> State:
        """Return where a text begins."""
        return _state([(grammar, ())], _Known())

    def begin_token(self) -> bool:
        """Allow as much as for each token; return whether the states so far took too much memory.

        Then they are forgotten: one that is met again is made anew.
        """
        known = self._known
        is_much = known.stacks > MOST_STACKS
        if is_much:
            known.clear()
            known.stacks = 0
        known.most = known.stacks + MOST_STACKS
        return is_much

    def after(self, content: bytes) -> State | None:
        """Return where the text is after some more bytes; None if they may not follow."""
        state = self
        for byte in content:
            if byte not in state._next:
                state._next[byte] = state._after(byte)
            following = state._next[byte]
            if following is None:
                return None
            state = following
        return state

    def _after(self, byte: int) -> State | None:
        rests = [
            stack[1]
            for stack in self._stacks
            if stack and isinstance(stack[0], OneOf) and byte in stack[0].allowed
        ]
        return _state(rests, self._known) if rests else None


def _state(stacks: Sequence[Stack], known: _Known) -> State:
    """Return the state of stacks, of which each is expanded until a byte is next."""
    todo, seen, found = list(stacks), set[Stack](), set[Stack]()
    while todo:
        stack = todo.pop()
        if stack in seen:
            continue
        seen.add(stack)
        if not stack or isinstance(stack[0], OneOf):
            found.add(stack)
        else:
            todo += stack[0].expand(stack[1])
    known.stacks += len(seen)
    if known.stacks > known.most:
        raise ConfigError("the grammar of the answer leaves too much open at once")
    key = frozenset(found)
    state = known.get(key)
    if state is None:
        state = known[key] = State(key, known)
    return state
