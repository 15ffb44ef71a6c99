"""Tests of texts that go on in a cache, and of what a model says."""

from functools import partial

import numpy as np
import pytest

from rustgpt.errors import ConfigError, DataError, TokenizerError
from rustgpt.layers.cache import Cache
from rustgpt.layers.gpt import build_layers
from rustgpt.layers.layer_norm import LayerNorm
from rustgpt.llm import LLM

from .models import VARIANTS, V, make_model

TEXTS = ([1, 5, 0, 3, 2, 6, 4, 1, 1], [3, 3, 6, 0], [2, 6, 1, 1, 5, 0, 0, 4, 3, 2, 6, 5])
# Passes through a cache of five slots: the slot of each text, and how many of its tokens.
SLOTS = (4, 0, 2)
PASSES = (
    {1: 3, 0: 4},
    {2: 6},
    {0: 1, 1: 1, 2: 1},
    {2: 2, 0: 3},
    {2: 1, 0: 1},
    {2: 2},
)  # fmt: skip


@pytest.fixture
def build(small, tokenizer_of):
    """build(variant, dtype): a small model whose parameters all matter."""
    return partial(make_model, small, tokenizer_of(V))


# One text


@pytest.mark.parametrize("pieces", [(1,) * 9, (9,), (4, 1, 1, 3)])
@pytest.mark.parametrize("variant", VARIANTS)
def test_decoding_gives_the_logits(backend, build, dtype, close, variant, pieces):
    model, ids = build(variant, dtype), [1, 5, 0, 3, 2, 6, 4, 1, 1]
    expected, cache, seen = model.logits(ids), Cache(12), 0
    for n in pieces:
        found = model.decode(ids[seen : seen + n], cache)
        seen += n
        assert found.shape == (V,)
        close(found, expected[seen - 1], 10)
        assert cache.lengths.tolist() == [seen]
    assert seen == 9


@pytest.mark.parametrize("length", [0, 13])
def test_logits_need_a_text_that_fits(build, length):
    with pytest.raises(DataError, match=rf"1 to 12 tokens, got {length}"):
        build().logits([1] * length)
    assert build().logits([1] * 12).shape == (12, V)


def test_decoding_needs_tokens_that_fit(build):
    model, cache = build(), Cache(20)
    model.decode([1] * 9, cache)
    for wrong, words in (([], "got none"), ([1] * 4, "room for 3 more tokens, got 4")):
        with pytest.raises(DataError, match=words):
            model.decode(wrong, cache)
    assert cache.lengths.tolist() == [9]
    assert model.decode([1] * 3, cache).shape == (V,)
    small = Cache(2)
    with pytest.raises(DataError, match="room for 2 more tokens, got 3"):
        model.decode([1] * 3, small)
    assert small.lengths.tolist() == [0]


def test_decode_is_for_caches_of_one_text(build):
    """In a cache of several, it takes the first slot and leaves the others."""
    model, cache = build(), Cache(12, slots=3)
    found = [model.decode([token], cache) for token in TEXTS[0]]
    np.testing.assert_allclose(found, model.logits(TEXTS[0]), rtol=1e-9)
    assert cache.lengths.tolist() == [9, 0, 0]


# Several texts


@pytest.mark.parametrize("variant", VARIANTS)
def test_texts_that_go_on_together_are_each_as_if_alone(backend, build, dtype, close, variant):
    """Of different lengths, in slots of any order, and not all of them each time."""
    model, cache = build(variant, dtype), Cache(14, slots=5)
    expected = [model.logits(text) for text in TEXTS]
    alone, seen = [Cache(12) for _ in TEXTS], [0] * len(TEXTS)
    for texts in PASSES:
        pieces = {b: TEXTS[b][seen[b] : seen[b] + n] for b, n in texts.items()}
        found = model.decode_batch([*pieces.values()], cache, [SLOTS[b] for b in texts])
        assert found.shape == (len(texts), V)
        for row, (b, piece) in zip(found, pieces.items(), strict=True):
            seen[b] += len(piece)
            close(row, model.decode(piece, alone[b]), 10)
            close(row, expected[b][seen[b] - 1], 10)
        assert cache.lengths[[*SLOTS]].tolist() == seen
    assert seen == [len(text) for text in TEXTS]
    assert cache.lengths.tolist() == [4, 0, 12, 0, 9]


