"""Tests of the loop that makes texts, with a model that counts."""

import itertools

import numpy as np
import pytest

from rustgpt.errors import ConfigError, TokenizerError
from rustgpt.generation.engine import Engine
from rustgpt.generation.sampling_config import SamplingConfig
from rustgpt.llm import LLM

from ..models import make_model
from .counter import END, Counter, Endless, V


def made_by(model, prompt, max_new_tokens=60, **settings):
    """Return the tokens of one text; the end token is not among them."""
    engine = Engine(model, 1)
    engine.add(prompt, SamplingConfig(max_new_tokens, **settings), text=False)
    return (token.id for token in engine.run() if token.ended != "end")


def test_tokens_follow_until_the_end():
    model = Counter()
    assert list(made_by(model, [3, 4, 5], 100)) == [6, 7, 8, 9]
    assert model.calls == [
        [(0, [], [3, 4, 5])], [(0, [3, 4, 5], [6])], [(0, [3, 4, 5, 6], [7])],
        [(0, [3, 4, 5, 6, 7], [8])], [(0, [3, 4, 5, 6, 7, 8], [9])],
    ]  # fmt: skip


def test_no_more_than_asked_for():
    model = Counter()
    assert list(made_by(model, [1], 3)) == [2, 3, 4]
    assert len(model.calls) == 3  # the last token is not read again
    assert list(made_by(model, [1], 0)) == []
    assert len(model.calls) == 3


def test_tokens_come_one_by_one():
    model = Counter()
    tokens = made_by(model, [1], 100)
    assert model.calls == []
    assert next(tokens) == 2
    assert len(model.calls) == 1


def test_of_a_long_prompt_the_end_is_read():
    model, prompt = Counter(max_seq_len=4), [9, 9, 9, 1, 2, 3, 4]
    assert list(itertools.islice(made_by(model, prompt, 5), 1)) == [5]
    assert model.calls == [[(0, [], [1, 2, 3, 4])]]
    assert prompt == [9, 9, 9, 1, 2, 3, 4]


def test_a_full_context_drops_its_older_half():
    model = Counter(max_seq_len=4)
    assert list(made_by(model, [1, 2], 7)) == [3, 4, 5, 6, 7, 8, 9]
    assert [(len(seen), new) for ((_, seen, new),) in model.calls] == [
        (0, [1, 2]), (2, [3]), (3, [4]),  # full: 1 2 3 4
        (0, [4, 5]), (2, [6]), (3, [7]),  # full: 4 5 6 7
        (0, [7, 8]),
    ]  # fmt: skip


@pytest.mark.parametrize("max_seq_len", [2, 3, 5])
def test_a_text_may_be_many_times_the_context(max_seq_len):
    found = list(made_by(Endless(max_seq_len), [1], 50))
    assert found == list(itertools.islice(itertools.cycle(range(1, V)), 1, 51))


def test_the_same_seed_gives_the_same_tokens():
    def made(seed, temperature=1.0):
        return list(made_by(Counter(spread=1.0), [1], 40, temperature=temperature, seed=seed))

    assert made(0) == made(0)
    assert len({tuple(made(seed)) for seed in range(5)}) == 5
    assert set(made(0)) <= set(range(V))
    assert made(3, temperature=0.0) == made(4, temperature=0.0)


@pytest.mark.parametrize(
    ("settings", "ended", "made"),
    [
        ({}, "end", [4, 5, 6, 7, 8, 9]),
        ({"max_new_tokens": 2}, "length", [4, 5]),
        ({"max_new_tokens": 6}, "length", [4, 5, 6, 7, 8, 9]),
        ({"max_new_tokens": 7}, "end", [4, 5, 6, 7, 8, 9]),
        ({"stop": "67"}, "stop", [4, 5, 6, 7]),
        ({"stop": ["9", "x"]}, "stop", [4, 5, 6, 7, 8, 9]),
        ({"stop": "6", "max_new_tokens": 3}, "stop", [4, 5, 6]),
    ],
)
def test_why_a_text_ends(settings, ended, made):
    engine = Engine(Counter(12))
    request = engine.add([3], SamplingConfig(**settings))
    tokens = engine.finish()
    assert [token.ended for token in tokens] == [None] * (len(tokens) - 1) + [ended]
    assert (request.ended, request.made) == (ended, made)
    assert tokens[-1].id == (END if ended == "end" else made[-1])
    text = "".join(map(str, made)).split(settings.get("stop", ["x"])[0])[0]
    assert "".join(token.text for token in tokens) == text


# Several


