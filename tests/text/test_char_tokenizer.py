"""Tokenizers of characters and of bytes: nothing is lost, whatever the text."""

import json
import pickle

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from rustgpt.errors import ConfigError, DataError, TokenizerError
from rustgpt.text import char_tokenizer
from rustgpt.text.char_tokenizer import ByteTokenizer, CharTokenizer

from .any_text import ANY_TEXT, HARD_TEXTS

KNOWN = CharTokenizer.train(["The sun </s>", "é山\n"])
TOKENIZERS = [KNOWN, CharTokenizer(""), ByteTokenizer()]
BOTH = pytest.mark.parametrize("tokenizer", [KNOWN, ByteTokenizer()])


@settings(max_examples=500, deadline=None)
@given(st.sampled_from(TOKENIZERS), ANY_TEXT)
@example(KNOWN, "é山e\u0301")
def test_decode_inverts_encode(tokenizer, text):
    ids = tokenizer.encode(text)
    assert all(type(i) is int and 0 < i < tokenizer.vocab_size for i in ids)
    assert tokenizer.decode(ids) == text
    stream = tokenizer.stream()
    assert "".join([*map(stream.push, ids), stream.finish()]) == text


@pytest.mark.slow
@pytest.mark.parametrize("tokenizer", TOKENIZERS)
def test_hard_texts(tokenizer):
    for text in HARD_TEXTS:
        assert tokenizer.decode(tokenizer.encode(text)) == text


@settings(deadline=None)
@given(st.lists(st.integers(0, KNOWN.vocab_size - 1), max_size=25), st.integers(0, 25))
def test_any_ids_decode(ids, cut):
    before, rest = ids[:cut], ids[cut:]
    stream = KNOWN.stream(after=before)
    streamed = "".join([*map(stream.push, rest), stream.finish()])
    assert streamed == KNOWN.decode(rest, after=before)
    utf8 = b"".join(b"" if not i else KNOWN._pieces[i] for i in ids)
    try:
        assert KNOWN.decode(ids) == utf8.decode("utf-8", "surrogatepass")
    except UnicodeDecodeError:
        assert "\ufffd" in KNOWN.decode(ids)


def test_numbers_of_tokens():
    tokenizer = CharTokenizer("ba")
    assert tokenizer.encode("ab</s>é") == [
        *(258, 257, 1 + ord("<"), 1 + ord("/"), 1 + ord("s"), 1 + ord(">"), 1 + 0xC3, 1 + 0xA9)
    ]
    assert ByteTokenizer().encode("é\n") == [1 + 0xC3, 1 + 0xA9, 1 + 10]
    assert (tokenizer.vocab_size, ByteTokenizer().vocab_size) == (259, 257)
    assert tokenizer.tokens("a\xff") == ["a", "<0xC3>", "<0xBF>"]
    assert [i for i in range(259) if tokenizer.spells(i)] == [*range(1, 257)]
    assert not any(map(ByteTokenizer().spells, range(257)))


def test_blocks_change_nothing(monkeypatch):
    text = "The sun é\ud800山x" * 30 + "sun"
    assert [i for piece in text.split("é") for i in [*KNOWN.encode(piece), KNOWN.encode("é")[0]]][
        :-1
    ] == KNOWN.encode(text)
    whole = [tokenizer.encode(text) for tokenizer in TOKENIZERS]
    monkeypatch.setattr(char_tokenizer, "BLOCK", 5)
    assert [tokenizer.encode(text) for tokenizer in TOKENIZERS] == whole


@BOTH
def test_the_end_token(tokenizer):
    one = tokenizer.encode("The sun")
    for text in ("The sun </s>", "The sun</s>", "The sun </s> \n"):
        assert tokenizer.encode(text, allow_special=True) == [*one, tokenizer.end_id]
        assert tokenizer.end_id not in tokenizer.encode(text)
        assert tokenizer.decode(tokenizer.encode(text)) == text
    ids = tokenizer.encode("sun</s>sun", allow_special=True)
    assert tokenizer.decode(ids) == "sunsun"
    assert tokenizer.decode(ids, skip_special=False) == "sun</s>sun"


@BOTH
def test_a_character_cut_by_after_appears_with_its_last_byte(tokenizer):
    first, *others = tokenizer.encode("龘")
    assert tokenizer.decode([first]) == "\ufffd"
    assert tokenizer.decode(others, after=[first]) == "龘"
    stream = tokenizer.stream(after=[first])
    assert [stream.push(i) for i in others] == ["", "龘"]
    assert tokenizer.decode([first, *tokenizer.encode("s")]) == "\ufffds"


def test_train_takes_characters_by_their_count():
    small = CharTokenizer.train(["aab", "ccc</s>", "bd"], 257 + 2)
    assert small.characters == "ac"
    assert CharTokenizer.train(["aab", "ccc</s>"]).characters == "abc"
    assert CharTokenizer.train(["a\ud800"]).characters == "a"
    for limit in (256, 0, True, 300.0):
        for kind in (CharTokenizer, ByteTokenizer):
            with pytest.raises(ConfigError, match="from 257 on"):
                kind.train(["a"], limit)
    for wrong in ("one text", [b"a"], [None]):
        with pytest.raises(DataError, match="to train"):
            CharTokenizer.train(wrong)


def test_on_disk():
    again = CharTokenizer.from_json(KNOWN.to_json())
    assert again.characters == KNOWN.characters
    assert again.encode("é龘") == KNOWN.encode("é龘")
    assert ByteTokenizer.from_json(ByteTokenizer().to_json()).vocab_size == 257
    assert pickle.loads(pickle.dumps(KNOWN)).encode("é龘") == KNOWN.encode("é龘")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"characters": "aa"}, "'a' stands twice"),
        ({"characters": "\ud800"}, "halves"),
        ({"characters": ["a"]}, 'a text "characters"'),
        ({"version": 2}, "newer rustgpt"),
        ({"version": 0}, "whole number"),
        ({"more": 1}, "consists of"),
        ({"format": "letters"}, "of the format 'letters'"),
    ],
)
def test_damaged_files(change, words):
    content = {**json.loads(KNOWN.to_json()), **change}
    with pytest.raises(TokenizerError, match=words):
        CharTokenizer.from_json(json.dumps(content))
    with pytest.raises(TokenizerError, match='"bytes": 256'):
        ByteTokenizer.from_json(ByteTokenizer().to_json().replace("256", "255"))


@BOTH
@pytest.mark.parametrize("wrong", [-1, 2**70, 1.0, True, None, "1", np.float64(1)])
def test_what_is_no_token_id(tokenizer, wrong):
    for use in (
        lambda: tokenizer.decode([5, wrong]),
        lambda: tokenizer.decode([5], after=[wrong]),
        lambda: tokenizer.stream().push(wrong),
        lambda: tokenizer.name(wrong),
    ):
        with pytest.raises(TokenizerError, match="a token id must be"):
            use()
    with pytest.raises(TokenizerError, match=f"not {tokenizer.vocab_size}"):
        tokenizer.decode([tokenizer.vocab_size])
    for no_text in (None, b"sun", 5):
        with pytest.raises(TokenizerError, match="only text can be encoded"):
            tokenizer.encode(no_text)


def test_new_characters_come_after_all_others():
    known = CharTokenizer.train(["ca"])
    larger = known.extended(["bad </s>", "é\ud800"])
    assert larger.characters == "acbdé"
    assert larger.encode("ca") == known.encode("ca")
    assert larger.decode(larger.encode("bad é")) == "bad é"
    assert known.characters == "ac"
