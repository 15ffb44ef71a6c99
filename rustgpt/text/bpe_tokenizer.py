"""Owns byte-level BPE, through the package `tokenizers`: trained here, or read from its files."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import chain, pairwise, repeat
from typing import Any, Final

import numpy as np

from rustgpt.backend import encoder
from rustgpt.errors import TokenizerError
from rustgpt.reference import bpe
from rustgpt.text.chunks import BLOCK, blocks
from rustgpt.text.counting import count_parts, most_frequent
from rustgpt.text.library import READABLE, LibraryTokenizer, check_bpe, guarded, the_library
from rustgpt.text.pairs import Table, pair_table
from rustgpt.text.tokens import BYTES, check_limit, split_texts
from rustgpt.text.vocab import END, SURROGATE

DEFAULT_SIZE: Final = 4096
REPLACEMENT: Final = "\ufffd"
# What a tokenizer is trained on: more would cost much memory or time and change little.
MOST_DIFFERENT: Final = 1 << 17  # pieces, the most frequent ones
MOST_FED: Final = 1 << 23  # occurrences of pieces
AT_ONCE: Final = 1 << 12  # occurrences that the package is given as one text
_SPLIT: Final = re.compile(rf"({SURROGATE.pattern})")
# What GPT-2's rule takes each code point for, by numbers of `rustgpt/reference/bpe.py`: what the
# library has said, and 0 where it has not been asked yet.
_KINDS: Final = np.zeros(0x110000, np.uint8)


class BpeTokenizer(LibraryTokenizer):
    """Byte pair encoding over bytes, as in GPT-2; what is on disk is the library's own file.

    Ids and text are those of the library (`tokenizers`), but for what it cannot take or would
    mistake: the name of a special token in a text is text, a lone surrogate is three bytes, and
    what a file has no bytes for becomes U+FFFD. A file whose normalizer changes texts gives the
    changed text back.

    Raises
    ------
    TokenizerError
        If it is no byte-level BPE, or one in which text could get lost; or see the base.
    """

    def __init__(
        self, content: dict[str, Any], end: str | None = None, size: int | None = None
    ) -> None:
        _check_kind(content)
        super().__init__(content, end, size)
        spelled = {p: i for i, p in enumerate(self._pieces) if i not in self._special}
        self._missing = b"".join(byte for byte in BYTES if byte not in spelled)
        if any(byte in self._missing for byte in REPLACEMENT.encode()):
            raise TokenizerError(
                f"the tokenizer lacks {len(self._missing)} of the 256 bytes, so that text would "
                "get lost: train it with the whole alphabet "
                "(pre_tokenizers.ByteLevel.alphabet())"
            )
        self._bytes = np.array([spelled.get(byte, -1) for byte in BYTES], np.int32)
        self._merges = _merges(content["model"]) if _is_gpt2(content) else None

    @classmethod
    def train(cls, texts: Iterable[str], max_vocab_size: int | None = None) -> BpeTokenizer:
        """Learn which pairs to merge from texts.

        Parameters
        ----------
        texts
            The texts; ``</s>`` in them is the end token.
        max_vocab_size
            The most tokens to have, from 257 on (default: 4,096).
        """
        check_limit(max_vocab_size, 1 + len(BYTES))
        library = the_library()
        level = library.pre_tokenizers.ByteLevel
        trained = library.Tokenizer(library.models.BPE())
        trained.pre_tokenizer = level(add_prefix_space=False)
        trained.decoder = library.decoders.ByteLevel()
        trainer = library.trainers.BpeTrainer(
            vocab_size=DEFAULT_SIZE if max_vocab_size is None else max_vocab_size,
            special_tokens=[END],
            initial_alphabet=level.alphabet(),
            show_progress=False,
        )
        counts = most_frequent(count_parts(_cut(texts)), MOST_DIFFERENT)
        guarded(lambda: trained.train_from_iterator(_repeated(counts), trainer))
        return cls(json.loads(trained.to_str()))

    def _encode_part(self, text: str) -> list[int]:
        if len(text) <= BLOCK:
            return self._encode_block(text)
        ids: list[int] = []
        for start, end in blocks(text):
            ids += self._encode_block(text[start:end])
        return ids

    def _encode_block(self, text: str) -> list[int]:
        try:
            utf8 = text.encode()
        except UnicodeEncodeError:
            ids: list[int] = []
            for part in _SPLIT.split(text):
                if SURROGATE.match(part):
                    ids += self._bytes[[*part.encode("utf-8", "surrogatepass")]].tolist()
                else:
                    ids += self._encode_block(part)
            return ids
        if not utf8:
            return []
        if self._missing and len(utf8.translate(None, self._missing)) < len(utf8):
            signs = (REPLACEMENT if {*sign.encode()} & {*self._missing} else sign for sign in text)
            text = "".join(signs)
            utf8 = text.encode()
        if self._merges is None:
            return self._asked([text])[0]
        return self._encode_utf8(utf8, self._merges)

    def _encode_utf8(self, utf8: bytes, merges: Table) -> list[int]:
        """Encode text as GPT-2 does; the library has the pieces that are very long."""
        encode = encoder("bpe_encode")
        room = np.empty(len(utf8), np.int32)
        ids: list[int] = []
        start = 0
        while start < len(utf8):
            start, end, n = encode(utf8, start, _KINDS, self._bytes, merges, room)
            ids += room[:n].tolist()
            if end > start:
                ids += self._asked([utf8[start:end].decode()])[0]
                start = end
            elif start < len(utf8):
                _learn_kinds(utf8)
        return ids

    def _bytes_of(self, token: str) -> bytes:
        try:
            return bytes([_BYTE_OF[character] for character in token])
        except KeyError:  # an added token: the text itself
            return token.encode()


def _cut(texts: Iterable[str]) -> Iterator[list[bytes]]:
    """Yield the pieces that GPT-2's rule cuts texts into, a list for each block of them."""
    cut = encoder("bpe_pieces")
    for text in chain.from_iterable(map(_SPLIT.split, split_texts(texts))):
        for first, last in blocks(text) if not SURROGATE.match(text) else ():
            utf8 = text[first:last].encode()
            ends = np.empty(len(utf8), np.int32)
            start = 0
            while start < len(utf8):
                begin = start
                start, n = cut(utf8, start, _KINDS, ends)
                yield [utf8[a:b] for a, b in pairwise([begin, *ends[:n].tolist()])]
                if start < len(utf8):
                    _learn_kinds(utf8)


