"""Owns the tests of GGUF files: what is written is what the package reads, and what we read."""

import os
import subprocess
import sys

import numpy as np
import pytest

from rustgpt import LLM, ModelConfig, WordTokenizer, formats
from rustgpt.errors import CheckpointError, ConfigError, TokenizerError
from rustgpt.formats.gguf_file import GgufFile
from rustgpt.formats.gguf_layout import FREQUENCIES
from rustgpt.formats.gguf_tokenizer import KNOWN_CUTS, pre_tokenizer
from rustgpt.text.bpe_tokenizer import BpeTokenizer

from .mutants import LLAMA, LLAMA3

pytest.importorskip("tokenizers")
gguf = pytest.importorskip("gguf")

GPT2 = {
    "embedding_dim": 32, "hidden_dim": 40, "n_layers": 2, "n_heads": 4, "max_seq_len": 24,
    "norm": "pre", "activation": "gelu",
}  # fmt: skip
FORMS = [
    LLAMA | {"n_layers": 2},
    LLAMA | {"attention_bias": True, "feed_forward_bias": True, "tie_embeddings": True},
    LLAMA | {"n_kv_heads": 4, "rope_scaling": "linear", "rope_factor": 3.0, "rope_theta": 500.0},
    LLAMA | LLAMA3 | {"norm_epsilon": 1e-6},
    GPT2,
    GPT2 | {"tie_embeddings": True, "attention_bias": True, "output_bias": False},
    GPT2 | {"attention_projection": False, "add_bos_token": False},
]
TEXTS = ["the sun and the moon and the sea", "User: 12345 é 世界 🙂 it's"] * 9
TOLERANCE = {"float32": 1e-5, "float16": 3e-2, "bfloat16": 4e-1, "q8_0": 4e-1}


@pytest.fixture(scope="module")
def bpe():
    return BpeTokenizer.train(TEXTS, 300)


def model_of(config, tokenizer):
    """A random model, all of whose parameters matter."""
    model = LLM(ModelConfig(**config), tokenizer)
    model.parameters += 0.05 * np.random.default_rng(2).standard_normal(model.n_parameters)
    return model


@pytest.mark.parametrize("config", FORMS)
def test_what_is_written_is_read_and_computes_the_same(config, bpe, tmp_path):
    model = model_of(config, bpe)
    ids = model.prompt_ids(TEXTS[1])[:24]
    for dtype, tolerance in TOLERANCE.items():
        formats.export(model, tmp_path / f"{dtype}.gguf", "gguf", dtype)
        again = LLM.load(tmp_path / f"{dtype}.gguf")
        np.testing.assert_allclose(again.logits(ids), model.logits(ids), atol=tolerance, rtol=0)
        assert again.prompt_ids(TEXTS[1] + "</s>") == model.prompt_ids(TEXTS[1] + "</s>")
        assert again.end_ids == model.end_ids
        assert again.config.rope_factor == model.config.rope_factor
        assert again.config.chat_template == "rustgpt"
    assert (tmp_path / "q8_0.gguf").stat().st_size < (tmp_path / "float16.gguf").stat().st_size


