"""Owns the tests of Llama read from files made by hand, against its formulas in NumPy."""

import numpy as np
import pytest

from rustgpt import LLM
from rustgpt.errors import CheckpointError

from .conftest import F, V, llama_config, llama_tensors, write

C, H, K, D = 8, 4, 2, 2
IDS = np.random.default_rng(3).integers(0, V, 40)
LINEAR = {"type": "linear", "factor": 4.0}


def normed(x, weight):
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-5) * weight


def frequencies(scaling):
    found = 500.0 ** (-np.arange(0, D, 2) / D)  # (D / 2,)
    if scaling is None:
        return found
    if "type" in scaling:
        return found / scaling["factor"]
    old, low, high = 20, 1.0, 4.0
    waves = 2 * np.pi / found
    share = np.clip((old / waves - low) / (high - low), 0, 1)
    return found * (share + (1 - share) / 8.0)


def turned(x, angles):  # (T, heads, D), (T, D / 2)
    a, b = np.split(x, 2, axis=2)
    cos, sin = np.cos(angles)[:, None], np.sin(angles)[:, None]
    return np.concatenate([a * cos - b * sin, b * cos + a * sin], axis=2)


def logits_of(tensors, ids, scaling, head="lm_head.weight", bias=False):
    """What a Llama of one block computes, from its paper and the names of transformers."""
    t = {name.removeprefix("model."): v.astype(np.float64) for name, v in tensors.items()}

    def product(x, name):
        found = x @ t[f"layers.0.{name}.weight"].T
        return found + t[f"layers.0.{name}.bias"] if bias else found

    T = len(ids)
    x = t["embed_tokens.weight"][ids]
    inside = normed(x, t["layers.0.input_layernorm.weight"])
    q, k, v = (product(inside, f"self_attn.{n}_proj").reshape(T, -1, D) for n in "qkv")
    angles = np.arange(T)[:, None] * frequencies(scaling)
    q, k = turned(q, angles), np.repeat(turned(k, angles), H // K, axis=1)
    v = np.repeat(v, H // K, axis=1)
    scores = np.einsum("thd,shd->hts", q, k) / np.sqrt(D)
    scores = np.where(np.tri(T, dtype=bool), scores, -np.inf)
    shares = np.exp(scores - scores.max(-1, keepdims=True))
    heads = np.einsum("hts,shd->thd", shares / shares.sum(-1, keepdims=True), v)
    x = x + product(heads.reshape(T, C), "self_attn.o_proj")
    inside = normed(x, t["layers.0.post_attention_layernorm.weight"])
    gate = product(inside, "mlp.gate_proj")
    x = x + product(gate / (1 + np.exp(-gate)) * product(inside, "mlp.up_proj"), "mlp.down_proj")
    return normed(x, t["norm.weight"]) @ t[head].T


def assert_computes(folder, expected):
    model = LLM.load(folder)
    np.testing.assert_allclose(model.logits(IDS), expected, atol=1e-4, rtol=0)
    return model


@pytest.mark.parametrize("scaling", [None, LINEAR, llama_config()["rope_scaling"]])
def test_llama_computes_what_its_tensors_say(scaling, tmp_path):
    tensors = llama_tensors()
    folder = write(tmp_path, llama_config(rope_scaling=scaling), tensors)
    assert_computes(folder, logits_of(tensors, IDS, scaling))


def test_it_may_be_tied_and_lack_its_prefix(tmp_path):
    tensors = llama_tensors()
    del tensors["lm_head.weight"]
    expected = logits_of(tensors, IDS, None, "embed_tokens.weight")
    tensors = {name.removeprefix("model."): value for name, value in tensors.items()}
    tensors["layers.0.self_attn.rotary_emb.inv_freq"] = np.ones(1, np.float32)  # of old files
    config = llama_config(tie_word_embeddings=True, rope_scaling=None)
    assert_computes(write(tmp_path, config, tensors), expected)


def with_biases(names):
    sizes = {"q": C, "k": K * D, "v": K * D, "o": C, "gate": F, "up": F, "down": C}
    return {
        f"model.layers.0.{'self_attn' if len(name) == 1 else 'mlp'}.{name}_proj.bias": np.float32(
            np.random.default_rng(len(name)).standard_normal(sizes[name])
        )
        for name in names
    }


def test_biases_of_all_products(tmp_path):
    tensors = llama_tensors() | with_biases(["q", "k", "v", "o", "gate", "up", "down"])
    config = llama_config(rope_scaling=None, attention_bias=True, mlp_bias=True)
    assert_computes(write(tmp_path, config, tensors), logits_of(tensors, IDS, None, bias=True))
    with pytest.raises(CheckpointError, match=r"has no tensor .*mlp\.down_proj\.bias"):
        LLM.load(write(tmp_path, config | {"mlp_bias": False}, tensors))


def test_qwen_has_biases_of_queries_keys_and_values(tmp_path):
    tensors = llama_tensors() | with_biases("qkv")
    zero = {name: 0 * value for name, value in with_biases(["o", "gate", "up", "down"]).items()}
    config = llama_config(model_type="qwen2", rope_scaling=None)
    expected = logits_of(tensors | zero, IDS, None, bias=True)
    model = assert_computes(write(tmp_path, config, tensors), expected)
    assert not model.named_parameters()["layers.1.attention.projection_bias"].any()
    model.save(tmp_path / "out", format="hf")  # as a Llama
    np.testing.assert_array_equal(LLM.load(tmp_path / "out").logits(IDS), model.logits(IDS))


def test_mistral_is_llama(tmp_path):
    tensors = llama_tensors()
    config = llama_config(model_type="mistral", rope_scaling=None, sliding_window=40)
    assert_computes(write(tmp_path, config, tensors), logits_of(tensors, IDS, None))


@pytest.mark.parametrize("name", ["k", "v"])
def test_keys_and_values_of_another_number_of_heads_are_refused(name, tmp_path):
    tensors = llama_tensors()
    tensors[f"model.layers.0.self_attn.{name}_proj.weight"] = np.ones((C, C), np.float32)
    with pytest.raises(CheckpointError, match=rf"{name}_proj.weight' must be \(4, 8\), but is"):
        LLM.load(write(tmp_path, llama_config(), tensors))