def _repeated(counts: Counter[bytes]) -> Iterator[str]:
    """Yield pieces as text that is cut into them, as often as they occur.

    Between two of the same there is a line break, which is a piece by itself, and as a single byte
    merges with nothing. Where there are very many pieces, a fixed share of each is enough.
    """
    share = min(1.0, MOST_FED / max(1, counts.total()))
    for piece, times in counts.items():
        text, left = piece.decode(), round(times * share)
        at_once = 1 if text.isspace() else AT_ONCE  # white space joins the line break
        for times in (*repeat(at_once, left // at_once), left % at_once):
            yield "\n".join(repeat(text, times))


def _learn_kinds(utf8: bytes) -> None:
    """Ask the library for the kinds of those code points of a text that have none yet."""
    codes = np.unique(np.frombuffer(utf8.decode().encode("utf-32-le"), "<u4"))
    codes = codes[_KINDS[codes] == 0]
    text = "".join(map(chr, codes.tolist()))
    kinds = np.full(len(codes), bpe.OTHER, np.uint8)
    library = the_library()
    for kind, sign, pattern in (
        (bpe.LETTER, "a", r"\p{L}"), (bpe.NUMBER, "1", r"\p{N}"), (bpe.WHITE, " ", r"\s"),
    ):  # fmt: skip
        # All characters of the kind become one of them.
        replaced = library.normalizers.Replace(library.Regex(pattern), sign).normalize_str(text)
        kinds[[character == sign for character in replaced]] = kind
    _KINDS[codes] = kinds  # at once: another thread may be encoding


def _merges(model: dict[str, Any]) -> Table:
    """Return the rank and the token of each pair of tokens that merges; see `bpe_encode`."""
    ids = model["vocab"]
    found: dict[tuple[int, int], int] = {}
    for rank, merge in enumerate(model["merges"]):
        left, right = merge.split(" ") if isinstance(merge, str) else merge
        found[ids[left], ids[right]] = rank << 32 | ids[left + right]
    pairs = np.array([*found], np.int64).reshape(-1, 2)
    return pair_table(pairs[:, 0], pairs[:, 1], [*found.values()])


def _check_kind(content: dict[str, Any]) -> None:
    """Raise TokenizerError unless this describes a BPE over bytes."""
    model, decoder = check_bpe(content), content.get("decoder")
    kind = decoder.get("type") if isinstance(decoder, dict) else None
    affixes = model.get("continuing_subword_prefix"), model.get("end_of_word_suffix")
    if kind != "ByteLevel" or any(affixes):
        raise TokenizerError(f"{READABLE}, but the decoder is {kind!r:.40}")


def _is_gpt2(content: dict[str, Any]) -> bool:
    """Whether text is cut as GPT-2 does, and nothing else happens to it."""
    cut = content.get("pre_tokenizer") or {}
    settings = cut.get("type"), cut.get("use_regex", True), cut.get("add_prefix_space")
    if settings != ("ByteLevel", True, False) or content.get("normalizer") is not None:
        return False
    if content["model"].get("ignore_merges"):
        return False
    return all(token["special"] for token in content.get("added_tokens") or [])


def _alphabet() -> dict[str, int]:
    """Return which byte each character of a token stands for, as GPT-2 has it."""
    shown = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in shown]
    return {
        **{chr(byte): byte for byte in shown},
        **{chr(256 + i): byte for i, byte in enumerate(others)},
    }


_BYTE_OF: Final = _alphabet()