def test_the_package_reads_what_is_written(bpe, tmp_path):
    model = model_of(LLAMA, bpe)
    formats.export(model, tmp_path / "m.gguf", "gguf")
    reader = gguf.GGUFReader(tmp_path / "m.gguf")
    fields = {name: field.contents() for name, field in reader.fields.items()}
    assert fields["general.architecture"] == "llama"
    assert fields["tokenizer.ggml.pre"] == "gpt-2"
    assert fields["tokenizer.ggml.add_bos_token"] is True
    assert fields["tokenizer.ggml.eos_token_id"] == fields["tokenizer.ggml.bos_token_id"] == 0
    assert fields["tokenizer.ggml.token_type"][:2] == [3, 1]
    assert fields["tokenizer.chat_template"].startswith("{{ bos_token }}")
    tensors = {tensor.name: tensor.data for tensor in reader.tensors}
    qkv = model.layers[1].parameters()["attention.qkv_weight"]  # (C, (H + 2 K) D)
    D = 8  # of a head, whose numbers 2 i and 2 i + 1 llama.cpp turns together
    np.testing.assert_array_equal(tensors["blk.0.attn_q.weight"][1], qkv[:, D // 2])
    np.testing.assert_array_equal(tensors["blk.0.attn_k.weight"][D + 2], qkv[:, 32 + D + 1])
    np.testing.assert_array_equal(tensors["blk.0.attn_v.weight"], qkv[:, 48:].T)
    assert not [name for name in os.listdir(tmp_path) if name != "m.gguf"]


@pytest.mark.parametrize(
    "kind", ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K"]
)
def test_quantised_tensors_are_widened_as_the_package_does(kind, tmp_path):
    code = gguf.GGMLQuantizationType[kind]
    of_block, size = gguf.GGML_QUANT_SIZES[code]
    data = np.random.default_rng(1).integers(0, 60, (3, 2 * size), np.uint8)
    writer = gguf.GGUFWriter(tmp_path / "q.gguf", "llama")
    writer.add_tensor("a", np.ones(5, np.float32))
    writer.add_tensor("t", data, raw_dtype=code)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    file = GgufFile(tmp_path / "q.gguf")
    assert file.tensors["t"].shape == (3, 2 * of_block)
    found = np.concatenate([*file.rows("t")])
    np.testing.assert_array_equal(found, gguf.quants.dequantize(data, code))


@pytest.mark.parametrize("cut", ["gpt-2", "smollm", "llama-bpe", "qwen2"])
def test_each_rule_that_cuts_texts_has_its_name(cut, bpe, tmp_path):
    content = bpe.library_content() | {"pre_tokenizer": pre_tokenizer(cut)}
    content["model"]["ignore_merges"] = cut == "llama-bpe"
    tokenizer = BpeTokenizer(content, None, bpe.vocab_size)
    formats.export(model_of(LLAMA, tokenizer), tmp_path / "m.gguf", "gguf")
    assert GgufFile(tmp_path / "m.gguf").metadata["tokenizer.ggml.pre"] == cut
    again = LLM.load(tmp_path / "m.gguf").tokenizer
    for text in (*TEXTS[:2], "  a\n\n b 12 3456 'S's x\t", "</s>"):
        assert again.encode(text) == tokenizer.encode(text)


def test_special_tokens_ends_and_templates(bpe, tmp_path):
    content = bpe.library_content()
    first = bpe.vocab_size
    for i, name in enumerate(["<|im_start|>", "<|im_end|>", "keep"], first):
        content["added_tokens"].append(content["added_tokens"][0] | {
            "id": i, "content": name, "special": name != "keep",
        })  # fmt: skip
    tokenizer = BpeTokenizer(content, "<|im_end|>", first + 10)
    form = {"chat_template": "smollm2", "end_token_ids": (first + 1, 0), "add_bos_token": False}
    formats.export(model_of(LLAMA | form, tokenizer), tmp_path / "m.gguf", "gguf")
    again = LLM.load(tmp_path / "m.gguf")
    assert again.config.chat_template == "smollm2"
    assert again.end_ids == (first + 1, 0)
    assert not again.config.add_bos_token
    assert again.tokenizer.vocab_size == first + 10
    assert again.tokenizer.encode("a keep<|im_end|>") == tokenizer.encode("a keep<|im_end|>")
    types = GgufFile(tmp_path / "m.gguf").metadata["tokenizer.ggml.token_type"]
    assert types[first - 1 : first + 4].tolist() == [1, 3, 3, 4, 5]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({}, "positions learned, activation relu"),
        ({"norm": "pre", "activation": "relu"}, "activation relu"),
        (GPT2 | {"norm": "post"}, "norm post"),
        (GPT2 | {"n_kv_heads": 2}, "2 heads of keys for 4"),
        (LLAMA | {"output_bias": True}, "--no-output-bias"),
    ],
)
def test_what_llama_cpp_cannot_compute_is_refused(changes, words, bpe, tmp_path):
    with pytest.raises(CheckpointError, match=words):
        formats.export(model_of(changes, bpe), tmp_path / "m.gguf", "gguf")
    assert not os.listdir(tmp_path)


def test_what_else_is_refused(bpe, tmp_path):
    words = LLM(ModelConfig(**GPT2), WordTokenizer.train(TEXTS))
    with pytest.raises(TokenizerError, match="--tokenizer bpe"):
        formats.export(words, tmp_path / "m.gguf", "gguf")
    model = model_of(LLAMA, bpe)
    with pytest.raises(ConfigError, match="q8_0"):
        formats.export(model, tmp_path / "m.gguf", "gguf", "float64")
    model.parameters[:] *= 1e6
    with pytest.raises(CheckpointError, match="too large for float16"):
        formats.export(model, tmp_path / "m.gguf", "gguf", "float16")
    model.parameters[5] = np.nan
    with pytest.raises(CheckpointError, match="NaN"):
        formats.export(model, tmp_path / "m.gguf", "gguf", "q8_0")
    assert not os.listdir(tmp_path)


