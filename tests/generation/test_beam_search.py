"""Tests of beam search, beside all texts that there are."""

import importlib.util
import itertools

import numpy as np
import pytest

from rustgpt import LLM, Engine, SamplingConfig
from rustgpt.text.char_tokenizer import CharTokenizer

from .counter import Counter

LETTERS = "abcd"


@pytest.fixture
def model(small):
    """A model for which only four letters and the end have odds."""
    model = LLM(small(seed=5, max_seq_len=8, add_bos_token=True), CharTokenizer(LETTERS))
    model.parameters += np.random.default_rng(2).standard_normal(model.n_parameters)
    model.named_parameters()["layers.3.bias"][1:257] = -1e9
    return model


def all_texts(model, prompt, length, penalty):
    """Return (value, text) of every text, the best first."""
    found = []
    end = model.tokenizer.end_id
    for n in range(length + 1):
        for text in map("".join, itertools.product(LETTERS, repeat=n)):
            ids = model.prompt_ids(prompt + text) + [end] * (n < length)
            logits = model.logits(ids).astype(np.float64)
            logprobs = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
            start = len(model.prompt_ids(prompt))
            total = sum(logprobs[i - 1, ids[i]] for i in range(start, len(ids)))
            found.append((total / (len(ids) - start) ** penalty, text))
    return sorted(found, reverse=True)


@pytest.mark.parametrize("penalty", [-1.0, 0.0, 0.5, 1.0, 2.0])
def test_enough_beams_find_the_best_of_all_texts(model, penalty):
    for prompt in ("", "abc"):
        expected = all_texts(model, prompt, 3, penalty)
        settings = {"num_beams": 64, "max_new_tokens": 3, "length_penalty": penalty}
        assert model.generate(prompt, **settings) == expected[0][1]
        samples = model.samples(prompt, n=40, logprobs=0, **settings)
        assert [sample.text for sample in samples] == [text for _, text in expected[:40]]
        for sample, (value, text) in zip(samples, expected, strict=False):
            total = sum(token.logprob for token in sample.tokens)
            assert total / len(sample.tokens) ** penalty == pytest.approx(value, abs=1e-4)
            assert sample.ended == ("length" if len(text) == 3 else "end")


class Trap(Counter):
    """After 1 comes 2 most often, and then anything; or 3, and then surely 4 and the end."""

    def logits(self, token):
        odds = np.full(10, 1e-9)
        following = {1: {2: 0.6, 3: 0.4}, 2: dict.fromkeys(range(5, 9), 0.25), 3: {4: 1}}
        for other, value in following.get(token, {0: 1.0}).items():
            odds[other] = value
        return np.log(odds).astype(np.float32)


def test_beams_find_what_is_likelier_as_a_whole():
    for beams, expected in ((1, [2, 5]), (2, [3, 4]), (8, [3, 4])):
        engine = Engine(Trap(), beams)
        request = engine.add([1], SamplingConfig(9, num_beams=beams))
        engine.finish()
        assert (request.made, request.ended) == (expected, "end")


def test_beams_go_past_the_context(model, monkeypatch):
    model.named_parameters()["layers.3.bias"][0] = -1e9
    whole = model.generate("ab", 30, num_beams=4)
    assert len(whole) == 30
    monkeypatch.setattr("rustgpt.generation.batch.CHUNK", 3)  # they are read again in parts
    assert model.generate("ab", 30, num_beams=4) == whole


def test_beams_beside_other_requests(model):
    prompt, config = model.prompt_ids("ab"), SamplingConfig(6, num_beams=3)
    alone = model.generate("ab", 6, num_beams=3)
    others = [model.generate(text, 9, 1.0, seed=4) for text in ("c", "da")]
    engine = Engine(model, 5)
    request = engine.add(prompt, config)
    more = [
        engine.add(model.prompt_ids(text), SamplingConfig(9, 1.0, seed=4)) for text in ("c", "da")
    ]
    tokens = engine.finish()
    for one, text in zip((request, *more), (alone, *others), strict=True):
        assert "".join(token.text for token in tokens if token.request is one) == text
    again = engine.add(prompt, config)  # all slots are free again
    engine.finish()
    assert model.tokenizer.decode(again.made) == alone


def test_a_stop_string_ends_a_beam(model):
    model.named_parameters()["layers.3.bias"][0] = -1e9
    whole = model.generate("ab", 6, num_beams=64, length_penalty=0.0)
    stop = whole[2:4]
    for sample in model.samples("ab", max_new_tokens=6, num_beams=8, n=4, stop=[stop]):
        assert stop not in sample.text
        assert (sample.ended == "stop") == (len(sample.tokens) < 6 or sample.ended == "stop")


def test_the_best_choice_is_found(model):
    choices = ["abca", "dd", "cab"]
    found = model.samples(
        "ab", max_new_tokens=9, num_beams=8, n=3, choices=choices, logprobs=0, length_penalty=0.0
    )
    assert sorted(sample.text for sample in found) == sorted(choices)
    totals = [sum(token.logprob for token in sample.tokens) for sample in found]
    assert totals == sorted(totals, reverse=True)


def test_where_nothing_may_follow_the_text_ends():
    engine = Engine(Counter(), 2)
    bias = dict.fromkeys(range(10), -np.inf)
    request = engine.add([1], SamplingConfig(num_beams=2, logit_bias=bias), text=False)
    engine.finish()
    assert (request.made, request.ended) == ([], "end")


needs_transformers = pytest.mark.skipif(
    importlib.util.find_spec("transformers") is None or importlib.util.find_spec("torch") is None,
    reason="needs transformers and PyTorch",
)


@needs_transformers
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("penalty", [0.0, 1.0, 2.0])
@pytest.mark.parametrize("beams", [2, 3, 5])
def test_the_texts_are_those_of_transformers(beams, penalty):
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(4)
    size = 12
    config = GPT2Config(
        vocab_size=size, n_positions=40, n_embd=16, n_layer=2, n_head=2, initializer_range=1.0,
        bos_token_id=0, eos_token_id=0, pad_token_id=0,
    )  # fmt: skip
    theirs = GPT2LMHeadModel(config).eval()

    class Same(Counter):
        """The same model, behind our engine; without an end in its vocabulary of 10."""

        def __init__(self):
            super().__init__(40)
            self.tokenizer.vocab_size = size

        def _decode(self, rows, cache, slots):
            super()._decode(rows, cache, slots)
            seen = cache.rows("tokens", "ids", 1, np.dtype(np.int32))
            found = []
            for slot in slots:
                ids = torch.tensor(seen[slot, : cache.lengths[slot], 0].tolist())
                with torch.no_grad():
                    found.append(theirs(ids[None]).logits[0, -1].numpy())
            return np.stack(found)

        def logits(self, token):
            return np.zeros(size, np.float32)

    for prompt in ([1, 2, 3], [5], [7, 7, 8, 9]):
        expected = theirs.generate(
            torch.tensor([prompt]), attention_mask=torch.ones(1, len(prompt)), max_new_tokens=12,
            num_beams=beams, num_return_sequences=beams, length_penalty=penalty, do_sample=False,
            early_stopping="never",
        )  # fmt: skip
        engine = Engine(Same(), beams)
        engine.add(prompt, SamplingConfig(12, num_beams=beams, n=beams, length_penalty=penalty))
        found = [[] for _ in range(beams)]
        for token in engine.finish():
            found[token.rank].append(token.id)
        for row, made in zip(expected.tolist(), found, strict=True):
            row = row[len(prompt) :]
            assert made == row[: len(made)]
            assert set(row[len(made) :]) <= {0}
