"""Owns the comparison with `transformers`: logits, gradients, greedy text, ids, both ways."""

import functools
import json
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rustgpt import LLM, ModelConfig
from rustgpt.errors import CheckpointError
from rustgpt.formats.hf_layout import layout_of
from rustgpt.text.dialogue import Message
from rustgpt.text.library_json import beginning_json, characters_json
from rustgpt.text.tokenizer import tokenizer_for

from ..models import by_name, differentiate
from .conftest import CHARACTERS, V, write
from .texts import random_text

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]

LOGITS, GRADIENTS = 1e-4, 1e-3  # absolute; of the largest number of a tensor
QUIET = {"resid_pdrop": 0, "embd_pdrop": 0, "attn_pdrop": 0, "dropout": 0, "attention_dropout": 0}
ENDS = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": None}
GPT2 = {"n_embd": 30, "n_head": 3, "n_layer": 3, "n_inner": 77, "n_positions": 61}
OPT = {
    "hidden_size": 30, "word_embed_proj_dim": 30, "num_attention_heads": 3, "ffn_dim": 77,
    "num_hidden_layers": 2, "max_position_embeddings": 61,
}  # fmt: skip
LLAMA = {
    "hidden_size": 48, "num_attention_heads": 6, "num_key_value_heads": 2, "head_dim": 8,
    "num_hidden_layers": 2, "intermediate_size": 77, "max_position_embeddings": 61,
}  # fmt: skip
LINEAR = {"rope_type": "linear", "factor": 2.5, "rope_theta": 500.0}
LLAMA3 = {
    "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 24, "rope_theta": 100.0,
}  # fmt: skip
THEIRS: dict[str, tuple[str, dict[str, Any]]] = {
    "GPT-2": ("GPT2", GPT2),
    "GPT-2, one head, narrow": ("GPT2", GPT2 | {"n_embd": 7, "n_head": 1, "n_inner": None}),
    "GPT-2, untied": ("GPT2", GPT2 | {"tie_word_embeddings": False}),
    "GPT-2, ReLU": ("GPT2", GPT2 | {"activation_function": "relu"}),
    "OPT": ("OPT", OPT),
    "OPT, norm after": ("OPT", OPT | {"do_layer_norm_before": False}),
    "Llama": ("Llama", LLAMA),
    "Llama, tied": ("Llama", LLAMA | {"tie_word_embeddings": True, "rms_norm_eps": 1e-3}),
    "Llama, one head of keys": ("Llama", LLAMA | {"num_key_value_heads": 1}),
    "Llama, as many heads": ("Llama", LLAMA | {"num_key_value_heads": 6}),
    "Llama, biases": ("Llama", LLAMA | {"attention_bias": True, "mlp_bias": True}),
    "Llama, linear": ("Llama", LLAMA | {"rope_parameters": LINEAR}),
    "Llama, llama3": ("Llama", LLAMA | {"rope_parameters": LLAMA3}),
    "Mistral": ("Mistral", LLAMA | {"sliding_window": None}),
    "Qwen 2": ("Qwen2", {name: LLAMA[name] for name in LLAMA if name != "head_dim"}),
    "OPT, GELU": ("OPT", OPT | {"activation_function": "gelu_new", "tie_word_embeddings": False}),
}
OUR_LLAMA = {
    "embedding_dim": 48, "n_heads": 6, "n_kv_heads": 3, "activation": "swiglu", "norm": "pre",
    "norm_type": "rms_norm", "norm_epsilon": 1e-4, "positions": "rotary", "output_bias": False,
    "feed_forward_bias": False,
}  # fmt: skip
OURS: dict[str, dict[str, Any]] = {
    "default": {},
    "RustGPT": {"n_heads": 1, "attention_projection": False},
    "GPT-2": {
        "norm": "pre", "activation": "gelu", "attention_bias": True, "output_bias": False,
        "tie_embeddings": True,
    },
    "pre, tied, with output bias": {"norm": "pre", "tie_embeddings": True},
    "untied, without": {"norm": "pre", "output_bias": False, "activation": "gelu"},
    "post, GELU": {"activation": "gelu", "attention_bias": True, "tie_embeddings": True},
    "float64": {"dtype": "float64"},
    "Llama": OUR_LLAMA,
    "Llama, biases": OUR_LLAMA | {"attention_bias": True, "feed_forward_bias": True},
    "Llama, tied": OUR_LLAMA | {"tie_embeddings": True, "attention_projection": False},
    "Llama, linear": OUR_LLAMA | {"rope_scaling": "linear", "rope_factor": 4.0},
    "Llama, llama3": OUR_LLAMA | {
        "rope_scaling": "llama3", "rope_factor": 8.0, "rope_original_max_seq_len": 20,
        "rope_theta": 50.0,
    },
    "GPT-2, another epsilon": {"norm": "pre", "norm_epsilon": 0.01, "feed_forward_bias": False},
}  # fmt: skip


