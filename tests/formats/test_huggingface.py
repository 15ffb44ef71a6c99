"""Owns the tests of `rustgpt.formats.huggingface`: GPT-2 and OPT read from files made by hand."""

import json

import numpy as np
import pytest
from safetensors.numpy import save_file

from rustgpt import LLM
from rustgpt.errors import CheckpointError, TokenizerError
from rustgpt.formats.safetensors_file import INDEX

from .conftest import C, F, H, L, S, V, gpt2_tensors

IDS = [1, 261, 0, 7, 7, 200, 3]


def gelu(x):
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def normed(x, t, name):
    centred = x - x.mean(-1, keepdims=True)
    scaled = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5)
    return scaled * t[f"{name}.weight"] + t[f"{name}.bias"]


def product(x, t, name):
    return x @ t[f"{name}.weight"] + t[f"{name}.bias"]


def attention(x, t, name):
    q, k, v = (
        part.reshape(len(x), H, C // H).swapaxes(0, 1)
        for part in np.split(product(x, t, f"{name}.c_attn"), 3, axis=1)
    )  # (H, T, D)
    scores = q @ k.swapaxes(1, 2) / np.sqrt(C // H)
    scores = np.where(np.tri(len(x), dtype=bool), scores, -np.inf)
    shares = np.exp(scores - scores.max(-1, keepdims=True))
    heads = shares / shares.sum(-1, keepdims=True) @ v
    return product(heads.swapaxes(0, 1).reshape(len(x), C), t, f"{name}.c_proj")


def gpt2_logits(tensors, ids, prefix="transformer.", head=None):
    """What GPT-2 computes, from its paper and the names of transformers."""
    t = {name.removeprefix(prefix): v.astype(np.float64) for name, v in tensors.items()}
    x = t["wte.weight"][ids] + t["wpe.weight"][: len(ids)]
    for i in range(L):
        x = x + attention(normed(x, t, f"h.{i}.ln_1"), t, f"h.{i}.attn")
        hidden = gelu(product(normed(x, t, f"h.{i}.ln_2"), t, f"h.{i}.mlp.c_fc"))
        x = x + product(hidden, t, f"h.{i}.mlp.c_proj")
    return normed(x, t, "ln_f") @ (t["wte.weight"] if head is None else head).T


def assert_computes(folder, expected, tolerance=1e-4):
    model = LLM.load(folder)
    np.testing.assert_allclose(model.logits(IDS), expected, atol=tolerance, rtol=0)
    return model


@pytest.mark.parametrize("prefix", ["transformer.", ""])
def test_gpt2_computes_what_its_tensors_say(prefix, gpt2):
    tensors = gpt2_tensors(prefix)
    model = assert_computes(gpt2(tensors), gpt2_logits(tensors, IDS, prefix))
    assert model.config.tie_embeddings
    assert model.config.max_seq_len == S
    assert not model.config.add_bos_token


def test_a_model_in_shards_is_read_by_its_index(gpt2):
    tensors = gpt2_tensors()
    folder = gpt2({})
    names = sorted(tensors)
    for i in range(3):
        save_file({name: tensors[name] for name in names[i::3]}, folder / f"m-{i}.safetensors")
    places = {name: f"m-{i}.safetensors" for i in range(3) for name in names[i::3]}
    (folder / INDEX).write_text(json.dumps({"weight_map": places}))
    assert_computes(folder, gpt2_logits(tensors, IDS))


def test_float64_stays_float64(gpt2):
    tensors = {name: value.astype(np.float64) for name, value in gpt2_tensors().items()}
    tensors["transformer.wte.weight"][0, 0] += 1e-12
    model = assert_computes(gpt2(tensors), gpt2_logits(tensors, IDS), 1e-10)
    assert model.config.dtype == "float64"


def test_the_masks_of_old_files_are_left_out(gpt2):
    tensors = gpt2_tensors("")
    expected = gpt2_logits(tensors, IDS, "")
    for i in range(L):
        tensors[f"h.{i}.attn.bias"] = np.tri(S, dtype=np.float32).reshape(1, 1, S, S)
        tensors[f"h.{i}.attn.masked_bias"] = np.full((), -1e4, np.float32)
    assert_computes(gpt2(tensors), expected)


def test_relu_is_read(gpt2, monkeypatch):
    monkeypatch.setitem(globals(), "gelu", lambda x: np.maximum(x, 0))
    tensors = gpt2_tensors()
    assert_computes(gpt2(tensors, activation_function="relu"), gpt2_logits(tensors, IDS))


# The output projection


def test_a_tied_table_may_be_stored_twice_or_not_at_all(gpt2):
    tensors = gpt2_tensors()
    expected = gpt2_logits(tensors, IDS)
    table = tensors["transformer.wte.weight"]
    assert_computes(gpt2(tensors), expected)
    assert_computes(gpt2(tensors | {"lm_head.weight": table.copy()}), expected)


def test_a_tied_table_that_is_stored_twice_must_be_the_same(gpt2, monkeypatch):
    monkeypatch.setattr("rustgpt.formats.safetensors_file.ROWS_OF", 5)
    tensors = gpt2_tensors()
    other = tensors["transformer.wte.weight"].copy()
    other[-1, -1] += 1
    with pytest.raises(CheckpointError, match=r"'lm_head\.weight' and .*wte\.weight' diff"):
        LLM.load(gpt2(tensors | {"lm_head.weight": other}))
    with pytest.raises(CheckpointError, match="differ: set tie_word_embeddings to false"):
        LLM.load(gpt2(tensors | {"lm_head.weight": other[:5]}))


def test_an_untied_projection_is_read(gpt2):
    tensors = gpt2_tensors()
    head = np.random.default_rng(6).standard_normal((V, C)).astype(np.float32)
    folder = gpt2(tensors | {"lm_head.weight": head}, tie_word_embeddings=False)
    assert_computes(folder, gpt2_logits(tensors, IDS, head=head))
    with pytest.raises(CheckpointError, match=r"lacks the tensor 'lm_head\.weight'"):
        LLM.load(gpt2(tensors, tie_word_embeddings=False))


# What is refused


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("h.1.ln_1.bias", None, r"lacks the tensor 'transformer.h.1.ln_1.bias', \(6,\)"),
        ("h.0.mlp.c_fc.weight", np.zeros((F, C)), r"must be \(6, 10\), but is \(10, 6\)"),
        ("wte.weight", np.zeros((V + 1, C)), r"must be \(262, 6\), but is \(263, 6\)"),
        ("h.2.ln_1.bias", np.zeros(C), "has no tensor 'transformer.h.2.ln_1.bias'"),
        ("h.0.attn.c_proj.weight", np.full((C, C), np.nan), "holds NaN or infinity"),
        ("h.0.attn.c_proj.weight", np.full((C, C), 2), "is of type I64"),
        ("ln_f.weight", np.full(C, np.inf), "holds NaN or infinity"),
    ],
)
def test_wrong_tensors_are_refused_by_name(name, change, message, gpt2):
    tensors = gpt2_tensors()
    tensors[f"transformer.{name}"] = change
    if change is None:
        del tensors[f"transformer.{name}"]
    elif change.dtype == np.float64:
        tensors[f"transformer.{name}"] = change.astype(np.float32)
    with pytest.raises(CheckpointError, match=message):
        LLM.load(gpt2(tensors))


