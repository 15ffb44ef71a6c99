"""Tests of what is done with a model and texts."""

import gc
import math

import numpy as np
import pytest

from rustgpt import LLM, SamplingConfig
from rustgpt.errors import ConfigError, DataError, TokenizerError
from rustgpt.generation import text_generator
from rustgpt.text.char_tokenizer import CharTokenizer

TEXT = "the sun rises in the east"


@pytest.fixture(params=[True, False])
def model(request, small):
    """A model that has learned nothing, but whose every letter has its odds."""
    tokenizer = CharTokenizer("abcdefghijklmnopqrstuvwxyz 雨")
    model = LLM(small(seed=5, add_bos_token=request.param), tokenizer)
    model.parameters += np.random.default_rng(2).standard_normal(model.n_parameters)
    bias = model.named_parameters()["layers.3.bias"]
    bias[:257] = -30  # the end of a text, and bytes
    return model


def test_all_ways_make_the_same_text(model):
    for settings in ({}, {"temperature": 1.0, "seed": 3}, {"top_k": 3, "temperature": 2.0}):
        text = model.generate("the sun", 30, **settings)
        assert len(text) == 30
        assert "".join(model.stream("the sun", 30, **settings)) == text
        (sample,) = model.samples("the sun", max_new_tokens=30, **settings)
        assert (sample.text, sample.ended) == (text, "length")
        ids = model.prompt_ids("the sun")
        assert model.tokenizer.decode(model.stream_ids(ids, 30, **settings)) == text
        config = SamplingConfig(max_new_tokens=30, **settings)
        assert model.generate("the sun", sampling=config) == text
        assert model.generate("the sun", 5, sampling=config) == text[:5]


def test_a_stop_string_ends_the_text(model):
    text = model.generate("the sun", 40, temperature=1.0)
    stop = text[20:22]
    expected = text[: text.index(stop)]
    settings = {"max_new_tokens": 40, "temperature": 1.0, "stop": [stop, "no such text"]}
    assert model.generate("the sun", **settings) == expected
    pieces = model.stream("the sun", **settings)
    assert "".join(pieces) == expected == pieces.text
    assert pieces.ended == "stop"
    assert model.samples("the sun", **settings)[0].ended == "stop"


def test_a_stream_may_be_stopped(model):
    pieces = model.stream("the sun", 1000, temperature=1.0, logprobs=1)
    first = [next(pieces) for _ in range(3)]
    pieces.stop()
    pieces.stop()
    assert list(pieces) == []
    assert "".join(first) == pieces.text == model.generate("the sun", 3, temperature=1.0)
    assert pieces.ended is None
    assert [token.text for token in pieces.tokens] == first
    assert pieces.prompt_length == len(model.prompt_ids("the sun"))


def test_samples_differ_and_the_first_is_the_one_of_its_seed(model):
    settings = {"temperature": 1.5, "seed": 9, "max_new_tokens": 20}
    samples = model.samples("the sun", n=10, **settings)
    assert len({sample.text for sample in samples}) == 10
    assert samples[0].text == model.generate("the sun", **settings)
    again = model.samples("the sun", n=12, **settings)
    assert [sample.text for sample in again[:10]] == [sample.text for sample in samples]


def test_log_probabilities_of_what_is_made_are_those_of_the_text(model, close):
    (sample,) = model.samples("t", max_new_tokens=30, temperature=1.0, logprobs=3)
    assert {len(token.likeliest) for token in sample.tokens} == {3}
    first, *told = model.logprobs("t" + sample.text, top=3)
    assert (first.logprob is None) != model.config.add_bos_token
    for made, read in zip(sample.tokens[:10], told, strict=False):  # within one context
        assert made.text == read.text
        assert made.logprob == pytest.approx(read.logprob, abs=1e-4)
        assert [t for t, _ in made.likeliest] == [t for t, _ in read.likeliest]


def test_log_probabilities_of_any_length_are_those_of_the_windows(model):
    ids, S = model.prompt_ids(TEXT * 3), model.max_seq_len
    found = model.logprobs(TEXT * 3)
    assert "".join(token.text for token in found) == TEXT * 3
    known = [None] * (not model.config.add_bos_token)
    begin, done = 0, 1
    while done < len(ids):
        logits = model.logits(ids[begin : begin + S]).astype(np.float64)
        logprobs = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
        stop = min(begin + S, len(ids))
        known += [logprobs[i - begin - 1, ids[i]] for i in range(done, stop)]
        begin, done = stop - S // 2, stop
    assert len(known) == len(found)
    for token, value in zip(found, known, strict=True):
        assert (token.logprob is None) == (value is None)
        assert value is None or token.logprob == pytest.approx(value, abs=1e-4)
    assert sum(math.exp(t.logprob) > 1 for t in found[1:]) == 0