@functools.cache
def tokenizer(kind: str) -> Any:
    texts = ["The sun rises in the east, and 你好 😀 mountains form.", "Bees carry pollen </s>"]
    return tokenizer_for(texts, kind, 300 if kind == "bpe" else None)


def theirs(name: str) -> Any:
    """A random model of transformers, all of whose parameters matter."""
    kind, sizes = THEIRS[name]
    config = getattr(transformers, f"{kind}Config")(vocab_size=V, **sizes, **QUIET, **ENDS)
    torch.manual_seed(3)
    suffix = "LMHeadModel" if kind == "GPT2" else "ForCausalLM"
    model = getattr(transformers, f"{kind}{suffix}")(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.2 * torch.randn_like(parameter)
    return model


def ours(name: str, kind: str = "char") -> LLM:
    """A random model of ours, all of whose parameters matter."""
    sizes = {"embedding_dim": 30, "hidden_dim": 77, "n_layers": 2, "n_heads": 3, "max_seq_len": 50}
    model = LLM(ModelConfig(**(sizes | OURS[name])), tokenizer(kind))
    model.parameters += 0.2 * np.random.default_rng(4).standard_normal(model.n_parameters)
    return model


def in_shards(model: Any, folder: Path) -> None:
    model.save_pretrained(folder, max_shard_size="4kB")
    assert len([*folder.glob("*.safetensors")]) > 3


def ids_of(size: int, length: int = 48) -> Any:
    return np.random.default_rng(8).integers(0, size, length).astype(np.int32)


def logits_of(model: Any, ids: Any) -> Any:
    with torch.no_grad():
        return model(torch.tensor(ids[None].astype(np.int64))).logits[0].numpy()


def assert_same_model(our: LLM, their: Any, kind: str) -> None:
    """Compare logits, every gradient, and greedy text."""
    ids = ids_of(our.tokenizer.vocab_size)
    expected = logits_of(their, ids)
    np.testing.assert_allclose(our.logits(ids), expected, atol=LOGITS, rtol=0)
    _assert_same_gradients(our, their, kind, ids)
    prompt = torch.tensor(ids[None, :5].astype(np.int64))
    made = their.generate(
        prompt, attention_mask=torch.ones_like(prompt), do_sample=False, max_new_tokens=30,
        eos_token_id=None, pad_token_id=0,
    )[0, 5:].tolist()  # fmt: skip
    assert len(made) == 30
    mine = [*ids[:5].tolist()]
    for _ in range(30):
        mine.append(int(our.logits(mine)[-1].argmax()))
    assert mine[5:] == made


def _assert_same_gradients(our: LLM, their: Any, kind: str, ids: Any) -> None:
    targets = np.append(ids[1:], -1).astype(np.int32)
    _, gradients = differentiate(our, ids, targets, np.array([0, len(ids)], np.int32))
    found = by_name(our, gradients)
    their.zero_grad()
    logits = their(torch.tensor(ids[None].astype(np.int64))).logits[0]
    labels = torch.tensor(targets.astype(np.int64))
    torch.nn.functional.cross_entropy(
        logits, labels, ignore_index=-1, reduction="sum"
    ).backward()  # fmt: skip
    named = dict(their.named_parameters())
    compared = set()
    for name, pieces in layout_of(kind, our.config, our.tokenizer.vocab_size).items():
        left = 0
        for piece in pieces:
            expected = named[piece.name].grad.numpy()[piece.skipped :]
            mine = found[name][..., left : left + piece.width]
            mine = mine.T if piece.transposed else mine
            largest = np.abs(expected).max()
            # A bias of the keys has no influence: its gradient is rounding.
            if np.abs(mine - expected).max() > 1e-5:
                assert np.abs(mine - expected).max() <= GRADIENTS * largest, piece.name
            compared.add(piece.name)
            left += piece.width
    assert compared == named.keys() - ({"lm_head.weight"} if our.config.tie_embeddings else set())


@pytest.mark.parametrize("name", THEIRS)
@pytest.mark.parametrize("save", [lambda m, f: m.save_pretrained(f), in_shards], ids=["", "shards"])
def test_their_model_is_ours(name: str, save: Callable[..., None], tmp_path: Path) -> None:
    model = theirs(name)
    write(tmp_path, {}, {}, tokenizer=characters_json(CHARACTERS))
    for stray in ("model.safetensors", "config.json"):
        (tmp_path / stray).unlink()
    save(model, tmp_path)
    assert_same_model(LLM.load(tmp_path), model, model.config.model_type)


@pytest.mark.parametrize("name", ["Llama", "Llama, linear", "Llama, llama3"])
@pytest.mark.parametrize("spelling", ["type", "rope_type"])
def test_old_spellings_of_rotary_positions(name: str, spelling: str, tmp_path: Path) -> None:
    model = theirs(name)
    write(tmp_path, {}, {})
    model.save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    config = json.loads(path.read_text())
    rope = config.pop("rope_parameters")
    theta, kind = rope.pop("rope_theta"), rope.pop("rope_type")
    scaling = None if kind == "default" else {spelling: kind} | rope
    path.write_text(json.dumps(config | {"rope_theta": theta, "rope_scaling": scaling}))
    again = type(model).from_pretrained(tmp_path)
    ids = ids_of(V)
    expected = logits_of(again, ids)
    np.testing.assert_array_equal(expected, logits_of(model, ids))
    np.testing.assert_allclose(LLM.load(tmp_path).logits(ids), expected, atol=LOGITS, rtol=0)


@pytest.mark.parametrize("bias", [True, False])
def test_the_script_for_nanogpt(bias: bool, tmp_path: Path) -> None:
    THEIRS["nanoGPT"] = "GPT2", GPT2 | {"n_inner": None, "activation_function": "gelu"}
    model = theirs("nanoGPT")
    saved = {}
    for name, value in model.state_dict().items():
        if name.endswith("bias") and not bias:
            value.zero_()
            continue
        product = name.endswith("weight") and (".attn." in name or ".mlp." in name)
        saved[f"_orig_mod.{name}"] = value.t() if product else value
    saved["_orig_mod.transformer.h.0.attn.bias"] = torch.ones(1, 1, 61, 61).tril()
    sizes = {"n_layer": 3, "n_head": 3, "n_embd": 30, "block_size": 61, "vocab_size": V}
    torch.save({"model": saved, "model_args": sizes | {"bias": bias}}, tmp_path / "ckpt.pt")
    page = (Path(__file__).parents[2] / "docs" / "coming-from.md").read_text(encoding="utf-8")
    script = page.partition("```py\n")[2].partition("```")[0]
    for activation in ("gelu", "gelu_new"):
        folder = tmp_path / activation
        write(folder, {}, {})
        arguments = [str(tmp_path / "ckpt.pt"), str(folder), activation]
        subprocess.run([sys.executable, "-c", script, *arguments], check=True)
    ids = ids_of(V)
    exact = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "gelu")
    np.testing.assert_allclose(logits_of(exact, ids), logits_of(model, ids), atol=1e-6)
    with pytest.raises(CheckpointError, match="activation_function is 'gelu'"):
        LLM.load(tmp_path / "gelu")
    near = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "gelu_new")
    np.testing.assert_allclose(
        LLM.load(tmp_path / "gelu_new").logits(ids), logits_of(near, ids), atol=LOGITS, rtol=0
    )