@pytest.mark.parametrize("by_parts", [False, True])
def test_the_first_slots_are_meant_if_none_are_said(backend, build, close, by_parts):
    model, cache = build("GPT-2"), Cache(12, slots=4)
    for block in model.layers[1:3]:
        block.by_parts = by_parts
    found = model.decode_batch(TEXTS, cache)
    assert cache.lengths.tolist() == [9, 4, 12, 0]
    for row, text in zip(found, TEXTS, strict=True):
        close(row, model.logits(text)[-1], 10)


def test_a_slot_may_be_used_for_a_new_text(backend, build, close):
    """What the last one has left behind is not seen."""
    model, cache = build(), Cache(12, slots=2)
    model.decode_batch([TEXTS[2], TEXTS[0][:3]], cache)
    cache.lengths[0] = 0
    found = model.decode_batch([TEXTS[1], TEXTS[0][3:]], cache)
    close(found[0], model.logits(TEXTS[1])[-1], 10)
    close(found[1], model.logits(TEXTS[0])[-1], 10)
    assert cache.lengths.tolist() == [4, 9]


def test_scores_of_a_batch_are_not_written_over(build):
    model, cache = build(), Cache(12, slots=2)
    first = model.decode_batch([[1], [2]], cache)
    before = first.copy()
    second = model.decode_batch([[3], [4]], cache)
    assert not np.shares_memory(first, second)
    np.testing.assert_array_equal(first, before)


