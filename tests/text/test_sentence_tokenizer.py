"""Owns the tests of `rustgpt.text.sentence_tokenizer`: ids and texts are those of the library."""

import copy
import json
import pickle
import random

import pytest

from rustgpt.errors import TokenizerError
from rustgpt.text.library_json import read_library
from rustgpt.text.sentence_tokenizer import STRIP, SentenceTokenizer
from rustgpt.text.tokenizer import read_tokenizer

from ..formats.texts import random_text

tokenizers = pytest.importorskip("tokenizers")

TEXTS = [
    "the sun and the moon and the sea",
    "The sun rises in the east.",
    "naïve 好 don't 1,500",
] * 9
SPECIALS = ["<unk>", "<s>", "</s>"]
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
REPLACE = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
BACK = {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}


def llama2(strip=True):
    """A tokenizer.json as Llama 2 has it, small; without `strip` as Gemma."""
    trained = tokenizers.Tokenizer(tokenizers.models.BPE())
    trainer = tokenizers.trainers.BpeTrainer(vocab_size=120, show_progress=False)
    spaced = [("▁" * strip + text).replace(" ", "▁") for text in TEXTS]
    trained.train_from_iterator(spaced, trainer)
    model = json.loads(trained.to_str())["model"]
    known = [*SPECIALS, *BYTES, *(t for t in model["vocab"] if t not in SPECIALS)]
    ends = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    prepend = [{"type": "Prepend", "prepend": "▁"}] * strip
    decoders = [BACK, {"type": "ByteFallback"}, {"type": "Fuse"}]
    return {
        "version": "1.0", "truncation": None, "padding": None,
        "added_tokens": [
            {"id": i, "content": name, "special": True, **ends} for i, name in enumerate(SPECIALS)
        ],
        "normalizer": {"type": "Sequence", "normalizers": [*prepend, REPLACE]},
        "pre_tokenizer": None, "post_processor": None,
        "decoder": {
            "type": "Sequence",
            "decoders": decoders + [dict(STRIP)] * strip,
        },
        "model": {
            **model, "unk_token": "<unk>", "fuse_unk": True, "byte_fallback": True,
            "vocab": {token: i for i, token in enumerate(known)},
        },
    }  # fmt: skip


def all_pairs(content):
    """Have all pairs that give a token, as tokenizers that were made by SentencePiece do."""
    vocab = content["model"]["vocab"]
    content["model"]["merges"] = [
        [token[:i], token[i:]] for token in vocab if token not in [*SPECIALS, *BYTES]
        for i in range(len(token) - 1, 0, -1) if {token[:i], token[i:]} <= vocab.keys()
    ]  # fmt: skip
    return content


def metaspace():
    """The same in a newer spelling."""
    content = llama2() | {"normalizer": None}
    cut = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": False}
    return content | {"pre_tokenizer": cut}


FORMS = {"Llama 2": llama2(), "newer": metaspace(), "no prefix": llama2(strip=False)}


@pytest.mark.parametrize("form", FORMS)
def test_ids_and_texts_are_those_of_the_library(form):
    ours = read_library(FORMS[form])
    theirs = tokenizers.Tokenizer.from_str(json.dumps(FORMS[form]))
    assert isinstance(ours, SentenceTokenizer)
    assert (ours.vocab_size, ours.end_id) == (theirs.get_vocab_size(), 2)
    rng = random.Random(3)
    for _ in range(2000):
        text = random_text(rng).replace("▁", "")
        text = text.lstrip(" ") if form == "newer" else text  # which it does not keep
        ids = ours.encode(text)
        assert ids == theirs.encode(text).ids, text
        assert ours.decode(ids) == text == theirs.decode(ids)
        assert ours.decode([1, *ids, 2]) == text
        cut = rng.randrange(len(ids) + 1)
        parts = ours.decode(ids[:cut]), ours.decode(ids[cut:], after=[1, *ids[:cut]])
        if "\ufffd" not in "".join(parts):
            assert "".join(parts) == text


def test_a_text_that_begins_with_a_space_keeps_it():
    ours = read_library(FORMS["Llama 2"])
    for text in (" the sun", "  the", " ", "the ", ""):
        assert ours.decode(ours.encode(text)) == text
    assert ours.decode(ours.encode("the"), skip_special=False) == "the"
    assert ours.decode([2, *ours.encode("the")], skip_special=False) == "</s> the"


def test_names_of_special_tokens_and_bytes_are_text():
    ours = read_library(FORMS["Llama 2"])
    for text in ("</s>", "<s>", "<unk>", "<0x41>"):
        ids = ours.encode(text)
        assert not {0, 1, 2} & {*ids}
        assert ours.decode(ids) == text
    assert ours.encode("sun</s> sea", allow_special=True) == [
        *ours.encode("sun"), 2, *ours.encode("sea"),
    ]  # fmt: skip


def test_what_has_no_token_is_spelled_in_bytes():
    ours = read_library(FORMS["Llama 2"])
    assert [ours.name(i) for i in ours.encode("😀")[1:]] == ["<0xF0>", "<0x9F>", "<0x98>", "<0x80>"]
    assert ours.decode(ours.encode("\ud800 ▁")) == "\ufffd  "


def test_a_stream_tells_what_each_token_would_append():
    ours = read_library(FORMS["Llama 2"])
    ids = ours.encode("the sun 😀 sea")
    stream, text = ours.stream(), b""
    for i in ids:
        appended = stream.appended()[i]
        text += appended
        stream.push(i)
    assert text.decode() == "the sun 😀 sea"
    twin = ours.stream().copy()
    assert twin.state != stream.state
    assert "the sun".startswith(twin.push(ids[0]))


def test_it_is_kept_on_disk_and_copied():
    ours = read_library(FORMS["Llama 2"], "</s>", 500)
    assert ours.vocab_size == 500
    for again in (
        read_tokenizer(ours.to_json()), copy.deepcopy(ours), pickle.loads(pickle.dumps(ours)),
    ):  # fmt: skip
        assert type(again) is SentenceTokenizer
        assert again.to_json() == ours.to_json()
        assert again.encode("the sun 好") == ours.encode("the sun 好")


def no_bytes(content):
    for name in BYTES[3:9]:
        content["model"]["vocab"][f"x{name}"] = content["model"]["vocab"].pop(name)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (no_bytes, "no tokens for the 256 bytes"),
        (lambda c: c["model"].update(byte_fallback=False), "no tokens for the 256 bytes"),
        (lambda c: c["decoder"]["decoders"].pop(0), "the decoders are"),
        (lambda c: c["decoder"]["decoders"].pop(2), "the decoders are"),
        (lambda c: c["decoder"]["decoders"].pop(), "does not come back"),
        (lambda c: c["decoder"]["decoders"][3].update(start=2), "the decoders are"),
        (lambda c: c["decoder"]["decoders"][0].update(content="_"), "the decoders are"),
        (lambda c: c.update(normalizer=None), "does not come back"),
        (lambda c: c["model"].update(type="Unigram"), "the model is 'Unigram'"),
    ],
)
def test_a_tokenizer_that_loses_text_is_refused(change, message):
    content = copy.deepcopy(FORMS["Llama 2"])
    change(content)
    with pytest.raises(TokenizerError, match=message):
        read_library(content)
