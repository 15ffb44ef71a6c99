"""Tests of a finished model that gets new words."""

import numpy as np
import pytest

import rustgpt
from rustgpt import LLM, ConfigError, WordTokenizer

from .models import VARIANTS, make_model

TEXTS = ["User: what is red ? Assistant: a colour </s>", "the sun rises"]
NEW = ["Pippin is a λόγος of the tractor </s>", "Pippin ."]
WORDS = (".", "Pippin", "of", "tractor", "λόγος")


@pytest.mark.parametrize("variant", VARIANTS)
def test_old_tokens_keep_what_was_learned_and_new_ones_begin_as_a_mean(small, variant):
    words = WordTokenizer.train(TEXTS)
    model = make_model(small, words, variant)
    before, V = model.parameters.copy(), words.vocab_size
    bigger = model.extend_vocab(NEW)
    assert model.tokenizer is words
    assert (model.parameters == before).all()
    assert bigger.tokenizer.vocab.tokens == (*words.vocab.tokens, *WORDS)
    ids = words.encode(TEXTS[0])
    assert bigger.tokenizer.encode(TEXTS[0]) == ids
    np.testing.assert_allclose(bigger.logits(ids[:5])[:, :V], model.logits(ids[:5]), atol=1e-12)
    pieces = words.encode("tractor")
    assert len(pieces) > 1
    for name, axis in (("layers.0.tokens", 0), ("output.weight", 1), ("output.bias", 0)):
        found, old = (table(m, name) for m in (bigger, model))
        if found is None:
            continue
        new = np.take(found, V + WORDS.index("tractor"), axis)
        np.testing.assert_allclose(new, np.take(old, pieces, axis).mean(axis), atol=1e-12)
        np.testing.assert_array_equal(np.take(found, range(V), axis), old)


def table(model, name):
    if name.startswith("output") and model.layers[-1].tied and "weight" in name:
        return None
    return model.named_parameters().get(name.replace("output", f"layers.{len(model.layers) - 1}"))


def test_it_is_saved_trained_and_loaded(small, tmp_path):
    model = make_model(small, WordTokenizer.train(TEXTS), "GPT-2", "float32").extend_vocab(NEW)
    rustgpt.Trainer(model, rustgpt.TrainConfig(threads=1)).fit(NEW, 2, 1e-2, "mine")
    model.save(tmp_path / "model")
    again = LLM.load(tmp_path / "model")
    assert again.tokenizer.vocab == model.tokenizer.vocab
    assert (again.parameters == model.parameters).all()


def test_without_new_words_it_is_the_same(small):
    model = make_model(small, WordTokenizer.train(TEXTS))
    same = model.extend_vocab(TEXTS)
    assert (same.parameters == model.parameters).all()
    assert same.tokenizer.vocab == model.tokenizer.vocab


def test_other_tokenizers_and_layers_are_refused(small, letters):
    with pytest.raises(ConfigError, match="takes no new words"):
        make_model(small, letters).extend_vocab(NEW)

    class Own(rustgpt.Embeddings):
        pass

    def layers(config):
        built = rustgpt.build_layers(config, words.vocab_size)
        return [Own(words.vocab_size, config.max_seq_len, config.embedding_dim, None, config.dtype),
                *built[1:]]  # fmt: skip

    words = WordTokenizer.train(TEXTS)
    with pytest.raises(ConfigError, match="class of its own"):
        make_model(small, words, layers=layers).extend_vocab(NEW)
