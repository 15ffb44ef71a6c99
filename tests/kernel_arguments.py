"""Owns a call of every kernel: arguments that it accepts.

Which arguments are arrays, of how many dimensions, written to or optional, say the annotations of
the twins alone; see `kernel_arrays.py`.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from rustgpt._ext import attention, block, decoder

from .kernel_arrays import ARRAYS, KERNELS, TWINS
from .kernel_specs import LLAMA, angles, decoder_spec_of, head_dim, offsets_of, spec_of

Arguments = dict[str, Any]

# What is saved is laid out by each implementation in its own way; what is left in scratch is
# nobody's business.
OPAQUE = ("scratch", "saved")
LARGEST_ROW, LARGEST_KEY = 2**31 - 1, 2**64 - 1
# Calls that differ from a kernel's first in more than its sizes: "kernel, how".
VARIANTS = {
    "block_forward, cache": {"lengths": (2, 0, 1), "starts": (1, 4, 0)},
    "block_forward, nothing saved": {"save": False},
    "block_forward, cache, nothing saved": {
        "lengths": (2, 0, 1), "starts": (1, 4, 0), "save": False,
    },
    "block_forward, dropout": {"rate": 0.3},
    "block_backward, overwriting": {"accumulate": False},
    "decoder_forward, GPT-2": {
        "norm": "pre", "activation": "gelu", "attention_bias": True, "tied": True,
    },
    "block_backward, dropout": {"rate": 0.3},
    **{f"{name}, fewer key heads": {"K": 1} for name in (
        "attention_forward", "attention_backward", "attention_decode"
    )},
    "block_forward, Llama": LLAMA,
    "block_forward, cache, Llama": {"lengths": (2, 0, 1), "starts": (1, 4, 0), **LLAMA},
    "block_backward, Llama": LLAMA,
    "decoder_forward, Llama": {"tied": True, "bias": False, **LLAMA},
    "embedding_forward, tokens alone": {"S": 0},
    "embedding_backward, tokens alone": {"S": 0},
    "rotary, back": {"back": True},
    "rotary, cache": {"starts": (1, 4, 0)},
    "linear_cross_entropy, overwriting": {"accumulate": False},
    "linear_cross_entropy, loss alone": {"gradient": False},
}  # fmt: skip
CALLS = [*KERNELS, *VARIANTS]


def kernel_of(call: str) -> str:
    """Return the kernel that a call is of."""
    return call.partition(",")[0]


def written(kernel: str) -> list[str]:
    """Return the arrays that a kernel writes to and whose numbers mean something."""
    arrays = ARRAYS[kernel].items()
    return [name for name, array in arrays if array.written and name not in OPAQUE]


def array_arguments(**wanted: bool) -> list[tuple[str, str]]:
    """Return (call, argument) of every array of every kernel, of which the annotations say this.

    The call is the kernel's first in which the argument is an array, and not None.
    """
    found: dict[tuple[str, str], str] = {}
    for call in CALLS:
        kernel, given = kernel_of(call), make(call, "float32")
        for name, array in ARRAYS[kernel].items():
            fits = all(getattr(array, what) == value for what, value in wanted.items())
            if fits and given.get(name) is not None:
                found.setdefault((kernel, name), call)
    return [(call, name) for (_, name), call in found.items()]


# Arguments


def longest_of(given: Arguments) -> int:
    """Return the most rows of a text, with those in the cache."""
    lengths = np.diff(given["offsets"])
    starts = given.get("starts")
    return int((lengths if starts is None else starts + lengths).max(initial=0))


def exactly(kernels: Any, kernel: str, given: Arguments) -> Arguments:
    """Return the arguments with as much scratch as these kernels ask for, all NaN, and no more.

    The same of what is saved, if the kernel saves it.
    """
    sizes, threads = {}, given["shard"].n if given.get("shard") else 1
    if kernel.startswith("attention"):
        D = given["dout" if "dout" in given else "out"].shape[1] // given["n_heads"]
        sizes["scratch"] = kernels.attention_scratch_size(longest_of(given), D)
    elif kernel.startswith("decoder"):
        spec, N = given["spec"], len(given["ids"])
        sizes["scratch"] = kernels.decoder_scratch_size(spec, N, longest_of(given), threads)
    elif kernel.startswith("block"):
        spec, N, saves = given["spec"], len(given["x"]), given["saved"] is not None
        sizes["scratch"] = kernels.block_scratch_size(spec, N, longest_of(given), threads, saves)
        if kernel == "block_forward" and saves:
            sizes["saved"] = kernels.block_saved_size(spec, N, threads > 1)
    dtypes = {name: given[name].dtype for name in sizes}
    return given | {name: np.full(size, np.nan, dtypes[name]) for name, size in sizes.items()}


def copied(given: Arguments) -> Arguments:
    """Return the arguments with arrays of their own."""
    return {k: v.copy() if isinstance(v, np.ndarray) else v for k, v in given.items()}


def widened(given: Arguments) -> Arguments:
    """Return the arguments with arrays of their own, numbers in float64."""
    return {
        k: v.astype(np.float64) if isinstance(v, np.ndarray) and v.dtype.kind == "f" else v
        for k, v in copied(given).items()
    }


def make(call: str, dtype: str, **sizes: Any) -> Arguments:
    """Return by name, in order, what a call accepts. What is overwritten begins as NaN."""
    kernel = kernel_of(call)
    return dict(getattr(Maker(dtype), kernel)(**VARIANTS.get(call, {}) | sizes))


class Maker:
    """Makes arguments that a kernel accepts: `Maker("float32").linear_forward(N=3, A=4, B=5)`."""

    def __init__(self, dtype: str, seed: int = 0) -> None:
        self.dtype = dtype
        self.rng = np.random.default_rng(seed)

    def normal(self, *shape: int) -> Any:
        return self.rng.standard_normal(shape).astype(self.dtype)

    def positive(self, *shape: int) -> Any:
        return self.rng.uniform(0.5, 2.0, shape).astype(self.dtype)

    def blank(self, *shape: int) -> Any:
        return np.full(shape, np.nan, self.dtype)

    def indices(self, limit: int, n: int, lowest: int = 0) -> Any:
        return self.rng.integers(lowest, limit, n, dtype=np.int32)

    def matrix_product(
        self, m: int = 3, n: int = 4, k: int = 5, trans_a: bool = False, trans_b: bool = False,
        add: bool = False,
    ) -> Arguments:  # fmt: skip
        return {
            "a": self.normal(*((k, m) if trans_a else (m, k))),
            "b": self.normal(*((n, k) if trans_b else (k, n))),
            "out": self.normal(m, n) if add else self.blank(m, n),
            "trans_a": trans_a, "trans_b": trans_b, "add": add,
        }  # fmt: skip

    def linear_forward(
        self, N: int = 3, A: int = 4, B: int = 5, transposed: bool = False, bias: bool = True
    ) -> Arguments:
        return {
            "x": self.normal(N, A),
            "weight": self.normal(*((B, A) if transposed else (A, B))),
            "bias": self.normal(B) if bias else None,
            "out": self.blank(N, B),
            "transposed": transposed,
        }

    def linear_backward(
        self, N: int = 3, A: int = 4, B: int = 5, transposed: bool = False, bias: bool = True,
        with_dx: bool = True,
    ) -> Arguments:  # fmt: skip
        shape = (B, A) if transposed else (A, B)
        return {
            "dout": self.normal(N, B),
            "x": self.normal(N, A),
            "weight": self.normal(*shape),
            "dx": self.blank(N, A) if with_dx else None,
            "dweight": self.normal(*shape),
            "dbias": self.normal(B) if bias else None,
            "transposed": transposed,
        }

    def relu_forward(self, N: int = 3, F: int = 4) -> Arguments:
        return {"x": self.normal(N, F), "out": self.blank(N, F)}

    def relu_backward(self, N: int = 3, F: int = 4) -> Arguments:
        return {"dout": self.normal(N, F), "x": self.normal(N, F), "dx": self.blank(N, F)}

    gelu_forward = relu_forward
    gelu_backward = relu_backward
    softmax = relu_forward

    def swiglu_forward(self, N: int = 3, F: int = 4) -> Arguments:
        return {"x": self.normal(N, 2 * F), "out": self.blank(N, F)}

    def swiglu_backward(self, N: int = 3, F: int = 4) -> Arguments:
        return {
            "dout": self.normal(N, F),
            "x": self.normal(N, 2 * F),
            "dx": self.blank(N, 2 * F),
        }

    def rms_norm_forward(self, N: int = 3, C: int = 4, epsilon: float = 1e-5) -> Arguments:
        given = self.layer_norm_forward(N, C, epsilon)
        return {name: value for name, value in given.items() if name not in ("bias", "mean")}

    def rms_norm_backward(self, N: int = 3, C: int = 4) -> Arguments:
        given = self.layer_norm_backward(N, C)
        x, one = given["x"], np.asarray(1e-5, self.dtype)
        given["rstd"] = 1 / np.sqrt((x * x).mean(axis=1) + one)
        return {name: value for name, value in given.items() if name not in ("mean", "dbias")}

    def layer_norm_forward(self, N: int = 3, C: int = 4, epsilon: float = 1e-5) -> Arguments:
        return {
            "x": 2 * self.normal(N, C) + 1,
            "weight": self.normal(C),
            "bias": self.normal(C),
            "epsilon": epsilon,
            "out": self.blank(N, C),
            "mean": self.blank(N),
            "rstd": self.blank(N),
        }

    def layer_norm_backward(self, N: int = 3, C: int = 4) -> Arguments:
        x = 2 * self.normal(N, C) + 1
        return {
            "dout": self.normal(N, C),
            "x": x,
            "weight": self.normal(C),
            "mean": x.mean(axis=1),
            "rstd": 1 / np.sqrt(x.var(axis=1) + np.asarray(1e-5, self.dtype)),
            "dx": self.blank(N, C),
            "dweight": self.normal(C),
            "dbias": self.normal(C),
        }

    def attention_forward(
        self, lengths: Sequence[int] = (3, 0, 1), H: int = 2, D: int = 3, K: int | None = None
    ) -> Arguments:
        N, C, longest = sum(lengths), H * D, max(lengths, default=0)
        return {
            "qkv": self.normal(N, C + 2 * (K or H) * D),
            "offsets": offsets_of(lengths),
            "n_heads": H,
            "out": self.blank(N, C),
            "lse": self.blank(N, H),
            "scratch": self.blank(attention.attention_scratch_size(longest, D)),
            **({"n_kv_heads": K} if K else {}),
        }

    def attention_backward(
        self, lengths: Sequence[int] = (3, 0, 1), H: int = 2, D: int = 3, K: int | None = None
    ) -> Arguments:
        forward = self.attention_forward(lengths, H, D, K)
        wide = widened(forward)
        TWINS["attention_forward"](**wide)
        return {
            "dout": self.normal(*wide["out"].shape),
            "qkv": forward["qkv"],
            "lse": wide["lse"].astype(self.dtype),
            "offsets": forward["offsets"],
            "n_heads": H,
            "dqkv": self.blank(*forward["qkv"].shape),
            "scratch": forward["scratch"],
            **({"n_kv_heads": K} if K else {}),
        }

    def cache(
        self, lengths: Sequence[int], starts: Sequence[int], columns: int,
        capacity: int | None = None, slots: Sequence[int] | None = None,
    ) -> Arguments:  # fmt: skip
        """Return a cache with the first rows of each text; no other row was ever written.

        By default a row more is free than the longest text needs, and the slots, one more than
        there are texts, are taken from the last.
        """
        B = len(lengths)
        if capacity is None:
            capacity = 1 + max((s + n for s, n in zip(starts, lengths, strict=True)), default=0)
        taken = np.array(range(B, 0, -1) if slots is None else slots, np.int32)
        shape = (max(taken, default=0) + 1, capacity, columns)
        kv = self.blank(*shape)
        for slot, start in zip(taken, starts, strict=True):
            kv[slot, :start] = self.normal(start, columns)
        return {"kv": kv, "slots": taken, "starts": np.array(starts, np.int32)}

    def attention_decode(
        self, lengths: Sequence[int] = (2, 0, 1), starts: Sequence[int] = (1, 4, 0), H: int = 2,
        D: int = 3, K: int | None = None, **cache: Any,
    ) -> Arguments:  # fmt: skip
        given = {"offsets": offsets_of(lengths), "n_heads": H}
        given |= self.cache(lengths, starts, 2 * (K or H) * D, **cache)
        N, scratch = sum(lengths), attention.attention_scratch_size(longest_of(given), D)
        return {
            "qkv": self.normal(N, (H + 2 * (K or H)) * D),
            **given,
            "out": self.blank(N, H * D),
            "scratch": self.blank(scratch),
            **({"n_kv_heads": K} if K else {}),
        }

    def rotary(
        self, lengths: Sequence[int] = (2, 0, 1), H: int = 2, D: int = 4, back: bool = False,
        starts: Sequence[int] | None = None, columns: int = 3,
    ) -> Arguments:  # fmt: skip
        """Behind the columns that are turned there are some more."""
        given: Arguments = {
            "x": self.normal(sum(lengths), H * D + columns),
            "offsets": offsets_of(lengths),
            "n_heads": H,
            "back": back,
            "starts": None if starts is None else np.array(starts, np.int32),
        }
        given["table"] = angles(self.rng, longest_of(given), D, self.dtype)
        order = ("x", "offsets", "table", "n_heads", "back", "starts")
        return {name: given[name] for name in order}

    def block_forward(
        self, lengths: Sequence[int] = (3, 0, 1), H: int = 2, D: int | None = None, F: int = 7,
        starts: Sequence[int] | None = None, capacity: int | None = None,
        slots: Sequence[int] | None = None, save: bool = True, rate: float = 0.0, **options: Any,
    ) -> Arguments:  # fmt: skip
        D = head_dim(D, options)
        N, C, spec = sum(lengths), H * D, spec_of(H, D, F, **options)
        given: Arguments = {
            "x": self.normal(N, C),
            "offsets": offsets_of(lengths),
            # So small that attention is spread over several rows: one over a single row hides
            # errors in the scores, and any rounding of large ones is multiplied on the way.
            "parameters": self.normal(spec.size) * np.asarray(0.5, self.dtype),
            "spec": spec,
            "out": self.blank(N, C),
            "saved": self.blank(0) if save else None,
            "scratch": self.blank(0),
        }
        if starts is not None:
            given |= {"bfloat16": False, "shard": None}
            given |= self.cache(lengths, starts, 2 * spec.kv_dim, capacity, slots)
        if spec.positions == "rotary":
            given["table"] = angles(self.rng, longest_of(given), D, self.dtype)
        if rate:  # the key is such that the next one is 0
            numbers = self.indices(LARGEST_ROW, N)
            given |= {"row_numbers": numbers, "key": LARGEST_KEY, "rate": rate}
        return exactly(block, "block_forward", given)

    def block_backward(self, accumulate: bool = True, **sizes: Any) -> Arguments:
        given = self.block_forward(**sizes)
        block.block_forward(**given)  # fills in what is saved
        out, saved, scratch = (given.pop(name) for name in ("out", "saved", "scratch"))
        names = ("row_numbers", "key", "rate", "table")
        last = {name: given.pop(name) for name in names if name in given}
        P = given["spec"].size
        return {
            "dout": self.normal(*out.shape),
            **given,
            "saved": saved,
            "dx": self.blank(*out.shape),
            "dparameters": self.normal(P) if accumulate else self.blank(P),
            "scratch": np.full_like(scratch, np.nan),
            "accumulate": accumulate,
            **last,
        }

    def decoder_forward(
        self, lengths: Sequence[int] = (2, 1), starts: Sequence[int] = (1, 4, 0), H: int = 2,
        D: int | None = None, F: int = 7, V: int = 5, L: int = 2, tied: bool = False,
        bias: bool = True,
        last_norm: bool | None = None, slots: Sequence[int] | None = None,
        capacity: int | None = None, **options: Any,
    ) -> Arguments:  # fmt: skip
        """The starts are those of the first texts; the last norm is there where the others come
        before.
        """
        starts, D = starts[: len(lengths)], head_dim(D, options)
        columns = 2 * spec_of(H, D, F, **options).kv_dim
        cache = self.cache(lengths, starts, columns, capacity, slots)
        spec = decoder_spec_of(
            H, D, F, V, cache["kv"].shape[1], L, tied, bias, last_norm, **options
        )
        cache["kv"] = np.stack([
            self.cache(lengths, starts, columns, capacity, slots)["kv"] for _ in range(L)
        ]) if L else self.blank(0, *cache["kv"].shape)  # fmt: skip
        given: Arguments = {
            "parameters": self.normal(spec.size) * np.asarray(0.5, self.dtype),
            "spec": spec,
            "ids": self.indices(V, sum(lengths)),
            "offsets": offsets_of(lengths),
            **cache,
            "logits": self.blank(len(lengths), V),
            "scratch": self.blank(0),
        }
        if L and options.get("positions") == "rotary":
            given["table"] = angles(self.rng, longest_of(given), D, self.dtype)
        return exactly(decoder, "decoder_forward", given)

    def cross_entropy(
        self, N: int = 3, V: int = 4, scale: float = 0.25, max_norm: float = np.inf
    ) -> Arguments:
        return {
            "logits": 3 * self.normal(N, V),
            "targets": self.indices(V, N, -1),
            "scale": scale,
            "max_norm": max_norm,
            "losses": self.blank(N),
            "dlogits": self.blank(N, V),
        }

    def linear_cross_entropy(
        self, N: int = 5, C: int = 3, V: int = 4, R: int = 2, transposed: bool = False,
        bias: bool = True, gradient: bool = True, accumulate: bool = True,
        max_norm: float = np.inf,
    ) -> Arguments:  # fmt: skip
        shape = (V, C) if transposed else (C, V)
        before = self.normal if accumulate else self.blank
        return {
            "x": self.normal(N, C),
            "weight": self.normal(*shape),
            "bias": self.normal(V) if bias else None,
            "targets": self.indices(V, N, -1),
            "scale": 0.25,
            "max_norm": max_norm,
            "losses": self.blank(N),
            "dx": self.blank(N, C) if gradient else None,
            "dweight": before(*shape) if gradient else None,
            "dbias": before(V) if gradient and bias else None,
            "scratch": self.blank(R, V),
            "transposed": transposed,
            "accumulate": accumulate,
        }

    def dropout(self, N: int = 4, C: int = 3, rate: float = 0.3) -> Arguments:
        return {
            "x": self.normal(N, C),
            "row_numbers": self.indices(LARGEST_ROW, N),
            "key": LARGEST_KEY,
            "rate": rate,
            "out": self.blank(N, C),
        }

    def embedding_forward(self, N: int = 4, V: int = 5, S: int = 6, C: int = 3) -> Arguments:
        return {
            "ids": self.indices(V, N),
            "positions": self.indices(S or 9, N),
            "tokens": self.normal(V, C),
            "places": self.normal(S, C) if S else None,
            "out": self.blank(N, C),
        }

    def embedding_backward(self, N: int = 4, V: int = 5, S: int = 6, C: int = 3) -> Arguments:
        return {
            "dout": self.normal(N, C),
            "ids": self.indices(V, N),
            "positions": self.indices(S or 9, N),
            "dtokens": self.normal(V, C),
            "dplaces": self.normal(S, C) if S else None,
        }

    def sum_of_squares(self, P: int = 7) -> Arguments:
        return {"x": self.normal(P)}

    def clip_by_global_norm(self, P: int = 7, max_norm: float = 0.5) -> Arguments:
        return {"gradients": self.normal(P), "max_norm": max_norm}

    def add_into(self, P: int = 7) -> Arguments:
        return {"x": self.normal(P), "out": self.normal(P)}

    def adam_step(self, P: int = 7) -> Arguments:
        return {
            "parameters": self.normal(P),
            "gradients": self.normal(P),
            "m": self.normal(P),
            "v": self.positive(P),
            "edges": np.array([P // 3, P // 2], np.int32),
            "gradient_scale": 0.5,
            "rate": 0.01,
            "beta1": 0.9,
            "beta2": 0.99,
            "inverse_root": 3.0,
            "epsilon": 1e-3,
            "decay": 0.02,
        }
