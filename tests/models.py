"""Owns what the tests of the model share: its variants, a batch, one step's gradients, a layer."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from rustgpt.config import ModelConfig
from rustgpt.layers.context import Context
from rustgpt.layers.gradients import Gradients
from rustgpt.layers.layer import Layer
from rustgpt.llm import LLM

V = 7
VARIANTS: dict[str, dict[str, Any]] = {
    "RustGPT": {"n_heads": 1, "attention_projection": False},
    "default": {},
    "GPT-2": {
        "norm": "pre", "activation": "gelu", "attention_bias": True,
        "output_bias": False, "tie_embeddings": True,
    },
    "Llama": {
        "norm": "pre", "norm_type": "rms_norm", "positions": "rotary", "activation": "swiglu",
        "n_heads": 3, "n_kv_heads": 1, "feed_forward_bias": False, "output_bias": False,
    },
    "tied with bias": {"tie_embeddings": True, "activation": "gelu"},
    "no blocks": {"n_layers": 0},
}  # fmt: skip
# Three texts of 4, 1 and 3 tokens; two tokens are not to be learned.
IDS = np.array([0, 6, 3, 3, 5, 1, 2, 0], np.int32)
TARGETS = np.array([6, 3, -1, 4, 0, 2, 0, -1], np.int32)
OFFSETS = np.array([0, 4, 4, 5, 8], np.int32)


class Scale(Layer):
    """A layer of a user's own: out = x * weight."""

    def __init__(self, dim: int = 3, dtype: Any = np.float64) -> None:
        super().__init__(dtype)
        self.dim = dim
        self.parameter("weight", np.linspace(0.5, 2.0, dim))

    def forward(self, x: Any, ctx: Context) -> Any:
        ctx.save(self, x)
        return x * self.weight

    def backward(self, dout: Any, ctx: Context) -> Any:
        (x,) = ctx.saved(self)
        ctx.gradients.add(self.weight, (dout * x).sum(axis=0))
        return dout * self.weight


def make_model(
    small: Callable[..., ModelConfig],
    tokenizer: Any,
    variant: str = "default",
    dtype: str = "float64",
    layers: Callable[[ModelConfig], list[Layer]] | None = None,
    **changes: Any,
) -> LLM:
    """Return a small model whose parameters all matter."""
    config = small(dtype=dtype, **VARIANTS[variant] | changes)
    model = LLM(config, tokenizer, layers and layers(config))
    model.parameters += 0.3 * np.random.default_rng(9).standard_normal(model.n_parameters)
    return model


def differentiate(
    model: LLM, ids: Any = IDS, targets: Any = TARGETS, offsets: Any = OFFSETS, scale: float = 1.0
) -> tuple[float, Gradients]:
    """Return the loss of a step of one pass, and the gradients of `scale` times it."""
    gradients = Gradients(model.layers)
    gradients.begin()
    ctx = Context(offsets, model.config.dtype, gradients=gradients)
    loss = model.loss_and_gradients(ids, targets, scale, ctx)
    gradients.finish()
    return loss, gradients


def by_name(model: LLM, gradients: Gradients) -> dict[str, Any]:
    """Return the gradient of each parameter, after the end of a step."""
    return {name: gradients.of(value) for name, value in model.named_parameters().items()}


def offsets_of(lengths: Sequence[int]) -> Any:
    """Return where texts of so many rows begin and end."""
    return np.cumsum([0, *lengths], dtype=np.int32)
