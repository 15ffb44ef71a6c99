"""Byte-level BPE: ids and text of the library's own, and nothing lost."""

import copy
import json
import os
import pickle
import random
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rustgpt import LLM, ModelConfig
from rustgpt.errors import ConfigError, TokenizerError
from rustgpt.text import bpe_tokenizer, chunks
from rustgpt.text.bpe_tokenizer import BpeTokenizer
from rustgpt.text.tokenizer import read_tokenizer

from .any_text import ANY_TEXT, HARD_TEXTS, PARTS

tokenizers = pytest.importorskip("tokenizers")

TEXTS = [
    "The sun rises in the east, and it's warm. The sun sets in the west, and we'll rest. </s>",
    "User: Who rises? Assistant: The sun rises, rising and setting, setting and rising. </s>",
    "山是怎样形成的？山是地壳运动形成的，很慢。\n\n    山\n\n\t\tsun\n \n",
] * 3
TOKENIZER = BpeTokenizer.train(TEXTS, 400)
LIBRARY = tokenizers.Tokenizer.from_str(TOKENIZER.to_json())
SOUND = ANY_TEXT.map(lambda text: text.encode("utf-8", "replace").decode())


def others(end: str = "<|endoftext|>", **model: object) -> dict:
    """Return the content of a file of another program, cut as Qwen's or Llama's."""
    level = tokenizers.pre_tokenizers.ByteLevel
    pattern = tokenizers.Regex(r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+|\s+")
    parts = [
        tokenizers.pre_tokenizers.Split(pattern, "isolated"),
        level(add_prefix_space=False, use_regex=False),
    ]
    made = tokenizers.Tokenizer(tokenizers.models.BPE())
    made.pre_tokenizer = tokenizers.pre_tokenizers.Sequence(parts)
    made.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=350,
        initial_alphabet=level.alphabet(),
        show_progress=False,
        special_tokens=[end] if end else [],
    )
    made.train_from_iterator(TEXTS, trainer)
    made.enable_truncation(3)
    made.enable_padding(length=50)
    content = json.loads(made.to_str())
    content["model"].update(model)
    return content


OTHER = BpeTokenizer(others(dropout=0.5))


@settings(max_examples=300, deadline=None)
@given(SOUND)
def test_ids_are_the_librarys(text):
    LIBRARY.encode_special_tokens = True
    assert TOKENIZER.encode(text) == LIBRARY.encode(text).ids
    library = tokenizers.Tokenizer.from_str(OTHER.to_json())
    library.encode_special_tokens = True
    assert OTHER.encode(text) == library.encode(text).ids


@settings(max_examples=300, deadline=None)
@given(st.lists(st.integers(0, TOKENIZER.vocab_size - 1), max_size=15), st.booleans())
def test_text_is_the_librarys(ids, skip_special):
    text = TOKENIZER.decode(ids, skip_special)
    if not any("\ud800" <= character <= "\udfff" for character in text):
        assert text == LIBRARY.decode(ids, skip_special_tokens=skip_special)
    stream = TOKENIZER.stream(skip_special, after=ids[:3])
    streamed = "".join([*map(stream.push, ids[3:]), stream.finish()])
    assert streamed == TOKENIZER.decode(ids[3:], skip_special, after=ids[:3])


@settings(max_examples=300, deadline=None)
@given(st.sampled_from([TOKENIZER, OTHER]), ANY_TEXT)
def test_decode_inverts_encode(tokenizer, text):
    ids = tokenizer.encode(text)
    assert tokenizer.end_id not in ids
    assert tokenizer.decode(ids) == text


@pytest.mark.slow
def test_hard_texts():
    for text in HARD_TEXTS:
        assert TOKENIZER.decode(TOKENIZER.encode(text)) == text


@pytest.mark.slow
def test_ids_are_the_librarys_whatever_the_code_points():
    LIBRARY.encode_special_tokens = True
    every = [chr(code) for code in range(0x110000) if not 0xD800 <= code < 0xE000]
    for between in ("", "a", " ", "1", "\n"):
        text = between.join(every[:: 1 if between == " " else 29])
        assert TOKENIZER.encode(text) == LIBRARY.encode(text).ids


