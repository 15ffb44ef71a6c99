"""Owns the tests of `rustgpt.formats.gguf_sentence`: the tokens are those of llama.cpp's rule."""

import random
from itertools import pairwise

import numpy as np
import pytest

from rustgpt import LLM, ModelConfig, formats
from rustgpt.errors import TokenizerError
from rustgpt.formats.gguf_file import GgufFile
from rustgpt.text.sentence_tokenizer import SentenceTokenizer

from ..text.test_sentence_tokenizer import BYTES, SPECIALS, all_pairs, llama2, metaspace
from .mutants import LLAMA
from .texts import random_text

pytest.importorskip("tokenizers")
pytest.importorskip("gguf")


def with_two_ways(content):
    """Have a token that is made in two ways, one of which is among the merges."""
    model = content["model"]
    for left, right in (("t", "h"), ("h", "e"), ("th", "e"), ("s", "u")):
        model["vocab"].setdefault(left + right, len(model["vocab"]))
        model["merges"] += [[left, right]] * ([left, right] not in model["merges"])
    return content


def model_of(content):
    settings = {"add_bos_token": True, "bos_token_id": 1}
    return LLM(ModelConfig(**LLAMA, **settings), SentenceTokenizer(content, "</s>"))


def llama_cpp(text, metadata):
    """What llama.cpp does: the two neighbours with the best score, the first of equal ones."""
    tokens, scores = metadata["tokenizer.ggml.tokens"], metadata["tokenizer.ggml.scores"]
    prefix = " " * bool(metadata["tokenizer.ggml.add_space_prefix"])
    symbols = [*(prefix + text).replace(" ", "▁")] if text else []
    score = {
        token: s for token, s, kind in zip(
            tokens, scores, metadata["tokenizer.ggml.token_type"], strict=True
        ) if kind == 1
    }  # fmt: skip
    while True:
        neighbours = enumerate(a + b for a, b in pairwise(symbols))
        pairs = [(-score[pair], i) for i, pair in neighbours if pair in score]
        if not pairs:
            break
        _, i = min(pairs)
        symbols[i : i + 2] = ["".join(symbols[i : i + 2])]
    ids = []
    for symbol in symbols:
        parts = [symbol] if symbol in score else [f"<0x{b:02X}>" for b in symbol.encode()]
        ids += [tokens.index(part) for part in parts]
    return ids


@pytest.fixture(scope="module", params=[True, False], ids=["prefix", "no prefix"])
def written(request, tmp_path_factory):
    """A model with such a tokenizer, and its file."""
    model = model_of(all_pairs(with_two_ways(llama2(strip=request.param))))
    path = tmp_path_factory.mktemp("gguf") / "m.gguf"
    formats.export(model, path, "gguf")
    return model, path


def changed(monkeypatch, **changes):
    """Let each file that is read say something else of its tokenizer."""
    read = GgufFile._read_header

    def reading(file):
        read(file)
        for name, value in changes.items():
            file.metadata["tokenizer.ggml." + name] = value
            if value is None:
                del file.metadata["tokenizer.ggml." + name]

    monkeypatch.setattr(GgufFile, "_read_header", reading)


def test_tokens_are_those_of_the_scores(written):
    model, path = written
    again, metadata = LLM.load(path), GgufFile(path).metadata
    rng = random.Random(3)
    texts = ["", " ", "the sun", " the  sun ", "</s><s><0x41>", "naïve 好 é\n\0", "moon" * 9]
    for text in [*texts, *(random_text(rng) for _ in range(300))]:
        if "\ud800" <= max(text, default=" ") <= "\udfff":
            continue
        ids = again.tokenizer.encode(text)
        assert ids == llama_cpp(text.encode("utf-8", "replace").decode(), metadata), text
        assert ids == model.tokenizer.encode(text)
        assert again.tokenizer.decode(ids) == model.tokenizer.decode(ids)
    assert again.prompt_ids("the sun") == [1, *again.tokenizer.encode("the sun")]
    assert again.end_ids == model.end_ids == (2,)


