"""Owns the word tokenizer: text to token ids and back, without loss, whole or as a stream."""

from __future__ import annotations

import operator
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final, Protocol, SupportsIndex

import numpy as np
from numpy.typing import NDArray

from rustgpt.errors import DataError, TokenizerError
from rustgpt.text.units import GLUED, NEWLINE, SPACE, Spacing, cut, kinds_of
from rustgpt.text.utf8 import Utf8Stream
from rustgpt.text.vocab import END, END_ID, FIRST_BYTE, JOIN, PIECE, SPACE_MARK, Vocab

Ids = Sequence[SupportsIndex]

# The space before the end token and the white space behind it belong to the notation.
_END: Final = re.compile(rf" ?{END}\s*")


class Stream(Protocol):
    """Turns tokens into text one by one."""

    def push(self, token_id: SupportsIndex) -> str:
        """Take one token and return the text that is now certain."""

    def finish(self) -> str:
        """Return the text that is left at the end."""


class Tokenizer(Protocol):
    """What a model needs of its tokenizer: `WordTokenizer`, or one of your own.

    To be loaded with its model, one of your own also has a class method `from_json`, which reads
    what `to_json` wrote; see `LLM.load`.
    """

    @property
    def vocab_size(self) -> int:
        """V, the number of tokens; ids are below it."""

    @property
    def end_id(self) -> int:
        """The token that ends a text."""

    def encode(self, text: str, allow_special: bool = False) -> list[int]:
        """Turn text into token ids; `allow_special` for training data, in which text may end."""

    def decode(
        self, ids: Iterable[SupportsIndex], skip_special: bool = True, *, after: Ids = ()
    ) -> str:
        """Turn token ids into the text that they append to that of the tokens `after`."""

    def stream(self, skip_special: bool = True, *, after: Ids = ()) -> Stream:
        """Return what turns tokens into text one by one."""

    def to_json(self) -> str:
        """Write the tokenizer as JSON with a "format"."""


class WordTokenizer:
    """Words, signs and white space as numbers.

    One space between two units is stored only where it (or its absence) breaks the rules of
    :mod:`rustgpt.text.units`. A word outside the vocabulary is spelled in pieces, a character
    outside it as its UTF-8 bytes. So ``decode(encode(text)) == text`` for every text.

    Parameters
    ----------
    vocab : Vocab
        The tokens to use; see :meth:`train` to find them in data.

    Examples
    --------
    >>> tokenizer = WordTokenizer.train(["The sun rises </s>"])
    >>> tokenizer.tokens("The sun rises!")
    ['The', 'sun', 'rises', '<0x21>']
    """

    def __init__(self, vocab: Vocab) -> None:
        self.vocab = vocab
        pieces = [len(token) - len(PIECE) for token in vocab.tokens if token.startswith(PIECE)]
        self._longest = {"": max(map(len, vocab.tokens)), PIECE: max(pieces, default=0)}
        self._shapes = [_shape(token) for token in vocab.tokens]

    @property
    def vocab_size(self) -> int:
        """The number of tokens; ids are below it."""
        return len(self.vocab)

    @property
    def end_id(self) -> int:
        """The token that ends a text, ``</s>``."""
        return END_ID

    @classmethod
    def train(cls, texts: Iterable[str], max_vocab_size: int | None = None) -> WordTokenizer:
        """Make a tokenizer that knows the words of these texts.

        Parameters
        ----------
        texts : iterable of str
            The texts; ``</s>`` in them is the end token.
        max_vocab_size : int, optional
            The most tokens to have; see :meth:`Vocab.build`.
        """
        if isinstance(texts, str):
            raise DataError("the texts to train a tokenizer on must be a list, not one string")
        counts: Counter[str] = Counter()
        for text in texts:
            if not isinstance(text, str):
                raise DataError(f"a text to train on must be a string, not {type(text).__name__}")
            for part in _END.split(text):
                counts.update(unit for _, unit, _, _ in cut(part))
        return cls(Vocab.build(counts, max_vocab_size))

    def encode(self, text: str, allow_special: bool = False) -> list[int]:
        """Turn text into token ids.

        Parameters
        ----------
        text : str
            Any string.
        allow_special : bool
            Whether ``</s>`` means the end of a text, as in training data. Otherwise, and for the
            names of all other tokens in either case, it is four ordinary signs.
        """
        if not isinstance(text, str):
            raise TokenizerError(f"only text can be encoded, not {type(text).__name__}")
        known = self.vocab.ids
        mark = {True: known[SPACE_MARK], False: known[JOIN]}
        ids: list[int] = []
        for i, part in enumerate(_END.split(text) if allow_special else [text]):
            if i:
                ids.append(END_ID)
            spacing = Spacing()
            for spaced, unit, first, last in cut(part):
                spelled = [known[unit]] if unit in known else self._spell(unit)
                if FIRST_BYTE <= spelled[0] < FIRST_BYTE + 256:
                    first = GLUED  # a reader knows the kind only after the last byte
                if spaced != spacing.space_before(first):
                    ids.append(mark[spaced])
                    spacing.advance(SPACE)
                spacing.advance(last)
                ids += spelled
        return ids

    def tokens(self, text: str, allow_special: bool = False) -> list[str]:
        """Show the tokens that `encode` cuts a text into."""
        return [self.vocab.tokens[i] for i in self.encode(text, allow_special)]

    def decode(
        self, ids: Iterable[SupportsIndex], skip_special: bool = True, *, after: Ids = ()
    ) -> str:
        """Turn token ids, of whatever origin, into text.

        Parameters
        ----------
        ids : iterable of int
            The tokens. Bytes that are not UTF-8 become U+FFFD.
        skip_special : bool
            Whether the end token is left out of the text or written as ``</s>``.
        after : sequence of int
            Tokens that stand before `ids`. The result is what `ids` append to their text.

        Raises
        ------
        TokenizerError
            An id is not a whole number or not in the vocabulary.
        """
        stream = self.stream(skip_special, after=after)
        return "".join([*map(stream.push, _iterate(ids)), stream.finish()])

    def stream(self, skip_special: bool = True, *, after: Ids = ()) -> TextStream:
        """Return what turns tokens into text one by one; see `TextStream`."""
        return TextStream(self, skip_special, after=after)

    def to_json(self) -> str:
        """Write the tokenizer as JSON, one token a line."""
        return self.vocab.to_json()

    @classmethod
    def from_json(cls, text: str) -> WordTokenizer:
        """Read what `to_json` has written.

        Raises
        ------
        TokenizerError
            The text is anything else.
        """
        return cls(Vocab.from_json(text))

    def _spell(self, unit: str) -> list[int]:
        """Write a unit outside the vocabulary as its longest known parts, from left to right."""
        known = self.vocab.ids
        if unit == " ":
            return [known[SPACE_MARK]]
        ids: list[int] = []
        start, prefix = 0, ""
        while start < len(unit):
            for end in range(min(len(unit), start + self._longest[prefix]), start, -1):
                if (token := known.get(prefix + unit[start:end])) is not None:
                    ids.append(token)
                    break
            else:
                end = start + 1
                utf8 = unit[start].encode("utf-8", "surrogatepass")
                ids += [FIRST_BYTE + byte for byte in utf8]
            start, prefix = end, PIECE
        return ids