def test_log_probabilities_of_token_ids(model, monkeypatch):
    ids = model.prompt_ids(TEXT * 3)
    found = model.logprobs_ids(ids, top=2)
    assert len(found) == len(ids)
    assert found[0] == (None, ())
    skipped = len(ids) - len(model.logprobs(TEXT * 3))
    assert [value for value, _ in found][skipped:] == [t.logprob for t in model.logprobs(TEXT * 3)]
    monkeypatch.setattr(text_generator, "ROWS", 3)  # as of a text of many parts
    for (value, best), (expected, likely) in zip(model.logprobs_ids(ids, 2), found, strict=True):
        assert value == pytest.approx(expected, abs=1e-5)
        assert [token for token, _ in best] == [token for token, _ in likely]
    assert model.logprobs_ids([]) == []
    with pytest.raises(TokenizerError):
        model.logprobs_ids([model.tokenizer.vocab_size])


def test_a_vector_of_a_text_is_the_mean_of_its_rows(model, close):
    assert model.embed("the sun").shape == (model.config.embedding_dim,)
    rows = []
    for begin in range(0, len(model.prompt_ids(TEXT)), model.max_seq_len):
        ids = model.prompt_ids(TEXT)[begin : begin + model.max_seq_len]
        seen = []
        layer, original = model.layers[-1], type(model.layers[-1]).forward

        def spy(x, ctx, seen=seen, layer=layer, original=original):
            seen.append(x.copy())
            return original(layer, x, ctx)

        layer.forward = spy
        model.logits(ids)
        del layer.forward
        rows.append(seen[0])
    close(model.embed(TEXT), np.concatenate(rows).mean(axis=0), 10)
    assert not np.shares_memory(model.embed("a"), model.embed("a"))


def test_empty_texts(model):
    assert len(model.generate("", 5)) == 5
    assert model.logprobs("") == []
    if model.config.add_bos_token:
        assert model.embed("").shape == (model.config.embedding_dim,)
    else:
        with pytest.raises(DataError, match="an empty text has no vector"):
            model.embed("")


@pytest.mark.parametrize("wrong", [None, 5, b"bytes", ["a"]])
def test_what_is_no_text_is_an_error(model, wrong):
    for use in (model.generate, model.stream, model.samples, model.logprobs, model.embed):
        with pytest.raises(TokenizerError, match="text"):
            use(wrong)


def test_settings_for_several_texts_are_for_samples(model):
    for use in (model.generate, model.stream, lambda *a, **s: model.stream_ids([1], **s)):
        with pytest.raises(ConfigError, match="n=2 makes several texts: call `samples`"):
            use("a", n=2)
    with pytest.raises(ConfigError, match="one answer at a time, not n=2"):
        model.chat(n=2)


def test_a_prompt_longer_than_the_context_is_seen_from_its_end(model):
    ids = model.prompt_ids(TEXT)[-model.max_seq_len :]
    expected = model.tokenizer.decode(model.stream_ids(ids, 9))
    assert model.generate(TEXT, 9) == expected


@pytest.mark.slow
def test_ten_thousand_texts_keep_the_memory_flat(model):
    """Of the objects that Python knows, and of the resident memory where the system tells it."""

    def resident():
        try:
            with open("/proc/self/statm", encoding="ascii") as file:
                return int(file.read().split()[1]) * 4096
        except OSError:
            return 0

    def make(n):
        for seed in range(n):
            model.generate("a", 2, 1.0, seed)
            next(model.stream("a b", 3, 1.0, seed, stop=["x"]), None)
        gc.collect()
        return len(gc.get_objects()), resident()

    make(500)
    objects, memory = make(100)
    more_objects, more_memory = make(5_000 if model.config.add_bos_token else 200)
    assert more_objects - objects < 100
    assert more_memory - memory < 4 << 20


@pytest.mark.parametrize("top", [-1, 1.5, True, "2"])
def test_a_number_of_the_likeliest_that_is_none(model, top):
    with pytest.raises(ConfigError, match="top must be a whole number"):
        model.logprobs("the sun", top)
