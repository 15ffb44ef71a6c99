"""Owns the metadata of a GGUF file: what of it is our configuration, and what is refused."""

from __future__ import annotations

from typing import Any, Final, NoReturn

import numpy as np

from rustgpt.config import ModelConfig
from rustgpt.errors import CheckpointError, ConfigError
from rustgpt.formats.foreign import Array
from rustgpt.formats.gguf_file import GgufFile
from rustgpt.formats.gguf_layout import FREQUENCIES, HEAD, LAYOUTS
from rustgpt.layers.rotary import Rotary

# What an architecture's metadata may say; anything else might change what is computed.
KNOWN: Final = {
    "context_length", "embedding_length", "block_count", "feed_forward_length", "vocab_size",
    "attention.head_count", "attention.head_count_kv", "attention.layer_norm_epsilon",
    "attention.layer_norm_rms_epsilon", "attention.key_length", "attention.value_length",
    "attention.causal", "rope.dimension_count", "rope.freq_base", "rope.scaling.type",
    "rope.scaling.factor", "rope.scaling.original_context_length", "rope.scaling.finetuned",
    "rope.scaling.attn_factor", "expert_count", "expert_used_count", "use_parallel_residual",
    "tensor_data_layout",
}  # fmt: skip
# What llama.cpp writes for Llama 3.1 beside the frequencies: of its scaling, and the context.
LOW, HIGH, ORIGINAL = 1.0, 4.0, 8192


class Metadata:
    """The metadata of an architecture, as they are asked for by type."""

    def __init__(self, file: GgufFile) -> None:
        self.file = file
        self.kind = file.metadata.get("general.architecture")
        if self.kind not in LAYOUTS:
            self.refuse(
                f"a model of the architecture {self.kind!r:.60} cannot be read; these can: "
                f"{', '.join(LAYOUTS)}"
            )
        for name in file.metadata:
            if name.startswith(f"{self.kind}.") and name[len(self.kind) + 1 :] not in KNOWN:
                self.refuse(f"{name!r:.80} is not known here: the model may compute otherwise")

    def get(self, kind: type, name: str, default: Any = None) -> Any:
        """Return a value; without a default it must be there."""
        value = self.file.metadata.get(f"{self.kind}.{name}", default)
        if kind is int and isinstance(value, np.ndarray) and len({*value.tolist()}) == 1:
            value = value.tolist()[0]  # the same for every block
        if kind is float and type(value) is int:
            value = float(value)
        if type(value) is not kind:
            what = "is missing" if value is None else f"must be {kind.__name__}, not {value!r:.60}"
            self.refuse(f"{self.kind}.{name} {what}")
        return value

    def refuse(self, why: str) -> NoReturn:
        """Raise CheckpointError."""
        raise CheckpointError(f"{self.file.path}: {why}")