class TextStream:
    """Turns tokens into text one by one, as a model writes them.

    Parameters
    ----------
    tokenizer : WordTokenizer
        What the ids mean.
    skip_special : bool
        Whether the end token is left out of the text or written as ``</s>``.
    after : sequence of int
        Tokens that stand before the first one pushed; their text is not given out again.
    """

    def __init__(
        self, tokenizer: WordTokenizer, skip_special: bool = True, *, after: Ids = ()
    ) -> None:
        self._shapes = tokenizer._shapes
        self._end = "" if skip_special else END
        self._spacing = Spacing()
        self._utf8 = Utf8Stream()
        for token_id in _iterate(after):
            self.push(token_id)

    def push(self, token_id: SupportsIndex) -> str:
        """Take one token and return the text that is now certain."""
        index = _checked(token_id, len(self._shapes))
        if FIRST_BYTE <= index < FIRST_BYTE + 256:
            return self._write(self._utf8.push(index - FIRST_BYTE))
        broken = self.finish() if self._utf8.begun else ""
        text, first, last = self._shapes[index]
        space = " " if self._spacing.space_before(first) else ""
        self._spacing.advance(last)
        return broken + space + (self._end if index == END_ID else text)

    def finish(self) -> str:
        """Return what is left: U+FFFD for a character that was begun and not completed."""
        return self._write(self._utf8.finish())

    def _write(self, text: str) -> str:
        """Note and return text that came as bytes."""
        for kind in kinds_of(text):
            self._spacing.advance(kind)
        return text


def token_ids(ids: Sequence[int] | NDArray[Any], size: int, lowest: int = 0) -> NDArray[np.int32]:
    """Return token ids as an array (n,); TokenizerError unless from `lowest` to `size` - 1."""
    try:
        found = np.asarray(ids)
    except (ValueError, TypeError, OverflowError):  # lists of unequal lengths
        found = np.empty(0, object)
    if found.ndim == 1 and found.size == 0 and found.dtype != object:
        return np.empty(0, np.int32)
    if found.ndim != 1 or found.dtype.kind not in "iu":
        raise TokenizerError("token ids must be a list of whole numbers of at most 64 bits")
    for index in (found.min(), found.max()):
        if not lowest <= index < size:
            raise TokenizerError(f"a token id must be from {lowest} to {size - 1}, not {index}")
    return found.astype(np.int32)


def _shape(token: str) -> tuple[str, str, str]:
    """Return the text of a token and the kinds of its first and last character."""
    if token == END:
        return "", GLUED, NEWLINE  # what follows begins a new line, outside of quotes
    if token == JOIN:
        return "", GLUED, SPACE
    if token == SPACE_MARK:
        return " ", SPACE, SPACE
    if token.startswith(PIECE):
        return token.removeprefix(PIECE), GLUED, kinds_of(token)[-1]
    kinds = kinds_of(token)
    return token, kinds[0], kinds[-1]


def _iterate(ids: Iterable[SupportsIndex]) -> Iterator[SupportsIndex]:
    try:
        return iter(ids)
    except TypeError:
        raise TokenizerError(f"token ids must be a list, not {type(ids).__name__}") from None


def _checked(token_id: SupportsIndex, size: int) -> int:
    try:
        # A bool is an int to Python, but nobody means a token by it.
        index = operator.index(token_id) if not isinstance(token_id, bool) else None
    except TypeError:
        index = None
    if index is None:
        raise TokenizerError(f"a token id must be a whole number, not {type(token_id).__name__}")
    if not 0 <= index < size:
        shown = index if abs(index) < 2**63 else "one of more than 64 bits"
        raise TokenizerError(f"a token id must be from 0 to {size - 1}, not {shown}")
    return index
