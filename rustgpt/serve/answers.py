"""Owns the form of answers, whole and in chunks, as OpenAI's reference has them."""

from __future__ import annotations

import re
import secrets
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

from rustgpt.generation.continuation import shown
from rustgpt.generation.request import Token
from rustgpt.generation.sampling import Likely
from rustgpt.serve.worker import Made
from rustgpt.text.tokenizer import Tokenizer

REASONS: Final = {"end": "stop", "stop": "stop", "length": "length"}
_BYTES: Final = re.compile(r"(?:<0x[0-9A-F]{2}>)+")


class Read(NamedTuple):
    """A token of a prompt; nothing is known of how likely a first one was."""

    id: int
    text: str
    logprob: float | None
    likeliest: Likely


def read_tokens(
    tokenizer: Tokenizer, ids: Sequence[int], told: Iterable[tuple[float | None, Likely]], skip: int
) -> list[Read]:
    """Return the tokens of a prompt but some first ones, with what is told of each."""
    stream = tokenizer.stream(after=ids[:skip])
    found = list(zip(ids, told, strict=True))[skip:]
    return [Read(token, stream.push(token), *about) for token, about in found]


@dataclass
class Part:
    """What is known of one of an answer's texts; a chunk of it has what is new."""

    text: str = ""
    tokens: list[Token] = field(default_factory=list)
    ended: str | None = None
    length: int = 0  # of the text before, in characters
    echoed: int = 0  # characters of the prompt, with which the text begins
    read: list[Read] = field(default_factory=list)  # the prompt's tokens, if they are told of

    def take(self, token: Token) -> None:
        """Take one more token."""
        self.text += token.text
        if token.ended != "end" and token.id >= 0:
            self.tokens.append(token)
        if token.ended is not None:
            self.ended = REASONS[token.ended]


def parts_of(made: Sequence[Made], parts: dict[int, Part]) -> None:
    """Add what was made to the parts of each text."""
    for number, token in made:
        parts.setdefault(number, Part()).take(token)


class Answer:
    """The form of what answers one request.

    Parameters
    ----------
    model
        Its name.
    tokenizer
        Shows tokens.
    prompt_tokens
        How many the prompts have.
    tells
        Whether log-probabilities are told.
    """

    prefix, whole_kind, chunk_kind = "chatcmpl-", "chat.completion", "chat.completion.chunk"

    def __init__(self, model: str, tokenizer: Tokenizer, prompt_tokens: int, tells: bool) -> None:
        self._model = model
        self._tokenizer = tokenizer
        self._prompt_tokens = prompt_tokens
        self._tells = tells
        self._id = self.prefix + secrets.token_hex(16)
        self._created = int(time.time())
        self.made_tokens = 0

    def _frame(self, kind: str, choices: list[dict[str, Any]]) -> dict[str, Any]:
        return {
            "id": self._id,
            "object": kind,
            "created": self._created,
            "model": self._model,
            "system_fingerprint": None,
            "choices": choices,
        }

    def usage(self) -> dict[str, int]:
        """Return how many tokens were read and made."""
        made, read = self.made_tokens, self._prompt_tokens
        return {"prompt_tokens": read, "completion_tokens": made, "total_tokens": read + made}

    def whole(self, parts: dict[int, Part]) -> dict[str, Any]:
        """Return the answer with all its texts."""
        self.made_tokens = sum(len(part.tokens) for part in parts.values())
        choices = [self._whole_choice(i, parts[i]) for i in sorted(parts)]
        return {**self._frame(self.whole_kind, choices), "usage": self.usage()}

    def begin(self, texts: int) -> list[dict[str, Any]]:
        """Return the chunks before all others."""
        return [
            self._chunk(i, {"delta": {"role": "assistant", "content": "", "refusal": None}}, None)
            for i in range(texts)
        ]

    def chunks(self, index: int, part: Part) -> list[dict[str, Any]]:
        """Return the chunks of what is new of a text."""
        self.made_tokens += len(part.tokens)
        found = []
        if part.text or (part.tokens and self._tells):
            found.append(self._chunk(index, self._new(part), self._logprobs(part)))
        if part.ended is not None:
            found.append(self._chunk(index, self._new(Part()), None, part.ended))
        return found

    def _chunk(
        self, index: int, content: dict[str, Any], logprobs: Any, ended: str | None = None
    ) -> dict[str, Any]:
        choice = {"index": index, **content, "logprobs": logprobs, "finish_reason": ended}
        return self._frame(self.chunk_kind, [choice])

    def usage_chunk(self) -> dict[str, Any]:
        """Return the chunk behind all others."""
        return {**self._frame(self.chunk_kind, []), "usage": self.usage()}

    def _new(self, part: Part) -> dict[str, Any]:
        return {"delta": {"content": part.text} if part.text else {}}

    def _whole_choice(self, index: int, part: Part) -> dict[str, Any]:
        message: dict[str, Any] = {
            "role": "assistant", "content": part.text, "refusal": None, "annotations": []
        }  # fmt: skip
        told = {"logprobs": self._logprobs(part), "finish_reason": part.ended or "length"}
        return {"index": index, "message": message, **told}

    def _logprobs(self, part: Part) -> Any:
        if not self._tells:
            return None
        content = []
        for token in part.tokens:
            likely = [self._token(other, value) for other, value in token.likeliest]
            content.append({**self._token(token.id, token.logprob), "top_logprobs": likely})
        return {"content": content, "refusal": None}

    def _token(self, token: int, logprob: float | None) -> dict[str, Any]:
        text = shown(self._tokenizer, token)
        return {"token": text, "logprob": finite(logprob), "bytes": list(bytes_of(text))}


