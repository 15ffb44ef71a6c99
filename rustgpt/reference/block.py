"""Owns a whole transformer block, in NumPy: its parts, one after the other."""

import numpy as np

from rustgpt.reference.activations import (
    gelu_backward,
    gelu_forward,
    relu_backward,
    relu_forward,
    swiglu_backward,
    swiglu_forward,
)
from rustgpt.reference.arrays import (
    Array,
    Indices,
    Matrix,
    OutCache,
    OutMatrix,
    OutVector,
    Shard,
    Vector,
    check_whole,
)  # fmt: skip
from rustgpt.reference.attention import attention_backward, attention_decode, attention_forward
from rustgpt.reference.dropout import check_rate, dropout
from rustgpt.reference.layer_norm import layer_norm_backward, layer_norm_forward
from rustgpt.reference.linear import linear_backward, linear_forward
from rustgpt.reference.rms_norm import rms_norm_backward, rms_norm_forward
from rustgpt.reference.rotary import rotary
from rustgpt.reference.spec import BlockSpec

ACTIVATIONS = {
    "relu": (relu_forward, relu_backward),
    "gelu": (gelu_forward, gelu_backward),
    "swiglu": (swiglu_forward, swiglu_backward),
}
ATTENTION, FEED_FORWARD = 0, 1  # the sub-layers, each with masks of its own


def block_saved_size(spec: BlockSpec, N: int, sharded: bool = False) -> int:
    """Numbers that `block_forward` saves of N rows: here qkv, heads, lse, two sums and hidden."""
    return N * sum(saved_columns(spec).values())


def block_scratch_size(
    spec: BlockSpec, N: int, longest: int, threads: int = 1, saved: bool = True
) -> int:
    """Numbers of scratch for N rows: none here."""
    return 0


class Parts:
    """The parts of a block, each with the parameters (and gradients) that are its own."""

    def __init__(
        self, spec: BlockSpec, parameters: Array, bfloat16: bool, gradients: Array | None = None
    ) -> None:
        self.spec, self.bfloat16 = spec, bfloat16
        self.p = spec.unpacked(parameters)
        self.d = {} if gradients is None else spec.unpacked(gradients)

    def linear(self, x: Array, weight: str, bias: str) -> Array:  # (N, C_in) -> (N, C_out)
        out = np.empty((len(x), self.p[weight].shape[1]), x.dtype)
        linear_forward(x, self.p[weight], self.p.get(bias), out, bfloat16=self.bfloat16)
        return out

    def linear_backward(self, dout: Array, x: Array, weight: str, bias: str) -> Array:
        dx = np.empty_like(x)  # (N, C_in)
        linear_backward(
            dout, x, self.p[weight], dx, self.d[weight], self.d.get(bias), bfloat16=self.bfloat16
        )
        return dx

    def norm(self, x: Array, name: str) -> Array:  # (N, C) -> (N, C)
        out, mean, rstd = np.empty_like(x), np.empty_like(x[:, 0]), np.empty_like(x[:, 0])
        epsilon = getattr(self.spec, f"epsilon{name[-1]}")
        weight = self.p[f"{name}.weight"]
        if self.spec.norm == "rms_norm":
            rms_norm_forward(x, weight, epsilon, out, rstd)
        else:
            layer_norm_forward(x, weight, self.p[f"{name}.bias"], epsilon, out, mean, rstd)
        return out

    def norm_backward(self, dout: Array, x: Array, name: str) -> Array:  # (N, C) -> (N, C)
        epsilon = getattr(self.spec, f"epsilon{name[-1]}")
        dx, weight, dweight = np.empty_like(x), self.p[f"{name}.weight"], self.d[f"{name}.weight"]
        if self.spec.norm == "rms_norm":
            rstd = 1 / np.sqrt((x * x).mean(axis=1) + epsilon)
            rms_norm_backward(dout, x, weight, rstd, dx, dweight)
        else:
            mean, rstd = x.mean(axis=1), 1 / np.sqrt(x.var(axis=1) + epsilon)
            dbias = self.d[f"{name}.bias"]
            layer_norm_backward(dout, x, weight, mean, rstd, dx, dweight, dbias)
        return dx

    def activation(self, hidden: Array) -> Array:  # (N, inner) -> (N, F)
        out = np.empty((len(hidden), self.spec.hidden_dim), hidden.dtype)
        ACTIVATIONS[self.spec.feed_forward][0](hidden, out)
        return out

    def project(self, heads: Array) -> Array:  # (N, C) -> (N, C)
        if "attention.projection_weight" not in self.p:
            return heads
        return self.linear(heads, "attention.projection_weight", "attention.projection_bias")

    def feed_forward(self, x: Array, hidden: Array) -> Array:  # (N, C) -> (N, C)
        hidden[...] = self.linear(x, "feed_forward.weight1", "feed_forward.bias1")  # (N, inner)
        out = self.activation(hidden)  # (N, F)
        return self.linear(out, "feed_forward.weight2", "feed_forward.bias2")

    def feed_forward_backward(self, dout: Array, x: Array, hidden: Array) -> Array:
        # forward: out = activation(hidden) @ weight2 + bias2
        dactivated = self.linear_backward(
            dout, self.activation(hidden), "feed_forward.weight2", "feed_forward.bias2"
        )  # (N, F)
        dhidden = np.empty_like(hidden)  # (N, inner)
        ACTIVATIONS[self.spec.feed_forward][1](dactivated, hidden, dhidden)
        # forward: hidden = x @ weight1 + bias1
        return self.linear_backward(dhidden, x, "feed_forward.weight1", "feed_forward.bias1")