@pytest.mark.parametrize("name", ["default", "GPT-2", "Llama"])
def test_greedy_text_is_the_same(name: str, tmp_path: Path) -> None:
    model = ours(name, "bpe")
    model.save(tmp_path / "out", format="hf")
    opened = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    tokens = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    for prompt in ("The sun", "你好 mountains", ""):
        given = tokens(prompt, return_tensors="pt")
        made = opened.generate(**given, do_sample=False, max_new_tokens=30)[0]
        text = tokens.decode(made[given.input_ids.shape[1] :], skip_special_tokens=True)
        assert model.generate(prompt, max_new_tokens=30) == text


@pytest.mark.parametrize("name", THEIRS)
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_their_halves_are_ours(name: str, dtype: str, tmp_path: Path) -> None:
    model = theirs(name).to(getattr(torch, dtype))
    write(tmp_path, {}, {})
    model.save_pretrained(tmp_path)
    our = LLM.load(tmp_path)
    wide = type(model).from_pretrained(tmp_path, dtype=torch.float32)
    ids = ids_of(V)
    np.testing.assert_allclose(our.logits(ids), logits_of(wide, ids), atol=LOGITS, rtol=0)


@pytest.mark.parametrize("name", OURS)
def test_our_model_is_theirs(name: str, tmp_path: Path) -> None:
    model = ours(name)
    model.save(tmp_path / "out", format="hf")
    opened, info = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "out", output_loading_info=True
    )
    assert not any(info.values()), info
    ids = ids_of(model.tokenizer.vocab_size)
    expected = model.logits(ids)
    np.testing.assert_allclose(logits_of(opened, ids), expected, atol=LOGITS, rtol=0)
    again = LLM.load(tmp_path / "out")
    np.testing.assert_allclose(again.logits(ids), expected, atol=LOGITS, rtol=0)
    assert_same_model(again, opened, opened.config.model_type)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_our_model_in_halves_is_theirs(dtype: str, tmp_path: Path) -> None:
    from rustgpt import formats

    model = ours("GPT-2")
    formats.export(model, tmp_path / "out", "hf", dtype)
    opened = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert str(opened.dtype) == f"torch.{dtype}"
    ours_ = LLM.load(tmp_path / "out")
    for name, parameter in opened.named_parameters():
        (at,) = [
            (k, p)
            for k, v in layout_of("gpt2", model.config, 0).items()
            for p in v
            if p.name == name
        ]
        rounded = torch.tensor(model.named_parameters()[at[0]]).to(parameter.dtype)
        assert torch.equal(parameter, rounded), name
        np.testing.assert_array_equal(
            ours_.named_parameters()[at[0]], parameter.detach().float().numpy()
        )


