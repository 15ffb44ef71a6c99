"""Owns `rustgpt chat`: questions from a terminal or a pipe, answers to standard output."""

from __future__ import annotations

import argparse
import contextlib
import sys
from typing import TYPE_CHECKING, Final

from rustgpt.cli.options import add_model, add_sampling
from rustgpt.cli.terminal import complain, is_terminal, say
from rustgpt.errors import DataError

if TYPE_CHECKING:
    from rustgpt.generation.chat import Chat

DEFAULT_MODEL: Final = "rustgpt-model"
PROMPT: Final = "Enter prompt: "


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `rustgpt chat`."""
    text = "a model's folder (default: %(default)s)"
    add_model(parser, text, nargs="?", default=DEFAULT_MODEL)
    add_sampling(parser)


def run(args: argparse.Namespace) -> int:
    """Load a model and talk to it."""
    from rustgpt.llm import LLM

    model = LLM.load(args.model)
    return converse(model.chat(args.max_new_tokens, args.temperature, args.seed))


def converse(chat: Chat) -> int:
    """Answer prompts until `exit` or the end of input; return the exit status."""
    while True:
        prompt = read_prompt()
        if prompt is None or prompt.strip().lower() == "exit":
            return 0
        if not prompt.strip():
            continue
        try:
            answer = chat.send(prompt)
        except DataError as error:  # too long; the next one may not be
            complain(error)
            continue
        say(f"Model output: {answer}" if is_terminal(sys.stdin) else answer)


def read_prompt() -> str | None:
    """Read one line; None at the end of input. Bytes that are not UTF-8 become U+FFFD."""
    asks = is_terminal(sys.stdin)  # a script gets answers alone
    if asks and is_terminal(sys.stdout):
        with contextlib.suppress(ImportError):
            import readline  # noqa: F401  (gives `input` editing and a history)
        try:
            return input(PROMPT)
        except EOFError:
            say()
            return None
        except UnicodeDecodeError as error:
            return error.object.decode(error.encoding, "replace")
    if asks:
        say(PROMPT, end="")
    line = sys.stdin.buffer.readline() if sys.stdin is not None else b""
    if asks and not line:
        say()
    return line.decode("utf-8", "replace") if line else None