def read_config(file: GgufFile) -> ModelConfig:
    """Return our configuration of a model, or raise CheckpointError."""
    data = Metadata(file)
    C, H = data.get(int, "embedding_length"), data.get(int, "attention.head_count")
    if not 1 <= H <= 2**20 or not 1 <= C <= 2**20 or C % H:
        data.refuse(f"{H} heads must divide the embedding's {C} numbers")
    for name in ("rope.dimension_count", "attention.key_length", "attention.value_length"):
        if data.get(int, name, C // H) != C // H:
            data.refuse(f"{data.kind}.{name} must be {C // H}, the embedding's length by the heads")
    if data.get(int, "expert_count", 0) or data.get(int, "expert_used_count", 0):
        data.refuse("a mixture of experts cannot be expressed here")
    if not data.get(bool, "attention.causal", True):
        data.refuse("attention to later tokens cannot be expressed here")
    if not data.get(bool, "use_parallel_residual", True) and data.kind != "gpt2":
        data.refuse(f"{data.kind}.use_parallel_residual is not known here")
    shared = {
        "embedding_dim": C,
        "hidden_dim": data.get(int, "feed_forward_length"),
        "n_layers": data.get(int, "block_count"),
        "n_heads": H,
        "max_seq_len": data.get(int, "context_length"),
        "norm": "pre",
        "output_bias": False,
        "tie_embeddings": HEAD not in file.tensors,
        "add_bos_token": False,
    }
    own = _gpt2(data) if data.kind == "gpt2" else _llama(data, shared)
    try:
        return ModelConfig(**shared, **own)
    except ConfigError as error:
        data.refuse(str(error))


def _gpt2(data: Metadata) -> dict[str, Any]:
    epsilon = data.get(float, "attention.layer_norm_epsilon")
    return {"activation": "gelu", "attention_bias": True, "norm_epsilon": epsilon}


def _llama(data: Metadata, shared: dict[str, Any]) -> dict[str, Any]:
    tensors = data.file.tensors
    own = {
        "n_kv_heads": data.get(int, "attention.head_count_kv", shared["n_heads"]),
        "activation": "swiglu",
        "norm_type": "rms_norm",
        "norm_epsilon": data.get(float, "attention.layer_norm_rms_epsilon"),
        "positions": "rotary",
        "rope_theta": data.get(float, "rope.freq_base", 10000.0),
        "attention_bias": "blk.0.attn_q.bias" in tensors,
        "feed_forward_bias": "blk.0.ffn_gate.bias" in tensors,
    }
    scaling = data.get(str, "rope.scaling.type", "none")
    if scaling not in ("none", "linear"):
        data.refuse(f"rope.scaling.type is {scaling!r:.40}; read are none and linear")
    if data.get(float, "rope.scaling.attn_factor", 1.0) != 1.0:
        data.refuse("rope.scaling.attn_factor is not 1, which cannot be expressed here")
    if scaling == "linear":
        own |= {"rope_scaling": "linear", "rope_factor": data.get(float, "rope.scaling.factor")}
    if FREQUENCIES in tensors:
        if scaling != "none":
            data.refuse("positions are scaled in two ways, which cannot be expressed here")
        own |= _llama3(data, shared, own["rope_theta"])
    return own


def _llama3(data: Metadata, shared: dict[str, Any], theta: float) -> dict[str, Any]:
    """Return the scaling of Llama 3.1 that has the frequencies of the file."""
    head_dim = shared["embedding_dim"] // shared["n_heads"]
    shape = data.file.tensors[FREQUENCIES].shape
    if shape != (head_dim // 2,):
        data.refuse(f"the tensor {FREQUENCIES!r} must be {(head_dim // 2,)}, but is {shape}")
    (divisors,) = data.file.rows(FREQUENCIES)
    if not np.isfinite(divisors).all() or not (divisors > 0).all():
        data.refuse(f"the tensor {FREQUENCIES!r} holds no scaling of frequencies")
    original = data.get(int, "rope.scaling.original_context_length", ORIGINAL)
    settings = LOW, HIGH, original
    plain: Array = Rotary(head_dim, 2, theta).frequencies()
    # Of the slowest pair 1 / divisor = (1 - kept) / factor + kept; see `Rotary`.
    half = Rotary(head_dim, 2, theta, "llama3", 2.0, *settings).frequencies()[-1] / plain[-1]
    kept, slowest = 2 * float(half) - 1, 1 / float(divisors[-1])
    factor = (1 - kept) / (slowest - kept) if kept < slowest else 1.0
    if not 1 <= factor <= 1e6:
        data.refuse(f"the tensor {FREQUENCIES!r} holds no scaling of frequencies")
    found = Rotary(head_dim, 2, theta, "llama3", factor, *settings).frequencies()
    if not np.allclose(found, plain / divisors, rtol=1e-4, atol=0):
        data.refuse(f"the tensor {FREQUENCIES!r} is not that of Llama 3.1's scaling")
    return {
        "rope_scaling": "llama3", "rope_factor": round(factor, 4), "rope_low_freq_factor": LOW,
        "rope_high_freq_factor": HIGH, "rope_original_max_seq_len": original,
    }  # fmt: skip