class Masks:
    """Dropout of what the two sub-layers give, and of its gradient; or nothing, at rate 0."""

    def __init__(self, row_numbers: Indices | None, key: int, rate: float) -> None:
        check_rate(rate)
        if rate and row_numbers is None:
            raise ValueError("row_numbers must be given where rate is above 0")
        self.row_numbers, self.key, self.rate = row_numbers, key, rate

    def dropped(self, x: Array, sub_layer: int) -> Array:  # (N, C) -> (N, C)
        if not self.rate or self.row_numbers is None:
            return x
        out = np.empty_like(x)
        dropout(x, self.row_numbers, (self.key + sub_layer) % 2**64, self.rate, out)
        return out


def saved_columns(spec: BlockSpec) -> dict[str, int]:
    """Return how many columns each array has of what is saved."""
    C, H = spec.dim, spec.n_heads
    return {
        "qkv": spec.qkv_dim, "heads": C, "lse": H, "sum1": C, "sum2": C, "hidden": spec.inner_dim,
    }  # fmt: skip


def saved_rows(spec: BlockSpec, saved: Array, N: int) -> dict[str, Array]:
    """Cut what is saved of N rows into its arrays."""
    rows, first = {}, 0
    for name, width in saved_columns(spec).items():
        rows[name] = saved[first : first + N * width].reshape(N, width)
        first += N * width
    return rows


def check_table(spec: BlockSpec, table: Array | None) -> None:
    """Raise ValueError unless there is a table of angles where there are rotary positions."""
    if (table is not None) != (spec.positions == "rotary"):
        raise ValueError("table must be given where positions are rotary, and else be None")


def block_forward(
    x: Matrix,  # (N, C)
    offsets: Indices,  # (B + 1,)
    parameters: Vector,  # (P,)
    spec: BlockSpec,
    out: OutMatrix,  # (N, C)
    saved: OutVector | None,  # (block_saved_size(...),), or None: not needed
    scratch: OutVector,
    bfloat16: bool = False,  # whether the linear products round to it
    shard: Shard | None = None,  # this thread's, of several
    kv: OutCache | None = None,  # (slots, S, 2 K D): see attention_decode
    slots: Indices | None = None,  # (B,)
    starts: Indices | None = None,  # (B,)
    row_numbers: Indices | None = None,  # (N,): with `key`, `key` + 1 and `rate` as in `dropout`
    key: int = 0,
    rate: float = 0.0,
    table: Matrix | None = None,  # (S, D): see rotary
) -> None:
    """out = norm2(h + feed_forward(h)), h = norm1(x + attention(x)); or with the norms before.

    With a cache the texts go on, and see the rows before; there is no way back then, and no
    dropout.
    """
    check_whole(shard)
    cache = (kv, slots, starts)
    if any(part is None for part in cache) and any(part is not None for part in cache):
        raise ValueError("kv, slots and starts must all be given, or none")
    if saved is None:
        saved = np.empty(block_saved_size(spec, len(x)), x.dtype)
    if rate and kv is not None:
        raise ValueError("rate must be 0 where there is a cache")
    check_table(spec, table)
    block, s = Parts(spec, parameters, bfloat16), saved_rows(spec, saved, len(x))
    masks, H, K = Masks(row_numbers, key, rate), spec.n_heads, spec.n_kv_heads

    def attention(rows: Array) -> Array:  # (N, C) -> (N, C)
        s["qkv"][...] = block.linear(rows, "attention.qkv_weight", "attention.qkv_bias")  # (N, W)
        if table is not None:
            rotary(s["qkv"], offsets, table, H + K, False, starts)
        if kv is None or slots is None or starts is None:
            attention_forward(s["qkv"], offsets, H, s["heads"], s["lse"], scratch, K)
        else:
            attention_decode(s["qkv"], offsets, H, kv, slots, starts, s["heads"], scratch, K)
        return masks.dropped(block.project(s["heads"]), ATTENTION)

    def feed_forward(rows: Array) -> Array:  # (N, C) -> (N, C)
        return masks.dropped(block.feed_forward(rows, s["hidden"]), FEED_FORWARD)

    if spec.pre_norm:
        s["sum1"][...] = x + attention(block.norm(x, "norm1"))
        out[...] = s["sum1"] + feed_forward(block.norm(s["sum1"], "norm2"))
    else:
        s["sum1"][...] = x + attention(x)
        h = block.norm(s["sum1"], "norm1")
        s["sum2"][...] = h + feed_forward(h)
        out[...] = block.norm(s["sum2"], "norm2")