def test_long_pieces_are_the_librarys():
    LIBRARY.encode_special_tokens = True
    for letter in ("a", "山", " ", "\n", "9", "-", "thes"):
        for n in (511, 512, 513, 5000):
            text = f"sun {letter * n}1 {letter * n} sun"
            assert TOKENIZER.encode(text) == LIBRARY.encode(text).ids


@pytest.mark.parametrize("name", ["cython", "reference"])
def test_blocks_change_nothing(monkeypatch, switch_backend, name):
    switch_backend(name)
    monkeypatch.setattr(chunks, "BLOCK", 5)
    monkeypatch.setattr(bpe_tokenizer, "BLOCK", 5)
    monkeypatch.setattr(bpe_tokenizer, "_KINDS", np.zeros(0x110000, np.uint8))
    LIBRARY.encode_special_tokens = True
    draw = random.Random(0)
    for _ in range(300):
        text = "".join(part for part in draw.choices(PARTS, k=40) if part not in "\ud800\udc00")
        assert TOKENIZER.encode(text) == LIBRARY.encode(text).ids


def test_the_end_token():
    assert TOKENIZER.encode("sun </s> sun", True) == [
        *TOKENIZER.encode("sun"), TOKENIZER.end_id, *TOKENIZER.encode("sun"),
    ]  # fmt: skip
    assert TOKENIZER.decode([TOKENIZER.end_id], skip_special=False) == "</s>"
    assert OTHER.name(OTHER.end_id) == "<|endoftext|>"
    assert OTHER.end_id not in OTHER.encode("<|endoftext|>", allow_special=True)
    assert OTHER.encode("sun</s>", allow_special=True)[-1] == OTHER.end_id
    added = BpeTokenizer(others(end=""))
    assert (added.name(added.end_id), added.end_id) == ("</s>", added.vocab_size - 1)
    assert BpeTokenizer.from_json(added.to_json()).end_id == added.end_id


def test_training():
    assert 257 < TOKENIZER.vocab_size <= 400
    assert TOKENIZER.tokens("The sun rises") == ["The", " sun", " rises"]
    assert BpeTokenizer.train(TEXTS, 400).to_json() == TOKENIZER.to_json()
    assert BpeTokenizer.train([], 257).vocab_size == 257
    assert BpeTokenizer.train(["\ud800"], 300).decode([]) == ""
    with pytest.raises(ConfigError, match="from 257 on"):
        BpeTokenizer.train(TEXTS, 256)


def trained_by_the_library(texts: list[str], size: int) -> dict:
    level = tokenizers.pre_tokenizers.ByteLevel
    made = tokenizers.Tokenizer(tokenizers.models.BPE())
    made.pre_tokenizer = level(add_prefix_space=False)
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=size,
        initial_alphabet=level.alphabet(),
        show_progress=False,
        special_tokens=["</s>"],
    )
    made.train_from_iterator([text.replace(" </s>", "") for text in texts], trainer)
    return json.loads(made.to_str())["model"]


@pytest.mark.parametrize("name", ["cython", "reference"])
def test_merges_are_those_that_the_library_learns(monkeypatch, switch_backend, name):
    switch_backend(name)
    draw = random.Random(1)
    sound = [part for part in PARTS if part not in ("\ud800", "\udc00", "</s>")]
    texts = [*TEXTS, *("".join(draw.choices(sound, k=50)) for _ in range(200))]
    expected = trained_by_the_library(texts, 900)
    monkeypatch.setattr(chunks, "BLOCK", 50)
    monkeypatch.setattr(bpe_tokenizer, "AT_ONCE", 3)
    assert json.loads(BpeTokenizer.train(texts, 900).to_json())["model"] == expected
    monkeypatch.setattr(bpe_tokenizer, "MOST_DIFFERENT", 300)
    monkeypatch.setattr(bpe_tokenizer, "MOST_FED", 1000)
    less = BpeTokenizer.train(texts, 600)
    assert less.to_json() == BpeTokenizer.train(iter(texts), 600).to_json()
    assert 257 < less.vocab_size <= 600


def test_on_disk_and_copies():
    text = "The sun </s> \ud800 山"
    for again in (
        read_tokenizer(TOKENIZER.to_json()),
        copy.deepcopy(TOKENIZER),
        pickle.loads(pickle.dumps(TOKENIZER)),
    ):
        assert isinstance(again, BpeTokenizer)
        assert again.to_json() == TOKENIZER.to_json()
        assert again.encode(text) == TOKENIZER.encode(text)


