"""Owns GPT-2's cut of text into pieces, and byte-level BPE of these, in plain Python."""

import re
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

UNKNOWN, LETTER, NUMBER, WHITE, OTHER = range(5)
LONGEST = 512  # bytes of a piece that is merged here

# GPT-2's rule over kinds instead of characters; a space has one of its own, for it goes with what
# stands behind it. (Radford et al. 2019, Language Models are Unsupervised Multitask Learners.)
_SHOWN = np.array([*"?LNWO"])
_PIECE = re.compile(r" ?(?:L+|N+|O+)|[ W]+(?![LNO?])|[ W]")
_CONTRACTION = re.compile("'(?:[stmd]|re|ve|ll)")


def bpe_pieces(
    utf8: bytes,  # (n,): text in UTF-8
    start: int,  # where to begin, at a piece
    kinds: NDArray[np.uint8],  # (0x110000,) of each code point
    ends: NDArray[np.int32],  # (n,) where pieces end, n at most
) -> tuple[int, int]:
    """Cut text into pieces; return (where, how many): at its end, or where a kind is unknown."""
    text = utf8[start:].decode()
    codes = np.frombuffer(text.encode("utf-32-le"), "<u4")
    shape = "".join(np.where(codes == ord(" "), " ", _SHOWN[kinds[codes]]).tolist())
    at = n = 0
    while at < len(text):
        found = _CONTRACTION.match(text, at) or _PIECE.match(shape, at)
        if found is None or "?" in shape[at : found.end() + 2]:
            break
        start += len(text[at : found.end()].encode())
        ends[n] = start
        at, n = found.end(), n + 1
    return start, n


def bpe_encode(
    utf8: bytes,  # (n,): text in UTF-8
    start: int,  # where to begin, at a piece
    kinds: NDArray[np.uint8],  # (0x110000,) of each code point
    byte_ids: NDArray[np.int32],  # (256,) the token of each byte
    merges: NDArray[np.int64],  # of a pair of tokens, (rank << 32) + their token: a `pair_table`
    ids: NDArray[np.int32],  # (n,) tokens, n at most
) -> tuple[int, int, int]:
    """Encode pieces until one is for somebody else; return (where, its end, tokens written).

    At the end of the text, both are n. If its end is where it begins, a code point of it has no
    kind yet; otherwise the piece is longer than 512 bytes.
    """
    table: dict[int, int] = dict(merges[merges[:, 0] >= 0].tolist())
    ends = np.empty(len(utf8), np.int32)
    _, n = bpe_pieces(utf8, start, kinds, ends)
    written = 0
    for end in ends[:n].tolist():
        if end - start > LONGEST:
            return start, end, written
        tokens = merged([int(byte_ids[byte]) for byte in utf8[start:end]], table)
        ids[written : written + len(tokens)] = tokens
        start, written = end, written + len(tokens)
    return start, start, written


def merged(tokens: list[int], table: dict[int, int]) -> list[int]:
    """Merge the pair of the lowest rank, the first of equals, until none merges."""
    while True:
        pairs = pairwise(tokens)
        known = [(table[a << 32 | b], i) for i, (a, b) in enumerate(pairs) if a << 32 | b in table]
        if not known:
            return tokens
        value, i = min(known)
        tokens = [*tokens[:i], value & 0x7FFFFFFF, *tokens[i + 2 :]]


KERNELS = (bpe_pieces, bpe_encode)