def block_backward(
    dout: Matrix,  # (N, C)
    x: Matrix,  # (N, C)
    offsets: Indices,  # (B + 1,)
    parameters: Vector,  # (P,)
    spec: BlockSpec,
    saved: Vector,  # what block_forward saved
    dx: OutMatrix,  # (N, C): overwritten
    dparameters: OutVector,  # (P,): added to
    scratch: OutVector,
    accumulate: bool = True,  # or else dparameters is overwritten
    bfloat16: bool = False,
    shard: Shard | None = None,  # this thread's, of several
    row_numbers: Indices | None = None,  # (N,): with `key`, `key` + 1 and `rate` as in `dropout`
    key: int = 0,
    rate: float = 0.0,
    table: Matrix | None = None,  # (S, D): see rotary
) -> None:
    """The gradients of the input and of the parameters, from the gradient of the output."""
    check_whole(shard)
    if not accumulate:
        dparameters[...] = 0
    check_table(spec, table)
    block, s = Parts(spec, parameters, bfloat16, dparameters), saved_rows(spec, saved, len(x))
    masks, H, K = Masks(row_numbers, key, rate), spec.n_heads, spec.n_kv_heads

    def attention_back(dsum: Array, rows: Array) -> Array:  # (N, C) -> (N, C)
        dheads = masks.dropped(dsum, ATTENTION)
        if "attention.projection_weight" in block.p:
            dheads = block.linear_backward(
                dheads, s["heads"], "attention.projection_weight", "attention.projection_bias"
            )  # (N, C)
        dqkv = np.empty_like(s["qkv"])
        attention_backward(dheads, s["qkv"], s["lse"], offsets, H, dqkv, scratch, K)
        if table is not None:
            rotary(dqkv, offsets, table, H + K, True)
        return block.linear_backward(dqkv, rows, "attention.qkv_weight", "attention.qkv_bias")

    def feed_forward_back(dsum: Array, rows: Array) -> Array:  # (N, C) -> (N, C)
        dout = masks.dropped(dsum, FEED_FORWARD)
        return block.feed_forward_backward(dout, rows, s["hidden"])

    # A residual sum hands its gradient to both of its terms.
    if spec.pre_norm:
        # forward: out = sum1 + feed_forward(norm2(sum1)), sum1 = x + attention(norm1(x))
        h = block.norm(s["sum1"], "norm2")
        dh = feed_forward_back(dout, h)
        dsum1: Array = dout + block.norm_backward(dh, s["sum1"], "norm2")
        dh = attention_back(dsum1, block.norm(x, "norm1"))
        dx[...] = dsum1 + block.norm_backward(dh, x, "norm1")
    else:
        # forward: out = norm2(h + feed_forward(h)), h = norm1(x + attention(x))
        h = block.norm(s["sum1"], "norm1")
        dsum2 = block.norm_backward(dout, s["sum2"], "norm2")
        dh = dsum2 + feed_forward_back(dsum2, h)
        dsum1 = block.norm_backward(dh, s["sum1"], "norm1")
        dx[...] = dsum1 + attention_back(dsum1, x)


KERNELS = (block_saved_size, block_scratch_size, block_forward, block_backward)
