"""What may be wrong with a tokenizer's file."""

import json
import random

import pytest

from rustgpt.errors import TokenizerError
from rustgpt.text.char_tokenizer import ByteTokenizer, CharTokenizer
from rustgpt.text.tokenizer import WordTokenizer, read_tokenizer
from rustgpt.text.tokenizer_json import read_content, read_object


def test_content():
    text = '{"format": "rows", "version": 1, "rows": [1]}'
    assert read_content(text, "rows", 1, "rows", list) == [1]
    assert read_object(text) == json.loads(text)
    assert read_object("[]") is None
    for change, words in (
        ('"version": 1|"version": true', "whole number"),
        ('"version": 1|"version": 2', "newer rustgpt"),
        ('"version": 1, |', "whole number"),
        ("[1]|1", 'a list "rows"'),
        ('"rows": [1]|"row": [1]', "consists of"),
        ('"format": "rows"|"format": "columns"', "of the format 'columns', not rows"),
        ('"format": "rows", |', "lacks"),
        ("[1]|[1], 5", "cannot be read as JSON"),
        ('"version": 1|"version": 1, "version": 1', "stands twice"),
    ):
        with pytest.raises(TokenizerError, match=words):
            read_content(text.replace(*change.split("|")), "rows", 1, "rows", list)
    with pytest.raises(TokenizerError, match="not from bytes"):
        read_object(b"{}")


@pytest.mark.parametrize(
    "tokenizer",
    [WordTokenizer.train(["The sun, 雨"]), CharTokenizer.train(["sun 雨"]), ByteTokenizer()],
)
def test_damaged_files_give_no_other_error(tokenizer):
    text, draw = tokenizer.to_json(), random.Random(0)
    for _ in range(1000):
        at = draw.randrange(len(text))
        put = draw.choice(["", "0", "{", '"', "[]", "\\", "\ud800", "\\ud800", "\x00", "é", "null"])
        damaged = text[:at] + put + text[at + draw.randrange(3) :]
        try:
            found = read_tokenizer(damaged)
        except TokenizerError:
            continue
        for sample in ("The sun é\ud800", "雨 </s>"):
            assert found.decode(found.encode(sample)) == sample
