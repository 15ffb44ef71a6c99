"""Owns what may be typed in a chat instead of a question: /help, /set and the others."""

from __future__ import annotations

import math
import re
import unicodedata
from typing import TYPE_CHECKING, ClassVar, Final

from rustgpt.cli.sampling import changed, shown, without_effect
from rustgpt.cli.terminal import note, say
from rustgpt.errors import ConfigError

if TYPE_CHECKING:
    from rustgpt.generation.chat import Chat
    from rustgpt.generation.continuation import Continuation, ScoredToken

HELP: Final = """\
/set                 show the settings
/set NAME VALUE      change one, such as: /set temperature 0.8
/system TEXT         what the model is told before all questions, or none
/clear               forget what was said
/retry               answer the last question again
/stats               the time of the last answer, and the use of the context
/probs               how sure the model was of each token, and of what others
/exit                end the chat, as 'exit' and the end of input do
Ctrl-C ends an answer, or gives up what is typed; twice at an empty prompt, it
ends the chat."""


class Commands:
    """What may be typed in a chat, and what is known of its last answer."""

    LIKELIEST: ClassVar[int] = 4  # tokens that are told of in each place, the one chosen included

    def __init__(self, chat: Chat) -> None:
        self._chat = chat
        self._last: Continuation | None = None
        self._seconds = 0.0

    def answered(self, answer: Continuation, seconds: float) -> None:
        """Note the last answer and how long it took."""
        self._last, self._seconds = answer, seconds

    def run(self, line: str) -> str | None:
        """Do what a line beginning with / says; return a question if one is to be asked.

        Raises
        ------
        ConfigError
            If there is no such command, or it cannot be done.
        """
        name, _, rest = line.strip().partition(" ")
        known = {
            "/help": self._help, "/set": self._set, "/system": self._system, "/clear": self._clear,
            "/retry": self._retry, "/stats": self._stats, "/probs": self._probs,
        }  # fmt: skip
        command = known.get(name.lower())
        if command is None:
            raise ConfigError(f"there is no command {name!r:.60}; /help lists them")
        return command(rest.strip())

    def _help(self, rest: str) -> None:
        say(HELP)

    def _set(self, rest: str) -> None:
        name, value = [*re.split(r"\s*=\s*|\s+", rest, maxsplit=1), ""][:2]
        if not name:
            say("\n".join(shown(self._chat.sampling)))
            return
        self._chat.sampling = changed(self._chat.sampling, name, value.strip())
        if idle := without_effect(self._chat.sampling):
            note(f"rustgpt: {idle}")

    def _system(self, rest: str) -> None:
        if rest:
            self._chat.system = "" if rest.lower() == "none" else rest
        say(f"system: {self._chat.system or 'none'}")

    def _clear(self, rest: str) -> None:
        self._chat.reset()
        say("All that was said is forgotten.")

    def _retry(self, rest: str) -> str:
        question = self._chat.undo()
        if question is None:
            raise ConfigError("there is no question to answer again")
        if not self._chat.sampling.temperature:
            note("rustgpt: at temperature 0 the answer is the same: /set temperature 0.8")
        return question

    def _stats(self, rest: str) -> None:
        last = self._answer()
        n, most = len(last.tokens), self._chat.max_seq_len
        questions = len(self._chat.history) // 2
        pace = f"{n / self._seconds:,.0f} tokens/s" if self._seconds else "at once"
        say(
            f"the last answer: {n} tokens in {self._seconds:.2f} s ({pace}), "
            f"ended by {last.ended or 'Ctrl-C'}\n"
            f"its prompt: {last.prompt_length} tokens; the model sees {most} at once\n"
            f"remembered: {questions} question{'s' * (questions != 1)}"
        )

    def _probs(self, rest: str) -> None:
        last = self._answer()
        width = max((_cells(_one_line(token.text)) for token in last.tokens), default=0)
        for token in last.tokens:
            say(_row(token, min(width, 24)))

    def _answer(self) -> Continuation:
        if self._last is None:
            raise ConfigError("there is no answer yet")
        return self._last


def _row(token: ScoredToken, width: int) -> str:
    """Return how likely a token was, and what else."""
    others = [(text, value) for text, value in token.likeliest if text != token.text]
    told = ", ".join(f"{_one_line(text)} {_percent(value)}" for text, value in others[:3])
    text = _one_line(token.text)
    text += " " * (width - _cells(text))
    return f"{_percent(token.logprob or 0.0):>6}  {text}  {told}".rstrip()


def _cells(text: str) -> int:
    """Return how many columns of a terminal a text takes: two for each wide character."""
    seen = (sign for sign in text if unicodedata.category(sign) not in ("Mn", "Me", "Cf"))
    return sum(2 if unicodedata.east_asian_width(sign) in "WF" else 1 for sign in seen)


def _percent(logprob: float) -> str:
    return f"{100 * math.exp(logprob):.1f}%"


def _one_line(text: str) -> str:
    return repr(text)[1:-1] if not text.isprintable() or text.isspace() else text