def test_several_go_on_together_and_come_and_go():
    model, engine = Counter(12), None
    engine = Engine(model, slots=2)
    long, short = engine.add([1], text=False), engine.add([7], text=False)
    waiting = engine.add([5, 6], SamplingConfig(max_new_tokens=1), text=False)
    assert engine.requests == [long, short, waiting]
    assert [token.id for token in engine.step()] == [2, 8]
    assert [token.id for token in engine.step()] == [3, 9]
    assert [token.id for token in engine.step()] == [4, END]
    assert short.ended == "end"
    assert [token.id for token in engine.step()] == [5, 7]
    assert waiting.ended == "length"
    assert [len(call) for call in model.calls] == [2, 2, 2, 2]
    late = engine.add([8], text=False)
    assert [token.id for token in engine.step()] == [6, 9]
    engine.drop(long)
    assert [token.request for token in engine.step()] == [late]
    assert engine.step() == []
    assert engine.requests == []
    assert long.made == [2, 3, 4, 5, 6]
    assert long.ended is None
    engine.drop(long)  # nothing happens


def test_one_that_waits_may_be_dropped():
    engine = Engine(Counter(), slots=1)
    engine.add([1], text=False)
    waiting = engine.add([2], text=False)
    engine.drop(waiting)
    assert {token.request for token in engine.run()} != {waiting}
    assert waiting.made == []


@pytest.mark.parametrize("slots", [1, 2, 3, 16])
def test_what_each_makes_depends_on_no_other(slots):
    rng = np.random.default_rng(3)
    prompts = [rng.integers(1, V, rng.integers(1, 30)).tolist() for _ in range(20)]
    configs = [
        SamplingConfig(int(rng.integers(1, 30)), temperature=float(t), seed=seed)
        for seed, t in enumerate(rng.choice([0.0, 1.0], 20))
    ]
    expected = [
        list(made_by(Counter(9, 0.99), p, c.max_new_tokens, temperature=c.temperature, seed=c.seed))
        for p, c in zip(prompts, configs, strict=True)
    ]
    engine = Engine(Counter(9, 0.99), slots)
    requests = [engine.add(p, c, text=False) for p, c in zip(prompts, configs, strict=True)]
    engine.finish()
    assert [request.made for request in requests] == expected


def test_a_long_prompt_is_read_in_chunks_beside_others(monkeypatch):
    monkeypatch.setattr("rustgpt.generation.batch.CHUNK", 4)
    model = Counter(40)
    engine = Engine(model, 3)
    engine.add([1], SamplingConfig(5), text=False)
    first, second = [2] * 7, [3] * 6
    for prompt in (first, second):
        engine.add(prompt, SamplingConfig(2), text=False)
    assert [token.id for token in engine.finish()] == [2, 3, 3, 4, 4, 5, 4, 6, 5]
    assert [[len(new) for _, _, new in call] for call in model.calls] == [
        [1, 4], [1, 3, 1], [1, 1, 4], [1, 1], [1, 1],
    ]  # fmt: skip
    model = Counter(40)
    assert list(made_by(model, [5] * 9, 2)) == [6, 7]
    assert [[len(new) for _, _, new in call] for call in model.calls] == [[4], [4], [1], [1]]


def test_a_prompt_that_is_known_is_not_read_again():
    model = Counter(40)
    engine = Engine(model, 2)
    engine.add([1, 2, 3, 4, 5], SamplingConfig(2), text=False)
    engine.finish()
    engine.add([1, 2, 3, 4, 5, 6, 2, 3], SamplingConfig(1), text=False)
    engine.finish()
    assert model.calls[-1] == [(0, [1, 2, 3, 4, 5, 6], [2, 3])]
    engine.add([1, 2, 8], SamplingConfig(1), text=False)
    engine.finish()
    assert model.calls[-1][0][1:] == ([1, 2], [8])
    model.weights_version += 1
    engine.add([1, 2, 8], SamplingConfig(1), text=False)
    engine.finish()
    assert model.calls[-1][0][1:] == ([], [1, 2, 8])


def test_of_several_samples_the_prompt_is_read_once():
    model, prompt = Counter(40, spread=1.0), [1, 2, 3, 4, 5]
    engine = Engine(model, 4)
    config = SamplingConfig(6, temperature=1.0)
    first = engine.add(prompt, config, text=False)
    others = [engine.add(prompt, config, text=False, sample=i, like=first) for i in range(1, 4)]
    engine.finish()
    assert [len(new) for _, _, new in model.calls[0]] == [5]
    assert [len(new) for _, _, new in model.calls[1]] == [1, 1, 1, 1]
    assert len({tuple(request.made) for request in [first, *others]}) == 4


