"""Owns the word tokenizer: text to token ids and back, without loss, whole or as a stream."""

from __future__ import annotations

import copy
import functools
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Final, SupportsIndex

import numpy as np

from rustgpt.backend import backend_name, encoder
from rustgpt.text.chunks import BLOCK, EDGE_OF_WORDS, LONGEST, blocks, word_chunks
from rustgpt.text.counting import count_parts
from rustgpt.text.tokens import BYTES, BaseTokenizer, Ids, check_id, each_id, split_texts
from rustgpt.text.units import GLUED, NEWLINE, SPACE, Spacing, State, cut, kinds_of
from rustgpt.text.utf8 import Utf8Stream
from rustgpt.text.vocab import END, END_ID, FIRST_BYTE, JOIN, LONGEST_WORD, PIECE, SPACE_MARK, Vocab
from rustgpt.text.word_tables import CODE_KINDS, FIRST_STATE, SPACES, Trie, learn_kinds

UTF32: Final = "utf-32-le" if sys.byteorder == "little" else "utf-32-be"

FEW: Final = 0.05  # of the words of all questions


class WordTokenizer(BaseTokenizer):
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

    def __reduce__(self) -> tuple[type[WordTokenizer], tuple[Vocab]]:
        return type(self), (self.vocab,)

    @property
    def vocab_size(self) -> int:
        """The number of tokens; ids are below it."""
        return len(self.vocab)

    @property
    def end_id(self) -> int:
        """The token that ends a text, ``</s>``."""
        return END_ID

    @classmethod
    def train(
        cls,
        texts: Iterable[str],
        max_vocab_size: int | None = None,
        questions: Iterable[str] = (),
    ) -> WordTokenizer:
        """Make a tokenizer that knows the words of these texts.

        Parameters
        ----------
        texts : iterable of str
            The texts; ``</s>`` in them is the end token.
        max_vocab_size : int, optional
            The most tokens to have; see :meth:`Vocab.build`.
        questions : iterable of str, optional
            Those among the texts. A word that occurs in one of them and nowhere else gets no token,
            where such words are few: a model that reads some words in pieces learns to answer
            questions in which there are words that it does not know.
        """
        counts, asked = _count_units(texts), _count_units(questions)
        once = [unit for unit in asked if counts[unit] == 1]
        if len(once) <= FEW * asked.total():
            for unit in once:
                del counts[unit]
        return cls(Vocab.build(counts, max_vocab_size))

    def extended(self, texts: Iterable[str]) -> WordTokenizer:
        """Return a tokenizer that also knows the words of these texts; all ids keep their meaning.

        Parameters
        ----------
        texts : iterable of str
            As in `train`.
        """
        return type(self)(self.vocab.extended(_count_units(texts)))

    def name(self, token_id: SupportsIndex) -> str:
        return self.vocab.tokens[check_id(token_id, self.vocab_size)]

    def spells(self, token_id: int) -> bool:
        is_byte = FIRST_BYTE <= token_id < FIRST_BYTE + 256
        return is_byte or self.vocab.tokens[token_id].startswith(PIECE)

    def _encode_part(self, text: str) -> list[int]:
        if backend_name() == "reference":
            return self.encode_plain(text)
        if len(text) <= BLOCK:
            return self._encode_block(text, 0, FIRST_STATE)[0]
        ids: list[int] = []
        state = FIRST_STATE
        for start, end in blocks(text, EDGE_OF_WORDS):
            before = min(start, 1)  # what stands before says whether a space is alone
            made, state = self._encode_block(text[start - before : end], before, state)
            ids += made
        return ids

    def _encode_block(self, text: str, start: int, state: int) -> tuple[list[int], int]:
        """Return the tokens of text from `start` on, and the state of the spacing behind it."""
        encode = encoder("words_encode")
        codes = memoryview(text.encode(UTF32, "surrogatepass")).cast("I")  # (n,)
        room = np.empty(5 * len(codes), np.int32)
        trie = self._trie
        while True:
            n, after = encode(codes, start, state, CODE_KINDS, SPACES, *trie, room)
            if n >= 0:
                return room[:n].tolist(), after
            learn_kinds(np.asarray(codes))

    @functools.cached_property
    def _trie(self) -> Trie:
        return Trie.of(self.vocab.tokens)

    def encode_plain(self, text: str) -> list[int]:
        """Encode text without end tokens, in plain Python: what `rustgpt/_ext/words.pyx` does."""
        known = self.vocab.ids
        mark = {True: known[SPACE_MARK], False: known[JOIN]}
        spacing = Spacing()
        ids: list[int] = []
        for spaced, unit, first, last in cut(text):
            spelled = [known[unit]] if unit in known else self._spell(unit)
            if FIRST_BYTE <= spelled[0] < FIRST_BYTE + 256:
                first = GLUED  # a reader knows the kind only after the last byte
            if spaced != spacing.space_before(first):
                ids.append(mark[spaced])
                spacing.advance(SPACE)
            spacing.advance(last)
            ids += spelled
        return ids

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


