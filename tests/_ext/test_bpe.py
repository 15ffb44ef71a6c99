"""Byte-level BPE, compiled and in plain Python: one against the other, and what is refused."""

import numpy as np
import pytest
from rustgpt._ext.bpe import bpe_encode, bpe_pieces

from rustgpt.reference import bpe
from rustgpt.text.pairs import pair_table

BYTE_IDS = np.arange(256, dtype=np.int32)[::-1].copy()
KINDS = np.full(0x110000, bpe.OTHER, np.uint8)
for characters, kind in (
    ("abcdefghijklmnopqrstuvwxyzéж山👍", bpe.LETTER), ("0123456789½", bpe.NUMBER),
    (" \n\t\u3000", bpe.WHITE), ("?𝄞", bpe.UNKNOWN),
):  # fmt: skip
    KINDS[[*map(ord, characters)]] = kind


def merges(rng: np.random.Generator, n: int) -> np.ndarray:
    """Merge random pairs, those of letters and of tokens already made more often."""
    letters = BYTE_IDS[[*b"abc  \n'\xe5\xb1"]]
    found: dict[tuple[int, int], int] = {}
    for i in range(n):
        made = [*letters, *range(256, 256 + i)]
        found.setdefault(tuple(map(int, rng.choice(made, 2))), 256 + i)
    ranks = rng.permutation(len(found))
    values = [int(rank) << 32 | token for rank, token in zip(ranks, found.values(), strict=True)]
    left, right = zip(*found, strict=True)
    return pair_table(left, right, values)


def encoded(encode, text, table, start=0):
    utf8 = text.encode()
    ids = np.full(len(utf8), -1, np.int32)
    at, end, n = encode(utf8, start, KINDS, BYTE_IDS, table, ids)
    return at, end, ids[:n].tolist()


def test_the_same_pieces_and_tokens():
    rng = np.random.default_rng(0)
    for i in range(400):
        table = merges(rng, i % 60 + 1)
        text = "".join(rng.choice([*"aabbcc  \n'stml190?é山½👍\u3000𝄞-"], 30, p=None))
        text = text.replace("?", "") if i % 3 else text
        text = text.replace("𝄞", "") if i % 3 else text
        ours, twins = (encoded(encode, text, table) for encode in (bpe_encode, bpe.bpe_encode))
        if i % 3:
            assert ours[:2] == (len(text.encode()),) * 2
            assert ours == twins
        else:  # they may notice an unknown character a piece earlier or later
            n = min(len(ours[2]), len(twins[2]))
            assert ours[2][:n] == twins[2][:n]
            assert ours[0] <= max(len(text.partition(c)[0].encode()) for c in "?𝄞")


@pytest.mark.parametrize("encode", [bpe_encode, bpe.bpe_encode])
def test_what_is_left_to_others(encode):
    table = pair_table([BYTE_IDS[ord("a")]], [BYTE_IDS[ord("a")]], [300])
    assert encoded(encode, "aa " + "b" * 513 + " aa", table)[:2] == (2, 516)
    assert encoded(encode, "aa" + "b" * 513 + " aa", table)[:2] == (0, 515)
    at, end, ids = encoded(encode, "aa" + "b" * 510 + " aa", table)
    assert (at, end, len(ids)) == (515, 515, 511 + 2)
    assert encoded(encode, "aa a?", table) == (2, 2, [300])
    assert encoded(encode, "aa? a", table)[0] == 0
    assert encoded(encode, "aaa aa", table, 3) == (6, 6, [BYTE_IDS[32], 300])
    assert encoded(encode, "", table) == (0, 0, [])


def test_what_is_refused():
    table = pair_table([1], [2], [3])
    ids = np.empty(3, np.int32)
    for change, words in (
        ({"start": -1}, "start must be from 0 to 3"),
        ({"start": 4}, "start must be from 0 to 3"),
        ({"kinds": KINDS[:-1]}, "the length 1114112"),
        ({"byte_ids": BYTE_IDS[:-1]}, "lengths 256 and 3"),
        ({"ids": ids[:2]}, "lengths 256 and 3"),
        ({"merges": np.zeros((4, 2), np.int64)}, "a free place"),
        ({"merges": np.full((3, 2), -1)}, "a power of two"),
        ({"merges": np.full((4, 3), -1)}, "a power of two"),
    ):
        given = {"utf8": b"abc", "start": 0, "kinds": KINDS, "byte_ids": BYTE_IDS}
        with pytest.raises(ValueError, match=words):
            bpe_encode(**{**given, "merges": table, "ids": ids, **change})
    with pytest.raises(ValueError, match="a length of 3"):
        bpe_pieces(b"abc", 0, KINDS, ids[:2])
    for broken in (b"\xf4", b"\xf7\xbf\xbf\xbf", b"a\xe5", b"\xff\xff\xff", b"\x80' \xc3"):
        assert bpe_encode(broken, 0, KINDS, BYTE_IDS, table, np.empty(9, np.int32))[0] >= 0


def test_tables():
    rng = np.random.default_rng(0)
    for n in (0, 1, 2, 3, 100, 5000):
        left, right = rng.integers(0, 80, n), rng.integers(0, 80, n)
        pairs = {*zip(left.tolist(), right.tolist(), strict=True)}
        left, right = np.array([*pairs], np.int64).reshape(-1, 2).T
        values = np.arange(len(pairs))
        table = pair_table(left, right, values)
        assert len(table) > len(pairs)
        found = table[table[:, 0] >= 0]
        assert sorted(found.tolist()) == sorted(
            [a << 32 | b, v] for a, b, v in zip(left.tolist(), right.tolist(), values, strict=True)
        )
