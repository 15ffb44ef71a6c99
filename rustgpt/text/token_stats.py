"""Owns what the tokens of some texts are like: how many, how long, how often."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import NamedTuple

from rustgpt.text.tokens import BaseTokenizer
from rustgpt.text.vocab import END


class TokenStats(NamedTuple):
    """What `token_stats` counts; a text ends with ``</s>``, which is a token and has no bytes."""

    texts: int
    bytes: int
    tokens: int
    bytes_per_token: float
    used: int  # different tokens
    unknown_pieces: int  # tokens that spell what the vocabulary does not have
    longest_text: int  # in tokens
    longest_tokens: list[str]  # of those used
    most_frequent: list[tuple[str, int]]


def token_stats(tokenizer: BaseTokenizer, texts: Iterable[str], shown: int) -> TokenStats:
    """Return counts of the tokens of texts, and the `shown` longest and most frequent ones."""
    counts: Counter[int] = Counter()
    number = size = longest = 0
    for text in texts:
        ids = tokenizer.encode(text, allow_special=True)
        counts.update(ids)
        number += 1
        size += len(text.removesuffix(END).rstrip().encode("utf-8", "surrogatepass"))
        longest = max(longest, len(ids))
    total = counts.total()
    text_ids = [i for i in counts if i != tokenizer.end_id]
    text_ids.sort(key=lambda i: (-len(tokenizer.name(i)), i))
    frequent = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return TokenStats(
        texts=number,
        bytes=size,
        tokens=total,
        bytes_per_token=size / max(1, total),
        used=len(counts),
        unknown_pieces=sum(n for i, n in counts.items() if tokenizer.spells(i)),
        longest_text=longest,
        longest_tokens=[tokenizer.name(i) for i in text_ids[:shown]],
        most_frequent=[(tokenizer.name(i), n) for i, n in frequent[:shown]],
    )
