"""Tests of a user's mistakes with a model, of what it gives out, and tokenizers of one's own."""

import numpy as np
import pytest

from rustgpt.config import TrainConfig
from rustgpt.errors import CheckpointError, ConfigError, TokenizerError
from rustgpt.layers.cache import Cache
from rustgpt.llm import LLM
from rustgpt.text.tokenizer import WordTokenizer
from rustgpt.trainer import Trainer

TEXTS = ["The sun rises in the east </s>", "Water is wet </s>", "Bees carry pollen </s>"]


@pytest.fixture
def model(small):
    return LLM(small(seed=2), WordTokenizer.train(TEXTS))


# What leaves the model is the caller's own


def test_what_is_given_out_is_not_written_over(model):
    one = model.logits([1, 2, 3])
    before = one.copy()
    two = model.logits([4, 5, 6])
    assert not np.shares_memory(one, two)
    np.testing.assert_array_equal(one, before)
    cache = Cache(12)
    first = model.decode([1], cache)
    before = first.copy()
    second = model.decode([2], cache)
    assert not np.shares_memory(first, second)
    np.testing.assert_array_equal(first, before)


# A user's mistakes


@pytest.mark.parametrize("ids", [[-1], [10**6], [2**70], [1.5], [True], ["a"], [[1]], [None], 5])
def test_ids_that_are_none_are_an_error(model, ids):
    offsets = np.array([0, 1], np.int32)
    for use in (
        model.logits,
        model.stream_ids,
        lambda ids: model.decode(ids, Cache(12)),
        lambda ids: model.loss(ids, [0], offsets),
        lambda ids: model.loss([0], ids if ids != [-1] else [-2], offsets),
    ):
        with pytest.raises(TokenizerError, match="token id"):
            use(ids)


def test_wrong_settings_are_found_at_once(model):
    for settings in (
        {"seed": -1},
        {"max_new_tokens": 2.5},
        {"temperature": -1},
        {"seed": "x"},
        {"max_new_tokens": None},
    ):
        (name,) = settings
        for use in (
            model.chat,
            lambda **s: model.generate("a", **s),
            lambda **s: model.stream_ids([1], **s),
        ):
            with pytest.raises(ConfigError, match=f"{name} must be"):
                use(**settings)


@pytest.mark.parametrize("wrong", [None, 5, b"bytes", ["a"]])
def test_what_is_no_text_is_an_error(model, wrong):
    with pytest.raises(TokenizerError, match="text"):
        model.chat().send(wrong)
    with pytest.raises(TokenizerError, match="text"):
        model.generate(wrong)


@pytest.mark.parametrize("folder", ["", " ", None, 5, b"bytes"])
def test_a_folder_without_a_name_is_refused(model, folder):
    for use in (model.save, LLM.load):
        with pytest.raises(CheckpointError, match="folder must"):
            use(folder)


def test_a_question_that_just_fills_the_context(small):
    tokenizer = WordTokenizer.train(["User: Who are you? Assistant: me </s>"])
    length = len(tokenizer.encode("User: Who are you? Assistant:"))
    roomy, full = (
        LLM(small(max_seq_len=n), tokenizer).chat(max_new_tokens=3) for n in (length + 1, length)
    )
    assert isinstance(roomy.send("Who are you?"), str)
    with pytest.raises(Exception, match=f"the question has {length} tokens"):
        full.send("Who are you?")


# A tokenizer of one's own


class Signs:
    """A tokenizer of single characters, of a user's own."""

    def __init__(self, signs):
        self.signs, self.end_id, self.vocab_size = signs, 0, len(signs)

    def encode(self, text, allow_special=False):
        return [self.signs.index(sign) for sign in text if sign in self.signs]

    def decode(self, ids, skip_special=True, *, after=()):
        return "".join(self.signs[i] for i in ids)

    def to_json(self):
        return f'{{"format": "signs", "signs": "{self.signs}"}}'

    @classmethod
    def from_json(cls, text):
        return cls(text.split('"')[-2])


def test_a_tokenizer_of_ones_own_comes_back(small, tmp_path):
    model = LLM(small(), Signs(".abcdef"))
    Trainer(model, TrainConfig(threads=1)).fit(["abc.", "fed."], 3, 1e-2, "test")
    model.save(tmp_path)
    again = LLM.load(tmp_path, tokenizer=Signs)
    assert again.generate("ab", 5) == model.generate("ab", 5)
    with pytest.raises(CheckpointError) as caught:
        LLM.load(tmp_path)
    for part in ("tokenizer.json", "of the format 'signs'", "LLM.load(folder, tokenizer=Class)"):
        assert part in str(caught.value)


def test_a_tokenizer_that_cannot_read_its_file(small, tmp_path):
    LLM(small(), WordTokenizer.train(TEXTS)).save(tmp_path)

    class Broken(Signs):
        @classmethod
        def from_json(cls, text):
            raise KeyError("signs")

    with pytest.raises(CheckpointError, match=r"tokenizer\.json cannot be read by Broken"):
        LLM.load(tmp_path, tokenizer=Broken)
