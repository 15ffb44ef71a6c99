"""Owns what a model needs of a tokenizer, and which one is made or read under which name."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from itertools import chain
from pathlib import Path
from typing import Final, Protocol, SupportsIndex

from rustgpt.errors import ConfigError, TokenizerError
from rustgpt.text.bpe_tokenizer import BpeTokenizer
from rustgpt.text.char_tokenizer import ByteTokenizer, CharTokenizer
from rustgpt.text.choose import SAMPLE, choose
from rustgpt.text.library_json import read_library
from rustgpt.text.tokenizer_json import read_object
from rustgpt.text.tokens import BaseTokenizer, Ids, Stream, token_ids
from rustgpt.text.word_tokenizer import TextStream, WordTokenizer

__all__ = [
    "AUTO",
    "KINDS",
    "BaseTokenizer",
    "Stream",
    "TextStream",
    "Tokenizer",
    "WordTokenizer",
    "load_tokenizer",
    "read_tokenizer",
    "token_ids",
    "tokenizer_for",
]

AUTO: Final = "auto"
FILE: Final = "tokenizer.json"
MOST: Final = 32_768  # tokens of words or characters, unless somebody asks for more
LARGEST_FILE: Final = 1 << 28  # bytes


class Tokenizer(Protocol):
    """What a model needs of its tokenizer: one of rustgpt's, or one of your own.

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


# What is trained on data, by the name that a user gives.
KINDS: Final[dict[str, Callable[[Iterable[str], int | None], BaseTokenizer]]] = {
    "word": WordTokenizer.train,
    "char": CharTokenizer.train,
    "byte": ByteTokenizer.train,
    "bpe": BpeTokenizer.train,
}
# What reads a tokenizer.json, by the format that it names.
READERS: Final[dict[str, Callable[[str], BaseTokenizer]]] = {
    "rustgpt-word": WordTokenizer.from_json,
    "rustgpt-char": CharTokenizer.from_json,
    "rustgpt-byte": ByteTokenizer.from_json,
}


def read_tokenizer(text: str) -> BaseTokenizer:
    """Read a tokenizer of any format that is known here.

    Raises
    ------
    TokenizerError
        If the text is not in one of these formats, or damaged, or if the format needs a package
        that is not installed.
    """
    content = read_object(text) or {}
    if "format" not in content and "model" in content:
        return read_library(content)
    found = content.get("format")
    read = READERS.get(found, WordTokenizer.from_json) if isinstance(found, str) else None
    return (read or WordTokenizer.from_json)(text)  # which says what is wrong


def load_tokenizer(path: str | os.PathLike[str]) -> BaseTokenizer:
    """Read a tokenizer from a `tokenizer.json`, or from the folder of a model.

    Raises
    ------
    TokenizerError
        If there is none, or see `read_tokenizer`.
    """
    file = Path(path)
    if file.is_dir():
        file /= FILE
    name = repr(str(file))
    try:
        if file.stat().st_size > LARGEST_FILE:
            raise TokenizerError(f"{name} is too large for a tokenizer")
        text = file.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise TokenizerError(
            f"cannot read the tokenizer {name}: {error.strerror or error}; name a tokenizer.json, "
            f"a model's folder, or one of {', '.join(KINDS)}"
        ) from None
    except UnicodeError:
        raise TokenizerError(f"{name} is no tokenizer: it is not in UTF-8") from None
    try:
        return read_tokenizer(text)
    except TokenizerError as error:
        raise TokenizerError(f"{name}: {error}") from None


def tokenizer_for(
    texts: Iterable[str],
    name: str = AUTO,
    vocab_size: int | None = None,
    questions: Iterable[str] = (),
) -> BaseTokenizer:
    """Return the tokenizer with which a model is to learn texts.

    Parameters
    ----------
    texts
        What is to be learned; ``</s>`` in them is the end token.
    name
        "word", "char", "byte" or "bpe" for one trained on the texts; "auto" for what `choose`
        finds; anything else names a `tokenizer.json` or the folder of a model.
    vocab_size
        The most tokens to have; by default 32,768 of words or characters, and 4,096 of BPE.
    questions
        Those among the texts; see `WordTokenizer.train`.

    Raises
    ------
    ConfigError
        If the limit is too low, or there is a limit for a tokenizer that is read.
    TokenizerError
        If the tokenizer cannot be read, or needs a package that is not installed.
    """
    if name == AUTO:
        first, texts = _beginning(texts)
        name, _ = choose(first)
    if name not in KINDS:
        if vocab_size is not None:
            raise ConfigError(
                f"a vocabulary's size cannot be chosen for the tokenizer {name!r:.60}, which is "
                "read: leave out one of the two"
            )
        return load_tokenizer(name)
    if vocab_size is None and name in ("word", "char"):
        vocab_size = MOST
    if name == "word":
        return WordTokenizer.train(texts, vocab_size, questions)
    return KINDS[name](texts, vocab_size)


def _beginning(texts: Iterable[str]) -> tuple[Sequence[str], Iterable[str]]:
    """Return enough of the texts to choose by, and all of them."""
    if isinstance(texts, Sequence):
        return texts, texts
    rest = iter(texts)
    first: list[str] = []
    size = 0
    for text in rest:
        first.append(text)
        size += len(text)
        if size > SAMPLE:
            break
    return first, chain(first, rest)
