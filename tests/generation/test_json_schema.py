"""Tests of answers that follow a JSON schema, or are one of some choices."""

import importlib.util
import json

import numpy as np
import pytest

from rustgpt.errors import ConfigError
from rustgpt.generation import byte_grammar, constraint
from rustgpt.generation.byte_grammar import State
from rustgpt.generation.constraint import constraints_of
from rustgpt.generation.json_schema import grammar_of
from rustgpt.generation.sampling_config import SamplingConfig
from rustgpt.text.bpe_tokenizer import BpeTokenizer
from rustgpt.text.char_tokenizer import ByteTokenizer, CharTokenizer
from rustgpt.text.word_tokenizer import WordTokenizer

POINT = {
    "type": "object",
    "properties": {"x": {"type": "number"}, "y": {"type": "integer"}},
    "required": ["x", "y"],
    "additionalProperties": False,
}
# A schema, what follows it, and what does not.
CASES = {
    "string": ({"type": "string"}, ["", "a b", "é雨🙂", 'a"\\\n\t'], [1, None, ["a"]]),
    "short": ({"type": "string", "minLength": 1, "maxLength": 2}, ["a", "é🙂"], ["", "abc"]),
    "integer": ({"type": "integer"}, [0, 7, -12, 123456], [1.5, "1", True]),
    "number": ({"type": "number"}, [0, -1, 3.25], ["1", None]),
    "boolean": ({"type": "boolean"}, [True, False], [0, "true", None]),
    "null": ({"type": "null"}, [None], [0, False]),
    "types": ({"type": ["integer", "null"]}, [3, None], ["a", True]),
    "enum": ({"enum": ["red", "雨", 3, None, [1]]}, ["red", "雨", 3, None, [1]], ["re", 33]),
    "const": ({"const": {"a": [1, "b"]}}, [{"a": [1, "b"]}], [{}, {"a": [1]}]),
    "array": ({"type": "array", "items": {"type": "integer"}}, [[], [1], [1, 2, 3]], [["a"], 1]),
    "bounds": (
        {"items": {"type": "null"}, "minItems": 1, "maxItems": 2}, [[None]], [[], [None] * 3],
    ),
    "none": ({"type": "array", "maxItems": 0}, [[]], [[1]]),
    "object": (POINT, [{"x": 1.5, "y": 2}], [{}, {"x": 1}, {"y": 2, "x": 1}, {"x": 1, "y": 1.5}]),
    "optional": (
        {"properties": {"a": {"const": 1}, "b": {"const": 2}, "c": {"const": 3}},
         "required": ["b"]},
        [{"b": 2}, {"a": 1, "b": 2}, {"b": 2, "c": 3}, {"a": 1, "b": 2, "c": 3}],
        [{}, {"a": 1}, {"a": 1, "c": 3}, {"b": 3}],
    ),
    "all optional": (
        {"properties": {"a": {"const": 1}, "b": {"const": 2}}},
        [{}, {"a": 1}, {"b": 2}, {"a": 1, "b": 2}], [{"c": 1}],
    ),
    "any object": ({"type": "object"}, [{}, {"a": 1, "é": [{}]}], [[], 1]),
    "values": (
        {"type": "object", "additionalProperties": {"type": "null"}}, [{"a": None}], [{"a": 1}],
    ),
    "closed": ({"type": "object", "additionalProperties": False}, [{}], [{"a": 1}]),
    "anyOf": ({"anyOf": [POINT, {"type": "null"}]}, [None, {"x": 1, "y": 2}], [1, {}]),
    "enum of a type": ({"type": "string", "enum": ["a", 1, "b"]}, ["a", "b"], [1]),
    "const of a type": ({"type": "integer", "const": 5, "title": "T"}, [5], [6, "5"]),
    "anything": (True, [1, "a", None, [[], {}], {"a": {"b": [1.5]}}], []),
    "empty": ({"title": "T", "description": "D"}, [1, {"a": []}], []),
    "reference": (
        {"$defs": {"p": POINT}, "items": {"$ref": "#/$defs/p"}, "type": "array"},
        [[], [{"x": 1, "y": 2}] * 2], [[1]],
    ),
    "tree": (
        {"type": "object", "properties": {"t": {"items": {"$ref": "#"}, "type": "array"}},
         "required": ["t"], "additionalProperties": False},
        [{"t": []}, {"t": [{"t": []}, {"t": [{"t": []}]}]}], [{"t": [{}]}, {}],
    ),
}  # fmt: skip


