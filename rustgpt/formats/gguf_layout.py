"""Owns the names of GGUF's tensors, and which parameter of ours each of them is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from rustgpt.config import ModelConfig
from rustgpt.formats.foreign import Layout, Piece

HEAD: Final = "output.weight"
TABLE: Final = "token_embd.weight"
# What is told of the positions, and is no parameter.
FREQUENCIES: Final = "rope_freqs.weight"


def layout_of(kind: str, config: ModelConfig, vocab_size: int) -> Layout:
    """Return where each parameter of ours lies in a model of an architecture of `LAYOUTS`."""
    C, L = config.embedding_dim, config.n_layers
    found: Layout = {"layers.0.tokens": (Piece(TABLE, (vocab_size, C)),)}
    if config.positions == "learned":
        places = Piece("position_embd.weight", (config.max_seq_len, C))
        found["layers.0.places"] = (places,)
    for i in range(L):
        found |= LAYOUTS[kind](config, f"layers.{i + 1}", f"blk.{i}")
    found |= _norm(config, f"layers.{L + 1}", "output_norm")
    if not config.tie_embeddings:
        found[f"layers.{L + 2}.weight"] = (Piece(HEAD, (vocab_size, C), transposed=True),)
    return found


def _linear(name: str, n_in: int, n_out: int) -> Piece:
    return Piece(f"{name}.weight", (n_out, n_in), transposed=True)


def _norm(config: ModelConfig, ours: str, theirs: str) -> Layout:
    parts = ("weight", "bias") if config.norm_type == "layer_norm" else ("weight",)
    C = config.embedding_dim
    return {f"{ours}.{part}": (Piece(f"{theirs}.{part}", (C,)),) for part in parts}


def _bias(name: str, n: int, wanted: bool) -> tuple[Piece, ...]:
    return (Piece(f"{name}.bias", (n,)),) if wanted else ()


def _product(ours: str, pieces: tuple[Piece, ...], biases: tuple[Piece, ...]) -> Layout:
    """Return where a weight and its bias, if it has one, lie."""
    head, _, number = ours.rpartition("weight")
    return {ours: pieces} | ({f"{head}bias{number}": biases} if biases else {})


def _gpt2(config: ModelConfig, ours: str, theirs: str) -> Layout:
    C, F = config.embedding_dim, config.hidden_dim
    found = _norm(config, f"{ours}.norm1", f"{theirs}.attn_norm")
    found |= _norm(config, f"{ours}.norm2", f"{theirs}.ffn_norm")
    for name, part, n_in, n_out in (
        ("attention.qkv_weight", "attn_qkv", C, 3 * C),
        ("attention.projection_weight", "attn_output", C, C),
        ("feed_forward.weight1", "ffn_up", C, F),
        ("feed_forward.weight2", "ffn_down", F, C),
    ):
        tensor = f"{theirs}.{part}"
        pieces = (_linear(tensor, n_in, n_out),)
        found |= _product(f"{ours}.{name}", pieces, _bias(tensor, n_out, True))
    return found


def _llama(config: ModelConfig, ours: str, theirs: str) -> Layout:
    C, F, bias = config.embedding_dim, config.hidden_dim, config.attention_bias
    kv = config.n_kv_heads * (C // config.n_heads)
    found = _norm(config, f"{ours}.norm1", f"{theirs}.attn_norm")
    found |= _norm(config, f"{ours}.norm2", f"{theirs}.ffn_norm")
    parts = [(f"{theirs}.attn_{name}", n) for name, n in (("q", C), ("k", kv), ("v", kv))]
    found |= _product(
        f"{ours}.attention.qkv_weight",
        tuple(_linear(name, C, n) for name, n in parts),
        tuple(piece for name, n in parts for piece in _bias(name, n, bias)),
    )
    last = f"{theirs}.attn_output"
    found |= _product(
        f"{ours}.attention.projection_weight", (_linear(last, C, C),), _bias(last, C, bias)
    )
    gate, up = f"{theirs}.ffn_gate", f"{theirs}.ffn_up"
    inner = config.feed_forward_bias
    found |= _product(
        f"{ours}.feed_forward.weight1",
        (_linear(gate, C, F), _linear(up, C, F)),
        (*_bias(gate, F, inner), *_bias(up, F, inner)),
    )
    down = f"{theirs}.ffn_down"
    return found | _product(
        f"{ours}.feed_forward.weight2", (_linear(down, F, C),), _bias(down, C, inner)
    )


# By "general.architecture": where the parameters of a block lie.
LAYOUTS: Final[dict[str, Callable[[ModelConfig, str, str], Layout]]] = {
    "gpt2": _gpt2,
    "llama": _llama,
}