def _count_units(texts: Iterable[str]) -> Counter[str]:
    """Return how often each unit occurs in some texts; see `count_parts`."""
    parts = (block for part in split_texts(texts) for block in word_chunks(part))
    chunks = count_parts(map(_short, parts))
    counts: Counter[str] = Counter()
    while chunks:
        chunk, times = chunks.popitem()
        for _, unit, _, _ in _cut_chunk(chunk):
            counts[unit] += times
    return counts


def _short(chunks: list[str]) -> list[str]:
    """Return chunks with a long one cut into its units, and a word that is too long into letters.

    The letters are all that a vocabulary has of such a word.
    """
    if max(map(len, chunks), default=0) <= LONGEST:
        return chunks
    found: list[str] = []
    for chunk in chunks:
        if len(chunk) <= LONGEST:
            found.append(chunk)
            continue
        for _, unit, _, _ in _cut_chunk(chunk):
            found += [unit] if len(unit) <= LONGEST_WORD else dict.fromkeys(unit)
    return found


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
        for token_id in each_id(after):
            self.push(token_id)

    def push(self, token_id: SupportsIndex) -> str:
        """Take one token and return the text that is now certain."""
        index = check_id(token_id, len(self._shapes))
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

    def copy(self) -> TextStream:
        """Return a stream that goes on from here by itself."""
        twin = copy.copy(self)
        twin._spacing, twin._utf8 = Spacing(*self._spacing.state), copy.copy(self._utf8)
        return twin

    @property
    def state(self) -> tuple[State, bool]:
        """What the bytes that a token appends depend on."""
        return self._spacing.state, bool(self._utf8.begun)

    def appended(self) -> list[bytes]:
        """Return the bytes that each token of the vocabulary would append now.

        0xff, which no UTF-8 has, stands for what would break off a character.
        """
        if self._utf8.begun:
            return (
                [b"\xff"] * FIRST_BYTE
                + [*BYTES]
                + [b"\xff"] * len(self._shapes[FIRST_BYTE + 256 :])
            )
        spaces = {kind: b" " * self._spacing.space_before(kind) for _, kind, _ in self._shapes}
        found = [spaces[kind] + text.encode() for text, kind, _ in self._shapes]
        found[FIRST_BYTE : FIRST_BYTE + 256] = BYTES
        return found

    def _write(self, text: str) -> str:
        """Note and return text that came as bytes."""
        for kind in kinds_of(text):
            self._spacing.advance(kind)
        return text


def _cut_chunk(chunk: str) -> Iterator[tuple[bool, str, str, str]]:
    """Cut a chunk into units like `cut`: a space at its beginning is one between two units."""
    spaced = len(chunk) > 1 and chunk[0] == " "
    for inside, unit, first, last in cut(chunk[1:] if spaced else chunk):
        yield inside or spaced, unit, first, last
        spaced = False


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