WRONG = {
    "a slot twice": ([[1], [2]], [1, 1], DataError, r"a slot of its own, got \[1, 1\]"),
    "no such slot": ([[1], [2]], [0, 3], DataError, "slots 0 to 2, got 3"),
    "a slot below 0": ([[1], [2]], [0, -1], DataError, "slots 0 to 2, got -1"),
    "too few slots": ([[1], [2]], [0], DataError, "each of 2 texts needs a slot"),
    "too many slots": ([[1], [2]], [0, 1, 2], DataError, "each of 2 texts needs a slot"),
    "more texts than slots": ([[1]] * 4, None, DataError, "slots 0 to 2, got 3"),
    "no texts": ([], None, DataError, "each of 0 texts needs a slot"),
    "an empty text": ([[1], []], [0, 1], DataError, "must go on by one token or more, got none"),
    "more than the cache has room for": (
        [[1], [1] * 4], [0, 1], DataError, "slot 1 has room for 3 more tokens, got 4",
    ),
    "no token": ([[1], [V]], [0, 1], TokenizerError, f"from 0 to {V - 1}, not {V}"),
    "no list": ([[1], 2], [0, 1], TokenizerError, "token ids must be a list"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_what_cannot_go_on_changes_nothing(backend, build, close, case):
    model, cache, (texts, slots, kind, words) = build(), Cache(8, slots=3), WRONG[case]
    model.decode_batch([TEXTS[0][:2], TEXTS[2][:5]], cache)
    with pytest.raises(kind, match=words):
        model.decode_batch(texts, cache, slots)
    assert cache.lengths.tolist() == [2, 5, 0]
    found = model.decode_batch([TEXTS[1], TEXTS[2][5:8], TEXTS[0][2:8]], cache, [2, 1, 0])
    for row, text in zip(found, (TEXTS[1], TEXTS[2][:8], TEXTS[0][:8]), strict=True):
        close(row, model.logits(text)[-1], 10)


def test_a_text_of_a_batch_ends_with_the_context(build):
    model, cache = build(), Cache(20, slots=2)
    model.decode_batch([[1] * 11, [1]], cache)
    with pytest.raises(DataError, match="room for 1 more tokens, got 2"):
        model.decode_batch([[1, 2], [3, 4]], cache)
    assert cache.lengths.tolist() == [11, 1]
    model.decode_batch([[1], [3, 4]], cache)
    with pytest.raises(DataError, match="room for 0 more tokens, got 1"):
        model.decode_batch([[1], [3]], cache)
    assert cache.lengths.tolist() == [12, 3]


class Failing(LayerNorm):
    """A layer that does not work while its weight is 0."""

    def forward(self, x, ctx):
        if not self.weight.any():
            raise ZeroDivisionError
        return super().forward(x, ctx)


def test_an_error_in_a_layer_leaves_the_texts_as_they_were(build, close):
    def layers(config):
        found = build_layers(config, V)
        return [*found[:-1], Failing(6, dtype="float64"), found[-1]]

    model, cache = build(layers=layers), Cache(12, slots=2)
    model.decode_batch([TEXTS[0][:4], TEXTS[1][:2]], cache)
    weight = model.layers[-2].weight.copy()
    model.layers[-2].weight = np.zeros(6)
    with pytest.raises(ZeroDivisionError):
        model.decode_batch([[6], [6]], cache)
    assert cache.lengths.tolist() == [4, 2]
    model.layers[-2].weight = weight
    found = model.decode_batch([TEXTS[0][4:], TEXTS[1][2:]], cache)
    for row, text in zip(found, TEXTS[:2], strict=True):
        close(row, model.logits(text)[-1], 10)


# Text


@pytest.fixture
def speaker(letters, small):
    """A model that has learned nothing, but whose every letter has its odds."""
    model = LLM(small(seed=5), letters)
    model.parameters += np.random.default_rng(2).standard_normal(model.n_parameters)
    model.named_parameters()["layers.3.bias"][0] = -1e3  # never ends a text
    return model


def test_text_continues_past_the_context(backend, speaker):
    text = speaker.generate("the sun", max_new_tokens=40)
    assert len(text) == 40
    assert text == speaker.generate("the sun", max_new_tokens=40)
    ids = speaker.tokenizer.encode("the sun") + speaker.tokenizer.encode(text[:5])
    assert speaker.tokenizer.characters[speaker.logits(ids)[-1].argmax()] == text[5]


def test_texts_of_a_batch_are_those_that_are_made_alone(backend, speaker):
    prompts = ["the", "a", "suns"]
    expected = [speaker.generate(prompt, 8) for prompt in prompts]
    cache, texts = Cache(12, slots=3), [""] * 3
    fresh = [speaker.tokenizer.encode(prompt) for prompt in prompts]
    for _ in range(8):
        tokens = speaker.decode_batch(fresh, cache, [1, 2, 0]).argmax(axis=1).tolist()
        texts = [
            text + speaker.tokenizer.decode([t]) for text, t in zip(texts, tokens, strict=True)
        ]
        fresh = [[token] for token in tokens]
    assert texts == expected
    assert len(set(texts)) == 3


def test_the_seed_decides_the_text(speaker):
    texts = [speaker.generate("a", 30, temperature=1.0, seed=seed) for seed in (1, 1, 2)]
    assert texts[0] == texts[1]
    assert texts[0] != texts[2]


def test_an_end_mark_ends_the_text(speaker):
    speaker.named_parameters()["layers.3.bias"][0] = 1e3
    assert speaker.generate("abc") == ""


def test_an_empty_prompt_begins_a_text(speaker):
    assert list(speaker.stream_ids([], 5)) == list(
        speaker.stream_ids([speaker.tokenizer.end_id], 5)
    )
    assert len(speaker.generate("", 5)) == 5


def test_both_backends_say_the_same(switch_backend, speaker):
    texts = []
    for name in ("reference", "cython"):
        switch_backend(name)
        texts.append(speaker.generate("hello", 30))
    assert texts[0] == texts[1]


def test_a_wrong_temperature_is_a_config_error(speaker):
    with pytest.raises(ConfigError, match="temperature"):
        speaker.generate("a", temperature=-1.0)


@pytest.mark.parametrize("slots", [[0.5, 1], ["a", 0], [True, False], [None, 1]])
def test_slots_must_be_whole_numbers(build, slots):
    cache = Cache(8, 2)
    with pytest.raises(DataError, match="the cache has slots 0 to 1, got"):
        build("default").decode_batch([[1], [2]], cache, slots)
    assert not cache.lengths.any()


def test_a_prompt_begins_with_the_end_token(letters, small):
    for bos in (True, False):
        model = LLM(small(add_bos_token=bos), letters)
        ids = [letters.end_id] * bos + letters.encode("a cat")
        assert model.prompt_ids("a cat") == ids
        made = list(model.stream_ids(ids, 9, seed=1, temperature=1.0))
        text = letters.decode(made, after=ids)
        assert model.generate("a cat", 9, seed=1, temperature=1.0) == text
