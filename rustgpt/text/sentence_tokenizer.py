"""Owns BPE as SentencePiece has it, for models like Llama 2: over characters, with ▁ for spaces."""

from __future__ import annotations

import re
from typing import Any, Final, SupportsIndex

from rustgpt.errors import TokenizerError
from rustgpt.text.library import READABLE, LibraryTokenizer, check_bpe
from rustgpt.text.tokens import Ids, PieceStream
from rustgpt.text.vocab import SURROGATE

SPACE: Final = "▁"
BYTE: Final = re.compile(r"<0x([0-9A-F]{2})>")
# Texts that must come back, the first but for newer files.
SAMPLES: Final = (" a", "a b", "a\n  b ", "é你😀")
# What a file says turns pieces into text; the last is left out where texts begin with no space.
DECODERS: Final = [
    {"type": "Replace", "pattern": {"String": SPACE}, "content": " "},
    {"type": "ByteFallback"},
    {"type": "Fuse"},
]
STRIP: Final = {"type": "Strip", "content": " ", "start": 1, "stop": 0}


class SentenceTokenizer(LibraryTokenizer):
    """Byte pair encoding over characters, as SentencePiece has it: Llama 2, Mistral, TinyLlama.

    A text begins with a space, as any word within it does, and what it is decoded to does not. A
    character that no token has is spelled in bytes. Ids and text are those of the library
    (`tokenizers`), but the name of a special token in a text is text. What the files themselves
    lose is lost: a "▁" comes back as a space, in newer ones a space at the beginning is not told
    from the one that is put there; and a lone surrogate comes back as U+FFFD.

    Raises
    ------
    TokenizerError
        If it is no such tokenizer, or one in which text would get lost; or see the base.
    """

    def __init__(
        self, content: dict[str, Any], end: str | None = None, size: int | None = None
    ) -> None:
        model, decoders = check_bpe(content), _decoders(content)
        if decoders not in (DECODERS, [*DECODERS, STRIP]):
            kinds = [part.get("type") if isinstance(part, dict) else None for part in decoders]
            raise TokenizerError(f"{READABLE}, but the decoders are other ones: {kinds!s:.80}")
        self._strips = STRIP in decoders
        bytes_there = sum(BYTE.fullmatch(token) is not None for token in model["vocab"])
        if not model.get("byte_fallback") or bytes_there < 256:
            raise TokenizerError(
                "the tokenizer has no tokens for the 256 bytes, so that text would get lost"
            )
        super().__init__(content, end, size)
        newer = content.get("pre_tokenizer") is not None
        for text in SAMPLES[newer:]:
            if self.decode(self.encode(text)) != text:
                raise TokenizerError(f"the text {text!r} does not come back from the tokenizer")

    def _bytes_of(self, token: str) -> bytes:
        if byte := BYTE.fullmatch(token):
            return bytes.fromhex(byte[1])
        return token.replace(SPACE, " ").encode()

    def _encode_part(self, text: str) -> list[int]:
        return self._asked([SURROGATE.sub("\ufffd", text)])[0] if text else []

    def stream(self, skip_special: bool = True, *, after: Ids = ()) -> PieceStream:
        pieces = self._pieces if skip_special else self._shown
        return SentenceStream(pieces, after) if self._strips else PieceStream(pieces, after)


class SentenceStream(PieceStream):
    """A stream whose first token loses the space before it."""

    def __init__(self, pieces: list[bytes], after: Ids = ()) -> None:
        self._inside = False  # whether there is text before the next token
        super().__init__(pieces, after)

    def push(self, token_id: SupportsIndex) -> str:
        text = super().push(token_id)
        if not self._inside and (text or self._utf8.begun):
            self._inside = True
            return text.removeprefix(" ")
        return text

    @property
    def state(self) -> bool:  # type: ignore[override]
        """What the bytes that a token appends depend on: whether it is the first."""
        return self._inside

    def appended(self) -> list[bytes]:
        if self._inside:
            return [*self._pieces]
        return [piece.removeprefix(b" ") for piece in self._pieces]


def is_sentence(content: dict[str, Any]) -> bool:
    """Tell whether a `tokenizer.json` spells what it does not know in bytes, as SentencePiece."""
    return {"type": "ByteFallback"} in _decoders(content)


def _decoders(content: dict[str, Any]) -> list[Any]:
    """Return the decoders that a `tokenizer.json` names."""
    decoder = content.get("decoder")
    parts = decoder.get("decoders") if isinstance(decoder, dict) else None
    return parts if isinstance(parts, list) else []
