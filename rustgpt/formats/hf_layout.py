"""Owns the names of Hugging Face's tensors, and which parameter of ours each of them is."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Final

from rustgpt.config import ModelConfig
from rustgpt.formats.foreign import Layout, Piece

HEAD: Final = "lm_head.weight"
OFFSET: Final = 2  # rows of OPT's table of positions before that of the first

Weight = Callable[[str, int, int], Piece]  # of a name, with so many numbers in and out


def layout_of(
    kind: str, config: ModelConfig, vocab_size: int, names: Collection[str] | None = None
) -> Layout:
    """Return where each parameter of ours lies in a model of Hugging Face.

    Parameters
    ----------
    kind
        Its "model_type", one of `LAYOUTS`.
    vocab_size
        V, rows of its table of tokens.
    names
        Of the tensors that there are: a file may lack the prefix of all but the output projection.
        Without, they have it.
    """
    prefix, layout = LAYOUTS[kind]
    if names is not None and not any(name.startswith(prefix) for name in names):
        prefix = ""
    found = layout(config, vocab_size, prefix)
    if not config.tie_embeddings:
        C = config.embedding_dim
        last = config.n_layers + 1 + (config.norm == "pre")
        found[f"layers.{last}.weight"] = (_linear(HEAD, C, vocab_size),)
    return found


def _linear(name: str, n_in: int, n_out: int) -> Piece:
    """Return the weight of a `nn.Linear`, which the file has (out, in)."""
    return Piece(name, (n_out, n_in), transposed=True)


def _conv1d(name: str, n_in: int, n_out: int) -> Piece:
    """Return the weight of GPT-2's `Conv1D`, which the file has (in, out) as we do."""
    return Piece(name, (n_in, n_out))


def _both(weight: Weight, name: str, n_in: int, n_out: int) -> tuple[Piece, Piece]:
    """Return the weight and the bias of a product."""
    return weight(f"{name}.weight", n_in, n_out), Piece(f"{name}.bias", (n_out,))


def _norm(ours: str, theirs: str, C: int, parts: Sequence[str] = ("weight", "bias")) -> Layout:
    """Return where a norm lies."""
    return {f"{ours}.{part}": (Piece(f"{theirs}.{part}", (C,)),) for part in parts}


def _gpt2(config: ModelConfig, V: int, prefix: str) -> Layout:
    C, F, S, L = config.embedding_dim, config.hidden_dim, config.max_seq_len, config.n_layers
    found: Layout = {
        "layers.0.tokens": (Piece(f"{prefix}wte.weight", (V, C)),),
        "layers.0.places": (Piece(f"{prefix}wpe.weight", (S, C)),),
    }
    for i in range(L):
        ours, theirs = f"layers.{i + 1}", f"{prefix}h.{i}"
        products = {
            "attention.qkv_": _both(_conv1d, f"{theirs}.attn.c_attn", C, 3 * C),
            "attention.projection_": _both(_conv1d, f"{theirs}.attn.c_proj", C, C),
        }
        found |= _norm(f"{ours}.norm1", f"{theirs}.ln_1", C)
        for name, (weight, bias) in products.items():
            found |= {f"{ours}.{name}weight": (weight,), f"{ours}.{name}bias": (bias,)}
        found |= _norm(f"{ours}.norm2", f"{theirs}.ln_2", C)
        first = _both(_conv1d, f"{theirs}.mlp.c_fc", C, F)
        last = _both(_conv1d, f"{theirs}.mlp.c_proj", F, C)
        found |= _feed_forward(ours, first, last)
    return found | _norm(f"layers.{L + 1}", f"{prefix}ln_f", C)


