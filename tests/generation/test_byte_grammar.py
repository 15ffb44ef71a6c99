"""Tests of grammars over bytes."""

import itertools
import re

import pytest

from rustgpt.generation.byte_grammar import NOTHING, Chain, Either, Later, OneOf, Repeat, State
from rustgpt.generation.byte_grammar import literal as text

A, B = OneOf(b"a"), OneOf(b"bc")
CASES = {
    "ab": (Chain(A, OneOf(b"b")), "ab"),
    "either": (Either(text("ab"), text("aac"), NOTHING), "(ab|aac|)"),
    "any": (Repeat(A), "a*"),
    "some": (Repeat(B, 1), "[bc]+"),
    "two or three": (Repeat(Either(A, text("bc")), 2, 3), "(a|bc){2,3}"),
    "at least two": (Chain(Repeat(A, 2), Repeat(B, 0, 1)), "a{2,}[bc]?"),
    "none": (Chain(Repeat(A, 0, 0), text("c")), "c"),
    "nested": (Repeat(Chain(A, Repeat(B)), 0, 2), "(a[bc]*){0,2}"),
}


@pytest.mark.parametrize("name", CASES)
def test_it_is_the_regular_expression(name):
    grammar, pattern = CASES[name]
    start = State.of(grammar)
    texts = ["".join(t) for n in range(6) for t in itertools.product("abc", repeat=n)]
    whole = [t for t in texts if re.fullmatch(pattern, t)]
    for t in texts:
        state = start.after(t.encode())
        begun = any(w.startswith(t) for w in whole)
        assert begun or state is None or len(t) == 5
        if state is not None:
            assert state.may_end == (t in whole)
            if len(t) < 4:
                following = {w[len(t)] for w in whole if w.startswith(t) and len(w) > len(t)}
                assert {chr(byte) for byte in state.first} == following


def test_what_is_nested_to_any_depth():
    brackets = Later()
    brackets.part = Either(NOTHING, Chain(text("["), brackets, text("]")))
    start = State.of(brackets)
    for n in range(40):
        assert start.after(b"[" * n + b"]" * n).may_end
        assert not start.after(b"[" * (n + 1) + b"]" * n).may_end
        assert start.after(b"[" * n + b"]" * (n + 1)) is None


def test_the_same_place_is_the_same_state():
    start = State.of(Repeat(Chain(A, B)))
    assert start.after(b"ab") is start.after(b"acab")
    assert start.after(b"") is start


def test_what_has_no_end_allows_nothing():
    endless = Later()
    endless.part = endless
    state = State.of(endless)
    assert not state.may_end
    assert not state.first
