"""Owns what data are to a tokenizer and a context: counts, warnings, examples with their loss."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain, pairwise
from typing import Final, NamedTuple

import numpy as np

from rustgpt.text.dataset import Dataset
from rustgpt.text.pieces import Text, encode_text
from rustgpt.text.rows import Row
from rustgpt.text.text_format import TextFormat
from rustgpt.text.tokenizer import BaseTokenizer, Tokenizer
from rustgpt.text.vocab import END

FEW_TOKENS: Final = 1000
EXAMPLE_TOKENS: Final = 60
EXAMPLE_CHARACTERS: Final = 10_000  # in which so many tokens are

Segment = tuple[str, bool]  # some of a text, and whether its tokens count in the loss


class Shares(NamedTuple):
    """Counts of texts or of dialogues."""

    rows: int = 0
    tokens: int = 0
    single: int = 0  # of one token before the end token
    cut: int = 0  # longer than the context
    masked: int = 0  # in which nothing counts, or nothing within the context


@dataclass(frozen=True)
class Summary:
    """What a training would see of data.

    Attributes
    ----------
    texts, dialogues
        Their counts.
    bytes
        Of their text as UTF-8.
    spelled
        Tokens that are no known word but a piece of one, or a byte.
    longest
        The most tokens of a text or dialogue.
    context
        How many tokens the model sees at once.
    whole
        Whether all data were looked at, not the beginning only.
    """

    texts: Shares
    dialogues: Shares
    bytes: int
    spelled: int
    longest: int
    context: int
    whole: bool

    @property
    def tokens(self) -> int:
        """How many tokens there are."""
        return self.texts.tokens + self.dialogues.tokens

    @property
    def tokens_per_byte(self) -> float:
        """Tokens a byte of text."""
        return self.tokens / max(1, self.bytes)

    def warnings(self) -> list[str]:
        """Say what cannot work, or not well."""
        found, texts, dialogues = [], self.texts, self.dialogues
        if texts.rows and texts.single == texts.rows and not dialogues.rows:
            found.append(
                "each text is a single token, so there is nothing to learn of what follows what: "
                "longer texts are needed, or --tokenizer char, which makes every character a token"
            )
        if self.whole and self.tokens < FEW_TOKENS:
            found.append(
                f"the data are {self.tokens:,} tokens, too few to learn a language from: the model "
                "can only learn them by heart"
            )
        if dialogues.cut:
            found.append(
                f"{dialogues.cut:,} of {dialogues.rows:,} dialogues are longer than the context of "
                f"{self.context:,} tokens and will be cut: a larger --max-seq-len keeps them whole"
            )
        if dialogues.masked:
            found.append(
                f"in {dialogues.masked:,} of {dialogues.rows:,} dialogues the answer begins behind "
                f"the context of {self.context:,} tokens: all labels within it are masked, and the "
                "model does not see the question of what it learns; a larger --max-seq-len helps"
            )
        return found


def summarize(
    dataset: Dataset,
    text_format: TextFormat,
    context: int,
    loss_on: str = "assistant",
    most: int | None = None,
) -> Summary:
    """Count what a training on data in this format, with this context, would see.

    Parameters
    ----------
    most
        Look at the first so many characters only.
    """
    whole = True
    if most is not None:
        dataset, whole = dataset.beginning(most)
    tokenizer, bos = text_format.tokenizer, len(text_format.bos)
    is_spelled = np.zeros(tokenizer.vocab_size, bool)
    is_spelled[_spelled_ids(tokenizer)] = True
    counts = [[0] * len(Shares._fields), [0] * len(Shares._fields)]
    size = spelled = longest = 0
    texts = chain(dataset.pretraining_data, dataset.chat_training_data)
    for text, (row, phase) in zip(texts, _rows(dataset, text_format, loss_on), strict=True):
        size += _bytes(text)
        tokens = len(row.ids)
        counted = row.counted
        single = tokens - (row.ids[-1] == tokenizer.end_id) - bos < 2
        seen = (1, tokens, single, tokens > context + 1)
        masked = counted is not None and not counted[:context].any()
        counts[phase] = [a + int(b) for a, b in zip(counts[phase], (*seen, masked), strict=True)]
        spelled += int(is_spelled[row.ids].sum())
        longest = max(longest, tokens)
    both = (Shares(*counts[0]), Shares(*counts[1]))
    return Summary(*both, size, spelled, longest, context, whole)


def examples(
    dataset: Dataset,
    text_format: TextFormat,
    context: int,
    number: int,
    loss_on: str = "assistant",
) -> list[list[Segment]]:
    """Return the first texts and the first dialogues as the model will see them.

    Each is a list of segments with whether their tokens count in the loss. The first token of a
    text never does, for it is not predicted.
    """
    first = Dataset(
        [text[:EXAMPLE_CHARACTERS] for text in dataset.pretraining_data[:number]],
        dataset.chat_training_data[:number],
        dataset.dialogues[:number],
    )
    most = min(context, EXAMPLE_TOKENS) + 1
    tokenizer = text_format.tokenizer
    return [_segments(row, tokenizer, most) for row, _ in _rows(first, text_format, loss_on)]


def _segments(row: Row, tokenizer: Tokenizer, most: int) -> list[Segment]:
    ids = row.ids[:most].tolist()
    counted = [True] * (len(row.ids) - 1) if row.counted is None else row.counted.tolist()
    marks = [False, *counted][:most]
    edges = [0, *(i for i in range(1, len(ids)) if marks[i] != marks[i - 1]), len(ids)]
    return [
        (tokenizer.decode(ids[a:b], False, after=ids[:a]), marks[a]) for a, b in pairwise(edges)
    ]


def _rows(dataset: Dataset, text_format: TextFormat, loss_on: str) -> Iterator[tuple[Row, int]]:
    """Yield the rows of both phases, with the number of the phase."""
    phases: tuple[tuple[Iterable[Text], str], ...] = (
        (dataset.pretraining_data, ""), (dataset.tuning_data, loss_on),
    )  # fmt: skip
    for phase, (texts, counts) in enumerate(phases):
        for text in texts:
            row = encode_text(text, text_format, counts)
            yield row if isinstance(row, Row) else Row(np.asarray(row, np.int32)), phase


def _bytes(text: str) -> int:
    """Return the bytes of a text without the notation of its end."""
    return len(text.removesuffix(END).rstrip().encode("utf-8", "surrogatepass"))


def _spelled_ids(tokenizer: Tokenizer) -> list[int]:
    """Return the tokens with which a word outside the vocabulary is spelled."""
    if not isinstance(tokenizer, BaseTokenizer):  # somebody's own
        return []
    return [i for i in range(tokenizer.vocab_size) if tokenizer.spells(i)]
