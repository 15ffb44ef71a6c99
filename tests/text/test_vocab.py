"""Which tokens a vocabulary has, in which order, and which it refuses."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rustgpt.errors import ConfigError, TokenizerError
from rustgpt.text.vocab import Vocab

FIXED = ["</s>", "<join>", "<space>", *(f"<0x{byte:02X}>" for byte in range(256))]
ALPHABET = [*"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"]
PIECES = ["##" + letter for letter in ALPHABET]
SMALLEST = 259 + 62 + 62


def as_json(**changes: object) -> str:
    content = {"format": "rustgpt-word", "version": 1, "tokens": [*FIXED, "##a", "the", "?"]}
    return json.dumps({**content, **changes})


def test_layout():
    vocab = Vocab.build({"sun": 2, "the": 5, "?": 1, "山": 3, "\n": 1, " ": 7})
    assert list(vocab.tokens) == [
        *FIXED,
        *PIECES,
        *sorted(["\n", *ALPHABET, "?", "sun", "the", "山"]),
    ]
    assert len(vocab) == SMALLEST + 5
    assert vocab.ids["</s>"] == 0
    assert vocab.ids["<0x00>"] == 3
    assert vocab.tokens[vocab.ids["山"]] == "山"
    assert "sun" in vocab
    assert " " not in vocab
    assert "moon" not in vocab


def test_characters_of_words_can_be_spelled_and_others_are_not_pieces():
    vocab = Vocab.build({"über": 1, "é" * 40: 1, "？": 1, "山": 1})
    assert {"ü", "##ü", "é", "##é", "über"} <= set(vocab.tokens)
    assert "##？" not in vocab
    assert "##山" not in vocab


def test_a_word_longer_than_32_characters_is_left_to_pieces():
    vocab = Vocab.build({"x" * 32: 1, "y" * 33: 9})
    assert "x" * 32 in vocab
    assert "y" * 33 not in vocab


def test_half_a_surrogate_pair_is_left_to_bytes():
    assert Vocab.build({"a\ud800": 1, "\udfff": 5}) == Vocab.build({})


def test_fragments_stand_in_five_words_not_at_the_start_and_have_letters_only():
    words = ["going", "doing", "seeing", "flying", "trying", "a1990", "b1990", "c1990", "d1990"]
    found = Vocab.build(dict.fromkeys([*words, "e1990"], 1))
    # "going" and its kind share "in", "ng" and "ing"; "oing", "ying" stand in two words.
    assert [t for t in found.tokens if t.startswith("##") and len(t) > 3] == [
        "##in",
        "##ing",
        "##ng",
    ]


def test_at_most_100_fragments_and_those_that_save_most():
    pairs = [a + b for a in "abcdefgh" for b in "ijklmpqrsuvwxyz"]  # 120, in alphabetical order
    words = [start + end for start in "ABCDE" for end in [*pairs, "tion"]]
    fragments = [
        t[2:] for t in Vocab.build(dict.fromkeys(words, 1)).tokens if t[:2] == "##" and t[3:]
    ]
    assert fragments == sorted([*pairs[:97], "ion", "tio", "tion"])


def test_limit_keeps_the_most_frequent_and_then_the_first_in_the_alphabet():
    counts = {"zoo": 9, "cat": 2, "bee": 2, "ant": 1, "!": 2}
    vocab = Vocab.build(counts, SMALLEST + 3)
    assert [t for t in vocab.tokens if t in counts] == ["!", "bee", "zoo"]
    assert len(vocab) == SMALLEST + 3
    assert Vocab.build(counts, SMALLEST + 99) == Vocab.build(counts)
    assert len(Vocab.build(counts, SMALLEST)) == SMALLEST


@pytest.mark.parametrize(
    "size", [SMALLEST - 1, 0, pytest.param(-(10**5000), id="huge"), True, 1e9, "500"]
)
def test_limit_below_what_is_needed(size):
    with pytest.raises(ConfigError, match=f"from {SMALLEST} on"):
        Vocab.build({"zoo": 9}, size)


def test_json_round_trip_is_readable():
    vocab = Vocab.build({"sun": 2, "山": 1, "\u2028": 1, "\x00": 1})
    text = vocab.to_json()
    assert '\n  "sun",\n' in text
    assert '\n  "山"\n' in text
    assert json.loads(text)["tokens"] == list(vocab.tokens)
    assert Vocab.from_json(text) == vocab
    assert Vocab.from_json(text).ids == vocab.ids


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "cannot be read as JSON"),
        ("{", "cannot be read as JSON"),
        ("[" * 100_000, "cannot be read as JSON"),
        ("9" * 5_000, "cannot be read as JSON"),
        ("\ufeff" + as_json(), "cannot be read as JSON"),
        ("NaN", "no tokenizer of rustgpt"),
        ("[]", "no tokenizer of rustgpt"),
        ("{}", "no tokenizer of rustgpt"),
        (as_json(format="bpe"), "of the format 'bpe', not rustgpt-word"),
        (as_json(version=2), "update rustgpt"),
        (as_json(version=0), "whole number"),
        (as_json(version=True), "whole number"),
        (as_json(version=1.0), "whole number"),
        (as_json(version="1"), "whole number"),
        (as_json(version=None), "whole number"),
        (as_json(extra=1), "consists of"),
        (as_json(tokens={}), "consists of"),
        ('{"format": "rustgpt-word", "version": 1}', "consists of"),
        (as_json()[:-1] + ', "version": 1}', "stands twice"),
        (as_json(tokens=[]), "token 0 must be '</s>', but is missing"),
        (as_json(tokens=FIXED[:-1]), "token 258 must be '<0xFF>', but is missing"),
        (as_json(tokens=FIXED[1:]), "token 0 must be '</s>', not '<join>'"),
        (as_json(tokens=[*FIXED[:5], "a", *FIXED[5:]]), "token 5 must be '<0x02>', not 'a'"),
        (as_json(tokens=[*FIXED, 5]), "token 259 is a int, not a string"),
        (as_json(tokens=[*FIXED, None]), "not a string"),
        (as_json(tokens=[*FIXED, ["a"]]), "not a string"),
        (as_json(tokens=[*FIXED, "a", "b", "a"]), "token 'a' stands twice, as 259 and 261"),
        (as_json(tokens=[*FIXED, ""]), "token 259 is ''"),
        (as_json(tokens=[*FIXED, " "]), "token 259 is ' '"),
        (as_json(tokens=[*FIXED, "##"]), "neither a word"),
        (as_json(tokens=[*FIXED, "####a"]), "neither a word"),
        (as_json(tokens=[*FIXED, "a b"]), "neither a word"),
        (as_json(tokens=[*FIXED, "a,b"]), "neither a word"),
        (as_json(tokens=[*FIXED, "a\u2028b"]), "neither a word"),
        (as_json(tokens=[*FIXED, "</s>"]), "neither a word"),
        (as_json(tokens=[*FIXED, "\ud800"]), "neither a word"),
        (as_json(tokens=[*FIXED, "a\udfffb"]), "neither a word"),
        (as_json(tokens=[*FIXED, "x" * 33]), "neither a word"),
        (as_json(tokens=[*FIXED, "x" * 10_000_000]), "neither a word"),
        (None, "not from NoneType"),
        (b"{}", "not from bytes"),
    ],
    ids=lambda value: None if isinstance(value, str) and len(value) < 60 else "long",
)
def test_from_json_refuses(text, message):
    with pytest.raises(TokenizerError, match=r"^[^\n]{1,300}$") as caught:
        Vocab.from_json(text)
    assert message in str(caught.value)


SAVED = Vocab.build({"sun": 2, "the": 1, "?": 1}).to_json()


@settings(deadline=None)
@given(st.integers(0, len(SAVED)), st.integers(0, 12), st.text(st.characters(), max_size=4))
def test_a_damaged_file_is_refused_or_means_what_it_says(start, length, inserted):
    damaged = SAVED[:start] + inserted + SAVED[start + length :]
    try:
        vocab = Vocab.from_json(damaged)
    except TokenizerError:
        return
    assert list(vocab.tokens) == json.loads(damaged)["tokens"]
    assert Vocab.from_json(vocab.to_json()) == vocab
