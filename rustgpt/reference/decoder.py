"""Owns the decoding of a few rows through a whole model, in NumPy: layer after layer."""

import numpy as np

from rustgpt.reference.arrays import (
    Indices,
    Matrix,
    OutCaches,
    OutMatrix,
    OutVector,
    Shard,
    Vector,
    check_whole,
)
from rustgpt.reference.block import block_forward
from rustgpt.reference.embeddings import embedding_forward
from rustgpt.reference.layer_norm import layer_norm_forward
from rustgpt.reference.linear import linear_forward
from rustgpt.reference.rms_norm import rms_norm_forward
from rustgpt.reference.spec import DecoderSpec


def decoder_scratch_size(spec: DecoderSpec, N: int, longest: int, threads: int = 1) -> int:
    """Numbers of scratch for N rows, of texts that have at most `longest` rows: none here."""
    return 0


def decoder_forward(
    parameters: Vector,  # (P,): of the whole model
    spec: DecoderSpec,
    ids: Indices,  # (N,): the new tokens of each text, at least one
    offsets: Indices,  # (B + 1,)
    kv: OutCaches,  # (L, slots, S, 2 K D): of each block, as in attention_decode
    slots: Indices,  # (B,)
    starts: Indices,  # (B,)
    logits: OutMatrix,  # (B, V): of what follows each text's last token
    scratch: OutVector,
    shard: Shard | None = None,  # this thread's, of several: it divides the K heads
    table: Matrix | None = None,  # (S, D): see rotary; None if there are no rotary positions
) -> None:
    """Texts go on by some tokens: logits = output(norm(blocks(tokens[ids] + places))).

    Their keys and values are appended to the cache.
    """
    check_whole(shard)
    p, lengths = spec.unpacked(parameters), np.diff(offsets)
    x = np.empty((len(ids), spec.dim), parameters.dtype)
    positions = np.arange(len(ids)) + np.repeat(starts - offsets[:-1], lengths)  # (N,)
    embedding_forward(ids, positions.astype(np.int32), p["tokens"], p.get("places"), x)
    for block, first, cache in zip(spec.blocks, spec.firsts, kv, strict=True):
        own = parameters[first : first + block.size]
        out = np.empty_like(x)  # (N, C)
        block_forward(
            x, offsets, own, block, out, None, scratch, kv=cache, slots=slots, starts=starts,
            table=table if block.positions == "rotary" else None,
        )  # fmt: skip
        x = out
    x = x[offsets[1:] - 1]  # (B, C): each text's last row
    if "norm.weight" in p:
        mean, rstd = np.empty_like(x[:, 0]), np.empty_like(x[:, 0])
        if "norm.bias" in p:
            layer_norm_forward(x, p["norm.weight"], p["norm.bias"], spec.epsilon, x, mean, rstd)
        else:
            rms_norm_forward(x, p["norm.weight"], spec.epsilon, x, rstd)
    linear_forward(x, p["output.weight"], p.get("output.bias"), logits, spec.tied)


KERNELS = (decoder_scratch_size, decoder_forward)