def test_samples_go_on_if_the_first_is_dropped(monkeypatch):
    monkeypatch.setattr("rustgpt.generation.batch.CHUNK", 2)
    engine = Engine(Counter(40), 2)
    first = engine.add([1, 2, 3, 4, 5], SamplingConfig(2), text=False)
    other = engine.add([1, 2, 3, 4, 5], SamplingConfig(2), text=False, sample=1, like=first)
    assert engine.step() == []
    engine.drop(first)
    engine.finish()
    assert other.made == [6, 7]


def test_log_probabilities_are_those_of_the_model():
    engine = Engine(Counter(spread=0.9), 1)
    engine.add([3], SamplingConfig(1, logprobs=2), text=False)
    (token,) = engine.finish()
    odds = np.exp(np.where(np.arange(V) == 4, 0, -5.0))
    assert token.id == 4
    assert token.logprob == pytest.approx(np.log(1 / odds.sum()), rel=1e-5)
    assert token.likeliest[0] == (4, token.logprob)
    assert len(token.likeliest) == 2
    engine.add([3], SamplingConfig(1), text=False)
    assert engine.finish()[0].logprob is None


# Errors


def test_what_cannot_be_asked_for_is_refused_at_once():
    engine = Engine(Counter(), 1)
    for wrong in ([V], [-1], [1.5], ["a"], 5):
        with pytest.raises(TokenizerError, match="token id"):
            engine.add(wrong)
    with pytest.raises(ConfigError, match="token 10, but tokens are from 0 to 9"):
        engine.add([1], SamplingConfig(logit_bias={V: 1.0}))
    assert engine.requests == []


def test_an_error_of_one_leaves_the_others_their_tokens():
    def fails(history, scores):
        raise ZeroDivisionError

    engine = Engine(Counter(20), 3)
    requests = [
        engine.add([1], SamplingConfig(4, processors=own), text=False) for own in ([], [fails], [])
    ]
    with pytest.raises(ZeroDivisionError):
        engine.step()
    assert engine.requests == [requests[0], requests[2]]
    tokens = engine.finish()
    for request in engine.requests:
        assert [token.id for token in tokens if token.request is request] == [2, 3, 4, 5]


def test_an_empty_prompt_begins_a_text():
    assert list(made_by(Counter(), [], 3)) == [1, 2, 3]


def test_texts_that_slide_at_once_are_those_that_are_made_alone(letters, small, monkeypatch):
    """Also where what they read again does not fit into a chunk."""
    monkeypatch.setattr("rustgpt.generation.batch.CHUNK", 9)
    model = LLM(small(max_seq_len=8), letters)
    end = {letters.end_id: -1e9}
    configs = [
        SamplingConfig(temperature=1.0, seed=seed, max_new_tokens=30, logit_bias=end)
        for seed in range(6)
    ]

    def made(some):
        engine = Engine(model, len(some))
        requests = [engine.add([1, 2, 3], config, text=False) for config in some]
        engine.finish()
        return [request.made for request in requests]

    assert made(configs) == [made([config])[0] for config in configs]


def greedy(model, ids, n):
    """Return n tokens after some, each the best of a whole pass over what the model sees."""
    ids, S = list(ids), model.max_seq_len
    start = max(0, len(ids) - S)
    for _ in range(n):
        scores = model.logits(ids[start:])[-1]
        scores[model.tokenizer.end_id] = -np.inf
        ids.append(int(scores.argmax()))
        if len(ids) - start > S:
            start = len(ids) - S // 2
    return ids[-n:]


@pytest.mark.parametrize("variant", ["GPT-2", "Llama"])
def test_texts_past_the_context_are_those_of_whole_passes(small, tokenizer_of, variant):
    """Of many together, of which some begin alike, and others with what was made before."""
    model = make_model(small, tokenizer_of(23), variant, max_seq_len=10)
    model.parameters *= 3  # so that the best is far from the others
    engine, rng = Engine(model, slots=3), np.random.default_rng(4)
    config = SamplingConfig(35, logit_bias={model.tokenizer.end_id: -1e9})
    prompts = [rng.integers(1, 23, n).tolist() for n in (1, 4, 9, 10, 15)]
    prompts += [prompts[1] + prompts[0], prompts[2][:7]]
    requests = [engine.add(prompt, config, text=False) for prompt in prompts]
    engine.finish()
    again = prompts[1] + requests[1].made[:4]
    requests.append(engine.add(again, config, text=False))
    engine.finish()
    for prompt, request in zip([*prompts, again], requests, strict=True):
        assert request.made == greedy(model, prompt, 35)
    assert len({tuple(request.made) for request in requests}) > 4