@pytest.mark.parametrize("kind", ["bpe", "char", "byte"])
@pytest.mark.parametrize("bos", [True, False])
def test_our_tokens_are_theirs(kind: str, bos: bool, tmp_path: Path) -> None:
    model = LLM(ModelConfig(n_layers=1, add_bos_token=bos), tokenizer(kind))
    model.save(tmp_path / "out", format="hf")
    opened = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    rng = random.Random(7)
    for _ in range(10_000):
        text = random_text(rng)
        ids = opened(text).input_ids
        assert ids == model.prompt_ids(text), text
        assert opened.decode(ids, skip_special_tokens=True) == text
    assert opened.eos_token_id == model.tokenizer.end_id
    read = LLM.load(tmp_path / "out")
    assert read.prompt_ids("Sun 你 é") == model.prompt_ids("Sun 你 é")
    assert read.end_ids == model.end_ids


def test_their_sentence_pieces_are_ours(tmp_path: Path) -> None:
    from ..text.test_sentence_tokenizer import FORMS

    content = FORMS["Llama 2"] | {"post_processor": beginning_json("<s>", 1)}
    config = transformers.LlamaConfig(vocab_size=400, **LLAMA)
    transformers.LlamaForCausalLM(config).save_pretrained(tmp_path)
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>"}
    settings |= {"eos_token": "</s>", "unk_token": "<unk>"}
    for name, values in (("tokenizer", content), ("tokenizer_config", settings)):
        (tmp_path / f"{name}.json").write_text(json.dumps(values))
    model = LLM.load(tmp_path)
    model.save(tmp_path / "out", format="hf")
    for folder in (tmp_path, tmp_path / "out"):
        opened = transformers.AutoTokenizer.from_pretrained(folder)
        rng = random.Random(7)
        for _ in range(1000):
            text = random_text(rng).replace("▁", "")
            ids = opened(text).input_ids
            assert ids == model.prompt_ids(text)
            assert opened.decode(ids, skip_special_tokens=True) == text
            assert model.tokenizer.decode(ids) == text


@pytest.mark.parametrize("bos", [True, False])
@pytest.mark.parametrize("kind", ["bpe", "char"])
def test_our_chat_template_is_theirs(kind: str, bos: bool, tmp_path: Path) -> None:
    model = LLM(ModelConfig(n_layers=1, add_bos_token=bos), tokenizer(kind))
    model.save(tmp_path / "out", format="hf")
    opened = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    said = [("system", "Be brief."), ("user", "Sun 你?"), ("assistant", "Yes."), ("user", "Why?")]
    for messages in (said, said[1:], said[:2], said[3:]):
        prompt = [{"role": role, "content": text} for role, text in messages]
        found = opened.apply_chat_template(prompt, add_generation_prompt=True, return_dict=True)
        ours_ = model.text_format.chat_prompt([Message(role, text) for role, text in messages])
        assert found["input_ids"] == ours_