def test_what_the_file_says(written):
    metadata = GgufFile(written[1]).metadata
    assert metadata["tokenizer.ggml.model"] == "llama"
    types = metadata["tokenizer.ggml.token_type"].tolist()
    assert types[:3] == [2, 3, 3]
    assert {*types[3:259]} == {6}
    assert {*types[259:]} == {1}
    assert metadata["tokenizer.ggml.unknown_token_id"] == 0


def test_written_out(monkeypatch, written):
    model, path = written
    tokens = [*SPECIALS, *BYTES, "▁", "a", "b", "c", "ab", "bc", "▁a", "▁ab"]
    tokens += [f"x{i}" for i in range(model.tokenizer.vocab_size - len(tokens))]
    types = np.array([2, 3, 3] + [6] * 256 + [1] * 8 + [5] * (len(tokens) - 267))
    scores = np.zeros(len(tokens), np.float32)
    scores[263:267] = [-2.0, -1.0, -3.0, -4.0]
    changed(
        monkeypatch, tokens=tokens, token_type=types, scores=scores, add_space_prefix=True,
        bos_token_id=None, eos_token_id=None, add_bos_token=None,
    )  # fmt: skip
    again = LLM.load(path)
    assert again.prompt_ids("abc")[1:] == [265, 264]  # "bc" is better than "ab"
    assert again.prompt_ids("ab ab")[1:] == [266, 266]
    assert again.prompt_ids("é")[1:] == [259, 3 + 0xC3, 3 + 0xA9]
    assert again.prompt_ids("a")[0] == 1  # where a file does not say, texts begin with it
    assert again.end_ids == (2,)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"scores": None}, "a score for each"),
        ({"scores": np.zeros(3, np.float32)}, "a score for each"),
        ({"scores": lambda n: np.zeros(n, np.float32)}, "equal scores"),
        ({"scores": lambda n: np.full(n, np.nan, np.float32)}, "finite"),
        ({"scores": lambda n: np.arange(n)}, "finite"),
        ({"add_space_prefix": 1}, "add_space_prefix must be bool"),
        ({"eos_token_id": 10**6}, "must be below"),
    ],
)
def test_what_does_not_say_how_texts_are_cut_is_refused(changes, words, written, monkeypatch):
    size = written[0].tokenizer.vocab_size
    changes = {name: value(size) if callable(value) else value for name, value in changes.items()}
    changed(monkeypatch, **changes)
    with pytest.raises(TokenizerError, match=words):
        LLM.load(written[1])


@pytest.mark.parametrize("what", ["", "longer", "byte"])
def test_tokens_of_what_is_no_token_are_refused(what, written, monkeypatch):
    metadata = GgufFile(written[1]).metadata
    tokens, types = metadata["tokenizer.ggml.tokens"], metadata["tokenizer.ggml.token_type"].copy()
    tokens[-1] = {"": "a世", "longer": "a" * 1001, "byte": "<0x41"}[what]
    if what == "byte":
        tokens[3 + 0x41] = "A" * 9
    words = {"": "'a世'", "longer": "1,001 characters", "byte": "256 bytes"}[what]
    changed(monkeypatch, tokens=tokens, token_type=types)
    with pytest.raises(TokenizerError, match=words):
        LLM.load(written[1])


def test_what_llama_cpp_would_cut_otherwise_is_not_written(tmp_path):
    few, apart = (all_pairs(with_two_ways(llama2())) for _ in range(2))
    formats.export(model_of(few), tmp_path / "sound.gguf", "gguf")
    few["model"]["merges"].remove(["t", "he"])
    merges = apart["model"]["merges"]
    merges.insert(0, merges.pop(merges.index(["t", "he"])))  # others are between the two ways
    newer = all_pairs(metaspace())
    for content, words in ((few, "other pairs"), (newer, "before them"), (apart, "other pairs")):
        with pytest.raises(TokenizerError, match=words):
            formats.export(model_of(content), tmp_path / "m.gguf", "gguf")
    assert [file.name for file in tmp_path.iterdir()] == ["sound.gguf"]
