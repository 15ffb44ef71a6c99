"""Owns SentencePiece's BPE as llama.cpp has it, by scores, as a `tokenizer.json`.

llama.cpp merges the two neighbours whose token has the highest score, and of equal ones the first
in the text; the package `tokenizers` the pair that stands first in a list. That is the same if no
two tokens have the same score.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any, Final

from rustgpt.errors import TokenizerError
from rustgpt.formats.gguf_types import BYTE, NORMAL, UNKNOWN
from rustgpt.text.library_json import bpe_json
from rustgpt.text.sentence_tokenizer import BYTE as BYTE_NAME
from rustgpt.text.sentence_tokenizer import DECODERS, SPACE, STRIP

LONGEST: Final = 1000  # characters of a token that is made of others; SentencePiece makes 16


def sentence_json(
    tokens: Sequence[str], scores: Mapping[str, float], added: list[Any], prefix: bool
) -> dict[str, Any]:
    """Return a `tokenizer.json`.

    Parameters
    ----------
    tokens
        All.
    scores
        Of those that are made of others.
    added
        As `added_token` gives them.
    prefix
        Whether a space is put before texts.

    Raises
    ------
    TokenizerError
        If no list of merges gives the tokens of llama.cpp.
    """
    return bpe_json(
        tokens, _merges(scores), added,
        normalizer={"type": "Sequence", "normalizers": _normalizers(prefix)},
        decoder={"type": "Sequence", "decoders": [*DECODERS, *([STRIP] * prefix)]},
        byte_fallback=True, fuse_unk=True,
    )  # fmt: skip


def _merges(scores: Mapping[str, float]) -> list[list[str]]:
    """Return the pairs that give tokens, those of the highest score first."""
    made: dict[str, list[list[str]]] = {}
    for token in scores:
        if len(token) > LONGEST:
            raise TokenizerError(f"its tokenizer has a token of {len(token):,} characters")
        for i in range(len(token) - 1, 0, -1):
            pair = [token[:i], token[i:]]
            if pair[0] in scores and pair[1] in scores:
                made.setdefault(token, []).append(pair)
            elif all(part in scores or len(part) == 1 for part in pair):
                raise TokenizerError(
                    f"the token {token!r:.60} of its tokenizer has a character that is no token, "
                    "which cannot be expressed here"
                )
    if len({scores[token] for token in made}) < len(made):
        raise TokenizerError(
            "its tokenizer has tokens of equal scores, so that it does not say which are made "
            "first: convert the model again, with the tokenizer.model that belongs to it"
        )
    order = sorted(made, key=scores.__getitem__, reverse=True)
    return [pair for token in order for pair in made[token]]


def describe_sentence(
    writer: Any, content: dict[str, Any], tokens: Sequence[str], types: list[int]
) -> None:
    """Tell a writer of the package `gguf` of a `SentenceTokenizer`, by its `tokenizer.json`.

    Parameters
    ----------
    types
        Of the tokens; those of bytes and of what is unknown get their own.

    Raises
    ------
    TokenizerError
        If llama.cpp would give other tokens.
    """
    model = content["model"]
    for i, token in enumerate(tokens):
        if types[i] == NORMAL and BYTE_NAME.fullmatch(token):
            types[i] = BYTE
    if model["unk_token"] in tokens:
        unknown = tokens.index(model["unk_token"])
        types[unknown] = UNKNOWN
        writer.add_unk_token_id(unknown)
    others = {t for t, kind in zip(tokens, types, strict=True) if kind not in (NORMAL, BYTE)}
    pairs = [m.split(" ") if isinstance(m, str) else m for m in model["merges"]]
    pairs = [pair for pair in pairs if not others & {*pair}]  # which no text is made of
    order = [token for token, _ in groupby(map("".join, pairs))]  # of those made of others
    ranks = {token: -float(rank) for rank, token in enumerate(order)}
    scores = {t: ranks.get(t, 0.0) for t, kind in zip(tokens, types, strict=True) if kind == NORMAL}
    if sorted(_merges(scores)) != sorted(pairs) or len(ranks) < len(order):
        raise TokenizerError(
            "llama.cpp would merge other pairs of tokens than this tokenizer does, so it cannot "
            "be written as GGUF"
        )
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_scores([scores.get(token, 0.0) for token in tokens])
    writer.add_add_space_prefix(_begins_with_space(content))


def _begins_with_space(content: dict[str, Any]) -> bool:
    """Whether a space is put before texts, or raise TokenizerError."""
    normalizer = content["normalizer"] or {}
    parts = normalizer.get("normalizers", [normalizer])
    for prefix in (True, False):
        if content["pre_tokenizer"] is None and parts == _normalizers(prefix):
            return prefix
    raise TokenizerError(
        "how the tokenizer changes texts, or puts a space before them, is not what llama.cpp does, "
        "so it cannot be written as GGUF"
    )


def _normalizers(prefix: bool) -> list[dict[str, Any]]:
    """Return what happens to a text before it is cut."""
    prepend = [{"type": "Prepend", "prepend": SPACE}] * prefix
    return [*prepend, {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}]
