"""Owns `rustgpt chat`: questions from a terminal or a pipe, answers to standard output."""

from __future__ import annotations

import argparse
import contextlib
import sys
from typing import TYPE_CHECKING, Final

from rustgpt.cli.options import add_sampling, path
from rustgpt.cli.terminal import complain, is_terminal, say
from rustgpt.errors import DataError

if TYPE_CHECKING:
    from rustgpt.generation.chat import Chat

DEFAULT_MODEL: Final = "rustgpt-model"
PROMPT: Final = "Enter prompt: "


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `rustgpt chat`."""
    parser.add_argument(
        "model",
        nargs="?",
        type=path,
        default=DEFAULT_MODEL,
        metavar="MODEL",
        help="a model's folder (default: %(default)s)",
    )
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
    if not is_terminal(sys.stdin):  # a script: answers alone
        line = sys.stdin.buffer.readline() if sys.stdin is not None else b""
        return line.decode("utf-8", "replace") if line else None
    if is_terminal(sys.stdout):
        with contextlib.suppress(ImportError):
            import readline  # noqa: F401  (gives `input` editing and a history)
        try:
            return input(PROMPT)
        except EOFError:
            say()
            return None
        except UnicodeDecodeError as error:
            return error.object.decode(error.encoding, "replace")
    say(PROMPT, end="")
    line = sys.stdin.buffer.readline()
    if not line:
        say()
        return None
    return line.decode("utf-8", "replace")
