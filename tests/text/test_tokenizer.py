"""Which tokenizer is made or read under which name."""

import pytest

from rustgpt import LLM, ModelConfig
from rustgpt.errors import ConfigError, TokenizerError
from rustgpt.text.char_tokenizer import ByteTokenizer, CharTokenizer
from rustgpt.text.dataset import Dataset
from rustgpt.text.tokenizer import (
    WordTokenizer,
    load_tokenizer,
    read_tokenizer,
    tokenizer_for,
)

TEXTS = ["The sun rises </s>", "The moon rises </s>"]
NAMES = ["Anna", "Bela", "Cleo", "Dora", "Edda", "Fina", "Gina", "Hella"] * 2
SMALL = ModelConfig(embedding_dim=8, hidden_dim=8, n_layers=1, n_heads=1)


@pytest.mark.parametrize(
    "tokenizer", [WordTokenizer.train(TEXTS), CharTokenizer.train(TEXTS), ByteTokenizer()]
)
def test_a_reader_is_chosen_by_the_format(tokenizer, tmp_path):
    again = read_tokenizer(tokenizer.to_json())
    assert type(again) is type(tokenizer)
    assert again.to_json() == tokenizer.to_json()
    LLM(SMALL, tokenizer).save(tmp_path / "model")
    (tmp_path / "alone.json").write_text("\ufeff" + tokenizer.to_json(), encoding="utf-8")
    loaded = LLM.load(tmp_path / "model").tokenizer
    for found in (
        loaded, load_tokenizer(tmp_path / "model"), load_tokenizer(tmp_path / "alone.json"),
        tokenizer_for([], str(tmp_path / "model")),
    ):  # fmt: skip
        assert type(found) is type(tokenizer)
        assert found.encode("The sun é") == tokenizer.encode("The sun é")


def test_what_is_no_tokenizer(tmp_path):
    for text, words in (
        ('{"format": "letters", "letters": "abc"}', "of the format 'letters'"),
        ('{"format": ["a"]}', "of the format"),
        ('{"format": "rustgpt-word"}', "version"),
        ('{"format": "rustgpt-char", "format": 1}', "twice"),
        ("[]", "no tokenizer of rustgpt"),
        ("", "cannot be read as JSON"),
        ("[" * 100_000, "cannot be read as JSON"),
    ):
        with pytest.raises(TokenizerError, match=words):
            read_tokenizer(text)
        (tmp_path / "a.json").write_text(text)
        with pytest.raises(TokenizerError, match=rf"a\.json.*{words}"):
            load_tokenizer(tmp_path / "a.json")
    (tmp_path / "a.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(TokenizerError, match="not in UTF-8"):
        load_tokenizer(tmp_path / "a.json")
    for nowhere in (tmp_path / "nowhere", tmp_path):
        with pytest.raises(TokenizerError, match="cannot read the tokenizer"):
            load_tokenizer(nowhere)


@pytest.mark.parametrize(
    ("name", "kind"), [("word", WordTokenizer), ("char", CharTokenizer), ("byte", ByteTokenizer)]
)
def test_one_trained_on_the_texts(name, kind):
    for texts in (TEXTS, iter(TEXTS)):
        assert tokenizer_for(texts, name).to_json() == kind.train(TEXTS).to_json()
    assert Dataset(TEXTS[:1], TEXTS[1:]).tokenizer(name).to_json() == (kind.train(TEXTS).to_json())
    with pytest.raises(ConfigError, match="the largest size of this vocabulary"):
        tokenizer_for(TEXTS, name, 256)


def test_auto_looks_at_the_data():
    for texts, kind in ((TEXTS, WordTokenizer), (NAMES, CharTokenizer), ([], WordTokenizer)):
        found = tokenizer_for(text for text in texts)
        assert type(found) is kind
        assert found.to_json() == kind.train(texts).to_json()
    long = ["a tale of two cities " * 50_000, "and its end"] * 2  # more than is looked at
    assert "end" in tokenizer_for(iter(long)).vocab


def test_a_limit():
    assert tokenizer_for(TEXTS, "char", 260).vocab_size == 260
    with pytest.raises(ConfigError, match="leave out one of the two"):
        tokenizer_for(TEXTS, "somewhere.json", 300)
    every = "".join(map(chr, range(0x4E00, 0x4E00 + 20_000))) + "".join(map(chr, range(0x1100)))
    more = every + "".join(map(chr, range(0x20000, 0x20000 + 20_000)))
    assert tokenizer_for([more], "char").vocab_size == 32_768
    assert tokenizer_for([more], "char", 50_000).vocab_size > 40_000


def test_a_model_of_a_data_set():
    model = LLM.from_dataset(Dataset(NAMES, []), SMALL)
    assert type(model.tokenizer) is CharTokenizer
    assert LLM.from_dataset(Dataset(NAMES, []), SMALL, "byte").tokenizer.vocab_size == 257
    assert LLM.from_dataset(Dataset(TEXTS, []), SMALL, "char", 258).tokenizer.vocab_size == 258
    assert type(LLM.from_dataset(Dataset.bundled(), SMALL).tokenizer) is WordTokenizer
