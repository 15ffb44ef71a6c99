"""`block_decode`: a whole block for the new rows of a text."""

from typing import Any

import numpy as np
import pytest

from rustgpt import LLM, FeedForward, ModelConfig, build_layers, use_backend
from rustgpt.layers.layer import Cache, Layer

OPTIONS: list[dict[str, Any]] = [
    {},
    {"n_heads": 1, "attention_projection": False},
    {"norm": "pre", "activation": "gelu", "attention_bias": True},
    {"norm": "pre", "n_heads": 3, "attention_projection": False, "attention_bias": True},
]
# The largest error of a logit of size about 1.
TOLERANCE = {"float32": 2e-5, "float64": 1e-12}


class Numbers:
    """A tokenizer that only knows how many tokens there are."""

    vocab_size = 53
    end_id = -1


@pytest.fixture(params=["cython", "reference"])
def backend(request: pytest.FixtureRequest) -> Any:
    use_backend(request.param)
    yield request.param
    use_backend("cython")


def model_of(options: dict[str, Any], dtype: str, layers: list[Layer] | None = None) -> LLM:
    shape = {"embedding_dim": 12, "hidden_dim": 7, "n_layers": 2, "dtype": dtype, **options}
    model = LLM(ModelConfig(**shape), Numbers(), layers)  # type: ignore[arg-type]
    # Biases and norms are set too, so that none can be left out unseen.
    rng = np.random.default_rng(1)
    model.parameters += 0.2 * rng.standard_normal(model.n_parameters).astype(dtype)
    return model


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("steps", [(1,) * 9, (7, 1, 1), (66, 1, 3)])
def test_decoding_equals_the_forward_pass(
    backend: str, dtype: str, options: dict[str, Any], steps: tuple[int, ...]
) -> None:
    model = model_of(options, dtype)
    ids = np.random.default_rng(0).integers(0, 53, sum(steps)).tolist()
    expected = model.logits(ids).copy()  # (T, V), without block_decode
    cache, done = Cache(80), 0
    for n in steps:
        found = model.decode(ids[done : done + n], cache)
        done += n
        np.testing.assert_allclose(found, expected[done - 1], atol=TOLERANCE[dtype], rtol=0)


def test_a_block_with_a_layer_of_ones_own_decodes_step_by_step() -> None:
    class Doubled(FeedForward):
        def forward(self, x: Any, offsets: Any) -> Any:
            out = super().forward(x, offsets)
            out *= 2
            return out

    config = ModelConfig(embedding_dim=12, hidden_dim=7, n_layers=1, dtype="float64")
    layers = build_layers(config, 53)
    plain = LLM(config, Numbers(), layers).logits([3, 1, 4]).copy()  # type: ignore[arg-type]
    layers = build_layers(config, 53)
    layers[1].feed_forward = Doubled(12, 7, np.random.default_rng(0), dtype="float64")  # type: ignore[attr-defined]
    model = LLM(config, Numbers(), layers)  # type: ignore[arg-type]
    expected = model.logits([3, 1, 4]).copy()
    assert not np.allclose(expected, plain)
    np.testing.assert_allclose(model.decode([3, 1, 4], Cache(8)), expected[-1], atol=1e-12)


def arguments(n: int = 2) -> dict[str, Any]:
    def array(*shape: int) -> np.ndarray:
        return np.ones(shape, np.float32)

    C, F = 4, 6
    return {
        "x": array(n, C), "pre_norm": False, "gelu": False, "n_heads": 2, "start": 0,
        "keys": array(8, C), "values": array(8, C), "qkv_weight": array(C, 3 * C),
        "qkv_bias": None, "projection_weight": array(C, C), "projection_bias": None,
        "norm1_weight": array(C), "norm1_bias": array(C), "weight1": array(C, F),
        "bias1": array(F), "weight2": array(F, C), "bias2": array(C), "norm2_weight": array(C),
        "norm2_bias": array(C), "epsilon": 1e-5, "scratch": array(4000),
    }  # fmt: skip


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"n_heads": 3}, "n_heads"),
    ({"n_heads": 0}, "n_heads"),
    ({"start": 7}, "start"),
    ({"start": -1}, "start"),
    ({"scratch": np.ones(10, np.float32)}, "scratch"),
    ({"qkv_bias": np.ones(4, np.float32)}, "qkv_bias"),
    ({"projection_bias": np.ones(3, np.float32)}, "projection_bias"),
    *(
        ({name: value[..., :-1].copy()}, name)
        for name, value in arguments().items()
        if isinstance(value, np.ndarray) and name not in ("x", "bias1", "scratch")
    ),
]


@pytest.mark.parametrize(("change", "named"), WRONG)
def test_a_wrong_argument_is_named(change: dict[str, Any], named: str) -> None:
    from rustgpt import ops

    ops.block_decode(**arguments())  # as it should be
    with pytest.raises(ValueError, match=rf"block_decode: {named}"):
        ops.block_decode(**(arguments() | change))
