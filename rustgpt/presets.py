"""Owns shapes of models that have a name: of their families, in sizes that a CPU trains."""

from typing import Any, Final

_GPT2: Final = {
    "activation": "gelu", "norm": "pre", "attention_bias": True, "output_bias": False,
    "tie_embeddings": True,
}  # fmt: skip
_LLAMA: Final = {
    "activation": "swiglu", "feed_forward_bias": False, "norm": "pre", "norm_type": "rms_norm",
    "positions": "rotary", "output_bias": False, "tie_embeddings": True,
}  # fmt: skip


def _sizes(
    layers: int, heads: int, dim: int, hidden: int, context: int, key_heads: int | None = None
) -> dict[str, Any]:
    found = {"n_layers": layers, "n_heads": heads, "embedding_dim": dim, "hidden_dim": hidden}
    found |= {"max_seq_len": context}
    return found | ({"n_kv_heads": key_heads} if key_heads else {})


# What differs from the defaults of `ModelConfig`. "tiny" has some 0.8 million parameters beside its
# embeddings, "small" some 10 million.
PRESETS: Final[dict[str, dict[str, Any]]] = {
    "rustgpt": {"n_heads": 1, "attention_projection": False},
    "gpt2-tiny": _GPT2 | _sizes(4, 4, 128, 512, 256),
    "gpt2-small": _GPT2 | _sizes(6, 6, 384, 1536, 256),
    "gpt2": _GPT2 | _sizes(12, 12, 768, 3072, 1024),
    "llama-tiny": _LLAMA | _sizes(4, 4, 128, 344, 256, 2),
    "llama-small": _LLAMA | _sizes(6, 6, 384, 1024, 256, 2),
    "smollm2": _LLAMA | _sizes(30, 9, 576, 1536, 2048, 3) | {"rope_theta": 100_000.0},
}
