"""Owns how texts as token ids become the rows of a training: some held out, the others cut."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import suppress

import numpy as np
from numpy.typing import NDArray

from rustgpt.errors import DataError
from rustgpt.text.dialogue import Dialogue, encode_dialogue
from rustgpt.text.rows import AnyRow, Row, count_targets, ids_of
from rustgpt.text.tokenizer import Tokenizer, token_ids

FEW = 10  # texts of which none is held out as a whole, but the end of each
Ids = NDArray[np.int32]
Text = str | Dialogue | Row | Sequence[int] | Ids


def encode_text(
    text: Text, tokenizer: Tokenizer, loss_on: str = "", bos: bool = False
) -> Row | Sequence[int] | Ids:
    """Return the ids of a text of any form.

    Parameters
    ----------
    loss_on
        What counts in the loss of a dialogue, "assistant" or "all"; "" if strings are no dialogues.
        A string that is none is learned as it is.
    bos
        Whether a string or a dialogue begins with the end token.
    """
    if isinstance(text, str) and loss_on:
        with suppress(DataError):
            text = Dialogue.parse(text)
    if isinstance(text, Dialogue):
        return encode_dialogue(tokenizer, text, "all" if loss_on == "all" else "assistant", bos)
    if isinstance(text, (Row, np.ndarray, list, tuple)):
        return text
    # Of what is no text, the tokenizer says so.
    ids, end = tokenizer.encode(text, True), tokenizer.end_id  # type: ignore[arg-type]
    return [end, *ids] if bos and ids not in ([], [end]) else ids


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
        return ids
    counted = np.asarray(text.counted)
    if counted.dtype != bool or counted.shape != (max(0, len(ids) - 1),):
        raise DataError(
            f"counted of a row of {len(ids)} ids must be {max(0, len(ids) - 1)} values of type "
            f"bool, got {counted.dtype} of shape {counted.shape}"
        )
    return ids if counted.all() else Row(ids, counted)


def cut(rows: Iterable[AnyRow], longest: int) -> list[AnyRow]:
    """Cut rows so that at most `longest` tokens of each are read.

    The last token of a piece is the first of the next: every token but the first is predicted once.
    Rows of less than two tokens are left out.
    """
    return [
        _part(row, first, first + longest + 1)
        for row in rows
        for first in range(0, len(row) - 1, longest)
    ]


def hold_out(rows: Sequence[AnyRow], share: float, seed: int) -> tuple[list[AnyRow], list[AnyRow]]:
    """Divide texts into those to learn and those to validate on.

    Parameters
    ----------
    rows
        Whole texts.
    share
        Of the texts, drawn at random; or where there are fewer than ten, of the end of each.
    seed
        The same one draws the same texts.

    Returns
    -------
    tuple of list
        The second is empty if the texts are too small to be divided.
    """
    if len(rows) >= FEW:
        n = min(max(1, round(share * len(rows))), len(rows) - 1)
        drawn = set(np.random.default_rng((seed, len(rows))).permutation(len(rows))[:n].tolist())
        learned = [row for i, row in enumerate(rows) if i not in drawn]
        held_out = [row for i, row in enumerate(rows) if i in drawn]
    else:
        edges = [len(row) - round(share * len(row)) for row in rows]
        edges = [n if len(row) - n > 1 else len(row) for row, n in zip(rows, edges, strict=True)]
        learned = [_part(row, 0, n) for row, n in zip(rows, edges, strict=True)]
        held_out = [
            _part(row, n, len(row)) for row, n in zip(rows, edges, strict=True) if n < len(row)
        ]
    if count_targets(held_out) and count_targets(learned):
        return learned, held_out
    return list(rows), []


def _part(row: AnyRow, first: int, stop: int) -> AnyRow:
    """Return the tokens from first to stop."""
    ids = ids_of(row)[first:stop]
    if isinstance(row, Row) and row.counted is not None:
        return Row(ids, row.counted[first : max(first, stop - 1)])
    return ids