def test_what_is_refused():
    def broken(change) -> str:
        content = others()
        change(content)
        return json.dumps(content)

    def merged_end(content):
        model = content["model"]
        model["vocab"]["<|"] = 1000
        model["merges"] = [["<", "|"], ["<|", "endoftext|>"]]
        model["vocab"]["endoftext|>"] = 1001

    def without_a_byte(content):  # of U+FFFD
        model = content["model"]
        model["vocab"].pop("½")
        model["merges"] = [merge for merge in model["merges"] if "½" not in "".join(merge)]

    for change, words in (
        (lambda c: c["model"].update(type="WordPiece"), "byte-level BPE can be read"),
        (lambda c: c.update(decoder=None), "byte-level BPE can be read"),
        (lambda c: c["model"].update(end_of_word_suffix="</w>"), "byte-level BPE can be read"),
        (lambda c: c["model"].pop("vocab"), "vocab"),
        (lambda c: c["model"].update(merges=[["no", "thing"]]), "gives no token of it"),
        (lambda c: c["model"]["vocab"].pop("t"), "refuses the tokenizer"),
        (lambda c: c["model"].update(merges=[["a"]]), "two pieces of text"),
        (lambda c: c["model"].update(merges=["a b c"]), "two pieces of text"),
        (lambda c: c["model"]["vocab"].update(x1=2**31), "of number"),
        (without_a_byte, "lacks 1 of the 256 bytes"),
        (merged_end, "made of ordinary text"),
        (lambda c: c.update(pre_tokenizer={"type": "nothing"}), "refuses the tokenizer"),
        (lambda c: c.update(added_tokens=[5]), "refuses the tokenizer"),
        (lambda c: c.update(model=[]), "byte-level BPE can be read"),
    ):
        with pytest.raises(TokenizerError, match=words):
            read_tokenizer(broken(change))


def test_damaged_files_give_no_other_error():
    text, draw = json.dumps(others()), random.Random(0)
    for _ in range(300):
        at = draw.randrange(len(text))
        damaged = text[:at] + draw.choice('0{}[]",:x') + text[at + draw.randrange(3) :]
        try:
            tokenizer = read_tokenizer(damaged)
            assert tokenizer.decode(tokenizer.encode("The sun")) == "The sun"
        except TokenizerError:
            pass


def test_without_the_package_one_sentence_says_how_to_get_it(tmp_path):
    (tmp_path / "tokenizer.json").write_text(TOKENIZER.to_json(), encoding="utf-8")
    sizes = ModelConfig(embedding_dim=8, hidden_dim=8, n_layers=1, n_heads=1)
    LLM(sizes, TOKENIZER).save(tmp_path / "model")
    assert LLM.load(tmp_path / "model").tokenizer.encode("sun") == TOKENIZER.encode("sun")
    (tmp_path / "data.txt").write_text("The sun rises.")
    code = (
        "import sys; sys.modules['tokenizers'] = None\n"
        "from rustgpt.cli import main\n"
        "sys.exit(main())"
    )
    for arguments in (
        ["tokenizer", "encode", "tokenizer.json", "sun"],
        ["generate", "model", "sun"],
        ["tokenizer", "train", "data.txt", "--tokenizer", "bpe", "--out", "new.json"],
    ):
        done = subprocess.run(
            [sys.executable, "-c", code, *arguments],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
        )
        assert (done.returncode, done.stdout) == (1, "")
        assert done.stderr.count("\n") == 1
        assert "pip install 'rustgpt[bpe]'" in done.stderr
        assert not (tmp_path / "new.json").exists()


def test_a_character_that_a_file_has_no_bytes_for_is_replaced():
    content = others()
    for byte in "ñĀ":  # 0xF1, of some rare characters, and 0
        content["model"]["vocab"].pop(byte)
    tokenizer = read_tokenizer(json.dumps(content))
    for text, kept in (("a\0b", "a\ufffdb"), ("\U0004ffff!", "\ufffd!"), ("sun 雨🙂", "sun 雨🙂")):
        assert tokenizer.decode(tokenizer.encode(text)) == kept
    assert min(tokenizer.encode("\0" * 5)) >= 0