def follows(schema, content):
    state = State.of(grammar_of(schema)).after(content.encode())
    return state is not None and state.may_end


@pytest.mark.parametrize("name", CASES)
def test_what_follows_a_schema_and_what_does_not(name):
    schema, right, wrong = CASES[name]
    for value in right:
        assert follows(schema, json.dumps(value, ensure_ascii=False))
        assert follows(schema, json.dumps(value, ensure_ascii=False, separators=(",", ":")))
    for value in wrong:
        assert not follows(schema, json.dumps(value, ensure_ascii=False))
    for broken in ("", "{", "[1", '"a', "01", "+1", "1.", "nul", '"\\x"', '"\n"', "[1,]", "1 "):
        assert not follows(schema, broken)


def test_characters_may_be_escaped():
    text = {"type": "string", "minLength": 1, "maxLength": 1}
    for right in (
        r"\n",
        r"\"",
        r"\/",
        r"\u00e9",
        r"\uABCD",
        r"\ud7ff",
        r"\ue000",
        "\u007f",
        "\U0010ffff",
    ):
        assert follows(text, f'"{right}"')
        json.loads(f'"{right}"')
    for wrong in (r"\x", r"\u12", r"\ud83d", r"\uDE00", "\n", "\0", '"', "\\"):
        assert not follows(text, f'"{wrong}"')


@pytest.mark.parametrize(
    ("schema", "words"),
    [
        ({"pattern": "a"}, "'pattern' at #, which is not supported; supported are type, enum"),
        ({"properties": {"a": {"oneOf": []}}}, "'oneOf' at #/properties/a"),
        ({"type": "text"}, "the type 'text' at #; there are string"),
        ({"enum": []}, "a list in 'enum'"),
        ({"enum": 3}, "a list in 'enum'"),
        ({"anyOf": {}}, "a list in 'anyOf'"),
        ({"$ref": "#/$defs/a"}, "has no '#/\\$defs/a'"),
        ({"$ref": "http://x"}, "has no 'http://x'"),
        ({"items": 5}, "must be an object at #/items, got 5"),
        (False, "must be an object at #, got False"),
        ({"type": "object", "properties": []}, "an object of properties"),
        ({"type": "string", "minLength": -1}, "whole numbers for minLength"),
        ({"type": "string", "minLength": 3, "maxLength": 2}, "maxLength below minLength"),
        ({"$ref": "#"}, "no answer can follow"),
        ({"type": "string", "const": 5}, "no const of its type at #"),
        ({"enum": [1, 2], "type": "string"}, "no enum of its type at #"),
        ({"enum": ["a"], "maxLength": 2}, "enum and maxLength at #; enum must stand alone"),
        ({"anyOf": [{}], "type": "string"}, "anyOf and type at #; anyOf must stand alone"),
        ({"$ref": "#/x", "items": {}}, r"\$ref and items at #; \$ref must stand alone"),
    ],
)
def test_a_schema_that_is_none_or_not_supported(schema, words):
    with pytest.raises(ConfigError, match=words):
        constraints_of(SamplingConfig(json_schema=schema), ByteTokenizer(), [[]], (0,))


def test_a_literal_may_be_long():
    for long in ("a" * 50_000, [*range(1_000)], {str(i): None for i in range(1_000)}):
        text = json.dumps(long)
        assert follows({"const": long}, text)
        assert not follows({"const": long}, text[:-1])
    many = {"enum": [f"word {i}" for i in range(1_000)]}
    assert follows(many, '"word 999"')
    assert not follows(many, '"word 1000"')


# 900 lengths of a text at once, of each of which every character may come next.
LENGTHS = {"anyOf": [{"type": "string", "maxLength": i} for i in range(900)]}


def test_a_schema_may_not_leave_too_much_open():
    tokenizer = BpeTokenizer.train(["ab" * 32 + " " + "cd" * 32] * 9, 300)
    config = SamplingConfig(json_schema=LENGTHS)
    [held] = constraints_of(config, tokenizer, [[]], (tokenizer.end_id,))
    held = held.after(tokenizer.encode('"')[-1])
    with pytest.raises(ConfigError, match="leaves too much open at once"):
        held.prepare()