class TextAnswer(Answer):
    """The form of what answers /v1/completions."""

    prefix, whole_kind, chunk_kind = "cmpl-", "text_completion", "text_completion"

    def begin(self, texts: int) -> list[dict[str, Any]]:
        return []

    def _new(self, part: Part) -> dict[str, Any]:
        return {"text": part.text}

    def _whole_choice(self, index: int, part: Part) -> dict[str, Any]:
        told = {"logprobs": self._logprobs(part), "finish_reason": part.ended or "length"}
        return {"index": index, "text": part.text, **told}

    def _logprobs(self, part: Part) -> Any:
        if not self._tells:
            return None
        tokens: list[Read | Token] = [*part.read, *part.tokens]
        end = part.length + part.echoed
        return {
            "tokens": [shown(self._tokenizer, token.id) for token in tokens],
            "token_logprobs": [
                None if token.logprob is None else finite(token.logprob) for token in tokens
            ],
            "top_logprobs": [self._likely(token) for token in tokens],
            "text_offset": [*_offsets(part.read, 0, end), *_offsets(part.tokens, end)],
        }

    def _likely(self, token: Read | Token) -> dict[str, float] | None:
        if token.logprob is None:
            return None
        return {shown(self._tokenizer, other): finite(value) for other, value in token.likeliest}


def _offsets(tokens: Iterable[Read | Token], at: int, end: int | None = None) -> Iterator[int]:
    """Yield where each token's text begins; not behind the end."""
    for token in tokens:
        yield at if end is None else min(at, end)
        at += len(token.text)


def finite(logprob: float | None) -> float:
    """Return a log-probability as JSON can write it: OpenAI has -9999 for what is impossible."""
    return max(-9999.0, logprob or 0.0)


def bytes_of(name: str) -> bytes:
    """Return the bytes of a token as it is shown; of one that is no character, as `<0xE2>`."""
    if _BYTES.fullmatch(name):
        return bytes(int(pair, 16) for pair in re.findall(r"0x(..)", name))
    return name.encode("utf-8", "surrogatepass")
