"""Owns the tokenizers of characters and of bytes: text to token ids and back, without loss."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Final

import numpy as np

from rustgpt.errors import TokenizerError
from rustgpt.text.tokenizer_json import read_content
from rustgpt.text.tokens import BYTES, PieceTokenizer, check_limit, split_texts
from rustgpt.text.vocab import END, SURROGATE

CHARACTERS: Final = "rustgpt-char"
BYTES_ONLY: Final = "rustgpt-byte"
VERSION: Final = 1
END_ID: Final = 0
FIRST_BYTE: Final = 1
FIRST_CHARACTER: Final = FIRST_BYTE + 256
_LIMITS: Final = (0x80, 0x800, 0x10000)  # from these codes on, UTF-8 takes a byte more
BLOCK: Final = 1 << 16  # characters that are encoded at once, so that memory stays small

SHORT: Final = 200  # characters up to which arrays are slower


class CharTokenizer(PieceTokenizer):
    """Each character of the training data is a token, any other one its UTF-8 bytes.

    Tokens are numbered ``[</s>][256 bytes][characters]``.

    Parameters
    ----------
    characters
        The characters to know.

    Raises
    ------
    TokenizerError
        If one stands twice, or is half of a surrogate pair.

    Examples
    --------
    >>> tokenizer = CharTokenizer.train(["aab"])
    >>> tokenizer.encode("abé")
    [257, 258, 196, 170]
    """

    def __init__(self, characters: str) -> None:
        if not isinstance(characters, str) or SURROGATE.search(characters):
            raise TokenizerError(r"the characters must be text without halves (\ud800 to \udfff)")
        if len(set(characters)) < len(characters):
            twice = Counter(characters).most_common(1)[0][0]
            raise TokenizerError(f"the character {twice!r} stands twice")
        self.characters = characters
        super().__init__([b"", *BYTES, *(c.encode() for c in characters)], {END_ID: END}, END_ID)
        self._ids = {c: FIRST_CHARACTER + i for i, c in enumerate(characters)}
        codes = np.array([ord(c) for c in characters], np.int64)
        self._table = np.full(codes.max(initial=0) + 2, -1, np.int32)  # id by code, -1 for none
        self._table[codes] = np.arange(FIRST_CHARACTER, self.vocab_size)

    @classmethod
    def train(cls, texts: Iterable[str], max_vocab_size: int | None = None) -> CharTokenizer:
        """Make a tokenizer that knows the characters of these texts.

        Parameters
        ----------
        texts
            The texts; ``</s>`` in them is the end token.
        max_vocab_size
            The most tokens to have, from 257 on. The rarest characters give way, of equally rare
            ones those of a higher code. Default: no limit.
        """
        check_limit(max_vocab_size, FIRST_CHARACTER)
        counts: Counter[str] = Counter()
        for part in split_texts(texts):
            counts.update(part)
        known = [c for c in counts if not SURROGATE.match(c)]
        if max_vocab_size is not None:
            known.sort(key=lambda c: (-counts[c], c))
            del known[max_vocab_size - FIRST_CHARACTER :]
        return cls("".join(sorted(known)))

    def extended(self, texts: Iterable[str]) -> CharTokenizer:
        """Return a tokenizer that also knows the characters of these texts; all ids stay.

        Parameters
        ----------
        texts
            As in `train`.
        """
        new = {c for part in split_texts(texts) for c in part if not SURROGATE.match(c)}
        return type(self)(self.characters + "".join(sorted(new - set(self.characters))))

    def _encode_part(self, text: str) -> list[int]:
        if len(text) <= SHORT:
            found = [*map(self._ids.get, text)]
            if None not in found:
                return found  # type: ignore[return-value]
        ids: list[int] = []
        for block in _blocks(text):
            ids += self._encode_block(block)
        return ids

    def _encode_block(self, text: str) -> list[int]:
        codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), "<u4")  # (n,)
        ids = self._table[np.minimum(codes, len(self._table) - 1)]  # (n,)
        unknown = ids < 0
        if not unknown.any():
            return ids.tolist()  # type: ignore[no-any-return]
        missing = codes[unknown].tobytes().decode("utf-32-le", "surrogatepass")
        utf8 = np.frombuffer(missing.encode("utf-8", "surrogatepass"), np.uint8)
        lengths = np.where(unknown, 1 + np.searchsorted(_LIMITS, codes, "right"), 1)  # (n,)
        spelled = np.repeat(unknown, lengths)  # (m,) whether a token of the result is a byte
        result = np.empty(len(spelled), np.int32)
        result[spelled] = utf8.astype(np.int32) + FIRST_BYTE
        result[~spelled] = ids[~unknown]
        return result.tolist()

    def spells(self, token_id: int) -> bool:
        """Say whether this token is part of a character that the vocabulary does not have."""
        return FIRST_BYTE <= token_id < FIRST_CHARACTER

    def to_json(self) -> str:
        """Write the tokenizer as JSON."""
        content = {"format": CHARACTERS, "version": VERSION, "characters": self.characters}
        return json.dumps(content, ensure_ascii=False, indent=1) + "\n"

    @classmethod
    def from_json(cls, text: str) -> CharTokenizer:
        """Read what `to_json` has written; anything else is a TokenizerError."""
        return cls(read_content(text, CHARACTERS, VERSION, "characters", str))


class ByteTokenizer(PieceTokenizer):
    """Each byte of a text in UTF-8 is a token: ``[</s>][256 bytes]``, whatever the data.

    Examples
    --------
    >>> ByteTokenizer().encode("é")
    [196, 170]
    """

    def __init__(self) -> None:
        super().__init__([b"", *BYTES], {END_ID: END}, END_ID)

    @classmethod
    def train(cls, texts: Iterable[str], max_vocab_size: int | None = None) -> ByteTokenizer:
        """Make a tokenizer; whatever the texts are, it has 257 tokens."""
        check_limit(max_vocab_size, FIRST_CHARACTER)
        return cls()

    def _encode_part(self, text: str) -> list[int]:
        ids: list[int] = []
        for block in _blocks(text):
            utf8 = np.frombuffer(block.encode("utf-8", "surrogatepass"), np.uint8)
            ids += (utf8.astype(np.int32) + FIRST_BYTE).tolist()
        return ids

    def to_json(self) -> str:
        """Write the tokenizer as JSON."""
        content = {"format": BYTES_ONLY, "version": VERSION, "bytes": len(BYTES)}
        return json.dumps(content, indent=1) + "\n"

    @classmethod
    def from_json(cls, text: str) -> ByteTokenizer:
        """Read what `to_json` has written; anything else is a TokenizerError."""
        if read_content(text, BYTES_ONLY, VERSION, "bytes", int) != len(BYTES):
            raise TokenizerError(f'a tokenizer of bytes must have "bytes": {len(BYTES)}')
        return cls()


def _blocks(text: str) -> Iterator[str]:
    """Yield a text in parts."""
    return (text[i : i + BLOCK] for i in range(0, len(text), BLOCK))