def test_a_file_that_is_there_is_replaced_when_asked(bpe, tmp_path):
    first, second = model_of(LLAMA, bpe), model_of(GPT2, bpe)
    path = tmp_path / "m.gguf"
    formats.export(first, path, "gguf")
    before = path.read_bytes()
    with pytest.raises(CheckpointError, match="--overwrite"):
        formats.export(second, path, "gguf")
    assert path.read_bytes() == before
    formats.export(second, path, "gguf", overwrite=True)
    assert LLM.load(path).config.positions == "learned"
    with pytest.raises(CheckpointError, match="is a folder"):
        formats.export(second, tmp_path, "gguf", overwrite=True)


def test_the_commands(bpe, tmp_path):
    def rustgpt(*args):
        command = [sys.executable, "-m", "rustgpt", *map(str, args)]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    model_of(LLAMA, bpe).save(tmp_path / "ours")
    done = rustgpt("export", "gguf", tmp_path / "ours", tmp_path / "m.gguf", "--dtype", "q8_0")
    assert done.returncode == 0, done.stderr
    texts = [
        rustgpt("generate", path, "the sun", "--temperature", "0", "--max-new-tokens", "5").stdout
        for path in (tmp_path / "m.gguf", tmp_path / "m.gguf")
    ]
    assert texts[0].startswith("the sun")
    assert texts[0] == texts[1]
    refused = rustgpt("export", "hf", tmp_path / "ours", tmp_path / "hf", "--dtype", "q8_0")
    assert refused.returncode != 0
    assert refused.stderr.count("\n") == 1, refused.stderr
    (tmp_path / "cut.gguf").write_bytes((tmp_path / "m.gguf").read_bytes()[:-2000])
    damaged = rustgpt("info", tmp_path / "cut.gguf")
    assert (damaged.returncode, damaged.stderr.count("\n")) == (1, 1), damaged.stderr


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("llama.attention.sliding_window", 8, "is not known here"),
        ("llama.expert_count", 4, "mixture of experts"),
        ("llama.rope.scaling.type", "yarn", "yarn"),
        ("llama.logit_scale", 2.0, "is not known here"),
        ("llama.attention.key_length", 16, "key_length must be 8"),
        ("llama.embedding_length", 33, "must divide"),
        ("llama.block_count", 2, "blk.1"),
        ("general.architecture", "mamba", "mamba"),
        ("tokenizer.ggml.pre", "bloom", "bloom"),
        ("tokenizer.ggml.model", "t5", "'gpt2', which is byte-level BPE, and 'llama'"),
        ("tokenizer.ggml.model", "llama", "must have a score for each"),
        ("tokenizer.ggml.eos_token_id", 300, "must be below"),
        ("tokenizer.chat_template", 5, "must be a text"),
    ],
)
def test_what_changes_the_mathematics_is_refused_by_name(
    name, value, words, bpe, tmp_path, monkeypatch
):
    formats.export(model_of(LLAMA, bpe), tmp_path / "m.gguf", "gguf")
    read = GgufFile._read_header

    def changed(file):
        read(file)
        file.metadata[name] = value

    monkeypatch.setattr(GgufFile, "_read_header", changed)
    with pytest.raises((CheckpointError, TokenizerError), match=words) as caught:
        LLM.load(tmp_path / "m.gguf")
    assert str(tmp_path) in str(caught.value)


@pytest.mark.parametrize(
    ("i", "value", "words"),
    [
        (-1, 1e-45, "no scaling"),
        (-1, np.nan, "no scaling"),
        (-1, 0, "no scaling"),
        (0, 2, "not that of Llama"),
    ],
)
def test_frequencies_that_no_scaling_gives_are_refused(i, value, words, bpe, tmp_path, monkeypatch):
    formats.export(model_of(LLAMA | LLAMA3, bpe), tmp_path / "m.gguf", "gguf", "float32")
    rows = GgufFile.rows

    def changed(file, name):
        for row in rows(file, name):
            part = row.copy()
            if name == FREQUENCIES:
                part[i] = value
            yield part

    monkeypatch.setattr(GgufFile, "rows", changed)
    with pytest.raises(CheckpointError, match=words):
        LLM.load(tmp_path / "m.gguf")


def test_rules_have_different_names():
    assert len({*KNOWN_CUTS}) == len(KNOWN_CUTS)
