"""Owns the tests of `rustgpt.text.library_json`: the library gives the same ids and texts."""

import json
import random

import pytest

from rustgpt.text.char_tokenizer import ByteTokenizer, CharTokenizer
from rustgpt.text.library_json import beginning_json, characters_json, first_id, from_library

from ..formats.texts import random_text

KNOWN = "abcdefghijklmnopqrstuvwxyz ESTh.,好😀\n\u0301<>x0"
CHARACTERS = "".join(dict.fromkeys(KNOWN))


@pytest.mark.parametrize("characters", [CHARACTERS, ""])
def test_the_library_gives_the_same_ids_and_texts(characters):
    library = pytest.importorskip("tokenizers").Tokenizer
    tokenizer = CharTokenizer(characters) if characters else ByteTokenizer()
    twin = library.from_str(json.dumps(characters_json(characters)))
    rng = random.Random(5)
    for _ in range(2000):
        text = random_text(rng)
        ids = twin.encode(text).ids
        assert ids == tokenizer.encode(text), text
        assert twin.decode(ids) == text == tokenizer.decode(ids)
    assert twin.get_vocab_size() == tokenizer.vocab_size


@pytest.mark.parametrize("characters", [CHARACTERS, ""])
def test_what_is_written_is_known_again(characters):
    found = from_library(json.loads(json.dumps(characters_json(characters))))
    assert type(found) is (CharTokenizer if characters else ByteTokenizer)
    assert getattr(found, "characters", "") == characters


@pytest.mark.parametrize(
    "change",
    [
        lambda c: c.pop("model"),
        lambda c: c["model"].update(merges=["a b"]),
        lambda c: c["model"].update(byte_fallback=False),
        lambda c: c["model"]["vocab"].update(a=999),
        lambda c: c["model"]["vocab"].update(ab=300),
        lambda c: c["model"].update(vocab=[]),
        lambda c: c.update(model=[]),
        lambda c: c.update(normalizer={"type": "Lowercase"}),
        lambda c: c["decoder"]["decoders"].pop(),
        lambda c: c["added_tokens"][0].update(special=False),
    ],
)
def test_anything_else_is_not(change):
    content = characters_json("abc")
    change(content)
    assert from_library(content) is None


@pytest.mark.parametrize(
    "post",
    [
        None, [], {}, {"type": "TemplateProcessing"}, {"type": "ByteLevel"},
        {"type": "TemplateProcessing", "single": []},
        {"type": "TemplateProcessing", "single": [{"Sequence": {"id": "A"}}]},
        {"type": "Sequence", "processors": 3},
        beginning_json("</s>", 0) | {"special_tokens": {"</s>": {"ids": ["x"]}}},
        beginning_json("</s>", 0) | {"special_tokens": {"</s>": {"ids": []}}},
    ],
)  # fmt: skip
def test_no_start_token(post):
    assert first_id({"post_processor": post}) == -1


def test_a_start_token():
    assert first_id({"post_processor": beginning_json("</s>", 7)}) == 7