def test_what_is_remembered_of_a_long_answer_is_bounded(monkeypatch):
    monkeypatch.setattr(byte_grammar, "MOST_STACKS", 5000)
    monkeypatch.setattr(constraint, "MASK_BYTES", 257 * 20)
    tokenizer = ByteTokenizer()
    config = SamplingConfig(json_schema={"type": "string", "maxLength": 400})
    [held] = constraints_of(config, tokenizer, [[]], (tokenizer.end_id,))
    for token in tokenizer.encode('"' + "a" * 399):
        assert held.masked(np.zeros(tokenizer.vocab_size))[token] == 0
        held = held.after(token)
        assert len(held._allowed._known) <= 22
        assert held._state._known.stacks <= 2 * 5000
    assert len(held._state._known) < 500


def test_a_schema_may_not_be_nested_without_end():
    schema = {}
    for _ in range(20_000):
        schema = {"items": schema}
    with pytest.raises(ConfigError, match="json_schema"):
        constraints_of(SamplingConfig(json_schema=schema), ByteTokenizer(), [[]], (0,))


LEARNED = ['The sun "rises" {in} the [east]. 雨下得很大。 User: don\'t 1.5 true, 🙂 é red']
TOKENIZERS = {
    "word": lambda: WordTokenizer.train(LEARNED),
    "char": lambda: CharTokenizer.train(LEARNED),
    "byte": ByteTokenizer,
    "bpe": lambda: BpeTokenizer.train(LEARNED, 320),
}


def answered(config, tokenizer, prompt, rng, likely='"}]0 '):
    """Return a text whose tokens are drawn from those that may follow."""
    ids = tokenizer.encode(prompt)
    [constraint], made = constraints_of(config, tokenizer, [ids], (tokenizer.end_id,)), []
    ends = [tokenizer.encode(sign)[-1] for sign in likely]
    while len(made) < 3000:
        scores = rng.standard_normal(tokenizer.vocab_size)
        scores[[*ends, *[tokenizer.end_id] * bool(ends)]] += 3  # or it would take long
        scores = constraint.masked(scores)
        token = int(scores.argmax())
        assert scores[token] > -np.inf
        if token == tokenizer.end_id:
            return tokenizer.decode(made, after=ids)
        made.append(token)
        constraint = constraint.after(token)
    raise AssertionError("no end")


@pytest.mark.parametrize("name", TOKENIZERS)
@pytest.mark.parametrize("prompt", ["", "User: what?", 'it is "', "雨"])
def test_whatever_is_drawn_follows_the_schema(name, prompt):
    tokenizer, rng = TOKENIZERS[name](), np.random.default_rng(1)
    has_validator = importlib.util.find_spec("jsonschema") is not None
    for schema, _, _ in CASES.values():
        if schema in (True, CASES["empty"][0], {"type": "object"}):
            continue  # may nest long
        config = SamplingConfig(json_schema=schema)
        for _ in range(5):
            text = answered(config, tokenizer, prompt, rng)
            value = json.loads(text)
            assert follows(schema, text.removeprefix(" "))
            if has_validator:
                import jsonschema

                jsonschema.validate(value, schema)


@pytest.mark.parametrize("name", TOKENIZERS)
def test_whatever_is_drawn_is_one_of_the_choices(name):
    tokenizer, rng = TOKENIZERS[name](), np.random.default_rng(1)
    choices = ["red", "red sun", "雨", "🙂", "  x", '"no"']
    config, seen = SamplingConfig(choices=choices), set()
    for prompt in ("", "User: what?", 'it is "', "雨"):
        for _ in range(30):
            text = answered(config, tokenizer, prompt, rng, likely="")
            assert text in [*choices, *(f" {choice}" for choice in choices)]
            seen.add(text.strip())
    assert seen == {choice.strip() for choice in choices}


def test_a_tokenizer_of_ones_own_is_told():
    class Own:
        vocab_size, end_id = 3, 0

        def stream(self, skip_special=True, *, after=()):
            return self

    with pytest.raises(ConfigError, match="need a tokenizer of rustgpt's, not a Own"):
        constraints_of(SamplingConfig(choices=["a"]), Own(), [[]], (0,))


@pytest.mark.parametrize(
    "schema",
    [
        {"type": 5},
        {"type": [["null"]]},
        {"$ref": []},
        {"required": [[1]]},
        {"properties": {}, "required": [5]},
        {"enum": [1, 2], "const": 3},
        {"$ref": "#", "anyOf": [{"type": "null"}]},
    ],
)
def test_a_schema_that_says_nothing_clear_is_refused(schema):
    with pytest.raises(ConfigError):
        grammar_of(schema)