def test_a_tokenizer_of_another_size_is_refused(gpt2):
    tensors = gpt2_tensors()
    tensors["transformer.wte.weight"] = tensors["transformer.wte.weight"][:-1].copy()
    with pytest.raises(TokenizerError, match="has 262 tokens, but the model 261"):
        LLM.load(gpt2(tensors, vocab_size=V - 1))


def test_a_class_for_the_tokenizer_is_refused(gpt2):
    with pytest.raises(CheckpointError, match="leave out the class"):
        LLM.load(gpt2(), tokenizer=object)


def test_no_memory_is_taken_for_what_the_config_claims(gpt2):
    for name in ("n_embd", "n_inner", "n_positions", "vocab_size"):
        with pytest.raises(CheckpointError, match="must be"):
            LLM.load(gpt2(**{name: 999_999}))
    with pytest.raises(CheckpointError, match=r"lacks the tensor 'transformer\.h\.2"):
        LLM.load(gpt2(n_layer=9999))


# A model that was read is like any other


def test_a_model_that_was_read_can_be_saved_and_loaded(gpt2, tmp_path):
    model = LLM.load(gpt2())
    model.save(tmp_path / "ours")
    again = LLM.load(tmp_path / "ours")
    assert again.config == model.config
    np.testing.assert_array_equal(again.logits(IDS), model.logits(IDS))
    assert again.prompt_ids("abcé") == model.prompt_ids("abcé")