def _opt(config: ModelConfig, V: int, prefix: str) -> Layout:
    C, F, S, L = config.embedding_dim, config.hidden_dim, config.max_seq_len, config.n_layers
    table = Piece(f"{prefix}decoder.embed_positions.weight", (S + OFFSET, C), skipped=OFFSET)
    found: Layout = {
        "layers.0.tokens": (Piece(f"{prefix}decoder.embed_tokens.weight", (V, C)),),
        "layers.0.places": (table,),
    }
    for i in range(L):
        ours, theirs = f"layers.{i + 1}", f"{prefix}decoder.layers.{i}"
        parts = [_both(_linear, f"{theirs}.self_attn.{name}_proj", C, C) for name in "qkv"]
        weight, bias = _both(_linear, f"{theirs}.self_attn.out_proj", C, C)
        found |= {
            f"{ours}.attention.qkv_weight": tuple(part[0] for part in parts),
            f"{ours}.attention.qkv_bias": tuple(part[1] for part in parts),
            f"{ours}.attention.projection_weight": (weight,),
            f"{ours}.attention.projection_bias": (bias,),
        }
        found |= _norm(f"{ours}.norm1", f"{theirs}.self_attn_layer_norm", C)
        found |= _norm(f"{ours}.norm2", f"{theirs}.final_layer_norm", C)
        first, last = _both(_linear, f"{theirs}.fc1", C, F), _both(_linear, f"{theirs}.fc2", F, C)
        found |= _feed_forward(ours, first, last)
    if config.norm == "pre":
        found |= _norm(f"layers.{L + 1}", f"{prefix}decoder.final_layer_norm", C)
    return found


def _llama(config: ModelConfig, V: int, prefix: str, all_biased: bool = True) -> Layout:
    C, F, L = config.embedding_dim, config.hidden_dim, config.n_layers
    kv_dim = C // config.n_heads * config.n_kv_heads
    found: Layout = {"layers.0.tokens": (Piece(f"{prefix}embed_tokens.weight", (V, C)),)}

    def product(
        ours: str, number: str, biased: bool, parts: Sequence[tuple[str, int, int]]
    ) -> None:
        both = [_both(_linear, *part) for part in parts]
        found[f"{ours}weight{number}"] = tuple(weight for weight, _ in both)
        if biased:
            found[f"{ours}bias{number}"] = tuple(bias for _, bias in both)

    for i in range(L):
        ours, theirs = f"layers.{i + 1}", f"{prefix}layers.{i}"
        heads = [(f"{theirs}.self_attn.{n}_proj", C, C if n == "q" else kv_dim) for n in "qkv"]
        inner = [(f"{theirs}.mlp.{name}_proj", C, F) for name in ("gate", "up")]
        biased = config.attention_bias
        found |= _norm(f"{ours}.norm1", f"{theirs}.input_layernorm", C, ["weight"])
        product(f"{ours}.attention.qkv_", "", biased, heads)
        last = (f"{theirs}.self_attn.o_proj", C, C)
        product(f"{ours}.attention.projection_", "", biased and all_biased, [last])
        if biased and not all_biased:
            found[f"{ours}.attention.projection_bias"] = ()
        found |= _norm(f"{ours}.norm2", f"{theirs}.post_attention_layernorm", C, ["weight"])
        product(f"{ours}.feed_forward.", "1", config.feed_forward_bias, inner)
        down = (f"{theirs}.mlp.down_proj", F, C)
        product(f"{ours}.feed_forward.", "2", config.feed_forward_bias, [down])
    return found | _norm(f"layers.{L + 1}", f"{prefix}norm", C, ["weight"])


def _qwen2(config: ModelConfig, V: int, prefix: str) -> Layout:
    return _llama(config, V, prefix, all_biased=False)


def _feed_forward(ours: str, first: tuple[Piece, Piece], last: tuple[Piece, Piece]) -> Layout:
    """Return where both maps of a feed-forward layer lie."""
    return {
        f"{ours}.feed_forward.{part}{number}": (piece,)
        for number, pieces in ((1, first), (2, last))
        for part, piece in zip(("weight", "bias"), pieces, strict=True)
    }


# By "model_type": the prefix of a whole model's tensors, and the layout.
LAYOUTS: Final[dict[str, tuple[str, Callable[[ModelConfig, int, str], Layout]]]] = {
    "gpt2": ("transformer.", _gpt2),
    "opt": ("model.", _opt),
    "llama": ("model.", _llama),
    "mistral": ("model.", _llama),
    "qwen2": ("model.", _qwen2),
}
