"""Owns how texts as token ids become the rows of a training: some held out, the others cut."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress

import numpy as np
from numpy.typing import NDArray

from rustgpt.errors import DataError
from rustgpt.text.dialogue import Dialogue
from rustgpt.text.plain import Continued
from rustgpt.text.rows import AnyRow, Edges, Row, Rows
from rustgpt.text.text_format import TextFormat
from rustgpt.text.tokenizer import token_ids

FEW = 10  # texts of which none is held out as a whole, but the end of each
Ids = NDArray[np.int32]
Text = str | Dialogue | Row | Sequence[int] | Ids


def encode_text(
    text: Text, text_format: TextFormat, loss_on: str = ""
) -> Row | Sequence[int] | Ids:
    """Return the ids of a text of any form.

    Parameters
    ----------
    loss_on
        What counts in the loss of a dialogue, "assistant" or "all"; "" if strings are no dialogues.
        A string that is none is learned as it is.
    """
    if isinstance(text, str) and loss_on:
        with suppress(DataError):
            text = Dialogue.parse(text)
    if isinstance(text, Dialogue):
        return text_format.dialogue(text, "all" if loss_on == "all" else "assistant")
    if isinstance(text, (Row, np.ndarray, list, tuple)):
        return text
    if isinstance(text, Continued):
        ids = text_format.tokenizer.encode(text, True)
        return Row(np.array(ids, np.int32), continues=True)
    return text_format.text(text)  # type: ignore[arg-type]  # which says so if it is none


def checked(text: Sequence[int] | AnyRow, vocab_size: int) -> AnyRow:
    """Return a text as a row, of int32 ids that are in the vocabulary.

    Raises
    ------
    TokenizerError
        If an id is not in the vocabulary.
    DataError
        If a row does not say of each prediction whether it counts.
    """
    if not isinstance(text, Row):
        return token_ids(text, vocab_size)
    ids = token_ids(text.ids, vocab_size)
    if text.counted is None:
        return Row(ids, continues=True) if text.continues else ids
    counted = np.asarray(text.counted)
    if counted.dtype != bool or counted.shape != (max(0, len(ids) - 1),):
        raise DataError(
            f"counted of a row of {len(ids)} ids must be {max(0, len(ids) - 1)} values of type "
            f"bool, got {counted.dtype} of shape {counted.shape}"
        )
    return ids if counted.all() and not text.continues else Row(ids, counted, text.continues)


def to_learn(texts: Rows, longest: int) -> Rows:
    """Return texts cut so that at most `longest` tokens of each are read.

    Raises
    ------
    DataError
        If there is then nothing to learn.
    """
    rows = texts.cut(longest)
    if not rows:
        raise DataError("there is nothing to train on: no text has two tokens; add some text")
    if not rows.count_targets():
        raise DataError(
            "there is nothing to train on: of no text there is a token that counts in the loss; "
            'add answers, or count all words with loss_on="all"'
        )
    return rows


def hold_out(rows: Rows, share: float, seed: int) -> tuple[Rows, Rows]:
    """Divide texts into those to learn and those to validate on.

    Parameters
    ----------
    rows
        Whole texts.
    share
        Of the texts, drawn at random; or where there are fewer than ten, or it would be less than
        one, of the end of each.
    seed
        The same one draws the same texts.

    Returns
    -------
    tuple of Rows
        The second is empty if the texts are too small to be divided.
    """
    learned = rows.with_edges(left for left, _ in _divided(rows, share, seed))
    held_out = rows.with_edges(held for _, held in _divided(rows, share, seed))
    if held_out.count_targets() and learned.count_targets():
        return learned, held_out
    return rows, Rows.of([])


def _divided(rows: Rows, share: float, seed: int) -> Iterator[tuple[Edges, Edges]]:
    """Yield the edges of what is learned, and of what is held out, some at a time."""
    total, rng = len(rows), np.random.default_rng((seed, len(rows)))
    # Of a few large texts, whole ones would be more than the share.
    whole = total >= FEW and (share * total >= 1 or share * rows.longest() < 2)
    first = 0
    for edges in rows.parts():
        n = len(edges)
        if whole:
            # In all, the share of all; but one at least, and not all.
            before, after = (round(share * i) for i in (first, first + n))
            drawn = min(max(after - before, first == 0), n - 1)
            held = np.zeros(n, np.bool_)
            held[rng.permutation(n)[:drawn]] = True
            yield edges[~held], edges[held]
        else:
            starts, stops = edges.T
            at = stops - np.rint(share * (stops - starts)).astype(np.int64)
            at = np.where(stops - at > 1, at, stops)
            left, right = np.stack([starts, at], axis=1), np.stack([at, stops], axis=1)
            yield left, right[at < stops]
        first += n
