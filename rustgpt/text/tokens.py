"""Owns what all tokenizers share: checks of text and ids, the end mark, tokens that are bytes."""

from __future__ import annotations

import copy
import operator
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final, Protocol, SupportsIndex

import numpy as np
from numpy.typing import NDArray

from rustgpt.errors import ConfigError, DataError, TokenizerError
from rustgpt.text.utf8 import Utf8Stream
from rustgpt.text.vocab import END

Ids = Sequence[SupportsIndex]

# The space before the end token and the white space behind it belong to the notation.
_END: Final = re.compile(rf" ?{END}\s*")
BYTES: Final = tuple(bytes((byte,)) for byte in range(256))


class Stream(Protocol):
    """Turns tokens into text one by one."""

    def push(self, token_id: SupportsIndex) -> str:
        """Take one token and return the text that is now certain."""

    def finish(self) -> str:
        """Return the text that is left at the end."""


def split_texts(texts: Iterable[str]) -> Iterator[str]:
    """Yield what is to be learned from of texts: all but the end tokens.

    Raises
    ------
    DataError
        If they are not a list of texts.
    """
    if isinstance(texts, str):
        raise DataError("the texts to train a tokenizer on must be a list, not one string")
    for text in texts:
        if not isinstance(text, str):
            raise DataError(f"a text to train on must be a string, not {type(text).__name__}")
        yield from _END.split(text)


def check_limit(max_vocab_size: int | None, lowest: int) -> None:
    """Raise ConfigError unless a vocabulary's limit leaves room for the tokens it must have."""
    if max_vocab_size is None:
        return
    whole = isinstance(max_vocab_size, int) and not isinstance(max_vocab_size, bool)
    if not whole or max_vocab_size < lowest:
        raise ConfigError(
            f"the largest size of this vocabulary must be a whole number from {lowest} on: "
            "so many tokens are needed to spell any text"
        )


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


def each_id(ids: Iterable[SupportsIndex]) -> Iterator[SupportsIndex]:
    """Iterate over token ids; raise TokenizerError if that is impossible."""
    try:
        return iter(ids)
    except TypeError:
        raise TokenizerError(f"token ids must be a list, not {type(ids).__name__}") from None


def check_id(token_id: SupportsIndex, size: int) -> int:
    """Return a token id as an int; raise TokenizerError unless it is from 0 to `size` - 1."""
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


class BaseTokenizer:
    """What the tokenizers of rustgpt have in common; see `Tokenizer` for what each must be."""

    @property
    def vocab_size(self) -> int:
        """V, the number of tokens; ids are below it."""
        raise NotImplementedError

    @property
    def end_id(self) -> int:
        """The token that ends a text, ``</s>``."""
        raise NotImplementedError

    def encode(self, text: str, allow_special: bool = False) -> list[int]:
        """Turn text into token ids.

        Parameters
        ----------
        text
            Any string.
        allow_special
            Whether ``</s>`` means the end of a text, as in training data. Otherwise, and for the
            names of all other special tokens in either case, it is ordinary text.
        """
        if not isinstance(text, str):
            raise TokenizerError(f"only text can be encoded, not {type(text).__name__}")
        first, *others = _END.split(text) if allow_special and END in text else [text]
        ids = self._encode_part(first)
        for part in others:
            ids.append(self.end_id)
            ids += self._encode_part(part)
        return ids

    def _encode_part(self, text: str) -> list[int]:
        """Encode text without end tokens."""
        raise NotImplementedError

    def decode(
        self, ids: Iterable[SupportsIndex], skip_special: bool = True, *, after: Ids = ()
    ) -> str:
        """Turn token ids, of whatever origin, into text.

        Parameters
        ----------
        ids
            The tokens. Bytes that are not UTF-8 become U+FFFD.
        skip_special
            Whether special tokens are left out of the text, or written by their names.
        after
            Tokens that stand before `ids`. The result is what `ids` append to their text.

        Raises
        ------
        TokenizerError
            An id is not a whole number or not in the vocabulary.
        """
        stream = self.stream(skip_special, after=after)
        return "".join([*map(stream.push, each_id(ids)), stream.finish()])

    def stream(self, skip_special: bool = True, *, after: Ids = ()) -> Stream:
        """Return what turns tokens into text one by one."""
        raise NotImplementedError

    def to_json(self) -> str:
        """Write the tokenizer as JSON."""
        raise NotImplementedError

    def tokens(self, text: str, allow_special: bool = False) -> list[str]:
        """Show the tokens that `encode` cuts a text into."""
        return [self.name(i) for i in self.encode(text, allow_special)]

    def name(self, token_id: SupportsIndex) -> str:
        """Return a token as it is shown to people."""
        raise NotImplementedError

    def spells(self, token_id: int) -> bool:
        """Say whether this token is a part of something that the vocabulary does not have."""
        return False


class PieceTokenizer(BaseTokenizer):
    """A tokenizer each of whose tokens is some bytes of UTF-8; a text is all of them in a row.

    Lone surrogates are encoded as Python's "surrogatepass" does, and so come back.

    Parameters
    ----------
    pieces
        The bytes of each token.
    special
        The names of tokens that no text is encoded to; among them the end token's.
    end_id
        The token that ends a text.
    """

    def __init__(self, pieces: Sequence[bytes], special: dict[int, str], end_id: int) -> None:
        self._pieces = [b"" if i in special else piece for i, piece in enumerate(pieces)]
        self._shown = [*self._pieces]  # with special tokens
        for i, name in special.items():
            self._shown[i] = name.encode("utf-8", "surrogatepass")
        self._end_id = end_id
        self._special = dict(special)

    @property
    def vocab_size(self) -> int:
        return len(self._pieces)

    @property
    def special_ids(self) -> dict[str, int]:
        """The tokens that no text is encoded to, by their names."""
        return {name: i for i, name in self._special.items()}

    @property
    def end_id(self) -> int:
        return self._end_id

    def stream(self, skip_special: bool = True, *, after: Ids = ()) -> PieceStream:
        return PieceStream(self._pieces if skip_special else self._shown, after)

    def name(self, token_id: SupportsIndex) -> str:
        piece = self._shown[check_id(token_id, self.vocab_size)]
        try:
            return piece.decode("utf-8")
        except UnicodeDecodeError:  # bytes that are no character
            return "".join(f"<0x{byte:02X}>" for byte in piece)


class PieceStream:
    """Turns tokens into text one by one, as a model writes them.

    Parameters
    ----------
    pieces
        The bytes of each token.
    after
        Tokens that stand before the first one pushed; their text is not given out again.
    """

    def __init__(self, pieces: Sequence[bytes], after: Ids = ()) -> None:
        self._pieces = pieces
        self._utf8 = Utf8Stream()
        for token_id in each_id(after):
            self.push(token_id)

    def push(self, token_id: SupportsIndex) -> str:
        """Take one token and return the text that is now certain."""
        piece = self._pieces[check_id(token_id, len(self._pieces))]
        utf8 = self._utf8
        if not utf8.begun and piece.isascii():
            return piece.decode("ascii")
        return "".join([utf8.push(byte) for byte in piece])

    def finish(self) -> str:
        """Return what is left: U+FFFD for a character that was begun and not completed."""
        return self._utf8.finish()

    def copy(self) -> PieceStream:
        """Return a stream that goes on from here by itself."""
        twin = copy.copy(self)
        twin._utf8 = copy.copy(self._utf8)
        return twin

    @property
    def state(self) -> None:
        """What the bytes that a token appends depend on: nothing."""

    def appended(self) -> Sequence[bytes]:
        """Return the bytes that each token of the vocabulary would append now."""
        return self._pieces
